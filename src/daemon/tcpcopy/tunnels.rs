//! One worker's tunnels: to every worker of every intercept.

use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event;
use mio::{Registry, Token};

use crate::daemon::link::{Link, LinkEvent, Protocol};
use crate::replayer::{Claim, Replayer};
use crate::tunnel::{ClaimRefusal, Hello, Limits, Refuse};
use crate::wire::flow::split;
use crate::wire::{FlowId, FlowKey, Reject, Tally, Time};

/// Reads of one link in a turn.
const READS: usize = 16;

/// An intercept, with a link to each of its workers.
#[derive(Debug)]
struct Intercept {
    address: SocketAddr,
    /// How many workers it has, once it has said so.
    workers: Option<u16>,
    links: Vec<Link>,
    /// It has been there once, so its rules are.
    seen: bool,
    /// It was said that it does not serve one of our targets.
    foreign_told: bool,
    /// It does not take responses to our clients: nothing may be sent that it would let through to them.
    refuses_clients: bool,
    /// Whether it was up when [`Tunnels::changes`] last told; none before that.
    told_up: Option<bool>,
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
            busy: false,
            rejects: Tally::default(),
        };
        tunnels.replace(now, addresses, protocol);
        tunnels
    }

    /// These are the intercepts now: tunnels to others end, those to new ones are made. What an intercept refused of
    /// ours it may take now. Tunnels that are made from now on speak so.
    pub(super) fn replace(&mut self, now: Time, addresses: &[SocketAddr], protocol: Protocol) {
        self.links().for_each(|link| link.set_protocol(protocol.clone()));
        self.identity.protocol = protocol;
        self.intercepts.retain(|intercept| addresses.contains(&intercept.address));
        for intercept in &mut self.intercepts {
            intercept.foreign_told = false;
            intercept.refuses_clients = false;
        }
        for &address in addresses {
            if self.intercepts.iter().any(|intercept| intercept.address == address) {
                continue;
            }
            let links = vec![self.link(now, address, 0)];
            self.intercepts.push(Intercept {
                address,
                workers: None,
                links,
                seen: false,
                foreign_told: false,
                refuses_clients: false,
                told_up: None,
            });
        }
    }

    fn link(&mut self, now: Time, address: SocketAddr, worker: u16) -> Link {
        let token = Token(self.next_token);
        self.next_token += 1;
        let Identity { instance, claimer, ref protocol } = self.identity;
        let hello = Hello { instance, claimer, worker };
        let seed = instance ^ u64::try_from(token.0).unwrap_or_default();
        Link::new(now, address, hello, protocol.clone(), token, self.limits, seed)
    }

    fn links(&mut self) -> impl Iterator<Item = &mut Link> {
        self.intercepts.iter_mut().flat_map(|intercept| &mut intercept.links)
    }

    /// Whether responses will be taken: every intercept has been there, so that its rules keep
    /// responses from real clients, none takes only those to other clients, and one of them is there now, with all
    /// its workers.
    pub(super) fn are_reachable(&self) -> bool {
        let safe = |intercept: &Intercept| intercept.seen && !intercept.refuses_clients;
        self.intercepts.iter().all(safe) && self.intercepts.iter().any(Intercept::is_up)
    }

    /// Tells of each intercept that is up and was not, or the other way round, with the reason.
    pub(super) fn changes(&mut self, mut tell: impl FnMut(SocketAddr, Result<(), String>)) {
        for intercept in &mut self.intercepts {
            let up = intercept.is_up();
            if intercept.told_up == Some(up) {
                continue;
            }
            let state = match intercept.links.iter().find_map(Link::why_down) {
                _ if up => Ok(()),
                Some(why) => Err(why.to_owned()),
                // The first attempt is under way.
                None => continue,
            };
            intercept.told_up = Some(up);
            tell(intercept.address, state);
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
        intercept.seen |= intercept.links.iter().all(Link::is_up);
        // It may have been restarted with another setting.
        intercept.refuses_clients = false;
        if let Some(link) = intercept.links.get_mut(index) {
            let worker = link.worker();
            replayer
                .claims()
                .filter(|(_, key)| split(key.client, workers) == worker)
                .for_each(|(id, key)| link.claim(id, key));
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
            ClaimRefusal::Taken => replayer.handle_refusal(now, flow),
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
            // An idle flow claims again when it speaks, by its retransmission; the intercept says
            // that its table is full itself.
            ClaimRefusal::TableFull | ClaimRefusal::Evicted => {}
            ClaimRefusal::Other(code) => tracing::debug!(code, "claim refused"),
        }
    }

    /// Tells the intercepts of a claim or its end.
    pub(super) fn tell(&mut self, claim: Claim) {
        let (Claim::Claim(_, key) | Claim::Release(_, key)) = claim;
        for intercept in &mut self.intercepts {
            let Some(link) = intercept.link_for(&key) else { continue };
            match claim {
                Claim::Claim(id, key) => link.claim(id, key),
                Claim::Release(id, _) => link.release(id),
            }
        }
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

    fn link_for(&mut self, key: &FlowKey) -> Option<&mut Link> {
        let worker = split(key.client, self.workers?);
        self.links.get_mut(usize::from(worker))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, mpsc};
    use std::time::Instant;

    use super::*;
    use crate::replayer::Config;
    use crate::tunnel::{Endpoint, Server, Welcome};
    use crate::wire::flow::SPLIT_SEED;

    fn replayer() -> Replayer {
        Replayer::new(Arc::new(Config { memory_limit: 1 << 20, ..Config::new(Vec::new()) }))
    }

    /// An intercept of one worker that reads a hello, and then nothing until it is told to go.
    fn welcome(listener: &TcpListener, end: &mpsc::Receiver<()>) {
        let (mut stream, _) = listener.accept().expect("a tcpcopy");
        let mut server = Server::new(Time::ZERO, Limits::default());
        let mut buffer = [0; 100];
        while server.poll_event().is_none() {
            let n = stream.read(&mut buffer).expect("a hello");
            server.handle_bytes(Time::ZERO, &buffer[..n]);
        }
        server.welcome(Time::ZERO, Welcome { workers: 1, worker: 0, split_seed: SPLIT_SEED });
        stream.write_all(server.pending()).expect("room for a welcome");
        end.recv().expect("the test's end");
    }

    #[test]
    fn what_waits_for_an_intercept_counts_in_the_budget_of_the_sessions() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("bound");
        let (end, ended) = mpsc::channel();
        let intercept = std::thread::spawn(move || welcome(&listener, &ended));
        let identity = Identity { instance: 1, claimer: 0, protocol: Protocol::Open };
        let limits = Limits { output: 1 << 20, ..Limits::default() };
        let mut tunnels = Tunnels::new(Time::ZERO, &[address], identity, limits, 0);
        let (mut replayer, start) = (replayer(), Instant::now());
        let mut poll = mio::Poll::new().expect("poll");
        let mut drive_until = |tunnels: &mut Tunnels, replayer: &mut Replayer, up: bool| {
            let mut events = mio::Events::with_capacity(4);
            while tunnels.are_reachable() != up {
                let now = Time::ZERO + start.elapsed();
                assert!(start.elapsed() < Duration::from_secs(20), "{tunnels:?}");
                tunnels.handle_timeout(now, poll.registry());
                poll.poll(&mut events, Some(Duration::from_millis(20))).expect("poll");
                events.iter().for_each(|event| tunnels.ready(now, event));
                tunnels.receive(now, replayer);
                tunnels.flush(now);
            }
        };

        drive_until(&mut tunnels, &mut replayer, true);
        let idle = replayer.memory();
        assert!((1..100_000).contains(&idle), "{idle}");
        let flows = 10_000;
        for port in 0..flows {
            let key = FlowKey { client: ([10, 0, 0, 1], port).into(), server: ([10, 0, 0, 2], 80).into() };
            tunnels.tell(Claim::Claim(FlowId(port.into()), key));
        }
        tunnels.receive(Time::ZERO, &mut replayer);
        let waiting = replayer.memory() - idle;
        assert!(waiting >= size_of::<FlowId>() * usize::from(flows), "{waiting}");

        end.send(()).expect("it waits");
        drive_until(&mut tunnels, &mut replayer, false);
        tunnels.receive(Time::ZERO, &mut replayer);
        assert_eq!(replayer.memory(), 0, "a tunnel that is down takes nothing");
        intercept.join().expect("intercept");
    }
}
