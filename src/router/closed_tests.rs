//! With `unclaimed = accept`: no flow that was ever claimed is let through, with the kernel's sets as a model.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;

use super::tests::{A, ANN, B, BOB, ack, at, key, response, settings};
use super::*;
use crate::wire::Flags;

/// How long the kernel keeps a flow closed after its last packet.
const SILENCE: Duration = Duration::from_secs(190);
const ABANDONED: Duration = Duration::from_secs(3600);

/// The sets of the kernel, as the rules use them.
#[derive(Default)]
struct Kernel {
    claimed: HashSet<FlowKey>,
    closing: HashMap<FlowKey, Time>,
}

impl Kernel {
    fn retire(&mut self, now: Time, flow: FlowKey) {
        self.claimed.remove(&flow);
        self.closing.insert(flow, now + ABANDONED);
    }

    /// A packet on its way to the queue: it keeps its flow closed.
    fn meets(&mut self, now: Time, flow: &FlowKey) {
        self.closing.retain(|_, until| now < *until);
        if let Some(until) = self.closing.get_mut(flow) {
            *until = now + SILENCE;
        }
    }

    /// Whether a packet that the queue let go passes.
    fn passes(&self, now: Time, flow: &FlowKey) -> bool {
        !self.claimed.contains(flow) && self.closing.get(flow).is_none_or(|until| *until <= now)
    }
}

/// A router, the kernel, and what is known of each flow besides.
struct World {
    router: Router,
    kernel: Kernel,
    now: Time,
    /// When a flow that was ever claimed was last claimed, or had a packet.
    last: HashMap<FlowKey, Time>,
    /// Claims in force, by the claimers' lights.
    flows: HashMap<(ConnId, u16), FlowId>,
    next: u64,
    passed: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            router: Router::new(at(0), settings(Unclaimed::Accept)),
            kernel: Kernel::default(),
            now: at(0),
            last: HashMap::new(),
            flows: HashMap::new(),
            next: 0,
            passed: 0,
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.router.connect(A, ANN, None);
        self.router.connect(B, BOB, None);
    }

    /// What the worker does at the end of a turn.
    fn turn(&mut self) {
        self.router.handle_timeout(self.now);
        while let Some(flow) = self.router.poll_retired(self.now) {
            self.kernel.retire(self.now, flow);
        }
        while self.router.poll_evicted().is_some() {}
        while let Some((packet, verdict)) = self.router.poll_verdict() {
            if verdict == Verdict::Accept {
                self.let_go(key(u16::try_from(packet).expect("a port")));
            }
        }
        let held: Vec<_> = self.router.claimed_flows().collect();
        for flow in held {
            assert!(self.kernel.claimed.contains(&flow), "{flow:?} is claimed, and the kernel does not know");
            self.last.insert(flow, self.now);
        }
    }

    fn let_go(&mut self, flow: FlowKey) {
        if self.kernel.passes(self.now, &flow) {
            self.passed += 1;
            let last = self.last.get(&flow);
            assert!(last.is_none_or(|last| *last + SILENCE <= self.now), "{flow:?} was claimed, and passes");
        }
    }

    fn step(&mut self, kind: u8, port: u16, millis: u64) {
        let conn = if port.is_multiple_of(2) { A } else { B };
        match kind {
            0..3 => {
                let flow = FlowId(self.next);
                self.next += 1;
                if self.router.claim(self.now, conn, flow, key(port)).is_ok() {
                    self.kernel.claimed.insert(key(port));
                    self.flows.insert((conn, port), flow);
                }
            }
            3 => {
                if let Some(flow) = self.flows.remove(&(conn, port)) {
                    self.router.release(self.now, conn, flow);
                }
            }
            4..7 => {
                let flags = if kind == 4 { Flags::SYN | Flags::ACK } else { Flags::ACK };
                self.kernel.meets(self.now, &key(port));
                if let Some(last) = self.last.get_mut(&key(port))
                    && self.now < *last + SILENCE
                {
                    *last = self.now;
                }
                let packet = response(key(port), flags);
                if self.router.handle_response(self.now, port.into(), &packet) == Disposition::Accept {
                    self.let_go(key(port));
                }
            }
            7 => {
                self.router.disconnect(conn);
                self.flows.retain(|(of, _), _| *of != conn);
                self.turn();
                self.connect();
            }
            8 => {
                // Killed, and started again.
                self.router = Router::new(self.now, settings(Unclaimed::Accept));
                let left: Vec<_> = self.kernel.claimed.iter().copied().collect();
                for flow in left {
                    self.kernel.retire(self.now, flow);
                }
                for flow in self.kernel.closing.keys() {
                    self.router.close(self.now, *flow);
                }
                self.flows.clear();
                self.connect();
            }
            9 => self.now += Duration::from_secs(millis / 4),
            _ => self.now += Duration::from_millis(millis),
        }
        self.turn();
    }
}

proptest! {
    #[test]
    fn no_flow_that_was_claimed_is_let_through(
        steps in proptest::collection::vec((0u8..12, 1u16..12, 0u64..1000), 1..400),
    ) {
        let mut world = World::new();
        for (kind, port, millis) in steps {
            world.step(kind, port, millis);
        }
    }
}

#[test]
fn what_was_never_claimed_passes_in_the_model() {
    let mut world = World::new();
    world.step(5, 1, 0);
    world.step(9, 1, 60_000);
    assert_eq!(world.passed, 1);
}

#[test]
fn a_flow_that_made_room_stays_closed() {
    let mut router = Router::new(at(0), settings(Unclaimed::Accept));
    router.connect(A, ANN, None);
    for port in 1..=4 {
        assert_eq!(router.claim(at(20_000), A, FlowId(port.into()), key(port)), Ok(vec![]));
    }
    for port in 2..=4 {
        assert!(matches!(ack(&mut router, at(31_000), port), Disposition::Forward(..)));
    }
    assert_eq!(router.claim(at(31_001), A, FlowId(5), key(5)), Ok(vec![]));
    assert_eq!(router.poll_evicted(), Some((A, FlowId(1))));
    assert_eq!(router.poll_retired(at(31_001)), Some(key(1)));
    assert_eq!(router.poll_retired(at(31_001)), None);
    assert_eq!(ack(&mut router, at(31_500), 1), Disposition::Drop);
    // And claimed again, it is forwarded.
    router.release(at(32_000), A, FlowId(2));
    assert_eq!(router.poll_retired(at(32_000)), Some(key(2)));
    assert_eq!(router.claim(at(32_001), A, FlowId(6), key(1)), Ok(vec![]));
    assert_eq!(ack(&mut router, at(32_002), 1), Disposition::Forward(A, FlowId(6)));
}

#[test]
fn a_flow_that_is_claimed_again_is_not_retired() {
    let mut router = Router::new(at(0), settings(Unclaimed::Accept));
    router.connect(A, ANN, None);
    assert_eq!(router.claim(at(20_000), A, FlowId(1), key(1)), Ok(vec![]));
    assert_eq!(router.claim(at(20_001), A, FlowId(2), key(1)), Ok(vec![]));
    assert_eq!(router.poll_retired(at(20_002)), None);
}
