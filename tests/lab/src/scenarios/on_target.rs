//! intercept on the target itself: no assistant, no route, and no response to a client but those that are wanted.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::ongoing::{RATE, after, begin, end, production};
use super::steady::{self, Steady};
use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::{Pace, Request};
use crate::namespace::run;
use crate::network::{Family, Role};
use crate::talk::Talk;
use crate::wait;

/// How long things may take to become as they were.
const REPAIR: Duration = Duration::from_secs(5);

pub(super) fn scenarios() -> Vec<Scenario> {
    let loads = [("keep-alive", Steady::new(5_000, keep_alive(50))), ("short", Steady::new(1_000, short()))];
    let mut scenarios = steady::scenarios("on-target", loads, arrives);
    for family in [Family::V4, Family::V6] {
        let mut add = |what: &str, body: fn(&Context, Family) -> Result<String>| {
            let name = format!("on-target/{what}-{}", family.name());
            scenarios.push(Scenario::new(name, Offloads::On, move |context| body(context, family)));
        };
        add("large-responses", large_responses);
        add("intercept-killed", intercept_killed);
        add("stateful-firewall", stateful_firewall);
        add("other-clients", other_clients);
        add("wrong-clients", wrong_clients);
    }
    scenarios
}

/// A pool that nobody has, as options of tcpcopy and of intercept.
fn pool(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("-c 10.99.1.0/24", "--clients 10.99.1.0/24"),
        Family::V6 => ("-c fd99::1:0/112", "--clients fd99::1:0/112"),
    }
}

/// Everything arrives, with the clients' own addresses; the target has a route to the clients that is not used.
fn arrives(context: &Context, family: Family, load: Steady) -> Result<String> {
    let setup = Setup::new(context.plan(), family).on_target("");
    let mut chain = Chain::start(setup, &context.scratch)?;
    let (_, comparison) = load.arrives(context, &mut chain)?;
    chain.finish()?;
    Ok(comparison.to_string())
}

/// Responses are met before the target's segmentation offload: up to 64 KiB in one packet.
fn large_responses(context: &Context, family: Family) -> Result<String> {
    let setup = Setup::new(context.plan(), family).on_target("");
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = Steady::new(50, keep_alive(8)).asking(Request::Get(1 << 20));
    let (_, comparison) = load.arrives(context, &mut chain)?;
    chain.finish()?;
    Ok(comparison.to_string())
}

/// intercept is killed and nothing of what the target sends passes; a new one goes on.
fn intercept_killed(context: &Context, family: Family) -> Result<String> {
    let setup = Setup::new(context.plan(), family).on_target("");
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = begin(&mut chain, keep_alive(20), 60)?;
    after(&load, 1_000)?;
    chain.intercept(0)?.kill()?;
    ensure!(chain.has_table(Role::Target, 0, "intercept")?, "the rules went with the process");
    after(&load, 2 * u64::from(RATE))?;
    ensure!(chain.target()?.len() > 0, "nothing was replayed before");
    chain.check_leaks()?;
    chain.start_intercepts()?;
    after(&load, 1_000)?;
    let mut report = end(load)?;
    let comparison = chain.expect_perfect(1)?;
    chain.finish()?;
    Ok(format!("{comparison}, {}", production(&mut report)))
}

/// A firewall on the target that lets in only what belongs to connections it knows: it has seen the responses.
fn stateful_firewall(context: &Context, family: Family) -> Result<String> {
    const RULES: &str = "table inet lab-firewall { chain input { type filter hook input priority 0; policy drop; \
                         iif lo accept; meta l4proto icmpv6 accept; tcp dport 36524 accept; \
                         ct state established,related accept; tcp dport 80 ct state new tcp flags & (syn | ack) == syn \
                         accept; }; }";
    let setup = Setup::new(context.plan(), family).on_target("");
    let mut chain = Chain::start(setup, &context.scratch)?;
    let target = chain.network().host(Role::Target, 0)?.namespace();
    run(target.command("nft").args(["-f", "-"]), Some(RULES))?;
    let load = chain.load(Pace::Rate(RATE), short(), context.seconds(1))?;
    chain.run(load)?;
    let comparison = chain.expect_perfect(1)?;
    let target = chain.network().host(Role::Target, 0)?.namespace();
    target.output("nft", &["delete", "table", "inet", "lab-firewall"])?;
    chain.finish()?;
    Ok(comparison.to_string())
}

/// With the replayed clients' addresses named, others are served as ever: on the target, and from elsewhere.
fn other_clients(context: &Context, family: Family) -> Result<String> {
    let (pool, clients) = pool(family);
    let setup = Setup::new(context.plan(), family).tcpcopy(pool).on_target(clients);
    let mut chain = Chain::start(setup, &context.scratch)?;
    let service = chain.network().target(0, family)?;
    for role in [Role::Target, Role::Online] {
        chain.network().host(role, 0)?.namespace().enter(|| is_healthy(service))??;
    }
    let load = chain.load(Pace::Rate(RATE), short(), context.seconds(1))?;
    chain.run(load)?;
    let comparison = chain.compare(1)?;
    ensure!(
        comparison.lost_count == 0 && comparison.duplicated == 0 && comparison.extra == 0,
        "{comparison}"
    );
    chain.finish()?;
    Ok(format!("{comparison}, health checks answered"))
}

/// A health check; it has no id, and so is no request that counts.
fn is_healthy(service: SocketAddr) -> Result<()> {
    let mut check = Talk::connect(service)?;
    check.send(b"GET / HTTP/1.0\r\n\r\n")?;
    let answer = check.rest()?;
    ensure!(answer.starts_with(b"HTTP/1.1 "), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// tcpcopy replays with addresses whose responses intercept does not take: it is told so, says so, and sends nothing.
fn wrong_clients(context: &Context, family: Family) -> Result<String> {
    let (_, clients) = pool(family);
    let other = match family {
        Family::V4 => "-c 10.99.2.0/24",
        Family::V6 => "-c fd99::2:0/112",
    };
    let setup = Setup::new(context.plan(), family).tcpcopy(other).on_target(clients);
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(RATE), short(), 1)?;
    chain.run(load)?;
    wait::until(REPAIR, "tcpcopy says what is wrong", || {
        Ok(chain.tcpcopy(0)?.output()?.contains("connections are not replayed"))
    })?;
    let sent = chain.stop_tcpcopies()?.of("segments");
    ensure!(sent == 0, "{sent} segments were sent");
    chain.finish()?;
    Ok("no segment was sent".to_owned())
}
