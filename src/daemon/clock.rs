//! Where [`Time`] comes from.

use std::time::{Instant, SystemTime};

use crate::wire::Time;

/// The monotonic clock of a process. Copies tell the same time in every thread.
///
/// [`Time::ZERO`] is 1970, as the wall clock had it when the process started: so the TCP timestamps
/// that are made of it do not go back when the process is started again (RFC 7323, 5).
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    at: Time,
}

impl Clock {
    /// A clock that is right now.
    pub fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), at: Time::ZERO + since_1970 }
    }

    /// The time.
    pub fn now(self) -> Time {
        self.at + self.started.elapsed()
    }
}
