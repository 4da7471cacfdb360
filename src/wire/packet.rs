//! Reading IPv4 and IPv6 packets that carry TCP.

use std::net::SocketAddr;

use etherparse::{LaxIpSlice, TcpHeaderSlice, ip_number};

use super::checksum::{checksum, sum};
use super::{Flags, Seq, TcpHeader, TcpOptions};

/// TCP's protocol number.
const TCP: u8 = 6;

/// A TCP packet with checked lengths.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port.
    pub dst: SocketAddr,
    /// The TCP header.
    pub header: TcpHeader,
    /// The payload at hand: shorter than `header.payload_len` if the capture cut it.
    pub payload: &'a [u8],
}

/// Why a packet is refused. Each is a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reject {
    /// Not IPv4 or IPv6, or the IP header is cut or inconsistent.
    #[error("bad IP header")]
    IpHeader,
    /// The IP header's length and the packet's do not agree.
    #[error("bad IP length")]
    IpLength,
    /// A fragment: TCP is not replayed from fragments.
    #[error("IP fragment")]
    Fragment,
    /// A protocol other than TCP, or one hidden behind extension headers that cannot be passed.
    #[error("not TCP")]
    NotTcp,
    /// The TCP header is cut or its data offset lies.
    #[error("bad TCP header")]
    TcpHeader,
    /// Port 0, or source and destination are one.
    #[error("bad TCP ports")]
    Ports,
    /// The TCP checksum is wrong: see [`is_damaged`].
    #[error("bad TCP checksum")]
    Checksum,
}

crate::counted!(Reject {
    IpHeader => "bad_ip_header",
    IpLength => "bad_ip_length",
    Fragment => "fragment",
    NotTcp => "not_tcp",
    TcpHeader => "bad_tcp_header",
    Ports => "bad_ports",
    Checksum => "bad_checksum",
});

/// Reads a packet that begins with its IP header.
///
/// `original_len` is the packet's length before the capture cut it; `bytes` may be shorter, but
/// must hold the TCP header.
///
/// # Errors
/// The [`Reject`] that names what is wrong; never [`Reject::Checksum`].
pub fn parse(bytes: &[u8], original_len: usize) -> Result<Packet<'_>, Reject> {
    let (ip, broken_extension) = LaxIpSlice::from_slice(bytes).map_err(|_| Reject::IpHeader)?;
    let payload = ip.payload();
    if payload.fragmented {
        return Err(Reject::Fragment);
    }
    if broken_extension.is_some() || payload.ip_number != ip_number::TCP {
        return Err(Reject::NotTcp);
    }
    let after_ip = payload_len(&ip, bytes, original_len)?;
    let tcp = TcpHeaderSlice::from_slice(payload.payload).map_err(|_| Reject::TcpHeader)?;
    let header_len = tcp.slice().len();
    let payload_len =
        after_ip.checked_sub(header_len).and_then(|len| u32::try_from(len).ok()).ok_or(Reject::TcpHeader)?;
    let src = SocketAddr::new(ip.source_addr(), tcp.source_port());
    let dst = SocketAddr::new(ip.destination_addr(), tcp.destination_port());
    if src.port() == 0 || dst.port() == 0 || src == dst {
        return Err(Reject::Ports);
    }
    let at_hand = payload.payload.get(header_len..).unwrap_or_default();
    let wanted = at_hand.len().min(usize::try_from(payload_len).unwrap_or(usize::MAX));
    Ok(Packet {
        src,
        dst,
        header: TcpHeader {
            seq: Seq(tcp.sequence_number()),
            ack: Seq(tcp.acknowledgment_number()),
            flags: flags(&tcp),
            window: tcp.window_size(),
            options: TcpOptions::parse(tcp.options()),
            payload_len,
        },
        payload: at_hand.get(..wanted).unwrap_or_default(),
    })
}

/// Whether the TCP checksum of a packet that [`parse`] has read is wrong. Of one that is cut, or that hides TCP behind
/// extension headers, nobody can tell: it is taken for sound, as is one whose IP length is 0.
///
/// Not for packets whose checksum is still to be filled in by the network card.
pub fn is_damaged(bytes: &[u8], original_len: usize) -> bool {
    let sum = match bytes {
        [0x45..=0x4f, ..] => covered(bytes, usize::from(bytes.first().map_or(0, |first| first & 15)) * 4, 12),
        [0x60..=0x6f, _, _, _, _, _, TCP, ..] => covered(bytes, 40, 8),
        _ => None,
    };
    bytes.len() == original_len && sum.is_some_and(|sum| checksum(sum) != [0, 0])
}

/// The sum of what the TCP checksum covers, itself included; the IP header is `header` bytes long and has its addresses
/// at `addresses`, up to its fixed part's end. `None` if the packet ends before.
fn covered(bytes: &[u8], header: usize, addresses: usize) -> Option<u64> {
    let fixed = if addresses == 12 { 20 } else { 40 };
    let field = if addresses == 12 { bytes.get(2..4)? } else { bytes.get(4..6)? };
    let length =
        usize::from(u16::from_be_bytes(*field.first_chunk()?)) + if addresses == 12 { 0 } else { 40 };
    let tcp = bytes.get(header..length)?;
    let len = u16::try_from(tcp.len()).ok()?;
    Some(sum(bytes.get(addresses..fixed)?) + sum(&[0, TCP]) + sum(&len.to_be_bytes()) + sum(tcp))
}

/// Length of what follows the IP headers, by the length field; by `original_len` where the field
/// is 0, as in packets that the kernel merged beyond 64 KiB (BIG TCP).
fn payload_len(ip: &LaxIpSlice<'_>, bytes: &[u8], original_len: usize) -> Result<usize, Reject> {
    let (total, fixed, least) = match ip {
        LaxIpSlice::Ipv4(v4) => (usize::from(v4.header().total_len()), 0, v4.header().slice().len()),
        LaxIpSlice::Ipv6(v6) => (usize::from(v6.header().payload_length()), 40, 40),
    };
    let total = if total == 0 { original_len } else { total + fixed };
    if total < least || total > original_len || bytes.len() > original_len {
        return Err(Reject::IpLength);
    }
    // The payload slice ends where the packet does, or where `bytes` is cut.
    let end = total.min(bytes.len());
    let headers = end.checked_sub(ip.payload().payload.len()).ok_or(Reject::IpLength)?;
    total.checked_sub(headers).ok_or(Reject::IpLength)
}

fn flags(tcp: &TcpHeaderSlice<'_>) -> Flags {
    // Byte 13 of a TCP header that etherparse has checked to be at least 20 bytes long.
    Flags::from_bits(tcp.slice().get(13).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Outgoing, Timestamps};

    fn header() -> TcpHeader {
        TcpHeader {
            seq: Seq(7),
            ack: Seq(9),
            flags: Flags::PSH | Flags::ACK,
            window: 501,
            options: TcpOptions {
                timestamps: Some(Timestamps { value: 3, echo: 4 }),
                ..TcpOptions::default()
            },
            payload_len: 5,
        }
    }

    fn packet(src: &str, dst: &str) -> Vec<u8> {
        let mut out = Outgoing::default();
        out.payload().extend_from_slice(b"hello");
        let src = src.parse().expect("address");
        let dst = dst.parse().expect("address");
        out.finish(src, dst, &header()).expect("fits").to_vec()
    }

    fn v4() -> Vec<u8> {
        packet("10.0.0.1:1234", "10.0.0.2:80")
    }

    fn v6() -> Vec<u8> {
        packet("[fd00::1]:1234", "[fd00::2]:80")
    }

    #[test]
    fn what_is_built_is_parsed_back() {
        for bytes in [v4(), v6()] {
            let packet = parse(&bytes, bytes.len()).expect("own packet");
            assert_eq!(packet.header, header());
            assert_eq!(packet.payload, b"hello");
            assert_eq!((packet.src.port(), packet.dst.port()), (1234, 80));
        }
    }

    #[test]
    fn checksums_agree_with_etherparse() {
        for bytes in [v4(), v6()] {
            let sliced = etherparse::SlicedPacket::from_ip(&bytes).expect("valid packet");
            let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
            let expected = match sliced.net.expect("IP") {
                etherparse::NetSlice::Ipv4(ip) => {
                    tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
                }
                etherparse::NetSlice::Arp(_) => panic!("ARP"),
            };
            assert_eq!(tcp.checksum(), expected.expect("length fits"));
        }
    }

    #[test]
    fn one_wrong_bit_behind_the_ip_header_is_damage() {
        for (bytes, ip) in [(v4(), 20), (v6(), 40)] {
            assert!(!is_damaged(&bytes, bytes.len()));
            for bit in 8 * ip..8 * bytes.len() {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(is_damaged(&damaged, bytes.len()), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_checksum_that_cannot_be_computed_is_no_damage() {
        let mut bytes = v4();
        bytes[30] ^= 1;
        assert!(!is_damaged(&bytes[..bytes.len() - 1], bytes.len()), "cut");
        let padded = [&v4()[..], &[7; 9]].concat();
        assert!(!is_damaged(&padded, padded.len()), "padding is not covered");
        bytes[2..4].copy_from_slice(&[0, 0]);
        assert!(!is_damaged(&bytes, bytes.len()), "merged beyond 64 KiB");
        let mut extended = v6();
        extended[6] = 60;
        assert!(!is_damaged(&extended, extended.len()));
        assert!(!is_damaged(&[], 0) && !is_damaged(&[0x45], 1));
    }

    #[test]
    fn a_cut_packet_keeps_its_declared_length() {
        for bytes in [v4(), v6()] {
            let cut = &bytes[..bytes.len() - 3];
            let packet = parse(cut, bytes.len()).expect("headers are whole");
            assert_eq!(packet.header.payload_len, 5);
            assert_eq!(packet.payload, b"he");
        }
    }

    #[test]
    fn ip_options_and_extension_headers_are_passed() {
        let mut bytes = v4();
        bytes[0] = 0x46;
        bytes.splice(20..20, [1, 1, 1, 0]);
        let total = u16::try_from(bytes.len()).expect("short");
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        assert_eq!(parse(&bytes, bytes.len()).map(|p| p.header.payload_len), Ok(5));

        let mut bytes = v6();
        bytes[6] = 60; // destination options
        bytes.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
        let payload = u16::try_from(bytes.len() - 40).expect("short");
        bytes[4..6].copy_from_slice(&payload.to_be_bytes());
        let packet = parse(&bytes, bytes.len()).expect("extension header");
        assert_eq!((packet.header.payload_len, packet.payload), (5, &b"hello"[..]));
    }

    #[test]
    fn fragments_are_refused() {
        let mut bytes = v4();
        bytes[6] = 0x20; // more fragments
        assert_eq!(parse(&bytes, bytes.len()).map(|_| ()), Err(Reject::Fragment));
    }

    #[test]
    fn a_length_of_zero_means_the_whole_packet() {
        let mut bytes = v4();
        bytes[2..4].copy_from_slice(&[0, 0]);
        assert_eq!(parse(&bytes, bytes.len()).map(|p| p.header.payload_len), Ok(5));
        let mut bytes = v6();
        bytes[4..6].copy_from_slice(&[0, 0]);
        assert_eq!(parse(&bytes, bytes.len()).map(|p| p.header.payload_len), Ok(5));
    }

    #[test]
    fn padding_behind_the_packet_is_not_payload() {
        for bytes in [v4(), v6()] {
            let padded = [&bytes[..], &[0; 9]].concat();
            assert_eq!(parse(&padded, padded.len()).map(|p| p.payload.len()), Ok(5));
        }
    }

    type Lie<'a> = &'a dyn Fn(&mut Vec<u8>);

    #[test]
    fn lies_are_named() {
        let length = |bytes: &mut Vec<u8>| bytes[2..4].copy_from_slice(&2000u16.to_be_bytes());
        let protocol = |bytes: &mut Vec<u8>| bytes[9] = 17;
        let offset = |bytes: &mut Vec<u8>| bytes[20 + 12] = 0x40;
        let beyond = |bytes: &mut Vec<u8>| bytes[20 + 12] = 0xf0;
        let port = |bytes: &mut Vec<u8>| bytes[20..22].copy_from_slice(&[0, 0]);
        let version = |bytes: &mut Vec<u8>| bytes[0] = 0x75;
        let cases: [(Lie, Reject); 6] = [
            (&length, Reject::IpLength),
            (&protocol, Reject::NotTcp),
            (&offset, Reject::TcpHeader),
            (&beyond, Reject::TcpHeader),
            (&port, Reject::Ports),
            (&version, Reject::IpHeader),
        ];
        for (lie, reject) in cases {
            let mut bytes = v4();
            lie(&mut bytes);
            assert_eq!(parse(&bytes, bytes.len()).map(|_| ()), Err(reject));
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(0u8.., 0..120), extra in 0usize..3000) {
            let _ = parse(&bytes, bytes.len() + extra);
        }

        #[test]
        fn nothing_panics_close_to_valid(at in 0usize..77, value in 0u8.., cut in 0usize..77) {
            for mut bytes in [v4(), v6()] {
                if let Some(byte) = bytes.get_mut(at) { *byte = value; }
                let kept = bytes.len().saturating_sub(cut);
                is_damaged(&bytes[..kept], kept);
                if let Ok(packet) = parse(&bytes[..kept], bytes.len()) {
                    proptest::prop_assert!(packet.payload.len() <= kept);
                    proptest::prop_assert!(packet.payload.len() <= packet.header.payload_len as usize);
                }
            }
        }
    }
}
