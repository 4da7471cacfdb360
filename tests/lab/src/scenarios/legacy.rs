//! With the C tools at the other end of the tunnel. `tunnel` has what goes wrong.
//!
//! The C programs themselves are tried by `lab measure --original A,B --mixed`.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::ongoing::{self, after, begin, end};
use super::outage::{Fault, outlived};
use super::steady::Steady;
use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::forge::{ACK, Forger};
use crate::load::{Connections, Pace};
use crate::mimic::{Header, Mimic};
use crate::network::{Family, Plan, Role};
use crate::wait;

/// The first online host.
const ONLINE: &str = "10.91.2.1";
/// The host of the C tcpcopy: the second online host.
const HOST: &str = "10.91.2.4";
/// Where intercept listens.
const PORT: u16 = 36524;
/// Flows of each of its connections.
const FLOWS: usize = 500;
/// Bytes of a response without data or options.
const BARE: u16 = 40;
/// How long it may take until what was said has reached the workers: counters are looked at in the end only.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = vec![Scenario::new("legacy/claims", Offloads::On, claims)];
    for (kind, connections) in [("keep-alive", keep_alive(20)), ("short", short())] {
        let name = |what: &str| format!("legacy/{what}{kind}");
        scenarios.push(Scenario::new(name(""), Offloads::Both, move |context| arrives(context, connections)));
        scenarios.push(Scenario::new(name("intercept-killed-"), Offloads::On, move |context| {
            let kill: Fault = |chain| chain.intercept(0)?.kill();
            outlived(context, setup(context), connections, kill, Chain::start_intercepts)
        }));
        scenarios.push(Scenario::new(name("tcpcopy-restarted-"), Offloads::On, move |context| {
            restarted(context, connections)
        }));
    }
    scenarios
}

/// Both programs are ours and speak as the C tools do.
fn setup(context: &Context) -> Setup {
    let intercept = ["--legacy", ONLINE, "--workers", "2"].map(str::to_owned).to_vec();
    let setup = Setup::new(context.plan(), Family::V4).tcpcopy("--legacy --workers 2");
    Setup { keyed: false, intercept, ..setup }
}

/// Every request arrives once.
fn arrives(context: &Context, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(setup(context), &context.scratch)?;
    let (mut report, comparison) = Steady::new(ongoing::RATE, connections).arrives(context, &mut chain)?;
    let counters = chain.finish_counting()?;
    let (claims, headers) = (counters.of("legacy.claims"), counters.of("legacy.headers"));
    ensure!(claims > 0 && headers == counters.of("forwarded") + counters.of("forwarded_late"), "{counters}");
    Ok(format!("{comparison}, {claims} claims, {headers} headers; {}", ongoing::production(&mut report)))
}

/// The tcpcopy ends and another one comes: what it began is over on the target, and every request arrives that is made to
/// either of them.
fn restarted(context: &Context, connections: Connections) -> Result<String> {
    let mut chain = Chain::start(setup(context), &context.scratch)?;
    let load = chain.load(Pace::Rate(ongoing::RATE), connections, context.seconds(1))?;
    chain.run(load)?;
    let before = chain.expect_perfect(1)?;
    chain.stop_tcpcopies()?;
    chain.start_tcpcopies()?;
    let load = chain.load(Pace::Rate(ongoing::RATE), connections, context.seconds(1))?;
    chain.run(load)?;
    let comparison = chain.expect_perfect(1)?;
    ensure!(comparison.replayed > before.replayed, "{comparison}");
    chain.finish()?;
    Ok(comparison.to_string())
}

/// What a C tcpcopy claims on each of two connections comes on that one; what it claims again on the other one comes there; and
/// what it has claimed on one that ends is nobody's. A tcpcopy with a key goes on beside it and loses nothing.
fn claims(context: &Context) -> Result<String> {
    let plan = Plan { onlines: 2, forwarding: true, ..context.plan() };
    let options = ["--legacy", HOST, "--workers", "2"].map(str::to_owned).to_vec();
    let setup = Setup { replaying: 1, intercept: options, ..Setup::new(plan, Family::V4) };
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = begin(&mut chain, keep_alive(20), 60)?;
    let SocketAddr::V4(target) = chain.network().target(0, Family::V4)? else { bail!("no IPv4") };
    let intercept = SocketAddr::new(chain.network().host(Role::Assistant, 0)?.back(Family::V4), PORT);
    let host = chain.network().host(Role::Online, 1)?.namespace();
    let mut mimic = Mimic::connect(host, intercept, 2)?;
    let clients = [clients(1), clients(2)];

    for (connection, clients) in clients.iter().enumerate() {
        mimic.claim(connection, clients, target)?;
    }
    for (connection, clients) in clients.iter().enumerate() {
        expect(&chain, &mut mimic, connection, clients, target)?;
    }
    let [ours, moved] = &clients;
    mimic.claim(0, moved, target)?;
    expect(&chain, &mut mimic, 0, moved, target)?;
    mimic.hang_up(0)?;
    wait::until(PATIENCE, "intercept notices", || {
        Ok(chain.intercept(0)?.output()?.contains("a C tcpcopy disconnected"))
    })?;
    answer(&chain, target, ours)?;
    mimic.pass_over(1)?;
    mimic.claim(1, moved, target)?;
    expect(&chain, &mut mimic, 1, moved, target)?;

    after(&load, ongoing::RATE.into())?;
    let mut report = end(load)?;
    let comparison = chain.expect_perfect(1)?;
    drop(mimic);
    let counters = chain.finish_counting()?;
    let flows = FLOWS as u64;
    let counted = ["claims", "headers", "headers_dropped", "claims_full"]
        .map(|name| counters.of(&format!("legacy.{name}")));
    let [claims, headers, dropped, full] = counted;
    ensure!((claims, dropped, full) == (4 * flows, 0, 0) && headers >= 4 * flows, "{counted:?}: {counters}");
    let released = counters.of("released") + counters.of("legacy.headers_stray");
    ensure!(released >= flows, "what nobody claims any more was not dropped as such: {counters}");
    Ok(format!("{counted:?} claims, headers; {comparison}; {}", ongoing::production(&mut report)))
}

/// Replayed clients, of which there are none.
fn clients(network: u8) -> Vec<SocketAddrV4> {
    let address = |n: usize| Ipv4Addr::new(10, 99, network, u8::try_from(n % 200 + 1).unwrap_or(1));
    (0..FLOWS).map(|n| SocketAddrV4::new(address(n), 10_000 + u16::try_from(n).unwrap_or(0))).collect()
}

/// The target sends each of them something.
fn answer(chain: &Chain, target: SocketAddrV4, clients: &[SocketAddrV4]) -> Result<()> {
    chain.network().host(Role::Target, 0)?.namespace().enter(|| {
        let forger = Forger::open()?;
        clients.iter().try_for_each(|client| forger.send(target, *client, ACK))
    })?
}

/// Headers for these clients come on that connection.
fn expect(
    chain: &Chain,
    mimic: &mut Mimic,
    connection: usize,
    clients: &[SocketAddrV4],
    target: SocketAddrV4,
) -> Result<()> {
    let headers = mimic.await_headers(connection, clients, |missing| answer(chain, target, missing))?;
    let right = |header: &Header| (header.from, header.flags, header.length) == (target, ACK, BARE);
    ensure!(headers.iter().all(right), "other headers than the target's");
    Ok(())
}
