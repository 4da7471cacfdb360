//! What a connection of the scripted host sends by itself: data, retransmissions, keep-alive probes; and what its
//! application asks of it.

use super::{MAX_RTO, MAX_TRIES, RTO, State, Tcb};
use crate::packet::{FIN, PSH};
use crate::rng::Rng;
use crate::target::Socket;

/// Keep-alive probes without an answer that end a connection.
const MAX_PROBES: u32 = 30;
/// In flight at most, in bytes.
const CONGESTION: u64 = 40_000;

impl Tcb {
    pub(super) fn time_out(&mut self, now: u64) {
        if self.timer.is_none_or(|timer| timer > now) {
            return;
        }
        self.tries += 1;
        if self.tries > MAX_TRIES {
            return self.reset(now);
        }
        self.timer = Some(now + (RTO << self.tries.min(8)).min(MAX_RTO));
        self.nxt = self.una;
    }

    pub(super) fn send(&mut self, now: u64, rng: &mut Rng) {
        let most = u64::from(self.peer_mss) - if self.stamps { 12 } else { 0 };
        let window = self.peer_window.max(u64::from(self.tries > 0)).min(CONGESTION);
        while self.state == State::Synchronized {
            let ready = self.written.saturating_sub(self.nxt);
            let usable = (self.una + window).saturating_sub(self.nxt);
            let mut len = ready.min(usable).min(most);
            if self.quirks.piecemeal && len > 1 {
                len = rng.within(len.min(100)..=len);
            }
            let to = self.nxt + len;
            let ends = self.fin_at == Some(to) && (len == 0 || self.quirks.fin_with_data);
            let waits = self.quirks.nagle && len < most && self.nxt > self.una && !ends;
            if (len == 0 && !ends) || waits {
                break;
            }
            self.send_range(now, self.nxt, to, ends);
        }
    }

    fn send_range(&mut self, now: u64, from: u64, to: u64, ends: bool) {
        let push = if to == self.written { PSH } else { 0 };
        let mut segment = self.segment(now, if ends { FIN | push } else { push }, from);
        segment.payload = vec![b'r'; usize::try_from(to - from).expect("small")];
        self.out.push(segment);
        self.nxt = to + u64::from(ends);
        if ends && self.nxt > self.max {
            self.passive = self.peer_has_ended();
        }
        self.max = self.max.max(self.nxt);
        self.timer.get_or_insert(now + RTO);
        (self.ack_due, self.unacked) = (None, 0);
    }

    /// RFC 9293, 3.8.4.
    pub(super) fn probe(&mut self, now: u64) {
        if self.next_probe().is_none_or(|at| at > now) {
            return;
        }
        self.probes += 1;
        if self.probes > MAX_PROBES {
            self.fault(&format!("{MAX_PROBES} keep-alive probes and no answer"));
            return self.reset(now);
        }
        let mut segment = self.segment(now, 0, self.max);
        segment.seq = segment.seq.wrapping_sub(1);
        if self.quirks.probe_with_byte {
            segment.payload = vec![0];
        }
        self.out.push(segment);
    }

    pub(super) fn next_probe(&self) -> Option<u64> {
        let idle = self.state == State::Synchronized && self.max == self.una && self.fin_at.is_none();
        self.quirks
            .keep_alive
            .filter(|_| idle)
            .map(|every| self.heard_at + every * u64::from(self.probes + 1))
    }
}

impl Socket for Tcb {
    fn unread(&self) -> usize {
        self.unread.len()
    }

    fn read(&mut self, most: usize) -> Vec<u8> {
        let len = most.min(self.unread.len());
        self.unread.drain(..len).collect()
    }

    fn may_receive(&self) -> bool {
        !self.peer_has_ended() && self.state == State::Synchronized
    }

    fn write(&mut self, most: usize) -> usize {
        // As much as a socket's buffer takes.
        let room = usize::try_from(32_768u64.saturating_sub(self.written - self.una.min(self.written)));
        let len = room.expect("small").min(most);
        if self.fin_at.is_some() || self.state != State::Synchronized {
            return 0;
        }
        self.written += len as u64;
        len
    }

    fn close(&mut self) {
        self.fin_at = Some(self.written);
    }

    fn abort(&mut self) {
        self.aborted = true;
    }
}
