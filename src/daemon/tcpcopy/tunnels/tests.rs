//! A worker's tunnels, to intercepts that the tests are.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::replayer::Config;
use crate::tunnel::{Endpoint, Server, ServerEvent, Welcome};
use crate::wire::flow::SPLIT_SEED;

fn key(port: u16) -> FlowKey {
    FlowKey { client: ([10, 0, 0, 1], port).into(), server: ([10, 0, 0, 2], 80).into() }
}

/// An intercept of one worker.
struct Intercept {
    listener: TcpListener,
    features: Features,
    tunnel: Option<(TcpStream, Server)>,
    claims: Vec<FlowId>,
}

impl Intercept {
    fn new(features: Features) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("a socket");
        Self { listener, features, tunnel: None, claims: Vec::new() }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }

    fn server(&mut self) -> &mut Server {
        &mut self.tunnel.as_mut().expect("a tcpcopy is connected").1
    }

    fn turn(&mut self) {
        if self.tunnel.is_none()
            && let Ok((stream, _)) = self.listener.accept()
        {
            stream.set_nonblocking(true).expect("a socket");
            self.tunnel = Some((stream, Server::new(Time::ZERO, Limits::default())));
        }
        let Some((stream, server)) = &mut self.tunnel else { return };
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(n) => server.handle_bytes(Time::ZERO, &buffer[..n]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        while let Some(event) = server.poll_event() {
            match event {
                ServerEvent::Hello(_) => {
                    let features = self.features;
                    let welcome = Welcome { workers: 1, worker: 0, split_seed: SPLIT_SEED, features };
                    server.welcome(Time::ZERO, welcome);
                }
                ServerEvent::Claim { flow, .. } => self.claims.push(flow),
                ServerEvent::Release(_) | ServerEvent::Hurry(_) | ServerEvent::Closed(_) => {}
            }
        }
        let bytes = server.pending().to_vec();
        stream.write_all(&bytes).expect("room");
        server.sent(bytes.len());
    }
}

/// The tunnels of a worker, and what drives them.
struct Worker {
    tunnels: Tunnels,
    replayer: Replayer,
    poll: mio::Poll,
    start: Instant,
}

impl Worker {
    fn new(intercepts: &[&Intercept]) -> Self {
        let addresses: Vec<_> = intercepts.iter().map(|intercept| intercept.address()).collect();
        let identity = Identity { instance: 1, claimer: 0, protocol: Protocol::Open };
        let limits = Limits { output: 1 << 20, ..Limits::default() };
        let config = Config { memory_limit: 1 << 20, ..Config::new(Vec::new()) };
        Self {
            tunnels: Tunnels::new(Time::ZERO, &addresses, identity, limits, 0),
            replayer: Replayer::new(Arc::new(config)),
            poll: mio::Poll::new().expect("poll"),
            start: Instant::now(),
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed()
    }

    fn turn(&mut self, intercepts: &mut [&mut Intercept]) {
        let mut events = mio::Events::with_capacity(4);
        for intercept in &mut *intercepts {
            intercept.turn();
        }
        let now = self.now();
        self.tunnels.handle_timeout(now, self.poll.registry());
        self.poll.poll(&mut events, Some(Duration::from_millis(5))).expect("poll");
        events.iter().for_each(|event| self.tunnels.ready(now, event));
        self.tunnels.receive(now, &mut self.replayer);
        self.tunnels.flush(now);
    }

    fn drive_until(
        &mut self,
        intercepts: &mut [&mut Intercept],
        what: &str,
        mut is_so: impl FnMut(&mut Tunnels) -> bool,
    ) {
        while !is_so(&mut self.tunnels) {
            assert!(self.start.elapsed() < Duration::from_secs(20), "{what}: {:?}", self.tunnels);
            self.turn(intercepts);
        }
    }
}

#[test]
fn what_waits_for_an_intercept_counts_in_the_budget_of_the_sessions() {
    let mut intercept = Intercept::new(Features::NONE);
    let mut worker = Worker::new(&[&intercept]);
    worker.drive_until(&mut [&mut intercept], "connected", |tunnels| tunnels.are_reachable());
    let idle = worker.replayer.memory();
    assert!((1..100_000).contains(&idle), "{idle}");
    let flows = 10_000;
    for port in 0..flows {
        worker.tunnels.tell(Claim::Claim(FlowId(port.into()), key(port)));
    }
    worker.tunnels.receive(Time::ZERO, &mut worker.replayer);
    let waiting = worker.replayer.memory() - idle;
    assert!(waiting >= size_of::<FlowId>() * usize::from(flows), "{waiting}");

    // The next connection is not accepted.
    drop(intercept);
    worker.drive_until(&mut [], "lost", |tunnels| !tunnels.are_reachable());
    worker.tunnels.receive(Time::ZERO, &mut worker.replayer);
    assert_eq!(worker.replayer.memory(), 0, "a tunnel that is down takes nothing");
}

#[test]
fn nothing_connects_before_every_intercept_has_said_that_its_host_is_closed() {
    let mut one = Intercept::new(Features::HOST_STATE);
    let mut other = Intercept::new(Features::HOST_STATE);
    let mut worker = Worker::new(&[&one, &other]);
    let up = |tunnels: &mut Tunnels| tunnels.intercepts.iter().all(super::Intercept::is_up);
    worker.drive_until(&mut [&mut one, &mut other], "connected", up);
    assert!(!worker.tunnels.are_reachable(), "none has said anything");
    assert!(worker.tunnels.are_closed(), "nor that its host is open");
    one.server().host(None, None);
    for _ in 0..5 {
        worker.turn(&mut [&mut one, &mut other]);
        assert!(!worker.tunnels.are_reachable(), "one has not");
    }
    other.server().host(None, None);
    worker.drive_until(&mut [&mut one, &mut other], "closed", |tunnels| tunnels.are_reachable());
}

#[test]
fn an_open_host_stops_everything_until_it_is_closed_even_if_the_intercept_goes_away() {
    let mut intercept = Intercept::new(Features::HOST_STATE);
    let mut worker = Worker::new(&[&intercept]);
    let up = |tunnels: &mut Tunnels| tunnels.intercepts.iter().all(super::Intercept::is_up);
    worker.drive_until(&mut [&mut intercept], "connected", up);
    intercept.server().host(None, None);
    worker.drive_until(&mut [&mut intercept], "closed", |tunnels| tunnels.are_reachable());
    let mut views = Vec::new();
    worker.tunnels.changes(|_, view| views.push(view));
    assert_eq!(views, [View::Closed]);

    intercept.server().host(Some("the table is gone"), None);
    worker.drive_until(&mut [&mut intercept], "open", |tunnels| !tunnels.are_closed());
    assert!(!worker.tunnels.are_reachable());
    worker.tunnels.changes(|_, view| views.push(view));
    assert_eq!(views.pop(), Some(View::Open("the table is gone".to_owned())));

    intercept.tunnel = None;
    worker.drive_until(&mut [&mut intercept], "lost", |tunnels| !up(tunnels));
    assert!(!worker.tunnels.are_closed(), "nobody has said that it is closed");
    worker.drive_until(&mut [&mut intercept], "back", up);
    assert!(!worker.tunnels.are_closed() && !worker.tunnels.are_reachable());
    intercept.server().host(None, None);
    worker.drive_until(&mut [&mut intercept], "closed", |tunnels| tunnels.are_reachable());
    assert!(worker.tunnels.are_closed());
}

#[test]
fn an_intercept_that_comes_back_has_to_say_it_again() {
    let mut intercept = Intercept::new(Features::HOST_STATE);
    let mut worker = Worker::new(&[&intercept]);
    let up = |tunnels: &mut Tunnels| tunnels.intercepts.iter().all(super::Intercept::is_up);
    worker.drive_until(&mut [&mut intercept], "connected", up);
    intercept.server().host(None, None);
    worker.drive_until(&mut [&mut intercept], "closed", |tunnels| tunnels.are_reachable());
    intercept.tunnel = None;
    worker.drive_until(&mut [&mut intercept], "lost", |tunnels| !up(tunnels));
    worker.drive_until(&mut [&mut intercept], "back", up);
    assert!(!worker.tunnels.are_reachable());
    intercept.server().host(None, None);
    worker.drive_until(&mut [&mut intercept], "closed", |tunnels| tunnels.are_reachable());
}

#[test]
fn an_intercept_of_the_first_release_is_taken_as_it_is() {
    let mut intercept = Intercept::new(Features::NONE);
    let mut worker = Worker::new(&[&intercept]);
    worker.drive_until(&mut [&mut intercept], "connected", |tunnels| tunnels.are_reachable());
    let mut views = Vec::new();
    worker.tunnels.changes(|_, view| views.push(view));
    assert_eq!(views, [View::Unconfirmed]);
}
