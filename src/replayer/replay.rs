//! The replayer: packets to sessions, sessions' wishes fulfilled.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::address::candidates;
use super::budget::Budget;
use super::claims::Claims;
use super::config::Config;
use super::counters::{Counters, Unused};
use super::reconnect::{Reconnect, Waits};
use super::table::Table;
use crate::session::{Answer, End, Event, Learned, MidStream, Session};
use crate::wire::{Counted, FlowId, FlowKey, Outgoing, Packet, TcpHeader, Time};

/// What to tell the intercepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Responses for the flow are ours, under this name.
    Claim(FlowId, FlowKey),
    /// They no longer are.
    Release(FlowId, FlowKey),
}

/// Sessions that [`Replayer::backlog`] looks at in one call.
const LOOKED_AT: usize = 10_000;

/// Requests that have been captured and have not left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backlog {
    /// Sessions with such a request, of those looked at.
    pub waiting: u64,
    /// The longest time since the capture of one of them.
    pub oldest: Duration,
}

impl Backlog {
    /// Adds another worker's.
    pub fn merge(&mut self, other: &Self) {
        self.waiting += other.waiting;
        self.oldest = self.oldest.max(other.oldest);
    }
}

/// A segment to send; its payload is in the [`Outgoing`] that was passed.
#[derive(Clone, Copy, Debug)]
pub struct Transmit {
    /// The replayed client.
    pub src: SocketAddr,
    /// The target.
    pub dst: SocketAddr,
    /// The header; see [`Outgoing::finish`].
    pub header: TcpHeader,
    /// Payload bytes of a segment. What is longer is a train of segments, of which only the last may be short: to be cut,
    /// with PSH and FIN in the last one.
    pub segment: u32,
}

/// One worker's sessions. See the module for the calling contract.
#[derive(Debug)]
pub struct Replayer {
    config: Arc<Config>,
    pub(super) table: Table,
    pub(super) claims: VecDeque<Claim>,
    pub(super) claiming: Claims,
    /// An intercept is there to take the responses.
    pub(super) reachable: bool,
    pub(super) reconnect: Reconnect,
    stopping: bool,
    /// A session has fallen behind its client since [`Replayer::take_behind`].
    behind: bool,
    /// See [`Replayer::set_memory_besides`].
    besides: usize,
    pub(super) counters: Counters,
    /// What sessions have learned of each target's responses.
    learned: Vec<(SocketAddr, Arc<Learned>)>,
    /// Where [`Replayer::backlog`] continues.
    looked_at: usize,
}

impl Replayer {
    /// A replayer without sessions, and without an intercept: see [`Replayer::set_reachable`].
    pub fn new(config: Arc<Config>) -> Self {
        Self {
            reconnect: Reconnect::new(&config),
            config,
            table: Table::default(),
            claims: VecDeque::new(),
            claiming: Claims::default(),
            reachable: false,
            stopping: false,
            behind: false,
            besides: 0,
            counters: Counters::default(),
            learned: Vec::new(),
            looked_at: 0,
        }
    }

    /// What has been counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Live sessions.
    pub fn sessions(&self) -> usize {
        self.table.len()
    }

    /// Upstream bytes held.
    pub fn buffered(&self) -> usize {
        self.table.buffered()
    }

    /// Memory that the sessions take, about, with what is taken besides: what [`Config::memory_limit`] is for.
    pub fn memory(&self) -> usize {
        let claims = self.claims.capacity() * size_of::<Claim>() + self.claiming.memory();
        self.table.memory().saturating_add(self.besides + claims)
    }

    /// Gives memory back that sessions took which have ended. To be called every few seconds.
    pub fn shrink(&mut self) {
        self.table.shrink();
        self.claiming.shrink();
        if self.claims.len() < self.claims.capacity() / 4 {
            self.claims.shrink_to(2 * self.claims.len());
        }
    }

    /// From now on so many bytes of the limit are taken by what is not a session's: the buffers of the tunnels.
    pub fn set_memory_besides(&mut self, bytes: usize) {
        self.besides = bytes;
    }

    /// Whether, since this was asked last, a session has fallen behind its client for no other reason than
    /// that packets were not handed in, or out, at once.
    pub fn take_behind(&mut self) -> bool {
        std::mem::take(&mut self.behind)
    }

    /// Goes by another configuration, which is of the same worker among as many: sessions that begin follow it, and the
    /// limits hold at once. Those that live keep their settings, their target, their address and their number; those of
    /// a mapping that is no more, and those that are not selected any more, end when they have sent what they hold, because
    /// no more is captured of them; and those of a forbidden target end at once.
    pub fn configure(&mut self, now: Time, config: Arc<Config>) {
        self.config = config;
        self.reconnect.configure(&self.config);
        self.end_forbidden(now);
        let forsaken = self.table.iter().map(|(_, entry)| entry.connection);
        let forsaken = forsaken.filter(|connection| {
            self.config.target_of(connection.server).is_none() || !self.config.selects(connection.client)
        });
        for connection in forsaken.collect::<Vec<_>>() {
            self.leave(now, &connection);
        }
    }

    fn end_forbidden(&mut self, now: Time) {
        let forbidden = self.table.iter().filter(|(_, entry)| self.config.forbidden.contains(&entry.target));
        for slot in forbidden.map(|(slot, _)| slot).collect::<Vec<_>>() {
            if let Some(entry) = self.table.entry(slot) {
                entry.session.end(now, End::Forbidden);
            }
            self.table.wake(slot);
        }
    }

    /// Takes in a captured packet of a client.
    pub fn handle_client(&mut self, now: Time, packet: &Packet<'_>) {
        let (len, copies) = (u64::from(packet.header.payload_len), u64::from(self.config.copies));
        match self.sessions_for(now, packet) {
            Ok(first) => {
                let (mut taken, mut reached) = (None, 0);
                let mut next = Some(first);
                while let Some(slot) = next {
                    next = self.table.sibling(slot);
                    let Some(entry) = self.table.entry(slot) else { continue };
                    reached += 1;
                    let what = entry.session.handle_client(now, &packet.header, packet.payload);
                    taken.get_or_insert(what);
                    let granted = entry.budget.capture(&packet.header);
                    if entry.waits == Waits::Request && (granted || entry.session.client_is_done()) {
                        self.ask(now, slot);
                    }
                    self.connect_if_new(now, slot);
                    self.table.wake(slot);
                }
                if let Some(taken) = taken {
                    self.counters.taken.count(taken);
                }
                // A connection may be older than the number of copies.
                let copies = copies.max(reached);
                self.counters.captured_bytes += len * copies;
                self.counters.unused_bytes.add(Unused::NoSession, len * (copies - reached));
            }
            Err(unused) => {
                self.counters.captured_bytes += len * copies;
                self.counters.unused.count(unused);
                self.counters.unused_bytes.add(unused, len * copies);
            }
        }
    }

    /// Bytes of a packet to the target, at most.
    pub(super) fn mtu(&self, target: IpAddr) -> u16 {
        self.config.mtu_toward(target)
    }

    /// A session that begins asks for its flow at once, so that its claim leaves in this turn.
    fn connect_if_new(&mut self, now: Time, slot: usize) {
        while let Some(entry) = self.table.entry(slot)
            && entry.flow.is_none()
            && entry.session.wants_connection()
            && let Some(event) = entry.session.poll_event()
        {
            self.handle_event(now, slot, event);
        }
    }

    /// The first of the sessions that a packet is for, made if it begins one.
    fn sessions_for(&mut self, now: Time, packet: &Packet<'_>) -> Result<usize, Unused> {
        let target = self.config.target_of(packet.dst).ok_or(Unused::NotRouted)?;
        let key = FlowKey { client: packet.src, server: packet.dst };
        let chosen = self.config.selects(key.client);
        if !chosen && self.table.of_connection(&key).is_none() {
            return Err(Unused::NotSelected);
        }
        let flags = packet.header.flags;
        let syn = flags.syn();
        if syn && (flags.ack() || flags.fin() || flags.rst()) {
            return Err(Unused::Flags);
        }
        if let Some(first) = self.table.of_connection(&key) {
            let reused = |session: &Session| syn && session.is_new_connection(&packet.header);
            match self.table.entry(first) {
                Some(entry) if !reused(&entry.session) => return Ok(first),
                Some(_) | None => self.leave(now, &key),
            }
        }
        if !chosen {
            return Err(Unused::NotSelected);
        }
        let joins = self.config.session.mid_stream == MidStream::Join
            && !packet.payload.is_empty()
            && !flags.rst()
            && !flags.fin();
        if !syn && !joins {
            return Err(Unused::NoSession);
        }
        self.check_limits()?;
        Ok(self.begin(now, packet, key, target))
    }

    /// Whether there is room for a session. What remains below the memory limit is for those that are
    /// there.
    fn check_limits(&mut self) -> Result<(), Unused> {
        if self.stopping || self.table.len() + usize::from(self.config.copies) > self.config.max_sessions {
            return Err(Unused::SessionLimit);
        }
        // A place that another session has left costs nothing.
        let copies = usize::from(self.config.copies);
        let part = if self.table.has_places(copies) { 31 } else { 30 };
        if self.memory() > self.config.memory_limit / 32 * part {
            return Err(Unused::MemoryLimit);
        }
        Ok(())
    }

    /// Makes the sessions of a connection; returns the first.
    fn begin(&mut self, now: Time, packet: &Packet<'_>, key: FlowKey, target: SocketAddr) -> usize {
        let mut first = 0;
        let learned = self.learned_of(target);
        // The last one inserted is the first of the chain.
        for copy in (0..self.config.copies).rev() {
            let (config, learned) = (Arc::clone(&self.config.session), Arc::clone(&learned));
            let session = if packet.header.flags.syn() {
                Session::open(now, config, learned, &packet.header)
            } else {
                Session::join(now, config, learned, &packet.header)
            };
            let budget = Budget::new(packet.header.seq.add(u32::from(packet.header.flags.syn())));
            first = self.table.insert(session, budget, key, copy, target);
            self.counters.started += 1;
        }
        first
    }

    /// What sessions have learned of a target's responses. Targets are few.
    fn learned_of(&mut self, target: SocketAddr) -> Arc<Learned> {
        if let Some((_, learned)) = self.learned.iter().find(|(address, _)| *address == target) {
            return Arc::clone(learned);
        }
        let learned = Arc::<Learned>::default();
        self.learned.push((target, Arc::clone(&learned)));
        learned
    }

    /// Looks at some of the sessions, at others each time, for requests that have been captured and wait to leave.
    pub fn backlog(&mut self, now: Time) -> Backlog {
        let (table, mut backlog) = (&self.table, Backlog::default());
        let slots = table.slots();
        if self.looked_at >= slots {
            self.looked_at = 0;
        }
        let end = slots.min(self.looked_at + LOOKED_AT);
        for since in (self.looked_at..end).filter_map(|slot| table.waiting_since(slot)) {
            backlog.waiting += 1;
            backlog.oldest = backlog.oldest.max(now - since);
        }
        self.looked_at = end;
        backlog
    }

    /// The client has opened a new connection from the same port: the old one's sessions end by
    /// themselves.
    fn leave(&mut self, now: Time, key: &FlowKey) {
        let mut next = self.table.of_connection(key);
        while let Some(slot) = next {
            next = self.table.sibling(slot);
            if let Some(entry) = self.table.entry(slot)
                && !entry.session.client_is_done()
            {
                entry.session.client_is_gone(now);
            }
            self.table.wake(slot);
        }
        self.table.detach(key);
    }

    /// Takes in a header that the target sent, where this host takes the responses itself.
    pub fn handle_response(&mut self, now: Time, flow: &FlowKey, header: &TcpHeader) {
        match self.table.id_of(flow) {
            Some(id) => self.handle_target(now, id, header),
            None => self.counters.answers.count(Answer::Stray),
        }
    }

    /// Takes in a header that the target sent, under the name its flow was claimed by.
    pub fn handle_target(&mut self, now: Time, id: FlowId, header: &TcpHeader) {
        let Some((slot, entry)) = self.table.of_flow(id) else {
            self.counters.answers.count(Answer::Stray);
            return;
        };
        let (target, connecting) = (entry.target, entry.session.is_connecting());
        let handshake = entry.budget.answered(now, header);
        let answer = entry.session.handle_target(now, header);
        self.counters.answers.count(answer);
        self.table.wake(slot);
        if let Some(handshake) = handshake {
            self.note_handshake(target, handshake);
        }
        self.note_answer(now, target, answer, connecting);
    }

    /// Deadlines have passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.look_at_targets(now);
        self.expire_claims(now);
        while let Some((slot, entry)) = self.table.expired(now) {
            entry.session.handle_timeout(now);
            let asks = matches!(entry.waits, Waits::Until(due) if now >= due);
            if let Some(since) = entry.session.stalled_since() {
                let target = entry.target;
                self.reconnect.miss(target, since);
            }
            if asks {
                self.ask(now, slot);
            }
            self.table.wake(slot);
        }
        self.take_turns(now);
    }

    /// Ends all sessions, with a reset to the target each. No new ones begin.
    pub fn shut_down(&mut self, now: Time) {
        self.stopping = true;
        let slots: Vec<usize> = self.table.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            if let Some(entry) = self.table.entry(slot) {
                entry.session.end(now, End::Shed);
            }
            self.table.wake(slot);
        }
    }

    /// When [`Replayer::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        let deadlines = [self.table.next_deadline(), self.reconnect.due(self.reachable), self.claiming.due()];
        deadlines.into_iter().flatten().min()
    }

    /// The next thing to tell the intercepts.
    pub fn poll_claim(&mut self) -> Option<Claim> {
        self.claims.pop_front()
    }

    /// Every claim in force, for an intercept that has just been connected.
    pub fn claims(&self) -> impl Iterator<Item = (FlowId, FlowKey)> + '_ {
        self.table.iter().filter_map(|(_, entry)| {
            let (id, client) = entry.flow?;
            Some((id, FlowKey { client, server: entry.target }))
        })
    }

    /// The next segment to send; its payload is in `out`.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Outgoing) -> Option<Transmit> {
        while let Some(slot) = self.table.awake() {
            if let Some(entry) = self.table.entry(slot) {
                if let Some(header) = entry.session.poll_transmit(now, out.payload()) {
                    let Some((_, src)) = entry.flow else { continue };
                    let (dst, segment) = (entry.target, entry.session.segment_size());
                    entry.budget.sent(now, &header);
                    if header.flags.syn() {
                        self.reconnect.syn_sent(now, dst);
                    }
                    self.counters.segments += u64::from(header.payload_len.div_ceil(segment).max(1));
                    self.counters.bytes += u64::from(header.payload_len);
                    return Some(Transmit { src, dst, header, segment });
                }
                if let Some(event) = entry.session.poll_event() {
                    self.handle_event(now, slot, event);
                    continue;
                }
            }
            self.table.settle(&mut self.counters.ledger);
            if self.memory() > self.config.memory_limit {
                self.shed(now);
            }
        }
        None
    }

    fn handle_event(&mut self, now: Time, slot: usize, event: Event) {
        match event {
            Event::Connect => self.ask(now, slot),
            Event::Exchange(exchange) => {
                self.counters.exchanges.count(exchange.outcome);
                self.counters.lag.record(exchange.late);
                self.counters.lag_max = self.counters.lag_max.max(exchange.late);
                if let Some(last) = exchange.last_byte {
                    self.counters.response_time.record(last);
                }
            }
            Event::Skipped(bytes) => self.counters.skipped_bytes += bytes,
            Event::Behind => self.behind = true,
            Event::Early => self.counters.early += 1,
            Event::Unanswered => self.counters.unanswered += 1,
            Event::Ended(why) => {
                self.counters.ended.count(why);
                if let Some(entry) = self.table.entry(slot) {
                    let (client, target) = (entry.connection.client, entry.target);
                    tracing::debug!(session = slot, %client, %target, reason = why.name(), "session ended");
                }
                self.table.account(slot, &mut self.counters.ledger);
                self.release(slot);
                // Its place in the queue goes with the next `settle`.
                self.table.remove(slot);
            }
        }
    }

    /// Gives a session an address and port for a new connection, and claims the responses. It connects when the claim is
    /// told, see [`Replayer::handle_claim_told`].
    pub(super) fn connect(&mut self, now: Time, slot: usize) {
        if !self.table.entry(slot).is_some_and(|entry| entry.session.wants_connection()) {
            return;
        }
        self.release(slot);
        let Some(entry) = self.table.entry(slot) else { return };
        let (client, target, copy) = (entry.connection.client, entry.target, entry.copy);
        let refused = entry.refused;
        let mut outside = true;
        let allowed = |local: &SocketAddr| {
            let allowed = self.claiming.allow(local.ip(), target);
            outside &= !allowed;
            allowed
        };
        let free = |local: &SocketAddr| self.table.is_free(&FlowKey { client: *local, server: target });
        let candidates = candidates(&self.config, client, target, copy).filter(allowed);
        let Some(local) = candidates.skip(usize::from(refused)).find(free) else {
            let why = if outside { End::OutOfScope } else { End::Shed };
            self.counters.no_address += u64::from(!outside);
            if let Some(entry) = self.table.entry(slot) {
                entry.session.end(now, why);
            }
            return;
        };
        if let Some(id) = self.table.assign(slot, local) {
            self.claims.push_back(Claim::Claim(id, FlowKey { client: local, server: target }));
        }
        if let Some(entry) = self.table.entry(slot) {
            entry.waits = Waits::No;
            tracing::debug!(session = slot, %client, %target, address = %local, "session connects");
        }
    }

    pub(super) fn release(&mut self, slot: usize) {
        if let Some((id, flow)) = self.table.unassign(slot) {
            self.claims.push_back(Claim::Release(id, flow));
        }
    }

    /// More is taken than may be: the session that takes most is furthest behind, and ends.
    fn shed(&mut self, now: Time) {
        let Some(slot) = self.table.furthest_behind() else { return };
        let Some(entry) = self.table.entry(slot) else { return };
        entry.session.end(now, End::Shed);
        // At once: the sessions polled before this one's turn must not find the limit exceeded still.
        self.table.account(slot, &mut self.counters.ledger);
        self.table.wake(slot);
    }
}
