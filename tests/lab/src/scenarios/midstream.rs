//! Connections that are older than the replay.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::ongoing::{after, begin, by_connection, end};
use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::{Connections, Pace};
use crate::network::Family;
use crate::wait;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (name, pace, connections, requests) in
        [("200", Pace::Rate(200), keep_alive(10), 400), ("saturation", Pace::Flood, keep_alive(50), 100_000)]
    {
        scenarios.push(Scenario::new(format!("midstream/joined-at-{name}"), Offloads::On, move |context| {
            joined(context, pace, connections, if context.long { 10 * requests } else { requests })
        }));
    }
    for (kind, connections) in [("keep-alive", keep_alive(20)), ("short", short())] {
        scenarios.push(Scenario::new(
            format!("midstream/tcpcopy-restarted-{kind}"),
            Offloads::On,
            move |context| restarted(context, connections),
        ));
    }
    scenarios
}

/// tcpcopy starts while connections are busy: from `ready` on, all but one exchange of each connection is replayed.
fn joined(context: &Context, pace: Pace, connections: Connections, requests: u64) -> Result<String> {
    let mut chain = Chain::prepare(Setup::new(context.plan(), Family::V4), &context.scratch)?;
    chain.start_intercepts()?;
    let load = chain.load(pace, connections, 600)?;
    let first = load.first_id;
    let load = chain.begin(load)?;
    after(&load, requests / 2)?;
    chain.start_tcpcopies()?;
    let ready = first + load.progress().made();
    after(&load, requests)?;
    let report = end(load)?;
    let comparison = chain.compare(1)?;
    let (expected, missing) = missing(&mut chain, ready)?;
    let counters = chain.stop_tcpcopies()?;
    ensure!(
        missing.is_empty(),
        "{} of {expected} requests after `ready` are missing, first {:?}; {comparison}; {counters}",
        missing.len(),
        missing.first()
    );
    ensure!(comparison.duplicated == 0 && comparison.extra == 0 && comparison.failed == 0, "{comparison}");
    chain.finish()?;
    Ok(format!("all {expected} requests after `ready` arrived, {:.0} requests/s", report.rate()))
}

/// tcpcopy is stopped and started again: only what passed meanwhile is missing, and on each connection the exchange before
/// and the one after.
fn restarted(context: &Context, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(Setup::new(context.plan(), Family::V4), &context.scratch)?;
    let load = begin(&mut chain, connections, 60)?;
    let first = 1;
    after(&load, 1_000)?;
    // What was made by now is not in flight any more when tcpcopy stops.
    let before = first + load.progress().made();
    wait::until(Duration::from_secs(5), "the replay keeps up", || {
        let target = chain.target()?;
        Ok((first..before).all(|id| target.count(id) > 0))
    })?;
    chain.stop_tcpcopies()?;
    after(&load, 1_000)?;
    chain.start_tcpcopies()?;
    let ready = first + load.progress().made();
    after(&load, 2_000)?;
    end(load)?;
    let comparison = chain.compare(1)?;
    let (expected, missing) = missing(&mut chain, ready)?;
    ensure!(
        missing.is_empty(),
        "{} of {expected} requests after `ready` are missing, first {:?}; {comparison}",
        missing.len(),
        missing.first()
    );
    ensure!(comparison.duplicated == 0 && comparison.extra == 0, "{comparison}");
    chain.finish()?;
    Ok(format!("all {before} before and {expected} after, {} passed meanwhile", comparison.lost_count))
}

/// How many requests must have been replayed once ids have reached `from`, and which of them were not. On a connection
/// that is older, one exchange is needed to find its place.
fn missing(chain: &mut Chain, from: u64) -> Result<(usize, Vec<u64>)> {
    let target = chain.target()?;
    let connections = by_connection(chain.online_observers());
    let mut expected = 0;
    let mut missing = Vec::new();
    for ids in connections.into_values() {
        let older = ids.first().is_some_and(|&id| id < from);
        let due = ids.iter().filter(|id| **id >= from).skip(usize::from(older));
        due.clone().for_each(|_| expected += 1);
        missing.extend(due.copied().filter(|&id| target.count(id) == 0));
    }
    missing.sort_unstable();
    Ok((expected, missing))
}
