//! Building the packets that are sent.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use super::checksum::{checksum, sum};
use super::{Flags, TcpHeader, options};

/// Bytes of an IPv4 and a TCP header without options.
pub const MIN_HEADERS_V4: u16 = 40;
/// Bytes of an IPv4 header and a TCP header with all the options of [`TcpOptions`](super::TcpOptions).
pub const MAX_HEADERS_V4: usize = IPV4_HEADER + TCP_HEADER + options::MAX_WRITTEN;
/// Bytes of an IPv6 and a TCP header without options.
pub const MIN_HEADERS_V6: u16 = 60;

/// Room kept in front of the payload: an IPv6 header, a TCP header and its options.
const HEADROOM: usize = 40 + 20 + options::MAX_WRITTEN;

const HOP_LIMIT: u8 = 64;
/// TCP's protocol number.
const TCP: u8 = 6;
const TCP_HEADER: usize = 20;
/// Where a TCP header has its checksum.
const TCP_CHECKSUM: usize = 16;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// One packet under construction, its buffer reused from packet to packet.
///
/// First the payload ([`Outgoing::payload`]), then the headers, which are put in front of it
/// ([`Outgoing::finish`]).
#[derive(Debug)]
pub struct Outgoing {
    buffer: Vec<u8>,
    options: Vec<u8>,
    fragments: Fragments,
}

/// What the headers of IPv4 packets say of fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragments {
    /// Don't fragment. Such a packet needs no identification (RFC 6864).
    #[default]
    Forbidden,
    /// Routers may fragment the packet, which has this identification: 0 if the kernel is to choose one as it is sent.
    Allowed(u16),
}

/// A packet that is a train of segments; see [`Outgoing::finish_train`].
#[derive(Clone, Copy, Debug)]
pub struct Train<'a> {
    /// From the IP header on.
    pub packet: &'a [u8],
    /// Bytes of the IP header.
    pub ip_header: usize,
    /// Bytes of the TCP header.
    pub tcp_header: usize,
}

/// What is in the checksum's place.
#[derive(Clone, Copy, Debug)]
enum Checksum {
    /// The checksum.
    Whole,
    /// The sum of the pseudo header, to be continued.
    PseudoHeader,
}

/// Where headers begin.
struct Headers {
    ip_start: usize,
    tcp_start: usize,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            buffer: vec![0; HEADROOM],
            options: Vec::with_capacity(options::MAX_WRITTEN),
            fragments: Fragments::Forbidden,
        }
    }
}

impl Outgoing {
    /// The buffer to append the payload to; emptied of the previous packet's.
    pub fn payload(&mut self) -> &mut Vec<u8> {
        self.buffer.truncate(HEADROOM);
        &mut self.buffer
    }

    /// What IPv4 headers say of fragments from now on; until this is called they forbid them.
    pub fn set_fragments(&mut self, fragments: Fragments) {
        self.fragments = fragments;
    }

    /// Puts the headers in front of the payload and returns the whole packet, checksums filled in.
    /// The payload's length is taken from the buffer, not from `header.payload_len`. URG is left out:
    /// there is no urgent pointer to go with it.
    ///
    /// `None` if the addresses are of different families or the packet would exceed 65,535 bytes.
    pub fn finish(&mut self, src: SocketAddr, dst: SocketAddr, header: &TcpHeader) -> Option<&[u8]> {
        let headers = self.write_headers(src, dst, header, Checksum::Whole)?;
        self.buffer.get(headers.ip_start..)
    }

    /// The same for a train of segments that is cut on its way: in place of the checksum is the sum of the pseudo header,
    /// which is what a network card, or the kernel in its place, begins each segment's checksum with.
    pub fn finish_train(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        header: &TcpHeader,
    ) -> Option<Train<'_>> {
        let Headers { ip_start, tcp_start } = self.write_headers(src, dst, header, Checksum::PseudoHeader)?;
        let packet = self.buffer.get(ip_start..)?;
        Some(Train { packet, ip_header: tcp_start - ip_start, tcp_header: HEADROOM - tcp_start })
    }

    /// The headers alone of an IPv4 packet with `header.payload_len` bytes of payload, which is nowhere, and zeros behind
    /// them: the TCP checksum is left 0. URG is left out as above.
    ///
    /// `None` if the packet would exceed 65,535 bytes.
    pub fn headers_v4(
        &mut self,
        src: SocketAddrV4,
        dst: SocketAddrV4,
        header: &TcpHeader,
    ) -> Option<[u8; MAX_HEADERS_V4]> {
        self.options.clear();
        header.options.write(&mut self.options);
        let tcp = tcp_header(src.port(), dst.port(), header, self.options.len());
        let tcp_headers = u32::try_from(tcp.len() + self.options.len()).ok()?;
        let tcp_len = u16::try_from(header.payload_len.checked_add(tcp_headers)?).ok()?;
        let ip = ipv4_header(tcp_len, src.ip().octets(), dst.ip().octets(), self.fragments)?;
        let mut out = [0; MAX_HEADERS_V4];
        let bytes = ip.iter().chain(&tcp).chain(&self.options);
        out.iter_mut().zip(bytes).for_each(|(room, byte)| *room = *byte);
        Some(out)
    }

    /// The payload that was appended last.
    pub fn body(&self) -> &[u8] {
        self.buffer.get(HEADROOM..).unwrap_or_default()
    }

    fn write_headers(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        header: &TcpHeader,
        kind: Checksum,
    ) -> Option<Headers> {
        self.options.clear();
        header.options.write(&mut self.options);
        let tcp_start = HEADROOM.checked_sub(TCP_HEADER + self.options.len())?;
        let tcp_len = u16::try_from(self.buffer.len().checked_sub(tcp_start)?).ok()?;
        let (tcp, options) = self.buffer.get_mut(tcp_start..HEADROOM)?.split_first_chunk_mut()?;
        *tcp = tcp_header(src.port(), dst.port(), header, options.len());
        options.copy_from_slice(&self.options);
        let covered = match kind {
            Checksum::Whole => self.buffer.get(tcp_start..)?,
            Checksum::PseudoHeader => &[],
        };
        let sum = sum(covered) + sum(&[0, TCP]) + sum(&tcp_len.to_be_bytes());
        let ip_start = match (src.ip(), dst.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let ip = ipv4_header(tcp_len, from.octets(), to.octets(), self.fragments)?;
                self.prepend(tcp_start, &ip, sum, kind)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ip = ipv6_header(tcp_len, from.octets(), to.octets());
                self.prepend(tcp_start, &ip, sum, kind)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        }?;
        Some(Headers { ip_start, tcp_start })
    }

    /// Writes the IP header in front of the TCP header, whose checksum it completes: `partial` is the sum
    /// of all it covers but the addresses. Returns where the packet begins.
    fn prepend<const N: usize>(
        &mut self,
        tcp_start: usize,
        ip: &[u8; N],
        partial: u64,
        kind: Checksum,
    ) -> Option<usize> {
        let addresses = ip.get(if N == IPV4_HEADER { 12 } else { 8 }..)?;
        let field = tcp_start + TCP_CHECKSUM;
        let sum = partial + sum(addresses);
        let complement = checksum(sum);
        let value = match kind {
            Checksum::Whole => complement,
            Checksum::PseudoHeader => complement.map(|byte| !byte),
        };
        self.buffer.get_mut(field..field + 2)?.copy_from_slice(&value);
        let ip_start = tcp_start.checked_sub(N)?;
        self.buffer.get_mut(ip_start..tcp_start)?.copy_from_slice(ip);
        Some(ip_start)
    }
}

/// A TCP header (RFC 9293, 3.1) in front of `options` bytes of options, its checksum 0.
fn tcp_header(src_port: u16, dst_port: u16, header: &TcpHeader, options: usize) -> [u8; TCP_HEADER] {
    let [s0, s1] = src_port.to_be_bytes();
    let [d0, d1] = dst_port.to_be_bytes();
    let [n0, n1, n2, n3] = header.seq.0.to_be_bytes();
    let [a0, a1, a2, a3] = header.ack.0.to_be_bytes();
    let [w0, w1] = header.window.to_be_bytes();
    // In words of four bytes, in the upper half. At most 15: options are at most `MAX_WRITTEN` long.
    let offset = u8::try_from((TCP_HEADER + options) / 4).unwrap_or(15) << 4;
    let flags = header.flags.bits() & !Flags::URG.bits();
    [s0, s1, d0, d1, n0, n1, n2, n3, a0, a1, a2, a3, offset, flags, w0, w1, 0, 0, 0, 0]
}

/// An IPv4 header (RFC 791, 3.1) without options. `None` if the packet would be too long.
fn ipv4_header(payload: u16, from: [u8; 4], to: [u8; 4], fragments: Fragments) -> Option<[u8; IPV4_HEADER]> {
    const DONT_FRAGMENT: u8 = 0x40;
    let (flags, identification) = match fragments {
        Fragments::Forbidden => (DONT_FRAGMENT, 0),
        Fragments::Allowed(identification) => (0, identification),
    };
    let [i0, i1] = identification.to_be_bytes();
    let [l0, l1] = payload.checked_add(20)?.to_be_bytes();
    let [f0, f1, f2, f3] = from;
    let [t0, t1, t2, t3] = to;
    let start = [0x45, 0, l0, l1, i0, i1, flags, 0, HOP_LIMIT, TCP];
    let [c0, c1] = checksum(sum(&start) + sum(&from) + sum(&to));
    let [v, tos, _, _, i0, i1, flags, offset, ttl, protocol] = start;
    Some([v, tos, l0, l1, i0, i1, flags, offset, ttl, protocol, c0, c1, f0, f1, f2, f3, t0, t1, t2, t3])
}

/// An IPv6 header (RFC 8200, 3).
fn ipv6_header(payload: u16, from: [u8; 16], to: [u8; 16]) -> [u8; IPV6_HEADER] {
    let [l0, l1] = payload.to_be_bytes();
    let mut ip = [0; IPV6_HEADER];
    ip[..8].copy_from_slice(&[0x60, 0, 0, 0, l0, l1, TCP, HOP_LIMIT]);
    ip[8..24].copy_from_slice(&from);
    ip[24..].copy_from_slice(&to);
    ip
}

#[cfg(test)]
mod tests {
    use super::super::Seq;
    use super::*;

    #[test]
    fn ipv4_packets_say_whether_they_may_be_fragmented() {
        let (src, dst) = (SocketAddr::from(([10, 0, 0, 1], 5)), SocketAddr::from(([10, 0, 0, 2], 80)));
        let header = TcpHeader::bare(Seq(1), Seq(2), Flags::ACK, 3);
        let mut out = Outgoing::default();
        for (fragments, field) in [
            (Fragments::Forbidden, [0, 0, 0x40, 0]),
            (Fragments::Allowed(0), [0, 0, 0, 0]),
            (Fragments::Allowed(0x1234), [0x12, 0x34, 0, 0]),
        ] {
            out.set_fragments(fragments);
            out.payload();
            let packet = out.finish(src, dst, &header).expect("one family");
            assert_eq!(packet[4..8], field);
            assert_eq!(checksum(sum(&packet[..20])), [0, 0]);
        }
    }
}
