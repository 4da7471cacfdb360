//! The bridge between C tcpcopys, which the tests are, and workers, which they are too.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use mio::Token;

use super::super::readiness::Readiness;
use super::*;
use crate::daemon::pipe::Pipe;
use crate::tunnel::legacy::RECORD;
use crate::tunnel::{ClaimRefusal, Features, Server, ServerEvent, Welcome};
use crate::wire::flow::{SPLIT_SEED, split};
use crate::wire::{Flags, FlowId, FlowKey, Seq, TcpHeader};

const WORKERS: u16 = 2;
const PATIENCE: Duration = Duration::from_secs(20);
const OPENING: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0];

/// A worker that takes the bridge's pipe and does nothing by itself.
struct Worker {
    index: u16,
    poll: Poll,
    inbox: Receiver<worker::Order>,
    tunnel: Option<(Pipe, Server, u64)>,
}

impl Worker {
    fn new(index: u16) -> (Self, Outbox<worker::Order>) {
        let poll = Poll::new().expect("poll");
        let (orders, inbox) = threads::inbox(poll.registry(), WAKER).expect("a waker");
        (Self { index, poll, inbox, tunnel: None }, orders)
    }

    /// Reads and writes once; the claims and releases that came.
    fn turn(&mut self) -> Vec<ServerEvent> {
        let mut events = Events::with_capacity(8);
        self.poll.poll(&mut events, Some(Duration::from_millis(10))).expect("poll");
        while let Ok(worker::Order::Connection(new)) = self.inbox.try_recv() {
            let (mut pipe, mut server) = (new.pipe, new.server);
            assert!(new.bridged && new.hello.worker == self.index);
            pipe.register(self.poll.registry(), Token(1)).expect("registered");
            let welcome = Welcome {
                workers: WORKERS,
                worker: self.index,
                split_seed: SPLIT_SEED,
                features: Features::NONE,
            };
            server.welcome(Time::ZERO, welcome);
            self.tunnel = Some((pipe, server, new.hello.instance));
        }
        let Some((pipe, server, _)) = &mut self.tunnel else { return Vec::new() };
        events.iter().filter(|event| event.token() == Token(1)).for_each(|event| pipe.ready(event));
        let over = pipe.receive(Time::ZERO, server).and_then(|_| pipe.flush(server)).is_err();
        let heard = std::iter::from_fn(|| server.poll_event()).collect();
        if over {
            self.tunnel = None;
        }
        heard
    }

    fn respond(&mut self, flow: FlowId, flags: Flags) {
        let (_, server, _) = self.tunnel.as_mut().expect("a tunnel");
        assert!(server.response(flow, &header(flags), Duration::ZERO));
    }
}

fn header(flags: Flags) -> TcpHeader {
    TcpHeader::bare(Seq(1), Seq(2), flags, 3)
}

/// A bridge with its workers.
struct World {
    bridge: Handle,
    door: Door,
    budget: Budget,
    workers: Vec<Worker>,
    listener: TcpListener,
    /// What `control` would read.
    reports: Receiver<Report>,
}

impl World {
    fn new(room: usize) -> Self {
        let door = Door::new(&[], &["127.0.0.0/8".parse().expect("prefix")]);
        let (workers, orders) = (0..WORKERS).map(Worker::new).unzip();
        let budget = Budget::new(64 << 20);
        let shared = Shared {
            most: room,
            budget: budget.clone(),
            door: door.clone(),
            readiness: Readiness::new(None),
        };
        let parts = Parts { clock: Clock::start(), shared, workers: orders, max_flows: 50 };
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let poll = Poll::new().expect("poll");
        let (outbox, reports) = threads::inbox(poll.registry(), WAKER).expect("a waker");
        let bridge = spawn(parts, outbox).expect("started");
        Self { bridge, door, budget, workers, listener, reports }
    }

    /// A connection of a C tcpcopy.
    fn connect(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.listener.local_addr().expect("bound")).expect("connect");
        let (theirs, address) = self.listener.accept().expect("accept");
        theirs.set_nonblocking(true).expect("a socket");
        self.bridge.thread.orders.send(Order::Connection(mio::net::TcpStream::from_std(theirs), address));
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.write_all(&OPENING).expect("room");
        stream
    }

    /// The next `count` events of the workers, with whose they are.
    fn hear(&mut self, count: usize) -> Vec<(usize, ServerEvent)> {
        let (start, mut heard) = (Instant::now(), Vec::new());
        while heard.len() < count {
            assert!(start.elapsed() < PATIENCE, "{heard:?}");
            for (index, worker) in self.workers.iter_mut().enumerate() {
                heard.extend(worker.turn().into_iter().map(|event| (index, event)));
            }
        }
        assert_eq!(heard.len(), count, "{heard:?}");
        heard
    }

    /// The next `count` claims, each at the worker that has its client.
    fn claims(&mut self, count: usize) -> Vec<(usize, FlowId, FlowKey)> {
        let claim = |(worker, event)| match event {
            ServerEvent::Claim { flow, key } => {
                assert_eq!(usize::from(split(key.client, WORKERS)), worker);
                (worker, flow, key)
            }
            other @ (ServerEvent::Hello(_)
            | ServerEvent::Release(_)
            | ServerEvent::Hurry(_)
            | ServerEvent::Closed(_)) => {
                panic!("{other:?}")
            }
        };
        self.hear(count).into_iter().map(claim).collect()
    }

    fn turn(&mut self) {
        self.workers.iter_mut().for_each(|worker| drop(worker.turn()));
    }

    /// Lets all turn until the bridge has counted so much.
    fn until(&mut self, what: Legacy, count: u64) {
        let start = Instant::now();
        while self.bridge.counters().of(what) < count {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.bridge.counters());
            self.turn();
        }
    }
}

fn claim(port: u16) -> [u8; 14] {
    let [high, low] = port.to_be_bytes();
    [10, 9, 0, 1, high, low, 0, 1, 10, 0, 0, 2, 0, 80]
}

/// It is hung up on, whether all that it said was read or not.
fn expect_end(stream: &mut TcpStream) {
    match stream.read(&mut [0]) {
        Ok(n) => assert_eq!(n, 0),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

/// The client's ports in the next `count` records.
fn ports(stream: &mut TcpStream, count: usize) -> Vec<u16> {
    let mut ports = Vec::new();
    while ports.len() < count {
        let mut number = [0; 2];
        stream.read_exact(&mut number).expect("a frame");
        for _ in 0..u16::from_be_bytes(number) {
            let mut record = [0; RECORD];
            stream.read_exact(&mut record).expect("a record");
            ports.push(u16::from_be_bytes([record[22], record[23]]));
        }
    }
    ports.sort_unstable();
    ports
}

#[test]
fn claims_part_to_the_workers_and_headers_come_back() {
    let mut world = World::new(100);
    let (mut one, mut other) = (world.connect(), world.connect());
    let all: Vec<u16> = (1..=20).collect();
    one.write_all(all.iter().map(|port| claim(*port)).collect::<Vec<_>>().as_flattened()).expect("room");
    let claims = world.claims(20);
    assert!((0..2).all(|worker| claims.iter().any(|(theirs, ..)| *theirs == worker)), "{claims:?}");
    for (worker, flow, _) in &claims {
        world.workers[*worker].respond(*flow, Flags::ACK);
    }
    world.until(Legacy::Header, 20);
    assert_eq!(ports(&mut one, 20), all);

    let (worker, flow, key) = claims[7];
    other.write_all(&claim(key.client.port())).expect("room");
    assert_eq!(world.claims(1), [(worker, flow, key)], "the same flow, claimed again");
    world.workers[worker].respond(flow, Flags::ACK);
    world.until(Legacy::Header, 21);
    assert_eq!(ports(&mut other, 1), [key.client.port()], "it comes where it was claimed last");

    drop(other);
    assert_eq!(world.hear(1), [(worker, ServerEvent::Release(flow))]);
    let (worker, flow, _) = claims[3];
    let (_, server, _) = world.workers[worker].tunnel.as_mut().expect("a tunnel");
    server.refused(flow, ClaimRefusal::Taken);
    world.workers[worker].respond(flow, Flags::ACK);
    world.until(Legacy::Stray, 1);
    one.write_all(&[0; 14]).expect("room");
    world.until(Legacy::Ignored, 1);
    let counted = world.bridge.stop();
    let of = |what| counted.of(what);
    assert_eq!([of(Legacy::Claim), of(Legacy::Header), of(Legacy::Stray), of(Legacy::Full)], [21, 21, 1, 0]);
    expect_end(&mut one);
}

#[test]
fn a_worker_that_is_lost_is_told_of_its_claims_again() {
    let mut world = World::new(100);
    let mut stream = world.connect();
    let all: Vec<u16> = (1..=20).collect();
    stream.write_all(all.iter().map(|port| claim(*port)).collect::<Vec<_>>().as_flattened()).expect("room");
    let of_one = |claims: Vec<(usize, FlowId, FlowKey)>| {
        let mut flows: Vec<FlowId> =
            claims.into_iter().filter(|(worker, ..)| *worker == 1).map(|(_, flow, _)| flow).collect();
        flows.sort_unstable();
        flows
    };
    let before = of_one(world.claims(20));
    let (_, _, instance) = world.workers[1].tunnel.take().expect("a tunnel");
    assert_eq!(of_one(world.claims(before.len())), before);
    assert_eq!(world.workers[1].tunnel.as_ref().map(|(.., instance)| *instance), Some(instance));
}

#[test]
fn there_is_room_for_some_and_a_flood_of_claims_is_bounded() {
    // One for each worker, and two connections.
    let mut world = World::new(usize::from(WORKERS) + 2);
    let mut streams = [world.connect(), world.connect(), world.connect()];
    expect_end(&mut streams[2]);
    assert_eq!(world.door.turned_away().of(TurnedAway::Crowded), 1);
    let claims: Vec<_> = (1..=150).map(claim).collect();
    streams[0].write_all(claims.as_flattened()).expect("room");
    world.until(Legacy::Full, 50);
    assert_eq!(world.bridge.counters().of(Legacy::Claim), 100);
}

#[test]
fn when_memory_is_short_connections_end() {
    let mut world = World::new(100);
    let mut stream = world.connect();
    stream.write_all(&claim(1)).expect("room");
    world.claims(1);
    world.budget.set_limit(1);
    // What wakes the bridge; it may have been awake.
    let _ = stream.write_all(&claim(2));
    expect_end(&mut stream);
}

#[test]
fn who_is_no_longer_listed_is_hung_up_on() {
    let mut world = World::new(100);
    let mut stream = world.connect();
    stream.write_all(&claim(1)).expect("room");
    let [(worker, ..)] = world.claims(1)[..] else { panic!("one claim") };
    world.door.set(&[], &[]);
    world.bridge.thread.orders.send(Order::Configure { max_flows: 100 });
    expect_end(&mut stream);
    let start = Instant::now();
    while world.workers[worker].tunnel.is_some() {
        assert!(start.elapsed() < PATIENCE, "the worker's end stays");
        world.turn();
    }
}

#[test]
fn it_tells_that_it_makes_progress_and_when_it_has_ended() {
    let World { bridge, reports, .. } = World::new(8);
    bridge.thread.orders.send(Order::Report);
    assert!(matches!(reports.recv_timeout(PATIENCE), Ok(Report::Progress { thread: NAME })));
    bridge.stop();
    assert!(matches!(reports.recv_timeout(PATIENCE), Ok(Report::Ended(_))));
}
