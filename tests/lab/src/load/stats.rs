//! What a load did.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Latencies, microseconds, every one of them: percentiles are exact.
#[derive(Debug, Default, Clone)]
pub(crate) struct Latency(Vec<u32>);

impl Latency {
    /// Adds one.
    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// Adds those of another.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The latency, microseconds, that `per_mille` of a thousand do not exceed; 0 if there are none.
    pub(crate) fn at(&mut self, per_mille: usize) -> u32 {
        let Some(last) = self.0.len().checked_sub(1) else { return 0 };
        *self.0.select_nth_unstable(last * per_mille / 1000).1
    }
}

/// What a load did so far, for others to see while it goes on.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Requests made, exact at any moment.
    pub(super) made: AtomicU64,
    /// Requests answered as they should be.
    pub(crate) answered: AtomicU64,
    /// Requests that failed.
    pub(crate) failed: AtomicU64,
    /// Asks to make no more requests.
    pub(super) stop: AtomicBool,
}

impl Progress {
    /// Requests made: those with higher ids come later than this call.
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// Publishes what happened so far.
    pub(super) fn publish(&self, report: &Report) {
        self.answered.store(report.answered, Ordering::Relaxed);
        self.failed.store(report.failed(), Ordering::Relaxed);
    }
}

/// What a load did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Requests made.
    pub(crate) made: u64,
    /// Requests answered as they should be.
    pub(crate) answered: u64,
    /// Failures by kind.
    pub(crate) failures: BTreeMap<&'static str, u64>,
    /// The time from when a request was due to when its response was complete.
    pub(crate) latency: Latency,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

impl Report {
    /// Requests that failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Answered requests a second.
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    pub(crate) fn rate(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64().max(1e-9)
    }

    pub(super) fn fail(&mut self, kind: &'static str) {
        *self.failures.entry(kind).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact() {
        let mut latency = Latency::default();
        (1..=1000).rev().for_each(|micros| latency.add(Duration::from_micros(micros)));
        assert_eq!((latency.at(500), latency.at(990), latency.at(1000)), (500, 990, 1000));
        assert_eq!(Latency::default().at(500), 0);
    }
}
