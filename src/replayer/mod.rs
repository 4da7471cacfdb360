//! One worker's sessions: finds the session of each packet, gives sessions addresses, ports and
//! claims, and keeps all of it within bounds. Sans-IO, and alone: workers share nothing.
//!
//! The calling contract of [`Replayer`]:
//!
//! 1. An input: [`Replayer::handle_client`] for a captured packet, [`Replayer::handle_target`] for a
//!    header from the tunnel ([`Replayer::handle_response`] for one met on this host), [`Replayer::handle_timeout`], [`Replayer::set_reachable`],
//!    [`Replayer::shut_down`].
//! 2. Then, after one or several inputs: [`Replayer::poll_transmit`] until it says `None`, and
//!    [`Replayer::poll_claim`] until it does, with [`Replayer::handle_claim_told`] for each claim once it has left: a
//!    session sends nothing before that. Sessions that connect again make claims while they are polled for segments:
//!    repeat both while there are claims.
//! 3. Then [`Replayer::poll_timeout`] says when `handle_timeout` is due.
//!
//! | file | subject |
//! |---|---|
//! | `replay` | the replayer: packets to sessions, sessions' wishes fulfilled |
//! | `claims` | which flows may be claimed, and when they may be connected |
//! | `budget` | how many connections a session may open, and how fast |
//! | `canary` | whether a target answers; one connection a second while it does not |
//! | `reconnect` | when sessions get the connections that they ask for |
//! | `table` | the session table: by client connection, by replayed flow, by deadline |
//! | `address` | pools, ports, selection |
//! | `config`, `counters`, `histogram` | what it is told, what it tells |
//!
//! Imports `session` and `wire`.

mod address;
mod budget;
mod canary;
mod claims;
mod config;
mod counters;
mod histogram;
mod reconnect;
mod replay;
mod table;
#[cfg(test)]
mod tests;

pub use canary::TargetHealth;
pub use claims::ClaimLoss;
pub use config::{Config, Local};
pub use counters::{Counters, Unused};
pub use histogram::Histogram;
pub use reconnect::Target;
pub use replay::{Backlog, Claim, Replayer, Transmit};
