//! Where a connection captured mid-stream can be joined: at its next request.

use super::writes::Writes;
use crate::wire::{Seq, TcpHeader};

/// What was seen of the connection so far.
#[derive(Debug, Default)]
pub(super) struct Joining {
    /// Sequence number after the last data seen, and the acknowledgment it was sent at.
    last: Option<(Seq, Seq)>,
    writes: Writes,
}

impl Joining {
    /// What is known of the client's writes where it is joined.
    pub(super) fn writes(&self) -> Writes {
        self.writes.anew()
    }

    /// Whether a segment begins a request: it was sent after more of the response than the data
    /// before it, nothing is missing in between, and it continues no write.
    pub(super) fn begins_request(&mut self, header: &TcpHeader, payload: &[u8]) -> bool {
        if payload.is_empty() || !header.flags.ack() {
            return false;
        }
        let end = header.seq.add(header.payload_len);
        let open = Writes::leaves_open(payload.len(), header.flags);
        self.writes.observe(header.flags);
        let Some((next, acked)) = &mut self.last else {
            self.last = Some((end, header.ack));
            self.writes.advance(open);
            return false;
        };
        let follows = header.seq == *next;
        let continues = follows && self.writes.continues();
        let begins = follows && !continues && header.ack.is_after(*acked);
        if end.is_after(*next) || (end == *next && !open) {
            *next = end;
            self.writes.advance(open);
        }
        if header.ack.is_after(*acked) && !continues {
            *acked = header.ack;
        }
        begins
    }
}
