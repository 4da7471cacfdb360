//! On the assistant: which tcpcopy a response belongs to, and what becomes of those of nobody.
//!
//! Sans-IO; one [`Router`] per worker owns its flows, and imports `wire` only. Inputs are
//! [`Router::connect`], [`Router::claim`], [`Router::release`], [`Router::disconnect`],
//! [`Router::handle_response`] and [`Router::handle_timeout`]; after each of them
//! [`Router::poll_verdict`] and [`Router::poll_evicted`] are to be drained. Everything is O(1) per
//! packet and per claim.
//!
//! A flow is, one after the other:
//!
//! | state | its responses are |
//! |---|---|
//! | unknown | held for a moment, in case their claim is on its way; then unclaimed |
//! | claimed over a live connection | forwarded |
//! | orphaned: its claimer's connection is gone | dropped; anybody may claim the flow |
//! | released | dropped, as the target may still retransmit; anybody may claim the flow |
//! | foreign: unclaimed, with `unclaimed = accept` | let through at once |
//!
//! Orphaned, released and foreign flows are forgotten when the target has been silent on them for
//! [`Settings::linger`]. That is longer than TCP's longest retransmission interval, so that with
//! `unclaimed = accept` no response of a flow that was once claimed reaches a real client. For the
//! same reason nothing is let through during the first [`Settings::settle`]: a tcpcopy of before
//! may be on its way back. A SYN is held in every state but the claimed one: it opens a new
//! connection on the flow, whose claim may be on its way.

mod hold;
mod owners;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::wire::{FlowId, FlowKey, Packet, Prefix, Tally, TcpHeader, Time};
use hold::{Hold, Waiting};
use owners::{OwnerId, Owners};
use table::{Slot, Table};

/// How a [`Router`] is to work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The services whose flows may be claimed.
    pub targets: Vec<SocketAddr>,
    /// The clients whose flows may be claimed; none means all.
    pub clients: Vec<Prefix>,
    /// What becomes of responses that nobody claims.
    pub unclaimed: Unclaimed,
    /// How long a response waits for its claim.
    pub hold: Duration,
    /// How many responses may wait; more are dropped.
    pub max_held: usize,
    /// How many flows may be claimed, and how many be remembered besides.
    pub max_flows: usize,
    /// A claimed flow without a response for this long is given up.
    pub max_idle: Duration,
    /// A busy table refuses claims rather than give up a flow that had a response this recently.
    pub busy: Duration,
    /// How long the target must be silent on an unowned flow until it is forgotten.
    pub linger: Duration,
    /// How long after the start nothing is let through.
    pub settle: Duration,
}

impl Settings {
    /// The usual ones.
    pub fn new(targets: Vec<SocketAddr>, unclaimed: Unclaimed) -> Self {
        Self {
            targets,
            clients: Vec::new(),
            unclaimed,
            hold: Duration::from_millis(200),
            max_held: 16 << 10,
            max_flows: 256 << 10,
            max_idle: Duration::from_secs(3600),
            busy: Duration::from_secs(10),
            linger: Duration::from_secs(180),
            settle: Duration::from_secs(10),
        }
    }
}

/// What becomes of responses that nobody claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclaimed {
    /// They end here, when they come.
    Drop,
    /// They go on, once nobody claimed them in time.
    Accept,
}

/// A connection of a claimer, by a number the caller never uses twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId(pub u64);

/// A claimer across its reconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The tcpcopy process.
    pub instance: u64,
    /// Its worker.
    pub worker: u16,
}

/// Why a claim is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is another live connection's.
    Taken,
    /// The server is none of the targets.
    ForeignTarget,
    /// The client is none of those whose responses are taken, or none that the claimer may speak for.
    ForeignClient,
    /// The table is full of busy flows.
    TableFull,
    /// The connection is not known, or was replaced by a later one of its claimer.
    NotConnected,
}

/// What is to be done with a response now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Send its header, count what came of it ([`Router::count`]), and drop the packet.
    Forward(ConnId, FlowId),
    /// Nothing: it waits for its claim. With [`Unclaimed::Accept`] the packet's verdict comes from
    /// [`Router::poll_verdict`]; with [`Unclaimed::Drop`] the packet is dropped.
    Held,
    /// Drop the packet; it is counted.
    Drop,
    /// Let the packet through; it is counted.
    Accept,
}

/// A late verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet ends here.
    Drop,
    /// It goes on.
    Accept,
}

/// A response that beat its claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its header.
    pub header: TcpHeader,
    /// When it came.
    pub arrived: Time,
}

/// What became of a response. Every packet ends in exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Its header was sent to its claimer.
    Forwarded,
    /// The same, after it had waited for the claim.
    ForwardedLate,
    /// Its claimer reads too slowly: dropped.
    TunnelFull,
    /// Its claimer is away: dropped.
    Orphaned,
    /// Its claimer had given the flow up: dropped.
    Released,
    /// Nobody claimed it: dropped.
    UnclaimedDropped,
    /// Nobody claimed it: let through.
    UnclaimedAccepted,
    /// Nobody has claimed it, and too many wait: dropped.
    HoldFull,
    /// No TCP packet that can be read: dropped.
    Unreadable,
}

crate::counted!(Outcome {
    Forwarded => "forwarded",
    ForwardedLate => "forwarded_late",
    TunnelFull => "tunnel_full",
    Orphaned => "orphaned",
    Released => "released",
    UnclaimedDropped => "unclaimed_dropped",
    UnclaimedAccepted => "unclaimed_accepted",
    HoldFull => "hold_full",
    Unreadable => "unreadable",
});

/// Counters since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Responses by what became of them, apart from those that wait.
    pub outcomes: Tally<Outcome>,
    /// Claims taken, those made again included.
    pub claims: u64,
    /// Claims refused as another's.
    pub refused_taken: u64,
    /// Claims refused for their target.
    pub refused_target: u64,
    /// Claims refused for their client.
    pub refused_client: u64,
    /// Claims refused because the table is full of busy flows.
    pub refused_full: u64,
    /// Claimed flows given up to make room.
    pub evicted: u64,
    /// Claimed flows given up after a long idle time.
    pub expired: u64,
}

impl Counters {
    /// Adds another router's counters to these.
    pub fn merge(&mut self, other: &Self) {
        self.outcomes.merge(&other.outcomes);
        self.claims += other.claims;
        self.refused_taken += other.refused_taken;
        self.refused_target += other.refused_target;
        self.refused_client += other.refused_client;
        self.refused_full += other.refused_full;
        self.evicted += other.evicted;
        self.expired += other.expired;
    }
}

/// A claimed flow.
#[derive(Debug)]
struct Claimed {
    owner: OwnerId,
    /// Over which of the owner's connections it was claimed.
    epoch: u32,
    flow: FlowId,
}

/// A flow that is nobody's, and remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ownerless {
    Released,
    Foreign,
}

/// Flows to claimers, of one worker. See the module for the order of calls.
#[derive(Debug)]
pub struct Router {
    settings: Settings,
    targets: HashSet<SocketAddr>,
    owners: Owners,
    flows: Table<Claimed>,
    by_id: HashMap<(OwnerId, FlowId), Slot>,
    ownerless: Table<Ownerless>,
    hold: Hold,
    settled: Time,
    verdicts: VecDeque<(u32, Verdict)>,
    evicted: VecDeque<(ConnId, FlowId)>,
    counters: Counters,
}

/// How many flows one [`Router::handle_timeout`] forgets at most.
const BUDGET: usize = 1024;

impl Router {
    /// A router that knows no flow.
    pub fn new(now: Time, settings: Settings) -> Self {
        Self {
            targets: settings.targets.iter().copied().collect(),
            owners: Owners::default(),
            flows: Table::default(),
            by_id: HashMap::new(),
            ownerless: Table::default(),
            hold: Hold::new(settings.hold, settings.max_held),
            settled: now + settings.settle,
            verdicts: VecDeque::new(),
            evicted: VecDeque::new(),
            counters: Counters::default(),
            settings,
        }
    }

    /// Goes by other settings from now on; flows that were claimed stay claimed. What becomes of unclaimed responses
    /// does not change: those that wait were promised it.
    pub fn configure(&mut self, settings: Settings) {
        self.targets = settings.targets.iter().copied().collect();
        self.hold.configure(settings.hold, settings.max_held);
        self.settings = Settings { unclaimed: self.settings.unclaimed, ..settings };
    }

    /// A claimer connects, which may claim the flows of `clients` only, if it is not `None`. The claims of its earlier
    /// connection are orphaned until it makes them again. Returns that connection if it still seemed alive: it is to be closed.
    pub fn connect(
        &mut self,
        conn: ConnId,
        identity: Identity,
        clients: Option<Arc<[Prefix]>>,
    ) -> Option<ConnId> {
        self.owners.connect(conn, identity, clients)
    }

    /// A connection is gone: its claims are orphaned.
    pub fn disconnect(&mut self, conn: ConnId) {
        self.owners.disconnect(conn);
    }

    /// A claim. Returns the responses that have been waiting for it, to be sent and counted
    /// ([`Outcome::ForwardedLate`]).
    pub fn claim(
        &mut self,
        now: Time,
        conn: ConnId,
        flow: FlowId,
        key: FlowKey,
    ) -> Result<Vec<Held>, Refusal> {
        let claimed = self.take(now, conn, flow, key);
        match claimed {
            Ok(()) => self.counters.claims += 1,
            Err(Refusal::Taken) => self.counters.refused_taken += 1,
            Err(Refusal::ForeignTarget) => self.counters.refused_target += 1,
            Err(Refusal::ForeignClient) => self.counters.refused_client += 1,
            Err(Refusal::TableFull) => self.counters.refused_full += 1,
            Err(Refusal::NotConnected) => {}
        }
        claimed?;
        let waiting = self.hold.take(&key);
        if self.settings.unclaimed == Unclaimed::Accept {
            self.verdicts.extend(waiting.iter().map(|waiting| (waiting.packet, Verdict::Drop)));
        }
        Ok(waiting.iter().map(|waiting| waiting.held).collect())
    }

    fn take(&mut self, now: Time, conn: ConnId, flow: FlowId, key: FlowKey) -> Result<(), Refusal> {
        let (owner, epoch) = self.owners.of(conn).ok_or(Refusal::NotConnected)?;
        if !self.targets.contains(&key.server) {
            return Err(Refusal::ForeignTarget);
        }
        let clients = &self.settings.clients;
        let taken = clients.is_empty() || clients.iter().any(|prefix| prefix.contains(key.client.ip()));
        if !taken || !self.owners.may_claim(owner, key.client.ip()) {
            return Err(Refusal::ForeignClient);
        }
        if let Some(slot) = self.flows.find(&key) {
            let theirs = self.flows.value(slot).is_some_and(|claimed| {
                claimed.owner != owner && self.owners.live(claimed.owner, claimed.epoch).is_some()
            });
            if theirs {
                return Err(Refusal::Taken);
            }
            self.forget(slot);
        } else if self.flows.len() >= self.settings.max_flows {
            self.make_room(now)?;
        }
        if let Some(slot) = self.ownerless.find(&key) {
            self.ownerless.remove(slot);
        }
        // An id names one flow: a claimer that uses it again has given the other one up.
        if let Some(slot) = self.by_id.get(&(owner, flow)).copied() {
            self.forget(slot);
        }
        let slot = self.flows.insert(now, key, Claimed { owner, epoch, flow });
        self.by_id.insert((owner, flow), slot);
        self.owners.hold(owner);
        Ok(())
    }

    /// A claim is given up. One that is not held is passed over: it was refused, or evicted.
    pub fn release(&mut self, now: Time, conn: ConnId, flow: FlowId) {
        let Some((owner, _)) = self.owners.of(conn) else { return };
        let Some(slot) = self.by_id.get(&(owner, flow)).copied() else { return };
        if let Some(key) = self.forget(slot) {
            self.remember(now, key, Ownerless::Released);
        }
    }

    /// A response. `packet` is how [`Router::poll_verdict`] will call it.
    pub fn handle_response(&mut self, now: Time, packet: u32, response: &Packet<'_>) -> Disposition {
        let key = FlowKey { client: response.dst, server: response.src };
        if let Some(slot) = self.flows.find(&key) {
            match self.responsible(now, slot) {
                Responsible::Conn(conn, flow) => {
                    self.flows.touch(slot, now);
                    return Disposition::Forward(conn, flow);
                }
                Responsible::Away if !response.header.flags.syn() => {
                    self.flows.touch(slot, now);
                    return self.end(Outcome::Orphaned);
                }
                Responsible::Away => self.flows.touch(slot, now),
                Responsible::Forgotten => {
                    self.forget(slot);
                }
            }
        } else if !self.targets.contains(&key.server) {
            // It can never be claimed: our rules do not queue such packets, those of others may.
            return self.end(match self.settings.unclaimed {
                Unclaimed::Drop => Outcome::UnclaimedDropped,
                Unclaimed::Accept => Outcome::UnclaimedAccepted,
            });
        } else if let Some(slot) = self.ownerless.find(&key) {
            let fresh = now < self.ownerless.last(slot) + self.settings.linger;
            match self.ownerless.value(slot).copied().filter(|_| fresh) {
                Some(state) if !response.header.flags.syn() => {
                    self.ownerless.touch(slot, now);
                    return self.end(match state {
                        Ownerless::Released => Outcome::Released,
                        Ownerless::Foreign => Outcome::UnclaimedAccepted,
                    });
                }
                Some(_) => self.ownerless.touch(slot, now),
                None => self.ownerless.remove(slot),
            }
        }
        let held = Held { header: response.header, arrived: now };
        if self.hold.put(Waiting { key, packet, held }) {
            Disposition::Held
        } else {
            self.end(Outcome::HoldFull)
        }
    }

    /// Counts what the caller made of a response: of one to forward, or of bytes that are none.
    pub fn count(&mut self, outcome: Outcome) {
        self.counters.outcomes.count(outcome);
    }

    /// When [`Router::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        let flow = self.flows.idlest().map(|slot| self.flows.last(slot) + self.patience(slot));
        let ownerless = self.ownerless.idlest().map(|slot| self.ownerless.last(slot) + self.settings.linger);
        [self.hold.deadline(), flow, ownerless].into_iter().flatten().min()
    }

    /// Ends waits for claims, and forgets flows whose time is over.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(waiting) = self.hold.expired(now) {
            self.give_up(now, &waiting);
        }
        for _ in 0..BUDGET {
            let Some(slot) = self.flows.idlest() else { break };
            if now < self.flows.last(slot) + self.patience(slot) {
                break;
            }
            if self.evict(slot) {
                self.counters.expired += 1;
            }
        }
        for _ in 0..BUDGET {
            let Some(slot) = self.ownerless.idlest() else { break };
            if now < self.ownerless.last(slot) + self.settings.linger {
                break;
            }
            self.ownerless.remove(slot);
        }
    }

    /// The next late verdict; there are none with [`Unclaimed::Drop`].
    pub fn poll_verdict(&mut self) -> Option<(u32, Verdict)> {
        self.verdicts.pop_front()
    }

    /// The next claim that was given up without its claimer's wish, which may make it again.
    pub fn poll_evicted(&mut self) -> Option<(ConnId, FlowId)> {
        self.evicted.pop_front()
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many flows are claimed, orphans included.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// How many responses wait for a claim.
    pub fn held(&self) -> usize {
        self.hold.len()
    }

    fn end(&mut self, outcome: Outcome) -> Disposition {
        self.counters.outcomes.count(outcome);
        if outcome == Outcome::UnclaimedAccepted { Disposition::Accept } else { Disposition::Drop }
    }

    fn responsible(&self, now: Time, slot: Slot) -> Responsible {
        let Some(claimed) = self.flows.value(slot) else { return Responsible::Forgotten };
        match self.owners.live(claimed.owner, claimed.epoch) {
            Some(conn) => Responsible::Conn(conn, claimed.flow),
            None if now < self.flows.last(slot) + self.settings.linger => Responsible::Away,
            None => Responsible::Forgotten,
        }
    }

    /// How long a claimed flow may be without a response.
    fn patience(&self, slot: Slot) -> Duration {
        let live = self
            .flows
            .value(slot)
            .is_some_and(|claimed| self.owners.live(claimed.owner, claimed.epoch).is_some());
        if live { self.settings.max_idle } else { self.settings.linger }
    }

    /// Nobody claimed a response in time.
    fn give_up(&mut self, now: Time, waiting: &Waiting) {
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

    fn remember(&mut self, now: Time, key: FlowKey, state: Ownerless) {
        if let Some(slot) = self.ownerless.find(&key) {
            self.ownerless.remove(slot);
        } else if self.ownerless.len() >= self.settings.max_flows
            && let Some(slot) = self.ownerless.idlest()
        {
            self.ownerless.remove(slot);
        }
        self.ownerless.insert(now, key, state);
    }

    /// Gives up the flow that has been idle for longest, unless even that one is busy.
    fn make_room(&mut self, now: Time) -> Result<(), Refusal> {
        let slot = self.flows.idlest().ok_or(Refusal::TableFull)?;
        let live = self.patience(slot) == self.settings.max_idle;
        if live && now < self.flows.last(slot) + self.settings.busy {
            return Err(Refusal::TableFull);
        }
        if self.evict(slot) {
            self.counters.evicted += 1;
        }
        Ok(())
    }

    /// Gives up a flow; `true` if somebody was still interested, who will be told.
    fn evict(&mut self, slot: Slot) -> bool {
        let told = self.flows.value(slot).and_then(|claimed| {
            self.owners.live(claimed.owner, claimed.epoch).map(|conn| (conn, claimed.flow))
        });
        self.evicted.extend(told);
        self.forget(slot);
        told.is_some()
    }

    /// Removes a claimed flow and all that refers to it.
    fn forget(&mut self, slot: Slot) -> Option<FlowKey> {
        let (key, claimed) = self.flows.take(slot)?;
        self.by_id.remove(&(claimed.owner, claimed.flow));
        self.owners.let_go(claimed.owner);
        Some(key)
    }
}

enum Responsible {
    Conn(ConnId, FlowId),
    Away,
    Forgotten,
}
