//! The rhythm in which the control thread looks at the workers: when they are asked for their counters, whether all
//! have answered, when that is logged. And how counters are written.
//!
//! An answer also proves that a worker makes progress, an idle one too: only when all have answered, the service
//! manager's watchdog is fed.

use std::time::Duration;

use super::{message_id, notify};
use crate::wire::{Counted, Tally, Time};

/// How often workers are asked, at least.
const ROUND: Duration = Duration::from_secs(5);
/// How often statistics are logged, and the rules looked at without a reason.
const PERIOD: Duration = Duration::from_secs(30);
/// A worker that has not answered for so long is stuck: its turns take milliseconds.
const STUCK: Duration = Duration::from_secs(10);
/// The watchdog is fed so often in its interval.
const FEEDS: u32 = 4;

/// Rounds of asking all threads.
#[derive(Debug)]
pub(super) struct Rounds {
    round: Duration,
    /// When the next round is due.
    next: Time,
    /// When the one under way began.
    began: Time,
    /// The threads, and whether they have yet to answer.
    threads: Vec<(String, bool)>,
    /// It was told that they do not.
    told: bool,
    feeds: bool,
    log_at: Time,
}

impl Rounds {
    /// The first round is due at once; the first line of log after one period. If the service manager has a watchdog,
    /// rounds feed it.
    pub(super) fn new(now: Time, threads: impl IntoIterator<Item = String>) -> Self {
        let watchdog = notify::watchdog();
        Self {
            round: watchdog.map_or(ROUND, |interval| ROUND.min(interval / FEEDS)),
            next: now,
            began: now,
            threads: threads.into_iter().map(|name| (name, false)).collect(),
            told: false,
            feeds: watchdog.is_some(),
            log_at: now + PERIOD,
        }
    }

    /// When [`Rounds::is_due`] is to be asked next.
    pub(super) fn next(&self) -> Time {
        self.next
    }

    /// Whether a round is due. It begins then, and all threads are to be asked. While one is under way none is: who
    /// does not answer is not asked again, but told of.
    pub(super) fn is_due(&mut self, now: Time) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + self.round;
        if let Some((thread, _)) = self.threads.iter().find(|(_, awaited)| *awaited) {
            if now >= self.began + STUCK && !std::mem::replace(&mut self.told, true) {
                tracing::error!(
                    MESSAGE_ID = message_id::WORKER_STUCK,
                    thread,
                    seconds = now.since(self.began).as_secs(),
                    "a thread makes no progress; a service manager with a watchdog restarts the program"
                );
            }
            return false;
        }
        self.began = now;
        self.told = false;
        self.threads.iter_mut().for_each(|(_, awaited)| *awaited = true);
        true
    }

    /// Notes a thread's answer. Returns whether it was the last one of the round, and feeds the watchdog then.
    pub(super) fn answered(&mut self, thread: &str) -> bool {
        let Some((_, awaited)) = self.threads.iter_mut().find(|(name, _)| name == thread) else {
            return false;
        };
        if !std::mem::replace(awaited, false) || self.threads.iter().any(|(_, awaited)| *awaited) {
            return false;
        }
        if self.feeds {
            notify::alive();
        }
        true
    }

    /// Whether the statistics are to be logged: the time since the last time, if so.
    pub(super) fn is_log_due(&mut self, now: Time) -> Option<Duration> {
        (now >= self.log_at).then(|| {
            let since = self.since_log(now);
            self.log_at = now + PERIOD;
            since
        })
    }

    /// The time since the statistics were logged, or since the start.
    pub(super) fn since_log(&self, now: Time) -> Duration {
        (now + PERIOD).since(self.log_at)
    }
}

/// What occurred, by name, for one field of a log line.
pub(super) fn list<K: Counted>(tally: &Tally<K>) -> String {
    tally.nonzero().map(|(name, n)| format!("{name}={n}")).collect::<Vec<_>>().join(" ")
}

/// How much more there is than before, for each second of `time`, rounded.
pub(super) fn rate(after: u64, before: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    (after.saturating_sub(before).saturating_mul(1000) + millis / 2) / millis
}

/// A number as people read it: with a thin mark between thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds() -> Rounds {
        Rounds { feeds: false, round: ROUND, ..Rounds::new(Time::ZERO, ["a", "b"].map(str::to_owned)) }
    }

    #[test]
    fn a_round_is_complete_with_its_last_answer() {
        let mut rounds = rounds();
        assert!(rounds.is_due(Time::ZERO));
        assert!(!rounds.is_due(Time::ZERO));
        assert_eq!(["a", "a", "b"].map(|thread| rounds.answered(thread)), [false, false, true]);
        assert!(!rounds.answered("b"));
        let late = rounds.next() + Duration::from_secs(1);
        assert!(rounds.is_due(late));
        assert_eq!(rounds.next(), late + ROUND);
    }

    #[test]
    fn who_does_not_answer_is_not_asked_again() {
        let mut rounds = rounds();
        assert!(rounds.is_due(Time::ZERO));
        rounds.answered("a");
        assert!(!rounds.is_due(Time::ZERO + ROUND));
        assert!(!rounds.told);
        assert!(!rounds.is_due(Time::ZERO + STUCK));
        assert!(rounds.told);
        assert!(rounds.answered("b"));
        assert!(rounds.is_due(Time::ZERO + STUCK + ROUND));
    }

    #[test]
    fn statistics_are_logged_once_in_a_period() {
        let mut rounds = rounds();
        assert_eq!(rounds.is_log_due(Time::ZERO + PERIOD / 2), None);
        let late = PERIOD + Duration::from_secs(2);
        assert_eq!(rounds.is_log_due(Time::ZERO + late), Some(late));
        assert_eq!(rounds.is_log_due(Time::ZERO + late), None);
    }

    #[test]
    fn rates_are_rounded_and_numbers_grouped() {
        assert_eq!(rate(160, 10, Duration::from_secs(30)), 5);
        assert_eq!(rate(10, 9, Duration::from_millis(1500)), 1);
        assert_eq!(rate(5, 9, Duration::ZERO), 0);
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
