//! What must hold, by subject. Each scenario runs in namespaces of its own and ends with figures or an error.

mod bodies;
mod both_speak;
mod by_hand;
mod chaos;
mod embedded;
mod errors;
mod fidelity;
mod http;
mod http2;
mod itself;
mod legacy;
mod loss;
mod matrix;
mod memcached;
mod midstream;
mod on_target;
mod ongoing;
mod outage;
mod packet;
mod postgres;
mod redis;
mod safety;
mod scale;
mod slow;
mod steady;
mod tapped;
mod topology;
mod tunnel;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::network::Plan;

/// How a scenario is run.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// Whether veth does segmentation, receive and checksum offload.
    pub(crate) offloads: bool,
    /// Whether to take the time for long loads.
    pub(crate) long: bool,
    /// What random values come from.
    pub(crate) seed: u64,
    /// The directory for its files.
    pub(crate) scratch: PathBuf,
}

impl Context {
    /// The plain network under these circumstances.
    pub(crate) fn plan(&self) -> Plan {
        Plan { offloads: self.offloads, ..Plan::default() }
    }

    /// The length of a load: `short` seconds, or ten times that in a long run.
    pub(crate) fn seconds(&self, short: u64) -> u64 {
        if self.long { short * 10 } else { short }
    }
}

/// With which offloads a scenario runs unless the command line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offloads {
    /// On, then off.
    Both,
    /// On: as machines come.
    On,
    /// Off: as the C tools were measured.
    Off,
}

/// What a scenario does; its figures are one line.
type Body = Box<dyn Fn(&Context) -> Result<String>>;

/// Something that must hold.
pub(crate) struct Scenario {
    /// `subject/what`.
    pub(crate) name: String,
    /// With which offloads it runs.
    pub(crate) offloads: Offloads,
    /// How long it may take; ten times that in a long run.
    pub(crate) limit: Duration,
    /// Whether it runs by itself: it measures time, cost or memory, or takes all the processors.
    pub(crate) alone: bool,
    /// What it does.
    pub(crate) body: Body,
}

impl Scenario {
    fn new(
        name: impl Into<String>,
        offloads: Offloads,
        body: impl Fn(&Context) -> Result<String> + 'static,
    ) -> Self {
        let (limit, body) = (Duration::from_secs(60), Box::new(body));
        Self { name: name.into(), offloads, limit, alone: false, body }
    }

    /// The same, never beside another scenario.
    fn alone(self) -> Self {
        Self { alone: true, ..self }
    }
}

/// All scenarios, in the order in which they run.
pub(crate) fn all() -> Vec<Scenario> {
    let subjects = [
        itself::scenarios(),
        fidelity::scenarios(),
        bodies::scenarios(),
        safety::scenarios(),
        matrix::scenarios(),
        packet::scenarios(),
        tapped::scenarios(),
        topology::scenarios(),
        by_hand::scenarios(),
        on_target::scenarios(),
        embedded::scenarios(),
        loss::scenarios(),
        midstream::scenarios(),
        outage::scenarios(),
        chaos::scenarios(),
        tunnel::scenarios(),
        legacy::scenarios(),
        scale::scenarios(),
        slow::scenarios(),
        errors::scenarios(),
        http::scenarios(),
        http2::scenarios(),
        both_speak::scenarios(),
        redis::scenarios(),
        memcached::scenarios(),
        postgres::scenarios(),
    ];
    subjects.into_iter().flatten().collect()
}
