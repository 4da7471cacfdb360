//! Bad networks between the hosts of the replay cost time, and no request.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::faults::{self, Leg};
use crate::load::{Connections, Load, Pace, Request};
use crate::middlebox::{Fault, Middlebox};
use crate::network::{Family, Plan, Role, Segment};

/// Requests a second.
const RATE: u32 = 800;
/// A packet can be lost several times in a row, and is sent again after up to four seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Frames of a hundred that are overtaken.
const OVERTAKEN: u8 = 10;
/// Frames of a hundred that are damaged.
const DAMAGED: u8 = 1;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for leg in [Leg::Requests, Leg::Responses, Leg::Tunnel] {
        for (kind, connections) in [("keep-alive", keep_alive(20)), ("short", short())] {
            for percent in [1, 5] {
                let name = format!("loss/{percent}-percent-{}-{kind}", leg.name());
                scenarios.push(Scenario::new(name, Offloads::On, move |context| {
                    lost(context, Setup::new(context.plan(), Family::V4), leg, percent, connections)
                }));
            }
            let name = format!("loss/reordering-{}-{kind}", leg.name());
            scenarios.push(Scenario::new(name, Offloads::Off, move |context| {
                reordered(context, leg, connections)
            }));
        }
    }
    for (kind, connections) in [("keep-alive", keep_alive(20)), ("short", short())] {
        let name = format!("loss/damaged-requests-{kind}");
        scenarios.push(Scenario::new(name, Offloads::Off, move |context| damaged(context, "", connections)));
    }
    scenarios.push(Scenario::new("loss/1-percent-requests-in-trains", Offloads::Both, lost_trains));
    scenarios
}

/// Segments leave together (or what the kernel has cut of them), and some are lost.
fn lost_trains(context: &Context) -> Result<String> {
    const SIZE: usize = 200_000;
    let setup = Setup::new(context.plan(), Family::V4).tcpcopy("--segmentation offload");
    let mut chain = Chain::start(Setup { patience: PATIENCE, ..setup }, &context.scratch)?;
    faults::lose(&chain, Leg::Requests, 1)?;
    let load = chain.load(Pace::Rate(RATE / 10), keep_alive(20), context.seconds(1))?;
    chain.run(Load { request: Request::Post(SIZE), ..load })?;
    let comparison = chain.expect_perfect(1)?;
    let bodies = chain.check_bodies(SIZE)?;
    let packets = faults::stop_losing(&chain, Leg::Requests)?;
    let trains = chain.account()?.1.of("trains");
    ensure!(packets > 0 && trains > 0, "{packets} packets lost, {trains} trains");
    chain.finish()?;
    Ok(format!("{comparison}, {bodies} bodies equal, {packets} packets lost, {trains} trains"))
}

/// Some packets of production's clients are damaged: its TCP refuses them, and the clients send them again.
pub(super) fn damaged(context: &Context, options: &str, connections: Connections) -> Result<String> {
    const SIZE: usize = 20_000;
    let plan = Plan { offloads: false, ..context.plan() };
    let setup = Setup { patience: PATIENCE, ..Setup::new(plan, Family::V4).tcpcopy(options) };
    let mut chain = Chain::start(setup, &context.scratch)?;
    let online = chain.network().host(Role::Online, 0)?;
    let middlebox = Middlebox::start(online, Segment::Front, 80, DAMAGED, Fault::Damaged)?;
    let load = chain.load(Pace::Rate(RATE / 4), connections, context.seconds(1))?;
    chain.run(Load { request: Request::Post(SIZE), ..load })?;
    let comparison = chain.expect_perfect(1)?;
    chain.check_bodies(SIZE)?;
    let damaged = middlebox.finish()?;
    let rejected = chain.account()?.1.of("rejected");
    ensure!(damaged > 0 && rejected > 0, "{damaged} packets damaged, {rejected} rejected");
    chain.finish()?;
    Ok(format!("{comparison}, {damaged} packets damaged, {rejected} rejected"))
}

/// Some packets of a leg are lost.
pub(super) fn lost(
    context: &Context,
    setup: Setup,
    leg: Leg,
    percent: u8,
    connections: Connections,
) -> Result<String> {
    let mut chain = Chain::start(Setup { patience: PATIENCE, ..setup }, &context.scratch)?;
    faults::lose(&chain, leg, percent)?;
    let load = chain.load(Pace::Rate(RATE), connections, context.seconds(1))?;
    chain.run(load)?;
    let comparison = chain.expect_perfect(1)?;
    let packets = faults::stop_losing(&chain, leg)?;
    ensure!(packets > 0 || leg == Leg::Tunnel, "no packet was lost");
    chain.finish()?;
    Ok(format!("{comparison}, {packets} packets lost"))
}

/// Some packets of a leg are overtaken by those after them.
fn reordered(context: &Context, leg: Leg, connections: Connections) -> Result<String> {
    let plan = Plan { offloads: false, ..context.plan() };
    let setup = Setup { patience: PATIENCE, ..Setup::new(plan, Family::V4) };
    let mut chain = Chain::start(setup, &context.scratch)?;
    // As many packets as an order needs.
    let (request, role, port) = match leg {
        Leg::Requests => (Request::Post(20_000), Role::Target, 80),
        Leg::Responses => (Request::Get(10_000), Role::Target, 80),
        Leg::Tunnel => (Request::Get(10_000), Role::Assistant, 36524),
    };
    let middlebox =
        Middlebox::start(chain.network().host(role, 0)?, Segment::Back, port, OVERTAKEN, Fault::Late)?;
    let load = chain.load(Pace::Rate(RATE / 4), connections, context.seconds(1))?;
    chain.run(Load { request, ..load })?;
    let comparison = chain.expect_perfect(1)?;
    if let Request::Post(size) = request {
        chain.check_bodies(size)?;
    }
    let overtaken = middlebox.finish()?;
    ensure!(overtaken > 0, "no packet was overtaken");
    chain.finish()?;
    Ok(format!("{comparison}, {overtaken} packets overtaken"))
}
