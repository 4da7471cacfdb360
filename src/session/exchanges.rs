//! One report for each request burst that left, whatever became of it.
//!
//! Only the burst that passed last can be without a report: the one before it is reported when it
//! passes. One that the target throws back unacknowledged leaves again on the next connection, maybe
//! together with bursts before it, and is not reported for that.

use super::Session;
use super::event::{End, Event, Exchange, Outcome};
use super::receiver::Receiver;
use crate::wire::Time;

/// Which bursts have left and were reported, as upstream offsets.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// Highest offset that ever left.
    sent: u64,
    /// Bursts before this offset have been reported.
    reported: u64,
}

impl Reports {
    /// Bytes up to `to` have left.
    pub(super) fn sent(&mut self, to: u64) {
        self.sent = self.sent.max(to);
    }
}

impl Session {
    /// The burst before the offset `to` is over; `online` bytes answered it in production.
    pub(super) fn report(&mut self, to: u64, online: u64, outcome: Outcome) {
        let first_answer = self.first_answer.take();
        let from = self.burst_start.max(self.reports.reported);
        if to <= from {
            return;
        }
        // If not, it left on an earlier connection, and this one says nothing of it.
        let here = from == self.burst_start;
        self.reports.reported = to;
        let connection = self.connection.as_ref().filter(|_| here);
        let receiver = connection.and_then(|connection| connection.receiver.as_ref());
        let so_far = receiver.map_or(0, Receiver::received);
        let since_sent = |at: Time| connection.map(|connection| at - connection.last_sent);
        let last_byte = receiver.filter(|_| first_answer.is_some()).map(Receiver::last_at);
        self.events.push_back(Event::Exchange(Exchange {
            request_bytes: to - from,
            online_bytes: online,
            target_bytes: if here { self.gate.target_response(so_far) } else { 0 },
            first_byte: first_answer.and_then(since_sent),
            last_byte: last_byte.and_then(since_sent),
            late: self.late,
            outcome,
        }));
    }

    /// No burst follows on this connection: reports the last one, if it left.
    pub(super) fn conclude(&mut self, outcome: Outcome) {
        let seen = self.upstream.waiting().map_or(self.client.acked(), |mark| mark.gate);
        self.report(self.reports.sent, self.gate.online_until(seen), outcome);
    }

    /// The same, unless the target has acknowledged nothing of it, so that it will leave again.
    pub(super) fn conclude_acknowledged(&mut self, outcome: Outcome) {
        if self.acknowledged() > self.burst_start {
            self.conclude(outcome);
        }
        self.first_answer = None;
    }

    /// Upstream offset up to which the target has acknowledged bytes on this connection.
    pub(super) fn acknowledged(&self) -> u64 {
        self.connection.as_ref().map_or(0, |connection| connection.sender.una().min(self.upstream.end()))
    }
}

impl From<End> for Outcome {
    /// What the end of the session makes of its last exchange.
    fn from(why: End) -> Self {
        match why {
            End::TargetReset => Self::TargetReset,
            End::Completed
            | End::ClientReset
            | End::NoProgress
            | End::Unreachable
            | End::Lingering
            | End::Idle
            | End::NotJoined
            | End::BufferLimit
            | End::OutOfScope
            | End::ClaimRefused
            | End::Shed
            | End::Forbidden => Self::Ended,
        }
    }
}
