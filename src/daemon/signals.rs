//! Signals as readable bytes on a descriptor, for a `mio` loop.
//!
//! The handler (signal-hook's) notes the signal and writes a byte to a socket pair; everything else
//! happens in the thread that polls the other end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// To stop in good order: SIGTERM or SIGINT.
    Stop,
    /// To read the configuration again: SIGHUP.
    Reload,
}

/// The signals that this process handles, from [`install`](Self::install) on until it is dropped.
///
/// Poll its descriptor for readability (`mio::unix::SourceFd`); when it is, or at any other time,
/// call [`drain`](Self::drain).
#[derive(Debug)]
pub(super) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP. To be called before other threads start.
    pub(super) fn install() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, [SIGTERM, SIGINT, SIGHUP])?;
        Ok(Self { delivery })
    }

    /// What has been asked for since the last call; each kind once, however often it was sent.
    /// Empties the descriptor and never waits.
    pub(super) fn drain(&mut self) -> Vec<Signal> {
        let mut asked = Vec::new();
        for number in self.delivery.pending() {
            let signal = if number == SIGHUP { Signal::Reload } else { Signal::Stop };
            if !asked.contains(&signal) {
                asked.push(signal);
            }
        }
        asked
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.delivery.get_read().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mio::unix::SourceFd;
    use mio::{Events, Interest, Poll, Token};

    use super::*;

    #[test]
    fn a_signal_wakes_the_poll_and_is_drained_once() {
        let mut signals = Signals::install().expect("signal handlers");
        let mut poll = Poll::new().expect("poll");
        let descriptor = signals.as_raw_fd();
        poll.registry().register(&mut SourceFd(&descriptor), Token(7), Interest::READABLE).expect("register");

        for (number, asked) in [(SIGHUP, Signal::Reload), (SIGTERM, Signal::Stop)] {
            signal_hook::low_level::raise(number).expect("raise");
            let mut events = Events::with_capacity(4);
            poll.poll(&mut events, Some(Duration::from_secs(10))).expect("wait");
            assert_eq!(events.iter().map(mio::event::Event::token).collect::<Vec<_>>(), [Token(7)]);
            assert_eq!(signals.drain(), [asked]);
            assert_eq!(signals.drain(), []);
        }
    }
}
