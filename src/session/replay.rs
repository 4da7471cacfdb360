//! The session itself: ties the client's bytes, the gate and the connection together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::config::{Config, Latency};
use super::connection::{Connection, State};
use super::event::{End, Event, Taken};
use super::exchanges::Reports;
use super::gate::{Decision, Gate};
use super::joining::Joining;
use super::learned::Learned;
use super::ledger::{Fate, Ledger};
use super::receiver::Receiver;
use super::sender::Range;
use super::upstream::{Close, Inserted, Upstream};
use crate::wire::{Flags, Seq, TcpHeader, Time};

/// A session without a packet for this long rests: most connections of many do, and what they take is to be little.
const REST: Duration = Duration::from_secs(2);
/// How long the target may keep its side open after it has acknowledged our FIN.
const LINGER: Duration = Duration::from_secs(60);

/// By how much the initial sequence number of each connection of a session is ahead of the one
/// before it: more than is ever in flight. The bytes of the connection number n, from 0, have the client's sequence
/// numbers plus n times this.
pub const ISS_STEP: u32 = 1 << 24;

/// Where a session stands with its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Captured mid-stream; no request boundary seen yet.
    Joining,
    /// Replaying.
    Live,
    /// Over.
    Ended,
}

/// One replayed connection. See the module for the calling contract.
#[derive(Debug)]
pub struct Session {
    pub(super) config: Arc<Config>,
    pub(super) learned: Arc<Learned>,
    pub(super) client: Client,
    pub(super) upstream: Upstream,
    pub(super) gate: Gate,
    /// `None` while there is none: before [`Session::connect`], and after the target has closed
    /// while the client may still have something to say.
    pub(super) connection: Option<Connection>,
    pub(super) phase: Phase,
    /// A RST for a connection that is no longer ours.
    pub(super) farewell: Option<TcpHeader>,
    pub(super) events: VecDeque<Event>,
    /// A connection was asked for, to begin with this upstream offset.
    pub(super) connecting: Option<u64>,
    /// Where the last burst that passed begins, and when the target first answered it.
    pub(super) burst_start: u64,
    pub(super) first_answer: Option<Time>,
    /// How long after its capture that burst passed.
    pub(super) late: Duration,
    pub(super) reports: Reports,
    pub(super) last_activity: Time,
    /// Buffers may have room for more than is in them.
    pub(super) roomy: bool,
    /// Resets by the target since it last acknowledged something.
    pub(super) resets: u8,
    joining: Joining,
    isn: Option<Seq>,
    syn_seen: bool,
    /// The SYN is not repeated.
    pub(super) syn_once: bool,
    /// Since when the target answers no SYN of the session.
    pub(super) unanswered_since: Option<Time>,
    /// How many connections were opened.
    connections: u32,
    /// How many exchanges are over.
    pub(super) exchanges: u32,
}

impl Session {
    /// A session that begins with its client's SYN. Hand that in afterwards as the first segment: it
    /// may carry data (RFC 7413). All sessions of a target share `learned`.
    pub fn open(now: Time, config: Arc<Config>, learned: Arc<Learned>, syn: &TcpHeader) -> Self {
        let upstream = Upstream::new(syn.seq.add(1));
        let mut session = Self::new(now, config, learned, Client::from_syn(now, syn), upstream);
        session.isn = Some(syn.seq);
        session.request_connection(0);
        session
    }

    /// A session whose connection was captured from `header` on. It waits for the next request
    /// boundary; hand `header` in afterwards as the first segment.
    pub fn join(now: Time, config: Arc<Config>, learned: Arc<Learned>, header: &TcpHeader) -> Self {
        let client = Client::from_segment(now, header);
        let mut session = Self::new(now, config, learned, client, Upstream::new(header.seq));
        session.phase = Phase::Joining;
        session
    }

    fn new(
        now: Time,
        config: Arc<Config>,
        learned: Arc<Learned>,
        client: Client,
        upstream: Upstream,
    ) -> Self {
        Self {
            config,
            learned,
            client,
            upstream,
            gate: Gate::default(),
            connection: None,
            phase: Phase::Live,
            farewell: None,
            events: VecDeque::new(),
            connecting: None,
            burst_start: 0,
            first_answer: None,
            late: Duration::ZERO,
            reports: Reports::default(),
            last_activity: now,
            roomy: false,
            resets: 0,
            joining: Joining::default(),
            isn: None,
            syn_seen: false,
            syn_once: false,
            unanswered_since: None,
            connections: 0,
            exchanges: 0,
        }
    }

    /// Whether a captured SYN opens another connection than this session's.
    pub fn is_new_connection(&self, syn: &TcpHeader) -> bool {
        self.isn != Some(syn.seq)
    }

    /// Upstream bytes held.
    pub fn buffered(&self) -> usize {
        self.upstream.buffered()
    }

    /// Memory that the session takes besides itself, about, with what it holds.
    pub fn memory(&self) -> usize {
        let receiver = self.receiver().map_or(0, Receiver::memory);
        self.upstream.memory() + self.events.capacity() * size_of::<Event>() + receiver
    }

    /// Enters what became of bytes since the last call. Those that have come in are in the ledger
    /// then, or [`Session::buffered`].
    pub fn settle(&mut self, ledger: &mut Ledger) {
        self.upstream.entries.enter(ledger);
    }

    /// Whether the session is over: nothing more will come of it.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Whether the client has ended its side.
    pub fn client_is_done(&self) -> bool {
        self.phase == Phase::Ended || self.upstream.close().is_some()
    }

    /// When the first request that has not left was captured.
    pub fn waiting_since(&self) -> Option<Time> {
        let closed = self.upstream.close().is_some();
        let waiting = self.upstream.waiting().filter(|mark| !closed || mark.offset < self.upstream.end());
        waiting.map(|mark| mark.captured)
    }

    /// Whether [`Session::connect`] is waited for.
    pub fn wants_connection(&self) -> bool {
        self.connecting.is_some() && self.phase == Phase::Live
    }

    /// There is an address and port for the connection that was asked for by [`Event::Connect`].
    /// `max_segment`: TCP bytes without options that fit a packet to the target.
    pub fn connect(&mut self, now: Time, max_segment: u16) {
        let Some(base) = self.connecting.take() else { return };
        // The first connection has the client's sequence numbers. Later ones are well ahead of all
        // before them (RFC 9293, 3.4.1), so that the target can tell them apart: it may still hold an
        // earlier one on the same ports, or have it in TIME-WAIT.
        let iss = self.upstream.seq_at(base).sub(1).add(self.connections.wrapping_mul(ISS_STEP));
        self.connections = self.connections.wrapping_add(1);
        self.syn_once = false;
        self.connection = Some(Connection::new(now, iss, base, &self.client, max_segment));
        self.burst_start = base;
        self.last_activity = now;
    }

    /// Bytes of payload in a whole segment to the target: longer ones are trains ([`Config::max_train`]).
    pub fn segment_size(&self) -> u32 {
        self.connection.as_ref().map_or(u32::MAX, |connection| connection.sender.mss())
    }

    /// Takes in a captured segment of the client; `payload` may be shorter than the header says if
    /// the capture cut it.
    pub fn handle_client(&mut self, now: Time, header: &TcpHeader, payload: &[u8]) -> Taken {
        match self.phase {
            Phase::Ended => {
                self.upstream.entries.add(Fate::Late, u64::from(header.payload_len));
                return Taken::Late;
            }
            Phase::Joining => {
                if !self.joining.begins_request(header, payload) {
                    if header.flags.fin() || header.flags.rst() {
                        self.end(now, End::NotJoined);
                    }
                    self.upstream.entries.add(Fate::BeforeJoin, u64::from(header.payload_len));
                    return Taken::BeforeJoin;
                }
                let entries = std::mem::take(&mut self.upstream.entries);
                self.upstream = Upstream::joined(header.seq, self.joining.writes());
                self.upstream.entries = entries;
            }
            Phase::Live => {}
        }
        self.last_activity = now;
        self.roomy = true;
        let was_connected = self.client.is_connected();
        let gate = self.client.observe(now, header);
        if !was_connected
            && self.client.is_connected()
            && let Some(receiver) = self.connection.as_mut().and_then(|open| open.receiver.as_mut())
        {
            receiver.client_connected(now);
        }
        self.gate.begin(self.client.first_acked());
        let again = header.flags.syn() && std::mem::replace(&mut self.syn_seen, true);
        let taken = if !header.flags.syn() {
            self.take(now, header, payload, gate)
        } else if header.payload_len == 0 {
            if again { Taken::Duplicate } else { Taken::Control }
        } else {
            self.take(now, &TcpHeader { seq: header.seq.add(1), ..*header }, payload, gate)
        };
        if self.phase == Phase::Joining {
            self.phase = Phase::Live;
            if let Some(mark) = self.upstream.waiting() {
                self.gate.restart(&mark);
            }
            self.request_connection(0);
        }
        self.after_client(now);
        taken
    }

    fn take(&mut self, now: Time, header: &TcpHeader, payload: &[u8], gate: u64) -> Taken {
        if header.flags.rst() {
            return self.take_reset(now, header, gate);
        }
        let cut = usize::try_from(header.payload_len).is_ok_and(|len| len > payload.len());
        let taken = if cut {
            self.upstream.entries.add(Fate::Cut, u64::from(header.payload_len));
            Taken::Cut
        } else if payload.is_empty() {
            Taken::Ack
        } else {
            match self.upstream.insert(header.seq, payload, header.flags, gate, now) {
                Inserted::InOrder => Taken::Data,
                Inserted::OutOfOrder => Taken::OutOfOrder,
                Inserted::Duplicate => Taken::Duplicate,
                Inserted::OutOfWindow => Taken::OutOfWindow,
            }
        };
        if header.flags.fin() && taken != Taken::OutOfWindow {
            let end = header.seq.add(header.payload_len);
            let alone = !matches!(taken, Taken::Data | Taken::OutOfOrder);
            let news = self.upstream.set_fin(end, alone, gate, now);
            match taken {
                Taken::Ack if news => return Taken::Control,
                Taken::Ack => return Taken::Duplicate,
                Taken::Data
                | Taken::OutOfOrder
                | Taken::Control
                | Taken::Duplicate
                | Taken::OutOfWindow
                | Taken::Cut
                | Taken::BeforeJoin
                | Taken::Late => {}
            }
        }
        taken
    }

    /// The payload of a RST is no part of the stream (RFC 9293, 3.5.2).
    fn take_reset(&mut self, now: Time, header: &TcpHeader, gate: u64) -> Taken {
        self.upstream.entries.add(Fate::OutOfWindow, u64::from(header.payload_len));
        if self.upstream.set_reset(header.seq, gate, now) { Taken::Control } else { Taken::Duplicate }
    }

    fn after_client(&mut self, now: Time) {
        if self.upstream.buffered() > self.config.buffer_limit {
            self.end(now, End::BufferLimit);
        } else if self.connection.is_none() && self.connecting.is_none() {
            self.resume(now, self.upstream.start());
        }
    }

    /// The client opened another connection from the same port: this one says what it has to say,
    /// and ends with a reset.
    pub fn client_is_gone(&mut self, now: Time) {
        if self.phase == Phase::Joining {
            return self.end(now, End::NotJoined);
        }
        self.upstream.cut_off(now);
        self.after_client(now);
    }

    /// A timeout is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.phase == Phase::Ended {
            return;
        }
        if let Some((due, why)) = self.expiry()
            && now >= due
        {
            return self.end(now, why);
        }
        if self.rest_due().is_some_and(|due| now >= due) {
            self.roomy = false;
            self.upstream.shrink();
            self.events.shrink_to_fit();
        }
        while self.hole_due().is_some_and(|due| now >= due) {
            self.upstream.skip_hole();
            self.after_client(now);
        }
        let Some(connection) = &mut self.connection else { return };
        if connection.sender.timer().is_some_and(|timer| now >= timer) {
            connection.sender.handle_timer(now);
            connection.syn_due = connection.state == State::SynSent && !self.syn_once;
        }
    }

    /// Since when the target has acknowledged nothing, though something is outstanding.
    pub fn stalled_since(&self) -> Option<Time> {
        self.connection.as_ref()?.sender.stalled_since()
    }

    /// The target is back, or the way to it: data that wait for a backed off timer leave at `at`, if not
    /// before. Returns whether that is sooner.
    pub fn hasten(&mut self, at: Time) -> bool {
        let open = self.connection.as_mut().filter(|connection| connection.state == State::Open);
        open.is_some_and(|connection| connection.sender.hasten(at))
    }

    /// When the hole in what was captured is taken for lost.
    fn hole_due(&self) -> Option<Time> {
        self.upstream.hole_since().map(|since| since + self.config.gap_timeout)
    }

    /// When, and as what, the session ends if nothing happens.
    fn expiry(&self) -> Option<(Time, End)> {
        let why = if self.phase == Phase::Joining { End::NotJoined } else { End::Idle };
        let idle = (self.last_activity + self.config.idle_timeout, why);
        let unanswered = self.unanswered_since.map(|since| (since + self.config.give_up, End::Unreachable));
        let Some(connection) = &self.connection else {
            return [Some(idle), unanswered].into_iter().flatten().min_by_key(|(due, _)| *due);
        };
        if let State::TimeWait(until) = connection.state {
            return Some((until, End::Completed));
        }
        // A target that keeps its window closed is there (RFC 9293, 3.8.6.1), but not for ever.
        let closed = connection.state == State::Open && connection.sender.window_is_closed();
        let patience = if closed { self.config.idle_timeout } else { self.config.give_up };
        let stalled = connection.sender.stalled_since().map(|since| (since + patience, End::Unreachable));
        let linger = self.fin_acknowledged().then(|| (self.last_activity + LINGER, End::Lingering));
        [Some(idle), unanswered, stalled, linger].into_iter().flatten().min_by_key(|(due, _)| *due)
    }

    /// When [`Session::handle_timeout`] is due, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.phase == Phase::Ended {
            return None;
        }
        let connection = self.connection.as_ref();
        let timer = connection.and_then(|connection| connection.sender.timer());
        let ack = connection.and_then(|connection| connection.receiver.as_ref()).and_then(Receiver::ack_due);
        // Whatever `now` was passed on, an open gate has been acted on by `poll_transmit`.
        let gate = self.waiting_at_gate(Time::ZERO).map(|(.., decision)| match decision {
            Decision::Wait(until) => until,
            Decision::Open(_) => Time::ZERO,
        });
        let expiry = self.expiry().map(|(due, _)| due);
        [expiry, self.rest_due(), self.hole_due(), timer, ack, gate].into_iter().flatten().min()
    }

    /// When the buffers give back the room that they do not need.
    fn rest_due(&self) -> Option<Time> {
        self.roomy.then(|| self.last_activity + REST)
    }

    /// What happened, or is wanted.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next segment to send: its header, and its payload appended to `payload`.
    pub fn poll_transmit(&mut self, now: Time, payload: &mut Vec<u8>) -> Option<TcpHeader> {
        self.pass_bursts(now);
        if let Some(reset) = self.farewell.take() {
            return Some(reset);
        }
        let connection = self.connection.as_mut()?;
        match connection.state {
            State::SynSent => {
                if !std::mem::take(&mut connection.syn_due) {
                    return None;
                }
                connection.sender.syn_sent(now);
                Some(connection.syn(now, &self.client))
            }
            State::Open => self.transmit_data(now, payload).or_else(|| self.transmit_ack(now)),
            State::TimeWait(_) => self.transmit_ack(now),
        }
    }

    fn transmit_data(&mut self, now: Time, payload: &mut Vec<u8>) -> Option<TcpHeader> {
        let connection = self.connection.as_mut()?;
        let (limit, may_close) = self.upstream.limit();
        let close = self.upstream.close().filter(|_| may_close);
        let fin = matches!(close, Some(Close::Fin(_)));
        let highest = connection.sender.max();
        let Some(Range { from, to, fin }) = connection.sender.next(now, limit, fin) else {
            // The online server had all of it before the reset, so the target must, too.
            if matches!(close, Some(Close::Reset(at)) if connection.sender.una() >= at) {
                self.end(now, End::ClientReset);
                return self.farewell.take();
            }
            return None;
        };
        if connection.sender.max() > highest {
            connection.last_sent = now;
            connection.replied = false;
        }
        self.reports.sent(to);
        self.upstream.copy(from, to, payload);
        let push = if to == limit && to > from { Flags::PSH } else { Flags::NONE };
        let flags = push | if fin { Flags::FIN } else { Flags::NONE };
        let mut header = connection.segment(now, &self.client, flags, connection.sender.seq_at(from));
        header.payload_len = u32::try_from(to - from).unwrap_or(u32::MAX);
        if let Some(receiver) = &mut connection.receiver {
            receiver.ack_sent(now);
        }
        Some(header)
    }

    fn transmit_ack(&mut self, now: Time) -> Option<TcpHeader> {
        let connection = self.connection.as_mut()?;
        let receiver = connection.receiver.as_mut()?;
        receiver.ack_due().filter(|due| now >= *due)?;
        receiver.ack_sent(now);
        let seq = connection.sender.seq_at(connection.sender.max());
        Some(connection.segment(now, &self.client, Flags::ACK, seq))
    }

    /// How much later than a neighbour of the target the client answers.
    pub(super) fn lag(&self) -> Duration {
        match self.config.latency {
            Latency::Client => self.client.lag(),
            Latency::None => Duration::ZERO,
        }
    }

    pub(super) fn receiver(&self) -> Option<&Receiver> {
        self.connection.as_ref()?.receiver.as_ref()
    }

    pub(super) fn fin_acknowledged(&self) -> bool {
        match (self.upstream.close(), &self.connection) {
            (Some(Close::Fin(at)), Some(connection)) => connection.sender.una() > at,
            _ => false,
        }
    }

    /// Ends the session, with a RST if the target does not know yet.
    pub fn end(&mut self, now: Time, why: End) {
        if self.phase == Phase::Ended {
            return;
        }
        self.phase = Phase::Ended;
        self.conclude(why.into());
        if let Some(connection) = self.connection.take() {
            let closed = matches!(connection.state, State::TimeWait(_)) || why == End::Completed;
            let silent = connection.state == State::SynSent && connection.syn_due;
            if !closed && !silent && why != End::TargetReset {
                self.farewell = Some(connection.reset(now, &self.client));
            }
        }
        let held = self.upstream.discard();
        self.upstream.entries.discard(why, held);
        self.events.push_back(Event::Ended(why));
    }
}
