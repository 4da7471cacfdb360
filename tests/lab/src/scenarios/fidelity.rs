//! Every request that the online server answered is answered once by the target.

use anyhow::Result;

use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::{Closer, Connections, Pace};
use crate::network::Family;

pub(super) fn scenarios() -> Vec<Scenario> {
    let loads = [
        ("keep-alive-200", 200, keep_alive(10)),
        ("keep-alive-5000", 5_000, keep_alive(50)),
        ("keep-alive-10000", 10_000, keep_alive(50)),
        ("short-500", 500, short()),
        ("short-1000", 1_000, short()),
        ("short-4000", 4_000, short()),
    ];
    let mut scenarios = Vec::new();
    for (name, rate, connections) in loads {
        for family in [Family::V4, Family::V6] {
            let name = format!("fidelity/{name}-{}", family.name());
            scenarios.push(Scenario::new(name, Offloads::Both, move |context| {
                arrives(context, family, rate, connections)
            }));
        }
    }
    // The client closes first: its FIN, not the server's, begins the end on the target as well.
    let connections = Connections::Short(2000, Closer::Client);
    scenarios.push(Scenario::new("fidelity/short-client-closes-1000", Offloads::On, move |context| {
        arrives(context, Family::V4, 1_000, connections)
    }));
    scenarios
}

fn arrives(context: &Context, family: Family, rate: u32, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(Setup::new(context.plan(), family), &context.scratch)?;
    let load = chain.load(Pace::Rate(rate), connections, context.seconds(2))?;
    let mut report = chain.run(load)?;
    let comparison = chain.expect_perfect(1)?;
    chain.finish()?;
    let (p50, p99) = (report.latency.at(500), report.latency.at(990));
    Ok(format!("{comparison}, production p50 {p50} µs, p99 {p99} µs"))
}
