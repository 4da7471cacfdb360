//! A target that answers nothing, under a load that goes on: memory stays within its limit, and once the target answers,
//! the replay goes on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Ongoing, plain, resident};
use crate::account;
use crate::chain::{Chain, Setup, short};
use crate::load::Pace;
use crate::recovery;
use crate::scenarios::ongoing::{after, end};
use crate::scenarios::{Context, Offloads, Scenario};
use crate::sys::{self, Signal};

/// Production's requests a second, and how many are made while the target is silent: for 20 s, or 10 minutes in a long run.
const RATE: u32 = 5_000;
const SILENT: u64 = 20 * RATE as u64;
const SILENT_LONG: u64 = 600 * RATE as u64;
/// tcpcopy's limit, in an ordinary run and in a long one, which has the default.
const LIMIT_MIB: u64 = 48;
const DEFAULT_LIMIT_MIB: u64 = 512;
/// What the process has besides its sessions: the program, stacks, buffers for packets and the tunnel.
const BESIDES_MIB: u64 = 32;

pub(super) fn scenario() -> Scenario {
    let scenario = Scenario::new("chaos/silent-target", Offloads::On, silent);
    Scenario { limit: Duration::from_secs(120), ..scenario }
}

/// The target's kernel takes connections and requests, its server answers nothing.
fn silent(context: &Context) -> Result<String> {
    let limit = if context.long { DEFAULT_LIMIT_MIB } else { LIMIT_MIB };
    let setup = plain(context).tcpcopy(&format!("--memory-limit {limit}MiB"));
    let mut chain = Chain::start(Setup { patience: Duration::from_secs(5), ..setup }, &context.scratch)?;
    let load = chain.load(Pace::Rate(RATE), short(), 3600)?;
    let load = Ongoing::begin(&chain, load)?;
    after(&load.running, u64::from(RATE))?;
    let before = [resident(chain.tcpcopy(0)?.pid())? >> 10, resident(chain.intercept(0)?.pid())? >> 10];
    let (_, target) = chain.server_pids()?;
    freeze(target, Signal::Stop)?;
    after(&load.running, if context.long { SILENT_LONG } else { SILENT })?;
    freeze(target, Signal::Continue)?;
    let took = load.recovery(&mut chain)?;
    after(&load.running, u64::from(RATE))?;
    let answered = end(load.running)?.answered;
    let (tcpcopy, intercept) = chain.usage()?;
    let counters = chain.stop_tcpcopies()?;
    account::balance(&counters)?;
    let peak = tcpcopy.peak_kib >> 10;
    ensure!(peak <= limit + BESIDES_MIB, "{peak} MiB with a limit of {limit} MiB; {counters}");
    chain.finish()?;
    Ok(format!(
        "{}; production {answered} answered, 0 failed, 0 packets leaked; peak {peak} MiB of {limit} (before: {}), \
         intercept {} MiB (before: {}); {counters}",
        recovery::text("", &[took.as_millis()]),
        before[0],
        intercept.peak_kib >> 10,
        before[1]
    ))
}

/// The server's processes: the first one and its workers.
fn freeze(server: u32, signal: Signal) -> Result<()> {
    let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
    let children = children.context("the target's server has gone")?;
    for pid in std::iter::once(Ok(server)).chain(children.split_whitespace().map(str::parse)) {
        sys::signal(pid?, signal)?;
    }
    Ok(())
}
