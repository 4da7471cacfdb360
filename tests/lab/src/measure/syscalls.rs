//! System calls of the daemons for each request, counted by `strace -c`, in a run of its own: strace slows them down.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::namespace::Namespace;
use crate::sys::Signal;
use crate::wait;

/// How many calls are named.
const NAMED: usize = 6;

/// Counts the system calls of a process.
#[derive(Debug)]
pub(super) struct Counter {
    strace: Daemon,
    output: PathBuf,
}

impl Counter {
    /// Begins to count when this returns.
    pub(super) fn attach(pid: u32, on: &Namespace, scratch: &Path) -> Result<Self> {
        let output = scratch.join(format!("strace-{pid}"));
        let arguments =
            ["-c", "-f", "-p", &pid.to_string(), "-o", &output.to_string_lossy()].map(str::to_owned);
        let strace = Daemon::run(Path::new("strace"), "strace", on, &arguments, scratch)?;
        let traced = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            Ok(status
                .lines()
                .any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0")))
        };
        wait::until(Duration::from_secs(10), "strace attaches (Debian package strace)", traced)?;
        Ok(Self { strace, output })
    }

    /// Lets the process go; returns the calls, the most frequent first.
    pub(super) fn finish(mut self) -> Result<Vec<(String, u64)>> {
        self.strace.signal(Signal::Term)?;
        self.strace.wait()?;
        parse(&fs::read_to_string(&self.output)?).context("odd output of strace")
    }
}

fn parse(summary: &str) -> Option<Vec<(String, u64)>> {
    let table = summary.lines().skip_while(|line| !line.starts_with("---")).skip(1);
    let mut calls = Vec::new();
    for line in table.take_while(|line| !line.starts_with("---")) {
        // % time, seconds, usecs/call, calls, errors if any, name
        let fields: Vec<&str> = line.split_whitespace().collect();
        calls.push(((*fields.last()?).to_owned(), fields.get(3)?.parse().ok()?));
    }
    calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    (!calls.is_empty()).then_some(calls)
}

/// Calls for each of so many requests, as a line.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(super) fn line(calls: &[(String, u64)], requests: usize) -> String {
    let each = |count: u64| count as f64 / requests.max(1) as f64;
    let all = each(calls.iter().map(|(_, count)| count).sum());
    let named = calls.iter().take(NAMED).map(|(name, count)| format!(" {name} {:.2}", each(*count)));
    format!("{all:.2}:{}", named.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_and_divided() {
        let summary = "strace: Process 1 attached\n% time     seconds  usecs/call     calls    errors syscall\n\
                       ------ ----------- ----------- --------- --------- ----------------\n \
                       60.0    0.1  3   50        epoll_wait\n 40.0    0.1  3   150        7 recvfrom\n\
                       ------ ----------- ----------- --------- --------- ----------------\n100.00 0.2 3 200 7 total\n";
        let calls = parse(summary).unwrap();
        assert_eq!(line(&calls, 100), "2.00: recvfrom 1.50 epoll_wait 0.50");
        assert_eq!(parse("strace: nothing\n"), None);
    }
}
