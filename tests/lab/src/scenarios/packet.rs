//! Capture by packet sockets (`capture.source = "packet"`): the same fidelity, and production as untouched.

use anyhow::{Result, ensure};

use super::ongoing::{RATE, after, begin, end, production};
use super::{Context, Offloads, Scenario, loss};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::{Connections, Pace, Request};
use crate::network::{Family, Role};
use crate::sys::Signal;

/// Two workers, so that the kernel splits the packets.
const OPTIONS: &str = "--capture-source packet --workers 2";

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for family in [Family::V4, Family::V6] {
        let loads = [
            ("keep-alive-5000", 5_000, keep_alive(50), Request::Get(100)),
            ("short-1000", 1_000, short(), Request::Get(100)),
            // Packets that the network card, or the veth, has merged.
            ("post-1mb", 10, keep_alive(4), Request::Post(1 << 20)),
        ];
        for (name, rate, connections, request) in loads {
            let name = format!("packet/{name}-{}", family.name());
            scenarios.push(Scenario::new(name, Offloads::Both, move |context| {
                arrives(context, family, rate, connections, request)
            }));
        }
    }
    for (name, connections) in [("keep-alive", keep_alive(20)), ("short", short())] {
        for family in [Family::V4, Family::V6] {
            let name = format!("packet/embedded-{name}-{}", family.name());
            scenarios.push(Scenario::new(name, Offloads::On, move |context| {
                embedded(context, family, connections)
            }));
        }
        let damaged = format!("packet/damaged-requests-{name}");
        scenarios.push(Scenario::new(damaged, Offloads::Off, move |context| {
            loss::damaged(context, OPTIONS, connections)
        }));
        scenarios.push(Scenario::new(
            format!("packet/frozen-and-killed-{name}"),
            Offloads::On,
            move |context| frozen_and_killed(context, connections),
        ));
    }
    scenarios
}

fn arrives(
    context: &Context,
    family: Family,
    rate: u32,
    connections: Connections,
    request: Request,
) -> Result<String> {
    let setup = Setup::new(context.plan(), family).tcpcopy(OPTIONS);
    let mut chain = Chain::start(setup, &context.scratch)?;
    ensure!(!chain.has_table(Role::Online, 0, "tcpcopy")?, "there are rules");
    let load = chain.load(Pace::Rate(rate), connections, context.seconds(2))?;
    let mut report = chain.run(crate::load::Load { request, ..load })?;
    let comparison = chain.expect_perfect(1)?;
    if let Request::Post(size) = request {
        chain.check_bodies(size)?;
    }
    chain.account()?;
    chain.finish()?;
    Ok(format!("{comparison}, {}", production(&mut report)))
}

/// Rules take the responses, and nothing else.
fn embedded(context: &Context, family: Family, connections: Connections) -> Result<String> {
    let setup = Setup::new(context.plan(), family).embedded().tcpcopy(OPTIONS);
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(1_000), connections, context.seconds(2))?;
    let mut report = chain.run(load)?;
    let comparison = chain.expect_perfect(1)?;
    chain.account()?;
    chain.finish()?;
    Ok(format!("{comparison}, {}", production(&mut report)))
}

/// tcpcopy is frozen for three seconds and then killed, under load: no client notices.
fn frozen_and_killed(context: &Context, connections: Connections) -> Result<String> {
    let setup = Setup::new(context.plan(), Family::V4).tcpcopy(OPTIONS);
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = begin(&mut chain, connections, 60)?;
    after(&load, 1_000)?;
    chain.tcpcopy(0)?.signal(Signal::Stop)?;
    after(&load, 3 * u64::from(RATE))?;
    chain.tcpcopy(0)?.kill()?;
    after(&load, 1_000)?;
    chain.start_tcpcopies()?;
    after(&load, 1_000)?;
    let mut report = end(load)?;
    chain.finish()?;
    Ok(production(&mut report))
}
