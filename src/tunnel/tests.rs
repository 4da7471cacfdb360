//! Both ends through a pipe of the test's own.

use std::time::Duration;

use proptest::prelude::*;

use super::codec::Output;
use super::frame::{Claim, HEADER_RECORD, MAGIC, Response};
use super::*;
use crate::wire::flow::SPLIT_SEED;
use crate::wire::{Flags, FlowId, FlowKey, Seq, TcpHeader, TcpOptions, Timestamps};

pub(super) const HELLO: Hello = Hello { instance: 77, claimer: 1, worker: 2, features: Features::NONE };

pub(super) fn welcome() -> Welcome {
    Welcome { workers: 4, worker: 2, split_seed: SPLIT_SEED, features: Features::NONE }
}

pub(super) fn key(client: &str, server: &str) -> FlowKey {
    FlowKey { client: client.parse().expect("address"), server: server.parse().expect("address") }
}

pub(super) fn header() -> TcpHeader {
    TcpHeader {
        seq: Seq(1),
        ack: Seq(u32::MAX),
        flags: Flags::SYN | Flags::ACK,
        window: 65000,
        options: TcpOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { value: 5, echo: 6 }),
        },
        payload_len: 70000,
    }
}

pub(super) fn carry(now: Time, from: &mut impl Endpoint, to: &mut impl Endpoint) {
    let bytes = from.pending().to_vec();
    from.sent(bytes.len());
    to.handle_bytes(now, &bytes);
}

pub(super) fn limits(output: usize) -> Limits {
    Limits { output, ..Limits::default() }
}

fn pair(output: usize) -> (Client, Server) {
    let mut client = Client::new(Time::ZERO, HELLO, limits(output));
    let mut server = Server::new(Time::ZERO, limits(output));
    carry(Time::ZERO, &mut client, &mut server);
    assert_eq!(server.poll_event(), Some(ServerEvent::Hello(HELLO)));
    server.welcome(Time::ZERO, welcome());
    carry(Time::ZERO, &mut server, &mut client);
    assert_eq!(client.poll_event(), Some(ClientEvent::Connected { workers: 4 }));
    assert_eq!((client.poll_event(), server.poll_event()), (None, None));
    (client, server)
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 1).expect("short");
    [&length.to_be_bytes()[..], &[kind], body].concat()
}

#[test]
fn claims_responses_and_refusals_cross() {
    let (mut client, mut server) = pair(1 << 20);
    let v4 = key("10.0.0.1:1000", "10.0.0.2:80");
    let v6 = key("[fd00::1]:1000", "[fd00::2]:80");
    client.claim(FlowId(1), v4);
    client.claim(FlowId(u64::MAX), v6);
    client.claim(FlowId(3), key("10.0.0.1:1", "[fd00::2]:80"));
    client.release(FlowId(1));
    carry(Time::ZERO, &mut client, &mut server);
    let events: Vec<_> = std::iter::from_fn(|| server.poll_event()).collect();
    assert_eq!(
        events,
        [
            ServerEvent::Claim { flow: FlowId(1), key: v4 },
            ServerEvent::Claim { flow: FlowId(u64::MAX), key: v6 },
            ServerEvent::Release(FlowId(1)),
        ]
    );

    let waited = Duration::from_micros(1234);
    assert!(server.response(FlowId(9), &header(), waited));
    server.refused(FlowId(3), ClaimRefusal::Taken);
    assert!(server.report(10, 2));
    carry(Time::ZERO, &mut server, &mut client);
    let events: Vec<_> = std::iter::from_fn(|| client.poll_event()).collect();
    assert_eq!(
        events,
        [
            ClientEvent::Response(Response { flow: FlowId(9), header: header(), waited }),
            ClientEvent::Refused { flow: FlowId(3), why: ClaimRefusal::Taken },
            ClientEvent::Stats(Stats { responses: 10, headers: 1, headers_dropped: 0, queue_dropped: 2 }),
        ]
    );
}

#[test]
fn headers_gather_in_one_frame_until_it_is_being_sent() {
    let (mut client, mut server) = pair(1 << 20);
    for flow in 0..3 {
        assert!(server.response(FlowId(flow), &header(), Duration::ZERO));
    }
    assert_eq!(server.pending().len(), 5 + 3 * HEADER_RECORD);
    let first: Vec<u8> = server.pending()[..3].to_vec();
    server.sent(3);
    client.handle_bytes(Time::ZERO, &first);
    assert!(server.response(FlowId(3), &header(), Duration::ZERO));
    assert_eq!(server.pending().len(), 2 + 3 * HEADER_RECORD + 5 + HEADER_RECORD);
    carry(Time::ZERO, &mut server, &mut client);
    assert_eq!(std::iter::from_fn(|| client.poll_event()).count(), 4);
}

/// Carries all there is, piece by piece, to an end that looks at each.
fn pour<E: Endpoint, T>(from: &mut impl Endpoint, to: &mut E, poll_event: fn(&mut E) -> Option<T>) {
    while from.has_pending() {
        let bytes: Vec<_> = from.pending().iter().copied().take(8 << 10).collect();
        from.sent(bytes.len());
        to.handle_bytes(Time::ZERO, &bytes);
        while poll_event(to).is_some() {}
    }
}

#[test]
fn a_ping_has_both_ends_give_back_what_a_burst_took() {
    let most = 128 << 10;
    for (mut client, mut server) in [pair(1 << 20), keyed_tests::pair()] {
        for flow in 0..8_000 {
            assert!(server.response(FlowId(flow), &header(), Duration::ZERO));
            client.claim(FlowId(flow), key("10.0.0.1:1000", "10.0.0.2:80"));
        }
        pour(&mut server, &mut client, Client::poll_event);
        pour(&mut client, &mut server, Server::poll_event);
        let kept = (client.memory(), server.memory());
        client.handle_timeout(Time::ZERO + Limits::default().ping);
        pour(&mut client, &mut server, Server::poll_event);
        let left = (client.memory(), server.memory());
        assert!(left.0 + most < kept.0 && left.1 + most < kept.1, "{kept:?}, then {left:?}");
    }
}

#[test]
fn a_row_of_segments_is_one_header_until_it_is_being_sent() {
    for (mut client, mut server) in [pair(1 << 20), keyed_tests::pair()] {
        let mut row = TcpHeader { flags: Flags::ACK, payload_len: 1_000, ..header() };
        let mut send = |server: &mut Server, flow: u64| {
            assert!(server.response(FlowId(flow), &row, Duration::ZERO));
            row.seq = row.end();
        };
        for flow in [1, 1, 1, 2, 1, 1] {
            send(&mut server, flow);
        }
        assert!(server.report(6, 0));
        send(&mut server, 1);
        let mut first = server.pending().to_vec();
        first.truncate(first.len() - 3);
        server.sent(first.len());
        client.handle_bytes(Time::ZERO, &first);
        send(&mut server, 1);
        send(&mut server, 1);
        assert_eq!(server.stats().headers, 9);
        while server.has_pending() {
            carry(Time::ZERO, &mut server, &mut client);
        }
        let mut rows = Vec::new();
        while let Some(event) = client.poll_event() {
            if let ClientEvent::Response(Response { flow, header, .. }) = event {
                rows.push((flow.0, header.payload_len));
            }
        }
        assert_eq!(rows, [(1, 3_000), (2, 1_000), (1, 2_000), (1, 1_000), (1, 2_000)]);
    }
}

#[test]
fn a_full_buffer_costs_the_server_headers_and_the_client_its_connection() {
    let (mut client, mut server) = pair(1000);
    let taken = (0..100).filter(|flow| server.response(FlowId(*flow), &header(), Duration::ZERO)).count();
    assert!(taken > 15 && server.pending().len() <= 1000);
    assert_eq!(server.stats().headers_dropped, 100 - server.stats().headers);
    // There is room left for the answer to a ping, and for counters.
    let now = client.poll_timeout().expect("pings");
    client.handle_timeout(now);
    carry(now, &mut client, &mut server);
    assert_eq!(server.poll_event(), None);
    assert!(server.report(1, 1) && server.is_connected());
    carry(Time::ZERO, &mut server, &mut client);
    assert_eq!(std::iter::from_fn(|| client.poll_event()).count(), taken + 1);
    assert!(server.response(FlowId(0), &header(), Duration::ZERO), "there is room again");

    for flow in 0..100 {
        client.claim(FlowId(flow), key("10.0.0.1:1000", "10.0.0.2:80"));
    }
    assert!(client.pending().len() <= 1000);
    assert_eq!(client.poll_event(), Some(ClientEvent::Closed(Closed::Overflow)));
    assert_eq!(client.poll_event(), None);
}

#[test]
fn other_versions_and_protocols_are_turned_away() {
    let mut server = Server::new(Time::ZERO, limits(1000));
    let mut hello = MAGIC.to_be_bytes().to_vec();
    hello.extend_from_slice(&9u16.to_be_bytes());
    server.handle_bytes(Time::ZERO, &frame(Kind::Hello.code(), &hello));
    assert_eq!(server.poll_event(), Some(ServerEvent::Closed(Closed::Version(9))));
    let mut client = Client::new(Time::ZERO, HELLO, limits(1000));
    carry(Time::ZERO, &mut server, &mut client);
    let refused = ClientEvent::Closed(Closed::Refused(Refuse::Version(VERSION)));
    assert_eq!(client.poll_event(), Some(refused));

    let cases: [(&[u8], Closed); 4] = [
        (b"GET / HTTP/1.1\r\n", Closed::Frame(FrameError::Length(u32::from_be_bytes(*b"GET ")))),
        (&[0; 14], Closed::Frame(FrameError::Length(0))),
        (&frame(1, &[0; 18]), Closed::Magic),
        (&frame(Kind::Claims.code(), &[1]), Closed::Unexpected(Kind::Claims)),
    ];
    for (bytes, why) in cases {
        let mut server = Server::new(Time::ZERO, limits(1000));
        server.handle_bytes(Time::ZERO, bytes);
        assert_eq!(server.poll_event(), Some(ServerEvent::Closed(why)));
        assert_eq!(server.pending(), b"");
    }
}

#[test]
fn a_client_checks_who_answers() {
    let cases = [
        (Welcome { split_seed: 1, ..welcome() }, Closed::SplitSeed(1)),
        (Welcome { worker: 1, ..welcome() }, Closed::Worker(1)),
        (Welcome { workers: 2, ..welcome() }, Closed::Worker(2)),
    ];
    for (answer, why) in cases {
        let mut client = Client::new(Time::ZERO, HELLO, limits(1000));
        client.handle_bytes(Time::ZERO, &frame(Kind::Welcome.code(), &answer.bytes()));
        assert_eq!(client.poll_event(), Some(ClientEvent::Closed(why)));
    }
}

#[test]
fn a_hurry_crosses() {
    let (mut client, mut server) = pair(1000);
    client.hurry(Duration::from_millis(1500));
    carry(Time::ZERO, &mut client, &mut server);
    assert_eq!(server.poll_event(), Some(ServerEvent::Hurry(Duration::from_millis(1500))));
    let mut stranger = Client::new(Time::ZERO, HELLO, limits(1000));
    let hello = stranger.pending().to_vec();
    stranger.hurry(Duration::from_secs(1));
    assert_eq!(stranger.pending(), hello, "nothing but the hello before the welcome");
}

#[test]
fn unknown_frames_and_longer_ones_are_passed_over() {
    let (mut client, mut server) = pair(1000);
    client.handle_bytes(Time::ZERO, &frame(200, b"from the future"));
    client.handle_bytes(Time::ZERO, &frame(Kind::Stats.code(), &[1; 50]));
    assert!(matches!(client.poll_event(), Some(ClientEvent::Stats(_))));
    assert_eq!(client.unknown_frames(), 1);
    server.handle_bytes(Time::ZERO, &frame(Kind::Claims.code(), &[]));
    server.handle_bytes(Time::ZERO, &frame(Kind::Ping.code(), &[7; 8]));
    assert_eq!(server.poll_event(), None);
    assert_eq!(server.pending(), frame(Kind::Pong.code(), &[7; 8]));
}

#[test]
fn lies_end_the_connection_by_name() {
    let cut = [0u8; HEADER_RECORD + 1];
    let family = [[0u8; 8].as_slice(), &[5; 40]].concat();
    let cases: [(Vec<u8>, Closed); 3] = [
        (vec![0, 1, 0, 1, 7], Closed::Frame(FrameError::Length(65537))),
        (frame(Kind::Claims.code(), &family), Closed::Frame(FrameError::Body(Kind::Claims))),
        (frame(Kind::Headers.code(), &cut), Closed::Unexpected(Kind::Headers)),
    ];
    for (bytes, why) in cases {
        let (_, mut server) = pair(1000);
        server.handle_bytes(Time::ZERO, &bytes);
        assert_eq!(server.poll_event(), Some(ServerEvent::Closed(why)));
    }
    let (mut client, _) = pair(1000);
    client.handle_bytes(Time::ZERO, &frame(Kind::Headers.code(), &cut));
    assert!(matches!(client.poll_event(), Some(ClientEvent::Response(_))));
    let why = Closed::Frame(FrameError::Body(Kind::Headers));
    assert_eq!(client.poll_event(), Some(ClientEvent::Closed(why)));
}

#[test]
fn a_talkative_stranger_is_bounded_before_the_answer() {
    let mut server = Server::new(Time::ZERO, limits(1000));
    let mut client = Client::new(Time::ZERO, HELLO, limits(1000));
    carry(Time::ZERO, &mut client, &mut server);
    assert!(matches!(server.poll_event(), Some(ServerEvent::Hello(_))));
    server.handle_bytes(Time::ZERO, &[1; 1000]);
    assert!(matches!(server.poll_event(), Some(ServerEvent::Closed(Closed::Unexpected(_)))));
}

#[test]
fn deadlines() {
    let second = Duration::from_secs(1);
    let mut server = Server::new(Time::ZERO, limits(1000));
    assert_eq!(server.poll_timeout(), Some(Time::ZERO + 5 * second));
    server.handle_timeout(Time::ZERO + 4 * second);
    assert_eq!(server.poll_event(), None);
    server.handle_timeout(Time::ZERO + 5 * second);
    assert_eq!(server.poll_event(), Some(ServerEvent::Closed(Closed::HandshakeTimeout)));

    let (mut client, mut server) = pair(1000);
    for n in 1..=4 {
        let now = client.poll_timeout().expect("pings");
        assert_eq!(now, Time::ZERO + 5 * n * second);
        client.handle_timeout(now);
        carry(now, &mut client, &mut server);
        assert_eq!(server.poll_event(), None);
        carry(now, &mut server, &mut client);
        assert_eq!(client.poll_event(), None);
    }
    client.handle_timeout(Time::ZERO + 34 * second);
    assert_eq!(client.poll_event(), None, "it pings again");
    client.handle_timeout(Time::ZERO + 35 * second);
    assert_eq!(client.poll_timeout(), Some(Time::ZERO), "there is an event");
    assert_eq!(client.poll_event(), Some(ClientEvent::Closed(Closed::Silent)));
    assert_eq!((client.poll_event(), client.poll_timeout()), (None, None));
    server.handle_timeout(Time::ZERO + 35 * second);
    assert_eq!(server.poll_event(), Some(ServerEvent::Closed(Closed::Silent)));
}

fn any_header() -> impl Strategy<Value = TcpHeader> {
    let options =
        (any::<Option<u16>>(), proptest::option::of(0u8..15), any::<bool>(), any::<Option<(u32, u32)>>())
            .prop_map(|(mss, window_scale, sack_permitted, timestamps)| TcpOptions {
                mss,
                window_scale,
                sack_permitted,
                timestamps: timestamps.map(|(value, echo)| Timestamps { value, echo }),
            });
    (any::<(u32, u32, u8, u16, u32)>(), options).prop_map(
        |((seq, ack, flags, window, payload_len), options)| TcpHeader {
            seq: Seq(seq),
            ack: Seq(ack),
            flags: Flags::from_bits(flags),
            window,
            options,
            payload_len,
        },
    )
}

fn any_key() -> impl Strategy<Value = FlowKey> {
    prop_oneof![
        any::<([u8; 4], u16, [u8; 4], u16)>()
            .prop_map(|(a, p, b, q)| FlowKey { client: (a, p).into(), server: (b, q).into() }),
        any::<([u8; 16], u16, [u8; 16], u16)>()
            .prop_map(|(a, p, b, q)| FlowKey { client: (a, p).into(), server: (b, q).into() }),
    ]
}

proptest! {
    #[test]
    fn responses_survive_any_chunking(
        responses in proptest::collection::vec((any::<u64>(), any_header(), any::<u32>()), 0..1000),
        chunks in proptest::collection::vec(1usize..5000, 1..20),
    ) {
        let (mut client, mut server) = pair(1 << 20);
        let expected: Vec<_> = responses
            .into_iter()
            .map(|(flow, header, waited)| Response {
                flow: FlowId(flow), header, waited: Duration::from_micros(waited.into()),
            })
            .collect();
        for response in &expected {
            prop_assert!(server.response(response.flow, &response.header, response.waited));
        }
        let mut seen = Vec::new();
        for chunk in chunks.iter().cycle() {
            let n = server.pending().len().min(*chunk);
            if n == 0 { break; }
            let bytes = server.pending()[..n].to_vec();
            server.sent(n);
            client.handle_bytes(Time::ZERO, &bytes);
            while let Some(event) = client.poll_event() {
                if let ClientEvent::Response(response) = event { seen.push(response); }
            }
        }
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn claims_survive(claims in proptest::collection::vec((any::<u64>(), any_key()), 0..300)) {
        let (mut client, mut server) = pair(1 << 20);
        for (flow, key) in &claims {
            client.claim(FlowId(*flow), *key);
        }
        carry(Time::ZERO, &mut client, &mut server);
        for (flow, key) in claims {
            prop_assert_eq!(server.poll_event(), Some(ServerEvent::Claim { flow: FlowId(flow), key }));
        }
        prop_assert_eq!(server.poll_event(), None);
    }

    #[test]
    fn nothing_panics(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
        connected: bool,
    ) {
        let (mut client, mut server) = pair(1000);
        if !connected {
            client = Client::new(Time::ZERO, HELLO, limits(1000));
            server = Server::new(Time::ZERO, limits(1000));
        }
        for chunk in chunks {
            client.handle_bytes(Time::ZERO, &chunk);
            server.handle_bytes(Time::ZERO, &chunk);
            while client.poll_event().is_some() {}
            while server.poll_event().is_some() {}
        }
    }

    #[test]
    fn nothing_panics_close_to_valid(
        frames in proptest::collection::vec((0u8..16, proptest::collection::vec(any::<u8>(), 0..100)), 0..20),
    ) {
        let (mut client, mut server) = pair(1000);
        for (kind, body) in frames {
            client.handle_bytes(Time::ZERO, &frame(kind, &body));
            server.handle_bytes(Time::ZERO, &frame(kind, &body));
            while client.poll_event().is_some() {}
            while server.poll_event().is_some() {}
        }
    }

    #[test]
    fn output_is_the_frames_in_order(
        steps in proptest::collection::vec((any::<bool>(), 0usize..60), 0..200),
    ) {
        let mut output = Output::new(2000);
        let mut client = pair(1000).0;
        let (mut put, mut seen) = (0, 0);
        for (record, n) in steps {
            if record {
                let record = Response { flow: FlowId(put), header: header(), waited: Duration::ZERO };
                put += u64::from(output.record(Kind::Headers, record.bytes().as_flattened()));
            } else {
                let n = n.min(output.pending().len());
                client.handle_bytes(Time::ZERO, &output.pending()[..n]);
                output.sent(n);
            }
        }
        client.handle_bytes(Time::ZERO, output.pending());
        while let Some(event) = client.poll_event() {
            if let ClientEvent::Response(response) = event {
                prop_assert_eq!(response.flow, FlowId(seen));
                seen += 1;
            }
        }
        prop_assert_eq!(seen, put);
    }
}

#[test]
fn a_claim_between_families_has_no_bytes() {
    let claim = Claim { flow: FlowId(1), key: key("10.0.0.1:1", "[fd00::2]:80") };
    assert_eq!(claim.bytes(), None);
}
