//! The hot paths, each as a step that can be repeated.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use tcpcopy::session::{Event, Session};
use tcpcopy::tunnel::{
    Claimer, Client, Endpoint, Ephemeral, Features, Hello, Limits, Secret, Server, Welcome,
};
use tcpcopy::wire::{Flags, FlowId, Outgoing, Seq, Time, flow::SPLIT_SEED, parse};

use super::chain::{self, Chain, REQUEST, REQUEST_LEN, RESPONSE, header};

/// A step, with all that it needs.
pub(crate) type Step = Box<dyn FnMut()>;

/// A name, and what prepares its step.
pub(crate) type Case = (&'static str, fn() -> Step);

/// All of them.
pub(crate) const CASES: [Case; 13] = [
    ("parse_ipv4", parse_ipv4),
    ("parse_ipv6", parse_ipv6),
    ("build_request", build_request),
    ("build_ack", build_ack),
    ("session_exchange", session_exchange),
    ("session_connection", session_connection),
    ("chain_exchange", chain_exchange),
    ("chain_connection", chain_connection),
    ("tunnel_encode_64", tunnel_encode),
    ("tunnel_decode_64", tunnel_decode),
    ("tunnel_seal_64", tunnel_seal),
    ("tunnel_seal_open_64", tunnel_seal_open),
    ("tunnel_handshake", tunnel_handshake),
];

const ACK: Flags = Flags::ACK;
/// Headers in a batch of the tunnel.
const BATCH: u64 = 64;

fn parse_bytes(src: &str, dst: &str) -> Step {
    let mut out = Outgoing::default();
    out.payload().extend_from_slice(&[b'x'; REQUEST]);
    let (src, dst) = (src.parse().expect("address"), dst.parse().expect("address"));
    let bytes =
        out.finish(src, dst, &header(Seq(1), Seq(2), Flags::PSH | ACK, REQUEST_LEN)).expect("fits").to_vec();
    Box::new(move || {
        let bytes = black_box(&bytes[..]);
        black_box(parse(bytes, bytes.len()).expect("whole"));
    })
}

fn parse_ipv4() -> Step {
    parse_bytes("10.9.0.1:40000", "10.1.0.1:80")
}

fn parse_ipv6() -> Step {
    parse_bytes("[fd09::1]:40000", "[fd01::1]:80")
}

fn build(payload: Vec<u8>) -> Step {
    let mut out = Outgoing::default();
    let len = u32::try_from(payload.len()).expect("short");
    let header = header(Seq(1), Seq(2), Flags::PSH | ACK, len);
    Box::new(move || {
        out.payload().extend_from_slice(&payload);
        black_box(out.finish(chain::client(7), chain::target(), black_box(&header)));
    })
}

fn build_request() -> Step {
    build(vec![b'x'; REQUEST])
}

fn build_ack() -> Step {
    build(Vec::new())
}

/// A session alone, with what its replayer does for it.
struct Alone {
    session: Session,
    now: Time,
    payload: Vec<u8>,
    up: Seq,
    down: Seq,
    target: Seq,
}

impl Alone {
    fn open(now: Time) -> Self {
        let syn = header(Seq(100), Seq(0), Flags::SYN, 0);
        let session = Session::open(now, Arc::default(), Arc::default(), &syn);
        let (up, down, target) = (Seq(101), Seq(7_000), Seq(90_000));
        let mut alone = Self { session, now, payload: Vec::new(), up, down, target };
        alone.session.handle_client(now, &syn, b"");
        alone.run();
        alone.answer(Flags::SYN | ACK, 0);
        alone.target = alone.target.add(1);
        alone
    }

    fn run(&mut self) {
        loop {
            self.payload.clear();
            if let Some(header) = self.session.poll_transmit(self.now, &mut self.payload) {
                black_box(header);
            } else if let Some(event) = self.session.poll_event() {
                if event == Event::Connect {
                    self.session.connect(self.now, 1460);
                }
            } else {
                break;
            }
        }
        black_box(self.session.poll_timeout());
    }

    fn answer(&mut self, flags: Flags, len: u32) {
        self.session.handle_target(self.now, &header(self.target, self.up, flags, len));
        self.run();
    }

    fn exchange(&mut self) {
        let request = header(self.up, self.down, Flags::PSH | ACK, REQUEST_LEN);
        self.session.handle_client(self.now, &request, &[b'x'; REQUEST]);
        self.up = self.up.add(REQUEST_LEN);
        self.run();
        self.now += Duration::from_millis(1);
        self.answer(Flags::PSH | ACK, RESPONSE);
        self.target = self.target.add(RESPONSE);
        self.down = self.down.add(RESPONSE);
    }

    fn close(&mut self) {
        self.session.handle_client(self.now, &header(self.up, self.down, Flags::FIN | ACK, 0), b"");
        self.up = self.up.add(1);
        self.run();
        self.answer(Flags::FIN | ACK, 0);
        self.now += Duration::from_secs(2);
        self.session.handle_timeout(self.now);
        self.run();
        assert!(self.session.is_over());
    }
}

fn session_exchange() -> Step {
    let mut alone = Alone::open(Time::from_micros(1_000_000));
    Box::new(move || alone.exchange())
}

fn session_connection() -> Step {
    let mut now = Time::from_micros(1_000_000);
    Box::new(move || {
        let mut alone = Alone::open(now);
        alone.exchange();
        alone.close();
        now = alone.now;
    })
}

fn chain_exchange() -> Step {
    exchanges_of(1_000)
}

/// An exchange of one of `n` live sessions, of each in its turn.
pub(crate) fn exchanges_of(n: u32) -> Step {
    let (mut chain, mut talks) = Chain::with_sessions(n);
    let mut next = 0;
    Box::new(move || {
        chain.exchange(talks.get_mut(next).expect("in range"));
        next = (next + 1) % talks.len();
    })
}

fn chain_connection() -> Step {
    let mut chain = Chain::new();
    let mut number = 0;
    // As many in TIME-WAIT as there will be.
    for _ in 0..300 {
        number += 1;
        chain.connection(number);
    }
    Box::new(move || {
        number = (number + 1) % 1_000_000;
        chain.connection(number);
    })
}

const HELLO: Hello = Hello { instance: 1, claimer: 0, worker: 0, features: Features::NONE };

/// Both ends of a tunnel without a key, after their handshake.
fn tunnel() -> (Client, Server) {
    let client = Client::new(Time::ZERO, HELLO, Limits::default());
    connect(client, Server::new(Time::ZERO, Limits::default()))
}

/// Both ends of a tunnel with a key, after their handshake.
fn keyed_tunnel() -> (Client, Server) {
    let secret = Secret::new([1; 32]);
    let limits = Limits::default();
    let client = Client::keyed(Time::ZERO, HELLO, limits, &secret, Ephemeral::new([2; 32]));
    let server = Server::keyed(Time::ZERO, limits, Arc::new([secret]), Ephemeral::new([3; 32]));
    connect(client, server)
}

fn connect(mut client: Client, mut server: Server) -> (Client, Server) {
    for _ in 0..2 {
        carry(&mut client, &mut server);
        carry(&mut server, &mut client);
    }
    while server.poll_event().is_some() {}
    server.welcome(
        Time::ZERO,
        Welcome { workers: 1, worker: 0, split_seed: SPLIT_SEED, features: Features::NONE },
    );
    carry(&mut server, &mut client);
    while client.poll_event().is_some() {}
    (client, server)
}

fn carry(from: &mut impl Endpoint, to: &mut impl Endpoint) {
    let bytes = from.pending().to_vec();
    from.sent(bytes.len());
    to.handle_bytes(Time::ZERO, &bytes);
}

fn encode(server: &mut Server) {
    let response = header(Seq(1), Seq(2), Flags::PSH | ACK, RESPONSE);
    for flow in 0..BATCH {
        assert!(server.response(FlowId(flow), black_box(&response), Duration::ZERO));
    }
}

fn tunnel_encode() -> Step {
    let (_, mut server) = tunnel();
    Box::new(move || {
        encode(&mut server);
        let len = black_box(server.pending()).len();
        server.sent(len);
    })
}

fn tunnel_decode() -> Step {
    let (mut client, mut server) = tunnel();
    encode(&mut server);
    let bytes = server.pending().to_vec();
    Box::new(move || {
        client.handle_bytes(Time::ZERO, black_box(&bytes));
        let events = std::iter::from_fn(|| client.poll_event()).map(black_box).count();
        assert_eq!(events as u64, BATCH);
    })
}

fn tunnel_seal() -> Step {
    let (_, mut server) = keyed_tunnel();
    Box::new(move || {
        encode(&mut server);
        let len = black_box(server.pending()).len();
        server.sent(len);
    })
}

fn tunnel_seal_open() -> Step {
    let (mut client, mut server) = keyed_tunnel();
    Box::new(move || {
        encode(&mut server);
        let bytes = server.pending();
        let len = bytes.len();
        client.handle_bytes(Time::ZERO, bytes);
        server.sent(len);
        let events = std::iter::from_fn(|| client.poll_event()).map(black_box).count();
        assert_eq!(events as u64, BATCH);
    })
}

/// Both ends' part, from nothing to the welcome.
fn tunnel_handshake() -> Step {
    Box::new(|| {
        black_box(keyed_tunnel());
    })
}
