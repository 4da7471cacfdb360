//! Fair shares: a claimer below its share is never refused, and loses nothing.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::wire::{FlowId, Time};

const TARGET: ([u8; 4], u16) = ([10, 0, 0, 2], 80);

/// Claimers: two instances of one tenant, the first with two workers, and two tenants with one instance each.
const CLAIMERS: [Identity; 5] =
    [claimer(1, 1, 0), claimer(1, 1, 1), claimer(1, 2, 0), claimer(2, 1, 0), claimer(3, 1, 0)];

const fn claimer(tenant: u8, instance: u64, worker: u16) -> Identity {
    Identity { tenant: Tenant::Key([tenant; 4]), instance, worker }
}

fn flow_key(number: u16) -> FlowKey {
    FlowKey { client: ([10, 9, 0, 1], number).into(), server: TARGET.into() }
}

fn at(millis: u64) -> Time {
    Time::from_micros(millis * 1000)
}

type Instance = (Tenant, u64);

/// The router beside a plain account of who is connected and who has which flow.
struct Bench {
    router: Router,
    limit: usize,
    now: Time,
    connected: HashMap<Identity, ConnId>,
    flows: HashMap<FlowKey, (Identity, FlowId)>,
    /// How many connections and claims there have been.
    count: u64,
}

impl Bench {
    fn new(limit: usize) -> Self {
        let settings = Settings { max_flows: limit, ..Settings::new(vec![TARGET.into()], Unclaimed::Drop) };
        Self {
            router: Router::new(at(0), settings),
            limit,
            now: at(0),
            connected: HashMap::new(),
            flows: HashMap::new(),
            count: 0,
        }
    }

    fn connect(&mut self, identity: Identity) {
        self.count += 1;
        let conn = ConnId(self.count);
        assert_eq!(self.router.connect(conn, identity, None), self.connected.insert(identity, conn));
    }

    fn disconnect(&mut self, identity: Identity) {
        if let Some(conn) = self.connected.remove(&identity) {
            self.router.disconnect(conn);
        }
    }

    /// The flows of an instance's connected claimers.
    fn flows_of(&self, (tenant, instance): Instance) -> usize {
        let its = |owner: &Identity| (owner.tenant, owner.instance) == (tenant, instance);
        self.flows.values().filter(|(owner, _)| its(owner) && self.connected.contains_key(owner)).count()
    }

    fn share_of(&self, (tenant, _): Instance) -> usize {
        let tenants: HashSet<_> = self.connected.keys().map(|each| each.tenant).collect();
        let its = self.connected.keys().filter(|each| each.tenant == tenant);
        let instances: HashSet<_> = its.map(|each| each.instance).collect();
        self.limit / tenants.len().max(1) / instances.len().max(1)
    }

    fn claim(&mut self, identity: Identity, number: u16) -> Result<(), TestCaseError> {
        let Some(conn) = self.connected.get(&identity).copied() else { return Ok(()) };
        self.count += 1;
        let (flow, key) = (FlowId(self.count), flow_key(number));
        let instance = (identity.tenant, identity.instance);
        let below = self.flows_of(instance) < self.share_of(instance);
        match self.router.claim(self.now, conn, flow, key) {
            Ok(_) => {
                self.note_evictions(Some(instance))?;
                self.flows.insert(key, (identity, flow));
            }
            Err(Refusal::TableFull) => prop_assert!(!below, "refused below its share"),
            Err(Refusal::Taken) => prop_assert!(self.flows.contains_key(&key)),
            Err(other) => prop_assert!(false, "{other:?}"),
        }
        self.check()
    }

    /// Whoever loses a flow to another one has more than its share.
    fn note_evictions(&mut self, claimer: Option<Instance>) -> Result<(), TestCaseError> {
        while let Some((conn, flow)) = self.router.poll_evicted() {
            let owner = self.connected.iter().find(|(_, each)| **each == conn).map(|(owner, _)| *owner);
            let owner = owner.expect("only who is connected is told");
            let loser = (owner.tenant, owner.instance);
            if claimer.is_some_and(|claimer| claimer != loser) {
                prop_assert!(self.flows_of(loser) > self.share_of(loser), "it loses below its share");
                prop_assert!(self.router.take_displaced().is_some_and(|loss| loss.flows > loss.share));
            }
            let before = self.flows.len();
            self.flows.retain(|_, held| *held != (owner, flow));
            prop_assert_eq!(self.flows.len() + 1, before);
        }
        Ok(())
    }

    /// The router's flows are ours, but for claims of earlier connections that made room: nobody is told of those.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let Self { router, flows, .. } = self;
        flows.retain(|key, _| router.flows.find(key).is_some());
        prop_assert_eq!(self.router.flows(), self.flows.len());
        prop_assert!(self.router.flows() <= self.limit);
        prop_assert_eq!(self.router.by_id.len(), self.router.flows());
        Ok(())
    }
}

proptest! {
    #[test]
    fn below_its_share_nobody_is_refused_or_displaced(
        limit in 1usize..24,
        steps in proptest::collection::vec((0u8..12, 0usize..5, 1u16..60, 0u64..200), 0..400),
    ) {
        let mut bench = Bench::new(limit);
        for (step, who, number, wait) in steps {
            let identity = CLAIMERS[who];
            match step {
                0 => bench.connect(identity),
                1 => bench.disconnect(identity),
                2 => {
                    let held = bench.flows.get(&flow_key(number)).copied();
                    if let Some((owner, flow)) = held && let Some(conn) = bench.connected.get(&owner) {
                        bench.router.release(bench.now, *conn, flow);
                        bench.flows.remove(&flow_key(number));
                    }
                }
                3 => {
                    bench.now += Duration::from_millis(wait * wait);
                    bench.router.handle_timeout(bench.now);
                    bench.note_evictions(None)?;
                    bench.check()?;
                }
                _ => bench.claim(identity, number)?,
            }
        }
    }
}

#[test]
fn a_flood_of_claims_leaves_the_others_their_shares() {
    let mut bench = Bench::new(120);
    for identity in CLAIMERS {
        bench.connect(identity);
    }
    let [_, _, flooder, quiet, busy] = CLAIMERS;
    for number in 1..=10 {
        bench.claim(quiet, 2_000 + number).expect("below its share");
    }
    for number in 1..=1_000 {
        bench.claim(flooder, 3_000 + number).expect("an account that agrees");
        if number % 10 == 0 && number <= 400 {
            bench.claim(busy, 1_000 + number).expect("below its share");
        }
    }
    let counts = [flooder, quiet, busy].map(|each| bench.flows_of((each.tenant, each.instance)));
    assert_eq!(counts, [70, 10, 40], "nobody else wants more");
    assert!(bench.router.counters().refused_full > 0, "all of the flooder's flows are busy");
    assert_eq!(bench.router.counters().displaced, 30);
}
