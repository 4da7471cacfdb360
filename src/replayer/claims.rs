//! Claims: which flows may be claimed, and when a claimed flow may be connected.
//!
//! A session that wants a connection gets an address and port, whose responses are claimed. It connects, and so sends its
//! SYN, only once the claim was told to the intercepts, and confirmed by those that confirm claims.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::reconnect::Waits;
use super::replay::{Claim, Replayer};
use super::table::Entry;
use crate::session::End;
use crate::wire::{FlowId, MIN_HEADERS_V4, MIN_HEADERS_V6, Scope, Time};

/// How long the confirmation of a claim may take before another address or port is tried.
const CONFIRMATION: Duration = Duration::from_secs(1);
/// Flows of one session that may be refused, or not confirmed, before it ends.
const MAX_REFUSED: u16 = 16;
/// The same, not confirmed in time.
const MAX_UNCONFIRMED: u16 = 4;

/// Why an intercept does not hold a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimLoss {
    /// Another tcpcopy has the flow.
    Taken,
    /// The intercept has no room for it.
    Full,
    /// It is not for us: the intercept does not take responses of this target, or to this client.
    Foreign,
    /// It was held and had to make room for others.
    Evicted,
}

/// Claims that wait to be confirmed, and the flows that may be claimed.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Deadlines of confirmations, in order.
    awaited: VecDeque<(Time, FlowId)>,
    /// Of each intercept; `None` if it has not said.
    scopes: Vec<Option<Scope>>,
}

impl Claims {
    /// When [`Replayer::expire_claims`] is due.
    pub(super) fn due(&self) -> Option<Time> {
        self.awaited.front().map(|(due, _)| *due)
    }

    /// Memory that those take which wait, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.awaited.capacity() * size_of::<(Time, FlowId)>()
    }

    /// Gives memory back if few wait.
    pub(super) fn shrink(&mut self) {
        if self.awaited.len() < self.awaited.capacity() / 4 {
            self.awaited.shrink_to(2 * self.awaited.len());
        }
    }

    /// Whether a flow may be claimed: there are intercepts that take responses of the target, and each of them takes
    /// those to this client. Without intercepts, this host takes them itself.
    pub(super) fn allow(&self, client: IpAddr, target: SocketAddr) -> bool {
        let serves = |scope: &&Option<Scope>| scope.as_ref().is_none_or(|scope| scope.serves(target));
        let takes = |scope: &Option<Scope>| scope.as_ref().is_none_or(|scope| scope.takes(client));
        self.scopes.is_empty()
            || (self.scopes.iter().any(|scope| serves(&scope))
                && self.scopes.iter().filter(serves).all(takes))
    }
}

impl Replayer {
    /// These are the scopes of the intercepts; `None` for one that has not said. A session whose flow is in none ends.
    pub fn set_scopes(&mut self, now: Time, scopes: Vec<Option<Scope>>) {
        if scopes == self.claiming.scopes {
            return;
        }
        self.claiming.scopes = scopes;
        let flows = self.table.iter().filter_map(|(slot, entry)| Some((slot, entry.flow?.1, entry.target)));
        let outside = flows.filter(|(_, local, target)| !self.claiming.allow(local.ip(), *target));
        for (slot, ..) in outside.collect::<Vec<_>>() {
            self.end_session(now, slot, End::OutOfScope);
        }
    }

    /// A claim was told to the intercepts. Those in `awaited`, one bit each, confirm claims; the flow is not connected
    /// before all of them have.
    pub fn handle_claim_told(&mut self, now: Time, id: FlowId, awaited: u64) {
        let Some((slot, entry)) = self.table.of_flow(id) else { return };
        if !entry.session.wants_connection() || entry.waits != Waits::No {
            return;
        }
        entry.awaited = awaited;
        if awaited == 0 {
            self.open_connection(now, slot);
        } else {
            self.claiming.awaited.push_back((now + CONFIRMATION, id));
        }
    }

    /// The intercept of this bit has confirmed a claim.
    pub fn handle_confirmation(&mut self, now: Time, id: FlowId, from: u64) {
        let Some((slot, entry)) = self.table.of_flow(id) else { return };
        if entry.awaited & from != 0 {
            entry.awaited &= !from;
            if entry.awaited == 0 {
                self.open_connection(now, slot);
            }
        }
    }

    /// An intercept does not hold a claim, or no longer.
    pub fn handle_claim_loss(&mut self, now: Time, id: FlowId, why: ClaimLoss) {
        let Some((slot, entry)) = self.table.of_flow(id) else { return };
        match why {
            ClaimLoss::Evicted => {
                self.counters.claims_evicted += 1;
                if let Some((id, client)) = entry.flow {
                    let key = crate::wire::FlowKey { client, server: entry.target };
                    self.claims.push_back(Claim::Claim(id, key));
                }
            }
            ClaimLoss::Taken => {
                self.counters.claims_refused += 1;
                self.move_flow(now, slot, MAX_REFUSED);
            }
            ClaimLoss::Full | ClaimLoss::Foreign => {
                self.counters.claims_refused += 1;
                self.end_session(now, slot, End::ClaimRefused);
            }
        }
    }

    /// Gives up waiting for confirmations that are overdue.
    pub(super) fn expire_claims(&mut self, now: Time) {
        while let Some((due, id)) = self.claiming.awaited.front().copied().filter(|(due, _)| *due <= now) {
            debug_assert!(due <= now);
            self.claiming.awaited.pop_front();
            let Some((slot, entry)) = self.table.of_flow(id) else { continue };
            if entry.awaited != 0 && entry.session.wants_connection() {
                self.counters.claims_unconfirmed += 1;
                self.move_flow(now, slot, MAX_UNCONFIRMED);
            }
        }
    }

    /// Moves a session's connection to another address or port, or ends it if `most` have been tried.
    fn move_flow(&mut self, now: Time, slot: usize, most: u16) {
        let Some(entry) = self.table.entry(slot) else { return };
        if entry.waits != Waits::No {
            // The flow is that of a connection that was taken back.
            return self.release(slot);
        }
        entry.refused += 1;
        if entry.refused > most {
            return self.end_session(now, slot, End::ClaimRefused);
        }
        if entry.session.wants_connection() {
            self.connect(now, slot);
        } else {
            entry.budget.take_back();
            entry.session.move_connection(now);
        }
        self.table.wake(slot);
    }

    /// The claim of a session's flow is held: the session connects.
    fn open_connection(&mut self, now: Time, slot: usize) {
        let Some(target) = self.table.entry(slot).map(|entry| entry.target) else { return };
        let mtu = self.mtu(target.ip());
        let asks = |entry: &&mut Entry| entry.session.wants_connection() && entry.waits == Waits::No;
        let Some(entry) = self.table.entry(slot).filter(asks) else { return };
        let canary = entry.flow.is_some_and(|(id, _)| self.reconnect.is_canary(entry.target, id));
        if self.reconnect.is_suspect(entry.target) && !canary {
            // It has become so while the claim was under way.
            return self.wait_in_turn(now, slot);
        }
        let headers = if entry.target.is_ipv4() { MIN_HEADERS_V4 } else { MIN_HEADERS_V6 };
        self.counters.connections += 1;
        self.counters.reconnects += u64::from(!entry.budget.is_unused());
        entry.budget.open(now);
        entry.session.connect(now, mtu.saturating_sub(headers));
        entry.session.send_syn_once(canary);
        self.table.wake(slot);
    }

    fn end_session(&mut self, now: Time, slot: usize, why: End) {
        if let Some(entry) = self.table.entry(slot) {
            entry.session.end(now, why);
        }
        self.table.wake(slot);
    }
}
