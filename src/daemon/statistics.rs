//! The rhythm of the statistics: when workers are asked for their counters, and when all have answered. And how
//! counters are written.

use std::time::Duration;

use crate::wire::{Counted, Tally, Time};

/// How often statistics are logged, and the rules looked at without a reason.
const PERIOD: Duration = Duration::from_secs(30);

/// Rounds of asking all workers.
#[derive(Debug)]
pub(super) struct Rounds {
    next: Time,
    workers: usize,
    answers: usize,
}

impl Rounds {
    /// The first round is due after one period.
    pub(super) fn new(now: Time, workers: usize) -> Self {
        Self { next: now + PERIOD, workers, answers: 0 }
    }

    /// When the next round is due.
    pub(super) fn next(&self) -> Time {
        self.next
    }

    /// Whether a round is due. It begins then, and all workers are to be asked.
    pub(super) fn is_due(&mut self, now: Time) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + PERIOD;
        self.answers = 0;
        true
    }

    /// Notes one worker's answer. Returns whether it was the last one of the round.
    pub(super) fn answered(&mut self) -> bool {
        self.answers += 1;
        self.answers == self.workers
    }
}

/// What occurred, by name, for one field of a log line.
pub(super) fn list<K: Counted>(tally: &Tally<K>) -> String {
    tally.nonzero().map(|(name, n)| format!("{name}={n}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_each_period_is_complete_with_its_last_answer() {
        let mut rounds = Rounds::new(Time::ZERO, 2);
        assert!(!rounds.is_due(Time::ZERO));
        let late = rounds.next() + Duration::from_secs(1);
        assert!(rounds.is_due(late));
        assert!(!rounds.is_due(late));
        assert_eq!(rounds.next(), late + PERIOD);
        assert_eq!([rounds.answered(), rounds.answered(), rounds.answered()], [false, true, false]);
        assert!(rounds.is_due(rounds.next()));
        assert_eq!([rounds.answered(), rounds.answered()], [false, true]);
    }
}
