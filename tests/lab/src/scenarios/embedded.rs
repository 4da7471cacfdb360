//! tcpcopy alone: it replays from the online host's own address and takes the responses itself.

use anyhow::{Result, ensure};

use super::steady::Steady;
use super::{Context, Offloads, Scenario, loss, outage, safety};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::faults::Leg;
use crate::load::{Connections, Pace, Request};
use crate::network::{Family, Plan, Role};
use crate::observer::Observer;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (kind, connections, rate) in [("keep-alive", keep_alive(50), 5_000), ("short", short(), 1_000)] {
        for family in [Family::V4, Family::V6] {
            let name = |what: &str| format!("embedded/{what}{kind}-{}", family.name());
            scenarios.push(Scenario::new(name(""), Offloads::Both, move |context| {
                arrives(context, family, connections, rate)
            }));
            scenarios.push(Scenario::new(name("several-targets-"), Offloads::On, move |context| {
                several_targets(context, family, connections, rate)
            }));
            scenarios.push(Scenario::new(name("tcpcopy-killed-"), Offloads::On, move |context| {
                safety::tcpcopy_killed(context, setup(context, family), connections)
            }));
        }
        add_disturbed(&mut scenarios, kind, connections);
    }
    for family in [Family::V4, Family::V6] {
        let name = |what: &str| format!("embedded/{what}-{}", family.name());
        scenarios.push(Scenario::new(name("large-responses"), Offloads::On, move |context| {
            large_responses(context, family)
        }));
        let targets = match family {
            Family::V4 => ["10.91.1.1:81", "127.0.0.1:81"],
            Family::V6 => ["[fd91:1::1]:81", "[::1]:81"],
        };
        for (what, target) in ["on-one-host", "on-loopback"].into_iter().zip(targets) {
            scenarios.push(Scenario::new(name(what), Offloads::On, move |context| {
                on_one_host(context, family, target)
            }));
        }
        scenarios.push(Scenario::new(name("three-copies-two-workers"), Offloads::On, move |context| {
            three_copies(context, family)
        }));
    }
    scenarios
}

/// A scenario of another subject, given the set-up.
type Body = Box<dyn Fn(&Context, Setup) -> Result<String>>;

/// What others do with an assistant, done without.
fn add_disturbed(scenarios: &mut Vec<Scenario>, kind: &str, connections: Connections) {
    let mut add = |what: &str, body: Body| {
        let name = format!("embedded/{what}-{kind}");
        scenarios.push(Scenario::new(name, Offloads::On, move |context| {
            body(context, setup(context, Family::V4))
        }));
    };
    add(
        "tcpcopy-frozen-10s",
        Box::new(move |context, setup| safety::tcpcopy_frozen(context, setup, connections)),
    );
    add(
        "tcpcopy-stopped-and-started",
        Box::new(move |context, setup| safety::tcpcopy_restarted(context, setup, connections)),
    );
    add("sink-deleted", Box::new(move |context, setup| safety::sink_deleted(context, setup, connections)));
    for leg in [Leg::Requests, Leg::Responses] {
        add(
            &format!("1-percent-{}", leg.name()),
            Box::new(move |context, setup| loss::lost(context, setup, leg, 1, connections)),
        );
    }
    let faults: [(&str, outage::Fault, outage::Fault); 2] = [
        ("target-stopped", Chain::stop_target, Chain::start_target_again),
        ("target-unplugged", |chain| outage::plug(chain, false), |chain| outage::plug(chain, true)),
    ];
    for (what, fault, heal) in faults {
        add(what, Box::new(move |context, setup| outage::outlived(context, setup, connections, fault, heal)));
    }
}

fn setup(context: &Context, family: Family) -> Setup {
    Setup::new(context.plan(), family).embedded()
}

/// Everything arrives, and the target sees the online host's own address only.
fn arrives(context: &Context, family: Family, connections: Connections, rate: u32) -> Result<String> {
    let mut chain = Chain::start(setup(context, family), &context.scratch)?;
    let (report, comparison) = Steady::new(rate, connections).arrives(context, &mut chain)?;
    let own = chain.network().host(Role::Online, 0)?.back(family);
    let mut peers = chain.target_observers().iter().flat_map(Observer::seen).map(|seen| seen.peer);
    let odd = peers.find(|peer| peer.ip() != own || !(10_000..30_000).contains(&peer.port()));
    ensure!(odd.is_none(), "the target saw {odd:?}");
    let cpu = chain.usage()?.0.cpu().as_millis();
    let counters = chain.stop_tcpcopies()?;
    let (responses, answers) = (counters.of("responses"), counters.group("answers", &[]));
    ensure!(
        responses == answers + counters.group("response_rejects", &[]) && responses > 0,
        "{responses} responses became {answers} answers; {counters}"
    );
    chain.finish()?;
    Ok(format!("{comparison}, {cpu} ms of CPU for {} requests", report.answered))
}

/// Two services with a target each.
fn several_targets(context: &Context, family: Family, connections: Connections, rate: u32) -> Result<String> {
    let plan = Plan { targets: 2, ..context.plan() };
    let mut setup = Setup::new(plan, family).embedded();
    setup.mappings = match family {
        Family::V4 => vec!["80-10.91.2.2:80".to_owned(), "81-10.91.2.6:80".to_owned()],
        Family::V6 => vec!["80-[fd91:2::2]:80".to_owned(), "81-[fd91:2::6]:80".to_owned()],
    };
    let mut chain = Chain::start(setup, &context.scratch)?;
    let mut made = Vec::new();
    for port in [80, 81] {
        let mut load = chain.load(Pace::Rate(rate / 2), connections, context.seconds(1))?;
        load.servers.iter_mut().for_each(|server| server.set_port(port));
        made.push(usize::try_from(chain.run(load)?.made)?);
    }
    let comparison = chain.expect_perfect(1)?;
    let each: Vec<usize> = chain.target_observers().iter().map(|target| target.answers().len()).collect();
    ensure!(each == made, "the targets received {each:?}, not {made:?}");
    chain.finish()?;
    Ok(format!("{comparison}, targets {each:?}"))
}

/// Responses that the network card, or here the kernel, has merged are taken like others.
fn large_responses(context: &Context, family: Family) -> Result<String> {
    let mut chain = Chain::start(setup(context, family), &context.scratch)?;
    let load = Steady::new(50, keep_alive(8)).asking(Request::Get(1 << 20));
    let (_, comparison) = load.arrives(context, &mut chain)?;
    chain.finish()?;
    Ok(comparison.to_string())
}

/// Every session three times, over two workers.
fn three_copies(context: &Context, family: Family) -> Result<String> {
    let setup = setup(context, family).tcpcopy("-n 3 --workers 2");
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(500), short(), context.seconds(2))?;
    chain.run(load)?;
    let comparison = chain.expect_perfect(3)?;
    chain.finish()?;
    Ok(comparison.to_string())
}

/// The software under test runs on the online host itself, on another port: the first thing one may try.
fn on_one_host(context: &Context, family: Family, target: &str) -> Result<String> {
    let mut setup = setup(context, family);
    setup.mappings = vec![format!("80-{target}")];
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(1_000), short(), context.seconds(1))?;
    let answered = usize::try_from(chain.run(load)?.answered)?;
    let twice = |chain: &mut Chain| {
        let online = chain.online()?;
        anyhow::Ok(online.ids().filter(|id| online.count(*id) == 2).count())
    };
    crate::wait::until(std::time::Duration::from_secs(5), "each request is answered once more", || {
        Ok(twice(&mut chain)? == answered)
    })?;
    let total = chain.online()?.total();
    ensure!(total == 2 * u64::try_from(answered)?, "{total} answers to {answered} requests");
    chain.finish()?;
    Ok(format!("{answered} requests answered once more"))
}
