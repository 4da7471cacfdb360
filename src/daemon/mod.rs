//! The running programs: what surrounds and drives the modules that do no I/O.

pub mod clock;
pub mod exit;
pub mod failures;
pub mod intercept;
pub mod link;
pub mod logging;
pub mod notify;
pub mod pipe;
pub mod quiet;
pub mod signals;
pub mod tcpcopy;
pub mod threads;
