//! Building the packets that are sent.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Ipv4Header, Ipv6Header, TcpHeader as RawTcp, ip_number};

use super::{TcpHeader, options};

/// Bytes of an IPv4 and a TCP header without options.
pub const MIN_HEADERS_V4: u16 = 40;
/// Bytes of an IPv6 and a TCP header without options.
pub const MIN_HEADERS_V6: u16 = 60;

/// Room kept in front of the payload: an IPv6 header, a TCP header and its options.
const HEADROOM: usize = 40 + 20 + options::MAX_WRITTEN;

const HOP_LIMIT: u8 = 64;

/// One packet under construction, its buffer reused from packet to packet.
///
/// First the payload ([`Outgoing::payload`]), then the headers, which are put in front of it
/// ([`Outgoing::finish`]).
#[derive(Debug)]
pub struct Outgoing {
    buffer: Vec<u8>,
    options: Vec<u8>,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self { buffer: vec![0; HEADROOM], options: Vec::with_capacity(options::MAX_WRITTEN) }
    }
}

impl Outgoing {
    /// The buffer to append the payload to; emptied of the previous packet's.
    pub fn payload(&mut self) -> &mut Vec<u8> {
        self.buffer.truncate(HEADROOM);
        &mut self.buffer
    }

    /// Puts the headers in front of the payload and returns the whole packet, checksums filled in.
    /// The payload's length is taken from the buffer, not from `header.payload_len`. URG is left out:
    /// there is no urgent pointer to go with it.
    ///
    /// `None` if the addresses are of different families or the packet would exceed 65,535 bytes.
    pub fn finish(&mut self, src: SocketAddr, dst: SocketAddr, header: &TcpHeader) -> Option<&[u8]> {
        self.options.clear();
        header.options.write(&mut self.options);
        let mut tcp = raw_header(src.port(), dst.port(), header);
        tcp.set_options_raw(&self.options).ok()?;
        let payload = self.buffer.get(HEADROOM..)?;
        let tcp_len = tcp.header_len().checked_add(payload.len())?;
        let ip_start = match (src.ip(), dst.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                tcp.checksum = tcp.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload).ok()?;
                let mut ip = Ipv4Header::new(
                    u16::try_from(tcp_len).ok()?,
                    HOP_LIMIT,
                    ip_number::TCP,
                    from.octets(),
                    to.octets(),
                )
                .ok()?;
                ip.dont_fragment = true;
                ip.header_checksum = ip.calc_header_checksum();
                self.prepend(&tcp.to_bytes(), &ip.to_bytes())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                tcp.checksum = tcp.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload).ok()?;
                let ip = Ipv6Header {
                    payload_length: u16::try_from(tcp_len).ok()?,
                    next_header: ip_number::TCP,
                    hop_limit: HOP_LIMIT,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                self.prepend(&tcp.to_bytes(), &ip.to_bytes())
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        }?;
        self.buffer.get(ip_start..)
    }

    /// Writes both headers so that they end where the payload begins; returns where they begin.
    fn prepend(&mut self, tcp: &[u8], ip: &[u8]) -> Option<usize> {
        let tcp_start = HEADROOM.checked_sub(tcp.len())?;
        let ip_start = tcp_start.checked_sub(ip.len())?;
        self.buffer.get_mut(tcp_start..HEADROOM)?.copy_from_slice(tcp);
        self.buffer.get_mut(ip_start..tcp_start)?.copy_from_slice(ip);
        Some(ip_start)
    }
}

fn raw_header(src_port: u16, dst_port: u16, header: &TcpHeader) -> RawTcp {
    use super::Flags;
    let flag = |flag| header.flags.contains(flag);
    let mut tcp = RawTcp::new(src_port, dst_port, header.seq.0, header.window);
    tcp.acknowledgment_number = header.ack.0;
    tcp.fin = flag(Flags::FIN);
    tcp.syn = flag(Flags::SYN);
    tcp.rst = flag(Flags::RST);
    tcp.psh = flag(Flags::PSH);
    tcp.ack = flag(Flags::ACK);
    tcp.ece = flag(Flags::ECE);
    tcp.cwr = flag(Flags::CWR);
    tcp
}
