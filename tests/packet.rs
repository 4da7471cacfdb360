//! Real packets through real packet sockets. Needs root; see `namespace` for how nothing is left behind.
#![expect(clippy::unwrap_used, reason = "in a test a failure of the machine is a failure of the test")]

mod namespace;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use namespace::isolated;
use tcpcopy::capture::{
    Captured, HeaderSource, PacketOptions, PacketSource, PacketTap, ResponseOptions, Source,
    open_header_sources, open_packet_sources,
};
use tcpcopy::sys::raw::RawSender;
use tcpcopy::wire::flow::SHARES;
use tcpcopy::wire::{Flags, Mapping, Outgoing, Packet, Seq, TcpHeader, flow, parse};

const OWN_MARK: u32 = 7;
const DEADLINE: Duration = Duration::from_secs(30);

fn mappings() -> [Mapping; 2] {
    let mapping = |target: &str| Mapping { online: None, port: 80, target: target.parse().unwrap() };
    [mapping("192.0.2.1:80"), mapping("[2001:db8::1]:80")]
}

fn open(workers: u16) -> (Vec<PacketSource>, PacketTap) {
    let mappings = mappings();
    let options = PacketOptions {
        mappings: &mappings,
        share: SHARES,
        clients: &[],
        mark: OWN_MARK,
        pure_acks: false,
        handshake_acks: true,
    };
    open_packet_sources(options, workers).unwrap()
}

/// A captured segment: flags, sequence number, length of payload.
type Segment = (Flags, Seq, u32);

/// What was captured, by client.
type Seen = BTreeMap<SocketAddr, Vec<Segment>>;

/// How many bytes of a client's stream the segments hold without a gap; some come twice.
fn streamed(segments: &[Segment]) -> u32 {
    let (_, start, _) = segments.iter().find(|(flags, ..)| flags.syn()).unwrap();
    let mut ranges: Vec<_> =
        segments.iter().map(|(_, seq, len)| (seq.offset_from(start.add(1)), *len)).collect();
    ranges.retain(|(_, len)| *len > 0);
    ranges.sort_unstable();
    ranges.iter().fold(0, |end, (at, len)| if *at <= end { end.max(at + len) } else { end })
}

/// Takes what has come, each packet at the worker that its client's end, by `client_of`, belongs to. `check` looks at each.
fn take_all<S: Source>(
    sources: &mut [S],
    client_of: fn(&Packet<'_>) -> SocketAddr,
    check: impl Fn(&Captured<'_>, &Packet<'_>),
    seen: &mut Seen,
) {
    let workers = u16::try_from(sources.len()).unwrap();
    for (worker, source) in (0..).zip(sources) {
        loop {
            let received = source
                .receive(&mut |captured| {
                    let packet = parse(captured.bytes, captured.original_len).unwrap();
                    let client = client_of(&packet);
                    assert_eq!(flow::split(client, workers), worker);
                    check(&captured, &packet);
                    let segments = seen.entry(client).or_default();
                    segments.push((packet.header.flags, packet.header.seq, packet.header.payload_len));
                })
                .unwrap();
            assert_eq!((received.malformed, received.overruns, received.refused), (0, 0, 0));
            if !received.full {
                break;
            }
        }
    }
}

/// Takes what clients have sent, all of it with a checksum or none.
fn take(sources: &mut [PacketSource], has_checksum: bool, seen: &mut Seen) {
    let check = |captured: &Captured<'_>, packet: &Packet<'_>| {
        assert_eq!((packet.dst.port(), captured.has_checksum), (80, has_checksum));
        assert_eq!(packet.payload.len(), packet.header.payload_len as usize);
    };
    take_all(sources, |packet| packet.src, check, seen);
}

/// These clients and no others were seen, each with one SYN, one FIN and all of its bytes.
fn expect_streams(seen: &Seen, mut clients: Vec<SocketAddr>, bytes: usize) {
    clients.sort();
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), clients);
    for (client, segments) in seen {
        let with = |flag: fn(&Flags) -> bool| segments.iter().filter(|(flags, ..)| flag(flags)).count();
        assert_eq!((with(|f| f.syn()), with(|f| f.fin())), (1, 1), "{client}");
        assert_eq!(streamed(segments) as usize, bytes, "{client}");
    }
}

/// A connection that sends so many bytes, reads as many, and closes. Returns the client's end.
fn converse(listener: &TcpListener, bytes: usize) -> SocketAddr {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut received = vec![0; bytes];
    std::thread::scope(|scope| {
        scope.spawn(|| server.read_exact(&mut received).unwrap());
        client.write_all(&vec![7; bytes]).unwrap();
    });
    let address = client.local_addr().unwrap();
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    address
}

#[test]
fn each_worker_gets_its_clients_packets_whole_and_once() {
    isolated("each_worker_gets_its_clients_packets_whole_and_once", || {
        const BYTES: usize = 300_000;
        let listeners = ["127.0.0.1:80", "[::1]:80"].map(|address| TcpListener::bind(address).unwrap());
        for workers in [1, 3] {
            let (mut sources, mut tap) = open(workers);
            converse(&listeners[0], 10);
            tap.open().unwrap();
            let mut clients = Vec::new();
            let mut seen = Seen::new();
            for _ in 0..10 {
                for listener in &listeners {
                    clients.push(converse(listener, BYTES));
                    // Within one host nobody computes any.
                    take(&mut sources, false, &mut seen);
                }
            }
            tap.close().unwrap();
            converse(&listeners[0], 10);
            take(&mut sources, false, &mut seen);

            expect_streams(&seen, clients, BYTES);
            for (client, segments) in &seen {
                let pure = |(flags, _, len): &&Segment| *len == 0 && !flags.syn() && !flags.fin();
                assert_eq!(segments.iter().filter(pure).count(), 1, "{client}: {segments:?}");
            }
            let counters = tap.counters().unwrap();
            assert_eq!(counters.dropped, 0);
            let segments: usize = seen.values().map(Vec::len).sum();
            assert!(counters.packets >= segments as u64, "{counters:?}, {segments} segments");
        }
    });
}

#[test]
fn own_packets_are_left_alone_and_what_finds_no_room_is_counted() {
    isolated("own_packets_are_left_alone_and_what_finds_no_room_is_counted", || {
        const PACKETS: u64 = 200_000;
        let (mut sources, mut tap) = open(1);
        tap.open().unwrap();
        let send = |mark: u32, count: u64| {
            let sender = RawSender::open(mark).unwrap();
            let (src, dst) = ("127.0.0.1:9".parse().unwrap(), "127.0.0.1:80".parse().unwrap());
            let header = TcpHeader::bare(Seq(1), Seq(0), Flags::RST, 0);
            let mut out = Outgoing::default();
            for _ in 0..count {
                let packet = out.finish(src, dst, &header).unwrap();
                let deadline = Instant::now() + DEADLINE;
                while sender.send(packet, dst).is_err() {
                    assert!(Instant::now() < deadline, "nothing can be sent");
                }
            }
        };
        send(OWN_MARK, 100);
        assert_eq!(tap.counters().unwrap().packets, 0);
        send(0, PACKETS);
        let mut seen = Seen::new();
        take(&mut sources, true, &mut seen);
        let counters = tap.counters().unwrap();
        let received: usize = seen.values().map(Vec::len).sum();
        assert_eq!(counters.packets, PACKETS);
        assert!(counters.dropped > 0, "a larger flood is needed");
        assert_eq!(received as u64 + counters.dropped, PACKETS);
    });
}

fn open_headers(workers: u16, targets: &[SocketAddr]) -> (Vec<HeaderSource>, PacketTap) {
    open_header_sources(ResponseOptions { targets, clients: &[] }, workers).unwrap()
}

/// Takes the headers of the responses that have come.
fn take_headers(sources: &mut [HeaderSource], seen: &mut Seen) {
    let check = |captured: &Captured<'_>, packet: &Packet<'_>| {
        assert_eq!(packet.src.port(), 80);
        assert!(captured.bytes.len() <= 128 && packet.payload.len() < 128);
    };
    take_all(sources, |packet| packet.dst, check, seen);
}

/// A connection on which so many bytes come from the server, which closes it. Returns the client's end.
fn download(listener: &TcpListener, bytes: usize) -> SocketAddr {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let address = client.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || server.write_all(&vec![7; bytes]).unwrap());
        assert_eq!(std::io::copy(&mut client, &mut std::io::sink()).unwrap(), bytes as u64);
    });
    address
}

#[test]
fn each_worker_gets_the_headers_of_its_responses_once() {
    isolated("each_worker_gets_the_headers_of_its_responses_once", || {
        const BYTES: usize = 1_000_000;
        let listeners = ["127.0.0.1:80", "[::1]:80"].map(|address| TcpListener::bind(address).unwrap());
        let targets = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        for workers in [1, 3] {
            let (mut sources, mut tap) = open_headers(workers, &targets[..1]);
            download(&listeners[0], 10);
            tap.open().unwrap();
            download(&listeners[1], 10);
            tap.replace(&ResponseOptions { targets: &targets, clients: &[] }).unwrap();
            let mut clients = Vec::new();
            let mut seen = Seen::new();
            for _ in 0..20 {
                for listener in &listeners {
                    clients.push(download(listener, BYTES));
                    take_headers(&mut sources, &mut seen);
                }
            }
            tap.close().unwrap();
            download(&listeners[0], 10);
            take_headers(&mut sources, &mut seen);

            expect_streams(&seen, clients, BYTES);
            let merged = seen.values().flatten().filter(|(.., len)| *len > 60_000).count();
            assert!(merged > 0, "no super-packet was among them");
            let segments: usize = seen.values().map(Vec::len).sum();
            let counters = tap.counters().unwrap();
            assert_eq!((counters.dropped, counters.packets), (0, segments as u64));
        }
    });
}

#[test]
fn responses_that_find_the_ring_full_are_counted_for_their_worker() {
    isolated("responses_that_find_the_ring_full_are_counted_for_their_worker", || {
        const PACKETS: u64 = 40_000;
        let target = "127.0.0.1:80".parse().unwrap();
        let (mut sources, mut tap) = open_headers(2, &[target]);
        tap.open().unwrap();
        let client: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let (sender, mut out) = (RawSender::open(OWN_MARK).unwrap(), Outgoing::default());
        let header = TcpHeader::bare(Seq(1), Seq(0), Flags::RST, 0);
        let mut send = |count: u64| {
            for _ in 0..count {
                let packet = out.finish(target, client, &header).unwrap();
                let deadline = Instant::now() + DEADLINE;
                while sender.send(packet, client).is_err() {
                    assert!(Instant::now() < deadline, "nothing can be sent");
                }
            }
        };
        let mut take = || {
            let mut seen = Seen::new();
            take_headers(&mut sources, &mut seen);
            seen.values().map(Vec::len).sum::<usize>() as u64
        };
        send(PACKETS);
        let received = take();
        let counters = tap.counters_of_workers().unwrap().to_vec();
        let (own, other) = (usize::from(flow::split(client, 2)), 1 - usize::from(flow::split(client, 2)));
        assert_eq!(counters[other].packets, 0);
        assert_eq!((counters[own].packets, counters[own].dropped), (PACKETS, PACKETS - received));
        assert!((16_384..PACKETS).contains(&received), "{received} received");

        // There is room again, all round the ring.
        for _ in 0..4 {
            send(7_000);
            assert_eq!(take(), 7_000);
        }
    });
}
