//! Round-trip time and retransmission timeout (RFC 6298).

use std::time::Duration;

/// Lower bound of the timeout. RFC 6298 asks for 1 s; like Linux, this keeps to 200 ms.
const MIN_RTO: Duration = Duration::from_millis(200);
/// Before the first measurement (RFC 6298, 2.1).
const INITIAL_RTO: Duration = Duration::from_secs(1);
/// Upper bound. Below the RFC's 60 s, so that sessions resume soon after a target comes back.
const MAX_RTO: Duration = Duration::from_secs(4);

/// The estimator of one connection. In microseconds, and no more of them than 71 minutes have: there are many.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rtt {
    smoothed: Option<u32>,
    variation: u32,
    backoff: u8,
}

impl Rtt {
    /// Takes a measurement in, and ends the back-off.
    pub(super) fn sample(&mut self, rtt: Duration) {
        let rtt = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = weighted(self.variation, 4, smoothed.abs_diff(rtt));
                self.smoothed = Some(weighted(smoothed, 8, rtt));
            }
        }
        self.backoff = 0;
    }

    /// The smoothed round-trip time, once measured.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(micros)
    }

    /// The timeout in force.
    pub(super) fn rto(&self) -> Duration {
        let base =
            self.smoothed.map_or(INITIAL_RTO, |smoothed| micros(smoothed) + micros(self.variation) * 4);
        base.max(MIN_RTO).saturating_mul(1 << self.backoff.min(8)).min(MAX_RTO)
    }

    /// The timer went off: double the timeout (RFC 6298, 5.5).
    pub(super) fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
    }

    /// Whether the timer went off since the path worked last.
    pub(super) fn is_backed_off(&self) -> bool {
        self.backoff > 0
    }

    /// New data was acknowledged: the path works again.
    pub(super) fn progress(&mut self) {
        self.backoff = 0;
    }
}

/// The mean, in which the new value has one part of `parts`.
fn weighted(old: u32, parts: u8, new: u32) -> u32 {
    let parts = u64::from(parts);
    let sum = u64::from(old) * (parts - 1) + u64::from(new);
    u32::try_from(sum / parts).unwrap_or(u32::MAX)
}

fn micros(micros: u32) -> Duration {
    Duration::from_micros(micros.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn first_sample_sets_and_later_ones_smooth() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.rto(), INITIAL_RTO);
        rtt.sample(100 * MS);
        assert_eq!((rtt.smoothed(), rtt.rto()), (Some(100 * MS), 300 * MS));
        rtt.sample(180 * MS);
        assert_eq!(rtt.smoothed(), Some(110 * MS));
    }

    #[test]
    fn back_off_doubles_to_the_bound_and_ends_with_progress() {
        let mut rtt = Rtt::default();
        rtt.sample(MS);
        assert_eq!(rtt.rto(), MIN_RTO);
        rtt.back_off();
        assert_eq!(rtt.rto(), MIN_RTO * 2);
        (0..20).for_each(|_| rtt.back_off());
        assert_eq!(rtt.rto(), MAX_RTO);
        rtt.progress();
        assert_eq!(rtt.rto(), MIN_RTO);
    }
}
