//! TCP packets as the simulation writes and reads them: a codec of its own, so that what `tcpcopy::wire` does to
//! bytes is seen by eyes that are not its own.

use std::net::{IpAddr, SocketAddr};

/// Bits of the flags byte.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

const TCP_HEADER: usize = 20;

/// A TCP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) mss: Option<u16>,
    pub(crate) scale: Option<u8>,
    pub(crate) sack_permitted: bool,
    /// The sender's clock, and the receiver's, echoed.
    pub(crate) stamps: Option<(u32, u32)>,
    /// Further options, as they are.
    pub(crate) unknown: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Segment {
    /// A segment without options and payload.
    pub(crate) fn bare(src: SocketAddr, dst: SocketAddr, seq: u32, ack: u32, flags: u8) -> Self {
        Self {
            src,
            dst,
            seq,
            ack,
            flags,
            window: 0,
            urgent: 0,
            mss: None,
            scale: None,
            sack_permitted: false,
            stamps: None,
            unknown: Vec::new(),
            payload: Vec::new(),
        }
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers it takes.
    pub(crate) fn space(&self) -> u32 {
        let len = u32::try_from(self.payload.len()).expect("short");
        len + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    fn options(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(mss) = self.mss {
            out.extend([2, 4]);
            out.extend(mss.to_be_bytes());
        }
        if self.sack_permitted {
            out.extend([4, 2]);
        }
        if let Some((value, echo)) = self.stamps {
            out.extend([8, 10]);
            out.extend(value.to_be_bytes());
            out.extend(echo.to_be_bytes());
        }
        if let Some(scale) = self.scale {
            out.extend([3, 3, scale]);
        }
        // Last, because their lengths may lie.
        out.extend(&self.unknown);
        out.truncate(40);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    /// The packet, checksums right.
    pub(crate) fn write(&self) -> Vec<u8> {
        let options = self.options();
        let mut tcp = Vec::with_capacity(60 + self.payload.len());
        tcp.extend(self.src.port().to_be_bytes());
        tcp.extend(self.dst.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        let words = u8::try_from((TCP_HEADER + options.len()) / 4).expect("short");
        tcp.extend([words << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0, 0]);
        tcp.extend(self.urgent.to_be_bytes());
        tcp.extend(options);
        tcp.extend(&self.payload);
        let sum = folded(&[&pseudo(self.src.ip(), self.dst.ip(), tcp.len()), &tcp]);
        tcp[16..18].copy_from_slice(&(!sum).to_be_bytes());
        [ip_header(self.src.ip(), self.dst.ip(), tcp.len()), tcp].concat()
    }

    /// Reads a packet. `None` if it is no TCP packet, lies about a length, or a checksum is wrong.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (src, dst, tcp) = ip_payload(bytes)?;
        if folded(&[&pseudo(src, dst, tcp.len()), tcp]) != 0xffff {
            return None;
        }
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        let mut options = tcp.get(TCP_HEADER..header)?;
        let (b, w) = (|at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]), |at: usize| word(&tcp[at..]));
        let mut segment =
            Self::bare(SocketAddr::new(src, b(0)), SocketAddr::new(dst, b(2)), w(4), w(8), tcp[13]);
        (segment.window, segment.urgent) = (b(14), b(18));
        segment.payload = tcp[header..].to_vec();
        while let [kind, rest @ ..] = options {
            let len = match (*kind, rest.first()) {
                (0, _) => break,
                (1, _) => 1,
                (_, Some(len)) if (2..=options.len()).contains(&usize::from(*len)) => usize::from(*len),
                (_, _) => break,
            };
            segment.option(&options[..len]);
            options = &options[len..];
        }
        Some(segment)
    }

    fn option(&mut self, option: &[u8]) {
        match *option {
            [2, 4, a, b] => self.mss = Some(u16::from_be_bytes([a, b])),
            [3, 3, scale] => self.scale = Some(scale.min(14)),
            [4, 2] => self.sack_permitted = true,
            [8, 10, ..] => self.stamps = Some((word(&option[2..]), word(&option[6..]))),
            _ => {}
        }
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Addresses and payload of an IP packet that carries TCP.
fn ip_payload(bytes: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    match bytes.first()? >> 4 {
        4 => {
            let total = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
            let header = usize::from(bytes[0] & 15) * 4;
            if bytes.len() < 20 || bytes[9] != 6 || folded(&[bytes.get(..header)?]) != 0xffff {
                return None;
            }
            let address = |at: usize| IpAddr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            Some((address(12), address(16), bytes.get(header..total)?))
        }
        6 => {
            let len = usize::from(u16::from_be_bytes([*bytes.get(4)?, *bytes.get(5)?]));
            let address = |at: usize| Some(IpAddr::from(*bytes.get(at..)?.first_chunk::<16>()?));
            let tcp = *bytes.get(6)? == 6;
            tcp.then_some((address(8)?, address(24)?, bytes.get(40..40 + len)?))
        }
        _ => None,
    }
}

fn ip_header(src: IpAddr, dst: IpAddr, payload: usize) -> Vec<u8> {
    let length = |extra: usize| u16::try_from(payload + extra).expect("fits a packet").to_be_bytes();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [a, b] = length(20);
            let mut ip = vec![0x45, 0, a, b, 0, 0, 0x40, 0, 64, 6, 0, 0];
            ip.extend(src.octets());
            ip.extend(dst.octets());
            let sum = folded(&[&ip]);
            ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
            ip
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let [a, b] = length(0);
            [&[0x60, 0, 0, 0, a, b, 6, 64], &src.octets()[..], &dst.octets()].concat()
        }
        (_, _) => panic!("{src} and {dst} are of two families"),
    }
}

/// What the TCP checksum covers beside the segment (RFC 9293, 3.1; RFC 8200, 8.1).
fn pseudo(src: IpAddr, dst: IpAddr, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    for address in [src, dst] {
        match address {
            IpAddr::V4(ip) => out.extend(ip.octets()),
            IpAddr::V6(ip) => out.extend(ip.octets()),
        }
    }
    out.extend([0, 6]);
    out.extend(u16::try_from(len).expect("fits a packet").to_be_bytes());
    out
}

/// The one's complement sum of `parts`, all but the last of even length (RFC 1071).
fn folded(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        let pairs = part.chunks_exact(2);
        sum += u64::from(pairs.remainder().first().copied().unwrap_or(0)) << 8;
        sum += pairs.map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>();
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}
