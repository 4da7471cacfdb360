//! The tunnel is closed to strangers: whatever they do is refused, counted and logged once, and the replay, which goes on
//! meanwhile, loses nothing.
//!
//! | file | who |
//! |---|---|
//! | `strangers` | those without a key, on the target's network |
//! | `holders` | those with a key, who want more than it is for or do not read |
//! | `floods` | those who are let in, and take all they can get |
//! | `legacy` | those who speak as C tools do |

mod floods;
mod holders;
mod legacy;
mod strangers;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::ongoing::{after, end, production};
use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::load::Pace;
use crate::network::{Family, Plan, Role};
use crate::relay::Relay;
use crate::wait;

/// The port of tunnels.
const PORT: u16 = 36524;
/// Where a relay listens, on an online host.
const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
/// Requests a second on connections that stay, and on connections of their own, each of which is a claim.
const RATES: (u32, u32) = (500, 200);
/// The time in which a reason is logged once, seconds.
const QUIET: u64 = 60;
/// How long the target may be quiet until what is missing counts as lost: the tunnel may have been cut.
const QUIET_TARGET: Duration = Duration::from_secs(5);
/// How long it may take until something is logged: counters are looked at every five seconds.
const LOGGED: Duration = Duration::from_secs(10);
/// Memory that strangers may cost an intercept in all, KiB, and those who are let in.
const COST: u64 = 24 << 10;
const COST_OF_GUESTS: u64 = 64 << 10;

/// Something that strangers do.
struct Attack {
    name: &'static str,
    /// Whether the tunnel of the tcpcopy that replays goes over a relay.
    relayed: bool,
    /// Further options of intercept.
    intercept: &'static [&'static str],
    /// Memory that it may cost the intercept, KiB.
    cost: u64,
    /// Before the daemons are started.
    prepare: fn(&Chain) -> Result<()>,
    /// Does it, and ends when all of it is over.
    strike: fn(&mut Chain, Option<&Relay>) -> Result<Refused>,
}

/// What must have been refused.
struct Refused {
    /// The intercept's counters that it is in.
    counters: &'static [&'static str],
    /// How much, in all of them.
    count: u64,
    /// Whether there may be more.
    or_more: bool,
    /// What the intercept logs about it, and in how many lines at most; if it takes long, more.
    log: &'static str,
    lines: u64,
}

impl Refused {
    const fn at_least(counters: &'static [&'static str], count: u64, log: &'static str) -> Self {
        Self { or_more: true, ..Self::exactly(counters, count, log) }
    }

    const fn exactly(counters: &'static [&'static str], count: u64, log: &'static str) -> Self {
        Self { counters, count, or_more: false, log, lines: counters.len() as u64 }
    }
}

impl Attack {
    const fn new(name: &'static str, strike: fn(&mut Chain, Option<&Relay>) -> Result<Refused>) -> Self {
        Self { name, relayed: false, intercept: &[], cost: COST, prepare: |_| Ok(()), strike }
    }

    fn scenario(self) -> Scenario {
        Scenario::new(format!("tunnel/{}", self.name), Offloads::On, move |context| self.run(context))
    }

    /// The second online host is the strangers'.
    fn run(&self, context: &Context) -> Result<String> {
        let plan = Plan { onlines: 2, forwarding: true, ..context.plan() };
        let tunnel = self.relayed.then_some(RELAY);
        let intercept_options = self.intercept.iter().map(|&word| word.to_owned()).collect();
        let setup = Setup {
            replaying: 1,
            tunnel,
            intercept: intercept_options,
            patience: QUIET_TARGET,
            ..Setup::new(plan, Family::V4)
        };
        let mut chain = Chain::prepare(setup, &context.scratch)?;
        (self.prepare)(&chain)?;
        chain.start_intercepts()?;
        let online = chain.network().host(Role::Online, 0)?.namespace();
        let relay = tunnel.map(|relay| Relay::start(online, relay, intercept(&chain)?)).transpose()?;
        chain.start_tcpcopies()?;
        let load = chain.load(Pace::Rate(RATES.0), keep_alive(20), 60)?;
        let brief = chain.load(Pace::Rate(RATES.1), short(), 60)?;
        let (load, brief) = (chain.begin(load)?, chain.begin(brief)?);
        after(&load, RATES.0.into())?;
        let before = chain.usage()?.1;
        let started = Instant::now();
        let refused = (self.strike)(&mut chain, relay.as_ref())?;
        let took = started.elapsed();
        wait::until(LOGGED, "the intercept logs it", || {
            Ok(chain.intercept(0)?.output()?.contains(refused.log))
        })?;
        after(&load, RATES.0.into())?;
        let mut reports = [end(load)?, end(brief)?];
        let comparison = chain.expect_perfect(1)?;
        let after = chain.usage()?.1;
        let log = chain.intercept(0)?.output()?;
        let counters = chain.finish_counting()?;
        let count: u64 = refused.counters.iter().map(|name| counters.of(name)).sum();
        let enough = if refused.or_more { count >= refused.count } else { count == refused.count };
        ensure!(enough, "{count} refused, not {}: {counters}", refused.count);
        let lines = log.lines().filter(|line| line.contains(refused.log)).count() as u64;
        let most = refused.lines * (1 + took.as_secs() / QUIET);
        ensure!((1..=most).contains(&lines), "{lines} lines of log say `{}`", refused.log);
        let grown = after.peak_kib.saturating_sub(before.peak_kib);
        ensure!(grown < self.cost, "intercept grew by {grown} KiB");
        let cpu = after.cpu().saturating_sub(before.cpu()).as_millis();
        let [steady, brief] = &mut reports;
        Ok(format!(
            "{count} refused in {:.1} s, {lines} lines of log, {grown} KiB more, {cpu} ms CPU with the replay's; \
             {comparison}; {}; {}",
            took.as_secs_f64(),
            production(steady),
            production(brief)
        ))
    }
}

/// Where strangers find the tunnel.
fn intercept(chain: &Chain) -> Result<SocketAddr> {
    let address = chain.network().host(Role::Assistant, 0)?.back(Family::V4);
    Ok(SocketAddr::new(address, PORT))
}

/// The key that the chain has, as its file shows it: its id.
fn key_id(chain: &Chain) -> Result<[u8; 4]> {
    let text = std::fs::read_to_string(chain.keys().join("one"))?;
    let (_, rest) = text.split_once(" id ").context("a key file says its id")?;
    let digits = rest.get(..8).context("eight digits")?;
    Ok(u32::from_str_radix(digits, 16)?.to_be_bytes())
}

pub(super) fn scenarios() -> Vec<Scenario> {
    let attacks = [strangers::attacks(), holders::attacks(), floods::attacks(), legacy::attacks()];
    attacks.into_iter().flatten().map(Attack::scenario).collect()
}
