//! Every request that the online server answered is answered once by the target.

use anyhow::Result;

use super::steady::{self, Steady};
use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::{Closer, Connections};
use crate::network::Family;

pub(super) fn scenarios() -> Vec<Scenario> {
    let loads = [
        ("keep-alive-200", Steady::new(200, keep_alive(10))),
        ("keep-alive-5000", Steady::new(5_000, keep_alive(50))),
        ("keep-alive-10000", Steady::new(10_000, keep_alive(50))),
        ("short-500", Steady::new(500, short())),
        ("short-1000", Steady::new(1_000, short())),
        ("short-4000", Steady::new(4_000, short())),
    ];
    let mut scenarios = steady::scenarios("fidelity", loads, arrives);
    // The client closes first: its FIN, not the server's, begins the end on the target as well.
    let load = Steady::new(1_000, Connections::Short(2000, Closer::Client));
    scenarios.push(Scenario::new("fidelity/short-client-closes-1000", Offloads::On, move |context| {
        arrives(context, Family::V4, load)
    }));
    scenarios
}

fn arrives(context: &Context, family: Family, load: Steady) -> Result<String> {
    let mut chain = Chain::start(Setup::new(context.plan(), family), &context.scratch)?;
    let (mut report, comparison) = load.arrives(context, &mut chain)?;
    chain.finish()?;
    let (p50, p99) = (report.latency.at(500), report.latency.at(990));
    Ok(format!("{comparison}, production p50 {p50} µs, p99 {p99} µs"))
}
