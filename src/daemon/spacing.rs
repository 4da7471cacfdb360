//! Keeps a worker's turns apart when its input comes thick, so that one wake-up serves several packets.
//!
//! Waking costs a worker more than a packet does. While packets come one by one, more often than once in
//! an interval, it therefore rests until the interval is over and then takes what has gathered, as a network
//! card does that coalesces interrupts. Input that comes seldom is served at once, and so is input that
//! comes faster than it can be worked off: then there is no wait between turns at all.

use std::time::Duration;

use crate::wire::Time;

/// So many turns in a row decide for resting, or against it.
const STREAK: u8 = 4;
/// Resting does not pay for less input than this in a turn.
const WORTHWHILE: u64 = 2;

/// When a worker rests before it looks for input again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spacing {
    interval: Duration,
    last: Time,
    resting: bool,
    streak: u8,
    /// No rest before this time.
    hurry: Time,
}

impl Spacing {
    /// Turns at least `interval` apart when that pays; no rest if it is zero.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, last: Time::ZERO, resting: false, streak: 0, hurry: Time::ZERO }
    }

    /// Until when to rest before looking for input, if at all.
    pub(super) fn rest(&self) -> Option<Time> {
        (self.resting && self.last >= self.hurry).then(|| self.last + self.interval)
    }

    /// Every turn that begins before `until` is to come without a rest.
    pub(super) fn hurry(&mut self, until: Time) {
        self.hurry = until;
    }

    /// A turn that waited for input, or rested, began at `now` and took in `input` packets.
    pub(super) fn turn(&mut self, now: Time, input: u64) {
        let sways = if self.resting { input < WORTHWHILE } else { now < self.last + self.interval };
        self.last = now;
        self.streak = if sways { self.streak + 1 } else { 0 };
        if self.streak == STREAK {
            self.resting = !self.resting;
            self.streak = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_micros(500);

    fn at(micros: u64) -> Time {
        Time::from_micros(micros)
    }

    /// Turns with one packet each, `gap` µs apart from `start` on.
    fn turns(spacing: &mut Spacing, start: u64, gap: u64, count: u64, input: u64) {
        for i in 0..count {
            spacing.turn(at(start + i * gap), input);
        }
    }

    #[test]
    fn thick_input_leads_to_rests_and_thin_input_ends_them() {
        let mut spacing = Spacing::new(INTERVAL);
        turns(&mut spacing, 1_000_000, 600, 100, 1);
        assert_eq!(spacing.rest(), None, "seldom enough");
        turns(&mut spacing, 2_000_000, 100, 4, 1);
        assert_eq!(spacing.rest(), None);
        turns(&mut spacing, 2_000_400, 100, 1, 1);
        assert_eq!(spacing.rest(), Some(at(2_000_900)));
        turns(&mut spacing, 3_000_000, 500, 100, 3);
        assert_eq!(spacing.rest(), Some(at(3_050_000)));
        turns(&mut spacing, 4_000_000, 500, 4, 1);
        assert_eq!(spacing.rest(), None);
    }

    #[test]
    fn a_request_and_its_response_are_no_thick_input() {
        let mut spacing = Spacing::new(INTERVAL);
        for i in 0..100 {
            turns(&mut spacing, 1_000_000 + i * 5_000, 150, 2, 1);
            assert_eq!(spacing.rest(), None);
        }
    }

    #[test]
    fn no_rest_in_a_hurry_and_none_without_an_interval() {
        let mut spacing = Spacing::new(INTERVAL);
        turns(&mut spacing, 1_000_000, 10, 20, 2);
        assert!(spacing.rest().is_some());
        spacing.hurry(at(2_000_000));
        assert_eq!(spacing.rest(), None);
        spacing.turn(at(2_000_000), 2);
        assert!(spacing.rest().is_some());
        let mut never = Spacing::new(Duration::ZERO);
        turns(&mut never, 0, 0, 100, 100);
        assert_eq!(never.rest(), None);
    }
}
