//! The tunnel of the C tools, tcpcopy 1.x and intercept 1.x, where one end of ours is one of theirs.
//!
//! Numbers are in network byte order, and there is neither authentication nor IPv6. To intercept go messages of 14 bytes:
//!
//! | bytes | are |
//! |---|---|
//! | 4 | the client's address |
//! | 2 | the client's port |
//! | 2 | the type; in the first message, whose other fields are 0, the protocol's version: 6 |
//! | 4 | the target's address |
//! | 2 | the target's port |
//!
//! Type 1 claims a flow for the connection it comes on; there are no releases. To tcpcopy go frames: the number of
//! records (u16, at most 16), then for each 64 bytes of a response: 20 of its IPv4 header, at most 44 of its TCP header, and
//! zeros. A tcpcopy opens several connections and claims on each in turn.
//!
//! This is what they speak as they are configured by default: not with `--single`, `--disable-combined` or
//! `--with-resp-payload`, in which nothing tells that they were.
//!
//! [`Client`] and [`Server`] are called as those of the parent module are.

mod client;
mod codec;
mod server;
#[cfg(test)]
mod tests;

/// Room that an empty output keeps.
const KEPT: usize = 64 << 10;

pub use client::Client;
pub(super) use codec::is_opening;
pub use codec::{Fault, MAX_RECORDS, MESSAGE, RECORD, VERSION};
pub use server::{Server, ServerEvent};
