//! Both ends with a key, and with what strangers make of it.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::codec::FrameError;
use super::frame::{MAGIC, Refuse};
use super::noise::{ANSWER, MAX_PLAIN, OPENING, OVERHEAD, REKEY_RECORDS};
use super::tests::{HELLO, carry, header, key, limits, welcome};
use super::*;
use crate::wire::FlowId;

fn secret(n: u8) -> Secret {
    Secret::new([n; SECRET_BYTES])
}

fn ephemeral(n: u8) -> Ephemeral {
    Ephemeral::new([n; SECRET_BYTES])
}

fn client(secret: &Secret) -> Client {
    Client::keyed(Time::ZERO, HELLO, limits(1 << 20), secret, ephemeral(101))
}

fn server(keys: &[u8]) -> Server {
    server_with(keys, 102)
}

fn server_with(keys: &[u8], random: u8) -> Server {
    let keys: Arc<[Secret]> = keys.iter().map(|n| secret(*n)).collect();
    Server::keyed(Time::ZERO, limits(1 << 20), keys, ephemeral(random))
}

fn take(from: &mut impl Endpoint) -> Vec<u8> {
    let mut all = Vec::new();
    while from.has_pending() {
        let bytes = from.pending().to_vec();
        from.sent(bytes.len());
        all.extend(bytes);
    }
    all
}

/// Both ends up to the welcome, and all that the client sent.
fn connected() -> (Client, Server, Vec<u8>) {
    let (mut client, mut server, sent) = greeted(HELLO);
    server.welcome(Time::ZERO, welcome());
    carry(Time::ZERO, &mut server, &mut client);
    assert_eq!(client.poll_event(), Some(ClientEvent::Connected { workers: 4 }));
    (client, server, sent)
}

/// Both ends up to the client's hello, and all that the client sent.
fn greeted(greeting: Hello) -> (Client, Server, Vec<u8>) {
    let mut client = Client::keyed(Time::ZERO, greeting, limits(1 << 20), &secret(1), ephemeral(101));
    let mut server = server(&[9, 1]);
    let opening = take(&mut client);
    assert_eq!(opening.len(), OPENING);
    server.handle_bytes(Time::ZERO, &opening);
    assert_eq!((server.poll_event(), server.key()), (None, Some(secret(1).id())));
    let answer = take(&mut server);
    assert_eq!(answer.len(), ANSWER);
    client.handle_bytes(Time::ZERO, &answer);
    assert_eq!(client.poll_event(), None);
    let hello = take(&mut client);
    server.handle_bytes(Time::ZERO, &hello);
    assert_eq!(server.poll_event(), Some(ServerEvent::Hello(greeting)));
    (client, server, [opening, hello].concat())
}

#[test]
fn what_follows_the_welcome_may_come_in_the_same_record() {
    for targets in 0..200_u16 {
        let features = Features::HOST_STATE;
        let (mut client, mut server, _) = greeted(Hello { features, ..HELLO });
        let target = |n| std::net::SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), n);
        let scope = Scope { targets: (0..targets).map(target).collect(), clients: None };
        server.welcome(Time::ZERO, Welcome { features, ..welcome() });
        server.host(None, Some(&scope));
        client.handle_bytes(Time::ZERO, &take(&mut server));
        let events: Vec<_> = std::iter::from_fn(|| client.poll_event()).collect();
        assert_eq!(events, [ClientEvent::Connected { workers: 4 }, ClientEvent::Host], "{targets} targets");
        assert_eq!(client.scope(), Some(&scope));
    }
}

/// Both ends, connected.
pub(super) fn pair() -> (Client, Server) {
    let (client, server, _) = connected();
    (client, server)
}

fn end(client: &mut Client) -> Option<ClientEvent> {
    let event = client.poll_event();
    assert_eq!(client.poll_event(), None);
    event
}

#[test]
fn claims_and_responses_cross_sealed() {
    let (mut client, mut server, _) = connected();
    let flow = key("10.0.0.1:1000", "10.0.0.2:80");
    client.claim(FlowId(7), flow);
    let sealed = take(&mut client);
    let plain = [10, 0, 0, 1];
    assert!(!sealed.windows(4).any(|window| window == plain), "an address is in the clear");
    server.handle_bytes(Time::ZERO, &sealed);
    assert_eq!(server.poll_event(), Some(ServerEvent::Claim { flow: FlowId(7), key: flow }));
    assert!(server.response(FlowId(7), &header(), Duration::ZERO));
    carry(Time::ZERO, &mut server, &mut client);
    assert!(matches!(client.poll_event(), Some(ClientEvent::Response(_))));
}

#[test]
fn what_gathers_goes_in_few_records() {
    let (mut client, mut server, _) = connected();
    for flow in 0..2000 {
        assert!(server.response(FlowId(flow), &header(), Duration::ZERO));
    }
    let sealed = take(&mut server);
    let plain = 2000 * frame::HEADER_RECORD;
    assert!(sealed.len() < plain + (plain / MAX_PLAIN + 2) * (OVERHEAD + 10), "{} bytes", sealed.len());
    client.handle_bytes(Time::ZERO, &sealed);
    assert_eq!(std::iter::from_fn(|| client.poll_event()).count(), 2000);
}

#[test]
fn a_wrong_key_is_named_to_both() {
    let (mut client, mut server) = (client(&secret(2)), server(&[1, 3]));
    carry(Time::ZERO, &mut client, &mut server);
    let id = secret(2).id();
    assert_eq!(server.poll_event(), Some(ServerEvent::Closed(Closed::UnknownKey(id))));
    carry(Time::ZERO, &mut server, &mut client);
    assert_eq!(end(&mut client), Some(ClientEvent::Closed(Closed::Refused(Refuse::UnknownKey))));
    assert_eq!(take(&mut client), b"", "nothing was said without the key");
}

#[test]
fn an_id_without_its_key_is_not_enough() {
    let mut opening = take(&mut client(&secret(2)));
    opening[6..10].copy_from_slice(&secret(1).id().0);
    let mut server = server(&[1]);
    server.handle_bytes(Time::ZERO, &opening);
    assert_eq!(server.poll_event(), Some(ServerEvent::Closed(Closed::UnknownKey(secret(1).id()))));
}

#[test]
fn a_recording_of_a_client_makes_nothing_happen() {
    let (_, _, recording) = connected();
    let mut again = server_with(&[1], 103);
    again.handle_bytes(Time::ZERO, &recording);
    assert_eq!(again.poll_event(), Some(ServerEvent::Closed(Closed::Forged)));
    assert_eq!(again.poll_event(), None);
}

#[test]
fn a_recording_of_a_server_makes_nothing_happen() {
    let mut server = server(&[1]);
    carry(Time::ZERO, &mut client(&secret(1)), &mut server);
    let answer = take(&mut server);
    let mut other = Client::keyed(Time::ZERO, HELLO, limits(1000), &secret(1), ephemeral(104));
    take(&mut other);
    other.handle_bytes(Time::ZERO, &answer);
    let why = Closed::NotProven(secret(1).id());
    assert_eq!((end(&mut other), take(&mut other)), (Some(ClientEvent::Closed(why)), Vec::new()));
}

#[test]
fn every_byte_of_the_handshake_counts() {
    for at in 0..OPENING {
        let (mut client, mut server) = (client(&secret(1)), server(&[1]));
        let mut opening = take(&mut client);
        opening[at] ^= 1;
        server.handle_bytes(Time::ZERO, &opening);
        assert!(matches!(server.poll_event(), Some(ServerEvent::Closed(_))), "byte {at} of the opening");
    }
    for at in 0..ANSWER {
        let (mut client, mut server) = (client(&secret(1)), server(&[1]));
        carry(Time::ZERO, &mut client, &mut server);
        let mut answer = take(&mut server);
        answer[at] ^= 1;
        client.handle_bytes(Time::ZERO, &answer);
        let now = client.poll_timeout().expect("a deadline");
        client.handle_timeout(now);
        assert!(matches!(end(&mut client), Some(ClientEvent::Closed(_))), "byte {at} of the answer");
        assert_eq!(take(&mut client), b"", "byte {at}: nothing more was said");
    }
}

#[test]
fn a_handshake_cut_short_waits_until_its_deadline() {
    for length in [0, 3, 5, OPENING - 1] {
        let mut server = server(&[1]);
        server.handle_bytes(Time::ZERO, &take(&mut client(&secret(1)))[..length]);
        assert_eq!((server.poll_event(), server.has_pending()), (None, false), "{length} bytes");
        server.handle_timeout(Time::ZERO + Duration::from_secs(5));
        assert_eq!(server.poll_event(), Some(ServerEvent::Closed(Closed::HandshakeTimeout)));
    }
}

#[test]
fn another_version_is_named_to_both() {
    let (mut client, mut server) = (client(&secret(1)), server(&[1]));
    let mut opening = take(&mut client);
    opening[5] = 9;
    server.handle_bytes(Time::ZERO, &opening);
    assert_eq!(server.poll_event(), Some(ServerEvent::Closed(Closed::Version(9))));
    carry(Time::ZERO, &mut server, &mut client);
    let why = Closed::Refused(Refuse::Version(VERSION));
    assert_eq!(end(&mut client), Some(ClientEvent::Closed(why)));
}

#[test]
fn who_has_no_key_and_who_wants_one_tell_each_other() {
    let mut plain = Client::new(Time::ZERO, HELLO, limits(1000));
    let mut keyed = server(&[1]);
    carry(Time::ZERO, &mut plain, &mut keyed);
    assert_eq!(keyed.poll_event(), Some(ServerEvent::Closed(Closed::NoKey)));
    carry(Time::ZERO, &mut keyed, &mut plain);
    assert_eq!(end(&mut plain), Some(ClientEvent::Closed(Closed::Refused(Refuse::KeyWanted))));

    let mut keyed = client(&secret(1));
    let mut plain = Server::new(Time::ZERO, limits(1000));
    carry(Time::ZERO, &mut keyed, &mut plain);
    assert_eq!(plain.poll_event(), Some(ServerEvent::Closed(Closed::KeyOffered)));
    carry(Time::ZERO, &mut plain, &mut keyed);
    assert_eq!(end(&mut keyed), Some(ClientEvent::Closed(Closed::Refused(Refuse::NoKeys))));

    let mut keyed = server(&[1]);
    keyed.handle_bytes(Time::ZERO, b"GET / HTTP/1.1\r\n");
    assert_eq!(keyed.poll_event(), Some(ServerEvent::Closed(Closed::Magic)));
    assert!(!keyed.has_pending());
}

#[test]
fn a_welcome_in_the_clear_is_not_believed() {
    let mut downgraded = client(&secret(1));
    take(&mut downgraded);
    let body = welcome().bytes();
    let length = u32::try_from(body.len() + 1).expect("short");
    let frame = [&length.to_be_bytes()[..], &[Kind::Welcome.code()], &body].concat();
    downgraded.handle_bytes(Time::ZERO, &frame);
    assert_eq!(end(&mut downgraded), Some(ClientEvent::Closed(Closed::Unexpected(Kind::Welcome))));
    assert_eq!(take(&mut downgraded), b"");
    // Its magic makes the opening none of the frames, and the frames none of the openings.
    assert_ne!(MAGIC, noise::MAGIC);
}

/// Three records, each by itself.
fn three_records(server: &mut Server) -> Vec<Vec<u8>> {
    (0..3)
        .map(|flow| {
            assert!(server.response(FlowId(flow), &header(), Duration::ZERO));
            take(server)
        })
        .collect()
}

#[test]
fn records_cannot_be_changed_moved_repeated_or_left_out() {
    let changes: [fn(&mut Vec<Vec<u8>>); 6] = [
        |records| records[1][10] ^= 1,
        |records| *records[1].last_mut().expect("a tag") ^= 0x80,
        |records| records.swap(0, 1),
        |records| records.insert(1, records[0].clone()),
        |records| drop(records.remove(1)),
        |records| records[1][1] -= 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let (mut client, mut server, _) = connected();
        let mut records = three_records(&mut server);
        change(&mut records);
        client.handle_bytes(Time::ZERO, &records.concat());
        let events: Vec<_> = std::iter::from_fn(|| client.poll_event()).collect();
        assert_eq!(events.last(), Some(&ClientEvent::Closed(Closed::Forged)), "change {number}: {events:?}");
    }
}

#[test]
fn a_record_cut_short_says_nothing() {
    let (mut client, mut server, _) = connected();
    let records = three_records(&mut server).concat();
    client.handle_bytes(Time::ZERO, &records[..records.len() - 1]);
    assert_eq!(std::iter::from_fn(|| client.poll_event()).count(), 2);
    client.handle_bytes(Time::ZERO, &records[records.len() - 1..]);
    assert!(matches!(client.poll_event(), Some(ClientEvent::Response(_))));
}

#[test]
fn both_directions_get_new_keys() {
    let (mut client, mut server, _) = connected();
    let claim = key("10.0.0.1:1000", "10.0.0.2:80");
    for n in 0..u64::from(2 * REKEY_RECORDS + 10) {
        client.claim(FlowId(n), claim);
        carry(Time::ZERO, &mut client, &mut server);
        assert!(matches!(server.poll_event(), Some(ServerEvent::Claim { .. })), "claim {n}");
        assert!(server.response(FlowId(n), &header(), Duration::ZERO));
        carry(Time::ZERO, &mut server, &mut client);
        assert!(matches!(client.poll_event(), Some(ClientEvent::Response(_))), "response {n}");
    }
}

#[test]
fn a_talkative_stranger_is_bounded() {
    let mut server = server(&[1]);
    let mut opening = take(&mut client(&secret(1)));
    opening.extend([0xff; 2]);
    server.handle_bytes(Time::ZERO, &opening);
    assert_eq!(
        server.poll_event(),
        Some(ServerEvent::Closed(Closed::Forged)),
        "no long record before the hello"
    );
}

proptest! {
    // Each case is a handshake or more.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_chunking_will_do(
        count in 1u64..2000,
        chunks in proptest::collection::vec(1usize..40_000, 1..20),
    ) {
        let (mut client, mut server, _) = connected();
        for flow in 0..count {
            prop_assert!(server.response(FlowId(flow), &header(), Duration::ZERO));
        }
        let mut next = 0;
        for chunk in chunks.iter().cycle() {
            let bytes: Vec<u8> = server.pending().iter().copied().take(*chunk).collect();
            if bytes.is_empty() { break; }
            server.sent(bytes.len());
            client.handle_bytes(Time::ZERO, &bytes);
            while let Some(event) = client.poll_event() {
                prop_assert!(matches!(event, ClientEvent::Response(response) if response.flow == FlowId(next)));
                next += 1;
            }
        }
        prop_assert_eq!(next, count);
    }

    #[test]
    fn nothing_panics_and_nothing_happens_without_the_key(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
        greeted: bool,
        established: bool,
    ) {
        let (mut client, mut server) = (client(&secret(1)), server(&[1]));
        if greeted { carry(Time::ZERO, &mut client, &mut server); }
        if greeted && established { carry(Time::ZERO, &mut server, &mut client); }
        for chunk in chunks {
            client.handle_bytes(Time::ZERO, &chunk);
            server.handle_bytes(Time::ZERO, &chunk);
            while let Some(event) = client.poll_event() {
                prop_assert!(matches!(event, ClientEvent::Closed(_)));
            }
            while let Some(event) = server.poll_event() {
                prop_assert!(matches!(event, ServerEvent::Closed(_)));
            }
        }
    }

    #[test]
    fn a_flipped_bit_never_makes_another_response(at in 0usize..1000, bit in 0u8..8) {
        let (mut client, mut server, _) = connected();
        let mut records = three_records(&mut server).concat();
        let at = at % records.len();
        records[at] ^= 1 << bit;
        client.handle_bytes(Time::ZERO, &records);
        let mut next = 0;
        while let Some(event) = client.poll_event() {
            match event {
                ClientEvent::Response(response) => {
                    prop_assert_eq!((response.flow, response.header), (FlowId(next), header()));
                    next += 1;
                }
                ClientEvent::Closed(why) => prop_assert_eq!(why, Closed::Forged),
                other @ (ClientEvent::Connected { .. }
                | ClientEvent::Unnamed { .. }
                | ClientEvent::Unreadable(_)
                | ClientEvent::Refused { .. }
                | ClientEvent::Host
                | ClientEvent::Confirmed(_)
                | ClientEvent::Stats(_)) => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert!(next < 3);
    }
}

#[test]
fn a_magic_is_no_length() {
    let mut plain = Server::new(Time::ZERO, limits(1000));
    plain.handle_bytes(Time::ZERO, b"tcpx");
    let length = u32::from_be_bytes(*b"tcpx");
    assert_eq!(plain.poll_event(), Some(ServerEvent::Closed(Closed::Frame(FrameError::Length(length)))));
}
