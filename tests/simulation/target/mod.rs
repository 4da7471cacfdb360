//! The target host: one of two TCP stacks, and the same application on both.

mod quirks;
mod scripted;
mod smol;
mod tcb;

use std::net::SocketAddr;

use tcpcopy::wire::Time;

pub(crate) use quirks::Quirks;

use crate::rng::Rng;
use crate::scenario::{Peer, Setup};
use crate::server::{Ledger, Order, Server};

/// The port the target listens on.
pub(crate) const PORT: u16 = 8080;
/// How often a slow application reads, in microseconds.
const READ_EVERY: u64 = 10_000;

/// A host with a TCP, and a [`Server`] on every connection.
pub(crate) trait Target {
    /// A packet arrives; `sound` unless it was damaged.
    fn deliver(&mut self, now: Time, bytes: Vec<u8>, sound: bool, setup: &Setup, ledger: &mut Ledger);
    /// Time has passed: the stack and the applications run.
    fn run(&mut self, now: Time, setup: &Setup, ledger: &mut Ledger);
    /// The packets sent since the last call.
    fn take_sent(&mut self) -> Vec<Vec<u8>>;
    /// When the stack or an application has something to do.
    fn wakes_at(&mut self, now: Time) -> Option<Time>;
    /// Whether the applications have read all that came.
    fn has_read_all(&self) -> bool;
    /// The host has crashed and is back: it knows nothing of what was.
    fn restart(&mut self, ledger: &mut Ledger);
}

/// The host that a run is to have.
pub(crate) fn host(setup: &Setup, addresses: [SocketAddr; 2], rng: &mut Rng) -> Box<dyn Target> {
    match &setup.peer {
        Peer::Smoltcp => Box::new(smol::Host::new(setup, addresses, rng.next())),
        Peer::Scripted(quirks) => {
            Box::new(scripted::Host::new(quirks.clone(), Rng::new("target", rng.next())))
        }
    }
}

/// What an application sees of its connection.
trait Socket {
    /// Bytes that can be read.
    fn unread(&self) -> usize;
    /// At most so many of them.
    fn read(&mut self, most: usize) -> Vec<u8>;
    /// Whether the peer may send more.
    fn may_receive(&self) -> bool;
    /// Takes at most so many bytes to be sent; returns how many.
    fn write(&mut self, most: usize) -> usize;
    fn close(&mut self);
    fn abort(&mut self);
}

/// A connection as the application has it.
struct Conn {
    server: Server,
    /// The application has closed it.
    closed: bool,
    reads_at: Time,
}

impl Conn {
    /// A connection that was just accepted.
    fn accept(now: Time, setup: &Setup) -> Self {
        let reads_at = Time::from_micros(now.micros() + setup.read_pause);
        Self { server: Server::new(setup), closed: false, reads_at }
    }

    /// The application runs. Returns whether it did something.
    fn serve(&mut self, now: Time, setup: &Setup, socket: &mut dyn Socket, ledger: &mut Ledger) -> bool {
        if self.closed {
            return false;
        }
        let mut busy = false;
        if socket.unread() > 0 && now >= self.reads_at {
            let bytes = socket.read(setup.read_rate.unwrap_or(usize::MAX));
            if setup.read_rate.is_some() {
                self.reads_at = Time::from_micros(now.micros() + READ_EVERY);
            }
            busy = true;
            if self.server.take(now, setup, &bytes, ledger) == Some(Order::Abort) {
                self.closed = true;
                socket.abort();
            }
        }
        self.server.wake(now);
        while !self.closed && self.server.to_write > 0 {
            let written = socket.write(usize::try_from(self.server.to_write).expect("small").min(16_384));
            if written == 0 {
                break;
            }
            self.server.to_write -= written as u64;
            busy = true;
        }
        let eof = !socket.may_receive() && socket.unread() == 0 && self.server.is_done();
        let wants_close = self.server.after_write(setup, ledger).is_some();
        if !self.closed && (eof || wants_close) {
            self.closed = true;
            busy = true;
            if socket.unread() > 0 || (wants_close && self.server.unparsed() > 0) {
                // Linux does so too when it closes a socket with unread data (RFC 2525, 2.17).
                socket.abort();
            } else {
                socket.close();
            }
        }
        busy
    }

    /// When the application has something to do, given whether there are bytes to read.
    fn wakes_at(&self, unread: bool) -> Option<Time> {
        let reads_at = unread.then_some(self.reads_at);
        [self.server.wakes_at(), reads_at].into_iter().flatten().min().filter(|_| !self.closed)
    }
}
