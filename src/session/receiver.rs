//! The receiving half of TCP from the target (RFC 9293, section 3.10.7.4).
//!
//! Only headers arrive, so there is nothing to reassemble: what counts is which sequence space has
//! come, and what is to be acknowledged when. Positions count from the byte after the target's
//! SYN; its FIN takes one.

use std::time::Duration;

use crate::wire::{Seq, Time};

/// Delay of an ACK that nothing else carries (RFC 9293, 3.8.6.3: below 500 ms; Linux: 40 ms).
const DELAYED_ACK: Duration = Duration::from_millis(40);
/// Delay of the handshake's last ACK behind the client's, which the first data usually carries. The
/// server's `accept()` waits for it.
const HANDSHAKE_ACK: Duration = Duration::from_millis(10);
/// The same if the client's is not captured: its first data may come a round-trip time later than the
/// target's answer, and the target repeats its SYN-ACK after 1 s only.
const UNSEEN_HANDSHAKE_ACK: Duration = Duration::from_millis(200);
/// Ranges kept beyond a hole. More than that are forgotten, and the target sends them again.
const MAX_RANGES: usize = 32;

/// What a segment brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// No data, SYN or FIN, at the expected place.
    Nothing,
    /// It continued the stream.
    InOrder,
    /// It lies behind a hole.
    OutOfOrder,
    /// All of it had come before.
    Duplicate,
}

/// State of the receiving half.
#[derive(Debug)]
pub(super) struct Receiver {
    irs: Seq,
    received: u64,
    acked: u64,
    /// Beyond a hole, sorted, disjoint.
    ranges: Vec<(u64, u64)>,
    fin: Option<u64>,
    last_at: Time,
    acked_at: Time,
    ack_due: Option<Time>,
}

impl Receiver {
    /// Memory that it holds besides itself, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.ranges.capacity() * size_of::<(u64, u64)>()
    }

    /// A receiver that has taken a SYN numbered `irs`. `client_is_connected`: the client has ended its
    /// own handshake.
    pub(super) fn new(now: Time, irs: Seq, client_is_connected: bool) -> Self {
        let patience = if client_is_connected { HANDSHAKE_ACK } else { UNSEEN_HANDSHAKE_ACK };
        Self {
            irs,
            received: 0,
            acked: 0,
            ranges: Vec::new(),
            fin: None,
            last_at: now,
            acked_at: now,
            ack_due: Some(now + patience),
        }
    }

    /// Sequence space received in order, FIN included.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// When the last of it came.
    pub(super) fn last_at(&self) -> Time {
        self.last_at
    }

    /// Whether the target has ended its stream and all of it is here.
    pub(super) fn finished(&self) -> bool {
        self.fin.is_some_and(|fin| self.received > fin)
    }

    /// Whether something is missing before what has come.
    pub(super) fn has_hole(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// RCV.NXT.
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are offsets modulo 2^32")]
    pub(super) fn rcv_nxt(&self) -> Seq {
        self.irs.add(1).add(self.received as u32)
    }

    /// When an ACK must leave at the latest.
    pub(super) fn ack_due(&self) -> Option<Time> {
        self.ack_due
    }

    /// The client has ended its handshake: if ours is not over, it waits for the first data only.
    pub(super) fn client_connected(&mut self, now: Time) {
        if self.ack_due.is_some() {
            self.ack_after(now, HANDSHAKE_ACK);
        }
    }

    /// Something that carries RCV.NXT left.
    pub(super) fn ack_sent(&mut self, now: Time) {
        self.acked = self.received;
        self.acked_at = now;
        self.ack_due = None;
    }

    /// Since when the target could have said more, if it had more to say. A target that obeys Nagle
    /// (RFC 1122, 4.2.3.4) keeps the end of a response until all before it is acknowledged, so it
    /// may be waiting for an ACK that is still delayed. One that has closed has no more to say.
    pub(super) fn quiet_since(&self) -> Time {
        if self.finished() {
            return self.last_at;
        }
        self.last_at.max(self.acked_at).max(self.ack_due.unwrap_or(Time::ZERO))
    }

    /// An ACK is wanted after `lag`.
    pub(super) fn ack_after(&mut self, now: Time, lag: Duration) {
        let due = now + lag;
        self.ack_due = Some(self.ack_due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Whether a segment that begins with `seq` lies beyond the `window` that was advertised.
    pub(super) fn is_beyond(&self, seq: Seq, window: u32) -> bool {
        seq.is_after(self.rcv_nxt().add(window))
    }

    /// Takes in a segment, which does not lie beyond the window. `lag`: how late the client would
    /// answer.
    pub(super) fn handle(&mut self, now: Time, segment: &Segment, lag: Duration) -> Arrived {
        let Some(start) = segment.seq.unwrap_near(self.received, self.rcv_nxt()) else {
            self.ack_after(now, Duration::ZERO);
            return Arrived::Duplicate;
        };
        let data_end = start + u64::from(segment.len);
        let end = data_end + u64::from(segment.fin);
        if end == start && start == self.received {
            return Arrived::Nothing;
        }
        if end <= self.received {
            self.ack_after(now, Duration::ZERO);
            return Arrived::Duplicate;
        }
        if segment.fin {
            self.fin.get_or_insert(data_end);
        }
        if start > self.received {
            self.keep(start, end);
            self.ack_after(now, Duration::ZERO);
            return Arrived::OutOfOrder;
        }
        self.received = end;
        self.join();
        self.last_at = now;
        let much = self.received - self.acked >= 2 * u64::from(segment.mss);
        let enough = much || (self.finished() && segment.prompt) || self.has_hole();
        self.ack_after(now, if enough { lag } else { lag.max(DELAYED_ACK) });
        Arrived::InOrder
    }

    fn keep(&mut self, mut start: u64, mut end: u64) {
        self.ranges.retain(|&(s, e)| {
            let apart = e < start || s > end;
            if !apart {
                start = start.min(s);
                end = end.max(e);
            }
            apart
        });
        if self.ranges.len() < MAX_RANGES {
            let at = self.ranges.partition_point(|&(s, _)| s < start);
            self.ranges.insert(at, (start, end));
        }
    }

    fn join(&mut self) {
        let reached = self.ranges.iter().take_while(|&&(s, _)| s <= self.received).count();
        for (_, end) in self.ranges.drain(..reached) {
            self.received = self.received.max(end);
        }
    }
}

/// The part of a header the receiver looks at: `len` bytes from `seq` on, and FIN after them; `mss`
/// is what the target sends at most. `prompt`: a FIN is acknowledged at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) seq: Seq,
    pub(super) len: u32,
    pub(super) fin: bool,
    pub(super) mss: u16,
    pub(super) prompt: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const IRS: Seq = Seq(u32::MAX - 2);

    fn seg(offset: u32, len: u32, fin: bool) -> Segment {
        Segment { seq: IRS.add(1).add(offset), len, fin, mss: 100, prompt: false }
    }

    fn handle(rx: &mut Receiver, segment: &Segment) -> Arrived {
        rx.handle(Time::ZERO, segment, Duration::ZERO)
    }

    fn receiver() -> Receiver {
        let mut rx = Receiver::new(Time::ZERO, IRS, true);
        rx.ack_sent(Time::ZERO);
        rx
    }

    #[test]
    fn a_lone_segment_is_acknowledged_late_two_at_once() {
        let mut rx = receiver();
        assert_eq!(handle(&mut rx, &seg(0, 100, false)), Arrived::InOrder);
        assert_eq!(rx.ack_due(), Some(Time::ZERO + DELAYED_ACK));
        handle(&mut rx, &seg(100, 100, false));
        assert_eq!(rx.ack_due(), Some(Time::ZERO));
        assert_eq!(rx.rcv_nxt(), IRS.add(201));
    }

    #[test]
    fn the_ack_of_a_fin_may_wait_for_our_own() {
        for (prompt, due) in [(false, DELAYED_ACK), (true, Duration::ZERO)] {
            let mut rx = receiver();
            handle(&mut rx, &Segment { prompt, ..seg(0, 10, true) });
            assert_eq!((rx.ack_due(), rx.quiet_since()), (Some(Time::ZERO + due), Time::ZERO));
        }
    }

    #[test]
    fn the_handshakes_ack_waits_for_the_clients() {
        let mut rx = Receiver::new(Time::ZERO, IRS, false);
        assert_eq!(rx.ack_due(), Some(Time::ZERO + UNSEEN_HANDSHAKE_ACK));
        rx.client_connected(Time::from_micros(50));
        assert_eq!(rx.ack_due(), Some(Time::from_micros(50) + HANDSHAKE_ACK));
        rx.ack_sent(Time::from_micros(60));
        rx.client_connected(Time::from_micros(70));
        assert_eq!(rx.ack_due(), None);
    }

    #[test]
    fn holes_fill_in_any_order() {
        let mut rx = receiver();
        assert_eq!(handle(&mut rx, &seg(200, 50, true)), Arrived::OutOfOrder);
        assert_eq!(rx.ack_due(), Some(Time::ZERO));
        assert_eq!(handle(&mut rx, &seg(100, 50, false)), Arrived::OutOfOrder);
        assert_eq!(handle(&mut rx, &seg(150, 50, false)), Arrived::OutOfOrder);
        assert_eq!(rx.received(), 0);
        assert_eq!(handle(&mut rx, &seg(0, 100, false)), Arrived::InOrder);
        assert_eq!((rx.received(), rx.finished()), (251, true));
        assert_eq!(handle(&mut rx, &seg(200, 50, true)), Arrived::Duplicate);
    }

    #[test]
    fn an_ack_brings_nothing_and_a_keep_alive_probe_is_answered() {
        let mut rx = receiver();
        assert_eq!(handle(&mut rx, &seg(0, 0, false)), Arrived::Nothing);
        assert_eq!(rx.ack_due(), None);
        let probe = Segment { seq: IRS, ..seg(0, 0, false) };
        assert_eq!(handle(&mut rx, &probe), Arrived::Duplicate);
        assert_eq!(rx.ack_due(), Some(Time::ZERO));
    }

    #[test]
    fn the_window_has_an_end() {
        let rx = receiver();
        assert!(!rx.is_beyond(seg(65_535, 10, false).seq, 65_535));
        assert!(rx.is_beyond(seg(65_536, 10, false).seq, 65_535));
        assert!(!rx.is_beyond(IRS, 65_535));
    }

    #[test]
    fn ranges_are_bounded() {
        let mut rx = receiver();
        for i in 1..200 {
            handle(&mut rx, &seg(i * 10, 5, false));
        }
        assert_eq!(rx.ranges.len(), MAX_RANGES);
    }
}
