//! One replayed connection: a client's bytes on one side, a TCP connection to the target on the
//! other. Sans-IO: no socket, clock, thread, random source or environment.
//!
//! The session owns the upstream buffer, the gate and the connection; who it speaks for and to
//! (addresses, ports) is the caller's business. The calling contract:
//!
//! 1. An input: [`Session::handle_client`], [`Session::handle_target`], [`Session::handle_timeout`].
//! 2. Then, until both say `None`: [`Session::poll_transmit`], and [`Session::poll_event`].
//!    On [`Event::Connect`] call [`Session::connect`] when an address and port are at hand, at once
//!    or later; it is an input. After [`Event::Ended`] and the last transmission the session is done.
//! 3. Then [`Session::poll_timeout`] says when `handle_timeout` is due.
//!
//! Time never goes backwards between calls.
//!
//! What the client's segments say of its own path stays there: ECN, which our SYN does not offer, and its
//! sizes. So does the urgent pointer, which middleboxes remove as well (RFC 6093, 3.4): urgent bytes
//! arrive in the stream, in their place.
//!
//! | file | subject |
//! |---|---|
//! | `upstream` | the client's bytes, reassembled and kept until acknowledged; bursts |
//! | `writes`, `joining` | where the client's writes end; where a connection captured mid-stream is joined |
//! | `client` | what is known of the real client: options, window, round-trip time |
//! | `gate`, `bursts` | when a burst may leave, and what follows |
//! | `candidates`, `learned` | where a response may end; what sessions of a target learn from each other about that |
//! | `exchanges` | one report for each burst that left |
//! | `ledger` | what became of every captured byte |
//! | `connection`, `sender`, `receiver`, `rtt` | TCP toward the target |
//! | `reconnect` | the session leaves a connection, or has it taken back, and goes on with another |
//! | `replay`, `target` | the session, which ties these together; the target's segments |
//!
//! Imports `wire` only.

mod bursts;
mod candidates;
mod client;
mod config;
mod connection;
mod event;
mod exchanges;
mod gate;
mod joining;
mod learned;
mod ledger;
mod receiver;
mod reconnect;
mod replay;
mod rtt;
mod sender;
mod target;
#[cfg(test)]
mod tests;
mod upstream;
mod writes;

pub use config::{Config, GateMode, Latency, MidStream};
pub use event::{Answer, End, Event, Exchange, Outcome, Taken};
pub use learned::Learned;
pub use ledger::{Fate, Ledger};
pub use replay::{ISS_STEP, Session};
