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
//!
//! [`Settings::max_flows`] is shared fairly among the claimers, see `shares`.

mod closed;
#[cfg(test)]
mod closed_tests;
mod counters;
mod hold;
mod owners;
mod settings;
#[cfg(test)]
mod share_tests;
mod shares;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::wire::index::Index;
use crate::wire::{FlowId, FlowKey, Packet, Prefix, TcpHeader, Time};
pub use counters::{Counters, Outcome};
use hold::{Hold, Waiting};
use owners::{OwnerId, Owners};
pub use settings::{FLOW_MEMORY, Settings, Unclaimed};
use table::{List, Slot, Table};

/// A connection of a claimer, by a number the caller never uses twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId(pub u64);

/// The party that a claimer's flows are charged to. Tenants have equal shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tenant {
    /// The holder of a tunnel key, by the key's name.
    Key([u8; 4]),
    /// A host, where there is no key.
    Host(IpAddr),
}

/// A claimer across its reconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its tenant.
    pub tenant: Tenant,
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
    /// The table is full, and the claimer has its fair share of it, all of it busy.
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

/// A claimer that lost a flow to another one because it is above its fair share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Displaced {
    /// Its connection.
    pub conn: ConnId,
    /// The flows of all connections of its instance, before the loss.
    pub flows: usize,
    /// The fair share of the instance.
    pub share: usize,
}

/// A claimed flow.
#[derive(Clone, Copy, Debug)]
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
    by_id: Index,
    ownerless: Table<Ownerless>,
    /// All of `ownerless`.
    remembered: List,
    /// No claim over a live connection expires before this.
    next_expiry: Option<Time>,
    displaced: Option<Displaced>,
    hold: Hold,
    settled: Time,
    verdicts: VecDeque<(u32, Verdict)>,
    evicted: VecDeque<(ConnId, FlowId)>,
    /// With [`Unclaimed::Accept`], flows that were claimed and are to stay closed.
    retired: VecDeque<FlowKey>,
    counters: Counters,
}

/// Memory of a flow in its table.
const CLAIMED_MEMORY: usize = Table::<Claimed>::ENTRY;
const REMEMBERED_MEMORY: usize = Table::<Ownerless>::ENTRY;

/// How many flows one [`Router::handle_timeout`] forgets at most.
const BUDGET: usize = 1024;

impl Router {
    /// A router that knows no flow.
    pub fn new(now: Time, settings: Settings) -> Self {
        Self {
            targets: settings.targets.iter().copied().collect(),
            owners: Owners::default(),
            flows: Table::default(),
            by_id: Index::default(),
            ownerless: Table::default(),
            remembered: List::default(),
            next_expiry: None,
            displaced: None,
            hold: Hold::new(settings.hold, settings.max_held),
            settled: now + settings.settle,
            verdicts: VecDeque::new(),
            evicted: VecDeque::new(),
            retired: VecDeque::new(),
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
        let before = self.owners.connect(conn, identity, clients);
        // Claims of before expire sooner than those of a live connection.
        if let Some((owner, _)) = self.owners.of(conn)
            && let Some(slot) = self.owners.flows(owner).idlest()
        {
            self.expire_at(self.flows.last(slot) + self.settings.linger);
        }
        before
    }

    /// A connection is gone: its claims are orphaned.
    pub fn disconnect(&mut self, conn: ConnId) {
        if let Some(owner) = self.owners.disconnect(conn) {
            self.note_orphan(owner);
        }
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
            self.make_room(now, owner)?;
            // The limit may have been lowered: then the table shrinks with each claim.
            if self.flows.len() >= self.settings.max_flows {
                self.make_room(now, owner)?;
            }
        }
        if let Some(slot) = self.ownerless.find(&key) {
            self.ownerless.remove(&mut self.remembered, slot);
        }
        // An id names one flow: a claimer that uses it again has given the other one up.
        if let Some(slot) = self.slot_of(owner, flow) {
            self.forget(slot);
        }
        let list = self.owners.flows_mut(owner);
        let claimed = Claimed { owner, epoch, flow };
        let slot = self.flows.insert(list, now, key, claimed).ok_or(Refusal::TableFull)?;
        self.by_id.insert(&(owner, flow), slot.index(), |slot| name_of(&self.flows, slot));
        self.owners.gained(owner);
        self.expire_at(now + self.settings.max_idle);
        Ok(())
    }

    /// The flow that a claimer calls by that name.
    fn slot_of(&self, owner: OwnerId, flow: FlowId) -> Option<Slot> {
        self.by_id.find(&(owner, flow), |slot| name_of(&self.flows, slot)).and_then(Slot::at)
    }

    /// A claim is given up. One that is not held is passed over: it was refused, or evicted.
    pub fn release(&mut self, now: Time, conn: ConnId, flow: FlowId) {
        let Some((owner, _)) = self.owners.of(conn) else { return };
        let Some(slot) = self.slot_of(owner, flow) else { return };
        if let Some(key) = self.forget(slot) {
            self.remember(now, key, Ownerless::Released);
        }
    }

    /// A response. `packet` is how [`Router::poll_verdict`] will call it.
    pub fn handle_response(&mut self, now: Time, packet: u32, response: &Packet<'_>) -> Disposition {
        let key = FlowKey { client: response.dst, server: response.src };
        if let Some(slot) = self.flows.find(&key) {
            match self.responsible(now, slot) {
                Responsible::Conn(conn, owner, flow) => {
                    self.flows.touch(self.owners.flows_mut(owner), slot, now);
                    return Disposition::Forward(conn, flow);
                }
                Responsible::Away(owner) => {
                    self.flows.touch(self.owners.flows_mut(owner), slot, now);
                    if !response.header.flags.syn() {
                        return self.end(Outcome::Orphaned);
                    }
                }
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
                    self.ownerless.touch(&mut self.remembered, slot, now);
                    return self.end(match state {
                        Ownerless::Released => Outcome::Released,
                        Ownerless::Foreign => Outcome::UnclaimedAccepted,
                    });
                }
                Some(_) => self.ownerless.touch(&mut self.remembered, slot, now),
                None => {
                    self.ownerless.remove(&mut self.remembered, slot);
                }
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
        let orphan = self.owners.first_orphan().map(|(since, _)| since + self.settings.linger);
        let remembered = self.remembered.idlest();
        let ownerless = remembered.map(|slot| self.ownerless.last(slot) + self.settings.linger);
        [self.hold.deadline(), self.next_expiry, orphan, ownerless].into_iter().flatten().min()
    }

    /// Ends waits for claims, and forgets flows whose time is over.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(waiting) = self.hold.expired(now) {
            self.give_up(now, &waiting);
        }
        let mut budget = BUDGET;
        if self.next_expiry.is_some_and(|due| due <= now) {
            self.expire_live(now, &mut budget);
        }
        self.expire_orphans(now, &mut budget);
        for _ in 0..BUDGET {
            let Some(slot) = self.remembered.idlest() else { break };
            if now < self.ownerless.last(slot) + self.settings.linger {
                break;
            }
            self.ownerless.remove(&mut self.remembered, slot);
        }
    }

    /// Gives memory back that flows took which are over. To be called when there is time, every few seconds at most.
    pub fn shrink(&mut self) {
        self.flows.shrink();
        self.by_id.shrink(|slot| name_of(&self.flows, slot));
        self.ownerless.shrink();
        self.hold.shrink();
    }

    /// Memory that flows and the responses that wait take, in bytes.
    pub fn memory(&self) -> usize {
        self.flows.memory() + self.by_id.memory() + self.ownerless.memory() + self.hold.memory()
    }

    /// Claims of claimers that are connected, without a response for too long.
    fn expire_live(&mut self, now: Time, budget: &mut usize) {
        let owners: Vec<_> = self.owners.connected().collect();
        self.next_expiry = None;
        for owner in owners {
            while let Some(slot) = self.owners.flows(owner).idlest() {
                let due = self.flows.last(slot) + self.patience(slot);
                if now < due || *budget == 0 {
                    self.expire_at(due);
                    break;
                }
                *budget -= 1;
                if self.evict(slot) {
                    self.counters.expired += 1;
                }
            }
        }
    }

    /// Claims of claimers that are not connected, without a response for too long.
    fn expire_orphans(&mut self, now: Time, budget: &mut usize) {
        while *budget > 0
            && let Some((since, owner)) = self.owners.first_orphan()
            && since + self.settings.linger <= now
        {
            *budget -= 1;
            match self.owners.flows(owner).idlest() {
                Some(slot) if self.flows.last(slot) + self.settings.linger <= now => {
                    self.forget(slot);
                }
                Some(_) | None => {}
            }
            self.note_orphan(owner);
        }
    }

    /// A claimer is not connected: its flows are over when they have had no response for long enough.
    fn note_orphan(&mut self, owner: OwnerId) {
        if let Some(slot) = self.owners.flows(owner).idlest() {
            self.owners.orphaned(owner, self.flows.last(slot));
        }
    }

    fn expire_at(&mut self, due: Time) {
        self.next_expiry = Some(self.next_expiry.map_or(due, |before| before.min(due)));
    }

    /// The next late verdict; there are none with [`Unclaimed::Drop`].
    pub fn poll_verdict(&mut self) -> Option<(u32, Verdict)> {
        self.verdicts.pop_front()
    }

    /// The next claim that was given up without its claimer's wish, which may make it again.
    pub fn poll_evicted(&mut self) -> Option<(ConnId, FlowId)> {
        self.evicted.pop_front()
    }

    /// The claimer that lost most recently a flow to another one, since this was asked last.
    pub fn take_displaced(&mut self) -> Option<Displaced> {
        self.displaced.take()
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
            Some(conn) => Responsible::Conn(conn, claimed.owner, claimed.flow),
            None if now < self.flows.last(slot) + self.settings.linger => Responsible::Away(claimed.owner),
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

    /// Makes room for a claim: orphans go first, then a flow of the instance that is furthest above its fair share. A
    /// claimer that has its share makes room itself, unless all of its flows are busy.
    fn make_room(&mut self, now: Time, claimer: OwnerId) -> Result<(), Refusal> {
        if let Some((_, orphan)) = self.owners.first_orphan()
            && let Some(slot) = self.owners.flows(orphan).idlest()
        {
            self.forget(slot);
            self.note_orphan(orphan);
            return Ok(());
        }
        let (own, owners) = self.owners.displaced_by(claimer, self.settings.max_flows);
        let idlest = owners.filter_map(|owner| self.owners.flows(owner).idlest());
        let slot = idlest.min_by_key(|slot| self.flows.last(*slot)).ok_or(Refusal::TableFull)?;
        let live = self.patience(slot) == self.settings.max_idle;
        if own && live && now < self.flows.last(slot) + self.settings.busy {
            return Err(Refusal::TableFull);
        }
        if !own && let Some(loser) = self.flows.value(slot).map(|claimed| claimed.owner) {
            let (flows, share) = self.owners.standing(loser, self.settings.max_flows);
            self.displaced = self.owners.conn(loser).map(|conn| Displaced { conn, flows, share });
            self.counters.displaced += 1;
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
        let Claimed { owner, flow, .. } = *self.flows.value(slot)?;
        self.by_id.remove(&(owner, flow), |slot| name_of(&self.flows, slot));
        let (key, _) = self.flows.remove(self.owners.flows_mut(owner), slot)?;
        self.owners.lost(owner);
        if self.settings.unclaimed == Unclaimed::Accept {
            self.retired.push_back(key);
        }
        Some(key)
    }
}

/// How its claimer calls the flow in a slot.
fn name_of(flows: &Table<Claimed>, slot: usize) -> Option<(OwnerId, FlowId)> {
    flows.value(Slot::at(slot)?).map(|claimed| (claimed.owner, claimed.flow))
}

enum Responsible {
    Conn(ConnId, OwnerId, FlowId),
    Away(OwnerId),
    Forgotten,
}
