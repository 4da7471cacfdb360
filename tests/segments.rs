//! From a client's bytes to the packets that leave: whatever the lengths, they carry the bytes once, in order,
//! in packets that are no longer than they may be, and that read back.

use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;
use tcpcopy::session::{Event, Session, Taken};
use tcpcopy::wire::{
    Flags, MIN_HEADERS_V4, MIN_HEADERS_V6, Outgoing, Seq, TcpHeader, TcpOptions, Time, Timestamps, parse,
};

const NOW: Time = Time::from_micros(1_000_000);
const CLIENT_ISN: Seq = Seq(u32::MAX - 5_000);
const TARGET_ISN: Seq = Seq(77);

/// A connection to the target, up to the end of its handshake.
struct Connection {
    session: Session,
    src: SocketAddr,
    dst: SocketAddr,
    out: Outgoing,
}

/// What is offered to, and by, the target.
#[derive(Clone, Copy, Debug)]
struct Terms {
    v6: bool,
    timestamps: bool,
    mtu: u16,
    target_mss: Option<u16>,
}

impl Terms {
    fn headers(self) -> u16 {
        if self.v6 { MIN_HEADERS_V6 } else { MIN_HEADERS_V4 }
    }

    fn options(self, mss: Option<u16>) -> TcpOptions {
        let timestamps = self.timestamps.then_some(Timestamps { value: 9, echo: 0 });
        TcpOptions { mss, window_scale: Some(14), sack_permitted: true, timestamps }
    }

    /// Payload bytes of a full segment.
    fn most(self) -> usize {
        let options = if self.timestamps { 12 } else { 0 };
        usize::from((self.mtu - self.headers()).min(self.target_mss.unwrap_or(536)) - options)
    }
}

fn header(seq: Seq, ack: Seq, flags: Flags, payload_len: usize, options: TcpOptions) -> TcpHeader {
    let payload_len = u32::try_from(payload_len).expect("short");
    TcpHeader { seq, ack, flags, window: u16::MAX, options, payload_len }
}

impl Connection {
    fn establish(terms: Terms) -> Self {
        let syn = header(CLIENT_ISN, Seq(0), Flags::SYN, 0, terms.options(Some(1460)));
        let mut session = Session::open(NOW, Arc::default(), Arc::default(), &syn);
        assert_eq!(session.handle_client(NOW, &syn, b""), Taken::Control);
        assert_eq!(session.poll_event(), Some(Event::Connect));
        session.connect(NOW, terms.mtu - terms.headers());
        let (src, dst) =
            if terms.v6 { ("[fd00::7]:40001", "[fd00::2]:80") } else { ("10.99.0.7:40001", "10.2.0.2:80") };
        let [src, dst] = [src, dst].map(|text| text.parse().expect("address"));
        let mut connection = Self { session, src, dst, out: Outgoing::default() };
        assert_eq!(connection.send().map(|(header, _, _)| header.flags), Some(Flags::SYN));
        let flags = Flags::SYN | Flags::ACK;
        connection.answer(header(TARGET_ISN, CLIENT_ISN.add(1), flags, 0, terms.options(terms.target_mss)));
        connection
    }

    fn answer(&mut self, header: TcpHeader) {
        self.session.handle_target(NOW, &header);
    }

    /// The next packet, read back: header, payload, and the packet's length.
    fn send(&mut self) -> Option<(TcpHeader, Vec<u8>, usize)> {
        let header = self.session.poll_transmit(NOW, self.out.payload())?;
        let bytes = self.out.finish(self.src, self.dst, &header).expect("fits");
        let packet = parse(bytes, bytes.len()).expect("readable");
        assert_eq!((packet.src, packet.dst, packet.header), (self.src, self.dst, header));
        assert!(checksums_are_right(bytes), "{header:?}");
        Some((packet.header, packet.payload.to_vec(), bytes.len()))
    }
}

fn checksums_are_right(bytes: &[u8]) -> bool {
    let sliced = etherparse::SlicedPacket::from_ip(bytes).expect("valid");
    let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { return false };
    let expected = match sliced.net.expect("IP") {
        etherparse::NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            if ip.header_checksum() != ip.to_header().calc_header_checksum() {
                return false;
            }
            tcp.calc_checksum_ipv4(ip.source(), ip.destination())
        }
        etherparse::NetSlice::Ipv6(ip) => {
            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
        }
        etherparse::NetSlice::Arp(_) => return false,
    };
    expected.is_ok_and(|expected| expected == tcp.checksum())
}

fn terms() -> impl Strategy<Value = Terms> {
    let mss = prop::option::of(64u16..2000);
    (any::<bool>(), any::<bool>(), 576u16..9001, mss).prop_map(|(v6, timestamps, mtu, target_mss)| Terms {
        v6,
        timestamps,
        mtu,
        target_mss,
    })
}

proptest! {
    #[test]
    fn segments_carry_the_bytes_once_and_in_order(
        terms in terms(),
        // The lengths in which the client's bytes are captured; GSO makes them longer than any segment.
        pieces in prop::collection::vec(prop_oneof![1usize..100, Just(1460), 1_400usize..65_000], 1..5),
        fin in any::<bool>(),
    ) {
        let mut connection = Connection::establish(terms);
        let total: usize = pieces.iter().sum();
        let stream: Vec<u8> = (0..=250u8).cycle().take(total).collect();
        let mut at = 0;
        for (index, len) in pieces.iter().enumerate() {
            let last = index + 1 == pieces.len();
            let flags = Flags::ACK | if last && fin { Flags::FIN } else { Flags::NONE };
            let seq = CLIENT_ISN.add(1).add(u32::try_from(at).expect("short"));
            let header = header(seq, Seq(5), flags, *len, TcpOptions::default());
            prop_assert_eq!(connection.session.handle_client(NOW, &header, &stream[at..at + len]), Taken::Data);
            at += len;
        }

        let mut sent: Vec<u8> = Vec::new();
        let mut ended = false;
        // The congestion window opens with every acknowledgment.
        while sent.len() < total {
            let before = sent.len();
            while let Some((header, payload, packet_len)) = connection.send() {
                prop_assert!(packet_len <= usize::from(terms.mtu));
                prop_assert!(!payload.is_empty() && payload.len() <= terms.most());
                let next = u32::try_from(sent.len()).expect("short");
                prop_assert_eq!(header.seq, CLIENT_ISN.add(1).add(next), "in order, none twice");
                prop_assert_eq!(header.ack, TARGET_ISN.add(1));
                sent.extend(&payload);
                let last = sent.len() == total;
                prop_assert!(last || payload.len() == terms.most(), "only the last may be short");
                prop_assert_eq!(header.flags.contains(Flags::PSH), last);
                prop_assert_eq!(header.flags.fin(), last && fin);
                prop_assert!(header.flags.ack() && !ended, "nothing after the last");
                ended = last;
            }
            prop_assert!(sent.len() > before, "{} of {}", sent.len(), total);
            let acked = CLIENT_ISN.add(1).add(u32::try_from(sent.len()).expect("short"));
            connection.answer(header(TARGET_ISN.add(1), acked, Flags::ACK, 0, TcpOptions::default()));
        }
        prop_assert_eq!(sent, stream);
        prop_assert!(connection.send().is_none(), "nothing is sent twice");
    }
}
