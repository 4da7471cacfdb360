//! Rules that the operator makes (`rules = "manual"`): the programs use them, and leave them as they are. On the assistant the
//! operator has them made by `intercept rules load`.
//!
//! The queues of the online host are fed by iptables, since not every kernel this runs on has nft's own expression.

use std::fs;

use anyhow::{Result, ensure};

use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive};
use crate::daemon::Program;
use crate::load::Pace;
use crate::namespace::{Namespace, run};
use crate::network::{Family, Role};

const RATE: u32 = 1_000;

/// What `nftables/online.nft` says but for the queue, for one service and one worker.
const ONLINE: &str = "table ip tcpcopy {
    chain capture {
        type filter hook prerouting priority -300;
        meta mark 0x74637079 return
        iif tcpcopy0 return
        tcp dport 80 fib daddr type local dup to 192.0.2.1 device tcpcopy0 return
    }
    chain sink { type filter hook output priority -299; oif tcpcopy0 drop; }
}";
const COPIES: &str = "-t raw -A OUTPUT -o tcpcopy0 -p tcp -j NFQUEUE --queue-num 36520";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("topology/rules-by-hand", Offloads::Both, by_hand)]
}

fn by_hand(context: &Context) -> Result<String> {
    let manual = "--rules manual --workers 1";
    let intercept = manual.split(' ').map(str::to_owned).collect();
    let setup = Setup { intercept, ..Setup::new(context.plan(), Family::V4).tcpcopy(manual) };
    let mut chain = Chain::prepare(setup, &context.scratch)?;
    of(&chain, Role::Online)?.ip("link add tcpcopy0 type ifb\nlink set tcpcopy0 up\n")?;
    load(of(&chain, Role::Online)?, ONLINE, COPIES)?;
    // tcpcopy sends nothing before intercept has read back all of its rules and its routing.
    let file = context.scratch.join("intercept.toml");
    fs::write(&file, "target = [\"10.91.2.2:80\"]\nworkers = 1\n")?;
    let path = Program::Intercept.path()?;
    let mut rules = of(&chain, Role::Assistant)?.command(path);
    run(rules.args(["rules", "load", "--config"]).arg(&file), None)?;

    chain.start_intercepts()?;
    chain.start_tcpcopies()?;
    let pace = Pace::Rate(RATE);
    let requests = chain.load(pace, keep_alive(20), context.seconds(2))?;
    chain.run(requests)?;
    let comparison = chain.expect_perfect(1)?;
    let log = chain.tcpcopy(0)?.output()?;
    ensure!(log.contains("would put in force"), "nothing is said of other rules:\n{log}");
    let log = chain.intercept(0)?.output()?;
    ensure!(log.contains("rules=\"manual\""), "the rules are said to be its own:\n{log}");
    // Without the operator's rules nothing is captured, and nobody puts them back.
    run(of(&chain, Role::Online)?.command("nft").args(["delete", "table", "ip", "tcpcopy"]), None)?;
    let requests = chain.load(pace, keep_alive(20), context.seconds(1))?;
    let missed = chain.run(requests)?.answered;
    let after = chain.compare(1)?;
    ensure!(u64::try_from(after.lost_count)? == missed, "{after}, of {missed} without rules");
    load(of(&chain, Role::Online)?, ONLINE, "-t raw -L")?;
    chain.stop_tcpcopies()?;
    let left = chain.state(Role::Online, 0)?;
    ensure!(
        left.has_table("tcpcopy") && left.has_link("tcpcopy0"),
        "tcpcopy took the operator's things away"
    );

    let clear =
        |namespace: &Namespace| run(namespace.command("nft").args(["delete", "table", "ip", "raw"]), None);
    clear(of(&chain, Role::Online)?)?;
    run(of(&chain, Role::Online)?.command("nft").args(["delete", "table", "ip", "tcpcopy"]), None)?;
    of(&chain, Role::Online)?.ip("link delete tcpcopy0\n")?;
    chain.finish()?;
    Ok(format!("{comparison}; {missed} not captured while the rules were away"))
}

fn of(chain: &Chain, role: Role) -> Result<&Namespace> {
    Ok(chain.network().host(role, 0)?.namespace())
}

/// Loads rules as an operator does: a file by nft, and the queue by iptables.
fn load(namespace: &Namespace, rules: &str, queue: &str) -> Result<()> {
    run(namespace.command("nft").args(["-f", "-"]), Some(rules))?;
    run(namespace.command("iptables").args(queue.split(' ')), None)?;
    Ok(())
}
