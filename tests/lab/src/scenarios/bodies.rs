//! Long requests and long responses.

use anyhow::{Result, ensure};

use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::{Connections, Load, Pace, Request};
use crate::network::Family;
use crate::nginx::LONGEST_BODY;

const MIB: usize = LONGEST_BODY;

pub(super) fn scenarios() -> Vec<Scenario> {
    let loads = [
        ("post-1mb", Request::Post(MIB), 10),
        ("get-1mb", Request::Get(MIB), 20),
        ("get-100kb", Request::Get(100_000), 100),
    ];
    let mut scenarios = Vec::new();
    for (name, request, rate) in loads {
        for (kind, connections) in [("keep-alive", keep_alive(8)), ("short", short())] {
            for (family, offloads) in [(Family::V4, Offloads::Both), (Family::V6, Offloads::On)] {
                let name = format!("bodies/{name}-{kind}-{}", family.name());
                scenarios.push(Scenario::new(name, offloads, move |context| {
                    arrive(context, family, Pace::Rate(rate), connections, request, 2)
                }));
            }
        }
    }
    scenarios.push(Scenario::new("bodies/post-1mb-4-at-once", Offloads::Both, |context| {
        // As fast as they can, only on a machine that does nothing else: else its two cores may not carry it.
        let pace = if context.long { Pace::Flood } else { Pace::Rate(60) };
        arrive(context, Family::V4, pace, keep_alive(4), Request::Post(MIB), 1)
    }));
    for family in [Family::V4, Family::V6] {
        let name = format!("bodies/post-1mb-in-trains-{}", family.name());
        scenarios.push(Scenario::new(name, Offloads::Both, move |context| in_trains(context, family)));
    }
    scenarios
}

/// Segments leave together, and are cut behind tcpcopy.
fn in_trains(context: &Context, family: Family) -> Result<String> {
    let setup = Setup::new(context.plan(), family).tcpcopy("--segmentation offload");
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(10), keep_alive(8), context.seconds(2))?;
    chain.run(Load { request: Request::Post(MIB), ..load })?;
    let comparison = chain.expect_perfect(1)?;
    let bodies = chain.check_bodies(MIB)?;
    let (_, counters) = chain.account()?;
    let (trains, segments) = (counters.of("trains"), counters.of("segments"));
    ensure!(trains * 4 > bodies as u64 * (MIB as u64 >> 16), "{trains} trains of {segments} segments");
    chain.finish()?;
    Ok(format!("{comparison}, {bodies} bodies equal, {segments} segments, most of them in {trains} trains"))
}

fn arrive(
    context: &Context,
    family: Family,
    pace: Pace,
    connections: Connections,
    request: Request,
    seconds: u64,
) -> Result<String> {
    // Four clients can send more in a second than the target takes meanwhile: it waits in memory.
    let setup = Setup::new(context.plan(), family).tcpcopy("--memory-limit 2GiB");
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(pace, connections, context.seconds(seconds))?;
    let report = chain.run(Load { request, ..load })?;
    let comparison = chain.expect_perfect(1)?;
    let bodies = match request {
        Request::Post(size) => {
            let bodies = chain.check_bodies(size)?;
            ensure!(bodies == comparison.online, "{bodies} bodies of {}", comparison.online);
            format!(", {bodies} bodies equal")
        }
        Request::Get(_) => String::new(),
    };
    chain.finish()?;
    Ok(format!("{comparison}{bodies}, {:.0} requests/s", report.rate()))
}
