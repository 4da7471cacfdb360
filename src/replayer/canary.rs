//! The canary: a target whose responses are not seen gets one connection attempt a second, so that a missing or lost
//! route on it leaks a handful of packets to real clients instead of all of them.
//!
//! [`TargetHealth`] is a small state machine, shared by all workers of a process through atomics:
//!
//! * *suspect*: no SYN-ACK has been received yet, or SYNs have gone unanswered. Attempts leave at the pace of
//!   [`INTERVALS`], of all workers together; other connections wait.
//! * *trusted*: a SYN-ACK was received. Connections leave as they come.
//!
//! A trusted target becomes suspect when no SYN-ACK has come since a SYN that is older than [`SILENCE`], or since more
//! than [`EXCESS`] SYNs that are older than [`HANDSHAKES`] times its usual handshake. It is trusted again with the next
//! SYN-ACK. A RST answers no SYN: the host is there, but the service is not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::wire::{Mapping, Time};

/// From one attempt to the next, in seconds; the last one goes on.
const INTERVALS: [u64; 6] = [1, 2, 2, 3, 4, 5];
/// A SYN that is unanswered for so long, and four times the usual handshake, makes a target suspect.
const SILENCE: Duration = Duration::from_secs(1);
const SILENT_HANDSHAKES: u32 = 4;
/// SYNs that may be older than so many of the usual handshakes, and than `MIN_AGE`.
const EXCESS: u32 = 3;
const HANDSHAKES: u32 = 8;
const MIN_AGE: Duration = Duration::from_millis(10);
/// An attempt is taken back before the target would repeat its SYN-ACK (RFC 6298: 1 s), to a real client if the route is
/// lost. Every so many attempts one is waited for longer: a handshake may take that long.
const PATIENCE: Duration = Duration::from_millis(900);
const LONG_PATIENCE: Duration = Duration::from_secs(15);
const LONG_EVERY: u32 = 5;

/// A point in time, or none, that threads share.
#[derive(Debug, Default)]
struct AtomicTime(AtomicU64);

impl AtomicTime {
    fn get(&self) -> Option<Time> {
        self.0.load(Ordering::Relaxed).checked_sub(1).map(Time::from_micros)
    }

    fn set(&self, time: Option<Time>) {
        self.0.store(Self::coded(time), Ordering::Relaxed);
    }

    /// Sets it if it is `before`. Returns whether it was.
    fn replace(&self, before: Option<Time>, after: Option<Time>) -> bool {
        let (before, after) = (Self::coded(before), Self::coded(after));
        self.0.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn coded(time: Option<Time>) -> u64 {
        time.map_or(0, |time| time.micros().saturating_add(1))
    }
}

/// What is known of a target, by all workers of a process.
#[derive(Debug)]
pub struct TargetHealth {
    address: SocketAddr,
    trusted: AtomicBool,
    /// SYNs sent since the last SYN-ACK: how many, when the first and the last, and when the first in excess.
    unanswered: AtomicU32,
    first: AtomicTime,
    last: AtomicTime,
    excess: AtomicTime,
    /// The usual handshake in microseconds: the longest of the last ones.
    handshake: AtomicU64,
    /// While suspect: the attempts so far, and when the next one may leave.
    attempts: AtomicU32,
    next: AtomicTime,
    /// The target has refused a SYN since its last SYN-ACK.
    refuses: AtomicBool,
}

impl TargetHealth {
    /// A target that nothing is known of: suspect.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            trusted: AtomicBool::new(false),
            unanswered: AtomicU32::new(0),
            first: AtomicTime::default(),
            last: AtomicTime::default(),
            excess: AtomicTime::default(),
            handshake: AtomicU64::new(0),
            attempts: AtomicU32::new(0),
            next: AtomicTime::default(),
            refuses: AtomicBool::new(false),
        }
    }

    /// One for each target of `mappings`; those that are `known` already stay.
    pub fn of(mappings: &[Mapping], known: &[Arc<Self>]) -> Vec<Arc<Self>> {
        let mut targets: Vec<Arc<Self>> = Vec::new();
        for target in mappings.iter().map(|mapping| mapping.target) {
            if targets.iter().all(|health| health.address != target) {
                let known = known.iter().find(|health| health.address == target);
                targets.push(known.map_or_else(|| Arc::new(Self::new(target)), Arc::clone));
            }
        }
        targets
    }

    /// The target.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether only canaries may connect.
    pub fn is_suspect(&self) -> bool {
        !self.trusted.load(Ordering::Relaxed)
    }

    /// Since when its SYNs are unanswered.
    pub(super) fn unanswered_since(&self) -> Option<Time> {
        self.first.get()
    }

    /// Whether it refuses connections.
    pub(super) fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }

    /// A SYN leaves.
    pub(super) fn syn_sent(&self, now: Time) {
        self.last.set(Some(now));
        self.first.replace(None, Some(now));
        if self.unanswered.fetch_add(1, Ordering::Relaxed) >= EXCESS {
            self.excess.replace(None, Some(now));
        }
    }

    /// A SYN-ACK was received; the handshake took so long.
    pub(super) fn answered(&self, handshake: Duration) {
        let took = u64::try_from(handshake.as_micros()).unwrap_or(u64::MAX);
        let usual = self.handshake.load(Ordering::Relaxed);
        self.handshake.store(took.max(usual - usual / 16), Ordering::Relaxed);
        if self.first.get().is_some() {
            self.forget_syns();
        }
        if !self.trusted.load(Ordering::Relaxed) {
            self.refuses.store(false, Ordering::Relaxed);
            self.trusted.store(true, Ordering::Relaxed);
        }
    }

    /// The intercept is gone: that SYNs have no answer says nothing of the target.
    pub(super) fn forget_syns(&self) {
        self.unanswered.store(0, Ordering::Relaxed);
        self.first.set(None);
        self.excess.set(None);
    }

    /// A RST to a SYN was received: the way to the target and back is open.
    pub(super) fn refused(&self) {
        self.refuses.store(true, Ordering::Relaxed);
        self.recheck();
    }

    /// There is a sign of life: the next attempt need not wait longer than the shortest interval.
    pub(super) fn recheck(&self) {
        let (last, next) = (self.last.get(), self.next.get());
        let Some(soon) = last.map(|last| last + interval(0)) else { return };
        if self.is_suspect() && next.is_some_and(|next| next > soon) && self.next.replace(next, Some(soon)) {
            self.attempts.store(0, Ordering::Relaxed);
        }
    }

    /// When a trusted target may become suspect.
    pub(super) fn check_due(&self) -> Option<Time> {
        let silent = self.first.get().map(|at| at + self.silence());
        let many = self.excess.get().map(|at| at + self.long_handshake());
        [silent, many].into_iter().flatten().min().filter(|_| !self.is_suspect())
    }

    /// Whether the target is suspect by now.
    pub(super) fn check(&self, now: Time) -> bool {
        if self.check_due().is_some_and(|due| now >= due) {
            // Whoever is second finds all of it done, or does the same.
            // The last SYN counts as the first attempt.
            self.attempts.store(1, Ordering::Relaxed);
            self.next.set(Some(self.last.get().unwrap_or(now) + interval(0)));
            self.trusted.store(false, Ordering::Relaxed);
        }
        self.is_suspect()
    }

    /// When the next attempt may leave.
    pub(super) fn next_attempt(&self) -> Time {
        self.next.get().unwrap_or(Time::ZERO)
    }

    /// Asks for leave to try a connection. Returns how long its answer is to be waited for.
    pub(super) fn attempt(&self, now: Time) -> Option<Duration> {
        let due = self.next.get();
        let number = self.attempts.load(Ordering::Relaxed);
        let next = Some(now + interval(number));
        if due.is_some_and(|due| now < due) || !self.next.replace(due, next) {
            return None;
        }
        self.attempts.store(number.saturating_add(1), Ordering::Relaxed);
        Some(if number % LONG_EVERY == LONG_EVERY - 1 { LONG_PATIENCE } else { PATIENCE })
    }

    fn usual(&self) -> Duration {
        Duration::from_micros(self.handshake.load(Ordering::Relaxed))
    }

    fn silence(&self) -> Duration {
        SILENCE.max(self.usual().saturating_mul(SILENT_HANDSHAKES))
    }

    fn long_handshake(&self) -> Duration {
        MIN_AGE.max(self.usual().saturating_mul(HANDSHAKES)).min(self.silence())
    }
}

/// From the attempt number `number` to the next.
fn interval(number: u32) -> Duration {
    let at = usize::try_from(number).unwrap_or(usize::MAX).min(INTERVALS.len() - 1);
    Duration::from_secs(INTERVALS.get(at).copied().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(millis: u32) -> Time {
        Time::from_micros(1_000_000) + MS * millis
    }

    fn health() -> TargetHealth {
        TargetHealth::new(([10, 0, 0, 1], 80).into())
    }

    /// A target that has answered in 1 ms.
    fn trusted() -> TargetHealth {
        let health = health();
        health.syn_sent(at(0));
        health.answered(MS);
        assert!(!health.check(at(0)));
        health
    }

    #[test]
    fn attempts_leave_one_a_second_at_first_and_one_in_five_later() {
        let health = health();
        let mut left = Vec::new();
        for millis in 0..30_000 {
            if health.attempt(at(millis)).is_some() {
                health.syn_sent(at(millis));
                left.push(millis);
            }
        }
        assert_eq!(left, [0, 1_000, 3_000, 5_000, 8_000, 12_000, 17_000, 22_000, 27_000]);
    }

    #[test]
    fn one_attempt_in_five_is_waited_for_longer() {
        let health = health();
        let patience: Vec<_> = (0..10).filter_map(|n| health.attempt(at(n * 10_000))).collect();
        assert_eq!(patience.iter().filter(|patience| **patience == LONG_PATIENCE).count(), 2);
        assert!(patience.iter().all(|patience| *patience >= PATIENCE));
    }

    #[test]
    fn a_second_without_an_answer_makes_a_target_suspect_and_an_answer_ends_that() {
        let health = trusted();
        health.syn_sent(at(100));
        assert_eq!(health.check_due(), Some(at(1_100)));
        assert!(!health.check(at(1_099)) && health.check(at(1_100)));
        assert!(health.attempt(at(1_099)).is_none(), "a second after the SYN before");
        assert!(health.attempt(at(1_100)).is_some());
        health.answered(MS);
        assert!(!health.check(at(1_101)) && health.check_due().is_none());
    }

    #[test]
    fn several_old_syns_make_a_target_suspect_at_once() {
        let health = trusted();
        for n in 0..=EXCESS {
            assert!(!health.check(at(100 + n)));
            health.syn_sent(at(100 + n));
        }
        let last = 100 + EXCESS;
        assert!(!health.check(at(last + 9)), "they are not old yet");
        assert!(health.check(at(last + 10)));
    }

    #[test]
    fn no_number_of_syns_makes_a_target_suspect_that_answers_some() {
        let health = trusted();
        for n in 0..10_000 {
            health.syn_sent(at(n));
            if n % 3 == 0 {
                health.answered(MS);
            }
            assert!(!health.check(at(n)));
        }
    }

    #[test]
    fn a_slow_target_is_given_time() {
        let health = trusted();
        health.answered(MS * 2_000);
        for n in 0..100 {
            health.syn_sent(at(n));
        }
        assert!(!health.check(at(7_000)));
        assert!(health.check(at(8_000)));
    }

    #[test]
    fn a_sign_of_life_brings_the_next_attempt_forward_and_never_two_into_a_second() {
        let health = health();
        let mut now = 0;
        for _ in 0..8 {
            while health.attempt(at(now)).is_none() {
                now += 100;
            }
            health.syn_sent(at(now));
        }
        assert_eq!(health.next_attempt(), at(now + 5_000));
        health.refused();
        assert_eq!((health.next_attempt(), health.refuses()), (at(now + 1_000), true));
        health.answered(MS);
        assert!(!health.refuses());
    }

    #[test]
    fn of_several_workers_one_gets_the_attempt() {
        let health = Arc::new(health());
        let workers: Vec<_> = (0..4).map(|_| Arc::clone(&health)).collect();
        for second in 0..20 {
            let attempts =
                workers.iter().filter(|health| health.attempt(at(second * 5_000)).is_some()).count();
            assert_eq!(attempts, 1, "{second}");
        }
    }
}
