//! One connection of the scripted host (RFC 9293), and what it asks of its peer: a replayer that breaks a rule of
//! TCP is a fault of the run. What it sends by itself is in [`sending`].
//!
//! Positions are counted from the byte after a SYN, FIN takes one. Nothing is shared with `tcpcopy::session`.

mod sending;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Quirks;
use crate::packet::{ACK, FIN, RST, SYN, Segment};
use crate::rng::Rng;

const MSEC: u64 = 1_000;
/// Retransmission: first and longest timeout, in microseconds, and how often before the connection is given up.
const RTO: u64 = 300 * MSEC;
const MAX_RTO: u64 = 3_000 * MSEC;
const MAX_TRIES: u32 = 30;
/// Duplicate ACKs that mean a loss.
const DUPLICATES: u32 = 3;

/// States of RFC 9293 in which a connection can be found here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    SynReceived,
    /// ESTABLISHED to LAST-ACK: which one shows in `fin_at` and `peer_fin`.
    Synchronized,
    /// Until then.
    TimeWait(u64),
    Closed,
}

/// What the host is to do about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    /// Forget the connection, and take the segment as one that opens the next.
    OpensAnother,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Tcb {
    pub(super) state: State,
    local: SocketAddr,
    peer: SocketAddr,
    quirks: Quirks,
    // Sending.
    iss: u32,
    una: u64,
    nxt: u64,
    /// Highest ever sent, FIN included.
    max: u64,
    written: u64,
    /// The application has closed: FIN follows this offset.
    fin_at: Option<u64>,
    /// The peer's FIN was there when ours left: no TIME-WAIT.
    passive: bool,
    peer_window: u64,
    peer_scale: u8,
    peer_mss: u16,
    duplicates: u32,
    tries: u32,
    timer: Option<u64>,
    // Receiving.
    irs: u32,
    received: u64,
    ahead: BTreeMap<u64, Vec<u8>>,
    unread: Vec<u8>,
    capacity: usize,
    /// The end of the widest window ever offered.
    edge: u64,
    /// The window stays closed until then.
    opens_at: u64,
    peer_fin: Option<u64>,
    ack_due: Option<u64>,
    /// Segments that no ACK has followed.
    unacked: u32,
    mss: Option<u16>,
    scale: Option<u8>,
    stamps: bool,
    ts_recent: u32,
    /// SYN-ACKs that are still to be lost, and when the first one leaves.
    losing: u64,
    // Keep-alive.
    heard_at: u64,
    probes: u32,
    /// The application wants a reset.
    aborted: bool,
    out: Vec<Segment>,
    pub(super) faults: Vec<String>,
}

/// Sequence number arithmetic: how far `a` is ahead of `b`.
fn ahead_of(a: u32, b: u32) -> i64 {
    let distance = a.wrapping_sub(b);
    if distance < 1 << 31 { i64::from(distance) } else { i64::from(distance) - (1 << 32) }
}

#[expect(clippy::cast_possible_truncation, reason = "sequence numbers are offsets modulo 2^32")]
fn number(first: u32, offset: u64) -> u32 {
    first.wrapping_add(1).wrapping_add(offset as u32)
}

impl Tcb {
    /// A SYN has come.
    pub(super) fn open(
        now: u64,
        syn: &Segment,
        iss: u32,
        capacity: usize,
        quirks: &Quirks,
        rng: &mut Rng,
    ) -> Self {
        let mut faults = Vec::new();
        if !syn.payload.is_empty() || syn.flags != SYN {
            faults.push(format!("a SYN with {} bytes and flags {:#x}", syn.payload.len(), syn.flags));
        }
        let scale = rng.pick(&quirks.scale).filter(|_| syn.scale.is_some());
        let mut tcb = Self {
            state: State::SynReceived,
            local: syn.dst,
            peer: syn.src,
            quirks: quirks.clone(),
            iss,
            una: 0,
            nxt: 0,
            max: 0,
            written: 0,
            fin_at: None,
            passive: false,
            peer_window: u64::from(syn.window),
            peer_scale: if scale.is_some() { syn.scale.unwrap_or(0) } else { 0 },
            peer_mss: syn.mss.unwrap_or(536),
            duplicates: 0,
            tries: 0,
            timer: None,
            irs: syn.seq,
            received: 0,
            ahead: BTreeMap::new(),
            unread: Vec::new(),
            // Never less than what the window field can express.
            capacity: capacity.max(2 << scale.unwrap_or(0)),
            edge: 0,
            opens_at: now + quirks.closed_at_first,
            peer_fin: None,
            ack_due: None,
            unacked: 0,
            mss: rng.pick(&quirks.mss),
            scale,
            stamps: quirks.timestamps && syn.stamps.is_some(),
            ts_recent: syn.stamps.map_or(0, |(value, _)| value),
            losing: quirks.syn_acks_lost,
            heard_at: now,
            probes: 0,
            aborted: false,
            out: Vec::new(),
            faults,
        };
        tcb.timer = Some(now + quirks.syn_ack_delay);
        tcb
    }

    fn fault(&mut self, what: &str) {
        self.faults.push(format!("{}: {what}", self.peer));
    }

    #[expect(clippy::cast_possible_truncation, reason = "a clock of 32 bits")]
    fn clock(&self, now: u64) -> u32 {
        self.quirks.clock.wrapping_add((now / MSEC) as u32)
    }

    pub(super) fn rcv_nxt(&self) -> u32 {
        number(self.irs, self.received)
    }

    pub(super) fn snd_nxt(&self) -> u32 {
        number(self.iss, self.max)
    }

    fn window(&self, now: u64) -> u64 {
        if now < self.opens_at { 0 } else { (self.capacity - self.unread.len().min(self.capacity)) as u64 }
    }

    /// The window field; a window once offered is not taken back (RFC 9293, 3.8.6).
    fn offer(&mut self, now: u64, scale: u8) -> u16 {
        let field = u16::try_from(self.window(now) >> scale).unwrap_or(u16::MAX);
        self.edge = self.edge.max(self.received + (u64::from(field) << scale));
        u16::try_from((self.edge - self.received) >> scale).unwrap_or(u16::MAX).max(field)
    }

    /// A segment with ACK, numbered `offset`.
    fn segment(&mut self, now: u64, flags: u8, offset: u64) -> Segment {
        let (seq, ack) = (number(self.iss, offset), self.rcv_nxt());
        let mut segment = Segment::bare(self.local, self.peer, seq, ack, flags | ACK);
        segment.window = self.offer(now, self.scale.unwrap_or(0));
        segment.stamps = self.stamps.then(|| (self.clock(now), self.ts_recent));
        segment
    }

    pub(super) fn acknowledge(&mut self, now: u64) {
        let segment = self.segment(now, 0, self.max);
        self.out.push(segment);
        (self.ack_due, self.unacked) = (None, 0);
    }

    fn syn_ack(&mut self, now: u64) {
        self.tries += 1;
        self.timer = Some(now + (RTO << self.tries.min(8)).min(MAX_RTO));
        if self.losing > 0 {
            self.losing -= 1;
            return;
        }
        let mut segment = self.segment(now, SYN, 0);
        segment.seq = self.iss;
        // Never scaled (RFC 7323, 2.2).
        segment.window = u16::try_from(self.window(now)).unwrap_or(u16::MAX);
        self.edge = self.edge.max(u64::from(segment.window));
        segment.mss = self.mss;
        segment.scale = self.scale;
        self.out.push(segment);
    }

    fn reset(&mut self, now: u64) {
        let segment = self.segment(now, RST, self.max);
        self.out.push(segment);
        self.state = State::Closed;
    }

    /// A segment of the peer has come.
    pub(super) fn arrive(&mut self, now: u64, segment: &Segment) -> Verdict {
        self.check(now, segment);
        (self.heard_at, self.probes) = (now, 0);
        if segment.has(SYN) {
            return self.arrive_syn(now, segment);
        }
        if self.is_outdated(segment) {
            self.acknowledge(now);
            return Verdict::Done;
        }
        let ahead = ahead_of(segment.seq, self.rcv_nxt());
        let window = i64::try_from(self.edge - self.received).expect("small");
        if segment.has(RST) {
            let safe = matches!(self.state, State::TimeWait(_)) && self.quirks.time_wait_is_safe;
            if ahead == 0 && !safe {
                self.state = State::Closed;
            } else if (1..window).contains(&ahead) {
                self.acknowledge(now);
            }
            return Verdict::Done;
        }
        let space = i64::from(segment.space());
        let acceptable = if space == 0 {
            ahead == 0 || (0..window).contains(&ahead)
        } else {
            ahead < window.max(1) && ahead + space > 0
        };
        if !acceptable {
            self.acknowledge(now);
            if let State::TimeWait(_) = self.state {
                self.state = State::TimeWait(now + self.quirks.time_wait);
            }
            return Verdict::Done;
        }
        if !segment.has(ACK) {
            return Verdict::Done;
        }
        if self.state == State::SynReceived {
            if segment.ack != number(self.iss, 0) {
                // Of an earlier connection (RFC 9293, 3.10.7.4).
                let reset = Segment::bare(self.local, self.peer, segment.ack, 0, RST);
                self.out.push(reset);
                return Verdict::Done;
            }
            (self.state, self.timer, self.tries) = (State::Synchronized, None, 0);
        }
        if self.arrive_ack(now, segment) {
            self.note_stamp(segment);
            self.arrive_data(now, segment, ahead);
            self.finish_if_done(now);
        }
        Verdict::Done
    }

    /// RFC 9293, 3.10.7.4 and RFC 5961, 4; RFC 6191 for TIME-WAIT.
    fn arrive_syn(&mut self, now: u64, segment: &Segment) -> Verdict {
        match self.state {
            State::SynReceived if segment.seq == self.irs => self.syn_ack(now),
            State::TimeWait(_) => {
                let newer = match segment.stamps.filter(|_| self.stamps) {
                    Some((value, _)) => ahead_of(value, self.ts_recent) > 0,
                    None => false,
                };
                if newer || ahead_of(segment.seq, self.rcv_nxt()) > 0 {
                    return Verdict::OpensAnother;
                }
                self.acknowledge(now);
            }
            State::Closed => return Verdict::OpensAnother,
            State::SynReceived | State::Synchronized => self.acknowledge(now),
        }
        Verdict::Done
    }

    /// What no TCP may do. Whether the peer knows of the last window is for it to say by its ACK.
    fn check(&mut self, now: u64, segment: &Segment) {
        // More than that ahead, or behind, it belongs to another connection from the same port.
        let ours = (0..1 << 24).contains(&ahead_of(segment.seq, self.irs));
        if segment.has(SYN) || segment.has(RST) || !ours {
            return;
        }
        let most = usize::from(self.mss.unwrap_or(536)) - if self.stamps { 12 } else { 0 };
        if segment.payload.len() > most {
            self.fault(&format!("{} bytes in a segment, {most} at most", segment.payload.len()));
        }
        if self.stamps != segment.stamps.is_some() {
            self.fault(&format!("timestamps {:?}", segment.stamps));
        }
        if let Some((_, echo)) = segment.stamps.filter(|_| self.stamps)
            && ahead_of(echo, self.clock(now)) > 0
        {
            self.fault(&format!("an echo from the future: {echo}"));
        }
        let end =
            ahead_of(segment.seq, number(self.irs, 0)) + i64::try_from(segment.payload.len()).expect("small");
        let probe = segment.payload.len() == 1;
        if end > i64::try_from(self.edge).expect("small") && !probe && !segment.payload.is_empty() {
            self.fault(&format!("bytes up to {end}, the window ends at {}", self.edge));
        }
    }

    /// PAWS (RFC 7323, 5.3).
    fn is_outdated(&self, segment: &Segment) -> bool {
        let stamp = segment.stamps.filter(|_| self.stamps && !segment.has(RST));
        stamp.is_some_and(|(value, _)| ahead_of(value, self.ts_recent) < 0)
    }

    fn note_stamp(&mut self, segment: &Segment) {
        if let Some((value, _)) = segment.stamps
            && ahead_of(segment.seq, self.rcv_nxt()) <= 0
            && ahead_of(value, self.ts_recent) > 0
        {
            self.ts_recent = value;
        }
    }

    /// Returns whether the rest of the segment counts (RFC 5961, 5).
    fn arrive_ack(&mut self, now: u64, segment: &Segment) -> bool {
        let ack = i64::try_from(self.una).expect("small") + ahead_of(segment.ack, number(self.iss, self.una));
        let Ok(ack) = u64::try_from(ack) else {
            self.acknowledge(now);
            return false;
        };
        if ack > self.max {
            self.fault(&format!("ACK of {ack}, {} were sent", self.max));
            return false;
        }
        if ack < self.una {
            return true;
        }
        let window = u64::from(segment.window) << self.peer_scale;
        if ack == self.una {
            let same = segment.space() == 0 && window == self.peer_window && self.max > self.una;
            self.duplicates += u32::from(same);
            if self.duplicates == DUPLICATES {
                self.nxt = self.una;
            }
        } else {
            self.una = ack;
            self.nxt = self.nxt.max(ack);
            (self.duplicates, self.tries) = (0, 0);
            self.timer = (self.max > self.una).then_some(now + RTO);
        }
        self.peer_window = window;
        true
    }

    fn arrive_data(&mut self, now: u64, segment: &Segment, ahead: i64) {
        let space = segment.space();
        if space == 0 {
            if ahead < 0 {
                self.acknowledge(now);
            }
            return;
        }
        let start = i64::try_from(self.received).expect("small") + ahead;
        let skip = usize::try_from((-ahead).max(0)).expect("small");
        let room = usize::try_from(self.edge.saturating_sub(self.received)).expect("small");
        let offset =
            u64::try_from(start.max(i64::try_from(self.received).expect("small"))).expect("positive");
        let bytes = segment.payload.get(skip..).unwrap_or_default();
        let fits =
            room.saturating_sub(usize::try_from(offset - self.received).expect("small")).min(bytes.len());
        if segment.has(FIN) && fits == bytes.len() {
            let end = start + i64::try_from(segment.payload.len()).expect("small");
            let end = u64::try_from(end).expect("positive");
            if self.peer_fin.is_some_and(|fin| fin != end) {
                self.fault(&format!("FIN at {end}, and before that at {:?}", self.peer_fin));
            }
            self.peer_fin = Some(end);
        }
        if self.peer_fin.is_some_and(|fin| offset + fits as u64 > fin) {
            self.fault("data after the FIN");
        }
        if fits > 0 {
            let known = self.ahead.entry(offset).or_default();
            if known.len() < fits {
                *known = bytes[..fits].to_vec();
            }
        }
        if self.fin_at.is_some() && offset + fits as u64 > self.received {
            // Nobody will read it (RFC 9293, 3.10.7.4, as every stack reads it).
            return self.reset(now);
        }
        let before = self.received;
        self.join();
        self.unacked += 1;
        let in_order = self.received > before && self.ahead.is_empty();
        if in_order
            && self.quirks.delayed_ack > 0
            && self.unacked < 2
            && self.peer_fin != Some(self.received - 1)
        {
            self.ack_due.get_or_insert(now + self.quirks.delayed_ack);
        } else {
            self.acknowledge(now);
        }
    }

    fn join(&mut self) {
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() <= self.received
        {
            let (offset, bytes) = entry.remove_entry();
            let known = usize::try_from(self.received - offset).expect("small");
            if let Some(news) = bytes.get(known..) {
                self.unread.extend(news);
                self.received += news.len() as u64;
            }
        }
        if self.peer_fin == Some(self.received) {
            self.received += 1;
        }
    }

    fn finish_if_done(&mut self, now: u64) {
        let sent = self.fin_at.is_some_and(|fin| self.una > fin);
        if sent && self.peer_has_ended() && self.state == State::Synchronized {
            // The side that closes last needs not wait; a simultaneous close makes both wait.
            self.timer = None;
            self.state =
                if self.passive { State::Closed } else { State::TimeWait(now + self.quirks.time_wait) };
        }
    }

    fn peer_has_ended(&self) -> bool {
        self.peer_fin.is_some_and(|fin| self.received > fin)
    }

    /// Time has passed, or the application has done something.
    pub(super) fn run(&mut self, now: u64, rng: &mut Rng) {
        match self.state {
            State::SynReceived if self.timer.is_some_and(|timer| timer <= now) => {
                if self.tries > MAX_TRIES {
                    self.state = State::Closed;
                } else {
                    self.syn_ack(now);
                }
            }
            State::TimeWait(until) if until <= now => self.state = State::Closed,
            State::Synchronized if self.aborted => self.reset(now),
            State::Synchronized => {
                self.time_out(now);
                self.send(now, rng);
                self.probe(now);
            }
            State::SynReceived | State::TimeWait(_) | State::Closed => {}
        }
        let acknowledges = matches!(self.state, State::Synchronized | State::TimeWait(_));
        if acknowledges && (self.ack_due.is_some_and(|due| due <= now) || self.has_opened(now)) {
            self.acknowledge(now);
        }
    }

    /// Whether the window is worth an update (RFC 9293, 3.8.6.2.2).
    fn has_opened(&self, now: u64) -> bool {
        let unit = 1 << self.scale.unwrap_or(0);
        let open = self.window(now) / unit * unit;
        let offered = self.edge - self.received.min(self.edge);
        !self.quirks.taciturn
            && open > offered
            && (offered == 0 || open - offered >= (self.capacity as u64 / 2).min(1_000))
    }

    /// When [`Tcb::run`] is due. What was due on a connection that is closed is not any more.
    pub(super) fn wakes_at(&self) -> Option<u64> {
        let over = match self.state {
            State::Closed => return None,
            State::TimeWait(until) => Some(until),
            State::SynReceived | State::Synchronized => None,
        };
        let tells = self.state == State::Synchronized && !self.quirks.taciturn;
        let closed = tells && self.edge == self.received;
        let opens = Some(self.opens_at).filter(|at| closed && *at > self.heard_at);
        [over, self.timer, self.ack_due, self.next_probe(), opens].into_iter().flatten().min()
    }

    pub(super) fn take_sent(&mut self) -> Vec<Segment> {
        std::mem::take(&mut self.out)
    }

    pub(super) fn quirks(&self) -> &Quirks {
        &self.quirks
    }

    pub(super) fn stamp(&self, now: u64) -> Option<(u32, u32)> {
        self.stamps.then(|| (self.clock(now), self.ts_recent))
    }
}
