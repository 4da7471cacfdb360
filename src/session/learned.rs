//! What the sessions of one target learn together about where its responses end.
//!
//! A response is a stream of segments, and headers do not say which one is the last. A segment with PSH ends a
//! write of the target's application, so it is a *candidate* for the end. Candidates are classified by their
//! position ([`Position`]). For each class this module keeps how many were the end of a response, and after which
//! pause data followed the others. From that follows how long a gate has to wait at a candidate so that it opens
//! too early in at most one of so many cases.
//!
//! The counts are relaxed atomics, because a worker and its sessions move between threads as one. A worker alone
//! writes them, and nothing depends on their order.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bound of the shortest class of pauses.
const SHORTEST: Duration = Duration::from_micros(128);
/// Each class of pauses reaches twice as far as the one before it.
const PAUSES: usize = 16;
/// Above this total the counts of a class are halved, so that old observations lose weight.
const DECAY_AT: u32 = 2048;
/// A difference in length that was seen so often in a row is expected.
const KEEPS_SHOWING: u32 = 2;
/// So many equal responses outweigh a shorter one, and so many at most all shorter ones.
const SHORTER: u32 = 16;
const MOST_SHORTER: u32 = 256;
/// First bytes of responses that have to be timed before their distribution counts.
const TIMED: u32 = 16;

/// Where in a response a candidate lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// Before the client's first request: a greeting.
    Greeting,
    /// The n-th candidate of a response that is still shorter than production's, n up to 3 and more.
    Short(u8),
    /// A whole segment with PSH, or a sequence of whole segments: the write may go on.
    Whole,
    /// The same of a response that is longer than production's.
    Longer(u8),
}

impl Position {
    const COUNT: usize = 10;

    fn index(self) -> usize {
        match self {
            Self::Greeting => 0,
            Self::Short(n) => 1 + usize::from(n.min(3)),
            Self::Whole => 5,
            Self::Longer(n) => 6 + usize::from(n.min(3)),
        }
    }
}

/// How often data followed after a pause, and how often none did.
#[derive(Debug, Default)]
struct Pauses {
    followed: [AtomicU32; PAUSES],
    ended: AtomicU32,
}

fn class(pause: Duration) -> usize {
    let shortest = SHORTEST.as_micros();
    let doublings = (pause.as_micros() / shortest).checked_ilog2().map_or(0, |log| log + 1);
    usize::try_from(doublings).unwrap_or(PAUSES).min(PAUSES - 1)
}

/// Upper bound of a class.
fn bound(class: usize) -> Duration {
    SHORTEST * (1 << class)
}

fn load(counter: &AtomicU32) -> u32 {
    counter.load(Relaxed)
}

fn increment(counter: &AtomicU32) {
    counter.store(load(counter).saturating_add(1), Relaxed);
}

impl Pauses {
    fn total(&self) -> u32 {
        self.followed.iter().map(load).sum::<u32>() + load(&self.ended)
    }

    fn follow(&self, pause: Duration) {
        if let Some(counter) = self.followed.get(class(pause)) {
            increment(counter);
        }
        self.decay();
    }

    fn end(&self) {
        increment(&self.ended);
        self.decay();
    }

    fn decay(&self) {
        if self.total() > DECAY_AT {
            for counter in self.followed.iter().chain([&self.ended]) {
                counter.store(load(counter) / 2, Relaxed);
            }
        }
    }

    /// The shortest wait after which data follow in at most one of `one_in` cases. `None` if no end was seen.
    fn wait(&self, one_in: u32) -> Option<Duration> {
        let ended = load(&self.ended);
        if ended == 0 {
            return None;
        }
        let mut later = 0;
        for (class, counter) in self.followed.iter().enumerate().rev() {
            later += load(counter);
            if u64::from(later) * u64::from(one_in) > u64::from(later + ended) {
                return Some(bound(class));
            }
        }
        Some(Duration::ZERO)
    }
}

/// What is known of a class of candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Too few were seen.
    Nothing,
    /// A few were seen; the wait that they suggest.
    Little(Duration),
    /// The wait that suffices.
    Wait(Duration),
    /// Data always followed.
    NeverEnds,
}

/// Observations of one target, shared by all sessions of a mapping.
#[derive(Debug, Default)]
pub struct Learned {
    positions: [Pauses; Position::COUNT],
    /// Time from the end of a request to the first byte of its response.
    first_bytes: Pauses,
    /// By how much the last responses were shorter than production's, and how often in a row.
    difference: AtomicU64,
    /// Above zero while responses are shorter than production's now and then: rises with each, falls with each equal one.
    shorter: AtomicU32,
    /// Waits for a whole response timeout: how many there were, and how many were vain, because the target had been
    /// waiting for the next request.
    timeouts: AtomicU32,
    vain: AtomicU32,
}

/// Observations before the first of a class is trusted, and before they are trusted without reserve.
const FEW: u32 = 2;
const ENOUGH: u32 = 8;

impl Learned {
    /// What is known of candidates at `position`. At most one of `one_in` gates may open too early.
    pub(super) fn known(&self, position: Position, one_in: u32) -> Known {
        let Some(pauses) = self.positions.get(position.index()) else { return Known::Nothing };
        let total = pauses.total();
        match pauses.wait(one_in) {
            Some(_) | None if total < FEW => Known::Nothing,
            None => Known::NeverEnds,
            Some(wait) if total < ENOUGH => Known::Little(wait),
            Some(wait) => Known::Wait(wait),
        }
    }

    /// Data of the same response followed a candidate after `pause`.
    pub(super) fn followed(&self, position: Position, pause: Duration) {
        if let Some(pauses) = self.positions.get(position.index()) {
            pauses.follow(pause);
        }
    }

    /// A candidate was the end of its response, as far as is known.
    pub(super) fn ended(&self, position: Position) {
        if let Some(pauses) = self.positions.get(position.index()) {
            pauses.end();
        }
    }

    /// A candidate was taken for the end, and data followed after `pause`.
    pub(super) fn was_early(&self, position: Position, pause: Duration) {
        if let Some(pauses) = self.positions.get(position.index()) {
            pauses.ended.store(load(&pauses.ended).saturating_sub(1), Relaxed);
            pauses.follow(pause);
        }
        self.difference.store(0, Relaxed);
    }

    /// The difference in length that responses keep showing.
    pub(super) fn difference(&self) -> Option<u32> {
        let (value, count) = self.unpack();
        (count >= KEEPS_SHOWING).then_some(value)
    }

    /// A response was shorter by so much.
    pub(super) fn differed(&self, by: u64) {
        self.shorter.store((load(&self.shorter) + SHORTER).min(MOST_SHORTER), Relaxed);
        let (value, count) = self.unpack();
        let by = u32::try_from(by).unwrap_or(u32::MAX);
        let (value, count) = match count {
            0 => (by, 1),
            n if by == value => (value, n.saturating_add(1).min(4 * KEEPS_SHOWING)),
            n => (value, n / 2),
        };
        self.difference.store(u64::from(value) << 32 | u64::from(count), Relaxed);
    }

    /// Whether responses are shorter than production's now and then. What a target sends beyond production's length
    /// then says nothing of the responses to come.
    pub(super) fn is_shorter(&self) -> bool {
        load(&self.shorter) > 0
    }

    /// A response had production's length.
    pub(super) fn was_equal(&self) {
        let shorter = load(&self.shorter);
        if shorter > 0 {
            self.shorter.store(shorter - 1, Relaxed);
        }
        if self.difference.load(Relaxed) != 0 {
            self.differed(0);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    fn unpack(&self) -> (u32, u32) {
        let word = self.difference.load(Relaxed);
        ((word >> 32) as u32, word as u32)
    }

    /// The target began its response so long after it had the request.
    pub(super) fn answered_after(&self, took: Duration) {
        self.first_bytes.follow(took);
    }

    /// A time within which the target nearly always begins its response, once enough is known. `None` also for a
    /// target whose responses were never shorter than production's: waiting longer costs it nothing.
    pub(super) fn first_byte_within(&self) -> Option<Duration> {
        if !self.is_shorter() {
            return None;
        }
        let total = self.first_bytes.total();
        let mut later = 0;
        (total >= TIMED).then(|| {
            let slow = self.first_bytes.followed.iter().enumerate().rev().find(|(_, counter)| {
                later += load(counter);
                u64::from(later) * 256 > u64::from(total)
            });
            slow.map_or(SHORTEST, |(class, _)| bound(class))
        })
    }

    /// A gate has waited for the whole response timeout.
    pub(super) fn timed_out(&self) {
        increment(&self.timeouts);
    }

    /// Such a wait was vain.
    pub(super) fn waited_in_vain(&self) {
        increment(&self.vain);
    }

    /// Whether most waits for the response timeout were vain.
    pub(super) fn is_impatient(&self) -> bool {
        let vain = load(&self.vain);
        vain > 0 && vain * 2 >= load(&self.timeouts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const FIRST: Position = Position::Short(0);

    #[test]
    fn a_class_without_observations_says_nothing() {
        let learned = Learned::default();
        assert_eq!(learned.known(FIRST, 256), Known::Nothing);
        learned.ended(FIRST);
        assert_eq!(learned.known(FIRST, 256), Known::Nothing);
        learned.ended(FIRST);
        assert_eq!(learned.known(FIRST, 256), Known::Little(Duration::ZERO));
        (0..6).for_each(|_| learned.ended(FIRST));
        assert_eq!(learned.known(FIRST, 256), Known::Wait(Duration::ZERO));
        assert_eq!(learned.known(Position::Short(1), 256), Known::Nothing, "another class");
    }

    #[test]
    fn the_wait_covers_the_pauses_that_matter() {
        let learned = Learned::default();
        (0..1000).for_each(|_| learned.ended(FIRST));
        (0..100).for_each(|_| learned.followed(FIRST, MS));
        learned.followed(FIRST, 300 * MS);
        assert_eq!(learned.known(FIRST, 256), Known::Wait(Duration::from_micros(1024)));
        assert_eq!(learned.known(FIRST, 2000), Known::Wait(Duration::from_micros(524_288)));
        assert_eq!(learned.known(FIRST, 5), Known::Wait(Duration::ZERO), "one in eleven is fewer");
    }

    #[test]
    fn what_always_goes_on_never_ends() {
        let learned = Learned::default();
        (0..3).for_each(|_| learned.followed(FIRST, 400 * MS));
        assert_eq!(learned.known(FIRST, 256), Known::NeverEnds);
    }

    #[test]
    fn an_early_gate_is_taken_back() {
        let learned = Learned::default();
        (0..3).for_each(|_| learned.ended(FIRST));
        (0..3).for_each(|_| learned.was_early(FIRST, 10 * MS));
        assert_eq!(learned.known(FIRST, 256), Known::NeverEnds);
    }

    #[test]
    fn old_observations_lose_weight() {
        let learned = Learned::default();
        (0..10).for_each(|_| learned.followed(FIRST, 100 * MS));
        (0..20_000).for_each(|_| learned.ended(FIRST));
        assert_eq!(learned.known(FIRST, 256), Known::Wait(Duration::ZERO));
    }

    #[test]
    fn a_difference_is_expected_while_it_keeps_showing() {
        let learned = Learned::default();
        learned.differed(7);
        assert_eq!(learned.difference(), None);
        learned.differed(7);
        assert_eq!(learned.difference(), Some(7));
        learned.was_equal();
        assert_eq!(learned.difference(), None);
        (0..8).for_each(|_| learned.differed(7));
        learned.differed(3);
        assert_eq!(learned.difference(), Some(7), "one exception");
        (0..4).for_each(|n| learned.differed(n));
        assert_eq!(learned.difference(), None);
    }

    #[test]
    fn most_first_bytes_come_within_a_time() {
        let learned = Learned::default();
        learned.differed(1);
        (0..15).for_each(|_| learned.answered_after(MS));
        assert_eq!(learned.first_byte_within(), None);
        (0..600).for_each(|_| learned.answered_after(MS));
        learned.answered_after(900 * MS);
        assert_eq!(learned.first_byte_within(), Some(Duration::from_micros(1024)));
    }

    #[test]
    fn impatience_needs_vain_waits() {
        let learned = Learned::default();
        learned.timed_out();
        assert!(!learned.is_impatient());
        learned.waited_in_vain();
        assert!(learned.is_impatient());
        (0..2).for_each(|_| learned.timed_out());
        assert!(!learned.is_impatient());
    }

    #[test]
    fn every_pause_lies_below_its_bound() {
        for micros in (0..2000).chain([127, 128, 129, 1 << 20, 4_000_000]) {
            let pause = Duration::from_micros(micros);
            assert!(pause < bound(class(pause)), "{micros}");
        }
    }
}
