//! What an intercept says about its host, between peers of this release and of the first one.

use std::net::IpAddr;

use proptest::prelude::*;

use super::tests::{HELLO, carry, limits, welcome};
use super::*;
use crate::wire::Prefix;

/// Two ends that are connected, with these features.
fn pair(client_has: Features, server_has: Features) -> (Client, Server) {
    let hello = Hello { features: client_has, ..HELLO };
    let mut client = Client::new(Time::ZERO, hello, limits(1 << 20));
    let mut server = Server::new(Time::ZERO, limits(1 << 20));
    carry(Time::ZERO, &mut client, &mut server);
    assert_eq!(server.poll_event(), Some(ServerEvent::Hello(hello)));
    server.welcome(Time::ZERO, Welcome { features: server_has, ..welcome() });
    carry(Time::ZERO, &mut server, &mut client);
    assert_eq!(client.poll_event(), Some(ClientEvent::Connected { workers: 4 }));
    (client, server)
}

fn scope(clients: Option<&[&str]>) -> Scope {
    let prefix = |text: &&str| text.parse().expect("prefix");
    Scope {
        targets: vec!["10.0.0.2:80".parse().expect("address"), "[fd00::2]:80".parse().expect("address")],
        clients: clients.map(|clients| clients.iter().map(prefix).collect()),
    }
}

#[test]
fn the_state_and_the_scope_of_a_host_follow_the_welcome_and_every_change() {
    let (mut client, mut server) = pair(Features::HOST_STATE, Features::HOST_STATE);
    assert_eq!((client.host(), client.scope()), (&HostState::Awaited, None), "open until it is said");
    let narrow = scope(Some(&["10.99.0.0/24", "fd99::/64"]));
    server.host(Some("table ip intercept is gone"), Some(&narrow));
    carry(Time::ZERO, &mut server, &mut client);
    assert_eq!((client.poll_event(), client.poll_event()), (Some(ClientEvent::Host), None));
    assert_eq!(client.host(), &HostState::Open("table ip intercept is gone".to_owned()));
    assert_eq!(client.scope(), Some(&narrow));

    server.host(None, None);
    carry(Time::ZERO, &mut server, &mut client);
    assert_eq!(client.poll_event(), Some(ClientEvent::Host));
    assert_eq!((client.host(), client.scope()), (&HostState::Closed, Some(&narrow)), "the scope stays");

    for other in [scope(Some(&[])), scope(None)] {
        server.host(None, Some(&other));
        carry(Time::ZERO, &mut server, &mut client);
        assert_eq!(client.poll_event(), Some(ClientEvent::Host));
        assert_eq!(client.scope(), Some(&other), "no clients are not all clients");
    }
}

#[test]
fn peers_of_the_first_release_are_told_nothing_and_tell_nothing() {
    let (client, _) = pair(Features::HOST_STATE, Features::NONE);
    assert_eq!((client.host(), client.scope()), (&HostState::Unknown, None));

    let (mut client, mut server) = pair(Features::NONE, Features::HOST_STATE);
    server.host(None, Some(&scope(None)));
    assert!(!server.has_pending(), "nothing that it would have to pass over");
    carry(Time::ZERO, &mut server, &mut client);
    assert_eq!(client.poll_event(), None);
}

#[test]
fn claims_are_confirmed_to_those_who_wait_for_it() {
    for (client_has, server_has) in [
        (Features::CONFIRMATION, Features::CONFIRMATION),
        (Features::CONFIRMATION, Features::HOST_STATE),
        (Features::NONE, Features::CONFIRMATION),
    ] {
        let (mut client, mut server) = pair(client_has, server_has);
        assert_eq!(client.confirms_claims(), server_has == Features::CONFIRMATION);
        server.confirmed(FlowId(7));
        server.confirmed(FlowId(u64::MAX));
        carry(Time::ZERO, &mut server, &mut client);
        let events: Vec<_> = std::iter::from_fn(|| client.poll_event()).collect();
        let all = [ClientEvent::Confirmed(FlowId(7)), ClientEvent::Confirmed(FlowId(u64::MAX))];
        assert_eq!(events, if client_has == Features::NONE { &all[..0] } else { &all[..] });
    }
}

#[test]
fn a_hello_and_a_welcome_without_features_are_of_the_first_release() {
    // As release 0.1 writes them: no field behind the worker and the seed.
    let hello = [0, 0, 0, 19, 1, 0x74, 0x63, 0x70, 0x79, 0, 1, 0, 0, 0, 0, 0, 0, 0, 77, 0, 1, 0, 2];
    let mut server = Server::new(Time::ZERO, limits(1000));
    server.handle_bytes(Time::ZERO, &hello);
    assert_eq!(HELLO.features, Features::NONE);
    assert_eq!(server.poll_event(), Some(ServerEvent::Hello(HELLO)));

    let hello = Hello { features: Features::HOST_STATE, ..HELLO };
    let mut client = Client::new(Time::ZERO, hello, limits(1000));
    let [a, b, c, d] = welcome().split_seed.to_be_bytes();
    client.handle_bytes(Time::ZERO, &[0, 0, 0, 11, 2, 0, 1, 0, 4, 0, 2, a, b, c, d]);
    assert_eq!(client.poll_event(), Some(ClientEvent::Connected { workers: 4 }));
    assert_eq!(client.host(), &HostState::Unknown);
}

#[test]
fn a_scope_beyond_all_reason_ends_the_connection() {
    let (mut client, mut server) = pair(Features::HOST_STATE, Features::HOST_STATE);
    let prefixes = (0..70_000u32).map(|n| Prefix::single(IpAddr::from(n.to_be_bytes())));
    server.host(None, Some(&Scope { targets: Vec::new(), clients: Some(prefixes.collect()) }));
    carry(Time::ZERO, &mut server, &mut client);
    let why = Closed::Frame(FrameError::Body(Kind::Scope));
    assert_eq!(client.poll_event(), Some(ClientEvent::Closed(why)));
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(address, length)| (IpAddr::from(address), length)),
        (any::<[u8; 16]>(), 0u8..=128).prop_map(|(address, length)| (IpAddr::from(address), length)),
    ]
    .prop_map(|(address, length)| Prefix::new(address, length).expect("a length of the family"))
}

fn any_scope() -> impl Strategy<Value = Scope> {
    let targets = proptest::collection::vec(any::<std::net::SocketAddr>(), 0..20);
    let clients = proptest::option::of(proptest::collection::vec(any_prefix(), 0..20));
    (targets, clients).prop_map(|(targets, clients)| {
        // Flow information and scopes of IPv6 addresses do not travel.
        let plain = targets.iter().map(|target| std::net::SocketAddr::new(target.ip(), target.port()));
        Scope { targets: plain.collect(), clients }
    })
}

proptest! {
    #[test]
    fn what_is_said_of_a_host_arrives(
        steps in proptest::collection::vec(
            (proptest::option::of("[ -~äß]{0,2000}"), proptest::option::of(any_scope())),
            1..10,
        ),
    ) {
        let (mut client, mut server) = pair(Features::HOST_STATE, Features::HOST_STATE);
        let mut expected = None;
        for (open, scope) in steps {
            server.host(open.as_deref(), scope.as_ref());
            carry(Time::ZERO, &mut server, &mut client);
            prop_assert_eq!(client.poll_event(), Some(ClientEvent::Host));
            expected = scope.or(expected);
            prop_assert_eq!(client.scope(), expected.as_ref());
            match (client.host(), open) {
                (HostState::Closed, None) => {}
                (HostState::Open(heard), Some(said)) => {
                    prop_assert!(said.starts_with(heard) && (heard.len() + 4 > 1024 || *heard == said));
                }
                (heard, said) => prop_assert!(false, "{heard:?} for {said:?}"),
            }
        }
    }

    #[test]
    fn no_state_but_the_known_one_is_closed(state: u8, rest in proptest::collection::vec(any::<u8>(), 0..40)) {
        let (mut client, _) = pair(Features::HOST_STATE, Features::HOST_STATE);
        let length = u32::try_from(rest.len() + 2).expect("short");
        let bytes = [&length.to_be_bytes()[..], &[Kind::Host.code(), state], &rest].concat();
        client.handle_bytes(Time::ZERO, &bytes);
        while client.poll_event().is_some() {}
        prop_assert!(*client.host() != HostState::Closed || state == 1);
    }
}
