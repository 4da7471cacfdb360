//! Both ends against the bytes of the C tools, and against each other.

use std::time::Duration;

use super::codec::{self, Fault, MESSAGE, RECORD};
use super::{Client, Server, ServerEvent};
use crate::tunnel::{Claimer, ClientEvent, Closed, Endpoint, Ephemeral, Limits, SECRET_BYTES, Secret};
use crate::wire::{Flags, FlowId, FlowKey, Outgoing, Reject, Seq, TcpHeader, TcpOptions, Time, Timestamps};

/// What a C tcpcopy sends first.
const OPENING: [u8; MESSAGE] = [0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0];
/// It claims 10.9.0.1:4660 to 10.0.0.2:80.
const CLAIM: [u8; MESSAGE] = [10, 9, 0, 1, 0x12, 0x34, 0, 1, 10, 0, 0, 2, 0, 80];

fn key() -> FlowKey {
    FlowKey { client: ([10, 9, 0, 1], 0x1234).into(), server: ([10, 0, 0, 2], 80).into() }
}

fn header() -> TcpHeader {
    TcpHeader {
        seq: Seq(0x0102_0304),
        ack: Seq(0x0506_0708),
        flags: Flags::SYN | Flags::ACK,
        window: 0x090a,
        options: TcpOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { value: 3, echo: 4 }),
        },
        payload_len: 0x0b0c,
    }
}

fn record() -> [u8; RECORD] {
    codec::record(&key(), &header(), &mut Outgoing::default()).expect("IPv4")
}

/// A frame of these records.
fn frame(records: &[[u8; RECORD]]) -> Vec<u8> {
    let count = u16::try_from(records.len()).expect("few");
    [&count.to_be_bytes()[..], records.as_flattened()].concat()
}

fn events(server: &mut Server) -> Vec<ServerEvent> {
    std::iter::from_fn(|| server.poll_event()).collect()
}

fn server() -> Server {
    let mut server = Server::new(Time::ZERO, Limits { output: 3 * RECORD, ..Limits::default() });
    server.handle_bytes(Time::ZERO, &OPENING);
    assert_eq!(events(&mut server), [ServerEvent::Greeted]);
    server
}

fn connected() -> Client {
    let mut client = Client::new(Limits { output: 3 * MESSAGE, ..Limits::default() });
    assert_eq!(client.poll_event(), Some(ClientEvent::Connected { workers: 1 }));
    client
}

fn heard(bytes: &[u8]) -> Vec<ClientEvent> {
    let mut client = connected();
    client.handle_bytes(Time::ZERO, bytes);
    std::iter::from_fn(|| client.poll_event()).collect()
}

#[test]
fn a_claim_is_what_the_c_tools_say() {
    let mut client = Client::new(Limits::default());
    client.claim(FlowId(1), key());
    assert_eq!(client.pending(), OPENING, "all live claims are made once it is connected");
    assert!(!client.is_connected());
    assert_eq!(client.poll_event(), Some(ClientEvent::Connected { workers: 1 }));
    client.claim(FlowId(1), key());
    client.release(FlowId(1));
    client.hurry(Duration::from_secs(1));
    assert_eq!(client.pending(), [OPENING, CLAIM].concat());
    client.sent(2 * MESSAGE);
    assert!(!client.has_pending() && client.poll_timeout().is_none());
}

#[test]
fn claims_that_are_not_read_end_the_connection() {
    let mut client = connected();
    for _ in 0..3 {
        client.claim(FlowId(1), key());
    }
    assert_eq!(client.poll_timeout(), Some(Time::ZERO));
    assert_eq!(client.poll_event(), Some(ClientEvent::Closed(Closed::Overflow)));
    assert!(client.poll_event().is_none() && !client.is_connected());
}

#[test]
fn messages_come_in_pieces() {
    let stream = [&OPENING[..], &CLAIM, &[0; 6], &[0, 2, 1, 2, 3, 4, 5, 6], &CLAIM].concat();
    for size in 1..=stream.len() {
        let mut server = Server::new(Time::ZERO, Limits::default());
        let mut seen = Vec::new();
        for piece in stream.chunks(size) {
            server.handle_bytes(Time::ZERO, piece);
            seen.extend(events(&mut server));
        }
        let claim = ServerEvent::Claim(key());
        assert_eq!(seen, [ServerEvent::Greeted, claim, ServerEvent::Ignored(2), claim], "{size}");
    }
}

#[test]
fn who_does_not_begin_as_a_c_tcpcopy_is_turned_away() {
    let mut other_version = OPENING;
    other_version[7] = 5;
    let http = *b"GET / HTTP/1.1";
    let cases = [
        (other_version, Fault::Version(5)),
        (CLAIM, Fault::Opening),
        (http, Fault::Opening),
        ([0; MESSAGE], Fault::Version(0)),
    ];
    for (bytes, fault) in cases {
        let mut server = Server::new(Time::ZERO, Limits::default());
        server.handle_bytes(Time::ZERO, &bytes);
        server.handle_bytes(Time::ZERO, &CLAIM);
        assert_eq!(events(&mut server), [ServerEvent::Closed(Closed::Legacy(fault))], "{bytes:?}");
        assert!(!server.is_connected() && !server.response(&key(), &header()));
    }
}

#[test]
fn only_the_first_message_has_a_deadline() {
    let late = Time::ZERO + Limits::default().handshake;
    let mut silent = Server::new(Time::ZERO, Limits::default());
    silent.handle_bytes(Time::ZERO, &OPENING[..13]);
    assert_eq!(silent.poll_timeout(), Some(late));
    silent.handle_timeout(late);
    assert_eq!(events(&mut silent), [ServerEvent::Closed(Closed::HandshakeTimeout)]);
    let mut server = server();
    server.handle_timeout(late + Duration::from_secs(86_400));
    assert!(server.poll_timeout().is_none() && server.is_connected());
}

#[test]
fn a_record_is_the_headers_and_zeros() {
    let record = record();
    assert_eq!(record[..4], [0x45, 0, 0x0b, 0x4c], "the total length is that of the packet");
    assert_eq!(record[12..20], [10, 0, 0, 2, 10, 9, 0, 1], "from the target to the client");
    assert_eq!(record[20..32], [0, 80, 0x12, 0x34, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(record[32..36], [0xb0, 0x12, 0x09, 0x0a], "44 bytes of TCP header, SYN and ACK, window");
    let bare = TcpHeader { options: TcpOptions::default(), ..header() };
    let bare = codec::record(&key(), &bare, &mut Outgoing::default()).expect("IPv4");
    assert_eq!((bare[32], &bare[40..]), (0x50, &[0; 24][..]));
}

#[test]
fn what_one_end_sends_the_other_one_hears() {
    let mut server = Server::new(Time::ZERO, Limits::default());
    let mut client = Client::new(Limits::default());
    server.handle_bytes(Time::ZERO, client.pending());
    assert_eq!(events(&mut server), [ServerEvent::Greeted]);
    assert_eq!(client.poll_event(), Some(ClientEvent::Connected { workers: 1 }));
    for n in 0..40 {
        assert!(server.response(&key(), &TcpHeader { payload_len: n, ..header() }));
        if n == 20 {
            let _ = server.pending();
        }
    }
    let bytes = server.pending().to_vec();
    // Of 21 records: 16 and 5, which are fixed; of 19: 16 and 3.
    assert_eq!(bytes.len(), 40 * RECORD + 4 * 2);
    client.handle_bytes(Time::ZERO, &bytes);
    for n in 0..40 {
        let header = TcpHeader { payload_len: n, ..header() };
        assert_eq!(client.poll_event(), Some(ClientEvent::Unnamed { key: key(), header }));
    }
    assert!(client.poll_event().is_none());
}

#[test]
fn what_is_not_read_is_dropped_beyond_the_limit() {
    let mut server = server();
    let sent = (0..5).map(|_| server.response(&key(), &header()));
    assert_eq!(sent.collect::<Vec<_>>(), [true, true, true, false, false]);
    let bytes = server.pending().len();
    server.sent(bytes);
    assert!(server.response(&key(), &header()) && server.memory() < 1 << 20);
    let long = TcpHeader { payload_len: 65_535, ..header() };
    assert!(!server.response(&key(), &long), "no IPv4 packet is as long");
}

#[test]
fn headers_longer_than_a_record_has_room_for_are_read_as_far_as_they_are_there() {
    let options = TcpOptions { timestamps: Some(Timestamps { value: 3, echo: 4 }), ..TcpOptions::default() };
    let expected = TcpHeader { options, payload_len: 100, ..header() };
    let mut long = codec::record(&key(), &expected, &mut Outgoing::default()).expect("IPv4");
    // 8 bytes of IP options and 16 of TCP options are left out: a list of SACK blocks begins and does not end.
    long[0] = 0x47;
    long[32] = 0xf0;
    long[52..56].copy_from_slice(&[1, 1, 5, 26]);
    long[2..4].copy_from_slice(&u16::to_be_bytes(28 + 60 + 100));
    assert_eq!(heard(&frame(&[long])), [ClientEvent::Unnamed { key: key(), header: expected }]);
}

#[test]
fn a_packet_that_is_not_to_be_used_is_told_and_the_next_one_read() {
    let (mut fragment, mut merged, mut short) = (record(), record(), record());
    fragment[6] = 0x20;
    merged[2..4].fill(0);
    short[0] = 0x4f;
    short[2..4].copy_from_slice(&[0, 39]);
    let good = ClientEvent::Unnamed { key: key(), header: header() };
    let expected = [Reject::Fragment, Reject::IpLength, Reject::IpLength].map(ClientEvent::Unreadable);
    let frame = frame(&[fragment, merged, short, record()]);
    assert_eq!(heard(&frame), [&expected[..], &[good]].concat());
}

#[test]
fn what_no_c_intercept_says_ends_the_connection() {
    let closed = |fault| [ClientEvent::Closed(Closed::Legacy(fault))];
    assert_eq!(heard(&[0, 17]), closed(Fault::Records(17)));
    assert_eq!(heard(&[&[0, 0, 0, 1][..], &[0; RECORD]].concat()), closed(Fault::Record));
    let mut six = record();
    six[0] = 0x65;
    assert_eq!(heard(&frame(&[six, record()])), closed(Fault::Record));
}

#[test]
fn a_c_tcpcopy_is_known_for_what_it_is_where_it_is_not_expected() {
    let plain = crate::tunnel::Server::new(Time::ZERO, Limits::default());
    let keys = [Secret::new([1; SECRET_BYTES])].into();
    let keyed =
        crate::tunnel::Server::keyed(Time::ZERO, Limits::default(), keys, Ephemeral::new([2; SECRET_BYTES]));
    for mut server in [plain, keyed] {
        server.handle_bytes(Time::ZERO, &OPENING);
        let closed = crate::tunnel::ServerEvent::Closed(Closed::CTool);
        assert_eq!(server.poll_event(), Some(closed));
        assert!(!server.has_pending(), "it would not understand");
    }
}
