//! One run of the matrix.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Deployment, Keeper, Source, online};
use crate::chain::{Chain, IDS, Setup, short};
use crate::forge::{REFUSED_PORTS, Strays};
use crate::leak::{self, Kind};
use crate::load::{Pace, Running};
use crate::namespace::{Namespace, run};
use crate::network::{Family, Plan, Role};
use crate::scenarios::Context;
use crate::scenarios::ongoing::{after, end};
use crate::wait;

/// Production's requests a second, in each family.
const RATE: u32 = 150;
/// Rounds of strays, and requests, in which a state shows whether it is closed.
const ROUNDS: u32 = 60;
const REQUESTS: u64 = 30;
/// How long a replay may take to go on.
const RECOVERY: Duration = Duration::from_secs(20);
/// How long each kind of stray may take to leak once nothing keeps it.
const CONTROL: Duration = Duration::from_secs(10);
/// A production packet that is lost is sent again after a second at the earliest. A few requests may wait as long for a
/// processor, where other scenarios run.
const LOST: u32 = 900_000;
/// Configuration files, which are read again at a reload.
const INTERCEPT_FILE: &str = "intercept.toml";
const TCPCOPY_FILE: &str = "tcpcopy.toml";
/// The table of the target's firewall.
const FIREWALL: &str = "lab-firewall";

/// A chain under a load of both families, and strays.
pub(super) struct Run {
    pub(super) chain: Chain,
    pub(super) keeper: Keeper,
    pub(super) strays: Strays,
    loads: Vec<(Running, u64)>,
    seed: u64,
    /// Rounds and requests for which a state is watched.
    length: (u32, u64),
}

impl Run {
    pub(super) fn start(context: &Context, deployment: Deployment) -> Result<Self> {
        let keeper = deployment.keeper;
        let mut chain = Chain::prepare(setup(context, deployment)?, &context.scratch)?;
        prepare_hosts(&chain)?;
        chain.start_intercepts()?;
        chain.start_tcpcopies()?;
        let mut loads = Vec::new();
        for family in Family::ALL {
            let load = chain.load_of(family, Pace::Rate(RATE), short(), 3600)?;
            let first_id = load.first_id;
            loads.push((chain.begin(load)?, first_id));
        }
        let strays = Strays::start(chain.network(), context.seed, keeper == Keeper::Online)?;
        let length = if context.long { (ROUNDS * 10, REQUESTS * 10) } else { (ROUNDS, REQUESTS) };
        Ok(Self { chain, keeper, strays, loads, seed: context.seed, length })
    }

    /// The host that things happen to.
    pub(super) fn host(&self) -> Result<&Namespace> {
        Ok(self.chain.network().host(self.keeper.role(), 0)?.namespace())
    }

    /// The configuration file of intercept.
    pub(super) fn file(&self) -> PathBuf {
        self.chain.scratch().join(INTERCEPT_FILE)
    }

    /// The configuration file of tcpcopy.
    pub(super) fn tcpcopy_file(&self) -> PathBuf {
        self.chain.scratch().join(TCPCOPY_FILE)
    }

    /// Strays and production go on for a while.
    pub(super) fn goes_on(&self) -> Result<()> {
        let (rounds, requests) = self.length;
        self.strays.pass(rounds)?;
        self.loads.iter().try_for_each(|(load, _)| after(load, requests))
    }

    /// Fails if anything leaked, and says how to see it again.
    pub(super) fn check_leaks(&mut self) -> Result<()> {
        let seed = self.seed;
        self.chain.check_leaks().map_err(|error| anyhow::anyhow!("{error:#}; --seed {seed}"))
    }

    /// Waits until requests that are made from now on reach the target, of both families.
    pub(super) fn replays_again(&mut self) -> Result<()> {
        for (load, first_id) in &self.loads {
            let fresh = first_id + load.progress().made()..first_id + IDS;
            wait::until(RECOVERY, "new requests reach the target", || {
                Ok(self.chain.target()?.ids().any(|id| fresh.contains(&id)))
            })?;
        }
        Ok(())
    }

    /// Ends the load and the daemons, checks, and takes the rules away to see that the same strays leak then.
    pub(super) fn finish(mut self) -> Result<String> {
        let mut slowest = 0;
        for (load, _) in std::mem::take(&mut self.loads) {
            let mut latency = end(load)?.latency;
            let late = latency.at(990);
            ensure!(late < LOST, "one of a hundred requests of production took {late} µs or more");
            slowest = slowest.max(latency.at(1000));
        }
        // Errors about replayed packets end with the replay, if it is tcpcopy that keeps them from the clients.
        let errors_end = self.keeper.router() == Role::Online;
        self.strays.set_router(!errors_end);
        self.strays.pass(2)?;
        self.chain.stop_daemons()?;
        self.strays.pass(self.length.0)?;
        self.check_leaks()?;
        let kept = self.strays.made();
        self.control()?;
        self.strays.finish()?;
        // It is gone if the event flushed the target's ruleset.
        let target = self.chain.network().host(Role::Target, 0)?.namespace();
        run(
            target.command("nft").args(["-f", "-"]),
            Some(&format!("table inet {FIREWALL}; delete table inet {FIREWALL}")),
        )?;
        self.chain.finish_leaking()?;
        Ok(format!(
            "leaks 0 of {kept} strays; slowest request of production {slowest} µs; seed {}",
            self.seed
        ))
    }

    /// The positive control: without rules, each kind of stray leaks in each family.
    fn control(&mut self) -> Result<()> {
        if self.keeper.router() == Role::Online {
            // Nothing else gets past the assistant or the target yet.
            self.chain.forget_leaks()?;
            self.strays.set_router(true);
            self.all_leak(&[Kind::IcmpError]).context("errors of the router")?;
        }
        if self.keeper == Keeper::Online {
            self.strays.set_router(false);
            self.strays.pass(2)?;
            self.chain.forget_leaks()?;
            online::unplug_target(self)?;
            self.all_leak(&[Kind::IcmpError]).context("errors of the online host")?;
            online::plug_target(self)?;
        }
        self.chain.remove_rules()?;
        let forward = |value| [("ipv4/ip_forward", value), ("ipv6/conf/all/forwarding", value)];
        if self.keeper == Keeper::NotForwarding {
            self.host()?.set(&forward("1"))?;
        }
        self.chain.forget_leaks()?;
        self.all_leak(&Kind::ALL)?;
        if self.keeper == Keeper::NotForwarding {
            self.host()?.set(&forward("0"))?;
        }
        Ok(())
    }

    /// Waits until packets of these kinds have leaked, in each family.
    fn all_leak(&mut self, kinds: &[Kind]) -> Result<()> {
        let mut missing = Vec::new();
        let leaked = wait::until(CONTROL, "each kind leaks once nothing keeps it", || {
            let leaks = self.chain.leaks_by_kind()?;
            let all = Family::ALL
                .into_iter()
                .flat_map(|family| kinds.iter().map(move |kind| (family.name(), *kind)));
            missing = all.filter(|kind| !leaks.contains_key(kind)).collect();
            Ok(missing.is_empty())
        });
        let seen = leak::summary(&self.chain.leaks_by_kind()?);
        leaked.with_context(|| format!("positive control: no {missing:?} leaked; {seen}"))
    }
}

/// The deployment, of both families, with configuration files.
fn setup(context: &Context, Deployment { keeper, source }: Deployment) -> Result<Setup> {
    let forwarding = keeper != Keeper::NotForwarding;
    let plan = Plan { router: Some(keeper.router()), forwarding, ..context.plan() };
    let mut setup = Setup::new(plan, Family::V4);
    if keeper == Keeper::OnTarget {
        setup = setup.on_target("--clients 10.91.1.0/24,fd91:1::/64");
    }
    if source == Source::Sockets {
        let options = ["--capture-source", "packet"].map(str::to_owned);
        setup.intercept.extend(options.clone());
        setup.tcpcopy.extend(options);
    }
    let intercept = context.scratch.join(INTERCEPT_FILE);
    fs::write(&intercept, targets(&[]))?;
    setup.intercept_file = Some(intercept);
    let tcpcopy = context.scratch.join(TCPCOPY_FILE);
    fs::write(&tcpcopy, mappings(&[]))?;
    setup.tcpcopy_file = Some(tcpcopy);
    Ok(setup)
}

/// What intercept is told by its file: the target's services, and more.
pub(super) fn targets(more: &[&str]) -> String {
    list("target", &["10.91.2.2:80", "[fd91:2::2]:80"], more)
}

/// What tcpcopy is told by its file: to replay to the target's services, and more.
pub(super) fn mappings(more: &[&str]) -> String {
    list("map", &["80-10.91.2.2:80", "80-[fd91:2::2]:80"], more)
}

fn list(key: &str, first: &[&str], more: &[&str]) -> String {
    let values: Vec<String> = first.iter().chain(more).map(|value| format!("{value:?}")).collect();
    format!("{key} = [{}]\n", values.join(", "))
}

/// Kernels answer each packet that they refuse, and the target's firewall refuses some connections by each error that it
/// has. IPv6 addresses stay when a link goes down.
fn prepare_hosts(chain: &Chain) -> Result<()> {
    let target = chain.network().host(Role::Target, 0)?.namespace();
    for role in [Role::Target, Role::Assistant, Role::Online] {
        for host in chain.network().all(role) {
            host.namespace().set(&[
                ("ipv4/icmp_ratelimit", "0"),
                ("ipv4/icmp_ratemask", "0"),
                ("ipv6/icmp/ratelimit", "0"),
                ("ipv6/conf/back/keep_addr_on_down", "1"),
            ])?;
        }
    }
    let errors = ["port-unreachable", "host-unreachable", "admin-prohibited", "no-route"];
    let mut rules = String::new();
    for (error, port) in errors.into_iter().zip((1..REFUSED_PORTS).step_by(128)) {
        let last = port + 127;
        write!(rules, "tcp dport 80 tcp sport {port}-{last} reject with icmpx type {error}; ")?;
    }
    let table =
        format!("table inet {FIREWALL} {{ chain input {{ type filter hook input priority 0; {rules} }}; }}");
    run(target.command("nft").args(["-f", "-"]), Some(&table))?;
    Ok(())
}
