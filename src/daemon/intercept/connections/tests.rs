//! Tunnels whose other ends the tests are.

use std::net::{TcpListener, TcpStream};

use mio::Poll;

use super::*;
use crate::router::{self, Unclaimed};
use crate::tunnel::Client;
use crate::wire::{Flags, Seq};

/// A tcpcopy whose hello was read, and its end of the connection.
fn newcomer(listener: &TcpListener, instance: u64) -> (Newcomer, TcpStream) {
    let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
    let (stream, _) = listener.accept().expect("accept");
    stream.set_nonblocking(true).expect("a socket");
    let limits = limits();
    let hello = Hello { instance, claimer: 0, worker: 0, features: Features::HOST_STATE };
    let mut server = Server::new(Time::ZERO, limits);
    server.handle_bytes(Time::ZERO, Client::new(Time::ZERO, hello, limits).pending());
    assert_eq!(server.poll_event(), Some(ServerEvent::Hello(hello)));
    let pipe = Pipe::new(mio::net::TcpStream::from_std(stream));
    (Newcomer { pipe, server, hello, bridged: false }, peer)
}

#[test]
fn beyond_the_budget_the_largest_tunnel_above_its_part_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let poll = Poll::new().expect("poll");
    let budget = Budget::new(u64::MAX);
    let shared = Shared {
        most: 10,
        budget: budget.clone(),
        door: Door::new(&[], &[]),
        readiness: Readiness::new(None),
    };
    let mut connections = Connections::new(0, (0, 1), shared, Scope::default(), Features::NONE);
    let mut router = Router::new(Time::ZERO, router::Settings::new(Vec::new(), Unclaimed::Drop));
    let header = TcpHeader::bare(Seq(1), Seq(2), Flags::ACK, 1);
    // Nobody reads them, and no event says that they can be written to.
    let mut peers = Vec::new();
    let tunnels = [(1, 1_000), (2, 4_000), (3, 1_000)].map(|(instance, headers)| {
        let (newcomer, peer) = newcomer(&listener, instance);
        connections.add(Time::ZERO, newcomer, poll.registry(), &mut router);
        peers.push(peer);
        let conn = connections.all.iter().last().expect("it was taken").1.id;
        for _ in 0..headers {
            assert!(connections.forward(conn, FlowId(1), &header, Duration::ZERO));
        }
        conn
    });
    connections.flush(Time::ZERO, &mut router);
    assert_eq!(connections.len(), 3, "there is room");

    budget.set_limit(u64::try_from(budget.used()).expect("64 bits") - 1);
    connections.flush(Time::ZERO, &mut router);
    assert_eq!(tunnels.map(|conn| connections.key(conn).is_some()), [true, false, true]);
    assert_eq!(connections.denied().of(Denied::Shed), 1);

    // All of ours take less than an equal part: it is another worker's turn.
    let tenant = Tenant::Host([127, 0, 0, 1].into());
    let mut elsewhere = budget.open(Instance { tenant, number: 9 });
    elsewhere.set(10 << 20);
    budget.set_limit(10 << 20);
    connections.flush(Time::ZERO, &mut router);
    assert!(budget.is_exceeded());
    assert_eq!((connections.len(), connections.denied().of(Denied::Shed)), (2, 1));
}

#[test]
fn who_has_most_tunnels_makes_room_for_who_has_fewer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let other_host = TcpListener::bind("[::1]:0").expect("bind");
    let poll = Poll::new().expect("poll");
    let shared = Shared {
        most: 4,
        budget: Budget::new(u64::MAX),
        door: Door::new(&[], &[]),
        readiness: Readiness::new(None),
    };
    let mut connections = Connections::new(0, (0, 1), shared, Scope::default(), Features::NONE);
    let mut router = Router::new(Time::ZERO, router::Settings::new(Vec::new(), Unclaimed::Drop));
    let mut connect = |connections: &mut Connections, listener, instance| {
        let (newcomer, peer) = newcomer(listener, instance);
        connections.add(Time::ZERO, newcomer, poll.registry(), &mut router);
        peer
    };
    let _many: Vec<_> = (1..=5).map(|instance| connect(&mut connections, &listener, instance)).collect();
    let denied = |connections: &Connections| {
        [Denied::ConnectionLimit, Denied::Displaced].map(|denied| connections.denied().of(denied))
    };
    assert_eq!((connections.len(), denied(&connections)), (4, [1, 0]), "all of them are of one host");
    let _few: Vec<_> = (6..=8).map(|instance| connect(&mut connections, &other_host, instance)).collect();
    assert_eq!((connections.len(), denied(&connections)), (4, [2, 2]), "no more than an equal part");
}

#[test]
fn a_newcomer_ahead_of_the_order_leaves_nobody_uninformed() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let mut poll = Poll::new().expect("poll");
    let readiness = Readiness::new(None);
    let shared = Shared {
        most: 10,
        budget: Budget::new(u64::MAX),
        door: Door::new(&[], &[]),
        readiness: readiness.clone(),
    };
    let mut connections = Connections::new(0, (0, 1), shared, Scope::default(), Features::NONE);
    let mut router = Router::new(Time::ZERO, router::Settings::new(Vec::new(), Unclaimed::Drop));
    let (first, _peer) = newcomer(&listener, 1);
    connections.add(Time::ZERO, first, poll.registry(), &mut router);
    let mut events = mio::Events::with_capacity(4);
    poll.poll(&mut events, Some(Duration::from_secs(5))).expect("it is writable");
    events.iter().for_each(|event| connections.ready(event));
    connections.flush(Time::ZERO, &mut router);
    let waits =
        |connections: &Connections| connections.all.iter().next().expect("the first").1.server.has_pending();
    assert!(!waits(&connections));

    readiness.set(Some("the rules are gone".to_owned()));
    let (second, _peer) = newcomer(&listener, 2);
    connections.add(Time::ZERO, second, poll.registry(), &mut router);
    assert!(waits(&connections), "claims of the first are refused from now on, and it is told why");
}
