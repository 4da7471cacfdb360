//! Capture by packet sockets (`capture.source = "packet"`): the same fidelity, and production as untouched.

use anyhow::{Result, ensure};

use super::ongoing::{RATE, after, begin, end, production};
use super::steady::{self, Steady};
use super::{Context, Offloads, Scenario, loss};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::{Connections, Request};
use crate::network::{Family, Role};
use crate::sys::Signal;

/// Two workers, so that the kernel splits the packets.
const OPTIONS: &str = "--capture-source packet --workers 2";

pub(super) fn scenarios() -> Vec<Scenario> {
    let loads = [
        ("keep-alive-5000", Steady::new(5_000, keep_alive(50))),
        ("short-1000", Steady::new(1_000, short())),
        // Packets that the network card, or the veth, has merged.
        ("post-1mb", Steady::new(10, keep_alive(4)).asking(Request::Post(1 << 20))),
    ];
    let mut scenarios = steady::scenarios("packet", loads, arrives);
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

fn arrives(context: &Context, family: Family, load: Steady) -> Result<String> {
    let setup = Setup::new(context.plan(), family).tcpcopy(OPTIONS);
    let mut chain = Chain::start(setup, &context.scratch)?;
    // The only rules keep ICMP errors about replayed packets from the clients.
    let rules = chain.network().host(Role::Online, 0)?.namespace().output("nft", &["list", "ruleset"])?;
    ensure!(!rules.contains("chain capture") && !rules.contains("chain copies"), "rules capture:\n{rules}");
    let (mut report, comparison) = load.arrives(context, &mut chain)?;
    chain.account()?;
    chain.finish()?;
    Ok(format!("{comparison}, {}", production(&mut report)))
}

/// Rules take the responses, and nothing else.
fn embedded(context: &Context, family: Family, connections: Connections) -> Result<String> {
    let setup = Setup::new(context.plan(), family).embedded().tcpcopy(OPTIONS);
    let mut chain = Chain::start(setup, &context.scratch)?;
    let (mut report, comparison) = Steady::new(1_000, connections).arrives(context, &mut chain)?;
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
