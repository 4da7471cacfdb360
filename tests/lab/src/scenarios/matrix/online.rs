//! What happens to the online host.

use std::fs;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Event;
use super::events::{carrier_flap, link_flap, routing_rules_flushed};
use super::run::{Run, mappings};
use crate::daemon::{Daemon, Program};
use crate::network::{Role, Segment};
use crate::sys::Signal;
use crate::wait;

/// How often a ruleset is flushed in a row.
const FLUSHES: u32 = 30;
/// The kernel gives a neighbour up after three seconds.
const GIVEN_UP: Duration = Duration::from_secs(15);
/// Errors of each family after which they are not seen is a statement.
const ERRORS: u64 = 5;

pub(super) const ALL: [Event; 14] = [
    Event::new("running", |run| run.goes_on()).and_sockets(),
    Event::new("frozen", frozen).and_sockets(),
    Event::new("killed", killed).and_sockets(),
    Event::new("restarted", restarted),
    Event::new("ruleset-flushed", flushed),
    Event::new("rules-edited", edited),
    Event::new("second-instance", second_instance),
    Event::new("good-reload", good_reload),
    Event::new("bad-reload", bad_reload),
    Event::new("routing-rules-flushed", routing_rules_flushed),
    Event::new("link-flap", link_flap),
    Event::new("carrier-flap", carrier_flap),
    Event::new("neighbour-dead", neighbour_dead).and_sockets(),
    Event::new("no-route", no_route),
];

fn frozen(run: &mut Run) -> Result<()> {
    run.chain.tcpcopy(0)?.signal(Signal::Stop)?;
    run.goes_on()?;
    run.check_leaks()?;
    run.chain.tcpcopy(0)?.signal(Signal::Continue)
}

/// Errors about replayed packets end with the replay.
fn killed(run: &mut Run) -> Result<()> {
    run.strays.set_router(false);
    run.strays.pass(2)?;
    run.chain.tcpcopy(0)?.kill()?;
    run.goes_on()?;
    run.check_leaks()?;
    run.chain.start_tcpcopies()?;
    run.strays.set_router(true);
    Ok(())
}

fn restarted(run: &mut Run) -> Result<()> {
    for _ in 0..3 {
        run.strays.set_router(false);
        run.strays.pass(2)?;
        run.chain.tcpcopy(0)?.stop()?;
        run.strays.pass(10)?;
        run.chain.start_tcpcopies()?;
        run.strays.set_router(true);
        run.strays.pass(10)?;
    }
    Ok(())
}

/// The table has an owner: a flush passes it by.
fn flushed(run: &mut Run) -> Result<()> {
    for _ in 0..FLUSHES {
        run.host()?.output("nft", &["flush", "ruleset"])?;
        run.strays.pass(1)?;
    }
    Ok(())
}

/// The kernel refuses every change of the table by others.
fn edited(run: &mut Run) -> Result<()> {
    let tables = run.host()?.output("nft", &["list", "tables"])?;
    let mut tried = 0;
    for table in tables.lines().filter_map(|line| line.strip_prefix("table ")) {
        let words: Vec<&str> = table.split(' ').collect();
        for command in [&["delete", "table"][..], &["flush", "table"]] {
            let refused = run.host()?.output("nft", &[command, &words].concat());
            let Err(error) = refused else { bail!("the kernel let root {command:?} {table}") };
            ensure!(format!("{error:#}").contains("not permitted"), "{error:#}");
            tried += 1;
        }
    }
    ensure!(tried > 0, "there are no tables: {tables}");
    Ok(())
}

/// A tcpcopy for another port comes and goes, in the same way twice.
fn second_instance(run: &mut Run) -> Result<()> {
    let scratch = run.chain.scratch().to_owned();
    let options = "-x 8080-10.91.2.2:8080,8080-[fd91:2::2]:8080 -s 10.91.2.3 --table second --sink second0 \
                   --queue 36560 --workers 1 --keys";
    let mut arguments: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
    arguments.push(run.chain.keys().display().to_string());
    let path = Program::Tcpcopy.path()?;
    for _ in 0..2 {
        let mut other = Daemon::run(&path, "tcpcopy-second", run.host()?, &arguments, &scratch)?;
        run.goes_on()?;
        run.check_leaks()?;
        ensure!(other.running()?, "the second instance ended: {}", other.output()?.trim());
        ensure!(run.chain.tcpcopy(0)?.running()?, "the first instance ended");
        other.stop()?;
        run.strays.pass(20)?;
    }
    Ok(())
}

/// Another service is added, and goes again.
fn good_reload(run: &mut Run) -> Result<()> {
    for more in [&["8080-10.91.2.2:8080"][..], &[]] {
        fs::write(run.tcpcopy_file(), mappings(more))?;
        reload(run)?;
    }
    Ok(())
}

/// The file maps nothing, then is broken.
fn bad_reload(run: &mut Run) -> Result<()> {
    for text in ["map = []\n", "map = [\n"] {
        fs::write(run.tcpcopy_file(), text)?;
        reload(run)?;
    }
    fs::write(run.tcpcopy_file(), mappings(&[]))?;
    reload(run)
}

fn reload(run: &mut Run) -> Result<()> {
    run.chain.tcpcopy(0)?.signal(Signal::Reload)?;
    run.goes_on()?;
    run.check_leaks()
}

fn neighbour_dead(run: &mut Run) -> Result<()> {
    unplug_target(run)?;
    wait_for_errors(run)?;
    run.check_leaks()?;
    plug_target(run)
}

/// The target's cable is pulled, and the online host forgets where it was.
pub(super) fn unplug_target(run: &Run) -> Result<()> {
    run.chain.network().host(Role::Target, 0)?.set_link(Segment::Back, false)?;
    let host = run.chain.network().host(Role::Online, 0)?.namespace();
    host.ip("neigh delete 10.91.2.2 dev back\nneigh delete fd91:2::2 dev back\n")
}

pub(super) fn plug_target(run: &Run) -> Result<()> {
    run.chain.network().host(Role::Target, 0)?.set_link(Segment::Back, true)?;
    run.chain.network().add_neighbours()
}

/// Waits until the online host has made errors of both families, or would have.
pub(super) fn wait_for_errors(run: &Run) -> Result<()> {
    let before = errors(run)?;
    wait::until(GIVEN_UP, "the kernel makes errors", || {
        Ok(errors(run)?.iter().zip(before).all(|(now, before)| *now >= before + ERRORS))
    })
}

/// ICMP errors that the online host has made, IPv4 and IPv6.
fn errors(run: &Run) -> Result<[u64; 2]> {
    let host = run.chain.network().host(Role::Online, 0)?.namespace();
    let v4 = host.output("nstat", &["-asz", "IcmpOutDestUnreachs"])?;
    let v6 = host.output("nstat", &["-asz", "Icmp6OutDestUnreachs"])?;
    let count = |text: &str| -> u64 {
        let mut words = text.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace);
        words.find_map(|word| word.parse().ok()).unwrap_or_default()
    };
    Ok([count(&v4), count(&v6)])
}

/// The online host loses its routes to the target.
fn no_route(run: &mut Run) -> Result<()> {
    let change = |run: &Run, word: &str| {
        let (v4, v6) = ("10.91.2.2/32", "fd91:2::2/128");
        run.host()?.ip(&format!("route {word} unreachable {v4}\nroute {word} unreachable {v6}\n"))
    };
    change(run, "add")?;
    run.goes_on()?;
    run.check_leaks()?;
    change(run, "delete")
}
