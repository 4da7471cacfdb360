//! Figures under fixed loads, as a table and as JSON: the seed of the benchmark.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::chain::{Chain, Setup, keep_alive, short};
use crate::daemon::Usage;
use crate::demo::megabytes;
use crate::isolation;
use crate::load::{Closer, Connections, Load, Pace, Report, Request};
use crate::network::{Family, Plan};
use crate::observer::say;
use crate::records::Comparison;

/// A load that is measured.
struct Case {
    name: &'static str,
    pace: Pace,
    connections: Connections,
    request: Request,
    /// What the C tools (1.3.0, NFQUEUE) cost on a comparable machine: CPU ms per 1000 requests, tcpcopy and intercept.
    original: Option<(f64, f64)>,
}

fn cases() -> Vec<Case> {
    let get = |name, pace, connections, original| Case {
        name,
        pace,
        connections,
        request: Request::Get(100),
        original,
    };
    let flood = Connections::Short(50, Closer::Server);
    let sized = |name, rate, connections, request| Case {
        name,
        pace: Pace::Rate(rate),
        connections,
        request,
        original: None,
    };
    vec![
        get("keep-alive-200", Pace::Rate(200), keep_alive(10), Some((125.0, 105.0))),
        get("keep-alive-5000", Pace::Rate(5_000), keep_alive(50), Some((35.0, 24.0))),
        get("keep-alive-10000", Pace::Rate(10_000), keep_alive(50), Some((20.0, 18.0))),
        get("keep-alive-flood", Pace::Flood, keep_alive(50), Some((15.0, 13.0))),
        get("short-500", Pace::Rate(500), short(), Some((168.0, 118.0))),
        get("short-1000", Pace::Rate(1_000), short(), Some((139.0, 94.0))),
        get("short-4000", Pace::Rate(4_000), short(), Some((92.0, 58.0))),
        get("short-flood", Pace::Flood, flood, Some((115.0, 69.0))),
        sized("post-1mb", 10, keep_alive(8), Request::Post(1 << 20)),
        sized("get-1mb", 20, keep_alive(8), Request::Get(1 << 20)),
        sized("get-100kb-short", 100, short(), Request::Get(100_000)),
    ]
}

/// One line of the table.
struct Row {
    name: &'static str,
    rate: f64,
    comparison: Comparison,
    /// CPU ms per 1000 replayed requests: tcpcopy, intercept.
    cpu: (f64, f64),
    original: Option<(f64, f64)>,
    /// Peak memory, MB: tcpcopy, intercept.
    memory: (f64, f64),
    /// Production latency, µs, p50 and p99: without and with replay.
    without: (u32, u32),
    with: (u32, u32),
    leaked: u64,
}

/// Measures the loads whose name contains one of `names`, or all.
pub(crate) fn run(names: &[String], seconds: u64, offloads: bool, json: Option<&Path>) -> Result<bool> {
    let chosen: Vec<Case> = cases()
        .into_iter()
        .filter(|case| names.is_empty() || names.iter().any(|name| case.name.contains(name)))
        .collect();
    if chosen.is_empty() {
        bail!(
            "no load is called {names:?}; there are {:?}",
            cases().iter().map(|case| case.name).collect::<Vec<_>>()
        );
    }
    say(&format!(
        "{:<18} {:>9} {:>9} {:>17} {:>17} {:>13} {:>13} {:>13}",
        "load",
        "online/s",
        "fidelity",
        "CPU ms/1000",
        "C: CPU ms/1000",
        "peak MB",
        "p50/p99 off",
        "p50/p99 on"
    ));
    let mut rows = Vec::new();
    for case in &chosen {
        let row = measure(case, seconds, offloads).with_context(|| case.name)?;
        say(&line(&row));
        rows.push(row);
    }
    if let Some(path) = json {
        std::fs::write(path, document(&rows)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(rows.iter().all(|row| row.leaked == 0))
}

fn measure(case: &Case, seconds: u64, offloads: bool) -> Result<Row> {
    let plan = || Plan { offloads, ..Plan::default() };
    let scratch = Path::new(isolation::SCRATCH);
    let mut chain =
        Chain::prepare(Setup::new(plan(), Family::V4), &scratch.join(format!("{}-off", case.name)))?;
    let mut without = put_on(&mut chain, case, seconds)?;
    chain.finish()?;
    let mut chain = Chain::start(Setup::new(plan(), Family::V4), &scratch.join(case.name))?;
    let idle = chain.usage()?;
    let mut with = put_on(&mut chain, case, seconds)?;
    let comparison = chain.compare(1)?;
    let (tcpcopy, intercept) = chain.usage()?;
    let leaked = chain.leaks()?;
    drop(chain);
    let replayed = u32::try_from(comparison.replayed.max(1)).unwrap_or(u32::MAX);
    let cost = |now: Usage, before: Usage| {
        now.cpu().saturating_sub(before.cpu()).as_secs_f64() * 1e6 / f64::from(replayed)
    };
    Ok(Row {
        name: case.name,
        rate: with.rate(),
        comparison,
        cpu: (cost(tcpcopy, idle.0), cost(intercept, idle.1)),
        original: case.original,
        memory: (megabytes(tcpcopy.peak_kib), megabytes(intercept.peak_kib)),
        without: (without.latency.at(500), without.latency.at(990)),
        with: (with.latency.at(500), with.latency.at(990)),
        leaked,
    })
}

fn put_on(chain: &mut Chain, case: &Case, seconds: u64) -> Result<Report> {
    let load = chain.load(case.pace, case.connections, seconds)?;
    chain.run(Load { request: case.request, ..load })
}

fn line(row: &Row) -> String {
    let original = row
        .original
        .map_or_else(|| "-".to_owned(), |(tcpcopy, intercept)| format!("{tcpcopy:.0} / {intercept:.0}"));
    let mut line = format!(
        "{:<18} {:>9.0} {:>9.5} {:>17} {:>17} {:>13} {:>13} {:>13}",
        row.name,
        row.rate,
        row.comparison.fidelity(),
        format!("{:.1} / {:.1}", row.cpu.0, row.cpu.1),
        original,
        format!("{:.1} / {:.1}", row.memory.0, row.memory.1),
        format!("{}/{}", row.without.0, row.without.1),
        format!("{}/{}", row.with.0, row.with.1),
    );
    if !row.comparison.perfect() {
        let _ = write!(line, "  {}", row.comparison);
    }
    if row.leaked > 0 {
        let _ = write!(line, "  LEAK: {} packets", row.leaked);
    }
    line
}

/// The rows as JSON. All strings are names of loads: nothing to escape.
fn document(rows: &[Row]) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            let comparison = &row.comparison;
            let original = row.original.map_or_else(
                || "null".to_owned(),
                |(tcpcopy, intercept)| format!("{{\"tcpcopy\": {tcpcopy}, \"intercept\": {intercept}}}"),
            );
            format!(
                "  {{\"load\": \"{}\", \"requests_per_second\": {:.1}, \"online\": {}, \"replayed\": {}, \
                 \"lost\": {}, \"duplicated\": {}, \"extra\": {}, \"failed\": {}, \"altered\": {}, \
                 \"fidelity\": {:.6}, \"cpu_ms_per_1000\": {{\"tcpcopy\": {:.3}, \"intercept\": {:.3}}}, \
                 \"original_cpu_ms_per_1000\": {original}, \"peak_mb\": {{\"tcpcopy\": {:.2}, \"intercept\": {:.2}}}, \
                 \"production_us\": {{\"without\": {{\"p50\": {}, \"p99\": {}}}, \"with\": {{\"p50\": {}, \"p99\": {}}}}}, \
                 \"leaked\": {}}}",
                row.name,
                row.rate,
                comparison.online,
                comparison.replayed,
                comparison.lost_count,
                comparison.duplicated,
                comparison.extra,
                comparison.failed,
                comparison.altered,
                comparison.fidelity(),
                row.cpu.0,
                row.cpu.1,
                row.memory.0,
                row.memory.1,
                row.without.0,
                row.without.1,
                row.with.0,
                row.with.1,
                row.leaked,
            )
        })
        .collect();
    format!("[\n{}\n]\n", rows.join(",\n"))
}
