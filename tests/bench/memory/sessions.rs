//! Workloads of tcpcopy's.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tcpcopy::replayer::{Claim, Config, Replayer};
use tcpcopy::wire::{Flags, FlowId, Mapping, Outgoing, Packet, Seq, TcpHeader, Time};

use super::{Bounds, MIB};

/// Bytes of a full segment.
const SEGMENT: u32 = 1_400;
/// An upload.
const UPLOAD: u32 = 1 << 20;

/// A replayer as its worker drives it, and its clients.
struct Worker<'a> {
    number: usize,
    bounds: &'a Bounds,
    replayer: Replayer,
    now: Time,
    out: Outgoing,
    claimed: Option<FlowId>,
    payload: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(number: usize, bounds: &'a Bounds) -> Self {
        let target = SocketAddr::from(([10, 2, 0, 2], 8080));
        let mappings = vec![Mapping { online: None, port: 80, target }];
        let config =
            Config { max_sessions: 10_000_000, memory_limit: bounds.part(), ..Config::new(mappings) };
        let now = Time::from_micros(1_000_000);
        let mut replayer = Replayer::new(Arc::new(config));
        replayer.set_reachable(now, true);
        // The responses of a target that is silent for a moment are no reason to wait.
        replayer.handle_timeout(now);
        let payload = vec![b'x'; 1_400];
        Self { number, bounds, replayer, now, out: Outgoing::default(), claimed: None, payload }
    }

    fn check(&self, what: &str) {
        self.bounds.check(self.number, what, self.replayer.memory());
    }

    fn header(seq: u32, ack: u32, flags: Flags, payload_len: u32) -> TcpHeader {
        TcpHeader { payload_len, ..TcpHeader::bare(Seq(seq), Seq(ack), flags, 60_000) }
    }

    fn send(&mut self, client: u32, header: TcpHeader) {
        let src = SocketAddr::new(Ipv4Addr::from_bits(0x0a09_0000 + client / 60_000).into(), port(client));
        let payload = self.payload.get(..usize::try_from(header.payload_len).expect("short")).expect("short");
        let packet = Packet { src, dst: ([10, 1, 0, 1], 80).into(), header, payload };
        self.replayer.handle_client(self.now, &packet);
        self.turn();
    }

    fn turn(&mut self) {
        self.tell_claims();
        while self.replayer.poll_transmit(self.now, &mut self.out).is_some() {}
        // Those of sessions that connect again.
        self.tell_claims();
        while self.replayer.poll_transmit(self.now, &mut self.out).is_some() {}
    }

    fn tell_claims(&mut self) {
        while let Some(claim) = self.replayer.poll_claim() {
            if let Claim::Claim(flow, _) = claim {
                self.claimed = Some(flow);
                self.replayer.handle_claim_told(self.now, flow, 0);
            }
        }
    }

    /// A client connects; the target accepts if asked to.
    fn open(&mut self, client: u32, accept: bool) {
        self.claimed = None;
        self.send(client, Self::header(100, 0, Flags::SYN, 0));
        if accept && let Some(flow) = self.claimed {
            let answer = Self::header(500, 101, Flags::SYN | Flags::ACK, 0);
            self.replayer.handle_target(self.now, flow, &answer);
            self.turn();
        }
    }

    /// Clients connect until a new session is refused; returns how many there are.
    fn fill(&mut self, accept: bool) -> u32 {
        let before = self.replayer.counters().unused.total();
        let mut client = 0;
        while self.replayer.counters().unused.total() == before {
            self.open(client, accept);
            client += 1;
        }
        client
    }

    /// Time passes, and what is over is over.
    fn rest(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + Duration::from_secs(5));
            self.replayer.handle_timeout(self.now);
            self.turn();
            self.replayer.shrink();
        }
    }

    /// All clients reset their connections, and a minute passes.
    fn end(&mut self, clients: u32) {
        for client in 0..clients {
            self.send(client, Self::header(101, 0, Flags::RST, 0));
        }
        self.rest(Duration::from_secs(60));
        assert_eq!(self.replayer.sessions(), 0);
        self.bounds.check_end(self.number, "a minute after their end", self.replayer.memory());
    }
}

fn port(client: u32) -> u16 {
    1024 + u16::try_from(client % 60_000).expect("below 65,536")
}

/// Sessions that are connected and say nothing.
pub(crate) fn idle(number: usize, bounds: &Bounds) {
    let mut worker = Worker::new(number, bounds);
    let clients = worker.fill(true);
    worker.check("idle sessions");
    worker.rest(Duration::from_secs(30));
    worker.check("the same, after 30 s");
    assert!(worker.replayer.sessions() > bounds.part() / 1_800, "{} sessions", worker.replayer.sessions());
    worker.end(clients);
}

/// As many sessions as there may be end, all but each hundredth; then clients send much that the target does not take.
pub(crate) fn uploads(number: usize, bounds: &Bounds) {
    let mut worker = Worker::new(number, bounds);
    let clients = worker.fill(true);
    worker.check("many sessions");
    for client in (0..clients).filter(|client| client % 100 > 0) {
        worker.send(client, Worker::header(101, 0, Flags::RST, 0));
    }
    worker.rest(Duration::from_secs(10));
    worker.check("most of them have ended");
    for client in clients..clients + 100 {
        worker.open(client, true);
        for sent in (0..UPLOAD).step_by(1_400) {
            worker.send(client, Worker::header(101 + sent, 1, Flags::ACK, SEGMENT));
        }
        if client % 20 == 0 {
            worker.check("uploads");
        }
    }
    worker.check("uploads");
    worker.end(clients + 100);
}

/// Clients that write byte by byte, in order, and with holes.
pub(crate) fn bytes_one_by_one(number: usize, bounds: &Bounds) {
    let mut worker = Worker::new(number, bounds);
    for (client, step) in [(1, 1), (2, 2)] {
        worker.open(client, true);
        let mut seq = 101 + step - 1;
        while worker.replayer.memory() < bounds.part() / 4 * usize::try_from(client).expect("small") {
            worker.send(client, Worker::header(seq, 1, Flags::ACK, 1));
            seq += step;
        }
        worker.check(if step == 1 { "byte by byte" } else { "with holes" });
    }
    worker.end(3);
}

/// SYNs that the target does not answer, many more than there is room for.
pub(crate) fn flood(number: usize, bounds: &Bounds) {
    let mut worker = Worker::new(number, bounds);
    let room = worker.fill(false);
    for client in room..2 * room {
        worker.open(client, false);
        if client % 10_000 == 0 {
            worker.now += Duration::from_millis(50);
            worker.replayer.handle_timeout(worker.now);
            worker.turn();
        }
    }
    worker.check("a flood of SYNs");
    worker.end(2 * room);
}

/// Data of connections that do not exist.
pub(crate) fn strays(number: usize, bounds: &Bounds) {
    let mut worker = Worker::new(number, bounds);
    for client in 0..100_000 {
        worker.send(client, Worker::header(client, 1, Flags::PSH | Flags::ACK, 100));
        if client % 25_000 == 0 {
            worker.check("strays");
        }
    }
    worker.check("strays");
    worker.end(100_000);
    assert!(worker.replayer.memory() < MIB);
}
