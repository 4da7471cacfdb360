//! Keeps a worker's turns apart when its input comes thick, so that one wake-up serves several packets.
//!
//! Waking costs a worker more than a packet does. While packets come one by one, on average more often than once in
//! an interval, it therefore rests until the interval is over and then takes what has gathered, as a network
//! card does that coalesces interrupts. Input that comes seldom is served at once, and so is input that
//! comes faster than it can be worked off: then there is no wait between turns at all.

use std::time::Duration;

use crate::wire::Time;

/// So many turns decide for the next ones. In a connection's life turns are crowded and then there are none, so a
/// few in a row say nothing.
const WINDOW: u32 = 8;

/// When a worker rests before it looks for input again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spacing {
    interval: Duration,
    last: Time,
    resting: bool,
    /// When the window's first turn began.
    since: Time,
    /// The window's turns.
    turns: u32,
    /// The packets they took in.
    input: u64,
    /// No rest before this time.
    hurry: Time,
}

impl Spacing {
    /// Turns at least `interval` apart when that pays; no rest if it is zero.
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            last: Time::ZERO,
            resting: false,
            since: Time::ZERO,
            turns: 0,
            input: 0,
            hurry: Time::ZERO,
        }
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
        self.last = now;
        self.turns += 1;
        self.input += input;
        if self.turns < WINDOW {
            return;
        }
        let windows_ago = std::mem::replace(&mut self.since, now);
        self.resting = if self.resting {
            // Half as many turns again would have done without a rest, at most.
            self.input * 2 >= u64::from(WINDOW) * 3
        } else {
            now < windows_ago + self.interval * WINDOW * 3 / 4
        };
        (self.turns, self.input) = (0, 0);
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
        turns(&mut spacing, 1_000_000, 400, 100, 1);
        assert_eq!(spacing.rest(), None, "seldom enough");
        turns(&mut spacing, 2_000_000, 100, 12, 1);
        assert_eq!(spacing.rest(), Some(at(2_001_600)));
        turns(&mut spacing, 3_000_000, 500, 100, 3);
        assert_eq!(spacing.rest(), Some(at(3_050_000)));
        turns(&mut spacing, 4_000_000, 500, 16, 1);
        assert_eq!(spacing.rest(), None);
    }

    #[test]
    fn connections_that_come_thick_are_thick_input_though_each_has_its_pause() {
        let mut spacing = Spacing::new(INTERVAL);
        for i in 0..4 {
            turns(&mut spacing, 1_000_000 + i * 1_500, 50, 5, 1);
        }
        assert!(spacing.rest().is_some());
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
