//! The connection budget: how many connections a session may open on its target, and how fast.
//!
//! It stands between the sessions and sending, and does not rely on a session's logic: it reads the captured segments,
//! the segments that leave and the target's headers, and decides on every connection that a session asks for. So a
//! fault in a session cannot become a storm of connections.
//!
//! For each session (one copy of a captured connection):
//!
//! * the captured connection grants one connection, and each captured request one more;
//! * a connection on which the target acknowledges request bytes that no earlier one got acknowledged refunds its own
//!   grant, once. Hence: connections ≤ 1 + requests + refunds;
//! * connections that were established and made no such progress are followed by the next one after 100 ms, doubled each
//!   time up to 30 s, from SYN to SYN. After [`MAX_IDLE`] of them in a row the session ends.
//!
//! A SYN that is refused or not answered says something of the target and nothing of the session: it neither counts
//! as a connection without progress nor, once it is taken back, uses a grant. Its pace is that of the target's
//! [`super::TargetHealth`].
//!
//! Over all sessions of a worker, [`Bucket`] limits the connections beyond a session's first.

use std::time::Duration;

use crate::session::ISS_STEP;
use crate::wire::{Seq, TcpHeader, Time};

/// Connections in a row that were established and brought no progress, after which a session ends.
pub(super) const MAX_IDLE: u8 = 5;
/// From one connection without progress to the next, and at most.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(30);
/// How far the bucket may be ahead of its rate: worker turns are not exact.
const BURST: Duration = Duration::from_millis(10);

/// What the budget says of a connection that a session asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// It may be opened.
    Now,
    /// Not before this time.
    At(Time),
    /// Once another request is captured.
    NextRequest,
    /// Never: the last connections brought no progress.
    Never,
}

/// The current connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    /// There is none, or it has been judged.
    None,
    /// Its SYN has no answer.
    Opening,
    /// The target has answered with SYN-ACK.
    Established,
    /// The target has acknowledged new request bytes.
    Progressed,
}

/// The budget of one session. Sequence numbers are the client's.
#[derive(Debug)]
pub(super) struct Budget {
    /// Connections that may still be opened.
    grants: u32,
    /// Connections opened so far, those taken back included: the session numbers them alike.
    opened: u32,
    /// Connections without progress in a row.
    idle: u8,
    connection: Connection,
    /// Captured payload begins here, or has come so far.
    captured: Seq,
    /// The acknowledgment number of the last captured segment with new payload.
    asked_at: Option<Seq>,
    /// Payload that the target has acknowledged, on any connection.
    acknowledged: Seq,
    /// The current connection's SYN, and the number behind the last byte sent on it.
    syn: Seq,
    sent: Seq,
    /// When the current connection was opened, and when its last SYN left.
    opened_at: Time,
    syn_at: Time,
}

impl Budget {
    /// The budget of a captured connection whose payload begins at `first`.
    pub(super) fn new(first: Seq) -> Self {
        Self {
            grants: 1,
            opened: 0,
            idle: 0,
            connection: Connection::None,
            captured: first,
            asked_at: None,
            acknowledged: first,
            syn: first,
            sent: first,
            opened_at: Time::ZERO,
            syn_at: Time::ZERO,
        }
    }

    /// Takes in a captured segment of the client. Returns whether it begins a request: it has new payload, and
    /// acknowledges something else than the last such segment did.
    pub(super) fn capture(&mut self, header: &TcpHeader) -> bool {
        if header.payload_len == 0 || header.flags.rst() {
            return false;
        }
        let end = header.seq.add(u32::from(header.flags.syn())).add(header.payload_len);
        if !end.is_after(self.captured) {
            return false;
        }
        self.captured = end;
        let is_request = self.asked_at.replace(header.ack) != Some(header.ack);
        self.grants = self.grants.saturating_add(u32::from(is_request));
        is_request
    }

    /// The session asks for a connection; the one before is over.
    pub(super) fn ask(&mut self, now: Time) -> Permit {
        match std::mem::replace(&mut self.connection, Connection::None) {
            Connection::None | Connection::Opening | Connection::Progressed => {}
            Connection::Established => self.idle = self.idle.saturating_add(1),
        }
        if self.idle >= MAX_IDLE {
            return Permit::Never;
        }
        if self.grants == 0 {
            return Permit::NextRequest;
        }
        let due = self.opened_at + self.delay();
        if now < due { Permit::At(due) } else { Permit::Now }
    }

    fn delay(&self) -> Duration {
        match self.idle.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_DELAY.saturating_mul(1 << doublings.min(16)).min(MAX_DELAY),
        }
    }

    /// Whether no connection was opened yet.
    pub(super) fn is_unused(&self) -> bool {
        self.opened == 0
    }

    /// When the current connection was opened.
    pub(super) fn opened_at(&self) -> Time {
        self.opened_at
    }

    /// The connection is opened.
    pub(super) fn open(&mut self, now: Time) {
        self.grants = self.grants.saturating_sub(1);
        self.opened = self.opened.saturating_add(1);
        self.connection = Connection::Opening;
        self.opened_at = now;
    }

    /// The connection is taken back, its SYN being unanswered.
    pub(super) fn take_back(&mut self) {
        if self.connection == Connection::Opening {
            self.connection = Connection::None;
            self.grants = self.grants.saturating_add(1);
        }
    }

    /// A segment of the session leaves.
    pub(super) fn sent(&mut self, now: Time, header: &TcpHeader) {
        let end = header.seq.add(header.segment_len());
        if header.flags.syn() {
            (self.syn, self.sent, self.syn_at) = (header.seq, end, now);
        } else if end.is_after(self.sent) {
            self.sent = end;
        }
    }

    /// Takes in a header of the target. Returns the time that its handshake took, if it answers a SYN.
    pub(super) fn answered(&mut self, now: Time, header: &TcpHeader) -> Option<Duration> {
        if header.flags.syn() {
            let answers = header.flags.ack() && header.ack == self.syn.add(1) && self.opened > 0;
            if answers && self.connection == Connection::Opening {
                self.connection = Connection::Established;
            }
            return answers.then(|| now - self.syn_at);
        }
        let counts = header.flags.ack() && !header.ack.is_after(self.sent);
        if counts && matches!(self.connection, Connection::Established | Connection::Progressed) {
            self.acknowledge(header.ack);
        }
        None
    }

    fn acknowledge(&mut self, ack: Seq) {
        // The session's connections have the client's numbers, each farther on by the same step.
        let ack = ack.sub(self.opened.saturating_sub(1).wrapping_mul(ISS_STEP));
        let ack = if ack.is_after(self.captured) { self.captured } else { ack };
        if ack.is_after(self.acknowledged) {
            self.acknowledged = ack;
            self.idle = 0;
            if self.connection == Connection::Established {
                self.connection = Connection::Progressed;
                self.grants = self.grants.saturating_add(1);
            }
        }
    }
}

/// The token bucket of one worker, for connections beyond a session's first and those that waited for a target.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Nanoseconds from one token to the next.
    interval: u64,
    /// When the next token is there by the rate, in nanoseconds.
    next: u64,
}

impl Bucket {
    /// A bucket with `rate` tokens a second for all `workers` together.
    pub(super) fn new(rate: u32, workers: u16) -> Self {
        let mut bucket = Self { interval: 0, next: 0 };
        bucket.configure(rate, workers);
        bucket
    }

    /// Has another rate from now on.
    pub(super) fn configure(&mut self, rate: u32, workers: u16) {
        self.interval = 1_000_000_000 * u64::from(workers.max(1)) / u64::from(rate.max(1));
    }

    /// When the next token is there.
    pub(super) fn due(&self) -> Time {
        let burst = u64::try_from(BURST.as_nanos()).unwrap_or(0);
        Time::from_micros(self.next.saturating_sub(burst).div_ceil(1_000))
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Time) -> bool {
        let available = now >= self.due();
        if available {
            self.next = self.next.max(now.micros().saturating_mul(1_000)).saturating_add(self.interval);
        }
        available
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Flags;

    fn at(millis: u64) -> Time {
        Time::from_micros(1_000_000 + millis * 1_000)
    }

    fn segment(seq: u32, ack: u32, flags: Flags, payload_len: u32) -> TcpHeader {
        TcpHeader { payload_len, ..TcpHeader::bare(Seq(seq), Seq(ack), flags, 1_000) }
    }

    /// Opens the connection number `n` and has it established.
    fn establish(budget: &mut Budget, now: Time, n: u32) {
        let iss = 99u32.wrapping_add(n.wrapping_mul(ISS_STEP));
        budget.open(now);
        budget.sent(now, &segment(iss, 0, Flags::SYN, 0));
        let syn_ack = segment(1, iss.wrapping_add(1), Flags::SYN | Flags::ACK, 0);
        assert_eq!(budget.answered(now, &syn_ack), Some(Duration::ZERO));
    }

    /// The first `bytes` of the stream leave on connection number `n`, and the target acknowledges them.
    fn deliver(budget: &mut Budget, now: Time, n: u32, bytes: u32) {
        let first = 100u32.wrapping_add(n.wrapping_mul(ISS_STEP));
        budget.sent(now, &segment(first, 2, Flags::ACK, bytes));
        budget.answered(now, &segment(2, first.wrapping_add(bytes), Flags::ACK, 0));
    }

    #[test]
    fn a_request_is_new_payload_with_another_acknowledgment() {
        let mut budget = Budget::new(Seq(100));
        let requests = [
            (segment(100, 1, Flags::ACK, 10), true, "the first"),
            (segment(110, 1, Flags::ACK, 10), false, "continues it"),
            (segment(100, 7, Flags::ACK, 20), false, "a retransmission"),
            (segment(120, 7, Flags::ACK, 0), false, "no payload"),
            (segment(120, 7, Flags::ACK, 5), true, "the second"),
            (segment(125, 9, Flags::RST | Flags::ACK, 5), false, "text in a RST"),
            (segment(124, 9, Flags::ACK, 1), false, "a keep-alive probe"),
        ];
        for (header, expected, what) in requests {
            assert_eq!(budget.capture(&header), expected, "{what}");
        }
        assert_eq!(budget.grants, 3);
    }

    #[test]
    fn a_connection_with_progress_refunds_its_grant_once() {
        let mut budget = Budget::new(Seq(100));
        budget.capture(&segment(100, 1, Flags::ACK, 50));
        for n in 0..4 {
            assert_eq!(budget.ask(at(0)), Permit::Now, "{n}");
            establish(&mut budget, at(0), n);
            deliver(&mut budget, at(0), n, 10 + n);
            deliver(&mut budget, at(0), n, 11 + n);
            assert_eq!(budget.grants, 2, "{n}");
        }
    }

    #[test]
    fn the_same_bytes_again_and_bytes_never_captured_or_sent_are_no_progress() {
        let mut budget = Budget::new(Seq(100));
        budget.capture(&segment(100, 1, Flags::ACK, 50));
        establish(&mut budget, at(0), 0);
        deliver(&mut budget, at(0), 0, 50);
        assert_eq!(budget.ask(at(0)), Permit::Now);
        establish(&mut budget, at(0), 1);
        deliver(&mut budget, at(0), 1, 50);
        assert_eq!(budget.grants, 1, "the same again");
        deliver(&mut budget, at(0), 1, 60);
        assert_eq!(budget.grants, 1, "more than was captured");
        budget.capture(&segment(150, 1, Flags::ACK, 50));
        budget.answered(at(0), &segment(2, 190u32.wrapping_add(ISS_STEP), Flags::ACK, 0));
        assert_eq!(budget.grants, 1, "more than was sent");
        assert_eq!(budget.ask(at(0)), Permit::At(at(100)));
    }

    #[test]
    fn connections_without_progress_back_off_and_then_there_are_no_more() {
        let mut budget = Budget::new(Seq(100));
        for n in 0..10 {
            budget.capture(&segment(100 + n, n, Flags::ACK, 1));
        }
        let mut now = at(0);
        let mut delays = Vec::new();
        for n in 0.. {
            match budget.ask(now) {
                Permit::Now => establish(&mut budget, now, n),
                Permit::At(due) => {
                    delays.push((due - now).as_millis());
                    now = due;
                    assert_eq!(budget.ask(now), Permit::Now);
                    establish(&mut budget, now, n);
                }
                Permit::NextRequest => panic!("there are grants"),
                Permit::Never => break,
            }
        }
        assert_eq!(delays, [100, 200, 400, 800]);
        assert_eq!((budget.opened, MAX_IDLE), (5, 5));
    }

    #[test]
    fn without_a_grant_the_next_request_is_waited_for() {
        let mut budget = Budget::new(Seq(100));
        establish(&mut budget, at(0), 0);
        assert_eq!(budget.ask(at(200)), Permit::NextRequest);
        budget.capture(&segment(100, 1, Flags::ACK, 10));
        assert_eq!(budget.ask(at(200)), Permit::Now);
    }

    #[test]
    fn a_connection_that_is_taken_back_costs_nothing() {
        let mut budget = Budget::new(Seq(100));
        for _ in 0..20 {
            assert_eq!(budget.ask(at(0)), Permit::Now);
            budget.open(at(0));
            budget.sent(at(0), &segment(99, 0, Flags::SYN, 0));
            budget.take_back();
            budget.take_back();
        }
        assert_eq!((budget.grants, budget.idle), (1, 0));
    }

    #[test]
    fn the_bucket_of_all_workers_gives_the_rate_and_a_burst_of_10_ms() {
        for workers in [1u16, 4] {
            let mut bucket = Bucket::new(1_000, workers);
            let mut taken = 0;
            for step in 0..100_000 {
                taken += u32::from(bucket.take(Time::from_micros(5_000_000 + step * 10)));
            }
            let expected = 1_000 / u32::from(workers);
            assert!((expected..=expected + 11).contains(&taken), "{workers} workers: {taken}");
        }
        let mut slow = Bucket::new(1, 1);
        assert!(slow.take(at(0)) && !slow.take(at(989)) && slow.take(at(990)));
    }
}
