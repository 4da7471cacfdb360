//! The thread that accepts connections and reads their hello.
//!
//! What strangers can cost is bounded: so many connections (`strangers`), a few hundred bytes and five
//! seconds each, and one line of log in a minute for each reason to turn them away. With keys, a connection that does not have one
//! is known for what it is after a few hashes, before any computation on curves.

use std::io;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Poll, Token};
use std::net::SocketAddr;
use std::sync::Arc;

use super::WAKER;
use super::bridge;
use super::connections::{Newcomer, limits};
use super::door::{Door, Refusals, TurnedAway};
use super::listener::{Accepted, Listener};
use super::strangers::{Room, Strangers};
use super::worker::{self, Report};
use crate::daemon::clock::Clock;
use crate::daemon::pipe::Pipe;
use crate::daemon::privileges;
use crate::daemon::threads::{self, Handle, Outbox};
use crate::daemon::wait::wait;
use crate::sys::random;
use crate::tunnel::{Closed, Ephemeral, Hello, Refuse, Server, ServerEvent};
use crate::wire::Time;

/// How long to accept nothing when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(500);
/// Connections accepted in one turn, so that those that are there are heard.
const ACCEPTS: usize = 64;

/// The thread's name.
pub(super) const NAME: &str = "acceptor";

const LISTENER: Token = Token(1);
const FIRST_STRANGER: usize = 2;

/// What the acceptor is told.
#[derive(Debug)]
pub(super) enum Order {
    /// To report that it makes progress.
    Report,
    /// To end.
    Stop,
}

/// The listener and those who have not said hello.
#[derive(Debug)]
pub(super) struct Acceptor {
    poll: Poll,
    orders: Outbox<Order>,
    inbox: Receiver<Order>,
    clock: Clock,
    listener: Listener,
    /// The listener has connections, or may have.
    accepting: bool,
    resume: Option<Time>,
    strangers: Strangers,
    door: Door,
    workers: Vec<Outbox<worker::Order>>,
    /// Where connections of C tcpcopys' hosts go.
    bridge: Outbox<bridge::Order>,
    refusals: Refusals,
}

/// Starts the thread.
pub(super) fn spawn(mut acceptor: Acceptor, reports: Outbox<Report>) -> io::Result<Handle<Order>> {
    let orders = acceptor.orders.clone();
    threads::spawn(NAME.to_owned(), orders, reports, Report::Ended, move |reports| {
        // What strangers send is read here, and nothing of that takes a capability.
        privileges::keep(&[]);
        acceptor.run(reports)
    })
}

impl Acceptor {
    pub(super) fn new(
        mut listener: Listener,
        (workers, bridge): (Vec<Outbox<worker::Order>>, Outbox<bridge::Order>),
        clock: Clock,
        (room, door): (Room, Door),
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let (orders, inbox) = threads::inbox(poll.registry(), WAKER)?;
        listener.register(poll.registry(), LISTENER)?;
        Ok(Self {
            poll,
            orders,
            inbox,
            clock,
            listener,
            accepting: true,
            resume: None,
            strangers: Strangers::new(room),
            refusals: Refusals::new(door.clone()),
            door,
            workers,
            bridge,
        })
    }

    fn run(&mut self, reports: &Outbox<Report>) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            let now = self.clock.now();
            let deadline = self.deadline(now);
            wait(&mut self.poll, &mut events, now, deadline)?;
            while let Ok(order) = self.inbox.try_recv() {
                match order {
                    Order::Report => reports.send(Report::Progress { thread: NAME }),
                    Order::Stop => return Ok(()),
                }
            }
            let now = self.clock.now();
            for event in &events {
                match event.token() {
                    WAKER => {}
                    LISTENER => self.accepting = true,
                    Token(token) => {
                        let key = token.wrapping_sub(FIRST_STRANGER);
                        if let Some(stranger) = self.strangers.get_mut(key) {
                            stranger.pipe.ready(event);
                            self.hear(now, key);
                        }
                    }
                }
            }
            self.expire(now);
            if self.resume.is_some_and(|at| at <= now) {
                self.resume = None;
                self.accepting = true;
            }
            self.accept(now);
        }
    }

    fn deadline(&self, now: Time) -> Option<Time> {
        if self.accepting {
            return Some(now);
        }
        let strangers = self.strangers.iter().filter_map(|(_, stranger)| stranger.server.poll_timeout());
        strangers.chain(self.resume).min()
    }

    fn accept(&mut self, now: Time) {
        for _ in 0..ACCEPTS {
            if !self.accepting {
                break;
            }
            match self.listener.accept() {
                Ok(Accepted::Elsewhere) => {}
                Ok(Accepted::Connection(stream, peer)) => {
                    if let Err(error) = self.admit(now, stream, peer) {
                        self.refusals.complain(now, TurnedAway::Failed, &format_args!("{peer}: {error}"));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.accepting = false,
                Err(error) if is_of_one_connection(&error) => {}
                // A descriptor of somebody unknown serves the next one as well.
                Err(_) if self.turn_out(now, self.strangers.first_to_go()) => {}
                Err(error) => {
                    // Out of descriptors or memory: no event will tell when that is over.
                    self.accepting = false;
                    self.resume = Some(now + PAUSE);
                    self.refusals.complain(now, TurnedAway::Failed, &format_args!("cannot accept: {error}"));
                }
            }
        }
    }

    fn admit(&mut self, now: Time, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let address = peer.ip().to_canonical();
        if self.door.is_legacy(address) {
            self.bridge.send(bridge::Order::Connection(stream, SocketAddr::new(address, peer.port())));
            return Ok(());
        }
        self.turn_out(now, self.strangers.to_go(address));
        let server = match self.door.keys() {
            None => Server::new(now, limits()),
            Some(keys) => {
                let ephemeral = Ephemeral::new(random::bytes()?);
                Server::keyed(now, limits(), Arc::clone(&keys.secrets), ephemeral)
            }
        };
        let mut pipe = Pipe::new(stream);
        pipe.watch(self.poll.registry(), Token(self.strangers.next_key() + FIRST_STRANGER))?;
        self.strangers.insert(address, pipe, server);
        Ok(())
    }

    /// Makes room; `false` if there is nobody to go.
    fn turn_out(&mut self, now: Time, key: Option<usize>) -> bool {
        let Some(oldest) = key.and_then(|key| self.strangers.remove(key)) else { return false };
        let why = format_args!("{}: too many connections say nothing", peer(&oldest.pipe));
        self.refusals.complain(now, TurnedAway::Crowded, &why);
        true
    }

    /// Reads what a stranger says, and does what follows from it.
    fn hear(&mut self, now: Time, key: usize) {
        let Some(stranger) = self.strangers.get_mut(key) else { return };
        // The opening of the handshake, and the hello, is one small read each.
        let received = stranger.pipe.receive(now, &mut stranger.server);
        let event = stranger.server.poll_event();
        // The answer to an opening, or why there is none.
        if let Err(error) = received.and_then(|_| stranger.pipe.flush(&mut stranger.server)) {
            let Some(gone) = self.strangers.remove(key) else { return };
            self.refusals.complain(now, TurnedAway::Gone, &format_args!("{}: {error}", peer(&gone.pipe)));
            return;
        }
        match event {
            Some(ServerEvent::Hello(hello)) => self.introduce(now, key, hello),
            Some(ServerEvent::Closed(why)) => self.turn_away(now, key, why),
            // Nothing else comes before a welcome.
            None | Some(ServerEvent::Claim { .. } | ServerEvent::Release(_) | ServerEvent::Hurry(_)) => {}
        }
    }

    /// Hands a connection to the worker wanted.
    fn introduce(&mut self, now: Time, key: usize, hello: Hello) {
        let Some(mut stranger) = self.strangers.remove(key) else { return };
        let Some(worker) = self.workers.get(usize::from(hello.worker)) else {
            let refuse = Refuse::Worker(u16::try_from(self.workers.len()).unwrap_or(u16::MAX));
            stranger.server.refuse(refuse);
            // What does not fit into an empty socket buffer at once is not worth waiting for.
            let _ = stranger.pipe.flush(&mut stranger.server);
            let why = format_args!("{}: {refuse}, {} is wanted", peer(&stranger.pipe), hello.worker);
            self.refusals.complain(now, TurnedAway::NoWorker, &why);
            return;
        };
        match stranger.pipe.deregister(self.poll.registry()) {
            Ok(()) => {
                let newcomer =
                    Newcomer { pipe: stranger.pipe, server: stranger.server, hello, bridged: false };
                worker.send(worker::Order::Connection(Box::new(newcomer)));
            }
            Err(error) => {
                self.refusals.complain(
                    now,
                    TurnedAway::Failed,
                    &format_args!("{}: {error}", peer(&stranger.pipe)),
                );
            }
        }
    }

    fn turn_away(&mut self, now: Time, key: usize, why: Closed) {
        let Some(mut stranger) = self.strangers.remove(key) else { return };
        // As above: the reason, if there is one to tell, goes out now or never.
        let _ = stranger.pipe.flush(&mut stranger.server);
        self.refusals.complain(now, why.into(), &format_args!("{}: {why}", peer(&stranger.pipe)));
    }

    fn expire(&mut self, now: Time) {
        let late: Vec<_> = self
            .strangers
            .iter()
            .filter(|(_, stranger)| stranger.server.poll_timeout().is_some_and(|at| at <= now))
            .map(|(key, _)| key)
            .collect();
        for key in late {
            self.turn_away(now, key, Closed::HandshakeTimeout);
        }
    }
}

fn peer(pipe: &Pipe) -> String {
    pipe.peer().map_or_else(|_| "somebody gone".to_owned(), |peer| peer.to_string())
}

/// Whether the next connection can be accepted all the same (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) | None)
}
