//! Trouble that lasts: told once when it begins and once when it is over, however often it shows in between.

use std::time::Duration;

use crate::wire::Time;

/// Trouble that did not show for so long is over.
const CALM: Duration = Duration::from_secs(15);

/// One kind of trouble, looked for from time to time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Condition {
    current: Option<Current>,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    began: Time,
    last: Time,
    count: u64,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has begun.
    Begins,
    /// It is over.
    Ends {
        /// From its first sign to its last.
        lasted: Duration,
        /// How often it showed.
        count: u64,
    },
}

impl Condition {
    /// Whether it is on.
    pub(super) fn is_on(&self) -> bool {
        self.current.is_some()
    }

    /// It has shown `count` times since the last look.
    pub(super) fn look(&mut self, now: Time, count: u64) -> Option<Turn> {
        match &mut self.current {
            None if count > 0 => {
                self.current = Some(Current { began: now, last: now, count });
                Some(Turn::Begins)
            }
            Some(current) if count > 0 => {
                current.last = now;
                current.count += count;
                None
            }
            Some(Current { began, last, count }) if now >= *last + CALM => {
                let turn = Turn::Ends { lasted: last.since(*began), count: *count };
                self.current = None;
                Some(turn)
            }
            None | Some(_) => None,
        }
    }
}

/// The names of those that are on, for a line of status.
pub(super) fn named<const N: usize>(conditions: [(&Condition, &str); N]) -> impl Iterator<Item = String> {
    conditions.into_iter().filter(|(condition, _)| condition.is_on()).map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_when_it_begins_and_when_it_is_over() {
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let mut condition = Condition::default();
        let turns: Vec<_> = [(0, 0), (5, 3), (10, 0), (15, 2), (20, 0), (29, 0)]
            .map(|(s, n)| condition.look(at(s), n))
            .into();
        assert_eq!(turns, [None, Some(Turn::Begins), None, None, None, None]);
        assert!(condition.is_on());
        assert!(named([(&Condition::default(), "a"), (&condition, "b")]).eq(["b"]));
        let over = Turn::Ends { lasted: Duration::from_secs(10), count: 5 };
        assert_eq!(condition.look(at(30), 0), Some(over));
        assert!(!condition.is_on());
        assert_eq!(condition.look(at(31), 1), Some(Turn::Begins));
    }
}
