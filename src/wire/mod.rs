//! Bytes to types and back: the TCP/IP packets that are captured, and those that are sent.
//!
//! The contract: [`parse`] takes whatever arrives and answers with a [`Packet`] or with the reason
//! it is refused ([`Reject`]); it never panics. What it returns has checked lengths, so nobody
//! else looks at raw bytes. [`Outgoing`] is the way back. Sequence numbers are [`Seq`], and its
//! methods are the only arithmetic on them.
//!
//! Nothing here holds state. Imports nothing of the crate.

mod checksum;
#[cfg(test)]
mod differential;
pub mod flow;
pub mod index;
mod mapping;
mod options;
mod outgoing;
mod packet;
pub mod pass;
pub mod prefix;
mod scope;
mod seq;
mod tally;
mod tcp;
mod time;
mod train;

pub use flow::{FlowId, FlowKey};
pub use mapping::Mapping;
pub use options::{TcpOptions, Timestamps};
pub use outgoing::{Fragments, MAX_HEADERS_V4, MIN_HEADERS_V4, MIN_HEADERS_V6, Outgoing, Train};
pub use packet::{Packet, Reject, is_damaged, parse};
pub use pass::Pass;
pub use prefix::Prefix;
pub use scope::Scope;
pub use seq::Seq;
pub use tally::{Counted, Tally};
pub use tcp::{Flags, TcpHeader};
pub use time::Time;
pub use train::{MAX_TRAIN, cut};
