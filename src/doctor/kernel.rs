//! Whether the kernel has what the rules and queues need.
//!
//! Each subsystem is sent a request that changes nothing and looked at for its answer. Asking also loads
//! the module where there is one, so a kernel whose modules are not loaded yet passes; looking at
//! `/proc` would not tell. Layouts are those of linux/netlink.h, linux/netfilter/nfnetlink.h and its
//! neighbours, whose integers are in host order unless said otherwise.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Check, Finding};

/// How long the kernel may take; it answers within the call that asks, or after loading a module.
const PATIENCE: Duration = Duration::from_secs(5);

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Type of the queue subsystem's configuration message.
const QUEUE_CONFIG: u16 = 3 << 8 | 2;
/// Type of nf_tables' request for its generation number.
const TABLES_GETGEN: u16 = 10 << 8 | 16;
/// NFQA_CFG_CMD with the command PF_BIND for IPv4, which kernels since 3.8 accept and ignore: length and
/// type in host order, then the command, a pad byte and the family in network order.
const PF_BIND: [u8; 4] = [3, 0, 0, 2];

/// What the kernel said to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The subsystem answered.
    Present,
    /// The request was refused with this errno.
    Refused(i32),
}

/// What the kernel lacks.
pub(super) fn check() -> Vec<Finding> {
    let socket = match open() {
        Ok(socket) => socket,
        Err(error) => {
            return vec![Finding::error(
                Check::Nfnetlink,
                format!("this kernel has no netfilter netlink: {error}"),
                "use a kernel with CONFIG_NETFILTER_NETLINK, or load the module nfnetlink",
            )];
        }
    };
    let subsystems = [
        (Check::NfnetlinkQueue, "nfnetlink_queue", "CONFIG_NETFILTER_NETLINK_QUEUE", queue_request()),
        (Check::NfTables, "nf_tables", "CONFIG_NF_TABLES", request(TABLES_GETGEN, &[])),
    ];
    let findings = subsystems.into_iter().filter_map(|(check, module, option, request)| {
        let why = match ask(&socket, &request) {
            Ok(Answer::Present) => return None,
            Ok(Answer::Refused(errno)) => io::Error::from_raw_os_error(errno),
            Err(error) => error,
        };
        Some(Finding::error(
            check,
            format!("this kernel has no {module}: {why}"),
            format!("use a kernel with {option}, or load the module: modprobe {module}"),
        ))
    });
    findings.collect()
}

fn open() -> io::Result<Socket> {
    let (domain, protocol) = (Domain::from(libc::AF_NETLINK), Protocol::from(libc::NETLINK_NETFILTER));
    let socket = Socket::new(domain, Type::from(libc::SOCK_RAW), Some(protocol))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn queue_request() -> Vec<u8> {
    let mut attribute = Vec::with_capacity(8);
    attribute.extend_from_slice(&8_u16.to_ne_bytes());
    attribute.extend_from_slice(&1_u16.to_ne_bytes());
    attribute.extend_from_slice(&PF_BIND);
    request(QUEUE_CONFIG, &attribute)
}

/// A netlink message of this type: header, `nfgenmsg` of no family, attributes.
fn request(kind: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).expect("requests are a few bytes long");
    let mut message = Vec::with_capacity(20 + attributes.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number, port, and nfgenmsg: nothing depends on them.
    message.extend_from_slice(&[0; 12]);
    message.extend_from_slice(attributes);
    message
}

fn ask(socket: &Socket, request: &[u8]) -> io::Result<Answer> {
    socket.send(request)?;
    let mut buffer = [0; 4096];
    let mut socket = socket;
    let length = socket.read(&mut buffer)?;
    let answer = buffer.get(..length).and_then(parse).ok_or(io::ErrorKind::InvalidData)?;
    // What follows an answer is its acknowledgement, which would be taken for the next one's.
    if answer.1 {
        let _ = socket.read(&mut buffer)?;
    }
    Ok(answer.0)
}

/// The first message's meaning, and whether an acknowledgement is still to come.
fn parse(datagram: &[u8]) -> Option<(Answer, bool)> {
    let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    if kind != NLMSG_ERROR {
        let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?);
        return Some((Answer::Present, usize::try_from(length).ok()? >= datagram.len()));
    }
    let errno = i32::from_ne_bytes(datagram.get(16..20)?.try_into().ok()?);
    Some((if errno == 0 { Answer::Present } else { Answer::Refused(-errno) }, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_length_they_say() {
        for message in [queue_request(), request(TABLES_GETGEN, &[])] {
            let length = u32::from_ne_bytes(message[..4].try_into().expect("four bytes"));
            assert_eq!(usize::try_from(length).expect("small"), message.len());
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let error = |errno: i32| {
            let mut message = request(NLMSG_ERROR, &[]);
            message[16..20].copy_from_slice(&(-errno).to_ne_bytes());
            message
        };
        assert_eq!(parse(&error(0)), Some((Answer::Present, false)));
        assert_eq!(parse(&error(22)), Some((Answer::Refused(22), false)));
        assert_eq!(parse(&request(TABLES_GETGEN, &[])), Some((Answer::Present, true)));
        assert_eq!(parse(&error(22)[..18]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn this_kernel_answers_or_says_what_it_lacks() {
        for finding in check() {
            assert!(finding.to_string().contains("kernel"), "{finding}");
        }
    }
}
