//! The running programs: what surrounds and drives the modules that do no I/O.
//!
//! [`tcpcopy`] and [`intercept`] are the programs; what both do alike is here:
//!
//! | file | subject |
//! |---|---|
//! | `start`, `privileges`, `reload`, `exit`, `failures` | how a program begins, changes and ends, and what errors mean for it |
//! | `logging`, [`message_id`], `quiet`, `condition`, `notify` | what it tells: the journal, without being flooded; the service manager |
//! | `threads`, `wait`, `spacing`, `signals`, [`clock`] | threads and their loops |
//! | `queues`, `intake`, `statistics` | the workers' queues; their packets; the rhythm of their counters |
//! | `pipe`, [`link`] | a tunnel's socket; tcpcopy's connection that is kept up |
//! | `keygen` | the command that makes a key |

pub mod clock;
mod condition;
mod descriptors;
mod exit;
mod failures;
mod intake;
pub mod intercept;
mod keygen;
pub mod link;
mod logging;
mod memory;
pub mod message_id;
mod notify;
mod pipe;
mod privileges;
mod queues;
mod quiet;
mod reload;
mod signals;
mod spacing;
mod start;
mod statistics;
pub mod tcpcopy;
mod threads;
mod wait;
