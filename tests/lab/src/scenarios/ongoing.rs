//! A load that goes on while things happen, and what of it must have arrived.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::chain::{Chain, sound};
use crate::load::{Connections, Pace, Report, Running};
use crate::observer::Observer;
use crate::wait;

/// The load under which things happen, requests a second.
pub(super) const RATE: u32 = 1_000;

/// Starts the production load; it goes on until it is ended.
pub(super) fn begin(chain: &mut Chain, connections: Connections, seconds: u64) -> Result<Running> {
    let load = chain.load(Pace::Rate(RATE), connections, seconds)?;
    chain.begin(load)
}

/// Waits until so many more production requests have been answered.
pub(super) fn after(load: &Running, more: u64) -> Result<()> {
    let answered = || load.progress().answered.load(Ordering::Relaxed);
    let goal = answered() + more;
    // No load here is slower than a hundred a second.
    let limit = Duration::from_secs(2 + more / 50);
    wait::until(limit, "production goes on", || {
        let failed = load.progress().failed.load(Ordering::Relaxed);
        if failed > 0 || (load.ended() && answered() < goal) {
            bail!("{failed} production requests failed");
        }
        Ok(answered() >= goal)
    })
}

/// Ends the production load, of which no request may have failed.
pub(super) fn end(load: Running) -> Result<Report> {
    load.stop();
    let report = load.finish()?;
    sound(&report)?;
    Ok(report)
}

/// What the load's clients saw.
pub(super) fn production(report: &mut Report) -> String {
    let (p50, p99, max) = (report.latency.at(500), report.latency.at(990), report.latency.at(1000));
    format!("production {} answered, 0 failed, p50 {p50} µs, p99 {p99} µs, max {max} µs", report.answered)
}

/// The ids of each connection's requests, in the order in which the servers answered them.
pub(super) fn by_connection(observers: &[Observer]) -> HashMap<SocketAddr, Vec<u64>> {
    let mut connections: HashMap<SocketAddr, Vec<u64>> = HashMap::new();
    for seen in observers.iter().flat_map(Observer::seen) {
        connections.entry(seen.peer).or_default().push(seen.id);
    }
    connections
}
