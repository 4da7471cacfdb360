//! What the replayer counts.

use std::time::Duration;

use super::histogram::Histogram;
use crate::session::{Answer, End, Ledger, Outcome, Taken};
use crate::wire::Tally;

/// Why a captured packet reached no session. A packet that did is counted by [`Taken`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unused {
    /// No route has its destination.
    NotRouted,
    /// Its connection is not among the percentage that is replayed.
    NotSelected,
    /// It opened a connection, or would have joined one, but there are as many as there may be.
    SessionLimit,
    /// The same, for the memory limit.
    MemoryLimit,
    /// It belongs to no live session and cannot begin one.
    NoSession,
    /// It has SYN and RST or FIN, or SYN and ACK, set: not a client's.
    Flags,
}

crate::counted!(Unused {
    NotRouted => "not_routed",
    NotSelected => "not_selected",
    SessionLimit => "session_limit",
    MemoryLimit => "memory_limit",
    NoSession => "no_session",
    Flags => "bad_flags",
});

/// Counters of one worker.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Captured packets by what became of them in their session (its first copy).
    pub taken: Tally<Taken>,
    /// Captured packets that reached no session.
    pub unused: Tally<Unused>,
    /// Payload bytes of captured packets, once for each copy that sessions are to be made of.
    pub captured_bytes: u64,
    /// Those of them that reached a session, by what became of them; the rest of these is held.
    pub ledger: Ledger,
    /// Those that reached none. A copy whose session has ended before its siblings is
    /// [`Unused::NoSession`].
    pub unused_bytes: Tally<Unused>,
    /// Headers from the target.
    pub answers: Tally<Answer>,
    /// Sessions that ended, by reason.
    pub ended: Tally<End>,
    /// Exchanges, by how they ended: one for each request burst that left.
    pub exchanges: Tally<Outcome>,
    /// Sessions begun, copies included.
    pub started: u64,
    /// Sessions that found no free address and port.
    pub no_address: u64,
    /// Claims that an intercept refused.
    pub claims_refused: u64,
    /// Claims that an intercept did not confirm in time.
    pub claims_unconfirmed: u64,
    /// Claims that an intercept gave up to make room, made again.
    pub claims_evicted: u64,
    /// Connections opened to the target.
    pub connections: u64,
    /// Those of them that were not the first of their session.
    pub reconnects: u64,
    /// Reconnects that waited because there were more than [`super::Config::reconnects_per_second`] of them.
    pub reconnects_delayed: u64,
    /// Reconnects that waited because connections of their session had brought no progress.
    pub backed_off: u64,
    /// Connections that were tried while their target was suspect.
    pub canaries: u64,
    /// Connections that were taken back before the target had answered, because it was suspect.
    pub taken_back: u64,
    /// Segments and payload bytes handed out for sending, retransmissions included.
    pub segments: u64,
    /// See `segments`.
    pub bytes: u64,
    /// Upstream bytes given up: lost by the capture, or before a boundary after a reconnect.
    pub skipped_bytes: u64,
    /// Requests that the target acknowledged, and reset the connection without a byte of response.
    pub unanswered: u64,
    /// Requests that left before the target had sent all of its response to the one before, as far as its segments
    /// tell.
    pub early: u64,
    /// Time from the capture of a request to the time at which it could leave, and the longest.
    pub lag: Histogram,
    /// See `lag`.
    pub lag_max: Duration,
    /// Time from the end of a request to the last byte of the target's response.
    pub response_time: Histogram,
}

impl Counters {
    /// Captured payload bytes that are held no more. With those that sessions hold they are
    /// `captured_bytes`, whenever the replayer has been polled until it had nothing more to send.
    pub fn settled_bytes(&self) -> u64 {
        self.ledger.settled() + self.unused_bytes.total()
    }

    /// Adds another worker's counters to these.
    pub fn merge(&mut self, other: &Self) {
        self.taken.merge(&other.taken);
        self.unused.merge(&other.unused);
        self.captured_bytes += other.captured_bytes;
        self.ledger.merge(&other.ledger);
        self.unused_bytes.merge(&other.unused_bytes);
        self.answers.merge(&other.answers);
        self.ended.merge(&other.ended);
        self.exchanges.merge(&other.exchanges);
        self.started += other.started;
        self.no_address += other.no_address;
        self.claims_refused += other.claims_refused;
        self.claims_unconfirmed += other.claims_unconfirmed;
        self.claims_evicted += other.claims_evicted;
        self.connections += other.connections;
        self.reconnects += other.reconnects;
        self.reconnects_delayed += other.reconnects_delayed;
        self.backed_off += other.backed_off;
        self.canaries += other.canaries;
        self.taken_back += other.taken_back;
        self.segments += other.segments;
        self.bytes += other.bytes;
        self.skipped_bytes += other.skipped_bytes;
        self.unanswered += other.unanswered;
        self.early += other.early;
        self.lag.merge(&other.lag);
        self.lag_max = self.lag_max.max(other.lag_max);
        self.response_time.merge(&other.response_time);
    }
}
