//! Captured packets: parsed, and rewritten as they are for the target.

use std::net::{IpAddr, SocketAddr};

use tcpcopy::wire::{Flags, Outgoing, TcpHeader, parse};

use super::input::Input;

/// No bytes are misread; what is parsed is built again, is what it was, and has right checksums.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    // Mostly whole packets, some cut by the capture.
    let missing = usize::from(input.u16().saturating_sub(u16::MAX / 2));
    let bytes = input.rest();
    let Ok(packet) = parse(bytes, bytes.len() + missing) else { return };
    let header = packet.header;
    let declared = header.payload_len as usize;
    assert!(packet.payload.len() <= bytes.len() && packet.payload.len() <= declared);
    assert!(declared <= bytes.len() + missing);
    assert!(packet.src.port() != 0 && packet.dst.port() != 0 && packet.src != packet.dst);

    let mut out = Outgoing::default();
    out.payload().extend_from_slice(packet.payload);
    let Some(built) = out.finish(packet.src, packet.dst, &header) else {
        assert!(packet.payload.len() + 40 + 60 > 65_535, "a packet of this size can be built");
        return;
    };
    let again = parse(built, built.len()).expect("own packet");
    let without_urgent = Flags::from_bits(header.flags.bits() & !Flags::URG.bits());
    let payload_len = u32::try_from(packet.payload.len()).expect("a packet's");
    assert_eq!((again.src, again.dst, again.payload), (packet.src, packet.dst, packet.payload));
    assert_eq!(again.header, TcpHeader { flags: without_urgent, payload_len, ..header });
    check_sums(built, packet.src, packet.dst);
}

/// The sums over what is sent are 0xffff (RFC 1071), by arithmetic of our own.
fn check_sums(built: &[u8], src: SocketAddr, dst: SocketAddr) {
    let (ip_header, addresses) = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (20, [src.octets(), dst.octets()].concat()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => (40, [src.octets(), dst.octets()].concat()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families in a packet"),
    };
    let (ip, tcp) = built.split_at(ip_header);
    if ip_header == 20 {
        assert_eq!(sum(ip), 0xffff, "the IP header's checksum");
    }
    let length = u32::try_from(tcp.len()).expect("a packet's");
    let pseudo = [&addresses[..], &length.to_be_bytes(), &[0, 0, 0, 6]].concat();
    assert_eq!(sum(&[&pseudo, tcp].concat()), 0xffff, "the TCP checksum");
}

fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
