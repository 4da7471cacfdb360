//! Going on after an outage: what waited for an intercept or for a target that was silent goes on as
//! soon as one is heard of, but not all of it in one instant.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::replay::Replayer;
use crate::session::Answer;
use crate::wire::Time;

/// How many connections are opened at a time, and how long after the ones before.
const TURN: usize = 100;
const BETWEEN_TURNS: Duration = Duration::from_millis(10);
/// Distance in time of the sessions that send again what was lost.
const PACE: Duration = Duration::from_micros(100);
/// A target that was not heard of for so long, and then is, may be back.
const SILENCE: Duration = Duration::from_secs(1);

/// What waits, and since when.
#[derive(Debug, Default)]
pub(super) struct Resumption {
    /// Sessions that want a connection while there is no intercept, or until it is their turn.
    waiting: VecDeque<usize>,
    /// When the next of them have their turn.
    due: Option<Time>,
    targets: Vec<Target>,
}

/// Whether a target answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The target.
    pub address: SocketAddr,
    /// When it was last heard of.
    pub heard: Option<Time>,
    /// Since when a session has waited in vain for what it sent to be acknowledged; none once the target was heard of.
    pub awaited: Option<Time>,
}

impl Target {
    /// Takes in what another worker knows of the same target.
    pub fn merge(&mut self, other: &Self) {
        self.heard = self.heard.max(other.heard);
        self.awaited = [self.awaited, other.awaited].into_iter().flatten().min();
    }

    /// For how long it has been silent although something is awaited.
    pub fn silence(&self, now: Time) -> Option<Duration> {
        let since = self.awaited?;
        Some(now.since(self.heard.map_or(since, |heard| heard.max(since))))
    }
}

impl Resumption {
    /// How many places in the queue are taken.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// When [`Replayer::take_turn`] is due.
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// A target answers. Returns whether it had been silent.
    fn hear(&mut self, now: Time, target: SocketAddr) -> bool {
        let target = self.target(target);
        target.awaited = None;
        target.heard.replace(now).is_some_and(|last| now - last >= SILENCE)
    }

    /// A session has waited in vain for an answer of a target.
    pub(super) fn miss(&mut self, target: SocketAddr, since: Time) {
        let awaited = &mut self.target(target).awaited;
        *awaited = Some(awaited.map_or(since, |before| before.min(since)));
    }

    fn target(&mut self, address: SocketAddr) -> &mut Target {
        let known = self.targets.iter().position(|target| target.address == address);
        let at = known.unwrap_or_else(|| {
            self.targets.push(Target { address, heard: None, awaited: None });
            self.targets.len() - 1
        });
        self.targets.get_mut(at).expect("found or just added")
    }
}

impl Replayer {
    /// The targets that sessions have sent to, as far as something is known of them.
    pub fn targets(&self) -> &[Target] {
        &self.resumption.targets
    }

    /// Whether an intercept takes the responses. While none does, no connection is opened: with
    /// nobody to stop them, responses could travel on to real clients.
    pub fn set_reachable(&mut self, now: Time, reachable: bool) {
        let back = reachable && !self.reachable;
        self.reachable = reachable;
        self.resumption.due = None;
        if reachable {
            self.take_turn(now);
        }
        if back {
            self.hasten(now, None);
        }
    }

    /// A session wants a connection, and there is no intercept.
    pub(super) fn await_turn(&mut self, slot: usize) {
        let Self { resumption, table, .. } = self;
        // Those that have ended stand there still; the queue is to have a bound as the sessions have.
        if resumption.len() > 2 * table.len() + TURN {
            let mut seen = HashSet::new();
            resumption.waiting.retain(|slot| {
                seen.insert(*slot) && table.entry(*slot).is_some_and(|entry| entry.session.wants_connection())
            });
        }
        resumption.waiting.push_back(slot);
    }

    /// Connects the next of the sessions that wait for it.
    pub(super) fn take_turn(&mut self, now: Time) {
        for _ in 0..TURN {
            let Some(slot) = self.resumption.waiting.pop_front() else { break };
            self.connect(now, slot);
            self.table.wake(slot);
        }
        let more = !self.resumption.waiting.is_empty();
        self.resumption.due = more.then(|| now + BETWEEN_TURNS);
    }

    /// A target has answered a session: if it had been silent, it is there for others, too.
    pub(super) fn note_answer(&mut self, now: Time, target: SocketAddr, answer: Answer) {
        // A reset may come from a host whose service is not up yet.
        let serves = matches!(answer, Answer::Accepted | Answer::OutOfOrder | Answer::Duplicate);
        if serves && self.resumption.hear(now, target) {
            self.hasten(now, Some(target));
        }
    }

    /// Sessions that have sent something in vain send it again, one after the other.
    fn hasten(&mut self, now: Time, target: Option<SocketAddr>) {
        let slots: Vec<usize> = self.table.iter().map(|(slot, _)| slot).collect();
        let mut at = now;
        for slot in slots {
            if let Some(entry) = self.table.entry(slot)
                && target.is_none_or(|target| entry.target == target)
                && entry.session.hasten(at)
            {
                at += PACE;
                self.table.wake(slot);
            }
        }
    }
}
