//! Several of everything: targets, online hosts, intercepts, addresses, copies, and a part of the connections.

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::steady::Steady;
use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short, sound};
use crate::load::{Connections, Pace};
use crate::network::{Family, Plan, Role};
use crate::observer::Observer;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (kind, connections, rate) in [("keep-alive", keep_alive(40), 2_000), ("short", short(), 1_000)] {
        for family in [Family::V4, Family::V6] {
            let mut add = |what: &str, body: Case| {
                let name = format!("topology/{what}-{kind}-{}", family.name());
                scenarios.push(Scenario::new(name, Offloads::On, move |context| {
                    body(context, family, connections, rate)
                }));
            };
            add("several-targets", several_targets);
            add("small-pool", small_pool);
            add("two-online-hosts", two_online_hosts);
            add("two-intercepts", two_intercepts);
            add("three-copies", three_copies);
            add("a-fifth", a_fifth);
        }
        scenarios.push(Scenario::new(format!("topology/two-workers-{kind}"), Offloads::On, move |context| {
            workers(context, connections, rate)
        }));
    }
    scenarios.push(Scenario::new("topology/eight-online-hosts", Offloads::On, eight_online_hosts));
    scenarios
}

type Case = fn(&Context, Family, Connections, u32) -> Result<String>;

/// A pool of a family; `{n}` becomes the number of the tcpcopy.
fn pool(family: Family) -> &'static str {
    match family {
        Family::V4 => "-c 10.99.{n}.0/24",
        Family::V6 => "-c fd99::{n}:0/112",
    }
}

/// Two services, each with a target of its own: each target receives its service's requests and no others.
fn several_targets(context: &Context, family: Family, connections: Connections, rate: u32) -> Result<String> {
    let plan = Plan { targets: 2, ..context.plan() };
    let mut setup = Setup::new(plan, family);
    setup.mappings = match family {
        Family::V4 => vec!["80-10.91.2.2:80".to_owned(), "81-10.91.2.6:80".to_owned()],
        Family::V6 => vec!["80-[fd91:2::2]:80".to_owned(), "81-[fd91:2::6]:80".to_owned()],
    };
    let mut chain = Chain::start(setup, &context.scratch)?;
    let mut made = 0;
    for port in [80, 81] {
        let mut load = chain.load(Pace::Rate(rate), connections, context.seconds(1))?;
        load.servers.iter_mut().for_each(|server| server.set_port(port));
        let first = load.first_id;
        made = chain.run(load)?.made;
        chain.expect_perfect(1)?;
        let arrived = |observer: &Observer| {
            observer.answers().ids().filter(|id| (first..first + made).contains(id)).count()
        };
        let counts: Vec<usize> = chain.target_observers().iter().map(arrived).collect();
        let right =
            if port == 80 { vec![usize::try_from(made)?, 0] } else { vec![0, usize::try_from(made)?] };
        ensure!(counts == right, "port {port}: the targets received {counts:?}, not {right:?}");
    }
    let comparison = chain.expect_perfect(1)?;
    chain.finish()?;
    Ok(format!("{comparison}, {made} on each target"))
}

/// Forty client addresses become two: no two sessions share a 4-tuple, so nothing is lost.
fn small_pool(context: &Context, family: Family, connections: Connections, rate: u32) -> Result<String> {
    let plan = Plan { addresses: 40, ..context.plan() };
    let options = match family {
        Family::V4 => "-c 10.99.0.0/31",
        Family::V6 => "-c fd99::/127",
    };
    let mut chain = Chain::start(Setup::new(plan, family).tcpcopy(options), &context.scratch)?;
    let (_, comparison) = Steady::new(rate, connections).arrives(context, &mut chain)?;
    let peers = chain.target_observers().iter().flat_map(Observer::seen);
    let addresses: std::collections::HashSet<_> = peers.map(|seen| seen.peer.ip()).collect();
    let clients = chain.network().host(Role::Client, 0)?.sources(family);
    ensure!(addresses.len() <= 2, "the target saw {addresses:?}");
    ensure!(clients.iter().all(|client| !addresses.contains(client)), "clients' own addresses on the target");
    chain.finish()?;
    Ok(format!("{comparison}, {} clients on {} addresses", clients.len(), addresses.len()))
}

/// Two online hosts and two clients, one intercept.
fn two_online_hosts(
    context: &Context,
    family: Family,
    connections: Connections,
    rate: u32,
) -> Result<String> {
    let plan = Plan { clients: 2, onlines: 2, ..context.plan() };
    let setup = Setup::new(plan, family).tcpcopy(pool(family));
    let mut chain = Chain::start(setup, &context.scratch)?;
    let mut load = chain.load(Pace::Rate(rate / 2), connections, context.seconds(2))?;
    let second = chain.network().host(Role::Client, 1)?;
    load.sources = second.sources(family);
    let second = load.start(second.namespace())?;
    let load = chain.load(Pace::Rate(rate / 2), connections, context.seconds(2))?;
    chain.run(load)?;
    sound(&second.finish()?)?;
    let comparison = chain.expect_perfect(1)?;
    let each: Vec<usize> = chain.online_observers().iter().map(|online| online.answers().len()).collect();
    ensure!(each.iter().all(|&count| count > 0), "one online host got nothing: {each:?}");
    chain.finish()?;
    Ok(format!("{comparison}, online hosts {each:?}"))
}

/// Many online hosts on one intercept.
fn eight_online_hosts(context: &Context) -> Result<String> {
    let onlines = if context.long { 32 } else { 8 };
    let plan = Plan { onlines, ..context.plan() };
    let setup = Setup::new(plan, Family::V4).tcpcopy("-c 10.99.{n}.0/24 --workers 1");
    let mut chain = Chain::start(setup, &context.scratch)?;
    let (_, comparison) = Steady::new(1_000, short()).arrives(context, &mut chain)?;
    chain.finish()?;
    Ok(format!("{comparison}, {onlines} online hosts"))
}

/// Two intercepts for one online host; the target spreads its responses over both by flow.
fn two_intercepts(context: &Context, family: Family, connections: Connections, rate: u32) -> Result<String> {
    let plan = Plan { assistants: 2, ..context.plan() };
    let setup = Setup::new(plan, family).tcpcopy(pool(family));
    let mut chain = Chain::start(setup, &context.scratch)?;
    let (_, comparison) = Steady::new(rate, connections).arrives(context, &mut chain)?;
    // Both were used: the switch's port of each assistant carried responses.
    let mut packets = Vec::new();
    for assistant in chain.network().all(Role::Assistant) {
        let path = "/sys/class/net/back/statistics/rx_packets";
        packets.push(assistant.namespace().output("cat", &[path])?.trim().parse::<u64>()?);
    }
    ensure!(packets.iter().all(|&count| count > 100), "responses took one way only: {packets:?}");
    chain.finish()?;
    Ok(format!("{comparison}, packets to the assistants {packets:?}"))
}

/// Every session three times.
fn three_copies(context: &Context, family: Family, connections: Connections, rate: u32) -> Result<String> {
    let setup = Setup::new(context.plan(), family).tcpcopy(&format!("-n 3 {}", pool(family)));
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(rate / 2), connections, context.seconds(2))?;
    chain.run(load)?;
    let comparison = chain.expect_perfect(3)?;
    let total = chain.target()?.total();
    ensure!(total == 3 * u64::try_from(comparison.online)?, "{total} answers");
    chain.finish()?;
    Ok(format!("{comparison}, each three times"))
}

/// A fifth of the connections, each of them whole or not at all.
fn a_fifth(context: &Context, family: Family, connections: Connections, rate: u32) -> Result<String> {
    let connections = match connections {
        // Enough of them for a fifth to be a fifth.
        Connections::KeepAlive(_) => Connections::KeepAlive(400),
        Connections::Short(..) => connections,
    };
    let setup = Setup::new(context.plan(), family).tcpcopy("-r 20");
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(rate), connections, context.seconds(2))?;
    chain.run(load)?;
    let comparison = chain.compare(1)?;
    ensure!(comparison.duplicated == 0 && comparison.extra == 0 && comparison.failed == 0, "{comparison}");
    let target = chain.target()?;
    let mut whole: HashMap<SocketAddr, (u32, u32)> = HashMap::new();
    for seen in chain.online_observers().iter().flat_map(Observer::seen) {
        let (all, replayed) = whole.entry(seen.peer).or_default();
        *all += 1;
        *replayed += target.count(seen.id);
    }
    let torn = whole.values().filter(|(all, replayed)| *replayed != 0 && replayed != all).count();
    ensure!(torn == 0, "{torn} of {} connections were replayed in part", whole.len());
    let replayed = whole.values().filter(|(_, replayed)| *replayed > 0).count();
    let percent = replayed * 100 / whole.len().max(1);
    ensure!((12..=28).contains(&percent), "{percent} % of {} connections", whole.len());
    chain.finish()?;
    Ok(format!("{replayed} of {} connections ({percent} %), all whole", whole.len()))
}

/// Two workers on both sides.
fn workers(context: &Context, connections: Connections, rate: u32) -> Result<String> {
    let mut setup = Setup::new(context.plan(), Family::V4).tcpcopy("--workers 2");
    setup.intercept = vec!["--workers".to_owned(), "2".to_owned()];
    let mut chain = Chain::start(setup, &context.scratch)?;
    let (_, comparison) = Steady::new(rate, connections).arrives(context, &mut chain)?;
    chain.finish()?;
    Ok(comparison.to_string())
}
