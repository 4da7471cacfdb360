//! How a loop waits: for its descriptors, and until a deadline.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use super::clock::Clock;
use crate::wire::Time;

/// Has the loop woken with `token` when `descriptor` becomes readable, until it is closed.
pub(super) fn watch(registry: &Registry, descriptor: BorrowedFd<'_>, token: Token) -> io::Result<()> {
    registry.register(&mut SourceFd(&descriptor.as_raw_fd()), token, Interest::READABLE)
}

/// Rests until `rest`, if it is yet to come; then waits for events until `deadline`, or forever. What comes
/// during a rest is there after it; whether something did is returned.
pub(super) fn rest_and_wait(
    poll: &mut Poll,
    events: &mut Events,
    clock: Clock,
    rest: Option<Time>,
    deadline: Option<Time>,
) -> io::Result<bool> {
    let mut now = clock.now();
    let Some(until) = rest.filter(|until| *until > now) else {
        wait(poll, events, now, deadline)?;
        return Ok(false);
    };
    std::thread::sleep(until - now);
    now = clock.now();
    wait(poll, events, now, Some(now))?;
    if !events.is_empty() {
        return Ok(true);
    }
    wait(poll, events, now, deadline)?;
    Ok(false)
}

/// Waits for events until `deadline`, or forever. A signal handler that ran ends it without events.
pub(super) fn wait(
    poll: &mut Poll,
    events: &mut Events,
    now: Time,
    deadline: Option<Time>,
) -> io::Result<()> {
    match poll.poll(events, deadline.map(|at| at.since(now))) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
