//! The running programs: what surrounds and drives the modules that do no I/O.

pub mod clock;
mod exit;
mod failures;
pub mod intercept;
pub mod link;
mod logging;
mod notify;
mod pipe;
mod queues;
mod quiet;
mod signals;
mod start;
mod statistics;
pub mod tcpcopy;
mod threads;
mod wait;
