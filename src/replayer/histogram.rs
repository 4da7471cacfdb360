//! A latency histogram: fixed size, relative error below 13 %.

use std::time::Duration;

/// Buckets for each power of two.
const STEPS: usize = 8;
const BUCKETS: usize = 40 * STEPS;

/// Counts of durations in logarithmic buckets of microseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    /// Takes a measurement in.
    pub fn record(&mut self, value: Duration) {
        self.record_many(value, 1);
    }

    /// Takes in a measurement that holds for so many.
    pub fn record_many(&mut self, value: Duration, many: u64) {
        let bucket = bucket(u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += many;
            self.total += many;
        }
    }

    /// Adds another histogram to this one.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }

    /// The measurements taken since this histogram was as `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let counts: Vec<_> =
            self.counts.iter().zip(&before.counts).map(|(now, then)| now - now.min(then)).collect();
        Self { total: counts.iter().sum(), counts }
    }

    /// How many measurements were taken.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many measurements lie below each power of two, in microseconds, and not below the one before it.
    pub fn by_power(&self) -> impl Iterator<Item = (u64, u64)> {
        let sums = self.counts.chunks(STEPS).map(|counts| counts.iter().sum());
        (0..).map(|power| (STEPS as u64) << power).zip(sums)
    }

    /// The value that `permille` of a thousand measurements do not exceed; `None` without any.
    pub fn quantile(&self, permille: u64) -> Option<Duration> {
        let rank = (self.total * permille).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_micros(upper_bound(bucket)))
    }
}

/// Values below `STEPS` have a bucket each; above, every power of two has `STEPS`.
fn bucket(micros: u64) -> usize {
    let steps = STEPS as u64;
    if micros < steps {
        return usize::try_from(micros).unwrap_or(0);
    }
    let power = micros.ilog2() - steps.ilog2();
    let step = (micros >> power) - steps;
    usize::try_from(u64::from(power + 1) * steps + step).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> u64 {
    let (power, step) = ((bucket / STEPS) as u64, (bucket % STEPS) as u64);
    if power == 0 { step } else { ((step + STEPS as u64 + 1) << (power - 1)) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_its_bucket_within_an_eighth() {
        for micros in (0..5000).chain([1 << 20, (1 << 30) + 12_345]) {
            let upper = upper_bound(bucket(micros));
            assert!(upper >= micros && upper <= micros + micros / 8, "{micros} {upper}");
        }
    }

    #[test]
    fn quantiles() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(500), None);
        for millis in 1..=100 {
            histogram.record(Duration::from_millis(millis));
        }
        let p50 = histogram.quantile(500).expect("some").as_millis();
        let p99 = histogram.quantile(990).expect("some").as_millis();
        assert!((50..57).contains(&p50) && (99..112).contains(&p99), "{p50} {p99}");
        assert_eq!(histogram.total(), 100);
        let powers: Vec<_> = histogram.by_power().filter(|(_, count)| *count > 0).collect();
        assert_eq!(powers.iter().map(|(_, count)| count).sum::<u64>(), 100);
        assert_eq!(powers[..3], [(1 << 10, 1), (1 << 11, 1), (1 << 12, 2)]);
        let before = histogram.clone();
        histogram.record(Duration::from_secs(5));
        let since = histogram.since(&before);
        assert_eq!((since.total(), since.quantile(500)), (1, histogram.quantile(1000)));
    }
}
