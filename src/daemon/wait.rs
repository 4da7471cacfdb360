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

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Without a rest, or after one in which nothing came.
    Waited,
    /// After a rest: the events are of what came during it.
    Rested,
    /// After a rest, and nobody asked what came during it.
    Unasked,
}

/// Rests until `rest`, if it is yet to come; then waits for events until `deadline`, or forever. What comes
/// during a rest is there after it. If all of it is `flowing`, the kernel is not asked where there is something.
pub(super) fn rest_and_wait(
    poll: &mut Poll,
    events: &mut Events,
    clock: Clock,
    rest: Option<Time>,
    flowing: bool,
    deadline: Option<Time>,
) -> io::Result<Woken> {
    let mut now = clock.now();
    let Some(until) = rest.filter(|until| *until > now) else {
        wait(poll, events, now, deadline)?;
        return Ok(Woken::Waited);
    };
    std::thread::sleep(until - now);
    if flowing {
        events.clear();
        return Ok(Woken::Unasked);
    }
    now = clock.now();
    wait(poll, events, now, Some(now))?;
    if !events.is_empty() {
        return Ok(Woken::Rested);
    }
    wait(poll, events, now, deadline)?;
    Ok(Woken::Waited)
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_comes_during_a_rest_is_asked_for_unless_all_of_it_flows() {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        let (mut poll, mut events) = (Poll::new().expect("poll"), Events::with_capacity(4));
        watch(poll.registry(), near.as_fd(), Token(1)).expect("registered");
        let clock = Clock::start();
        let mut rest = |flowing| {
            let until = Some(clock.now() + Duration::from_millis(1));
            let woken = rest_and_wait(&mut poll, &mut events, clock, until, flowing, until).expect("poll");
            (woken, events.iter().count())
        };
        assert_eq!(rest(false), (Woken::Waited, 0));
        far.write_all(b"first").expect("room");
        assert_eq!(rest(true), (Woken::Unasked, 0));
        assert_eq!(rest(false), (Woken::Rested, 1), "what was not asked for is not forgotten");
        assert_eq!(rest(true), (Woken::Unasked, 0), "no event of before is left");
    }
}
