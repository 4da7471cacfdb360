//! With `unclaimed = accept`: what was claimed once is never let through.
//!
//! The router remembers flows that nobody claims any more as long as it has room. Beyond that, and beyond the end of the
//! process, the caller does, in the kernel: it adds a flow before it confirms its claim, and moves it to those that are
//! closing for [`Router::poll_retired`].

use super::{FlowKey, Outcome, Ownerless, Router, Time, Unclaimed, Verdict, Waiting};

impl Router {
    /// The next flow that was claimed and is not any more; there are none with [`Unclaimed::Drop`]. From now on its
    /// responses are dropped, until the target has been silent on it for long enough.
    pub fn poll_retired(&mut self, now: Time) -> Option<FlowKey> {
        while let Some(key) = self.retired.pop_front() {
            // It may have been claimed again.
            if self.flows.find(&key).is_none() {
                self.close(now, key);
                return Some(key);
            }
        }
        None
    }

    /// A flow was claimed before the router began: its responses are dropped, unless it is claimed again.
    pub fn close(&mut self, now: Time, key: FlowKey) {
        if self.flows.find(&key).is_none() {
            self.remember(now, key, Ownerless::Released);
        }
    }

    /// The flows that are claimed, orphans included.
    pub fn claimed_flows(&self) -> impl Iterator<Item = FlowKey> + '_ {
        self.flows.iter().map(|(key, _)| *key)
    }

    /// The flows that were claimed, as far as they are remembered.
    pub fn closed_flows(&self) -> impl Iterator<Item = FlowKey> + '_ {
        let closed = self.ownerless.iter().filter(|(_, state)| **state == Ownerless::Released);
        closed.map(|(key, _)| *key)
    }

    /// Nobody claimed a response in time.
    pub(super) fn give_up(&mut self, now: Time, waiting: &Waiting) {
        if self.settings.unclaimed == Unclaimed::Drop {
            self.counters.outcomes.count(Outcome::UnclaimedDropped);
            return;
        }
        let replayed = self.flows.find(&waiting.key).is_some()
            || self.ownerless.find(&waiting.key).and_then(|slot| self.ownerless.value(slot))
                == Some(&Ownerless::Released);
        if replayed || now < self.settled {
            self.counters.outcomes.count(Outcome::UnclaimedDropped);
            self.verdicts.push_back((waiting.packet, Verdict::Drop));
        } else {
            self.counters.outcomes.count(Outcome::UnclaimedAccepted);
            self.verdicts.push_back((waiting.packet, Verdict::Accept));
            self.remember(now, waiting.key, Ownerless::Foreign);
        }
    }

    pub(super) fn remember(&mut self, now: Time, key: FlowKey, state: Ownerless) {
        if let Some(slot) = self.ownerless.find(&key) {
            self.ownerless.remove(&mut self.remembered, slot);
        } else if self.ownerless.len() >= self.settings.max_flows
            && let Some(slot) = self.remembered.idlest()
        {
            self.ownerless.remove(&mut self.remembered, slot);
        }
        self.ownerless.insert(&mut self.remembered, now, key, state);
    }
}
