//! The sending half of TCP toward the target (RFC 9293, RFC 5681, RFC 6582, RFC 6298).
//!
//! Positions are offsets in the upstream byte stream; FIN takes one. The sender knows which of
//! them are in flight; the bytes stay in [`super::upstream`].

use std::time::Duration;

use super::rtt::Rtt;
use crate::wire::{Seq, Time};

/// Duplicate ACKs that mean a loss (RFC 5681, 3.2).
const DUP_THRESHOLD: u8 = 3;
/// Initial congestion window in segments (RFC 6928).
const INITIAL_WINDOW: u32 = 10;
/// Congestion window no path of a test needs more than, in bytes.
const MAX_CWND: u32 = 64 << 20;

/// What to send: bytes `from..to`, and FIN after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) fin: bool,
}

/// What an ACK was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acked {
    /// It acknowledged something new.
    Advanced,
    /// It changed nothing, or repeated the last one.
    Same,
    /// It is older than the last one.
    Old,
    /// It acknowledges what was never sent.
    Unsent,
}

/// An ACK as the sender sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    /// Upstream offset acknowledged.
    pub(super) offset: u64,
    /// Window in bytes, scaled.
    pub(super) window: u32,
    /// Whether the segment carried no data, SYN or FIN.
    pub(super) bare: bool,
    /// Round-trip time by the echoed timestamp.
    pub(super) rtt: Option<Duration>,
}

/// How much leaves at a time, in bytes of payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// In a segment.
    pub(super) segment: u32,
    /// In a train of segments that leave as one; less than two segments means none do.
    pub(super) train: u32,
}

/// State of the sending half.
#[derive(Debug)]
pub(super) struct Sender {
    /// Sequence number of SYN; the byte at `base` has the next one.
    iss: Seq,
    base: u64,
    /// First unacknowledged offset (SND.UNA), next to send (SND.NXT), and the highest ever sent.
    una: u64,
    nxt: u64,
    max: u64,
    window: u32,
    mss: u32,
    /// Most bytes that leave as one: a multiple of `mss`.
    train: u32,
    cwnd: u32,
    ssthresh: u32,
    /// Recovery ends when this is acknowledged (RFC 6582).
    recover: Option<u64>,
    dup_acks: u8,
    resend_first: bool,
    probe: bool,
    rtt: Rtt,
    /// Offset whose acknowledgment is timed, and when it was sent; only with Karn's caution.
    timed: Option<(u64, Time)>,
    timer: Option<Time>,
    /// Since when nothing new was acknowledged although something is outstanding.
    stalled_since: Option<Time>,
}

impl Sender {
    /// A sender whose SYN has sequence number `iss` and whose first byte is at offset `base`.
    pub(super) fn new(iss: Seq, base: u64) -> Self {
        Self {
            iss,
            base,
            una: base,
            nxt: base,
            max: base,
            window: 0,
            mss: 536,
            train: 536,
            cwnd: 0,
            ssthresh: MAX_CWND,
            recover: None,
            dup_acks: 0,
            resend_first: false,
            probe: false,
            rtt: Rtt::default(),
            timed: None,
            timer: None,
            stalled_since: None,
        }
    }

    /// Sequence number of SYN.
    pub(super) fn iss(&self) -> Seq {
        self.iss
    }

    /// Offset of the first byte of the connection.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Bytes of payload in a whole segment.
    pub(super) fn mss(&self) -> u32 {
        self.mss
    }

    /// First unacknowledged offset.
    pub(super) fn una(&self) -> u64 {
        self.una
    }

    /// Next offset to send.
    pub(super) fn nxt(&self) -> u64 {
        self.nxt
    }

    /// The highest offset ever sent.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// Smoothed round-trip time.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// When the retransmission or persist timer goes off.
    pub(super) fn timer(&self) -> Option<Time> {
        self.timer
    }

    /// The path works again, for others: what was sent in vain is sent again at `at`, if not before.
    /// Returns whether that is sooner. The back-off stays, in case it does not work for us.
    pub(super) fn hasten(&mut self, at: Time) -> bool {
        let sooner = self.rtt.is_backed_off() && self.timer.is_some_and(|timer| timer > at);
        if sooner {
            self.timer = Some(at);
        }
        sooner
    }

    /// Whether the target has closed its window.
    pub(super) fn window_is_closed(&self) -> bool {
        self.window == 0
    }

    /// Since when the target has acknowledged nothing, though something is outstanding.
    pub(super) fn stalled_since(&self) -> Option<Time> {
        self.stalled_since
    }

    /// Sequence number of the byte at `offset`.
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are offsets modulo 2^32")]
    pub(super) fn seq_at(&self, offset: u64) -> Seq {
        self.iss.add(1).add(offset.wrapping_sub(self.base) as u32)
    }

    /// Offset that an acknowledgment number stands for; `None` before the first byte.
    pub(super) fn offset_of(&self, ack: Seq) -> Option<u64> {
        ack.unwrap_near(self.una, self.seq_at(self.una)).filter(|offset| *offset >= self.base)
    }

    /// SYN leaves, for the first or a further time.
    pub(super) fn syn_sent(&mut self, now: Time) {
        if self.stalled_since.is_none() {
            self.stalled_since = Some(now);
            self.timed = Some((self.base, now));
        }
        self.timer = Some(now + self.rtt.rto());
    }

    /// SYN was acknowledged; `rtt` is its round-trip time by the echoed timestamp.
    pub(super) fn established(&mut self, now: Time, sizes: Sizes, window: u32, rtt: Option<Duration>) {
        self.mss = sizes.segment.max(1);
        self.train = (sizes.train / self.mss).max(1) * self.mss;
        self.window = window;
        self.cwnd = self.mss.saturating_mul(INITIAL_WINDOW);
        self.timer = None;
        self.stalled_since = None;
        self.rtt.progress();
        if let Some(rtt) = self.timed.take().map(|(_, sent)| now - sent).or(rtt) {
            self.rtt.sample(rtt);
        }
    }

    /// What to send next, given that bytes before `limit` may leave and, if `fin`, FIN after them.
    pub(super) fn next(&mut self, now: Time, limit: u64, fin: bool) -> Option<Range> {
        let close = limit + u64::from(fin);
        if self.probe {
            self.probe = false;
            return self.send(now, self.una, (self.una + 1).min(limit), limit, fin);
        }
        if self.resend_first {
            self.resend_first = false;
            let to = (self.una + u64::from(self.mss)).min(limit).min(self.max);
            return self.send(now, self.una, to, limit, fin);
        }
        if self.nxt >= close {
            return None;
        }
        let usable = (self.una + u64::from(self.window.min(self.cwnd))).saturating_sub(self.nxt);
        let ready = limit.saturating_sub(self.nxt);
        let mut len = ready.min(usable).min(u64::from(self.train));
        if len < ready && len > u64::from(self.mss) {
            // Only the last segment of all may be short.
            len -= len % u64::from(self.mss);
        }
        let outstanding = self.nxt > self.una;
        // Silly window avoidance (RFC 9293, 3.8.6.2.1): no part of a segment while the rest of the
        // window is under way.
        let silly = len < ready.min(u64::from(self.mss)) && outstanding;
        if (ready > 0 && len == 0) || silly {
            if !outstanding && self.timer.is_none() {
                self.timer = Some(now + self.rtt.rto());
            }
            return None;
        }
        self.send(now, self.nxt, self.nxt + len, limit, fin)
    }

    fn send(&mut self, now: Time, from: u64, to: u64, limit: u64, fin: bool) -> Option<Range> {
        let fin = fin && to == limit;
        let end = to + u64::from(fin);
        if end == from {
            return None;
        }
        if from == self.max && self.timed.is_none() {
            self.timed = Some((end, now));
        } else if from < self.max {
            self.timed = None;
        }
        self.nxt = self.nxt.max(end);
        self.max = self.max.max(end);
        if self.timer.is_none() {
            self.timer = Some(now + self.rtt.rto());
        }
        self.stalled_since.get_or_insert(now);
        Some(Range { from, to, fin })
    }

    /// Takes an acknowledgment in.
    pub(super) fn handle_ack(&mut self, now: Time, ack: &Ack) -> Acked {
        if ack.offset > self.max {
            return Acked::Unsent;
        }
        if ack.offset < self.una {
            return Acked::Old;
        }
        let before = std::mem::replace(&mut self.window, ack.window);
        if ack.offset == self.una {
            self.handle_same(now, ack, before);
            return Acked::Same;
        }
        self.measure(now, ack);
        let acked = u32::try_from(ack.offset - self.una).unwrap_or(u32::MAX);
        self.una = ack.offset;
        self.nxt = self.nxt.max(self.una);
        self.rtt.progress();
        self.grow(acked);
        let outstanding = self.max > self.una;
        self.timer = outstanding.then(|| now + self.rtt.rto());
        self.stalled_since = outstanding.then_some(now);
        Acked::Advanced
    }

    fn handle_same(&mut self, now: Time, ack: &Ack, window_before: u32) {
        if window_before == 0 && self.window > 0 {
            // The window opened: the persist timer has done its work, and a probe that was refused
            // is sent again with what follows it. What was in flight when the window closed may
            // have arrived (RFC 9293, 3.8.6: the window may shrink).
            if self.rtt.is_backed_off() {
                self.nxt = self.una;
            }
            self.rtt.progress();
            let outstanding = self.max > self.una;
            self.timer = outstanding.then(|| now + self.rtt.rto());
            self.stalled_since = outstanding.then_some(now);
        }
        if !(ack.bare && window_before == self.window && self.max > self.una) {
            return;
        }
        self.dup_acks = self.dup_acks.saturating_add(1);
        if self.recover.is_some() {
            self.cwnd = self.cwnd.saturating_add(self.mss).min(MAX_CWND);
        } else if self.dup_acks == DUP_THRESHOLD {
            self.ssthresh = (self.in_flight() / 2).max(2 * self.mss);
            self.cwnd = self.ssthresh + u32::from(DUP_THRESHOLD) * self.mss;
            self.recover = Some(self.max);
            self.resend_first = true;
        }
    }

    fn measure(&mut self, now: Time, ack: &Ack) {
        let timed = self.timed.filter(|(end, _)| ack.offset >= *end);
        if timed.is_some() {
            self.timed = None;
        }
        if let Some(rtt) = timed.map(|(_, sent)| now - sent).or(ack.rtt) {
            self.rtt.sample(rtt);
        }
    }

    /// Window growth, or a step of recovery.
    fn grow(&mut self, acked: u32) {
        match self.recover {
            Some(recover) if self.una < recover => {
                // A partial ACK: the next hole begins here (RFC 6582, 3.2).
                self.resend_first = true;
                self.cwnd = self.cwnd.saturating_sub(acked).saturating_add(self.mss).max(self.mss);
            }
            Some(_) => {
                self.recover = None;
                self.dup_acks = 0;
                self.cwnd = self.ssthresh.max(2 * self.mss);
            }
            None => {
                self.dup_acks = 0;
                let step = if self.cwnd < self.ssthresh {
                    acked.min(2 * self.mss)
                } else {
                    (self.mss.saturating_mul(self.mss) / self.cwnd.max(1)).max(1)
                };
                self.cwnd = self.cwnd.saturating_add(step).min(MAX_CWND);
            }
        }
    }

    /// The timer went off: after a loss everything unacknowledged is sent again, at a closed
    /// window one byte probes it.
    pub(super) fn handle_timer(&mut self, now: Time) {
        self.rtt.back_off();
        self.timed = None;
        self.timer = Some(now + self.rtt.rto());
        self.stalled_since.get_or_insert(now);
        if self.window == 0 && self.cwnd > 0 {
            self.probe = true;
            return;
        }
        if self.max > self.una {
            self.ssthresh = (self.in_flight() / 2).max(2 * self.mss);
            self.cwnd = self.mss;
            self.nxt = self.una;
            self.recover = None;
            self.dup_acks = 0;
        }
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.max - self.una).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(millis: u32) -> Time {
        Time::ZERO + MS * millis
    }

    fn sender(window: u32) -> Sender {
        let mut sender = Sender::new(Seq(1000), 0);
        sender.syn_sent(at(0));
        sender.established(at(1), Sizes { segment: 100, train: 0 }, window, None);
        sender
    }

    fn bare(offset: u64, window: u32) -> Ack {
        Ack { offset, window, bare: true, rtt: None }
    }

    fn all(sender: &mut Sender, now: Time, limit: u64, fin: bool) -> Vec<(u64, u64, bool)> {
        std::iter::from_fn(|| sender.next(now, limit, fin)).map(|r| (r.from, r.to, r.fin)).collect()
    }

    #[test]
    fn sends_segments_and_fin_within_the_window() {
        let mut s = sender(1000);
        assert_eq!(all(&mut s, at(0), 250, true), [(0, 100, false), (100, 200, false), (200, 250, true)]);
        assert_eq!(s.handle_ack(at(1), &bare(251, 1000)), Acked::Advanced);
        assert_eq!((s.timer(), s.stalled_since()), (None, None));
        assert_eq!(s.handle_ack(at(1), &bare(252, 1000)), Acked::Unsent);
    }

    #[test]
    fn a_fin_alone_takes_one_number() {
        let mut s = sender(0);
        assert_eq!(all(&mut s, at(0), 0, true), [(0, 0, true)]);
        assert_eq!(s.seq_at(1), Seq(1002));
    }

    #[test]
    fn the_timer_sends_the_first_segment_again() {
        let mut s = sender(1000);
        all(&mut s, at(0), 300, false);
        s.handle_timer(at(200));
        assert_eq!(s.next(at(200), 300, false), Some(Range { from: 0, to: 100, fin: false }));
        assert_eq!(s.next(at(200), 300, false), None, "one segment until it is acknowledged");
        s.handle_ack(at(201), &bare(300, 1000));
        assert_eq!((s.nxt(), s.timer()), (300, None));
    }

    #[test]
    fn three_duplicates_resend_at_once() {
        let mut s = sender(1000);
        all(&mut s, at(0), 500, false);
        for _ in 0..3 {
            assert_eq!(s.handle_ack(at(1), &bare(0, 1000)), Acked::Same);
        }
        assert_eq!(s.next(at(1), 500, false), Some(Range { from: 0, to: 100, fin: false }));
        s.handle_ack(at(2), &bare(200, 1000));
        assert_eq!(s.next(at(2), 500, false), Some(Range { from: 200, to: 300, fin: false }), "partial ACK");
        s.handle_ack(at(3), &bare(500, 1000));
        assert_eq!(s.next(at(3), 500, false), None);
    }

    #[test]
    fn only_a_timer_that_was_backed_off_is_hastened() {
        let mut s = sender(1000);
        all(&mut s, at(0), 100, false);
        assert!(!s.hasten(at(10)), "its answer may be on its way");
        s.handle_timer(at(200));
        s.next(at(200), 100, false);
        assert_eq!((s.hasten(at(300)), s.timer()), (true, Some(at(300))));
        assert!(!s.hasten(at(400)), "never later");
        s.handle_timer(at(300));
        assert_eq!(s.timer(), Some(at(300 + 800)), "the back-off goes on");
    }

    #[test]
    fn a_closed_window_is_probed() {
        let mut s = sender(0);
        assert_eq!(s.next(at(0), 50, false), None);
        let timer = s.timer().expect("persist timer");
        s.handle_timer(timer);
        assert_eq!(s.next(timer, 50, false), Some(Range { from: 0, to: 1, fin: false }));
        s.handle_ack(timer, &bare(1, 500));
        assert_eq!(s.next(timer, 50, false), Some(Range { from: 1, to: 50, fin: false }));
    }

    #[test]
    fn a_window_that_opens_lets_a_refused_probe_go_at_once() {
        let mut s = sender(0);
        s.next(at(0), 50, false);
        s.handle_timer(at(200));
        s.next(at(200), 50, false);
        s.handle_ack(at(201), &bare(0, 0));
        assert_eq!(s.stalled_since(), Some(at(200)));
        s.handle_ack(at(900), &bare(0, 500));
        assert_eq!(s.stalled_since(), Some(at(900)));
        assert_eq!(s.next(at(900), 50, false), Some(Range { from: 0, to: 50, fin: false }));
    }

    #[test]
    fn a_window_that_shuts_and_opens_sends_nothing_twice() {
        let mut s = sender(1000);
        all(&mut s, at(0), 300, false);
        s.handle_ack(at(1), &bare(100, 0));
        s.handle_ack(at(2), &bare(100, 1000));
        assert_eq!(all(&mut s, at(2), 400, false), [(300, 400, false)]);
    }

    #[test]
    fn a_fragment_of_the_window_waits_for_the_rest() {
        let mut s = sender(150);
        assert_eq!(all(&mut s, at(0), 500, false), [(0, 100, false)]);
        s.handle_ack(at(1), &bare(100, 150));
        assert_eq!(all(&mut s, at(1), 500, false), [(100, 200, false)]);
    }
}
