//! As much as the machine carries: everything arrives, or the counters say why it did not.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::ongoing::{after, end};
use super::{Context, Offloads, Scenario};
use crate::account::Account;
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::counters::Counters;
use crate::load::{Closer, Connections, Load, Pace, Request};
use crate::network::{Family, Plan, Role};
use crate::records::Comparison;
use crate::sys::Signal;
use crate::wait;

/// Late retransmissions are over by then.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a flood takes to fill the kernel's queue.
const FULL: Duration = Duration::from_secs(30);

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for addresses in [1, 40] {
        let name = format!("scale/short-50-clients-{addresses}-addresses");
        scenarios.push(Scenario::new(name, Offloads::On, move |context| {
            let load = (Pace::Flood, Connections::Short(50, Closer::Server), Request::Get(100));
            accounted(context, addresses, load, 2)
        }));
    }
    scenarios.push(Scenario::new("scale/get-100kb-short-300", Offloads::On, |context| {
        perfect(context, (Pace::Rate(300), short(), Request::Get(100_000)), 2)
    }));
    scenarios.push(Scenario::new("scale/5000-connections", Offloads::On, |context| {
        perfect(context, (Pace::Rate(1_500), keep_alive(5_000), Request::Get(100)), 5)
    }));
    scenarios.push(Scenario::new("scale/overrun-is-counted", Offloads::On, overrun));
    // As much as the machine carries, beside something else, is less.
    scenarios.into_iter().map(Scenario::alone).collect()
}

/// A load's pace, connections and requests.
type Kind = (Pace, Connections, Request);

/// Every request arrives.
fn perfect(context: &Context, kind: Kind, seconds: u64) -> Result<String> {
    let (comparison, account, counters) = replay(context, 1, kind, seconds)?;
    ensure!(comparison.perfect() && account.lost == 0, "{comparison}; {account}; {counters}");
    Ok(comparison.to_string())
}

/// Every request arrives, or a counter has it.
fn accounted(context: &Context, addresses: u8, kind: Kind, seconds: u64) -> Result<String> {
    let (comparison, account, counters) = replay(context, addresses, kind, seconds)?;
    check_lost(&comparison, &counters)?;
    if comparison.perfect() {
        Ok(comparison.to_string())
    } else {
        Ok(format!("{comparison}; {account}; {counters}"))
    }
}

/// tcpcopy is frozen under a load until the kernel has no more room for copies: all that is lost is counted.
fn overrun(context: &Context) -> Result<String> {
    let setup = Setup { patience: PATIENCE, ..Setup::new(context.plan(), Family::V4) };
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Flood, Connections::Short(50, Closer::Server), 600)?;
    let load = chain.begin(load)?;
    after(&load, 1_000)?;
    chain.tcpcopy(0)?.signal(Signal::Stop)?;
    wait::until(FULL, "the kernel drops copies", || Ok(kernel_dropped(&chain)? > 1_000))?;
    chain.tcpcopy(0)?.signal(Signal::Continue)?;
    after(&load, 1_000)?;
    end(load)?;
    let comparison = chain.compare(1)?;
    let (account, counters) = chain.account()?;
    ensure!(comparison.lost_count > 0 && account.dropped > 0, "nothing was lost; {counters}");
    check_lost(&comparison, &counters)?;
    chain.finish()?;
    Ok(format!("{comparison}; {account}; {counters}"))
}

/// What the kernel says that it dropped of the online host's queues.
fn kernel_dropped(chain: &Chain) -> Result<u64> {
    let online = chain.network().host(Role::Online, 0)?.namespace();
    let queues = online.output("cat", &["/proc/net/netfilter/nfnetlink_queue"])?;
    let dropped = |line: &str| -> u64 {
        line.split_whitespace().skip(5).take(2).filter_map(|count| count.parse::<u64>().ok()).sum()
    };
    Ok(queues.lines().map(dropped).sum())
}

/// Fails if more requests are lost than there are reasons: on a connection each, a request needs one.
fn check_lost(comparison: &Comparison, counters: &Counters) -> Result<()> {
    let reasons = lost_packets(counters) + lost_sessions(counters);
    ensure!(
        u64::try_from(comparison.lost_count)? <= reasons,
        "{comparison}, but {reasons} packets and sessions are counted as lost; {counters}"
    );
    ensure!(comparison.duplicated == 0 && comparison.extra == 0, "{comparison}; {counters}");
    Ok(())
}

/// Packets that reached no session although they should have.
fn lost_packets(counters: &Counters) -> u64 {
    let unused = ["not_routed", "not_selected", "no_session", "bad_flags"];
    ["kernel_dropped", "malformed", "rejected"].iter().map(|name| counters.of(name)).sum::<u64>()
        + counters.group("unused", &unused)
}

/// Sessions that did not come to the end that their clients put to them.
fn lost_sessions(counters: &Counters) -> u64 {
    counters.group("ended", &["completed", "client_reset"]) + counters.of("no_address")
}

fn replay(
    context: &Context,
    addresses: u8,
    kind: Kind,
    seconds: u64,
) -> Result<(Comparison, Account, Counters)> {
    let plan = Plan { addresses, ..context.plan() };
    let setup = Setup { patience: PATIENCE, ..Setup::new(plan, Family::V4) };
    let mut chain = Chain::start(setup, &context.scratch)?;
    let (pace, connections, request) = kind;
    let load = chain.load(pace, connections, context.seconds(seconds))?;
    chain.run(Load { request, ..load })?;
    let comparison = chain.compare(1)?;
    let (account, counters) = chain.account()?;
    chain.finish()?;
    Ok((comparison, account, counters))
}
