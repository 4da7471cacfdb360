//! When sessions get the connections that they ask for.
//!
//! A connection is opened at once if there is an intercept, if the session's [`super::budget`] permits it, and if the
//! target is trusted ([`TargetHealth`]); one that is not its session's first takes a token of the bucket besides. What has
//! to wait stands in the queue of its target, in the order in which it came, and leaves it at the pace of the bucket.
//! A suspect target gets one session of its queue as a canary.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::budget::{Bucket, Permit};
use super::canary::TargetHealth;
use super::config::Config;
use super::replay::Replayer;
use crate::session::{Answer, End};
use crate::wire::{FlowId, Time};

/// Distance in time of the sessions that send again what was lost.
const PACE: Duration = Duration::from_micros(100);
/// A target that was not heard of for so long, and then is, may be back.
const SILENCE: Duration = Duration::from_secs(1);
/// How often a worker looks whether another one has found a target to answer.
const LOOK: Duration = Duration::from_millis(20);
/// Entries of sessions that have ended which the queues may hold, beside two for each session.
const STALE: usize = 100;

/// What a session without a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// Nothing: it has a connection, or wants none.
    No,
    /// Its turn in the queue of its target.
    Turn,
    /// The time until which the budget holds it back.
    Until(Time),
    /// Its client's next request.
    Request,
}

/// The targets, and the sessions that wait for a connection to each.
#[derive(Debug)]
pub(super) struct Reconnect {
    lanes: Vec<Lane>,
    bucket: Bucket,
    /// The lane that is served first.
    first: usize,
    /// Another worker may find a target to answer.
    shared: bool,
    /// When the targets were looked at last.
    looked: Time,
}

/// A target as one worker knows it.
#[derive(Debug)]
struct Lane {
    health: Arc<TargetHealth>,
    /// It was suspect at the last look.
    suspect: bool,
    heard: Option<Time>,
    awaited: Option<Time>,
    waiting: VecDeque<usize>,
    /// The bucket was empty, and all that waits since has been counted as delayed by it.
    limited: bool,
    canaries: Vec<Canary>,
}

/// A connection that is tried although the target is suspect.
#[derive(Clone, Copy, Debug)]
struct Canary {
    slot: usize,
    flow: FlowId,
    /// It is taken back then.
    until: Time,
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
    /// Since when its SYNs are unanswered, while only canaries may connect.
    pub canary: Option<Time>,
    /// It refuses connections.
    pub refuses: bool,
    /// Sessions that wait for a connection.
    pub waiting: usize,
}

impl Target {
    /// Takes in what another worker knows of the same target.
    pub fn merge(&mut self, other: &Self) {
        self.heard = self.heard.max(other.heard);
        self.awaited = [self.awaited, other.awaited].into_iter().flatten().min();
        self.canary = [self.canary, other.canary].into_iter().flatten().min();
        self.refuses |= other.refuses;
        self.waiting += other.waiting;
    }

    fn is_known(&self) -> bool {
        self.waiting > 0 || [self.heard, self.awaited, self.canary].iter().any(Option::is_some)
    }

    /// For how long it has been silent although something is awaited.
    pub fn silence(&self, now: Time) -> Option<Duration> {
        let since = self.awaited?;
        Some(now.since(self.heard.map_or(since, |heard| heard.max(since))))
    }
}

impl Lane {
    fn new(health: Arc<TargetHealth>) -> Self {
        let suspect = health.is_suspect();
        Self {
            health,
            suspect,
            heard: None,
            awaited: None,
            waiting: VecDeque::new(),
            limited: false,
            canaries: Vec::new(),
        }
    }

    fn report(&self) -> Target {
        Target {
            address: self.health.address(),
            heard: self.heard,
            awaited: self.awaited,
            canary: self.health.unanswered_since().filter(|_| self.health.is_suspect()),
            refuses: self.health.refuses(),
            waiting: self.waiting.len(),
        }
    }

    /// When this worker has something to do for it.
    fn due(&self, bucket: &Bucket, look: Option<Time>) -> Option<Time> {
        let expired = self.canaries.iter().map(|canary| canary.until).min();
        let turn = match self.waiting.is_empty() {
            true => None,
            false if self.suspect => [Some(self.health.next_attempt()), look].into_iter().flatten().min(),
            false => Some(bucket.due()),
        };
        [expired, turn, self.health.check_due()].into_iter().flatten().min()
    }
}

impl Reconnect {
    pub(super) fn new(config: &Config) -> Self {
        let mut reconnect = Self {
            lanes: Vec::new(),
            bucket: Bucket::new(config.reconnects_per_second, config.workers),
            first: 0,
            shared: false,
            looked: Time::ZERO,
        };
        reconnect.configure(config);
        reconnect
    }

    /// Goes by another configuration.
    pub(super) fn configure(&mut self, config: &Config) {
        self.bucket.configure(config.reconnects_per_second, config.workers);
        self.shared = config.workers > 1;
        for health in &config.targets {
            if self.lanes.iter().all(|lane| lane.health.address() != health.address()) {
                self.lanes.push(Lane::new(Arc::clone(health)));
            }
        }
    }

    /// Sessions that wait, and entries of some that have ended.
    pub(super) fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.waiting.len()).sum()
    }

    /// The place of a target.
    fn place(&mut self, address: SocketAddr) -> usize {
        let known = self.lanes.iter().position(|lane| lane.health.address() == address);
        known.unwrap_or_else(|| {
            self.lanes.push(Lane::new(Arc::new(TargetHealth::new(address))));
            self.lanes.len() - 1
        })
    }

    fn lane(&mut self, address: SocketAddr) -> &mut Lane {
        let at = self.place(address);
        self.lanes.get_mut(at).expect("found or just added")
    }

    /// A session has waited in vain for an answer of a target.
    pub(super) fn miss(&mut self, target: SocketAddr, since: Time) {
        let awaited = &mut self.lane(target).awaited;
        *awaited = Some(awaited.map_or(since, |before| before.min(since)));
    }

    /// Whether only canaries may connect to a target.
    pub(super) fn is_suspect(&mut self, target: SocketAddr) -> bool {
        self.lane(target).suspect
    }

    /// Whether a flow is that of a canary.
    pub(super) fn is_canary(&mut self, target: SocketAddr, flow: FlowId) -> bool {
        self.lane(target).canaries.iter().any(|canary| canary.flow == flow)
    }

    /// A SYN leaves.
    pub(super) fn syn_sent(&mut self, now: Time, target: SocketAddr) {
        self.lane(target).health.syn_sent(now);
    }

    /// When [`Replayer::take_turns`] or [`Replayer::look_at_targets`] is due.
    pub(super) fn due(&self, reachable: bool) -> Option<Time> {
        let look = self.shared.then(|| self.looked + LOOK);
        let lanes = self.lanes.iter().filter(|_| reachable);
        lanes.filter_map(|lane| lane.due(&self.bucket, look)).min()
    }
}

impl Replayer {
    /// The targets that sessions have sent to, as far as something is known of them.
    pub fn targets(&self) -> Vec<Target> {
        self.reconnect.lanes.iter().map(Lane::report).filter(Target::is_known).collect()
    }

    /// Whether an intercept takes the responses. While none does, no connection is opened: with
    /// nobody to stop them, responses could travel on to real clients.
    pub fn set_reachable(&mut self, now: Time, reachable: bool) {
        let back = reachable && !self.reachable;
        let lost = self.reachable && !reachable;
        self.reachable = reachable;
        if lost {
            self.take_back_all(now, None);
            self.reconnect.lanes.iter().for_each(|lane| lane.health.forget_syns());
        }
        if reachable {
            self.take_turns(now);
        }
        if back {
            self.hasten(now, None);
        }
    }

    /// A session asks for a connection.
    pub(super) fn ask(&mut self, now: Time, slot: usize) {
        let Some(entry) = self.table.entry(slot).filter(|entry| entry.session.wants_connection()) else {
            return;
        };
        entry.waits = Waits::No;
        let permit = entry.budget.ask(now);
        let client_is_done = entry.session.client_is_done();
        match permit {
            Permit::Now => return self.admit(now, slot),
            Permit::At(due) => entry.waits = Waits::Until(due),
            Permit::NextRequest if !client_is_done => entry.waits = Waits::Request,
            Permit::NextRequest | Permit::Never => entry.session.end(now, End::NoProgress),
        }
        if let Permit::At(_) = permit {
            self.counters.backed_off += 1;
        }
        self.release(slot);
        self.table.wake(slot);
    }

    /// The budget permits a session a connection.
    fn admit(&mut self, now: Time, slot: usize) {
        let Self { reconnect, table, .. } = self;
        let Some(entry) = table.entry(slot) else { return };
        let trusted = self.reachable && !reconnect.lane(entry.target).suspect;
        if trusted && entry.budget.is_unused() {
            return self.connect(now, slot);
        }
        self.wait_in_turn(now, slot);
    }

    /// A session stands in the queue of its target until it is connected.
    pub(super) fn wait_in_turn(&mut self, now: Time, slot: usize) {
        self.release(slot);
        self.enqueue(now, slot);
        self.take_turns(now);
    }

    /// A session waits for its turn.
    fn enqueue(&mut self, now: Time, slot: usize) {
        let Self { reconnect, table, .. } = self;
        if reconnect.len() > 2 * table.len() + STALE {
            for lane in &mut reconnect.lanes {
                let mut seen = HashSet::new();
                let target = lane.health.address();
                lane.waiting.retain(|slot| {
                    let waits = |entry: &mut super::table::Entry| {
                        entry.target == target && entry.waits == Waits::Turn
                    };
                    seen.insert(*slot) && table.entry(*slot).is_some_and(waits)
                });
            }
        }
        let reachable = self.reachable;
        if let Some(entry) = table.entry(slot) {
            entry.waits = Waits::Turn;
            let lane = reconnect.lane(entry.target);
            self.counters.reconnects_delayed += u64::from(lane.limited);
            if reachable && lane.suspect {
                entry.session.await_target(Some(now));
            }
            lane.waiting.push_back(slot);
        }
    }

    /// Connects sessions that wait, as far as the targets and the bucket permit it.
    pub(super) fn take_turns(&mut self, now: Time) {
        if !self.reachable {
            return;
        }
        // Each target is the first in turn.
        let lanes = self.reconnect.lanes.len();
        let first = self.reconnect.first;
        self.reconnect.first = first.wrapping_add(1);
        for at in (0..lanes).map(|at| first.wrapping_add(at) % lanes) {
            while let Some(slot) = self.next_in_turn(at) {
                let Reconnect { lanes, bucket, .. } = &mut self.reconnect;
                let Some(lane) = lanes.get_mut(at) else { break };
                let patience = if lane.suspect {
                    let Some(patience) = lane.health.attempt(now) else { break };
                    Some(patience)
                } else if bucket.take(now) {
                    None
                } else {
                    if !std::mem::replace(&mut lane.limited, true) {
                        self.counters.reconnects_delayed += lane.waiting.len() as u64;
                    }
                    break;
                };
                lane.waiting.pop_front();
                self.connect(now, slot);
                self.table.wake(slot);
                if let Some(patience) = patience {
                    self.note_canary(at, slot, now + patience);
                }
            }
        }
    }

    /// The session in front of a queue. Entries of those that have ended, or ask no more, are removed.
    fn next_in_turn(&mut self, lane: usize) -> Option<usize> {
        let Self { reconnect, table, .. } = self;
        let lane = reconnect.lanes.get_mut(lane)?;
        let target = lane.health.address();
        while let Some(slot) = lane.waiting.front().copied() {
            let entry = table.entry(slot);
            if entry.is_some_and(|entry| {
                entry.target == target && entry.waits == Waits::Turn && entry.session.wants_connection()
            }) {
                return Some(slot);
            }
            lane.waiting.pop_front();
        }
        lane.limited = false;
        None
    }

    fn note_canary(&mut self, lane: usize, slot: usize, until: Time) {
        let flow = self.table.entry(slot).and_then(|entry| entry.flow);
        if let Some((flow, _)) = flow
            && let Some(lane) = self.reconnect.lanes.get_mut(lane)
        {
            self.counters.canaries += 1;
            lane.canaries.push(Canary { slot, flow, until });
        }
    }

    /// Looks whether targets have become suspect, or trusted again, and takes connections back that must not go on.
    /// To be called before the timers of sessions, so that no SYN is repeated to a suspect target.
    pub(super) fn look_at_targets(&mut self, now: Time) {
        self.reconnect.looked = now;
        for at in 0..self.reconnect.lanes.len() {
            let Some(lane) = self.reconnect.lanes.get_mut(at) else { break };
            let was_suspect = std::mem::replace(&mut lane.suspect, lane.health.check(now));
            if !lane.suspect {
                if was_suspect {
                    self.trust(at);
                }
            } else if !was_suspect {
                lane.limited = false;
                let target = lane.health.address();
                self.take_back_all(now, Some(target));
            } else if lane.canaries.iter().any(|canary| now >= canary.until) {
                let canaries = std::mem::take(&mut lane.canaries);
                let (over, open) = canaries.into_iter().partition(|canary| now >= canary.until);
                lane.canaries = open;
                self.take_back_canaries(now, over);
            }
        }
    }

    /// A target has answered: its canaries are connections as any, and the patience of sessions begins anew.
    fn trust(&mut self, lane: usize) {
        let Self { reconnect, table, .. } = self;
        let Some(lane) = reconnect.lanes.get_mut(lane) else { return };
        lane.suspect = false;
        for canary in lane.canaries.drain(..) {
            let entry = table.entry(canary.slot);
            if let Some(entry) = entry.filter(|entry| entry.flow.is_some_and(|(flow, _)| flow == canary.flow))
            {
                entry.session.send_syn_once(false);
            }
        }
        for slot in &lane.waiting {
            if let Some(entry) = table.entry(*slot).filter(|entry| entry.waits == Waits::Turn) {
                entry.session.await_target(None);
            }
        }
    }

    fn take_back_canaries(&mut self, now: Time, canaries: Vec<Canary>) {
        for canary in canaries {
            let entry = self.table.entry(canary.slot).and_then(|entry| entry.flow);
            if entry.is_some_and(|(flow, _)| flow == canary.flow) {
                self.take_back(now, canary.slot);
            }
        }
    }

    /// Takes back all connections whose SYN is unanswered, in their order.
    fn take_back_all(&mut self, now: Time, target: Option<SocketAddr>) {
        let slots = self.table.iter().filter(|(_, entry)| {
            target.is_none_or(|target| entry.target == target) && entry.session.is_connecting()
        });
        let mut slots: Vec<_> = slots.map(|(slot, entry)| (entry.budget.opened_at(), slot)).collect();
        slots.sort_unstable();
        for (_, slot) in slots.into_iter().rev() {
            self.take_back(now, slot);
        }
    }

    /// Takes back a connection whose SYN is unanswered: with a RST, so that the target does not repeat its SYN-ACK, and to
    /// the front of the queue. Its claim stays until it gets another: an answer that is late tells of the target.
    fn take_back(&mut self, now: Time, slot: usize) {
        let Some(entry) = self.table.entry(slot) else { return };
        if entry.session.take_back(now) {
            entry.budget.take_back();
            entry.waits = Waits::Turn;
            self.counters.taken_back += 1;
            let target = entry.target;
            self.reconnect.lane(target).waiting.push_front(slot);
            self.table.wake(slot);
        }
    }

    /// A target has answered a SYN; the handshake took so long.
    pub(super) fn note_handshake(&mut self, target: SocketAddr, handshake: Duration) {
        let at = self.reconnect.place(target);
        let Some(lane) = self.reconnect.lanes.get(at) else { return };
        lane.health.answered(handshake);
        if lane.suspect {
            self.trust(at);
        }
    }

    /// A target has answered a session: if it had been silent, it is there for others, too.
    pub(super) fn note_answer(&mut self, now: Time, target: SocketAddr, answer: Answer, connecting: bool) {
        let lane = self.reconnect.lane(target);
        // A reset may come from a host whose service is not up yet.
        let serves = matches!(answer, Answer::Accepted | Answer::OutOfOrder | Answer::Duplicate);
        if lane.suspect && connecting && answer == Answer::Reset {
            lane.health.refused();
        }
        if serves {
            if lane.suspect {
                lane.health.recheck();
            }
            lane.awaited = None;
            if lane.heard.replace(now).is_some_and(|last| now - last >= SILENCE) {
                self.hasten(now, Some(target));
            }
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
