//! Whether the kernel has what the rules and queues need.
//!
//! Each subsystem is sent a request that changes nothing and looked at for its answer. Asking also loads
//! the module where there is one, so a kernel whose modules are not loaded yet passes; looking at
//! `/proc` would not tell. Numbers and layouts are those of linux/netfilter/nfnetlink.h and its neighbours.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Check, Finding, Netfilter};
use crate::sys::netlink::{self, ACK, REQUEST, Writer};

/// How long the kernel may take; it answers within the call that asks, or after loading a module.
const PATIENCE: Duration = Duration::from_secs(5);

/// Type of the queue subsystem's configuration message.
const QUEUE_CONFIG: u16 = 3 << 8 | 2;
/// Type of nf_tables' request for its generation number.
const TABLES_GETGEN: u16 = 10 << 8 | 16;
/// The queue subsystem's attribute that holds a command.
const NFQA_CFG_CMD: u16 = 1;
/// The command PF_BIND for IPv4, which kernels since 3.8 accept and ignore: the command, a pad byte and
/// the family in network order.
const PF_BIND: [u8; 4] = [3, 0, 0, 2];

/// What the kernel said to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The subsystem answered.
    Present,
    /// The request was refused with this errno.
    Refused(i32),
}

/// What the kernel lacks of that.
pub(super) fn check(needed: Netfilter) -> Vec<Finding> {
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
        (Check::NfTables, "nf_tables", "CONFIG_NF_TABLES", request(TABLES_GETGEN)),
    ];
    let queues = |check| check != Check::NfnetlinkQueue || needed == Netfilter::Queues;
    let needed = subsystems.into_iter().filter(|(check, ..)| queues(*check));
    let findings = needed.filter_map(|(check, module, option, request)| {
        let why = match ask(&socket, request.bytes()) {
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

fn queue_request() -> Writer {
    let mut request = request(QUEUE_CONFIG);
    request.attribute(NFQA_CFG_CMD, &PF_BIND);
    request
}

/// A request of this type. Sequence number and `nfgenmsg` are zeros: nothing depends on them.
fn request(kind: u16) -> Writer {
    let mut writer = Writer::new();
    writer.begin(kind, REQUEST | ACK, 0);
    writer.put(&[0; 4]);
    writer
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
    let mut messages = netlink::messages(datagram);
    let errno = match messages.next()?.ok()?.error() {
        None => return Some((Answer::Present, messages.next().is_none())),
        Some(errno) => errno.ok()?,
    };
    Some((if errno == 0 { Answer::Present } else { Answer::Refused(errno) }, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let error = |errno: i32| {
            let mut message = Writer::new();
            message.begin(netlink::ERROR, 0, 0);
            message.put(&(-errno).to_ne_bytes());
            message
        };
        assert_eq!(parse(error(0).bytes()), Some((Answer::Present, false)));
        assert_eq!(parse(error(22).bytes()), Some((Answer::Refused(22), false)));
        assert_eq!(parse(request(TABLES_GETGEN).bytes()), Some((Answer::Present, true)));
        assert_eq!(parse(&error(22).bytes()[..18]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn this_kernel_answers_or_says_what_it_lacks() {
        for finding in check(Netfilter::Queues) {
            assert!(finding.to_string().contains("kernel"), "{finding}");
        }
    }
}
