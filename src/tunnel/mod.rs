//! The connection between a tcpcopy worker and an intercept worker: claims one way, the headers of
//! the target's responses the other way.
//!
//! Sans-IO. [`Client`] is tcpcopy's end and [`Server`] intercept's; each is one connection's state
//! machine and is thrown away with it. Bytes that were read go in, bytes to write come out. With a
//! shared key ([`Secret`]) what is between [`frame`]s and the socket's bytes is a Noise handshake and
//! then sealed records; each handshake takes fresh random bytes ([`Ephemeral`]). The calling contract
//! of both:
//!
//! 1. put what the socket has into `space()` and tell `filled(now, n)` (or `handle_bytes`);
//! 2. `poll_event()` until it answers `None`; it decodes in place, one record a call;
//! 3. `handle_timeout(now)` when `poll_timeout()` has come, always after what could be read was
//!    read, so that a process that was stopped does not mistake itself for a silent peer;
//! 4. write `pending()` and tell `sent(n)`. Records gather in one frame until its first byte is
//!    sent, or sealed by `pending()`: calling this when the receive queue runs empty is what makes
//!    batches.
//!
//! After `Closed` nothing else comes; the socket is to be closed once `pending()` was tried.
//!
//! What is sent is bounded by [`Limits::output`]. Header records that do not fit are dropped and
//! counted, since the target retransmits; whatever else does not fit ends the connection. After a
//! reconnect the claimer sends every live claim again.
//!
//! With a C tool at the other end, [`legacy`] has the two ends that speak its protocol.
//!
//! Imports `wire` only.

mod bytes;
mod channel;
mod client;
mod codec;
pub mod frame;
mod going;
mod host;
#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod keyed_tests;
pub mod legacy;
mod noise;
mod secret;
mod server;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

pub use client::{Client, ClientEvent};
pub use codec::FrameError;
pub use frame::{ClaimRefusal, Hello, Kind, Refuse, Stats, VERSION, Welcome};
pub use host::{Features, HostState};
pub use secret::{Ephemeral, KeyId, SECRET_BYTES, Secret};
pub use server::{Server, ServerEvent};

use crate::wire::{FlowId, FlowKey, Scope, Time};

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
    /// The client has no key, and one is wanted.
    #[error("the peer has no key, and there are keys here: give it one of them")]
    NoKey,
    /// The client has a key, and there is none here.
    #[error("the peer wants a tunnel with a key, and there is none here")]
    KeyOffered,
    /// The client's key is not known here, or it does not really have it.
    #[error("the peer does not have a key that is known here (it names {0})")]
    UnknownKey(KeyId),
    /// The server did not prove that it has the key.
    #[error("the peer did not prove that it has key {0}")]
    NotProven(KeyId),
    /// A record that the peer did not make, or not at this place.
    #[error("a record is forged, repeated or out of order")]
    Forged,
    /// The first message is that of a C tcpcopy.
    #[error("the peer is a C tcpcopy, which is spoken with if its address is in `legacy`")]
    CTool,
    /// What a C tool cannot have said.
    #[error("{0}")]
    Legacy(#[from] legacy::Fault),
    /// A frame that this end does not take, or not now.
    #[error("unexpected {0:?} frame")]
    Unexpected(Kind),
}

/// tcpcopy's end of a connection, whoever is at the other one.
pub trait Claimer: Endpoint + fmt::Debug {
    /// Whether the intercept has taken the connection.
    fn is_connected(&self) -> bool;
    /// Memory that its buffers take, in bytes.
    fn memory(&self) -> usize;
    /// Claims a flow. Nothing happens unless connected, since every live claim is made on
    /// [`ClientEvent::Connected`].
    fn claim(&mut self, flow: FlowId, key: FlowKey);
    /// Gives a claim up.
    fn release(&mut self, flow: FlowId);
    /// Asks for headers to leave at once, for so long.
    fn hurry(&mut self, time: Duration);
    /// Whether the intercept's host is closed, as far as the intercept has said.
    fn host(&self) -> &HostState;
    /// Whether no packet of a flow may be sent before [`ClientEvent::Confirmed`].
    fn confirms_claims(&self) -> bool;
    /// Whose responses the intercept takes; `None` if it has not said.
    fn scope(&self) -> Option<&Scope>;
    /// When [`Claimer::handle_timeout`] is due; long ago if [`Claimer::poll_event`] is.
    fn poll_timeout(&self) -> Option<Time>;
    /// Ends what has lasted too long, and pings.
    fn handle_timeout(&mut self, now: Time);
    /// The next event.
    fn poll_event(&mut self) -> Option<ClientEvent>;
}

/// What a socket's driver needs of either end.
pub trait Endpoint {
    /// Room to read into; never empty.
    fn space(&mut self) -> &mut [u8];
    /// `n` bytes of [`Endpoint::space`] were read.
    fn filled(&mut self, now: Time, n: usize);
    /// Whether there is something to write.
    fn has_pending(&self) -> bool;
    /// The bytes to write. Asked for, they are fixed: what is to be sent later goes after them.
    fn pending(&mut self) -> &[u8];
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
