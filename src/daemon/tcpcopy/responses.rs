//! Where a worker's responses come from: intercepts, through tunnels, or this host's own queue.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event;
use mio::{Registry, Token};

use super::embedded::Embedded;
use super::peers::View;
use super::tunnels::{Identity, Tunnels};
use crate::capture::NfQueue;
use crate::daemon::link::Protocol;
use crate::daemon::queues::Intake;
use crate::replayer::{Claim, Replayer};
use crate::tunnel::Limits;
use crate::wire::{Reject, Tally, Time};

/// What [`Responses`] are made from.
pub(super) enum Origin {
    /// Intercepts.
    Intercepts {
        /// Names the process to them.
        instance: u64,
        /// Of each tunnel.
        limits: Limits,
    },
    /// A queue of this host.
    Queue(Box<NfQueue>),
}

/// The responses of one worker's sessions.
pub(super) enum Responses {
    Tunnels(Tunnels),
    Embedded(Box<Embedded>),
}

impl Responses {
    /// The responses for worker number `index`, from `intercepts` if they come from such, with how to speak with
    /// them. Tokens are taken from `first_token` on.
    pub(super) fn new(
        now: Time,
        origin: Origin,
        (intercepts, protocol): (&[SocketAddr], Protocol),
        index: u16,
        registry: &Registry,
        first_token: usize,
    ) -> io::Result<Self> {
        Ok(match origin {
            Origin::Intercepts { instance, limits } => {
                let identity = Identity { instance, claimer: index, protocol };
                Self::Tunnels(Tunnels::new(now, intercepts, identity, limits, first_token))
            }
            Origin::Queue(queue) => {
                Self::Embedded(Box::new(Embedded::new(*queue, registry, Token(first_token))?))
            }
        })
    }

    /// Whether responses will be taken, so that sessions may connect.
    pub(super) fn are_reachable(&self) -> bool {
        match self {
            Self::Tunnels(tunnels) => tunnels.are_reachable(),
            // Nothing is captured before the rules for the responses are there.
            Self::Embedded(_) => true,
        }
    }

    /// Whether segments may be sent: nothing of the target can reach a real client, by all that is known.
    pub(super) fn are_closed(&self) -> bool {
        match self {
            Self::Tunnels(tunnels) => tunnels.are_closed(),
            Self::Embedded(_) => true,
        }
    }

    /// These are the intercepts now, and so tunnels speak that are made from now on.
    pub(super) fn replace(&mut self, now: Time, intercepts: &[SocketAddr], protocol: Protocol) {
        match self {
            Self::Tunnels(tunnels) => tunnels.replace(now, intercepts, protocol),
            Self::Embedded(_) => {}
        }
    }

    /// Tells of each intercept whose state has changed.
    pub(super) fn changes(&mut self, tell: impl FnMut(SocketAddr, View)) {
        match self {
            Self::Tunnels(tunnels) => tunnels.changes(tell),
            Self::Embedded(_) => {}
        }
    }

    /// Takes an event of one of our tokens.
    pub(super) fn ready(&mut self, now: Time, event: &Event) {
        match self {
            Self::Tunnels(tunnels) => tunnels.ready(now, event),
            Self::Embedded(embedded) => embedded.ready(),
        }
    }

    /// Whether something was received at `now` or later from wherever they come.
    pub(super) fn flow(&self, now: Time) -> bool {
        match self {
            Self::Tunnels(tunnels) => tunnels.flow(now),
            Self::Embedded(embedded) => embedded.flows(now),
        }
    }

    /// There may be something to receive, without an event.
    pub(super) fn expect(&mut self) {
        match self {
            Self::Tunnels(tunnels) => tunnels.expect(),
            Self::Embedded(embedded) => embedded.ready(),
        }
    }

    /// Whether there is more to receive than the last turn had time for.
    pub(super) fn want_turn(&self) -> bool {
        match self {
            Self::Tunnels(tunnels) => tunnels.want_turn(),
            Self::Embedded(embedded) => embedded.wants_turn(),
        }
    }

    /// Receives, up to a budget, and hands the responses to the replayer. An error is of the queue itself.
    pub(super) fn receive(&mut self, now: Time, replayer: &mut Replayer) -> io::Result<()> {
        match self {
            Self::Tunnels(tunnels) => tunnels.receive(now, replayer),
            Self::Embedded(embedded) => embedded.receive(now, replayer)?,
        }
        Ok(())
    }

    /// The rules are out: receives what is still queued here.
    pub(super) fn drain(&mut self, now: Time, replayer: &mut Replayer) -> io::Result<()> {
        match self {
            Self::Tunnels(_) => Ok(()),
            Self::Embedded(embedded) => embedded.drain(now, replayer),
        }
    }

    /// Tells the intercepts of a claim or its end, and returns the bits of those that will confirm it. On this host every
    /// flow from our ports is ours.
    pub(super) fn tell(&mut self, claim: Claim) -> u64 {
        match self {
            Self::Tunnels(tunnels) => tunnels.tell(claim),
            Self::Embedded(_) => 0,
        }
    }

    /// Asks all intercepts for headers to leave at once, for so long.
    pub(super) fn hurry(&mut self, time: Duration) {
        match self {
            Self::Tunnels(tunnels) => tunnels.hurry(time),
            Self::Embedded(_) => {}
        }
    }

    /// Whether something that was told has not left.
    pub(super) fn has_pending(&self) -> bool {
        match self {
            Self::Tunnels(tunnels) => tunnels.has_pending(),
            Self::Embedded(_) => false,
        }
    }

    /// Writes what is pending.
    pub(super) fn flush(&mut self, now: Time) {
        match self {
            Self::Tunnels(tunnels) => tunnels.flush(now),
            Self::Embedded(_) => {}
        }
    }

    /// When [`Responses::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        match self {
            Self::Tunnels(tunnels) => tunnels.poll_timeout(),
            Self::Embedded(_) => None,
        }
    }

    /// Connects, gives up, pings, as is due.
    pub(super) fn handle_timeout(&mut self, now: Time, registry: &Registry) {
        match self {
            Self::Tunnels(tunnels) => tunnels.handle_timeout(now, registry),
            Self::Embedded(_) => {}
        }
    }

    /// What this host's own queue received, and what of the responses could not be read.
    pub(super) fn counters(&self) -> (Intake, Tally<Reject>) {
        match self {
            Self::Tunnels(tunnels) => (Intake::default(), tunnels.rejects().clone()),
            Self::Embedded(embedded) => {
                let (intake, rejects) = embedded.counters();
                (intake, rejects.clone())
            }
        }
    }
}
