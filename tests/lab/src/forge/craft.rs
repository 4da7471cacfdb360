//! Packets of the target that no client may see: one of any kind, random within the kind.
//!
//! Values that matter to a filter are mixed in more often than chance would: the mapped port, claimed flows, the lowest and
//! highest TTL, the smallest fragments.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::random::Random;
use crate::leak::{DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, Kind, MARK, ROUTING, TCP, UDP};

/// Source and destination of a packet: both of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Ends {
    /// `None` if the addresses are not of one family.
    pub(crate) fn new(from: IpAddr, to: IpAddr) -> Option<Self> {
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Some(Self::V4(from, to)),
            (IpAddr::V6(from), IpAddr::V6(to)) => Some(Self::V6(from, to)),
            _ => None,
        }
    }

    /// Where the packet goes.
    pub(crate) fn destination(self) -> IpAddr {
        match self {
            Self::V4(_, to) => to.into(),
            Self::V6(_, to) => to.into(),
        }
    }

    fn octets(self) -> Vec<u8> {
        match self {
            Self::V4(from, to) => [from.octets(), to.octets()].concat(),
            Self::V6(from, to) => [from.octets(), to.octets()].concat(),
        }
    }

    fn is_v4(self) -> bool {
        matches!(self, Self::V4(..))
    }

    fn icmp(self) -> u8 {
        if self.is_v4() { ICMP } else { ICMPV6 }
    }

    /// The sum over the pseudo header and `bytes`, for the transport protocols.
    fn checksum(self, protocol: u8, bytes: &[u8]) -> [u8; 2] {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        checksum(&[&self.octets()[..], &[0, protocol], &length, bytes].concat())
    }
}

/// What a stray is about: the service that is replayed to, and one of its clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) service: SocketAddr,
    pub(crate) client: SocketAddr,
}

/// A packet of this kind, from `from` to the client of the flow; `None` if they are not of one family.
pub(crate) fn stray(kind: Kind, from: IpAddr, flow: Flow, random: &mut Random) -> Option<Vec<u8>> {
    let ends = Ends::new(from, flow.client.ip())?;
    let packet = match kind {
        Kind::Response => {
            plain(ends, TCP, &tcp(ends, flow.service.port(), flow.client.port(), random), random)
        }
        Kind::OtherTcp => {
            let port = other_port(flow.service.port(), random);
            let to = if random.once_in(2) { flow.client.port() } else { random.half() };
            plain(ends, TCP, &tcp(ends, port, to, random), random)
        }
        Kind::Udp => plain(ends, UDP, &udp(ends, flow, random), random),
        Kind::IcmpError => {
            let about = Ends::new(flow.client.ip(), flow.service.ip())?;
            plain(ends, ends.icmp(), &icmp_error(ends, &quote(about, flow, random), random), random)
        }
        Kind::IcmpOther => plain(ends, ends.icmp(), &icmp_other(ends, random), random),
        Kind::FirstFragment => {
            let (protocol, body) = any_body(ends, flow, random);
            let length = random.pick(&[8, 16, 24, body.len() / 8 * 8]).min(body.len() / 8 * 8);
            fragment(ends, protocol, (0, true), body.get(..length).unwrap_or_default(), random)
        }
        Kind::LaterFragment => {
            let offset = random.pick(&[1, 2, 3, 64, 185]) * 8;
            let more = random.once_in(2);
            // The length of a fragment that others follow is a multiple of 8.
            let body = payload(random);
            let body = body.get(..body.len() / 8 * 8).unwrap_or_default();
            fragment(ends, random.pick(&[TCP, TCP, UDP, ends.icmp(), 50]), (offset, more), body, random)
        }
        Kind::OtherProtocol => {
            let protocol = random.pick(&[2, 4, 33, 41, 47, 50, 51, 89, 103, 112, 132, 136, 137, 252, 253]);
            plain(ends, protocol, &payload(random), random)
        }
        Kind::Extended => extended(ends, flow, random),
    };
    Some(packet)
}

/// An ICMP error about a packet as tcpcopy sends them: a segment without options or extension headers, of which a router may
/// have made fragments.
pub(crate) fn replay_error(from: IpAddr, flow: Flow, random: &mut Random) -> Option<Vec<u8>> {
    let ends = Ends::new(from, flow.client.ip())?;
    let about = Ends::new(flow.client.ip(), flow.service.ip())?;
    let body = tcp(about, flow.client.port(), flow.service.port(), random);
    let quoted = match about {
        // Routers make fragments of IPv4 packets only, and send errors about the first ones only.
        Ends::V4(..) if random.once_in(4) => v4(about, TCP, (0x2000, &[]), &body, random),
        Ends::V4(..) | Ends::V6(..) => plain(about, TCP, &body, random),
    };
    let quoted = truncated(about, &quoted, random);
    let (kind, code) = if ends.is_v4() {
        (random.pick(&[3, 3, 4, 5, 11, 12]), random.byte() % 16)
    } else {
        (random.pick(&[1, 1, 2, 3, 4]), random.byte() % 8)
    };
    let message = icmp_message(ends, (kind, code), quoted, random);
    Some(plain(ends, ends.icmp(), &message, random))
}

/// A packet with the plain header of its family.
pub(crate) fn plain(ends: Ends, protocol: u8, body: &[u8], random: &mut Random) -> Vec<u8> {
    match ends {
        Ends::V4(..) => v4(ends, protocol, (0, &[]), body, random),
        Ends::V6(..) => v6(ends, protocol, body, random),
    }
}

/// A segment; `flags` are random unless it begins a connection.
pub(crate) fn syn(ends: Ends, from: u16, to: u16, random: &mut Random) -> Vec<u8> {
    segment(ends, (from, to), super::SYN, &[], random)
}

fn tcp(ends: Ends, from: u16, to: u16, random: &mut Random) -> Vec<u8> {
    // SYN-ACK, ACK, data, FIN, resets, SYN, none, all.
    let flags = random.pick(&[0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x02, 0x00, 0x3f]);
    let body = payload(random);
    segment(ends, (from, to), flags, &body, random)
}

fn segment(ends: Ends, (from, to): (u16, u16), flags: u8, body: &[u8], random: &mut Random) -> Vec<u8> {
    let ([f0, f1], [t0, t1]) = (from.to_be_bytes(), to.to_be_bytes());
    let mut segment = vec![f0, f1, t0, t1];
    segment.extend(random.bytes::<8>());
    let options: &[u8] = if random.once_in(2) { &[] } else { &[2, 4, 5, 0xb4, 1, 1, 1, 0] };
    let words = if options.is_empty() { 0x50 } else { 0x70 };
    segment.extend([words, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(body);
    let [c0, c1] = ends.checksum(TCP, &segment);
    segment.splice(16..18, [c0, c1]);
    segment
}

fn udp(ends: Ends, flow: Flow, random: &mut Random) -> Vec<u8> {
    let from = if random.once_in(2) { flow.service.port() } else { random.half() };
    datagram(ends, from, flow.client.port(), random)
}

/// A UDP datagram.
pub(crate) fn datagram(ends: Ends, from: u16, to: u16, random: &mut Random) -> Vec<u8> {
    let body = payload(random);
    let length = u16::try_from(8 + body.len()).unwrap_or(u16::MAX);
    let mut datagram = [from, to, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(body);
    let [c0, c1] = ends.checksum(UDP, &datagram);
    datagram.splice(6..8, [c0, c1]);
    datagram
}

/// An error of any type and code about `quoted`.
fn icmp_error(ends: Ends, quoted: &[u8], random: &mut Random) -> Vec<u8> {
    let (kind, code) = if ends.is_v4() {
        let kind = random.pick(&[3, 3, 3, 4, 5, 11, 12]);
        (kind, random.byte() % if kind == 3 { 16 } else { 2 })
    } else {
        (random.pick(&[1, 1, 2, 3, 4, 100]), random.byte() % 8)
    };
    icmp_message(ends, (kind, code), quoted, random)
}

fn icmp_message(ends: Ends, (kind, code): (u8, u8), quoted: &[u8], random: &mut Random) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    // What is here is the next hop's MTU, a gateway, a pointer, or unused.
    message.extend(random.bytes::<4>());
    message.extend(quoted);
    finish_icmp(ends, message)
}

fn icmp_other(ends: Ends, random: &mut Random) -> Vec<u8> {
    if random.once_in(3) {
        // About a packet of the client to somebody else.
        let quoted = match ends {
            Ends::V4(_, client) => {
                let other = Ends::V4(client, Ipv4Addr::from(random.bytes::<4>()));
                v4(other, UDP, (0, &[]), &random.bytes::<16>(), random)
            }
            Ends::V6(_, client) => {
                let other = Ends::V6(client, Ipv6Addr::from(random.bytes::<16>()));
                v6(other, UDP, &random.bytes::<16>(), random)
            }
        };
        return icmp_error(ends, &quoted, random);
    }
    // Echo requests and replies, timestamps, node information, and types that are not assigned.
    let v4_types = [0, 8, 13, 14, 17, 18, 40, 200];
    let kind =
        if ends.is_v4() { random.pick(&v4_types) } else { random.pick(&[128, 129, 139, 140, 160, 255]) };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(random.bytes::<4>());
    message.extend(payload(random));
    finish_icmp(ends, message)
}

fn finish_icmp(ends: Ends, mut message: Vec<u8>) -> Vec<u8> {
    let [c0, c1] = if ends.is_v4() { checksum(&message) } else { ends.checksum(ICMPV6, &message) };
    message.splice(2..4, [c0, c1]);
    message
}

/// What an error says of a packet of the client to the service, or to another one of the target.
fn quote(about: Ends, flow: Flow, random: &mut Random) -> Vec<u8> {
    let body = tcp(about, flow.client.port(), flow.service.port(), random);
    let packet = match random.below(6) {
        // Later fragments have no ports.
        0 => fragment(about, TCP, (1480, false), &body, random),
        1 if about.is_v4() => v4(about, TCP, (0, &[1, 1, 1, 0]), &body, random),
        1 => {
            let mut chain = vec![TCP, 0, 1, 4, 0, 0, 0, 0];
            chain.extend(body);
            v6(about, DESTINATION, &chain, random)
        }
        2 => {
            let port = other_port(flow.service.port(), random);
            plain(about, TCP, &tcp(about, flow.client.port(), port, random), random)
        }
        _ => plain(about, TCP, &body, random),
    };
    truncated(about, &packet, random).to_vec()
}

/// As much of a packet as an error quotes: at least 8 bytes behind its header.
fn truncated<'a>(ends: Ends, packet: &'a [u8], random: &mut Random) -> &'a [u8] {
    let header = if ends.is_v4() { 32 } else { 56 };
    let length = header + random.pick(&[0, 12, 20, 400]);
    packet.get(..length).unwrap_or(packet)
}

/// A body of any protocol with the protocol's number.
fn any_body(ends: Ends, flow: Flow, random: &mut Random) -> (u8, Vec<u8>) {
    match random.below(4) {
        0 | 1 => (TCP, tcp(ends, flow.service.port(), flow.client.port(), random)),
        2 => (UDP, udp(ends, flow, random)),
        _ => (ends.icmp(), icmp_other(ends, random)),
    }
}

/// A fragment that begins at an offset in bytes; `more` tells that others follow.
fn fragment(
    ends: Ends,
    protocol: u8,
    (offset, more): (u16, bool),
    body: &[u8],
    random: &mut Random,
) -> Vec<u8> {
    if ends.is_v4() {
        return v4(ends, protocol, ((offset / 8) | (u16::from(more) << 13), &[]), body, random);
    }
    let mut chain = vec![protocol, 0];
    chain.extend((offset | u16::from(more)).to_be_bytes());
    chain.extend(random.bytes::<4>());
    chain.extend(body);
    v6(ends, FRAGMENT, &chain, random)
}

/// IPv4 options or IPv6 extension headers before a body of any protocol.
fn extended(ends: Ends, flow: Flow, random: &mut Random) -> Vec<u8> {
    let (protocol, body) = any_body(ends, flow, random);
    if ends.is_v4() {
        // No operation, router alert, record route, timestamp, one that is not assigned.
        let options: &[&[u8]] = &[
            &[1, 1, 1, 0],
            &[0x94, 4, 0, 0],
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[0x44, 8, 5, 0, 0, 0, 0, 0],
            &[0x9e, 4, 0, 0],
        ];
        let option = random.pick(options);
        return v4(ends, protocol, (0, option), &body, random);
    }
    // From the last header to the first; each is 8 bytes, of padding.
    let (mut next, mut chain) = (protocol, body);
    for _ in 0..=random.below(3) {
        let mut header = vec![next, 0, 1, 4, 0, 0, 0, 0];
        next = random.pick(&[DESTINATION, DESTINATION, ROUTING]);
        if next == ROUTING {
            // An experimental type (RFC 3692) that says it is over.
            header.splice(2..4, [253, 0]);
        }
        header.extend(chain);
        chain = header;
    }
    if random.once_in(3) {
        // Hop-by-hop options come first (RFC 8200).
        let mut header = vec![next, 0, 1, 4, 0, 0, 0, 0];
        header.extend(chain);
        (next, chain) = (HOP_BY_HOP, header);
    }
    v6(ends, next, &chain, random)
}

/// `flags` are those of fragments with the offset.
fn v4(ends: Ends, protocol: u8, (flags, options): (u16, &[u8]), body: &[u8], random: &mut Random) -> Vec<u8> {
    let words = 5 + options.len().div_ceil(4);
    let total = u16::try_from(words * 4 + body.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x40 | u8::try_from(words).unwrap_or(5), random.byte() & 0xfc];
    packet.extend(total.to_be_bytes());
    packet.extend([random.byte() | 1, random.byte()]);
    packet.extend(flags.to_be_bytes());
    packet.extend([hops(random), protocol, 0, 0]);
    packet.extend(ends.octets());
    packet.extend(options);
    packet.resize(words * 4, 0);
    let [c0, c1] = checksum(&packet);
    packet.splice(10..12, [c0, c1]);
    packet.extend(body);
    packet
}

fn v6(ends: Ends, next: u8, body: &[u8], random: &mut Random) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x60, random.byte() & 0x0f, random.byte(), random.byte()];
    packet.extend(length.to_be_bytes());
    packet.extend([next, hops(random)]);
    packet.extend(ends.octets());
    packet.extend(body);
    packet
}

/// A TTL or hop limit. With 1 the next router answers with an error.
fn hops(random: &mut Random) -> u8 {
    random.pick(&[1, 2, 3, 64, 64, 64, 128, 255])
}

fn other_port(not: u16, random: &mut Random) -> u16 {
    let any = random.half();
    let port = random.pick(&[not ^ 1, 20, 22, 443, 8080, any, any]);
    if port == not { not ^ 2 } else { port }
}

/// The mark and some random bytes: less than a frame takes with all headers.
fn payload(random: &mut Random) -> Vec<u8> {
    let length = random.pick(&[8, 16, 40, 200, 1_000]);
    let mut payload = MARK.to_vec();
    payload.extend((0..length).map(|_| random.byte()));
    payload
}

/// The checksum of RFC 1071.
pub(super) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let sum = sum + rest.first().map_or(0, |&byte| u32::from(byte) << 8);
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let [.., high, low] = folded.to_be_bytes();
    [!high, !low]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leak::Packet;
    use crate::network::Family;

    fn flow(family: Family) -> Flow {
        let (service, client) = match family {
            Family::V4 => ("10.91.2.2:80", "10.91.1.10:40000"),
            Family::V6 => ("[fd91:2::2]:80", "[fd91:1::a]:40000"),
        };
        Flow { service: service.parse().unwrap(), client: client.parse().unwrap() }
    }

    #[test]
    fn strays_are_of_their_kind() {
        for family in Family::ALL {
            let flow = flow(family);
            let mut random = Random::new(1, 0);
            for kind in Kind::ALL {
                for _ in 0..500 {
                    let bytes = stray(kind, flow.service.ip(), flow, &mut random).unwrap();
                    assert!(bytes.len() <= 1500, "{kind:?}: {} bytes", bytes.len());
                    let packet = Packet::parse(&bytes).unwrap();
                    assert_eq!(packet.family(), family);
                    let found = packet.kind();
                    let about_others = kind == Kind::IcmpOther && found == Kind::IcmpError;
                    assert!(found == kind || about_others, "{kind:?} is taken for {found:?}: {packet}");
                    assert!(!packet.is_neighbour_discovery(), "{packet}");
                    if kind == Kind::IcmpError {
                        let quoted = packet.quoted().unwrap();
                        assert_eq!(quoted.destination, flow.service.ip(), "{packet}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_packets() {
        let flow = flow(Family::V4);
        let packets = |seed| {
            let mut random = Random::new(seed, 3);
            Kind::ALL.map(|kind| stray(kind, flow.service.ip(), flow, &mut random).unwrap())
        };
        assert_eq!(packets(7), packets(7));
        assert_ne!(packets(7), packets(8));
    }

    #[test]
    fn checksums_are_right() {
        let ends = Ends::new(flow(Family::V6).service.ip(), flow(Family::V6).client.ip()).unwrap();
        let mut random = Random::new(1, 0);
        for _ in 0..100 {
            let segment = tcp(ends, 80, 40000, &mut random);
            assert_eq!(ends.checksum(TCP, &segment), [0, 0]);
            let message = icmp_other(ends, &mut random);
            assert_eq!(ends.checksum(ICMPV6, &message), [0, 0]);
        }
    }
}
