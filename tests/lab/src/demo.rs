//! A steady load through the whole chain, with a line every second and a verdict at the end.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::chain::{Chain, Setup, keep_alive, short, sound};
use crate::isolation;
use crate::load::{Latency, Load, Pace};
use crate::network::{Family, Plan, Role};
use crate::observer::say;
use crate::tap::ServerTap;

/// Requests a second on connections that stay.
const KEEP_ALIVE: u32 = 800;
/// Requests a second on a connection each.
const SHORT: u32 = 200;
/// A request that the target has not answered by then shows as lost in the live line.
const LATE: Duration = Duration::from_secs(2);

/// Runs the demonstration. Returns whether everything arrived.
pub(crate) fn run(seconds: u64) -> Result<bool> {
    let plan = Plan { offloads: true, addresses: 10, ..Plan::default() };
    say("Four hosts, as network namespaces that go away with this program:");
    say("  client 10.91.1.10-19   online 10.91.1.1   target 10.91.2.2   assistant 10.91.2.3");
    let mut chain = Chain::prepare(Setup::new(plan, Family::V4), Path::new(isolation::SCRATCH))?;
    say(&format!("assistant# intercept {}", chain.intercept_arguments()?.join(" ")));
    say(&format!("online#    tcpcopy {}", chain.tcpcopy_arguments(0)?.join(" ")));
    chain.start_intercepts()?;
    chain.start_tcpcopies()?;
    let tap = |role| ServerTap::start(chain.network().host(role, 0)?.namespace());
    let (online_tap, target_tap) = (tap(Role::Online)?, tap(Role::Target)?);

    say(&format!("Load: {KEEP_ALIVE} requests/s on 20 connections, {SHORT}/s on a connection each."));
    say("           ---- requests ----    ------- latency at the server, p50 / p99 µs -------");
    say("  second   online   replayed   lost          online             target");
    let staying: Load = chain.load(Pace::Rate(KEEP_ALIVE), keep_alive(20), seconds)?;
    let passing: Load = chain.load(Pace::Rate(SHORT), short(), seconds)?;
    let loads = [chain.begin(staying)?, chain.begin(passing)?];
    let mut lateness = Lateness::default();
    let start = Instant::now();
    for second in 1..=seconds {
        let next = start + Duration::from_secs(second);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let lost = lateness.look(&mut chain)?;
        // The target first: what it has, the online server had before.
        let (target, online) = (chain.target()?.len(), chain.online()?.len());
        let (here, there) = (percentiles(online_tap.take_recent()), percentiles(target_tap.take_recent()));
        say(&format!("  {second:>6}  {online:>7}  {target:>9}  {lost:>5}  {here:>18}  {there:>18}"));
        let failed: u64 = loads.iter().map(|load| load.progress().failed.load(Ordering::Relaxed)).sum();
        if failed > 0 {
            say(&format!("          {failed} production requests failed"));
        }
    }
    let mut clients = Latency::default();
    for load in loads {
        let mut report = load.finish()?;
        sound(&report)?;
        clients.append(&mut report.latency);
    }
    drop((online_tap, target_tap));
    verdict(chain, clients)
}

/// Compares, stops and says how it went.
fn verdict(mut chain: Chain, mut clients: Latency) -> Result<bool> {
    let comparison = chain.compare(1)?;
    let (tcpcopy, intercept) = chain.usage()?;
    let leaked = chain.leaks()?;
    let requests = u32::try_from(comparison.online.max(1)).unwrap_or(u32::MAX);
    let cost = |cpu: Duration| (cpu / requests * 1000).as_secs_f64() * 1000.0;
    say(&format!("clients   p50 {} µs, p99 {} µs; no request failed", clients.at(500), clients.at(990)));
    say(&format!(
        "cost      CPU per 1,000 requests: tcpcopy {:.1} ms, intercept {:.1} ms; peak memory {:.1} MB, {:.1} MB",
        cost(tcpcopy.cpu()),
        cost(intercept.cpu()),
        megabytes(tcpcopy.peak_kib),
        megabytes(intercept.peak_kib),
    ));
    say(&format!("safety    {leaked} packets of the target reached a client"));
    say(&format!("replay    {comparison}"));
    let perfect = comparison.perfect() && leaked == 0;
    chain.finish()?;
    say(if perfect {
        "VERDICT   good: the target answered every request that the online server answered, once"
    } else {
        "VERDICT   bad: the target did not answer the same requests as the online server"
    });
    Ok(perfect)
}

/// Tells which requests the target should have answered by now.
#[derive(Debug, Default)]
struct Lateness {
    taken: usize,
    pending: VecDeque<(Instant, u64)>,
    late: Vec<u64>,
}

impl Lateness {
    /// Looks at both logs; returns how many requests are late.
    fn look(&mut self, chain: &mut Chain) -> Result<usize> {
        let now = Instant::now();
        chain.online()?;
        if let Some(online) = chain.online_observers().first() {
            let fresh = online.seen().get(self.taken..).unwrap_or_default();
            self.pending.extend(fresh.iter().map(|seen| (now, seen.id)));
            self.taken = online.seen().len();
        }
        let target = chain.target()?;
        while let Some(&(since, id)) = self.pending.front() {
            if now.saturating_duration_since(since) < LATE {
                break;
            }
            self.pending.pop_front();
            self.late.push(id);
        }
        self.late.retain(|&id| target.count(id) == 0);
        Ok(self.late.len())
    }
}

fn percentiles(mut latency: Latency) -> String {
    if latency.len() == 0 { "-".to_owned() } else { format!("{} / {}", latency.at(500), latency.at(990)) }
}

/// KiB as MB, for people.
#[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^52 KiB")]
pub(crate) fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}
