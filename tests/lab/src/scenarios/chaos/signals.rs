//! Daemons are killed, frozen and stopped at random times.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{GROWTH, Ongoing, Resources, plain};
use crate::account;
use crate::chain::{Chain, keep_alive, short};
use crate::counters::Counters;
use crate::load::Pace;
use crate::network::Role;
use crate::recovery;
use crate::scenarios::ongoing::{after, end};
use crate::scenarios::{Context, Offloads, Scenario};
use crate::sys::Signal;

/// Rounds in an ordinary and in a long run.
const ROUNDS: (usize, usize) = (6, 100);
/// How long they may take in an ordinary run.
const LIMIT: Duration = Duration::from_secs(120);
/// Any number will do: it makes the rounds of all runs the same.
const SEED: u64 = 0x6368_616f_7321;

/// A daemon under a signal, by the name in the figures.
const KINDS: [(&str, bool, Signal); 6] = [
    ("tcpcopy killed", true, Signal::Kill),
    ("intercept frozen", false, Signal::Stop),
    ("tcpcopy stopped", true, Signal::Term),
    ("intercept killed", false, Signal::Kill),
    ("tcpcopy frozen", true, Signal::Stop),
    ("intercept stopped", false, Signal::Term),
];

pub(super) fn scenario() -> Scenario {
    Scenario { limit: LIMIT, ..Scenario::new("chaos/signals", Offloads::On, rounds) }
}

/// Each round sends a signal to a daemon at a random time, and heals it after another. After each, no production request
/// has failed, nothing has leaked, what a tcpcopy that ended had counted balances, and the hosts' links and the daemons'
/// descriptors and memory are as before.
fn rounds(context: &Context) -> Result<String> {
    let rounds = if context.long { ROUNDS.1 } else { ROUNDS.0 };
    let mut random = SEED;
    let mut chain = Chain::start(plain(context), &context.scratch)?;
    let steady = chain.load(Pace::Rate(super::RATE), keep_alive(20), 3600)?;
    let load = Ongoing::begin(&chain, steady)?;
    let brief = chain.load(Pace::Rate(100), short(), 3600)?;
    let brief = chain.begin(brief)?;
    after(&load.running, 500)?;
    let before = Resources::of(&mut chain)?;
    let hosts = [Role::Online, Role::Assistant];
    let links = |chain: &Chain| {
        let of = |role| Ok(chain.state(role, 0)?.links().to_owned());
        hosts.into_iter().map(of).collect::<Result<Vec<_>>>()
    };
    let links_before = links(&chain)?;
    let mut balanced = 0;
    let mut recoveries: BTreeMap<&str, Vec<u128>> = BTreeMap::new();
    // Every kind comes equally often, and each at its own times.
    for (round, (name, tcpcopy, signal)) in KINDS.into_iter().cycle().take(rounds).enumerate() {
        after(&load.running, next(&mut random) % 500)?;
        strike(&mut chain, tcpcopy, signal)?;
        if tcpcopy && signal == Signal::Term {
            let mut counters = Counters::default();
            counters.add_last(&chain.tcpcopy(0)?.output()?).context("no `stats` at the end")?;
            account::balance_under_load(&counters).with_context(|| format!("{name}, round {round}"))?;
            balanced += 1;
        }
        after(&load.running, 20 + next(&mut random) % 700)?;
        let start = Instant::now();
        heal(&mut chain, tcpcopy, signal)?;
        load.recovery(&mut chain)?;
        recoveries.entry(name).or_default().push(start.elapsed().as_millis());
        chain.check_leaks()?;
        before.check(&mut chain, GROWTH).with_context(|| format!("{name}, round {round}"))?;
        let links_now = links(&chain)?;
        ensure!(links_now == links_before, "{name}, round {round}: {links_now:?}, before {links_before:?}");
    }
    let answered = end(load.running)?.answered + end(brief)?.answered;
    account::balance(&chain.stop_tcpcopies()?)?;
    chain.finish()?;
    let each: Vec<_> =
        recoveries.iter().map(|(name, times)| recovery::text(&format!("{name} "), times)).collect();
    Ok(format!(
        "{rounds} rounds; {}; production {answered} answered, 0 failed, 0 packets leaked, {} accounts balanced",
        each.join("; "),
        balanced + 1
    ))
}

fn strike(chain: &mut Chain, tcpcopy: bool, signal: Signal) -> Result<()> {
    let daemon = if tcpcopy { chain.tcpcopy(0)? } else { chain.intercept(0)? };
    match signal {
        Signal::Kill => daemon.kill(),
        Signal::Term => daemon.stop(),
        Signal::Stop | Signal::Continue | Signal::Reload => daemon.signal(signal),
    }
}

fn heal(chain: &mut Chain, tcpcopy: bool, signal: Signal) -> Result<()> {
    match (signal, tcpcopy) {
        (Signal::Stop | Signal::Continue, true) => chain.tcpcopy(0)?.signal(Signal::Continue),
        (Signal::Stop | Signal::Continue, false) => chain.intercept(0)?.signal(Signal::Continue),
        (Signal::Kill | Signal::Term | Signal::Reload, true) => chain.start_tcpcopies(),
        (Signal::Kill | Signal::Term | Signal::Reload, false) => chain.start_intercepts(),
    }
}

/// xorshift64 (Marsaglia 2003).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
