//! Where [`Time`] comes from.

use std::time::{Duration, Instant};

use crate::wire::Time;

/// The monotonic clock of a process. Copies tell the same time in every thread.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock whose [`Time::ZERO`] is now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time.
    pub fn now(self) -> Time {
        Time::ZERO + self.0.elapsed()
    }
}

/// How long a loop may wait for events: until `deadline`, or forever.
pub fn wait(now: Time, deadline: Option<Time>) -> Option<Duration> {
    deadline.map(|at| at.since(now))
}
