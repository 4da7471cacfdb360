//! Memory of idle sessions: what the process grows by, as the kernel sees it.

#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod chain;

use std::fs;
use std::time::Duration;

use chain::Chain;
use tcpcopy::session::Session;

/// Sessions wanted in one process, and the memory they may take.
const WANTED: u32 = 1_000_000;
const BUDGET: u64 = 1 << 30;

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Bytes for each of `n` sessions that have made an exchange and now say nothing.
fn of_each(n: u32) -> u64 {
    let before = resident();
    let (mut chain, _) = Chain::with_sessions(n);
    // Each has been idle for long enough to give its buffers back.
    chain.now += Duration::from_secs(5);
    chain.turn();
    assert_eq!(chain.replayer.sessions(), usize::try_from(n).expect("fits"));
    assert_eq!(chain.replayer.buffered(), 0, "idle");
    let each = resident().saturating_sub(before) / u64::from(n);
    println!("{n} idle sessions take {each} bytes each, {} of them `Session`", size_of::<Session>());
    each
}

#[test]
#[ignore = "takes gigabytes; run with --release -- --ignored --nocapture"]
fn a_million_idle_sessions() {
    let total = of_each(WANTED) * u64::from(WANTED);
    let verdict = if total <= BUDGET { "within" } else { "beyond" };
    println!("{} MiB in all, {verdict} the {} MiB wanted", total >> 20, BUDGET >> 20);
}
