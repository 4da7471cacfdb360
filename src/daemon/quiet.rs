//! A limit on log lines that somebody else can cause.

use std::time::Duration;

use crate::wire::Time;

/// Lets a few lines through at once, and then one in each interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet {
    interval: Duration,
    burst: u32,
    left: u32,
    refilled: Time,
    kept_back: u64,
}

impl Quiet {
    /// `burst` lines at once, and one more after each `interval`.
    pub(super) fn new(burst: u32, interval: Duration) -> Self {
        Self { interval, burst, left: burst, refilled: Time::ZERO, kept_back: 0 }
    }

    /// Whether to log a line now: the number of lines that were kept back since the last one.
    pub(super) fn allow(&mut self, now: Time) -> Option<u64> {
        while self.left < self.burst && now >= self.refilled + self.interval {
            self.left += 1;
            self.refilled += self.interval;
        }
        if self.left == self.burst {
            self.refilled = now;
        }
        if self.left == 0 {
            self.kept_back += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_in_each_interval() {
        let second = Duration::from_secs(1);
        let start = Time::ZERO + 100 * second;
        let mut quiet = Quiet::new(2, second);
        let at = |tenths: u32| start + second / 10 * tenths;
        assert_eq!([quiet.allow(at(0)), quiet.allow(at(1)), quiet.allow(at(2))], [Some(0), Some(0), None]);
        assert_eq!([quiet.allow(at(9)), quiet.allow(at(10)), quiet.allow(at(11))], [None, Some(2), None]);
        assert_eq!(
            [quiet.allow(at(500)), quiet.allow(at(500)), quiet.allow(at(500))],
            [Some(1), Some(0), None]
        );
    }
}
