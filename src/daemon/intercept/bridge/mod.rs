//! The thread that C tcpcopys are connected to: outside it speaks their protocol, inside the tunnel's with each worker, as
//! one tcpcopy for each host of theirs.
//!
//! It runs whether `legacy` names anybody or not: a reload may name the first host, and a thread that waits costs a few pages.
//!
//! What a C tcpcopy claims on one connection are flows of all workers, which share nothing; here they part. The workers take
//! what comes over a pipe between threads as they take any tunnel, with its limits and its counters.

mod flows;
mod peer;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Poll};
use slab::Slab;

use super::WAKER;
use super::budget::Budget;
use super::connections::Shared;
use super::door::{Door, Refusals, TurnedAway};
use super::worker::{self, Report};
use crate::daemon::clock::Clock;
use crate::daemon::privileges;
use crate::daemon::quiet::Quiet;
use crate::daemon::threads::{self, Outbox};
use crate::daemon::wait::wait;
use crate::sys::random;
use crate::wire::{Tally, Time};
use peer::Peer;

/// The thread's name.
pub(super) const NAME: &str = "bridge";

/// Tokens of a peer. The first ones are those of its pipes to workers, of which there are 256 at most.
const SPAN: usize = 512;
const FIRST_OUTER: usize = 256;
/// Tokens before those of the first peer.
const FIRST_PEER: usize = 1;
/// Connections of one host: a C tcpcopy makes 2, or up to 11 (`-C`).
const ONE_HOST: usize = 64;
/// Log lines about connections, and the time between two after the first ones.
const LOG_BURST: u32 = 20;
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// What became of what C tcpcopys said, and of the headers for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Legacy {
    /// A claim, handed to its worker.
    Claim,
    /// A claim for which there was no room.
    Full,
    /// A message that means nothing.
    Ignored,
    /// A header, sent.
    Header,
    /// A header that was dropped because the C tcpcopy reads too slowly: the target sends its segment again.
    Dropped,
    /// A header of a flow that was given up in the meantime.
    Stray,
}

crate::counted!(Legacy {
    Claim => "claims",
    Full => "claims_full",
    Ignored => "ignored",
    Header => "headers",
    Dropped => "headers_dropped",
    Stray => "headers_stray",
});

/// What the bridge is told.
#[derive(Debug)]
pub(super) enum Order {
    /// A connection of a host that C tcpcopys may be on.
    Connection(TcpStream, SocketAddr),
    /// To look again who they are, and to go by another limit.
    Configure {
        /// As [`Parts::max_flows`].
        max_flows: u32,
    },
    /// To report that it makes progress.
    Report,
    /// To end.
    Stop,
}

/// The running thread.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) thread: threads::Handle<Order>,
    counters: Counters,
}

impl Handle {
    /// What it has counted.
    pub(super) fn counters(&self) -> Tally<Legacy> {
        self.counters.read()
    }

    /// Ends its connections, waits for its end and says what it has counted.
    pub(super) fn stop(self) -> Tally<Legacy> {
        threads::end([self.thread], || Order::Stop);
        self.counters.read()
    }
}

#[derive(Clone, Debug, Default)]
struct Counters(Arc<Mutex<Tally<Legacy>>>);

impl Counters {
    fn read(&self) -> Tally<Legacy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, more: &mut Tally<Legacy>) {
        if more.total() > 0 {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).merge(more);
            *more = Tally::default();
        }
    }
}

/// What the bridge is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) clock: Clock,
    /// It may have as many descriptors as a worker has tunnels.
    pub(super) shared: Shared,
    pub(super) workers: Vec<Outbox<worker::Order>>,
    /// Flows that all tcpcopys together may claim.
    pub(super) max_flows: u32,
}

/// Flows that the C tcpcopys of one host may have here. The routers keep to the limit, and give up the flow that was idle
/// for longest; while they do, as many as they have may be on their way.
fn most_flows(max_flows: u32) -> usize {
    usize::try_from(max_flows).unwrap_or(usize::MAX).saturating_mul(2)
}

/// Starts the thread.
pub(super) fn spawn(parts: Parts, reports: Outbox<Report>) -> io::Result<Handle> {
    let poll = Poll::new()?;
    let (orders, inbox) = threads::inbox(poll.registry(), WAKER)?;
    let counters = Counters::default();
    let Shared { most, budget, door, readiness: _ } = parts.shared;
    let mut bridge = Bridge {
        poll,
        inbox,
        refusals: Refusals::new(door.clone()),
        context: Context {
            // Their claims must not be taken for those of a run before.
            instance: u64::from_ne_bytes(random::bytes()?),
            budget,
            workers: parts.workers,
            most_flows: most_flows(parts.max_flows),
            tally: Tally::default(),
            quiet: Quiet::new(LOG_BURST, LOG_INTERVAL),
        },
        clock: parts.clock,
        door,
        room: most,
        peers: Slab::new(),
        counters: counters.clone(),
    };
    let thread = threads::spawn(NAME.to_owned(), orders, reports, Report::Ended, move |reports| {
        // What others send is read here, and nothing of that takes a capability.
        privileges::keep(&[]);
        bridge.run(reports)
    })?;
    Ok(Handle { thread, counters })
}

/// What all peers need.
#[derive(Debug)]
struct Context {
    /// Names the next peer to the workers.
    instance: u64,
    budget: Budget,
    workers: Vec<Outbox<worker::Order>>,
    most_flows: usize,
    tally: Tally<Legacy>,
    quiet: Quiet,
}

#[derive(Debug)]
struct Bridge {
    poll: Poll,
    inbox: Receiver<Order>,
    clock: Clock,
    door: Door,
    refusals: Refusals,
    room: usize,
    peers: Slab<Peer>,
    context: Context,
    counters: Counters,
}

impl Bridge {
    fn run(&mut self, reports: &Outbox<Report>) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            let now = self.clock.now();
            let deadline = self.peers.iter().filter_map(|(_, peer)| peer.poll_timeout(now)).min();
            wait(&mut self.poll, &mut events, now, deadline)?;
            let now = self.clock.now();
            for event in &events {
                // There is no peer for the waker, nor for the last event of one that is gone.
                let at = event.token().0.wrapping_sub(FIRST_PEER);
                if let Some(peer) = self.peers.get_mut(at / SPAN) {
                    peer.ready(at % SPAN, event);
                }
            }
            if !self.take_orders(now, reports) {
                return Ok(());
            }
            for (_, peer) in &mut self.peers {
                peer.turn(now, self.poll.registry(), &mut self.context, &mut self.refusals);
            }
            self.shed(now);
            self.peers.retain(|_, peer| !peer.is_gone());
            self.counters.add(&mut self.context.tally);
        }
    }

    /// `false` when told to stop.
    fn take_orders(&mut self, now: Time, reports: &Outbox<Report>) -> bool {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Connection(stream, address) => {
                    if let Err(error) = self.admit(now, stream, address) {
                        self.refusals.complain(now, TurnedAway::Failed, &format_args!("{address}: {error}"));
                    }
                }
                Order::Configure { max_flows } => self.configure(now, max_flows),
                Order::Report => reports.send(Report::Progress { thread: NAME }),
                Order::Stop => return false,
            }
        }
        true
    }

    fn admit(&mut self, now: Time, stream: TcpStream, address: SocketAddr) -> io::Result<()> {
        let host = address.ip();
        let known = self.peers.iter().find(|(_, peer)| peer.host() == host).map(|(key, _)| key);
        let taken: usize = self.peers.iter().map(|(_, peer)| peer.descriptors()).sum();
        let needed = if known.is_some() { 1 } else { 1 + self.context.workers.len() };
        let theirs = known.and_then(|key| self.peers.get(key)).map_or(0, Peer::connections);
        if taken + needed > self.room || theirs >= ONE_HOST {
            let why = format_args!("{address}: there are as many connections of C tcpcopys as there may be");
            self.refusals.complain(now, TurnedAway::Crowded, &why);
            return Ok(());
        }
        let key = known.unwrap_or_else(|| {
            let key = self.peers.vacant_key();
            self.peers.insert(Peer::new(now, address, FIRST_PEER + key * SPAN, &mut self.context))
        });
        match self.peers.get_mut(key) {
            Some(peer) => peer.add(now, stream, (self.poll.registry(), &self.context)),
            None => Ok(()),
        }
    }

    /// Who may not be a C tcpcopy any more is hung up on.
    fn configure(&mut self, now: Time, max_flows: u32) {
        self.context.most_flows = most_flows(max_flows);
        for (_, peer) in &mut self.peers {
            peer.set_most_flows(self.context.most_flows);
            if !self.door.is_legacy(peer.host()) {
                peer.end(now, &mut self.context, "its address is no longer in `legacy`");
            }
        }
    }

    /// The memory of all tunnels is exceeded: connections of ours end that take more than their part.
    fn shed(&mut self, now: Time) {
        while self.context.budget.is_exceeded() {
            let most = self.peers.iter_mut().max_by_key(|(_, peer)| peer.most_above_part());
            let Some((_, peer)) = most.filter(|(_, peer)| peer.most_above_part().is_some()) else { break };
            peer.end_fullest(now, &mut self.context);
        }
    }
}
