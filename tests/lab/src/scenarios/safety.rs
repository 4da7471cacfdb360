//! Production goes on whatever happens to the daemons, and no client ever sees a packet of the target.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::ongoing::{RATE, after, begin, end, production};
use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::{Connections, Pace};
use crate::namespace::without_counts;
use crate::network::{Family, Plan, Role};
use crate::sys::Signal;
use crate::wait;

/// The sink's name, unless configured otherwise.
const SINK: &str = "tcpcopy0";
/// How long a daemon may take to notice and repair.
const REPAIR: Duration = Duration::from_secs(5);

/// With `unclaimed = "accept"`, nothing goes on in the first 10 s after a start, and the target's SYN-ACK comes again after
/// 1, 3, 7 and 15 s.
const SETTLED: Duration = Duration::from_secs(20);

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for family in [Family::V4, Family::V6] {
        for (what, accept) in [("drop", false), ("accept", true)] {
            let name = format!("safety/unclaimed-{what}-{}", family.name());
            scenarios.push(Scenario::new(name, Offloads::On, move |context| {
                let mut setup = Setup::new(forwarding(context), family);
                setup.intercept = vec!["--unclaimed".to_owned(), what.to_owned()];
                unclaimed(context, setup, accept)
            }));
        }
    }
    for (kind, connections) in [("keep-alive", keep_alive(20)), ("short", short())] {
        for family in [Family::V4, Family::V6] {
            let name = |what: &str| format!("safety/{what}-{kind}-{}", family.name());
            scenarios.push(Scenario::new(
                name("intercept-killed-forwarding"),
                Offloads::On,
                move |context| {
                    intercept_killed(context, Setup::new(forwarding(context), family), connections)
                },
            ));
            scenarios.push(Scenario::new(name("tcpcopy-killed"), Offloads::On, move |context| {
                tcpcopy_killed(context, Setup::new(context.plan(), family), connections)
            }));
        }
        let name = |what: &str| format!("safety/{what}-{kind}");
        scenarios.push(Scenario::new(name("tcpcopy-frozen-10s"), Offloads::On, move |context| {
            tcpcopy_frozen(context, Setup::new(context.plan(), Family::V4), connections)
        }));
        scenarios.push(Scenario::new(name("sink-deleted"), Offloads::On, move |context| {
            sink_deleted(context, Setup::new(context.plan(), Family::V4), connections)
        }));
        scenarios.push(Scenario::new(name("tcpcopy-stopped-and-started"), Offloads::On, move |context| {
            tcpcopy_restarted(context, Setup::new(context.plan(), Family::V4), connections)
        }));
        scenarios.push(Scenario::new(name("ruleset-flushed"), Offloads::On, move |context| {
            ruleset_flushed(context, connections)
        }));
    }
    scenarios
}

/// A network whose assistant forwards.
fn forwarding(context: &Context) -> Plan {
    Plan { forwarding: true, ..context.plan() }
}

/// A response that nobody claimed ends on the assistant, although it forwards; with `accept` it goes on.
pub(super) fn unclaimed(context: &Context, setup: Setup, accept: bool) -> Result<String> {
    let family = setup.family;
    let mut chain = Chain::start(setup, &context.scratch)?;
    if accept {
        // What is replayed goes on to nobody all the same.
        let load = chain.load(Pace::Rate(RATE), short(), 2)?;
        chain.run(load)?;
        chain.expect_perfect(1)?;
        chain.check_leaks()?;
    }
    let target = chain.network().target(0, family)?;
    let victim = chain.network().host(Role::Client, 0)?.front(family);
    let before = received(&chain)?;
    let online = chain.network().host(Role::Online, 0)?.namespace();
    let forged = online.enter(|| super::itself::forge(victim, target))??;
    // The target sends its answer again for as long as nobody takes it.
    wait::until(REPAIR, "the target answers twice", || Ok(received(&chain)? >= before + 2 || accept))?;
    if accept {
        wait::until(SETTLED, "the response goes on", || Ok(chain.leaks()? > 0))?;
        drop(forged);
        return Ok(format!("{} packets routed", chain.finish_leaking()?));
    }
    drop(forged);
    chain.finish()?;
    Ok("0 packets went on".to_owned())
}

/// Packets that the assistant received from the back network.
fn received(chain: &Chain) -> Result<u64> {
    let assistant = chain.network().host(Role::Assistant, 0)?.namespace();
    Ok(assistant.output("cat", &["/sys/class/net/back/statistics/rx_packets"])?.trim().parse()?)
}

/// The assistant forwards and intercept is killed: the rules that stay keep the responses from the clients; a new
/// intercept goes on.
pub(super) fn intercept_killed(context: &Context, setup: Setup, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = begin(&mut chain, connections, 60)?;
    after(&load, 1_000)?;
    chain.intercept(0)?.kill()?;
    ensure!(chain.has_table(Role::Assistant, 0, "intercept")?, "the rules went with the process");
    after(&load, 2_000)?;
    let replayed = chain.target()?.len();
    ensure!(replayed > 0, "nothing was replayed before");
    chain.check_leaks()?;
    chain.start_intercepts()?;
    after(&load, 1_000)?;
    let mut report = end(load)?;
    chain.check_leaks()?;
    // New sessions are replayed as before.
    let before = chain.target()?.len();
    let load = chain.load(Pace::Rate(RATE), short(), 1)?;
    let again = chain.run(load)?;
    wait::until(REPAIR, "requests arrive again once intercept is back", || {
        Ok(chain.target()?.len() >= before + usize::try_from(again.answered)?)
    })?;
    chain.finish()?;
    Ok(format!("0 packets leaked, {}", production(&mut report)))
}

/// tcpcopy is killed: its rules are gone at once; the next start cleans what the kernel could not.
pub(super) fn tcpcopy_killed(context: &Context, setup: Setup, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(setup, &context.scratch)?;
    ensure!(chain.has_table(Role::Online, 0, "tcpcopy")?, "no rules while tcpcopy runs");
    let load = begin(&mut chain, connections, 60)?;
    after(&load, 1_000)?;
    chain.tcpcopy(0)?.kill()?;
    wait::until(Duration::from_secs(1), "the rules are gone with the process", || {
        Ok(!chain.has_table(Role::Online, 0, "tcpcopy")?)
    })?;
    after(&load, 1_000)?;
    let left = if chain.state(Role::Online, 0)?.has_link(SINK) { "the sink, taken over" } else { "nothing" };
    chain.start_tcpcopies()?;
    after(&load, 1_000)?;
    let mut report = end(load)?;
    expect_replay(&mut chain)?;
    chain.finish()?;
    Ok(format!("left by SIGKILL: {left}; {}", production(&mut report)))
}

/// tcpcopy is frozen for ten seconds, then goes on.
pub(super) fn tcpcopy_frozen(context: &Context, setup: Setup, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = begin(&mut chain, connections, 60)?;
    after(&load, 1_000)?;
    chain.tcpcopy(0)?.signal(Signal::Stop)?;
    after(&load, 10 * u64::from(RATE))?;
    chain.tcpcopy(0)?.signal(Signal::Continue)?;
    after(&load, 1_000)?;
    let mut report = end(load)?;
    expect_replay(&mut chain)?;
    chain.finish()?;
    Ok(production(&mut report))
}

/// Somebody deletes the sink: tcpcopy makes it anew and goes on.
pub(super) fn sink_deleted(context: &Context, setup: Setup, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = begin(&mut chain, connections, 60)?;
    after(&load, 1_000)?;
    chain.network().host(Role::Online, 0)?.namespace().output("ip", &["link", "delete", SINK])?;
    let deleted = Instant::now();
    wait::until(REPAIR, "the sink is back", || Ok(chain.state(Role::Online, 0)?.has_link(SINK)))?;
    let repaired = deleted.elapsed().as_millis();
    after(&load, 1_000)?;
    let mut report = end(load)?;
    expect_replay(&mut chain)?;
    chain.finish()?;
    Ok(format!("sink back after {repaired} ms, {}", production(&mut report)))
}

/// tcpcopy is stopped as an operator does and started again, under load.
pub(super) fn tcpcopy_restarted(context: &Context, setup: Setup, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(setup, &context.scratch)?;
    let clean = chain.state(Role::Client, 0)?;
    let load = begin(&mut chain, connections, 60)?;
    after(&load, 1_000)?;
    chain.tcpcopy(0)?.stop()?;
    let stopped = chain.state(Role::Online, 0)?;
    ensure!(!stopped.has_table("tcpcopy") && !stopped.has_link(SINK), "SIGTERM leaves rules or the sink");
    after(&load, 500)?;
    chain.start_tcpcopies()?;
    after(&load, 1_000)?;
    let mut report = end(load)?;
    expect_replay(&mut chain)?;
    clean.same_as(&chain.state(Role::Client, 0)?)?;
    chain.finish()?;
    Ok(production(&mut report))
}

/// Somebody flushes the rulesets: intercept puts its rules back, tcpcopy keeps them, and no request is lost.
fn ruleset_flushed(context: &Context, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(Setup::new(context.plan(), Family::V4), &context.scratch)?;
    let load = begin(&mut chain, connections, 60)?;
    after(&load, 1_000)?;
    let assistant = chain.network().host(Role::Assistant, 0)?.namespace();
    let before = assistant.output("nft", &["list", "ruleset"])?;
    assistant.output("nft", &["flush", "ruleset"])?;
    // The online host's table is tcpcopy's own: a flush passes it by.
    chain.network().host(Role::Online, 0)?.namespace().output("nft", &["flush", "ruleset"])?;
    ensure!(chain.has_table(Role::Online, 0, "tcpcopy")?, "tcpcopy's table was flushed");
    let flushed = Instant::now();
    wait::until(REPAIR, "the rules are back", || {
        Ok(without_counts(&assistant.output("nft", &["list", "ruleset"])?) == without_counts(&before))
    })?;
    let repaired = flushed.elapsed().as_millis();
    after(&load, 1_000)?;
    let mut report = end(load)?;
    let comparison = chain.expect_perfect(1)?;
    chain.finish()?;
    Ok(format!("rules back after {repaired} ms, {comparison}, {}", production(&mut report)))
}

/// A fresh load is replayed in full.
fn expect_replay(chain: &mut Chain) -> Result<()> {
    let load = chain.load(Pace::Rate(RATE), short(), 1)?;
    let first = load.first_id;
    let report = chain.run(load)?;
    let ids = first..first + report.made;
    let arrived = |chain: &mut Chain| -> Result<u64> {
        Ok(u64::try_from(chain.target()?.ids().filter(|id| ids.contains(id)).count())?)
    };
    wait::until(REPAIR, "new sessions are replayed in full afterwards", || {
        Ok(arrived(chain)? == report.answered)
    })
}
