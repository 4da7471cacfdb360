//! The router, with claimers and a target that do anything.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tcpcopy::router::{ConnId, Disposition, Identity, Outcome, Router, Settings, Tenant, Unclaimed, Verdict};
use tcpcopy::wire::{Flags, FlowId, FlowKey, Packet, Prefix, Seq, TcpHeader, Time};

use super::input::Input;

const MAX_FLOWS: usize = 6;
const MAX_HELD: usize = 5;
const TARGETS: [([u8; 4], u16); 2] = [([10, 0, 0, 2], 80), ([10, 0, 0, 2], 81)];
const FOREIGN: ([u8; 4], u16) = ([10, 0, 0, 9], 80);
/// The claimer whose key is for some clients only, and those clients.
const CONFINED: u64 = 2;
const CLIENTS: &str = "10.9.1.0/24";

/// Connections, claims and responses in any order.
///
/// With `unclaimed = drop` nothing goes on. A header goes to the connection that claimed its flow, under the name it
/// chose, and to nobody else. Tables keep their bounds, and every response ends in one outcome and one verdict.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let unclaimed = input.of(&[Unclaimed::Drop, Unclaimed::Accept]);
    let mut settings = Settings::new(TARGETS.map(SocketAddr::from).to_vec(), unclaimed);
    (settings.max_flows, settings.max_held) = (MAX_FLOWS, MAX_HELD);
    let mut course = Course {
        router: Router::new(Time::ZERO, settings),
        unclaimed,
        now: Time::ZERO,
        connections: 0,
        live: Vec::new(),
        claims: HashMap::new(),
        waiting: Vec::new(),
        packets: 0,
    };
    while !input.is_empty() {
        course.step(&mut input);
        course.drain();
        course.check();
    }
}

struct Course {
    router: Router,
    unclaimed: Unclaimed,
    now: Time,
    connections: u64,
    live: Vec<(ConnId, Identity)>,
    /// Claims that were taken, by whom and under which name.
    claims: HashMap<FlowKey, (Identity, FlowId)>,
    /// Packets whose verdict is to come.
    waiting: Vec<u32>,
    packets: u32,
}

impl Course {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0 => self.connect(input),
            1 => {
                if let Some(at) = self.pick(input) {
                    let (conn, _) = self.live.swap_remove(at);
                    self.router.disconnect(conn);
                }
            }
            2 => self.claim(input),
            3 => {
                let flow = FlowId(u64::from(input.u8() % 8));
                if let Some(at) = self.pick(input) {
                    self.router.release(self.now, self.live[at].0, flow);
                }
            }
            4 => self.pass(Duration::from_millis(u64::from(input.u8()))),
            5 => self.pass(Duration::from_secs(u64::from(input.u8()))),
            _ => self.response(input),
        }
    }

    fn pick(&self, input: &mut Input<'_>) -> Option<usize> {
        let at = input.below(8);
        (at < self.live.len()).then_some(at)
    }

    fn connect(&mut self, input: &mut Input<'_>) {
        self.connections += 1;
        let conn = ConnId(self.connections);
        let instance = u64::from(input.u8() % 3);
        let tenant = Tenant::Key([u8::from(instance > 0); 4]);
        let identity = Identity { tenant, instance, worker: 0 };
        let clients = (identity.instance == CONFINED).then(|| [CLIENTS.parse().expect("prefix")].into());
        let replaced = self.router.connect(conn, identity, clients);
        let before = self.live.iter().position(|(_, live)| *live == identity);
        assert_eq!(replaced, before.map(|at| self.live.swap_remove(at).0));
        self.live.push((conn, identity));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        // As the daemon does: only when it is due.
        for _ in 0..1_000 {
            if self.router.poll_timeout().is_none_or(|due| due > self.now) {
                return;
            }
            self.router.handle_timeout(self.now);
        }
        panic!("a deadline that stays");
    }

    fn claim(&mut self, input: &mut Input<'_>) {
        let (key, flow) = (key(input), FlowId(u64::from(input.u8() % 8)));
        let Some(at) = self.pick(input) else { return };
        let (conn, identity) = self.live[at];
        let Ok(held) = self.router.claim(self.now, conn, flow, key) else { return };
        assert!(TARGETS.iter().any(|target| SocketAddr::from(*target) == key.server), "{key:?} was claimed");
        let client = CLIENTS.parse::<Prefix>().expect("prefix").contains(key.client.ip());
        assert!(client || identity.instance != CONFINED, "{key:?} was claimed by a key that may not");
        for _ in held {
            self.router.count(Outcome::ForwardedLate);
        }
        self.claims.insert(key, (identity, flow));
    }

    fn response(&mut self, input: &mut Input<'_>) {
        let key = key(input);
        let header =
            TcpHeader::bare(Seq(1), Seq(1), input.of(&[Flags::ACK, Flags::SYN | Flags::ACK, Flags::RST]), 0);
        self.packets += 1;
        let packet = Packet { src: key.server, dst: key.client, header, payload: &[] };
        match self.router.handle_response(self.now, self.packets, &packet) {
            Disposition::Forward(conn, flow) => {
                self.router.count(Outcome::Forwarded);
                let (identity, name) = self.claims.get(&key).expect("claimed once");
                assert_eq!(flow, *name);
                assert!(self.live.contains(&(conn, *identity)), "forwarded to {conn:?}");
            }
            Disposition::Held if self.unclaimed == Unclaimed::Accept => self.waiting.push(self.packets),
            Disposition::Held | Disposition::Drop => {}
            Disposition::Accept => {
                assert_eq!(self.unclaimed, Unclaimed::Accept);
                let target = TARGETS.iter().any(|target| SocketAddr::from(*target) == key.server);
                assert!(!target || self.now >= Time::ZERO + Duration::from_secs(10), "before it has settled");
            }
        }
    }

    fn drain(&mut self) {
        while let Some((packet, verdict)) = self.router.poll_verdict() {
            assert!(verdict == Verdict::Drop || self.now >= Time::ZERO + Duration::from_secs(10));
            let at = self.waiting.iter().position(|waiting| *waiting == packet);
            self.waiting.swap_remove(at.expect("one verdict for each packet"));
        }
        while let Some((conn, _)) = self.router.poll_evicted() {
            assert!(self.live.iter().any(|(live, _)| *live == conn));
        }
    }

    fn check(&self) {
        assert!(self.router.flows() <= MAX_FLOWS && self.router.held() <= MAX_HELD);
        let outcomes = &self.router.counters().outcomes;
        assert_eq!(outcomes.total() + self.router.held() as u64, u64::from(self.packets));
        match self.unclaimed {
            Unclaimed::Drop => assert_eq!(outcomes.of(Outcome::UnclaimedAccepted), 0),
            Unclaimed::Accept => assert_eq!(self.waiting.len(), self.router.held()),
        }
    }
}

fn key(input: &mut Input<'_>) -> FlowKey {
    let server = input.of(&[TARGETS[0], TARGETS[0], TARGETS[1], FOREIGN]);
    let (client, port) = (input.of(&[[10, 9, 0, 1], [10, 9, 1, 1]]), 1 + u16::from(input.u8() % 8));
    FlowKey { client: (client, port).into(), server: server.into() }
}
