//! What happens to a host on which intercept runs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::rules::{self, Edit};
use super::run::{Run, targets};
use super::{Event, Keeper};
use crate::daemon::{Daemon, Program};
use crate::network::{Role, Segment};
use crate::sys::Signal;
use crate::wait;

/// How long intercept may take to put its rules back. It promises a second; here other processes have the processor, too.
const REPAIR: Duration = Duration::from_secs(3);
/// How often a ruleset is flushed in a row.
const FLUSHES: u32 = 30;
/// The second instance's table and ports.
const SECOND: &str = "second";

pub(super) const ALL: [Event; 17] = [
    Event::new("running", |run| run.goes_on()).and_sockets(),
    Event::new("frozen", frozen).and_sockets(),
    Event::new("killed", killed).and_sockets(),
    Event::new("restarted", restarted),
    Event::new("ruleset-flushed", flushed).and_sockets(),
    Event::new("ruleset-flushed-repeatedly", flushed_repeatedly),
    Event::new("killed-and-flushed", killed_and_flushed).and_sockets(),
    Event::new("rules-edited", |run| edited(run, Edit::AcceptInstead)),
    Event::new("accept-inserted", |run| edited(run, Edit::AcceptFirst)),
    Event::new("chains-flushed", |run| edited(run, Edit::FlushChains)),
    Event::new("table-deleted", |run| edited(run, Edit::DeleteTables)),
    Event::new("second-instance", second_instance),
    Event::new("good-reload", good_reload),
    Event::new("bad-reload", bad_reload),
    Event::new("routing-rules-flushed", routing_rules_flushed),
    Event::new("link-flap", link_flap),
    Event::new("carrier-flap", carrier_flap),
];

fn frozen(run: &mut Run) -> Result<()> {
    run.chain.intercept(0)?.signal(Signal::Stop)?;
    run.goes_on()?;
    run.check_leaks()?;
    run.chain.intercept(0)?.signal(Signal::Continue)
}

fn killed(run: &mut Run) -> Result<()> {
    run.chain.intercept(0)?.kill()?;
    run.goes_on()?;
    run.check_leaks()?;
    run.chain.start_intercepts()
}

fn restarted(run: &mut Run) -> Result<()> {
    for _ in 0..3 {
        run.chain.intercept(0)?.stop()?;
        run.strays.pass(10)?;
        run.chain.start_intercepts()?;
        run.strays.pass(10)?;
    }
    Ok(())
}

/// Only rules know what an error of a router is about: routing lets it go where its destination says. So while there are no
/// rules, none is made.
fn without_router<T>(run: &mut Run, act: impl FnOnce(&mut Run) -> Result<T>) -> Result<T> {
    let through_here = run.keeper.router() == run.keeper.role();
    run.strays.set_router(!through_here);
    run.strays.pass(2)?;
    let result = act(run)?;
    run.strays.set_router(true);
    Ok(result)
}

fn flush(run: &Run) -> Result<()> {
    run.host()?.output("nft", &["flush", "ruleset"]).map(drop)
}

fn flushed(run: &mut Run) -> Result<()> {
    let before = rules::of(run.host()?)?;
    without_router(run, |run| {
        flush(run)?;
        repaired(run, &before)
    })
}

fn flushed_repeatedly(run: &mut Run) -> Result<()> {
    let before = rules::of(run.host()?)?;
    without_router(run, |run| {
        for _ in 0..FLUSHES {
            flush(run)?;
            run.strays.pass(1)?;
        }
        repaired(run, &before)
    })
}

/// Nothing puts the rules back: the other layer holds alone.
fn killed_and_flushed(run: &mut Run) -> Result<()> {
    run.chain.intercept(0)?.kill()?;
    without_router(run, |run| {
        flush(run)?;
        run.goes_on()?;
        run.check_leaks()?;
        run.chain.start_intercepts()
    })
}

fn edited(run: &mut Run, edit: Edit) -> Result<()> {
    let before = rules::of(run.host()?)?;
    without_router(run, |run| {
        for _ in 0..3 {
            rules::edit(run.host()?, edit)?;
            run.check_leaks()?;
            repaired(run, &before)?;
        }
        Ok(())
    })
}

/// Waits until the rules are as before.
fn repaired(run: &mut Run, before: &str) -> Result<()> {
    let start = Instant::now();
    let mut now = String::new();
    let repaired = wait::until(REPAIR, "the rules are put back", || {
        now = rules::of(run.host()?)?;
        Ok(now == before)
    });
    let waited = start.elapsed().as_millis();
    let result = repaired.with_context(|| format!("after {waited} ms: {now}, not {before}"));
    // A leak explains more than a rule.
    run.check_leaks().and(result)
}

/// An intercept for another port of the target comes and goes, with its rules.
fn second_instance(run: &mut Run) -> Result<()> {
    let scratch = run.chain.scratch().to_owned();
    let second = |word: &str| -> Vec<String> { word.split(' ').map(str::to_owned).collect() };
    let before = rules::of(run.host()?)?;
    let mut arguments =
        second("--target 10.91.2.2:8080,[fd91:2::2]:8080 --port 36525 --queue 36560 --insecure");
    arguments.extend(second(&format!("--table {SECOND} --bind 127.0.0.1")));
    if run.keeper == Keeper::OnTarget {
        arguments.push("--on-target".to_owned());
    }
    let path = Program::Intercept.path()?;
    let start = |run: &Run, arguments: &[String]| {
        Daemon::run(&path, "intercept-second", run.host()?, arguments, &scratch)
    };
    for _ in 0..2 {
        let mut other = start(run, &arguments)?;
        other.wait_ready()?;
        run.goes_on()?;
        run.check_leaks()?;
        ensure!(run.chain.intercept(0)?.running()?, "the first instance ended");
        other.stop()?;
        run.strays.pass(20)?;
    }
    let mut remove = start(run, &second(&format!("rules remove --table {SECOND}")))?;
    let status = remove.wait()?;
    ensure!(status.success(), "rules remove --table {SECOND}: {status}: {}", remove.output()?.trim());
    run.goes_on()?;
    repaired(run, &before)
}

/// Another service is added, and goes again.
fn good_reload(run: &mut Run) -> Result<()> {
    for more in [&["10.91.2.2:8080"][..], &[]] {
        fs::write(run.file(), targets(more))?;
        reload(run)?;
    }
    Ok(())
}

/// The file names no target, then is broken, then names another host's service only.
fn bad_reload(run: &mut Run) -> Result<()> {
    for text in ["target = []\n", "target = [\n", "target = [\"10.91.2.77:80\"]\n"] {
        fs::write(run.file(), text)?;
        reload(run)?;
    }
    fs::write(run.file(), targets(&[]))?;
    reload(run)
}

fn reload(run: &mut Run) -> Result<()> {
    run.chain.intercept(0)?.signal(Signal::Reload)?;
    run.goes_on()?;
    run.check_leaks()
}

/// All routing rules but the kernel's own are deleted; then all are, and the kernel's come back.
pub(super) fn routing_rules_flushed(run: &mut Run) -> Result<()> {
    for version in ["-4", "-6"] {
        let rules = run.host()?.output("ip", &[version, "rule", "show"])?;
        for priority in rules.lines().filter_map(|line| line.split(':').next()) {
            if !matches!(priority, "0" | "32766" | "32767") {
                run.host()?.output("ip", &[version, "rule", "delete", "priority", priority])?;
            }
        }
    }
    run.goes_on()?;
    run.check_leaks()?;
    if run.keeper == Keeper::Online {
        // Production itself needs the kernel's own.
        return Ok(());
    }
    for version in ["-4", "-6"] {
        run.host()?.output("ip", &[version, "rule", "flush"])?;
        run.host()?.output("ip", &[version, "rule", "add", "priority", "32766", "lookup", "main"])?;
        if version == "-4" {
            run.host()?.output("ip", &[version, "rule", "add", "priority", "32767", "lookup", "default"])?;
        }
    }
    run.check_leaks()
}

/// The host's link goes down and comes up again, and with it what the operator configured there.
pub(super) fn link_flap(run: &mut Run) -> Result<()> {
    for _ in 0..2 {
        run.host()?.ip("link set back down\n")?;
        run.strays.pass(10)?;
        run.host()?.ip("link set back up\n")?;
        if run.keeper == Keeper::OnTarget {
            run.chain.network().add_routes()?;
        }
        run.goes_on()?;
        run.check_leaks()?;
    }
    Ok(())
}

/// The cable of the host is pulled, and the target's.
pub(super) fn carrier_flap(run: &mut Run) -> Result<()> {
    for role in [run.keeper.role(), Role::Target] {
        let set = |run: &Run, up| run.chain.network().host(role, 0)?.set_link(Segment::Back, up);
        set(run, false)?;
        run.strays.pass(20)?;
        set(run, true)?;
        run.goes_on()?;
        run.check_leaks()?;
    }
    Ok(())
}
