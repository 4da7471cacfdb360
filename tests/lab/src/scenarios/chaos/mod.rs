//! Faults under load. After each, production has not noticed, no client has seen a packet of the target, the counters
//! balance, no descriptor, memory, rule or device is left behind, and the replay goes on by itself or once the daemon is
//! started again; how long that takes is measured and printed at the end of a run.
//!
//! | file | faults |
//! |---|---|
//! | `signals` | daemons killed, frozen and stopped at random times |
//! | `network` | the tunnel, the ways to the target, the target itself |
//! | `host` | rules, queues, disk, descriptors, processes and memory of the hosts the daemons run on |
//! | `crowd` | strangers: floods, scans, garbage |
//! | `soak` | a target that answers nothing for long |

mod crowd;
mod host;
mod network;
mod signals;
mod soak;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::ongoing::{after, end};
use super::{Context, Offloads, Scenario};
use crate::account;
use crate::chain::{Chain, IDS, Setup, keep_alive};
use crate::load::{Load, Pace, Request, Running};
use crate::network::{Family, Plan};
use crate::recovery;
use crate::wait;

/// Production's requests a second.
const RATE: u32 = 500;
/// How long a replay may take to go on: retransmissions back off to some seconds.
const RECOVERY: Duration = Duration::from_secs(20);
/// How long descriptors of connections that are gone may stay open.
const CLOSED: Duration = Duration::from_secs(20);
/// Memory that a fault leaves behind in a daemon at most, KiB: buffers and tables that stay as large as they had to be.
const GROWTH: u64 = 48 << 10;

/// What undoes a fault.
type Heal = Box<dyn FnOnce(&mut Chain) -> Result<()>>;

/// A fault under load.
struct Fault {
    name: &'static str,
    /// What the chain has that is special.
    setup: fn(&Context, Setup) -> Result<Setup>,
    /// What production asks for.
    request: Request,
    begin: fn(&mut Chain, &Context) -> Result<Heal>,
    /// Requests of production while it lasts; ten times as many in a long run.
    lasts: u64,
    /// How often it comes.
    times: usize,
    /// Whether everything arrives all the same.
    perfect: bool,
    /// Memory that it may leave behind in a daemon, KiB; ten times as much in a long run.
    growth: u64,
    /// Whether the daemons live through it: then their resources are as before, and the account is exact.
    survived: bool,
}

impl Fault {
    const fn new(name: &'static str, begin: fn(&mut Chain, &Context) -> Result<Heal>) -> Self {
        Self {
            name,
            setup: |_, setup| Ok(setup),
            request: Request::Get(100),
            begin,
            lasts: 500,
            times: 1,
            perfect: true,
            growth: GROWTH,
            survived: true,
        }
    }

    fn scenario(self) -> Scenario {
        Scenario::new(format!("chaos/{}", self.name), Offloads::On, move |context| self.run(context))
    }

    fn run(&self, context: &Context) -> Result<String> {
        let mut chain = Chain::start((self.setup)(context, plain(context))?, &context.scratch)?;
        let load = self.load(&mut chain)?;
        after(&load.running, u64::from(RATE))?;
        let before = Resources::of(&mut chain)?;
        let mut recoveries = Vec::new();
        for _ in 0..self.times {
            let heal = (self.begin)(&mut chain, context)?;
            after(&load.running, context.seconds(self.lasts))?;
            heal(&mut chain)?;
            recoveries.push(load.recovery(&mut chain)?.as_millis());
            chain.check_leaks()?;
        }
        after(&load.running, u64::from(RATE))?;
        let answered = end(load.running)?.answered;
        let comparison = chain.compare(1)?;
        ensure!(!self.perfect || comparison.perfect(), "{comparison}; {}", chain.stop_tcpcopies()?);
        if self.survived {
            before.check(&mut chain, context.seconds(self.growth))?;
            chain.account().with_context(|| comparison.to_string())?;
        } else {
            account::balance(&chain.stop_tcpcopies()?)?;
        }
        chain.finish()?;
        let recovered = recovery::text("", &recoveries);
        Ok(format!("{recovered}; production {answered} answered, 0 failed, 0 packets leaked; {comparison}"))
    }

    fn load(&self, chain: &mut Chain) -> Result<Ongoing> {
        let load = chain.load(Pace::Rate(RATE), keep_alive(20), 3600)?;
        Ongoing::begin(chain, Load { request: self.request, ..load })
    }
}

/// The chain that faults come over. The assistant forwards: only intercept's rules keep responses from the clients.
fn plain(context: &Context) -> Setup {
    let plan = Plan { forwarding: true, ..context.plan() };
    Setup { patience: Duration::from_secs(5), ..Setup::new(plan, Family::V4) }
}

/// A load that goes on.
struct Ongoing {
    running: Running,
    first_id: u64,
}

impl Ongoing {
    fn begin(chain: &Chain, load: Load) -> Result<Self> {
        let first_id = load.first_id;
        Ok(Self { running: chain.begin(load)?, first_id })
    }

    /// The time until a request that is made from now on is answered by the target.
    fn recovery(&self, chain: &mut Chain) -> Result<Duration> {
        let start = Instant::now();
        let fresh = self.first_id + self.running.progress().made()..self.first_id + IDS;
        let target = chain.target_observers().first_mut().context("no target")?;
        target.update()?;
        let mut read = target.seen().len();
        wait::until(RECOVERY, "requests arrive again", || {
            let target = chain.target_observers().first_mut().context("no target")?;
            target.update()?;
            let new = target.seen().get(read..).unwrap_or_default();
            read += new.len();
            Ok(new.iter().any(|seen| fresh.contains(&seen.id)))
        })?;
        Ok(start.elapsed())
    }
}

/// What the daemons have of the host.
struct Resources {
    descriptors: Vec<usize>,
    resident_kib: Vec<u64>,
}

impl Resources {
    fn of(chain: &mut Chain) -> Result<Self> {
        let pids = [chain.tcpcopy(0)?.pid(), chain.intercept(0)?.pid()];
        let descriptors = pids.iter().map(|pid| descriptors(*pid)).collect::<Result<_>>()?;
        Ok(Self { descriptors, resident_kib: pids.iter().map(|pid| resident(*pid)).collect::<Result<_>>()? })
    }

    /// Fails if descriptors of the same daemons are more, or memory by `growth` KiB.
    fn check(&self, chain: &mut Chain, growth: u64) -> Result<()> {
        let mut now = Self::of(chain)?;
        let closed = wait::until(CLOSED, "descriptors are closed", || {
            now = Self::of(chain)?;
            Ok(now.descriptors == self.descriptors)
        });
        closed.with_context(|| format!("{:?}, before {:?}", now.descriptors, self.descriptors))?;
        for (now, before) in now.resident_kib.iter().zip(&self.resident_kib) {
            ensure!(*now < before + growth, "{now} KiB resident, before {before}");
        }
        Ok(())
    }
}

fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Memory in use now, KiB.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("no number")?.parse()?)
}

/// Nothing to undo.
fn over() -> Heal {
    Box::new(|_| Ok(()))
}

pub(super) fn scenarios() -> Vec<Scenario> {
    let faults = [network::faults(), host::faults(), crowd::faults()];
    let mut scenarios = vec![signals::scenario(), soak::scenario()];
    scenarios.extend(faults.into_iter().flatten().map(Fault::scenario));
    scenarios.extend(host::scenarios());
    scenarios
}
