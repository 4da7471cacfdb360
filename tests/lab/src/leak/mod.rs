//! The leak detector: a capture on every client's interface that must stay empty of what a client must never see.
//!
//! A packet is a leak if it has a source address of the back network, or comes from the hardware address of a target, an
//! assistant or a router of the back network, or is an ICMP error that quotes an address of the back network, or carries
//! the mark of a generated packet. Neighbour discovery and multicast are none.

mod filter;
mod packet;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::network::{Family, Network, Role};

pub(crate) use packet::{DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, Kind, Packet, ROUTING, TCP, UDP};

/// How much of a packet is kept: a whole frame.
const KEPT: u32 = 2048;
/// Of how much of the first leaked packet an error tells.
const TOLD: usize = 160;
/// What the payload of a generated packet begins with.
pub(crate) const MARK: &[u8; 8] = b"\xa7STRAY\x91\x12";

/// Leaked packets by family and kind.
pub(crate) type Leaks = BTreeMap<(&'static str, Kind), u64>;

/// A capture on one client.
#[derive(Debug)]
pub(crate) struct LeakDetector {
    host: String,
    socket: Socket,
    leaks: Leaks,
    first: Option<String>,
}

impl LeakDetector {
    /// One for every client of the network.
    pub(crate) fn all(network: &Network) -> Result<Vec<Self>> {
        network.all(Role::Client).map(|host| Self::open(host.name(), host.namespace())).collect()
    }

    fn open(host: &str, on: &crate::namespace::Namespace) -> Result<Self> {
        let socket = on.enter(packet_socket)?.context("cannot capture")?;
        bpf::attach(&socket, &filter::program()).context("cannot attach the leak filter")?;
        let mut detector = Self { host: host.to_owned(), socket, leaks: Leaks::new(), first: None };
        // What came between opening and the filter was not judged.
        detector.read()?;
        detector.forget();
        Ok(detector)
    }

    /// How many packets leaked so far.
    pub(crate) fn count(&mut self) -> Result<u64> {
        Ok(self.leaks()?.values().sum())
    }

    /// What leaked so far.
    pub(crate) fn leaks(&mut self) -> Result<&Leaks> {
        self.read()?;
        Ok(&self.leaks)
    }

    /// Begins to count anew.
    pub(crate) fn forget(&mut self) {
        self.leaks.clear();
        self.first = None;
    }

    /// Fails if anything leaked.
    pub(crate) fn check(&mut self) -> Result<()> {
        let count = self.count()?;
        if count > 0 {
            let first = self.first.as_deref().unwrap_or_default();
            let kinds = summary(&self.leaks);
            bail!("LEAK: {count} packets of the target reached {} ({kinds}); the first: {first}", self.host);
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let mut frame = [0_u8; KEPT as usize];
        loop {
            match (&self.socket).read(&mut frame) {
                Ok(length) => {
                    let frame = frame.get(..length).unwrap_or_default();
                    if let Some(packet) = leaked(frame, is_back) {
                        *self.leaks.entry((packet.family().name(), packet.kind())).or_default() += 1;
                        self.first.get_or_insert_with(|| format!("{packet}; frame {}", hex(frame)));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The link is down; the socket goes on once it is up.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) => return Err(error).context("leak capture"),
            }
        }
    }
}

/// What leaked, in words.
pub(crate) fn summary(leaks: &Leaks) -> String {
    let kinds = leaks.iter().map(|((family, kind), count)| format!("{count} {family} {}", kind.name()));
    kinds.collect::<Vec<_>>().join(", ")
}

/// Watches the interfaces of the calling thread's host for packets of `addresses` or about them, and prints each kind once.
/// Returns how many there were when `until` has come.
pub(crate) fn watch(addresses: &[IpAddr], until: Instant) -> Result<u64> {
    let socket = packet_socket().context("cannot capture")?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (mut frame, mut leaks) = ([0_u8; KEPT as usize], Leaks::new());
    while Instant::now() < until {
        let Ok(length) = (&socket).read(&mut frame) else { continue };
        let packet =
            frame.get(..length).and_then(|frame| leaked(frame, |address| addresses.contains(&address)));
        if let Some(packet) = packet {
            let count = leaks.entry((packet.family().name(), packet.kind())).or_default();
            *count += 1;
            if *count == 1 {
                println!("{}: {packet}", packet.kind().name());
            }
        }
    }
    let count = leaks.values().sum();
    println!("{count} packets leaked ({})", summary(&leaks));
    Ok(count)
}

/// The packet in a frame, if a client must not see it. `is_hidden` tells the addresses that it must not see.
fn leaked(frame: &[u8], is_hidden: impl Fn(IpAddr) -> bool) -> Option<Packet<'_>> {
    let (header, bytes) = frame.split_first_chunk::<14>()?;
    if !matches!(header[12..], [0x08, 0x00] | [0x86, 0xdd]) {
        return None;
    }
    let packet = Packet::parse(bytes)?;
    if packet.is_neighbour_discovery() || packet.destination.is_multicast() {
        return None;
    }
    let sender = u32::from_be_bytes([header[6], header[7], header[8], header[9]]);
    let stranger = [Role::Target, Role::Assistant, Role::Router].map(hardware).contains(&sender);
    let about = packet.quoted().is_some_and(|quoted| is_back(quoted.source) || is_back(quoted.destination));
    let marked = || bytes.windows(MARK.len()).any(|window| window == MARK);
    (stranger || is_hidden(packet.source) || about || marked()).then_some(packet)
}

/// Whether an address is of the back network.
fn is_back(address: IpAddr) -> bool {
    Family::ALL.into_iter().any(|family| crate::network::Segment::Back.contains(family, address))
}

/// The first four bytes of the hardware address that a host of this role has on the front network.
fn hardware(role: Role) -> u32 {
    0x0291_0100 | u32::from(role.number())
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
    bytes.iter().take(TOLD).fold(String::new(), |mut text, byte| {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter over a frame, as the kernel does.
    fn passes(frame: &[u8]) -> bool {
        let program = filter::program();
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
                bpf::ANY_OF => jump(a & k != 0),
                bpf::RETURN => return k > 0,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    fn is_leak(frame: &[u8]) -> bool {
        passes(frame) && leaked(frame, is_back).is_some()
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
        assert!(is_leak(&v4(4, [10, 91, 2, 2])), "forwarded by the assistant");
        assert!(is_leak(&v4(2, [10, 91, 2, 2])), "forwarded by the online host");
        assert!(is_leak(&v4(4, [10, 91, 1, 3])), "an ICMP message of the assistant");
        assert!(is_leak(&v6(4, 2, 6, 0)));
        assert!(is_leak(&v6(3, 1, 6, 0)));
        assert!(is_leak(&v6(2, 2, 6, 0)), "forwarded by the online host");
        assert!(is_leak(&v6(4, 1, 58, 1)), "destination unreachable");
    }

    #[test]
    fn fragments_and_marked_packets_are_leaks_from_anywhere() {
        let mut fragment = v4(4, [10, 91, 1, 1]);
        fragment[20] = 0x20;
        assert!(is_leak(&fragment));
        let mut marked = v4(2, [10, 91, 9, 9]);
        marked.extend(MARK);
        assert!(is_leak(&marked));
    }

    #[test]
    fn errors_of_the_online_host_are_leaks_if_they_quote_the_target() {
        let error = |quoted: [u8; 4]| {
            let mut frame = v4(2, [10, 91, 1, 1]);
            frame[23] = ICMP;
            frame.truncate(34);
            frame.extend([3, 1, 0, 0, 0, 0, 0, 0]);
            frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 91, 1, 10]);
            frame.extend(quoted);
            frame
        };
        assert!(is_leak(&error([10, 91, 2, 2])), "host unreachable, about a replayed packet");
        assert!(!is_leak(&error([10, 91, 1, 1])), "about one of the client's own");
    }

    #[test]
    fn production_is_no_leak() {
        assert!(!is_leak(&v4(2, [10, 91, 1, 1])));
        assert!(!is_leak(&v4(1, [10, 91, 1, 10])));
        assert!(!is_leak(&v6(2, 1, 6, 0)));
        assert!(!is_leak(&v6(4, 1, 58, 135)), "neighbour solicitation");
        let mut arp = v4(4, [10, 91, 2, 2]);
        arp[13] = 6;
        assert!(!is_leak(&arp));
        // The kernel spares the detector the reading of what production consists of.
        assert!(!passes(&v4(2, [10, 91, 1, 1])) && !passes(&v6(2, 1, 6, 0)));
    }
}
