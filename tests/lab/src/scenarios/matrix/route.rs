//! The target's route to the assistant is lost: what it answers goes where its default route leads, and may reach real
//! clients. Neither rules nor routing of ours are on that way; that tcpcopy notices is what keeps it few.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::chain::{Chain, Setup, short, sound};
use crate::load::Pace;
use crate::network::{Family, Plan, Role};
use crate::scenarios::Context;
use crate::wait;

/// Requests a second: a light load.
const RATE: u32 = 3;
/// How long the route is away. The target repeats an answer for longer.
const AWAY: Duration = Duration::from_secs(8);
/// Packets that may reach a client meanwhile.
const MOST: u64 = 10;
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn lost(context: &Context) -> Result<String> {
    let plan = Plan { forwarding: true, ..context.plan() };
    let mut chain = Chain::start(Setup::new(plan, Family::V4), &context.scratch)?;
    let forward = |chain: &Chain, value| {
        chain.network().host(Role::Online, 0)?.namespace().set(&[("ipv4/ip_forward", value)])
    };
    let target = |chain: &Chain, line: &str| chain.network().host(Role::Target, 0)?.namespace().ip(line);
    forward(&chain, "1")?;
    target(&chain, "route add default via 10.91.2.1 dev back\n")?;
    let load = chain.load(Pace::Rate(RATE), short(), 3600)?;
    let load = chain.begin(load)?;
    let arrives = |chain: &mut Chain| {
        let before = chain.target()?.len();
        wait::until(PATIENCE, "requests reach the target", || Ok(chain.target()?.len() >= before + 2))
    };
    arrives(&mut chain)?;
    chain.check_leaks()?;
    let made = load.progress().made();
    target(&chain, "route delete 10.91.1.0/24\n")?;
    let start = Instant::now();
    wait::until(AWAY + PATIENCE, "the time is over", || Ok(start.elapsed() >= AWAY))?;
    let leaked = chain.leaks()?;
    let made = load.progress().made() - made;
    target(&chain, "route add 10.91.1.0/24 via 10.91.2.3 dev back\n")?;
    ensure!(leaked > 0, "positive control: no answer reached a client");
    ensure!(leaked <= MOST, "LEAK: {leaked} packets for {made} requests; {:?}", chain.leaks_by_kind()?);
    arrives(&mut chain)?;
    load.stop();
    sound(&load.finish()?)?;
    target(&chain, "route delete default\n")?;
    forward(&chain, "0")?;
    chain.finish_leaking()?;
    Ok(format!("leaks {leaked} of {made} requests while the route was away"))
}
