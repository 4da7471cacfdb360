//! The benchmark: fixed loads, replayed in several ways that take turns, and what each way costs.
//!
//! `case` are the loads and `way` what replays them; `cost` reads the counters, `figures` says what is made of them,
//! `report` writes it; `syscalls` is an extra run under strace.

mod case;
mod cost;
mod figures;
mod report;
mod syscalls;
mod way;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::daemon::Usage;
use crate::demo::megabytes;
use crate::isolation;
use crate::load::{Load, Request};
use crate::network::Role;
use crate::observer::say;
use crate::processors;
use crate::wait;

use case::Case;
use cost::{Machine, Packets, Processes};
use figures::{Run, Sample, Spent};
use report::{Outcome, Table};
use way::{Stage, Way};

pub(crate) use report::help;
pub(crate) use way::Original;

/// How long the target must be quiet for a load to be over: longer than a retransmission takes to come.
const QUIET: Duration = Duration::from_millis(250);
/// How long to wait for that.
const LIMIT: Duration = Duration::from_secs(30);

/// What to measure.
#[expect(clippy::struct_excessive_bools, reason = "each is an option by itself")]
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Parts of names; empty: all.
    pub(crate) names: Vec<String>,
    /// How long each load is.
    pub(crate) seconds: u64,
    /// How often each is repeated.
    pub(crate) repeat: usize,
    /// Whether veth offloads.
    pub(crate) offloads: bool,
    /// The C programs, to compare with.
    pub(crate) original: Option<Original>,
    /// Whether to compare with each of them and one of ours, too.
    pub(crate) mixed: bool,
    /// Whether to compare with packet sockets as the source.
    pub(crate) packet: bool,
    /// Whether to compare with nginx's mirror module.
    pub(crate) mirror: bool,
    /// Whether production has a processor for itself.
    pub(crate) apart: bool,
    /// Whether to count system calls.
    pub(crate) syscalls: bool,
    /// Where to write the figures as JSON.
    pub(crate) json: Option<PathBuf>,
}

/// Measures. Returns whether our programs were safe: nothing leaked, no body was altered.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let mut cases = case::all();
    cases
        .retain(|case| options.names.is_empty() || options.names.iter().any(|name| case.name.contains(name)));
    if cases.is_empty() {
        let names: Vec<&str> = case::all().iter().map(|case| case.name).collect();
        bail!("no load is called {:?}; there are {names:?}", options.names);
    }
    if let Some(original) = &options.original {
        for path in [&original.tcpcopy, &original.intercept] {
            if !path.is_file() {
                bail!("--original: {} is not there", path.display());
            }
        }
    }
    if options.apart {
        processors::give_production_one()?;
    }
    let mut ways = vec![Way::Nothing, Way::Ours];
    ways.extend(options.packet.then_some(Way::Packet));
    ways.extend(options.original.clone().map(Way::Original));
    let mixed = options.original.clone().filter(|_| options.mixed);
    ways.extend(mixed.into_iter().flat_map(|c| [Way::OriginalTcpcopy(c.clone()), Way::OriginalIntercept(c)]));
    ways.extend(options.mirror.then_some(Way::Mirror));

    let table = Table { ranges: options.repeat > 1 };
    say(&table.heads());
    let mut all = Vec::new();
    for case in &cases {
        let outcomes = measure(case, &ways, options).with_context(|| case.name)?;
        table.lines(&outcomes).iter().for_each(|line| say(line));
        if options.syscalls {
            for way in ways.iter().filter(|way| !matches!(way, Way::Nothing | Way::Mirror)) {
                match count_calls(case, way, options) {
                    Ok(lines) => lines.iter().for_each(|line| say(line)),
                    Err(error) => say(&format!("  {}: system calls: {error:#}", way.name())),
                }
            }
        }
        all.extend(outcomes);
    }
    if let Some(path) = &options.json {
        std::fs::write(path, report::document(&all))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(all.iter().filter(|outcome| outcome.way == Way::Ours.name()).all(|outcome| outcome.safe))
}

/// Puts a load on in every way, in turns that begin with another way each, so that a drift of the machine meets all.
fn measure(case: &Case, ways: &[Way], options: &Options) -> Result<Vec<Outcome>> {
    let replays = ways.iter().filter(|way| **way != Way::Nothing);
    let mut outcomes: Vec<Outcome> = replays.map(|way| Outcome::new(case.name, way.name())).collect();
    for turn in 0..options.repeat {
        let (mut off, mut replayed) = (None, Vec::new());
        for step in 0..ways.len() {
            let Some(way) = ways.get((turn + step) % ways.len()) else { continue };
            let scratch = Path::new(isolation::SCRATCH).join(format!("{}-{}", case.name, way.name()));
            match once(case, way, options, &scratch) {
                Ok(run) if *way == Way::Nothing => off = Some(run.on),
                Ok(run) => replayed.push((way.name(), run)),
                // What we are compared with may fail where we may not.
                Err(error) if way.is_compared() => {
                    say(&format!("  {} {}, repetition {}: {error:#}", case.name, way.name(), turn + 1));
                }
                Err(error) => return Err(error.context(way.name())),
            }
            let _ = std::fs::remove_dir_all(&scratch);
        }
        let off = off.context("no load without replay")?;
        for (name, once) in replayed {
            if let Some(outcome) = outcomes.iter_mut().find(|outcome| outcome.way == name) {
                outcome
                    .add(Sample { off: off.clone(), on: once.on, comparison: once.comparison }, once.fault);
            }
        }
    }
    Ok(outcomes)
}

/// A load put on once.
struct Once {
    on: Run,
    comparison: crate::records::Comparison,
    /// What must not be: leaks, altered bodies.
    fault: Option<String>,
}

fn once(case: &Case, way: &Way, options: &Options, scratch: &Path) -> Result<Once> {
    let mut stage = way.start(options.offloads, scratch)?;
    let mut on = put_on(&mut stage, case, options.seconds)?;
    let mut comparison = if *way == Way::Nothing { nothing() } else { stage.chain.compare(1)? };
    if *way == Way::Mirror {
        // It writes headers of its own.
        comparison.altered = 0;
    }
    let leaked = stage.chain.leaks()?;
    if matches!(way, Way::Ours | Way::Packet) {
        on.delay_p99 = u32::try_from(stage.chain.stop_tcpcopies()?.of("delay_p99_us")).ok();
    }
    let mut fault = (leaked > 0).then(|| format!("LEAK: {leaked} packets"));
    if let Request::Post(size) = case.request
        && let Err(error) = stage.chain.check_bodies(size)
    {
        fault = Some(error.to_string());
    }
    if fault.is_none() {
        stage.finish()?;
    }
    Ok(Once { on, comparison, fault })
}

fn nothing() -> crate::records::Comparison {
    let none = crate::records::Answers::default();
    crate::records::Comparison::of(&none, &none, 1)
}

fn put_on(stage: &mut Stage, case: &Case, seconds: u64) -> Result<Run> {
    let load = stage.chain.load(case.pace, case.connections, seconds)?;
    let load = Load { request: case.request, ..load };
    let (online, target) = stage.chain.server_pids()?;
    let before = Reading::take(stage)?;
    let mut report = stage.chain.run(load)?;
    wait::settled(LIMIT, QUIET, QUIET, || packets(stage), |_| true)?;
    let after = Reading::take(stage)?;

    let tree = |pid| after.processes.tree(pid).saturating_sub(before.processes.tree(pid));
    let watching = after.processes.watching().saturating_sub(before.processes.watching());
    let others = after.others.saturating_sub(before.others);
    let (elapsed, busy) = after.machine.since(&before.machine);
    Ok(Run {
        elapsed,
        answered: report.answered,
        rate: report.rate(),
        p50: report.latency.at(500),
        p99: report.latency.at(990),
        delay_p99: None,
        online_server: tree(online),
        target_server: tree(target),
        processes: after.processes.all().saturating_sub(before.processes.all()),
        others,
        busy: busy.saturating_sub(watching + others),
        packets: Packets {
            received: after.packets.received - before.packets.received,
            sent: after.packets.sent - before.packets.sent,
        },
        daemons: after
            .daemons
            .zip(before.daemons)
            .map(|(after, before)| (after.0.since(before.0), after.1.since(before.1))),
    })
}

/// All counters at one time.
struct Reading {
    machine: Machine,
    processes: Processes,
    others: Duration,
    packets: Packets,
    daemons: Option<(Spent, Spent)>,
}

impl Reading {
    fn take(stage: &Stage) -> Result<Self> {
        let spent = |pid| {
            let peak_mb = megabytes(Usage::of(pid)?.peak_kib);
            anyhow::Ok(Spent { cpu: cost::exact(pid)?, switches: cost::switches(pid)?, peak_mb })
        };
        let daemons = match stage.pids {
            Some((online, assistant)) => Some((spent(online)?, spent(assistant)?)),
            None => None,
        };
        let (machine, processes) = (Machine::now()?, Processes::now()?);
        let others = processes.others(&isolation::processes_outside()?)?;
        Ok(Self { machine, processes, others, packets: packets(stage)?, daemons })
    }
}

fn packets(stage: &Stage) -> Result<Packets> {
    Packets::of(stage.chain.network().host(Role::Target, 0)?.namespace(), "back")
}

/// A run of its own under strace: lines for a way's two daemons.
fn count_calls(case: &Case, way: &Way, options: &Options) -> Result<Vec<String>> {
    let scratch = Path::new(isolation::SCRATCH).join(format!("{}-{}-calls", case.name, way.name()));
    let mut stage = way.start(options.offloads, &scratch)?;
    let (online, assistant) = stage.pids.context("no daemons")?;
    let attach = |pid, role| {
        syscalls::Counter::attach(pid, stage.chain.network().host(role, 0)?.namespace(), &scratch)
    };
    let counters =
        [("tcpcopy", attach(online, Role::Online)?), ("intercept", attach(assistant, Role::Assistant)?)];
    put_on(&mut stage, case, options.seconds)?;
    let mut counted = Vec::new();
    for (name, counter) in counters {
        counted.push((name, counter.finish()?));
    }
    let replayed = stage.chain.compare(1)?.replayed;
    let _ = std::fs::remove_dir_all(&scratch);
    let line = |(name, calls): (&str, Vec<_>)| {
        format!("  {} {name}: system calls for each request {}", way.name(), syscalls::line(&calls, replayed))
    };
    Ok(counted.into_iter().map(line).collect())
}
