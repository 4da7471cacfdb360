//! The connection between a tcpcopy worker and an intercept worker: claims one way, the headers of
//! the target's responses the other way.
//!
//! Sans-IO. [`Client`] is tcpcopy's end and [`Server`] intercept's; each is one connection's state
//! machine and is thrown away with it. Bytes that were read go in, bytes to write come out; a
//! layer that encrypts can be put between them and the socket, as neither end looks at the other's
//! bytes except through [`frame`]s. The calling contract of both:
//!
//! 1. put what the socket has into `space()` and tell `filled(now, n)` (or `handle_bytes`);
//! 2. `poll_event()` until it answers `None`; it decodes in place, one record a call;
//! 3. `handle_timeout(now)` when `poll_timeout()` has come, always after what could be read was
//!    read, so that a process that was stopped does not mistake itself for a silent peer;
//! 4. write `pending()` and tell `sent(n)`. Records gather in one frame until its first byte is
//!    sent: calling this when the receive queue runs empty is what makes batches.
//!
//! After `Closed` nothing else comes; the socket is to be closed once `pending()` was tried.
//!
//! What is sent is bounded by [`Limits::output`]. Header records that do not fit are dropped and
//! counted, since the target retransmits; whatever else does not fit ends the connection. After a
//! reconnect the claimer sends every live claim again.
//!
//! Imports `wire` only.

mod client;
mod codec;
pub mod frame;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use client::{Client, ClientEvent};
pub use codec::FrameError;
pub use frame::{ClaimRefusal, Hello, Kind, Refuse, Stats, VERSION, Welcome};
pub use server::{Server, ServerEvent};

use crate::wire::Time;

/// Bounds of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that may wait to be written. The claims of all live flows (45 bytes each at most) must
    /// fit in at once: they are made again after a reconnect.
    pub output: usize,
    /// How long the hello or its answer may take.
    pub handshake: Duration,
    /// How often the client pings.
    pub ping: Duration,
    /// How long the peer may say nothing. More than twice [`Limits::ping`].
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            output: 64 << 20,
            handshake: Duration::from_secs(5),
            ping: Duration::from_secs(5),
            silence: Duration::from_secs(15),
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// No hello, or no answer to it, in time.
    #[error("the handshake took too long")]
    HandshakeTimeout,
    /// Nothing was heard for [`Limits::silence`].
    #[error("the peer has been silent for too long")]
    Silent,
    /// More than [`Limits::output`] waits to be written.
    #[error("the peer reads too slowly: the outgoing buffer is full")]
    Overflow,
    /// A frame that cannot be read.
    #[error("bad frame: {0}")]
    Frame(#[from] FrameError),
    /// The first bytes are no tunnel's.
    #[error("the peer does not speak the tunnel's protocol")]
    Magic,
    /// Another version of the protocol.
    #[error("the peer speaks version {0} of the tunnel's protocol, this is version {VERSION}")]
    Version(u16),
    /// The intercept spreads flows over its workers by another seed.
    #[error("the peer splits flows by seed {0:#010x}")]
    SplitSeed(u32),
    /// The intercept answered as another worker than the one asked for.
    #[error("worker {0} answered in place of the one asked for")]
    Worker(u16),
    /// The intercept refused the connection.
    #[error("refused: {0}")]
    Refused(Refuse),
    /// A frame that this end does not take, or not now.
    #[error("unexpected {0:?} frame")]
    Unexpected(Kind),
}

/// What a socket's driver needs of either end.
pub trait Endpoint {
    /// Room to read into; never empty.
    fn space(&mut self) -> &mut [u8];
    /// `n` bytes of [`Endpoint::space`] were read.
    fn filled(&mut self, now: Time, n: usize);
    /// The bytes to write.
    fn pending(&self) -> &[u8];
    /// `n` bytes of [`Endpoint::pending`] were written.
    fn sent(&mut self, n: usize);

    /// Takes bytes from a buffer of the caller's.
    fn handle_bytes(&mut self, now: Time, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = self.space();
            let n = space.len().min(rest.len());
            let (head, tail) = rest.split_at(n);
            if let Some(room) = space.get_mut(..n) {
                room.copy_from_slice(head);
            }
            self.filled(now, n);
            rest = tail;
        }
    }
}
