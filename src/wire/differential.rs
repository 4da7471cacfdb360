//! Our reading and building of packets against etherparse's strict reading, its builder, and checksums
//! computed here by RFC 1071.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, NetSlice, PacketBuilder, SlicedPacket,
    TcpHeader as RawTcp, TcpOptionElement, TransportSlice, ip_number,
};
use proptest::prelude::*;

use super::{Flags, Outgoing, Packet, Reject, Seq, TcpHeader, TcpOptions, Timestamps, parse};

/// A TCP option as it is put into a packet.
#[derive(Clone, Debug)]
enum Opt {
    Nop,
    End,
    Mss(u16),
    Scale(u8),
    SackPermitted,
    Sack(Vec<(u32, u32)>),
    Timestamps(u32, u32),
    Unknown(u8, Vec<u8>),
}

impl Opt {
    fn bytes(&self) -> Vec<u8> {
        let sized = |kind: u8, body: &[u8]| {
            let len = u8::try_from(body.len() + 2).expect("short");
            [&[kind, len], body].concat()
        };
        match self {
            Self::End => vec![0],
            Self::Nop => vec![1],
            Self::Mss(mss) => sized(2, &mss.to_be_bytes()),
            Self::Scale(shift) => sized(3, &[*shift]),
            Self::SackPermitted => sized(4, &[]),
            Self::Sack(blocks) => {
                let words = blocks.iter().flat_map(|(left, right)| [*left, *right]);
                sized(5, &words.flat_map(u32::to_be_bytes).collect::<Vec<_>>())
            }
            Self::Timestamps(value, echo) => sized(8, &[value.to_be_bytes(), echo.to_be_bytes()].concat()),
            Self::Unknown(kind, body) => sized(*kind, body),
        }
    }
}

/// The options that fit a header, and what a peer is to make of them.
fn options_of(list: &[Opt]) -> (Vec<u8>, TcpOptions) {
    let (mut bytes, mut meant, mut ended) = (Vec::new(), TcpOptions::default(), false);
    for option in list {
        let more = option.bytes();
        if bytes.len() + more.len() > 40 {
            break;
        }
        bytes.extend(more);
        ended |= matches!(option, Opt::End);
        match option {
            _ if ended => {}
            Opt::Mss(mss) => meant.mss = Some(*mss),
            Opt::Scale(shift) => meant.window_scale = Some((*shift).min(14)),
            Opt::SackPermitted => meant.sack_permitted = true,
            Opt::Timestamps(value, echo) => {
                meant.timestamps = Some(Timestamps { value: *value, echo: *echo });
            }
            Opt::Nop | Opt::End | Opt::Sack(_) | Opt::Unknown(..) => {}
        }
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    (bytes, meant)
}

/// What surrounds the TCP header.
#[derive(Clone, Debug)]
struct Envelope {
    v6: bool,
    /// Bytes of IPv4 options, in fours.
    v4_options: Vec<u8>,
    auth: Option<Vec<u8>>,
    /// Bodies of IPv6 extension headers: 6 + 8n bytes.
    hop_by_hop: Option<Vec<u8>>,
    destination: Option<Vec<u8>>,
    routing: Option<Vec<u8>>,
    /// A fragment header: offset in eights, more to come.
    fragment: Option<(u16, bool)>,
    padding: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Spec {
    envelope: Envelope,
    src: ([u8; 16], u16),
    dst: ([u8; 16], u16),
    numbers: (u32, u32, u16, u16),
    flags: u8,
    options: Vec<Opt>,
    payload: Vec<u8>,
}

fn body(bytes: &[u8]) -> Vec<u8> {
    let mut body = bytes.to_vec();
    body.resize(6 + bytes.len().div_ceil(8) * 8, 1);
    body
}

fn option() -> impl Strategy<Value = Opt> {
    prop_oneof![
        Just(Opt::Nop),
        Just(Opt::End),
        any::<u16>().prop_map(Opt::Mss),
        any::<u8>().prop_map(Opt::Scale),
        Just(Opt::SackPermitted),
        prop::collection::vec(any::<(u32, u32)>(), 1..=4).prop_map(Opt::Sack),
        any::<(u32, u32)>().prop_map(|(value, echo)| Opt::Timestamps(value, echo)),
        (9u8.., prop::collection::vec(0u8.., 0..12)).prop_map(|(kind, body)| Opt::Unknown(kind, body)),
    ]
}

fn some_bytes(most: usize) -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::weighted(0.3, prop::collection::vec(0u8.., 0..most))
}

fn envelope() -> impl Strategy<Value = Envelope> {
    let fragment = prop::option::weighted(0.15, (0u16..100, any::<bool>()));
    let extensions = (some_bytes(30), some_bytes(30), some_bytes(30), some_bytes(12));
    let v4_options = (0usize..=10, 0u8..).prop_map(|(words, byte)| vec![byte; 4 * words]);
    (any::<bool>(), v4_options, extensions, fragment, prop::collection::vec(0u8.., 0..40)).prop_map(
        |(v6, v4_options, (hop_by_hop, destination, routing, auth), fragment, padding)| Envelope {
            v6,
            v4_options,
            auth: auth.map(|bytes| bytes[..bytes.len() / 4 * 4].to_vec()),
            hop_by_hop: hop_by_hop.map(|bytes| body(&bytes)),
            destination: destination.map(|bytes| body(&bytes)),
            routing: routing.map(|bytes| body(&bytes)),
            fragment,
            padding,
        },
    )
}

fn spec() -> impl Strategy<Value = Spec> {
    let end = || (any::<[u8; 16]>(), 1u16..);
    let options = prop::collection::vec(option(), 0..8);
    let payload = prop::collection::vec(0u8.., 0..100);
    (envelope(), end(), end(), any::<(u32, u32, u16, u16)>(), 0u8.., options, payload).prop_map(
        |(envelope, src, dst, numbers, flags, options, payload)| Spec {
            envelope,
            src,
            dst,
            numbers,
            flags,
            options,
            payload,
        },
    )
}

impl Spec {
    fn end(&self, (bytes, port): ([u8; 16], u16)) -> SocketAddr {
        let [a, b, c, d, ..] = bytes;
        let ip: IpAddr =
            if self.envelope.v6 { Ipv6Addr::from(bytes).into() } else { Ipv4Addr::new(a, b, c, d).into() };
        SocketAddr::new(ip, port)
    }

    fn raw_tcp(&self) -> RawTcp {
        let flag = |bit: Flags| self.flags & bit.bits() != 0;
        let (seq, ack, window, urgent) = self.numbers;
        let mut tcp = RawTcp::new(self.src.1, self.dst.1, seq, window);
        tcp.acknowledgment_number = ack;
        tcp.urgent_pointer = urgent;
        (tcp.fin, tcp.syn, tcp.rst, tcp.psh) =
            (flag(Flags::FIN), flag(Flags::SYN), flag(Flags::RST), flag(Flags::PSH));
        (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) =
            (flag(Flags::ACK), flag(Flags::URG), flag(Flags::ECE), flag(Flags::CWR));
        tcp.set_options_raw(&options_of(&self.options).0).expect("at most 40 bytes");
        tcp
    }

    fn ip(&self) -> IpHeaders {
        let envelope = &self.envelope;
        let auth = envelope
            .auth
            .as_ref()
            .map(|icv| IpAuthHeader::new(ip_number::TCP, 7, 8, icv).expect("a multiple of 4, short"));
        let offset = |eights: u16| IpFragOffset::try_new(eights).expect("13 bits");
        match (self.end(self.src).ip(), self.end(self.dst).ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip =
                    Ipv4Header::new(0, 9, ip_number::TCP, src.octets(), dst.octets()).expect("short");
                ip.options = envelope.v4_options.as_slice().try_into().expect("at most 40 bytes");
                if let Some((eights, more)) = envelope.fragment {
                    (ip.fragment_offset, ip.more_fragments) = (offset(eights), more);
                }
                IpHeaders::Ipv4(ip, Ipv4Extensions { auth })
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let raw = |body: &Option<Vec<u8>>| {
                    body.as_ref().map(|body| Ipv6RawExtHeader::new_raw(ip_number::TCP, body).expect("6 + 8n"))
                };
                let routing = raw(&envelope.routing)
                    .map(|routing| Ipv6RoutingExtensions { routing, final_destination_options: None });
                let fragment = envelope
                    .fragment
                    .map(|(eights, more)| Ipv6FragmentHeader::new(ip_number::TCP, offset(eights), more, 77));
                let extensions = Ipv6Extensions {
                    hop_by_hop_options: raw(&envelope.hop_by_hop),
                    destination_options: raw(&envelope.destination),
                    routing,
                    fragment,
                    auth,
                };
                let ip = Ipv6Header {
                    hop_limit: 9,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(ip, extensions)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("one family"),
        }
    }

    /// The packet as etherparse builds it, without padding.
    fn build(&self) -> Vec<u8> {
        let builder = PacketBuilder::ip(self.ip()).tcp_header(self.raw_tcp());
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &self.payload).expect("fits");
        bytes
    }

    fn is_fragment(&self) -> bool {
        self.envelope.fragment.is_some_and(|(offset, more)| offset > 0 || more)
    }

    fn header(&self) -> TcpHeader {
        let (seq, ack, window, _) = self.numbers;
        TcpHeader {
            seq: Seq(seq),
            ack: Seq(ack),
            flags: Flags::from_bits(self.flags),
            window,
            options: options_of(&self.options).1,
            payload_len: u32::try_from(self.payload.len()).expect("short"),
        }
    }
}

/// Sum of RFC 1071, folded.
fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// Asserts that the checksums of a packet without IP options and extension headers are right.
fn verify_checksums(bytes: &[u8]) {
    let (tcp, addresses) = if bytes[0] >> 4 == 4 {
        assert_eq!(sum(&[&bytes[..20]]), 0xffff, "IPv4 header");
        (&bytes[20..], &bytes[12..20])
    } else {
        (&bytes[40..], &bytes[8..40])
    };
    let len = u32::try_from(tcp.len()).expect("short").to_be_bytes();
    assert_eq!(sum(&[addresses, &[0, 6], &len, tcp]), 0xffff, "TCP");
}

/// The etherparse view of a packet: `None` if it is no whole TCP segment.
fn strict<'a>(
    packet: &'a SlicedPacket<'a>,
) -> Option<(SocketAddr, SocketAddr, &'a etherparse::TcpSlice<'a>)> {
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
    let (src, dst): (IpAddr, IpAddr) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    Some((SocketAddr::new(src, tcp.source_port()), SocketAddr::new(dst, tcp.destination_port()), tcp))
}

/// Asserts that a packet reads the same as etherparse reads it.
fn assert_same(ours: &Packet<'_>, src: SocketAddr, dst: SocketAddr, theirs: &etherparse::TcpSlice<'_>) {
    assert_eq!((ours.src, ours.dst), (src, dst));
    let header = &ours.header;
    assert_eq!((header.seq.0, header.ack.0), (theirs.sequence_number(), theirs.acknowledgment_number()));
    assert_eq!(header.window, theirs.window_size());
    let flags = [
        (Flags::FIN, theirs.fin()),
        (Flags::SYN, theirs.syn()),
        (Flags::RST, theirs.rst()),
        (Flags::PSH, theirs.psh()),
        (Flags::ACK, theirs.ack()),
        (Flags::URG, theirs.urg()),
        (Flags::ECE, theirs.ece()),
        (Flags::CWR, theirs.cwr()),
    ];
    for (flag, set) in flags {
        assert_eq!(header.flags.contains(flag), set, "{flag:?}");
    }
    assert_eq!(ours.payload, theirs.payload());
    assert_eq!(header.payload_len as usize, theirs.payload().len());
    let elements: Result<Vec<_>, _> = theirs.options_iterator().collect();
    if let Ok(elements) = elements {
        assert_eq!(header.options, options_from(&elements));
    }
}

fn options_from(elements: &[TcpOptionElement]) -> TcpOptions {
    let mut options = TcpOptions::default();
    for element in elements {
        match element {
            TcpOptionElement::MaximumSegmentSize(mss) => options.mss = Some(*mss),
            TcpOptionElement::WindowScale(shift) => options.window_scale = Some((*shift).min(14)),
            TcpOptionElement::SelectiveAcknowledgementPermitted => options.sack_permitted = true,
            TcpOptionElement::Timestamp(value, echo) => {
                options.timestamps = Some(Timestamps { value: *value, echo: *echo });
            }
            TcpOptionElement::Noop | TcpOptionElement::SelectiveAcknowledgement(..) => {}
        }
    }
    options
}

/// An IPv4 length of 0 is the one thing that we read and etherparse's strict reading refuses: the kernel
/// leaves it so in packets beyond 64 KiB, and the capture says how long they are.
fn is_big_tcp(bytes: &[u8]) -> bool {
    bytes.len() >= 4 && bytes[0] >> 4 == 4 && bytes[2..4] == [0, 0]
}

/// Asserts that whatever these bytes are, both readings agree: what one refuses, the other does.
fn assert_agree(bytes: &[u8]) {
    let ours = parse(bytes, bytes.len());
    match SlicedPacket::from_ip(bytes) {
        Err(error) => assert!(ours.is_err() || is_big_tcp(bytes), "etherparse: {error}, ours: {ours:?}"),
        Ok(packet) => match (strict(&packet), ours) {
            (Some((src, dst, tcp)), Ok(ours)) => assert_same(&ours, src, dst, tcp),
            (Some((src, dst, _)), Err(reject)) => {
                assert_eq!(reject, Reject::Ports, "{packet:?}");
                assert!(src.port() == 0 || dst.port() == 0 || src == dst);
            }
            (None, Ok(ours)) => panic!("etherparse sees no TCP, we see {ours:?}"),
            (None, Err(_)) => {}
        },
    }
}

#[test]
fn an_ip_length_shorter_than_its_header_is_a_lie() {
    let mut bytes = vec![0; 120];
    let mut ip = Ipv4Header::new(60, 9, ip_number::TCP, [10, 0, 0, 1], [10, 0, 0, 2]).expect("short");
    ip.options = [1; 40].into();
    ip.total_len = 59;
    let mut tcp = RawTcp::new(1, 2, 3, 4);
    tcp.ack = true;
    bytes[..60].copy_from_slice(&ip.to_bytes());
    bytes[60..80].copy_from_slice(&tcp.to_bytes());
    bytes.truncate(100);
    assert_eq!(parse(&bytes, bytes.len()).map(|packet| packet.header), Err(Reject::IpLength));
}

proptest! {
    #[test]
    fn valid_packets_read_the_same(spec in spec()) {
        let mut bytes = spec.build();
        let whole = bytes.len();
        bytes.extend(&spec.envelope.padding);
        assert_agree(&bytes);
        let ours = parse(&bytes, bytes.len());
        if spec.is_fragment() {
            prop_assert_eq!(ours.map(|_| ()), Err(Reject::Fragment));
            return Ok(());
        }
        if spec.end(spec.src) == spec.end(spec.dst) {
            prop_assert_eq!(ours.map(|_| ()), Err(Reject::Ports));
            return Ok(());
        }
        let ours = ours.expect("a valid packet");
        prop_assert_eq!((ours.src, ours.dst), (spec.end(spec.src), spec.end(spec.dst)));
        prop_assert_eq!(ours.header, spec.header());
        prop_assert_eq!(ours.payload, &spec.payload[..]);

        // Cut by the capture: all or nothing, by whether the TCP header is whole.
        let headers = whole - spec.payload.len();
        for kept in 0..whole {
            match parse(&bytes[..kept], bytes.len()) {
                Ok(cut) => {
                    prop_assert!(kept >= headers);
                    prop_assert_eq!(cut.header, spec.header());
                    prop_assert_eq!(cut.payload, &spec.payload[..kept - headers]);
                }
                Err(_) => prop_assert!(kept < headers, "{} of {}", kept, headers),
            }
            // And truncated on the way: the IP header's length lies.
            let is_err = parse(&bytes[..kept], kept).is_err();
            prop_assert!(is_err, "{} of {}", kept, whole);
        }
    }

    #[test]
    fn damaged_packets_are_refused_alike(
        spec in spec(),
        bits in prop::collection::vec((0usize..120, 0u8..), 1..4),
        kept in prop::option::of(0usize..200),
        beyond in 0usize..3000,
    ) {
        let mut bytes = spec.build();
        bytes.extend(&spec.envelope.padding);
        for (at, value) in bits {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(kept.unwrap_or(usize::MAX));
        assert_agree(&bytes);
        let original = bytes.len() + beyond;
        if let Ok(packet) = parse(&bytes, original) {
            prop_assert!(packet.payload.len() <= packet.header.payload_len as usize);
            prop_assert!(packet.header.payload_len as usize + 40 <= original);
        }
    }

    #[test]
    fn what_we_build_is_what_etherparse_builds(
        spec in spec(),
        len in prop_oneof![0usize..100, Just(1448), Just(1459), 65_000usize..65_440],
    ) {
        // Ours have no IP options, no urgent data, and the options of `TcpOptions` only.
        let meant = TcpHeader { flags: Flags::from_bits(spec.flags & !Flags::URG.bits()), ..spec.header() };
        let payload: Vec<u8> = spec.payload.iter().copied().chain([0xff, 1, 0x80]).cycle().take(len).collect();
        let (src, dst) = (spec.end(spec.src), spec.end(spec.dst));
        let mut out = Outgoing::default();
        out.payload().extend_from_slice(&payload);
        let bytes = out.finish(src, dst, &spec.header()).expect("fits").to_vec();
        verify_checksums(&bytes);

        let packet = SlicedPacket::from_ip(&bytes).expect("valid");
        let (their_src, their_dst, tcp) = strict(&packet).expect("TCP");
        let written = {
            let elements: Result<Vec<_>, _> = tcp.options_iterator().collect();
            options_from(&elements.expect("whole options"))
        };
        prop_assert_eq!(written, meant.options);
        prop_assert_eq!(tcp.payload(), &payload[..]);
        if src != dst {
            let ours = parse(&bytes, bytes.len()).expect("valid");
            let payload_len = u32::try_from(len).expect("short");
            prop_assert_eq!(ours.header, TcpHeader { payload_len, ..meant });
            assert_same(&ours, their_src, their_dst, tcp);
        }
        if let NetSlice::Ipv4(ip) = packet.net.as_ref().expect("IP") {
            let header = ip.header().to_header();
            prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
        }

        // The same by their builder, byte for byte.
        let mut tcp_header = spec.raw_tcp();
        (tcp_header.urg, tcp_header.urgent_pointer) = (false, 0);
        tcp_header.set_options_raw(tcp.options()).expect("as written");
        let ip = match spec.ip() {
            IpHeaders::Ipv4(ip, _) => {
                let mut plain = Ipv4Header::new(0, 64, ip_number::TCP, ip.source, ip.destination).expect("short");
                plain.dont_fragment = true;
                IpHeaders::Ipv4(plain, Ipv4Extensions::default())
            }
            IpHeaders::Ipv6(ip, _) => {
                IpHeaders::Ipv6(Ipv6Header { hop_limit: 64, ..ip }, Ipv6Extensions::default())
            }
        };
        let mut theirs = Vec::new();
        PacketBuilder::ip(ip).tcp_header(tcp_header).write(&mut theirs, &payload).expect("fits");
        prop_assert_eq!(&bytes, &theirs);
    }
}
