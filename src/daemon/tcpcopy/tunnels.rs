//! One worker's tunnels: to every worker of every intercept.

use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event;
use mio::{Registry, Token};

use super::peers::View;
use crate::daemon::link::{Link, LinkEvent, Protocol};
use crate::replayer::{Claim, ClaimLoss, Replayer};
use crate::tunnel::{ClaimRefusal, Features, Hello, HostState, Limits, Refuse};
use crate::wire::flow::split;
use crate::wire::{FlowId, FlowKey, Reject, Scope, Tally, Time};

/// What this release does and understands.
const FEATURES: Features = Features::HOST_STATE.with(Features::CONFIRMATION);

/// Reads of one link in a turn.
const READS: usize = 16;

/// An intercept, with a link to each of its workers.
#[derive(Debug)]
struct Intercept {
    address: SocketAddr,
    /// How many workers it has, once it has said so.
    workers: Option<u16>,
    links: Vec<Link>,
    /// Its host was closed by the last that was heard of it, so its rules keep responses from real clients.
    closed: bool,
    /// Why its host is open, by the last that was heard of it.
    open: Option<String>,
    /// It was said that it does not serve one of our targets.
    foreign_told: bool,
    /// Whose responses it takes, by the last that was heard of it.
    scope: Option<Scope>,
    /// It has not said whose responses it takes, and not those to our clients: nothing may be sent that it would let
    /// through to them.
    refuses_clients: bool,
    /// Its bit among those who confirm a claim.
    bit: u64,
    /// What [`Tunnels::changes`] told last.
    told: Option<View>,
}

/// Who a tcpcopy worker is to the intercepts.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// The process.
    pub(super) instance: u64,
    /// The worker.
    pub(super) claimer: u16,
    /// How it speaks with them.
    pub(super) protocol: Protocol,
}

/// The tunnels of one tcpcopy worker.
#[derive(Debug)]
pub(super) struct Tunnels {
    intercepts: Vec<Intercept>,
    identity: Identity,
    limits: Limits,
    next_token: usize,
    next_bit: u32,
    /// The scopes of the intercepts have changed.
    rescoped: bool,
    /// A link has more to read.
    busy: bool,
    /// Responses that could not be used.
    rejects: Tally<Reject>,
}

impl Tunnels {
    /// Tunnels to `addresses`, none of them up. Tokens are taken from `first_token` on.
    pub(super) fn new(
        now: Time,
        addresses: &[SocketAddr],
        identity: Identity,
        limits: Limits,
        first_token: usize,
    ) -> Self {
        let protocol = identity.protocol.clone();
        let mut tunnels = Self {
            intercepts: Vec::new(),
            identity,
            limits,
            next_token: first_token,
            next_bit: 0,
            rescoped: true,
            busy: false,
            rejects: Tally::default(),
        };
        tunnels.replace(now, addresses, protocol);
        tunnels
    }

    /// These are the intercepts now: tunnels to others end, those to new ones are made. Tunnels that are made from now on
    /// speak so.
    pub(super) fn replace(&mut self, now: Time, addresses: &[SocketAddr], protocol: Protocol) {
        self.links().for_each(|link| link.set_protocol(protocol.clone()));
        self.identity.protocol = protocol;
        self.rescoped = true;
        self.intercepts.retain(|intercept| addresses.contains(&intercept.address));
        for intercept in &mut self.intercepts {
            intercept.foreign_told = false;
        }
        for &address in addresses {
            if self.intercepts.iter().any(|intercept| intercept.address == address) {
                continue;
            }
            let links = vec![self.link(now, address, 0)];
            let bit = 1u64.rotate_left(self.next_bit);
            self.next_bit = (self.next_bit + 1) % u64::BITS;
            self.intercepts.push(Intercept {
                address,
                workers: None,
                links,
                closed: false,
                open: None,
                foreign_told: false,
                scope: None,
                refuses_clients: false,
                bit,
                told: None,
            });
        }
    }

    fn link(&mut self, now: Time, address: SocketAddr, worker: u16) -> Link {
        let token = Token(self.next_token);
        self.next_token += 1;
        let Identity { instance, claimer, ref protocol } = self.identity;
        let hello = Hello { instance, claimer, worker, features: FEATURES };
        let seed = instance ^ u64::try_from(token.0).unwrap_or_default();
        Link::new(now, address, hello, protocol.clone(), token, self.limits, seed)
    }

    fn links(&mut self) -> impl Iterator<Item = &mut Link> {
        self.intercepts.iter_mut().flat_map(|intercept| &mut intercept.links)
    }

    /// Whether connections may be opened: the host of every intercept was closed by the last that was heard of it,
    /// none takes only responses to other clients, and one of them is there now, with all its workers.
    pub(super) fn are_reachable(&self) -> bool {
        let safe = |intercept: &Intercept| intercept.closed && !intercept.refuses_clients;
        self.intercepts.iter().all(safe) && self.intercepts.iter().any(Intercept::is_up)
    }

    /// Whether segments may be sent: no intercept's host is open, by the last that was heard of it.
    pub(super) fn are_closed(&self) -> bool {
        self.intercepts.iter().all(|intercept| intercept.open.is_none())
    }

    /// Tells of each intercept whose state has changed.
    pub(super) fn changes(&mut self, mut tell: impl FnMut(SocketAddr, View)) {
        for intercept in &mut self.intercepts {
            let Some(view) = intercept.view() else { continue };
            let same = |told: &View| *told == view || (told.is_down() && view.is_down());
            if !intercept.told.as_ref().is_some_and(same) {
                intercept.told = Some(view.clone());
                tell(intercept.address, view);
            }
        }
    }

    /// Responses that could not be used.
    pub(super) fn rejects(&self) -> &Tally<Reject> {
        &self.rejects
    }

    /// Takes a socket's event.
    pub(super) fn ready(&mut self, now: Time, event: &Event) {
        // A link that is gone by now has no use for its last event.
        if let Some(link) = self.links().find(|link| link.token() == event.token()) {
            link.ready(now, event);
        }
    }

    /// Whether each link gave something at `now` or later.
    pub(super) fn flow(&self, now: Time) -> bool {
        self.intercepts.iter().flat_map(|intercept| &intercept.links).all(|link| link.flows(now))
    }

    /// There may be something to read from each link, without an event.
    pub(super) fn expect(&mut self) {
        self.links().for_each(Link::expect);
    }

    /// Whether there is more to read than the last turn had time for.
    pub(super) fn want_turn(&self) -> bool {
        self.busy
    }

    /// Reads all links, up to a budget, and hands the responses to the replayer; its budget of memory is also that of
    /// the links' buffers.
    pub(super) fn receive(&mut self, now: Time, replayer: &mut Replayer) {
        self.busy = false;
        for at in 0..self.intercepts.len() {
            let mut index = 0;
            while let Some(more) = self.receive_link(now, at, index, replayer) {
                self.busy |= more;
                index += 1;
            }
        }
        if std::mem::take(&mut self.rescoped) {
            let scopes = self.intercepts.iter().map(|intercept| intercept.scope.clone());
            replayer.set_scopes(now, scopes.collect());
        }
        replayer.set_memory_besides(self.links().map(|link| link.memory()).sum());
    }

    /// Whether there is more to read; `None` if there is no such link.
    fn receive_link(&mut self, now: Time, at: usize, index: usize, replayer: &mut Replayer) -> Option<bool> {
        for _ in 0..READS {
            let more = self.intercepts.get_mut(at)?.links.get_mut(index)?.receive(now);
            while let Some(event) = self.intercepts.get_mut(at)?.links.get_mut(index)?.poll_event(now) {
                match event {
                    LinkEvent::Response(response) => {
                        tracing::trace!(flow = response.flow.0, header = ?response.header, "response");
                        replayer.handle_target(now, response.flow, &response.header);
                    }
                    LinkEvent::Unnamed { key, header } => {
                        tracing::trace!(client = %key.client, ?header, "response");
                        replayer.handle_response(now, &key, &header);
                    }
                    LinkEvent::Unreadable(reject) => {
                        tracing::trace!(%reject, "unreadable response");
                        self.rejects.count(reject);
                    }
                    LinkEvent::Up { workers } => self.handle_up(now, at, index, workers, replayer),
                    LinkEvent::Host => self.handle_host(at, index, replayer),
                    LinkEvent::Confirmed(flow) => {
                        let from = self.intercepts.get(at)?.bit;
                        replayer.handle_confirmation(now, flow, from);
                    }
                    LinkEvent::Refused { flow, why } => self.handle_refusal(now, at, flow, why, replayer),
                    LinkEvent::Down { refused: Some(Refuse::Worker(workers)) } => {
                        self.resize(now, at, workers.max(1));
                    }
                    LinkEvent::Down { .. } => {}
                    LinkEvent::Stats(stats) => tracing::debug!(?stats, "intercept"),
                }
            }
            if !more {
                return Some(false);
            }
        }
        Some(true)
    }

    fn handle_up(&mut self, now: Time, at: usize, index: usize, workers: u16, replayer: &Replayer) {
        self.resize(now, at, workers);
        let Some(intercept) = self.intercepts.get_mut(at) else { return };
        intercept.note_host();
        // It may have been restarted with another setting.
        intercept.refuses_clients = false;
        intercept.claim_all(index, replayer);
    }

    /// The intercept has said whether its host is closed.
    fn handle_host(&mut self, at: usize, index: usize, replayer: &Replayer) {
        let Some(intercept) = self.intercepts.get_mut(at) else { return };
        let was_open = intercept.open.is_some();
        intercept.note_host();
        if let Some(scope) = intercept.links.get(index).and_then(Link::scope)
            && intercept.scope.as_ref() != Some(scope)
        {
            intercept.scope = Some(scope.clone());
            self.rescoped = true;
        }
        let is_closed = intercept.links.get(index).and_then(Link::host) == Some(&HostState::Closed);
        if was_open && is_closed {
            // It has refused what was claimed meanwhile.
            intercept.claim_all(index, replayer);
        }
    }

    /// The intercept has `workers` workers: as many links are needed.
    fn resize(&mut self, now: Time, at: usize, workers: u16) {
        let Some(intercept) = self.intercepts.get_mut(at) else { return };
        intercept.workers = Some(workers);
        intercept.links.truncate(usize::from(workers));
        let (address, have) = (intercept.address, intercept.links.len());
        for worker in 0..workers {
            if usize::from(worker) >= have {
                let link = self.link(now, address, worker);
                if let Some(intercept) = self.intercepts.get_mut(at) {
                    intercept.links.push(link);
                }
            }
        }
    }

    fn handle_refusal(
        &mut self,
        now: Time,
        at: usize,
        flow: FlowId,
        why: ClaimRefusal,
        replayer: &mut Replayer,
    ) {
        match why {
            ClaimRefusal::Taken => replayer.handle_claim_loss(now, flow, ClaimLoss::Taken),
            // It was not told, or has another scope now.
            ClaimRefusal::ForeignTarget | ClaimRefusal::ForeignClient
                if self.intercepts.get(at).is_some_and(|intercept| intercept.scope.is_some()) =>
            {
                replayer.handle_claim_loss(now, flow, ClaimLoss::Foreign);
            }
            ClaimRefusal::ForeignTarget => {
                if let Some(intercept) = self.intercepts.get_mut(at)
                    && !std::mem::replace(&mut intercept.foreign_told, true)
                {
                    tracing::warn!(
                        intercept = %intercept.address,
                        "the intercept does not serve one of our targets: give it the target with --target"
                    );
                }
            }
            ClaimRefusal::ForeignClient => {
                if let Some(intercept) = self.intercepts.get_mut(at)
                    && !std::mem::replace(&mut intercept.refuses_clients, true)
                {
                    tracing::error!(
                        intercept = %intercept.address,
                        "nothing is replayed: the intercept's setting `clients`, or that of our key there, does not \
                         hold a replayed client's address; set pool (-c) to addresses in it, or correct it and \
                         restart the intercept"
                    );
                }
            }
            ClaimRefusal::TableFull => replayer.handle_claim_loss(now, flow, ClaimLoss::Full),
            ClaimRefusal::Evicted => replayer.handle_claim_loss(now, flow, ClaimLoss::Evicted),
            // It is claimed again when the host is closed.
            ClaimRefusal::HostOpen => {}
            ClaimRefusal::Other(code) => tracing::debug!(code, "claim refused"),
        }
    }

    /// Tells the intercepts of a claim or its end. Returns the bits of those that will confirm it.
    pub(super) fn tell(&mut self, claim: Claim) -> u64 {
        let (Claim::Claim(_, key) | Claim::Release(_, key)) = claim;
        let mut awaited = 0;
        for intercept in &mut self.intercepts {
            if !intercept.serves(&key) {
                continue;
            }
            let bit = intercept.bit;
            let Some(link) = intercept.link_for(&key) else { continue };
            match claim {
                Claim::Claim(id, key) => {
                    link.claim(id, key);
                    if link.confirms_claims() {
                        awaited |= bit;
                    }
                }
                Claim::Release(id, _) => link.release(id),
            }
        }
        awaited
    }

    /// Whether something that was told has not left, because an intercept does not read.
    pub(super) fn has_pending(&self) -> bool {
        self.intercepts.iter().flat_map(|intercept| &intercept.links).any(Link::has_pending)
    }

    /// Asks all intercepts for headers to leave at once, for so long.
    pub(super) fn hurry(&mut self, time: Duration) {
        self.links().for_each(|link| link.hurry(time));
    }

    /// Writes what is pending.
    pub(super) fn flush(&mut self, now: Time) {
        self.links().for_each(|link| link.flush(now));
    }

    /// When [`Tunnels::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let links = self.intercepts.iter().flat_map(|intercept| &intercept.links);
        links.filter_map(Link::poll_timeout).min()
    }

    /// Connects, gives up, pings, as is due.
    pub(super) fn handle_timeout(&mut self, now: Time, registry: &Registry) {
        for link in self.links() {
            if link.poll_timeout().is_some_and(|due| now >= due) {
                link.handle_timeout(now, registry);
                // What comes of it is read in the next turn.
            }
        }
    }
}

impl Intercept {
    /// All its workers are connected.
    fn is_up(&self) -> bool {
        self.workers.is_some() && self.links.iter().all(Link::is_up)
    }

    /// What an operator is told of it; `None` if its first attempt to connect is under way.
    fn view(&self) -> Option<View> {
        if !self.is_up() {
            return self.links.iter().find_map(Link::why_down).map(|why| View::Down(why.to_owned()));
        }
        if let Some(reason) = &self.open {
            return Some(View::Open(reason.clone()));
        }
        let hosts = || self.links.iter().filter_map(Link::host);
        if hosts().any(|host| *host == HostState::Awaited) {
            return None;
        }
        let unconfirmed = hosts().any(|host| *host == HostState::Unknown);
        Some(if unconfirmed { View::Unconfirmed } else { View::Closed })
    }

    /// Takes in what its workers say of their host. While one is away, the last that was said holds.
    fn note_host(&mut self) {
        let hosts = || self.links.iter().filter_map(Link::host);
        let open = hosts().find_map(|host| match host {
            HostState::Open(reason) => Some(reason.clone()),
            HostState::Unknown | HostState::Awaited | HostState::Closed => None,
        });
        if open.is_some() {
            self.open = open;
            self.closed = false;
        } else if hosts().any(|host| *host == HostState::Awaited) {
            self.closed = false;
        } else if self.is_up() {
            self.open = None;
            self.closed = true;
        }
    }

    /// Whether it takes responses of a flow's target, or may.
    fn serves(&self, key: &FlowKey) -> bool {
        self.scope.as_ref().is_none_or(|scope| scope.serves(key.server))
    }

    /// Makes all live claims that belong to a link.
    fn claim_all(&mut self, index: usize, replayer: &Replayer) {
        let Self { workers: Some(workers), links, scope, .. } = self else { return };
        let Some(link) = links.get_mut(index) else { return };
        let worker = link.worker();
        replayer
            .claims()
            .filter(|(_, key)| scope.as_ref().is_none_or(|scope| scope.serves(key.server)))
            .filter(|(_, key)| split(key.client, *workers) == worker)
            .for_each(|(id, key)| link.claim(id, key));
    }

    fn link_for(&mut self, key: &FlowKey) -> Option<&mut Link> {
        let worker = split(key.client, self.workers?);
        self.links.get_mut(usize::from(worker))
    }
}

#[cfg(test)]
mod tests;
