//! Hosts of the replay go away and come back: what was captured meanwhile arrives afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::ongoing::{RATE, after, end};
use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::{Connections, Load, Pace, Request};
use crate::network::{Family, Role, Segment};
use crate::records::Comparison;
use crate::wait;

/// Requests that a stopping server may have taken and not answered. Each that is lost must be counted.
const IN_FLIGHT: usize = 8;
/// How long things are away, in requests of production.
const OUTAGE: u64 = 5 * RATE as u64;
/// Retransmissions come every four seconds at least.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long everything that waited may take to arrive.
const CATCH_UP: Duration = Duration::from_secs(20);

/// What happens, and what heals it.
pub(super) type Fault = fn(&mut Chain) -> Result<()>;

pub(super) fn scenarios() -> Vec<Scenario> {
    let faults: [(&str, Fault, Fault); 3] = [
        ("target-stopped", Chain::stop_target, Chain::start_target_again),
        ("target-unplugged", |chain| plug(chain, false), |chain| plug(chain, true)),
        ("intercept-killed", |chain| chain.intercept(0)?.kill(), Chain::start_intercepts),
    ];
    let mut scenarios = Vec::new();
    for (what, fault, heal) in faults {
        for (kind, connections) in [("keep-alive", keep_alive(20)), ("short", short())] {
            scenarios.push(Scenario::new(format!("outage/{what}-{kind}"), Offloads::On, move |context| {
                outlived(context, Setup::new(context.plan(), Family::V4), connections, fault, heal)
            }));
        }
    }
    scenarios.push(Scenario::new("outage/memory-limit", Offloads::On, memory_limit));
    scenarios
}

/// Whether the target's link has a carrier.
pub(super) fn plug(chain: &mut Chain, up: bool) -> Result<()> {
    chain.network().host(Role::Target, 0)?.set_link(Segment::Back, up)
}

/// Something is away for five seconds: every request that was made meanwhile arrives once it is back, and every one of
/// before and after. A server that is stopped may have taken requests that it does not answer any more; they are counted.
pub(super) fn outlived(
    context: &Context,
    setup: Setup,
    connections: Connections,
    fault: Fault,
    heal: Fault,
) -> Result<String> {
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(RATE), connections, 600)?;
    let first = load.first_id;
    let load = chain.begin(load)?;
    after(&load, 1_000)?;
    fault(&mut chain)?;
    let (begun, before) = (first + load.progress().made(), chain.target()?.len());
    after(&load, context.seconds(OUTAGE))?;
    let arrived = chain.target()?.len() - before;
    // The server's log is written a moment late.
    ensure!(arrived < 1_000, "{arrived} requests arrived during the outage");
    let over = first + load.progress().made();
    heal(&mut chain)?;
    let healed = Instant::now();
    let caught_up = wait::until(CATCH_UP, "what was captured meanwhile arrives", || {
        let target = chain.target()?;
        let missing = (begun..over).filter(|id| target.count(*id) == 0).count();
        Ok(missing <= IN_FLIGHT)
    });
    let took = healed.elapsed().as_millis();
    end(load)?;
    let comparison = chain.compare(1)?;
    let counters = chain.stop_tcpcopies()?;
    caught_up.with_context(|| format!("{comparison}; {counters}"))?;
    let in_flight = counters.of("ended.target_reset") + counters.of("unanswered");
    let others = Comparison { lost_count: 0, ..comparison.clone() };
    ensure!(
        others.perfect() && u64::try_from(comparison.lost_count)? <= in_flight,
        "{comparison}; {counters}"
    );
    chain.finish()?;
    Ok(format!("{comparison}, {} of the outage within {took} ms", over - begun))
}

/// The target is away while more is captured than the memory limit allows: as much as the limit allows arrives afterwards,
/// whole, and every byte of what does not is counted with the sessions that were ended or not begun.
fn memory_limit(context: &Context) -> Result<String> {
    const SIZE: usize = 100_000;
    const LIMIT_MIB: u64 = 16;
    const BEFORE: u64 = 100;
    let setup = Setup::new(context.plan(), Family::V4).tcpcopy(&format!("--memory-limit {LIMIT_MIB}MiB"));
    let mut chain = Chain::start(Setup { patience: PATIENCE, ..setup }, &context.scratch)?;
    let before = chain.usage()?.0.peak_kib;
    let load = chain.load(Pace::Rate(100), keep_alive(20), 600)?;
    let load = chain.begin(Load { request: Request::Post(SIZE), ..load })?;
    after(&load, BEFORE)?;
    plug(&mut chain, false)?;
    // Twice what there is room for.
    after(&load, 2 * (LIMIT_MIB << 20) / SIZE as u64)?;
    plug(&mut chain, true)?;
    after(&load, 100)?;
    end(load)?;
    let comparison = chain.compare(1)?;
    chain.check_bodies(SIZE)?;
    let grown = chain.usage()?.0.peak_kib - before;
    let (account, counters) = chain.account().with_context(|| comparison.to_string())?;
    ensure!(comparison.lost_count > 0, "the limit was not reached: {comparison}; {counters}");
    // The next request of a client whose session ended begins a new one, which goes on with the request after it.
    let counted = counters.of("discarded_bytes.shed")
        + counters.group("unused_bytes", &[])
        + counters.of("fates.before_join")
        + counters.of("fates.late");
    ensure!(
        account.dropped == 0 && account.given_up == counted,
        "{counted} bytes are the limit's; {account}; {counters}"
    );
    // What is held is held by twenty sessions, of which the last to end may have held more than its part.
    let (room, delivered) = (LIMIT_MIB << 20, counters.of("fates.delivered"));
    let least = BEFORE * SIZE as u64 + room - room / 8;
    ensure!(delivered >= least, "{delivered} bytes arrived, there was room for {least}; {counters}");
    ensure!(comparison.duplicated == 0 && comparison.extra == 0, "{comparison}; {counters}");
    ensure!(grown < 2 * (LIMIT_MIB << 10), "{grown} KiB for {LIMIT_MIB} MiB; {counters}");
    chain.finish()?;
    Ok(format!("{comparison}, {grown} KiB; {account}; {counters}"))
}
