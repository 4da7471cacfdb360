//! The laboratory itself: it must be able to carry the loads, and to see what it is there to see. No daemon runs here.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short, sound};
use crate::load::{Closer, Connections, Load, Pace, Request};
use crate::network::{Family, Plan, Role};
use crate::nginx::Behaviour;
use crate::observer::Observer;
use crate::wait;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = vec![
        Scenario::new("lab/keep-alive-10000", Offloads::Both, |context| {
            carries(context, Pace::Rate(10_000), keep_alive(50), 9_900.0)
        }),
        Scenario::new("lab/short-4000", Offloads::Both, |context| {
            carries(context, Pace::Rate(4_000), short(), 3_950.0)
        }),
        Scenario::new("lab/short-client-closes-4000", Offloads::On, |context| {
            carries(context, Pace::Rate(4_000), Connections::Short(2000, Closer::Client), 3_950.0)
        }),
        Scenario::new("lab/flood-from-40-addresses", Offloads::On, |context| {
            carries(context, Pace::Flood, Connections::Short(50, Closer::Server), 4_000.0)
        }),
    ];
    // Rates that the machine must reach.
    scenarios = scenarios.into_iter().map(Scenario::alone).collect();
    scenarios.extend([
        Scenario::new("lab/slow-server-that-closes", Offloads::On, slow_server),
        Scenario::new("lab/comparer-sees-bodies-losses-duplicates", Offloads::On, comparer),
    ]);
    for family in [Family::V4, Family::V6] {
        let name = format!("lab/leak-detector-detects-{}", family.name());
        scenarios.push(Scenario::new(name, Offloads::On, move |context| leak_is_seen(context, family)));
    }
    scenarios
}

/// The load generator and one nginx reach a rate, without replay.
fn carries(context: &Context, pace: Pace, connections: Connections, least: f64) -> Result<String> {
    let plan = Plan { addresses: if pace == Pace::Flood { 40 } else { 1 }, ..context.plan() };
    let mut chain = Chain::prepare(Setup::new(plan, Family::V4), &context.scratch)?;
    let load = chain.load(pace, connections, context.seconds(3))?;
    let mut report = chain.run(load)?;
    ensure!(report.rate() >= least, "only {:.0} requests/s", report.rate());
    let online = chain.online()?;
    ensure!(chain.leaks()? == 0, "the leak detector counts production");
    let (p50, p99, max) = (report.latency.at(500), report.latency.at(990), report.latency.at(1000));
    wait::until(Duration::from_secs(5), "the log has every request", || {
        Ok(chain.online()?.total() == report.answered)
    })?;
    ensure!(online.total() <= report.made, "more answers than requests");
    chain.finish()?;
    Ok(format!("{:.0} requests/s, p50 {p50} µs, p99 {p99} µs, max {max} µs", report.rate()))
}

/// The server's behaviour can be set: it waits before it answers, and closes after some requests.
fn slow_server(context: &Context) -> Result<String> {
    let delay = Duration::from_millis(50);
    let mut setup = Setup::new(context.plan(), Family::V4);
    setup.behaviour = Behaviour { keepalive_requests: 5, delay: Some(delay), ..Behaviour::default() };
    let mut chain = Chain::prepare(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(100), keep_alive(20), 1)?;
    let mut report = chain.run(load)?;
    let p50 = report.latency.at(500);
    ensure!(u128::from(p50) >= delay.as_micros(), "p50 {p50} µs");
    wait::until(Duration::from_secs(5), "the log has every request", || {
        Ok(chain.online()?.total() == report.answered)
    })?;
    let peers: HashSet<_> =
        chain.online_observers().iter().flat_map(Observer::seen).map(|seen| seen.peer).collect();
    ensure!(peers.len() == 20, "100 requests, 5 on a connection, on {} connections", peers.len());
    chain.finish()?;
    Ok(format!("p50 {p50} µs, {} connections", peers.len()))
}

/// Requests that are put on both servers directly compare as equal; one that is missing, one that comes twice and a body
/// that differs are seen.
fn comparer(context: &Context) -> Result<String> {
    const SIZE: usize = 1 << 20;
    let mut chain = Chain::prepare(Setup::new(context.plan(), Family::V4), &context.scratch)?;
    let online = chain.load(Pace::Rate(20), keep_alive(4), 1)?;
    let online = Load { request: Request::Post(SIZE), ..online };
    // The client has no way to the target; the online host has.
    let host = chain.network().host(Role::Online, 0)?;
    let target = vec![chain.network().target(0, Family::V4)?];
    let direct = Load { servers: target, sources: vec![host.back(Family::V4)], ..online.clone() };
    let replayed = direct.clone().start(host.namespace())?;
    let report = chain.run(online.clone())?;
    sound(&replayed.finish()?)?;
    let comparison = chain.expect_perfect(1)?;
    let bodies = chain.check_bodies(SIZE)?;
    ensure!(bodies == usize::try_from(report.answered)?, "{bodies} bodies of {}", report.answered);

    // The first id once more: a duplicate. Another size: an altered body, and an extra id.
    let host = chain.network().host(Role::Online, 0)?.namespace();
    let again = Load { duration: Duration::from_millis(10), ..direct.clone() };
    sound(&again.run(host)?)?;
    let other = Load {
        first_id: 5_000_000_000,
        request: Request::Post(1000),
        duration: Duration::from_millis(10),
        ..direct
    };
    sound(&other.run(host)?)?;
    let seeded = chain.compare(1)?;
    ensure!((seeded.duplicated, seeded.extra, seeded.lost_count) == (1, 1, 0), "not seen: {seeded}");
    ensure!(chain.check_bodies(SIZE).is_err(), "a body of another size was not seen");
    chain.finish()?;
    Ok(format!("{comparison}, {bodies} bodies equal; seeded faults seen"))
}

/// Positive control: with a forwarding assistant and no intercept, the answer to a forged packet does reach the client,
/// and the detector sees it.
fn leak_is_seen(context: &Context, family: Family) -> Result<String> {
    let plan = Plan { forwarding: true, ..context.plan() };
    let mut chain = Chain::prepare(Setup::new(plan, family), &context.scratch)?;
    let target = chain.network().target(0, family)?;
    let victim = chain.network().host(Role::Client, 0)?.front(family);
    let online = chain.network().host(Role::Online, 0)?;
    let forged = online.namespace().enter(|| forge(victim, target))??;
    wait::until(Duration::from_secs(5), "the leak is seen", || Ok(chain.leaks()? > 0))?;
    drop(forged);
    let error = chain.check_leaks().expect_err("packets were counted").to_string();
    ensure!(error.contains("LEAK"), "{error}");
    Ok(format!("{} leaked packets seen", chain.leaks()?))
}

/// A port that loads do not have: they are given those from 1024 on.
const PORT: u16 = 1000;

/// Begins a connection to `target` in the name of `victim`, and of no connection there was.
pub(super) fn forge(victim: IpAddr, target: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match victim {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&SockAddr::from(SocketAddr::new(victim, PORT)))?;
    match socket.connect(&SockAddr::from(target)) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        Err(_) | Ok(()) => Ok(socket),
    }
}
