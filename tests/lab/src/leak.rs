//! The leak detector: a capture on every client's interface that must stay empty.
//!
//! A filter in the kernel lets through IP packets that a client must never see: those with a source address of the back
//! network, and those that come from the hardware address of a target or an assistant (IPv6 neighbour discovery aside).

use std::fmt::Write;
use std::io::{ErrorKind, Read};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::network::{Network, Role};

/// How much of a leaked packet is kept.
const KEPT: u32 = 128;

/// A capture on one client.
#[derive(Debug)]
pub(crate) struct LeakDetector {
    host: String,
    socket: Socket,
    count: u64,
    first: Option<String>,
}

impl LeakDetector {
    /// One for every client of the network.
    pub(crate) fn all(network: &Network) -> Result<Vec<Self>> {
        network.all(Role::Client).map(|host| Self::open(host.name(), host.namespace())).collect()
    }

    fn open(host: &str, on: &crate::namespace::Namespace) -> Result<Self> {
        let socket = on.enter(packet_socket)?.context("cannot capture")?;
        bpf::attach(&socket, &filter()).context("cannot attach the leak filter")?;
        let mut detector = Self { host: host.to_owned(), socket, count: 0, first: None };
        // What came between opening and the filter was not judged.
        detector.read()?;
        (detector.count, detector.first) = (0, None);
        Ok(detector)
    }

    /// How many packets leaked so far.
    pub(crate) fn count(&mut self) -> Result<u64> {
        self.read()?;
        Ok(self.count)
    }

    /// Fails if anything leaked.
    pub(crate) fn check(&mut self) -> Result<()> {
        if self.count()? > 0 {
            let first = self.first.as_deref().unwrap_or_default();
            bail!("LEAK: {} packets of the target reached {}; the first: {first}", self.count, self.host);
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let mut packet = [0_u8; KEPT as usize];
        loop {
            match (&self.socket).read(&mut packet) {
                Ok(length) => {
                    self.count += 1;
                    self.first.get_or_insert_with(|| hex(packet.get(..length).unwrap_or_default()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("leak capture"),
            }
        }
    }
}

/// A non-blocking socket that captures every packet of the calling thread's network namespace.
pub(crate) fn packet_socket() -> std::io::Result<Socket> {
    let every = u16::try_from(libc::ETH_P_ALL).map_err(std::io::Error::other)?.to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every))))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(4 << 20)?;
    Ok(socket)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Opcodes of the classic packet filter, linux/bpf_common.h.
pub(crate) mod bpf {
    use socket2::{SockFilter, Socket};

    /// A = byte at k
    pub(crate) const LOAD_BYTE: u16 = 0x30;
    /// A = two bytes at k
    pub(crate) const LOAD_HALF: u16 = 0x28;
    /// A = four bytes at k
    pub(crate) const LOAD_WORD: u16 = 0x20;
    /// A &= k
    pub(crate) const AND: u16 = 0x54;
    /// A == k
    pub(crate) const EQUAL: u16 = 0x15;
    /// A >= k
    pub(crate) const AT_LEAST: u16 = 0x35;
    /// A > k
    pub(crate) const ABOVE: u16 = 0x25;
    /// A & k
    pub(crate) const ANY_OF: u16 = 0x45;
    /// Ends with k bytes let through
    pub(crate) const RETURN: u16 = 0x06;

    /// An instruction: opcode, steps to leave out if it holds and if it does not, and k.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Step(pub(crate) u16, pub(crate) u8, pub(crate) u8, pub(crate) u32);

    /// Lets only those packets through that `program` lets through.
    pub(crate) fn attach(socket: &Socket, program: &[Step]) -> std::io::Result<()> {
        let raw = |&Step(code, yes, no, k): &Step| SockFilter::new(code, yes, no, k);
        socket.attach_filter(&program.iter().map(raw).collect::<Vec<_>>())
    }
}

/// The filter. Offsets are those of an Ethernet frame: source address at 6, type at 12, the IP packet at 14.
fn filter() -> Vec<bpf::Step> {
    use bpf::{ABOVE, AND, ANY_OF, AT_LEAST, EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_WORD, RETURN};
    let role = u32::from(Role::Target.number());
    let assistant = u32::from(Role::Assistant.number());
    vec![
        bpf::Step(LOAD_HALF, 0, 0, 12),
        bpf::Step(EQUAL, 0, 3, 0x0800), // IPv4, else to 5
        bpf::Step(LOAD_WORD, 0, 0, 26), // source address
        bpf::Step(AND, 0, 0, 0xffff_ff00),
        bpf::Step(EQUAL, 14, 9, 0x0a5b_0200), // 10.91.2.0/24: leak, else to the hardware address
        bpf::Step(EQUAL, 0, 14, 0x86dd),      // IPv6, else nothing of ours
        bpf::Step(LOAD_BYTE, 0, 0, 0),
        bpf::Step(ANY_OF, 12, 0, 1), // multicast
        bpf::Step(LOAD_BYTE, 0, 0, 20),
        bpf::Step(EQUAL, 0, 3, 58), // ICMPv6
        bpf::Step(LOAD_BYTE, 0, 0, 54),
        bpf::Step(AT_LEAST, 0, 1, 133),
        bpf::Step(ABOVE, 0, 7, 137), // neighbour discovery
        bpf::Step(LOAD_WORD, 0, 0, 22),
        // Falls to the comparison with fd91:2::/64 below.
        bpf::Step(EQUAL, 4, 0, 0xfd91_0002),
        bpf::Step(LOAD_WORD, 0, 0, 6), // hardware source address 02:91:segment:role
        bpf::Step(AND, 0, 0, 0xffff_00ff),
        bpf::Step(AT_LEAST, 0, 2, 0x0291_0000 | role),
        bpf::Step(ABOVE, 1, 0, 0x0291_0000 | assistant),
        bpf::Step(RETURN, 0, 0, KEPT),
        bpf::Step(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter over a frame, as the kernel does.
    fn passes(frame: &[u8]) -> bool {
        let program = filter();
        let load = |at: usize, size: usize| -> Option<u32> {
            Some(frame.get(at..at + size)?.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
        };
        let (mut at, mut a) = (0_usize, 0_u32);
        loop {
            let bpf::Step(code, yes, no, k) = program[at];
            at += 1;
            let mut jump = |holds: bool| at += usize::from(if holds { yes } else { no });
            match code {
                bpf::LOAD_BYTE | bpf::LOAD_HALF | bpf::LOAD_WORD => {
                    let size = match code {
                        bpf::LOAD_BYTE => 1,
                        bpf::LOAD_HALF => 2,
                        _ => 4,
                    };
                    let Some(value) = load(usize::try_from(k).unwrap(), size) else { return false };
                    a = value;
                }
                bpf::AND => a &= k,
                bpf::EQUAL => jump(a == k),
                bpf::AT_LEAST => jump(a >= k),
                bpf::ABOVE => jump(a > k),
                bpf::ANY_OF => jump(a & k != 0),
                bpf::RETURN => return k > 0,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    fn v4(role: u8, source: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![2, 0x91, 1, 1, 0, 10, 2, 0x91, 1, role, 0, 3, 8, 0];
        frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend(source);
        frame.extend([10, 91, 1, 10]);
        frame.resize(60, 0);
        frame
    }

    fn v6(role: u8, second: u8, next: u8, icmp: u8) -> Vec<u8> {
        let mut frame = vec![2, 0x91, 1, 1, 0, 10, 2, 0x91, 1, role, 0, 3, 0x86, 0xdd];
        frame.extend([0x60, 0, 0, 0, 0, 20, next, 64, 0xfd, 0x91, 0, second]);
        frame.resize(54, 0);
        frame.push(icmp);
        frame.resize(80, 0);
        frame
    }

    #[test]
    fn responses_of_the_target_are_leaks() {
        assert!(passes(&v4(4, [10, 91, 2, 2])), "forwarded by the assistant");
        assert!(passes(&v4(2, [10, 91, 2, 2])), "forwarded by the online host");
        assert!(passes(&v4(4, [10, 91, 1, 3])), "an ICMP message of the assistant");
        assert!(passes(&v6(4, 2, 6, 0)));
        assert!(passes(&v6(3, 1, 6, 0)));
        assert!(passes(&v6(4, 1, 58, 1)), "destination unreachable");
    }

    #[test]
    fn production_is_no_leak() {
        assert!(!passes(&v4(2, [10, 91, 1, 1])));
        assert!(!passes(&v4(1, [10, 91, 1, 10])));
        assert!(!passes(&v6(2, 1, 6, 0)));
        assert!(!passes(&v6(4, 1, 58, 135)), "neighbour solicitation");
        let mut arp = v4(4, [10, 91, 2, 2]);
        arp[13] = 6;
        assert!(!passes(&arp));
    }
}
