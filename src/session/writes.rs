//! Where the client's writes end, as far as its segments tell.
//!
//! The last segment of what an application wrote carries PSH (RFC 9293, 3.9.1), unless more was
//! written before it left, and a merger of segments (GRO) keeps it. So a long segment without PSH has
//! a continuation, and what the client had acknowledged when it sent that says nothing of requests.
//! Some stacks never set PSH, nor do some applications (`MSG_MORE`), so it counts only for clients
//! that have been seen to. A short segment is none that a write was cut into; it ends one in any case.

use crate::wire::Flags;

/// No segment that a write is cut into is shorter (RFC 9293, 3.7.1), but for options.
const FULL: usize = 536;

/// What is known of a client's writes at one place of its stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Writes {
    /// The client sets PSH.
    pushes: bool,
    /// The segment before this place ended no write.
    open: bool,
}

impl Writes {
    /// The same client at a place where nothing precedes.
    pub(super) fn anew(self) -> Self {
        Self { open: false, ..self }
    }

    /// Whether a segment with `len` bytes leaves its write open. What comes with SYN (RFC 7413) is a
    /// request for itself, and nobody sets PSH there.
    pub(super) fn leaves_open(len: usize, flags: Flags) -> bool {
        len >= FULL && !flags.contains(Flags::PSH) && !flags.syn()
    }

    /// The client has sent a segment with data, wherever it lies.
    pub(super) fn observe(&mut self, flags: Flags) {
        self.pushes |= flags.contains(Flags::PSH);
    }

    /// The place is now behind a segment that leaves its write open, or not.
    pub(super) fn advance(&mut self, open: bool) {
        self.open = open;
    }

    /// Whether what comes here continues a write.
    pub(super) fn continues(self) -> bool {
        self.pushes && self.open
    }
}
