//! The C tcpcopys of one host: their connections, and one pipe to each worker.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Registry, Token};
use slab::Slab;

use super::flows::Flows;
use super::{Context, FIRST_OUTER, Legacy};
use crate::daemon::intercept::budget::{self, Account, Instance};
use crate::daemon::intercept::connections::{Newcomer, limits};
use crate::daemon::intercept::door::{Refusals, TurnedAway};
use crate::daemon::intercept::worker::Order;
use crate::daemon::pipe::Pipe;
use crate::router::Tenant;
use crate::tunnel::frame::Response;
use crate::tunnel::legacy::{Server, ServerEvent};
use crate::tunnel::{self, Claimer, Client, ClientEvent, Endpoint, Features, Hello, Limits};
use crate::wire::flow::split;
use crate::wire::{FlowId, FlowKey, Time};

/// Reads from one connection in a turn.
const READS: usize = 8;
/// Claims are read only as long as less than this waits for a worker, in bytes.
const BACKLOG: usize = 1 << 20;
/// How long to wait before a pipe that was ended is made again.
const AGAIN: Duration = Duration::from_secs(1);
/// What may wait for one connection, in bytes: 16,000 headers, which are old by the time a slow peer gets them.
const OUTPUT: usize = 1 << 20;

/// A connection of a C tcpcopy.
#[derive(Debug)]
struct Outer {
    pipe: Pipe,
    server: Server,
    /// It has introduced itself.
    greeted: bool,
    memory: Account,
}

/// A pipe to a worker.
#[derive(Debug)]
struct Inner {
    link: Option<(Pipe, Client)>,
    /// When to make it, if there is none.
    again: Time,
}

/// The C tcpcopys of one host. To the workers they are one tcpcopy: which connection a flow was claimed on last is known
/// here alone.
#[derive(Debug)]
pub(super) struct Peer {
    address: SocketAddr,
    /// Names it to the workers.
    instance: u64,
    first_token: usize,
    outers: Slab<Outer>,
    inners: Vec<Inner>,
    flows: Flows,
    /// What `flows` take.
    memory: budget::Flows,
}

impl Peer {
    /// A host that a connection has come from. Its tokens begin with `first_token`.
    pub(super) fn new(now: Time, address: SocketAddr, first_token: usize, context: &mut Context) -> Self {
        context.instance = context.instance.wrapping_add(1);
        Self {
            address,
            instance: context.instance,
            first_token,
            outers: Slab::new(),
            inners: context.workers.iter().map(|_| Inner { link: None, again: now }).collect(),
            flows: Flows::new(context.most_flows),
            memory: context.budget.open_flows(),
        }
    }

    /// Its address.
    pub(super) fn host(&self) -> IpAddr {
        self.address.ip()
    }

    /// Its connections.
    pub(super) fn connections(&self) -> usize {
        self.outers.len()
    }

    /// The descriptors that it takes here.
    pub(super) fn descriptors(&self) -> usize {
        self.outers.len() + self.inners.len()
    }

    /// None of its connections is left: the workers forget it with its pipes.
    pub(super) fn is_gone(&self) -> bool {
        self.outers.is_empty()
    }

    /// What the fullest of its connections above their part takes, in bytes.
    pub(super) fn most_above_part(&self) -> Option<usize> {
        self.above_part().map(|(_, outer)| outer.memory.taken()).max()
    }

    fn above_part(&self) -> impl Iterator<Item = (usize, &Outer)> {
        self.outers.iter().filter(|(_, outer)| outer.memory.is_above_part())
    }

    /// A connection of it.
    pub(super) fn add(
        &mut self,
        now: Time,
        stream: TcpStream,
        (registry, context): (&Registry, &Context),
    ) -> io::Result<()> {
        let entry = self.outers.vacant_entry();
        let mut pipe = Pipe::new(stream);
        pipe.register(registry, Token(self.first_token + FIRST_OUTER + entry.key()))?;
        let server = Server::new(now, Limits { output: OUTPUT, ..limits() });
        let instance = Instance { tenant: Tenant::Host(self.address.ip()), number: self.instance };
        let memory = context.budget.open(instance);
        entry.insert(Outer { pipe, server, greeted: false, memory });
        Ok(())
    }

    /// It may claim so many flows.
    pub(super) fn set_most_flows(&mut self, most: usize) {
        self.flows.set_most(most);
    }

    /// Takes an event of its token of that number.
    pub(super) fn ready(&mut self, number: usize, event: &Event) {
        let pipe = match number.checked_sub(FIRST_OUTER) {
            Some(key) => self.outers.get_mut(key).map(|outer| &mut outer.pipe),
            None => self.inners.get_mut(number).and_then(|inner| inner.link.as_mut()).map(|(pipe, _)| pipe),
        };
        if let Some(pipe) = pipe {
            pipe.ready(event);
        }
    }

    /// When [`Peer::turn`] is due without an event.
    pub(super) fn poll_timeout(&self, now: Time) -> Option<Time> {
        let outers = || self.outers.iter().map(|(_, outer)| outer);
        let pipes = self.inners.iter().filter_map(|inner| inner.link.as_ref());
        let more = pipes.clone().any(|(pipe, _)| pipe.is_readable())
            || !self.is_clogged() && outers().any(|outer| outer.pipe.is_readable());
        if more {
            return Some(now);
        }
        let inners = self.inners.iter().filter_map(|inner| match &inner.link {
            Some((_, client)) => client.poll_timeout(),
            None => Some(inner.again),
        });
        outers()
            .filter_map(|outer| outer.server.poll_timeout())
            .chain(inners)
            .chain(self.flows.poll_timeout())
            .min()
    }

    /// Carries what there is, both ways.
    pub(super) fn turn(
        &mut self,
        now: Time,
        registry: &Registry,
        context: &mut Context,
        refusals: &mut Refusals,
    ) {
        for worker in 0..self.inners.len() {
            self.turn_inner(now, worker, registry, context);
        }
        for key in self.keys() {
            self.turn_outer(now, key, context, refusals);
        }
        while let Some((id, key)) = self.flows.poll_over(now) {
            self.release(id, &key);
        }
        self.flush(now, context);
    }

    /// Ends all its connections.
    pub(super) fn end(&mut self, now: Time, context: &mut Context, why: &str) {
        for key in self.keys() {
            self.close(now, key, context, &why);
        }
    }

    /// Ends the connection that takes most memory, of those above their part.
    pub(super) fn end_fullest(&mut self, now: Time, context: &mut Context) {
        let most = self.above_part().max_by_key(|(_, outer)| outer.memory.taken());
        if let Some(key) = most.map(|(key, _)| key) {
            self.close(now, key, context, &"the tunnels take more than memory-limit, and this one most");
        }
    }

    fn keys(&self) -> Vec<usize> {
        self.outers.iter().map(|(key, _)| key).collect()
    }

    /// So much waits for a worker that no more claims are to be read.
    fn is_clogged(&self) -> bool {
        let waiting = |inner: &Inner| inner.link.as_ref().map_or(0, |(_, client)| client.backlog());
        self.inners.iter().any(|inner| waiting(inner) > BACKLOG)
    }
}

/// What the workers say.
impl Peer {
    fn turn_inner(&mut self, now: Time, worker: usize, registry: &Registry, context: &mut Context) {
        let Some(inner) = self.inners.get_mut(worker) else { return };
        if inner.link.is_none() && inner.again <= now {
            inner.again = now + AGAIN;
            let token = Token(self.first_token + worker);
            let made = connect(now, self.address, self.instance, worker, context).and_then(|mut link| {
                link.0.register(registry, token)?;
                Ok(link)
            });
            match made {
                Ok(link) => inner.link = Some(link),
                Err(error) => warn(now, context, self.address, &error),
            }
        }
        for _ in 0..READS {
            let Some((pipe, client)) = self.link(worker).filter(|(pipe, _)| pipe.is_readable()) else {
                break;
            };
            let received = pipe.receive(now, client);
            self.hear_worker(now, worker, context);
            if let Err(error) = received {
                self.lose(now, worker, context, &error);
            }
        }
        if let Some((_, client)) = self.link(worker)
            && client.poll_timeout().is_some_and(|due| due <= now)
        {
            client.handle_timeout(now);
            self.hear_worker(now, worker, context);
        }
    }

    fn link(&mut self, worker: usize) -> Option<&mut (Pipe, Client)> {
        self.inners.get_mut(worker)?.link.as_mut()
    }

    fn hear_worker(&mut self, now: Time, worker: usize, context: &mut Context) {
        while let Some(event) = self.link(worker).and_then(|(_, client)| client.poll_event()) {
            match event {
                ClientEvent::Connected { .. } => self.claim_all(worker),
                ClientEvent::Response(response) => {
                    let outcome = self.pass_on(now, &response);
                    context.tally.count(outcome);
                }
                ClientEvent::Refused { flow, why } => {
                    tracing::debug!(peer = %self.address, flow = flow.0, ?why, "claim of a C tcpcopy refused");
                    self.flows.remove(flow);
                }
                // Workers know names for flows, and C tcpcopys no word for the rest.
                ClientEvent::Host
                | ClientEvent::Confirmed(_)
                | ClientEvent::Stats(_)
                | ClientEvent::Unnamed { .. }
                | ClientEvent::Unreadable(_) => {}
                ClientEvent::Closed(why) => self.lose(now, worker, context, &why),
            }
        }
    }

    fn claim_all(&mut self, worker: usize) {
        let workers = u16::try_from(self.inners.len()).unwrap_or(u16::MAX);
        let Some((_, client)) = self.inners.get_mut(worker).and_then(|inner| inner.link.as_mut()) else {
            return;
        };
        let theirs = |key: &FlowKey| usize::from(split(key.client, workers)) == worker;
        self.flows.iter().filter(|(_, key)| theirs(key)).for_each(|(id, key)| client.claim(id, key));
    }

    fn pass_on(&mut self, now: Time, response: &Response) -> Legacy {
        let Some((key, connection)) = self.flows.answer(now, response.flow, &response.header) else {
            return Legacy::Stray;
        };
        let sent = self.outers.get_mut(connection).map(|outer| outer.server.response(&key, &response.header));
        match sent {
            Some(true) => Legacy::Header,
            Some(false) => Legacy::Dropped,
            None => Legacy::Stray,
        }
    }

    /// The worker will have this host again in a moment.
    fn lose(&mut self, now: Time, worker: usize, context: &mut Context, why: &dyn std::fmt::Display) {
        if let Some(inner) = self.inners.get_mut(worker) {
            inner.link = None;
            inner.again = now + AGAIN;
        }
        warn(now, context, self.address, why);
    }
}

/// What the C tcpcopys say.
impl Peer {
    fn turn_outer(&mut self, now: Time, key: usize, context: &mut Context, refusals: &mut Refusals) {
        for _ in 0..READS {
            let clogged = self.is_clogged();
            let Some(outer) = self.outers.get_mut(key).filter(|outer| outer.pipe.is_readable() && !clogged)
            else {
                break;
            };
            let received = outer.pipe.receive(now, &mut outer.server);
            self.hear(now, key, context, refusals);
            if let Err(error) = received {
                self.hang_up(now, key, (context, refusals), TurnedAway::Gone, &error);
            }
        }
        if let Some(outer) = self.outers.get_mut(key)
            && outer.server.poll_timeout().is_some_and(|due| due <= now)
        {
            outer.server.handle_timeout(now);
            self.hear(now, key, context, refusals);
        }
    }

    fn hear(&mut self, now: Time, key: usize, context: &mut Context, refusals: &mut Refusals) {
        while let Some(event) = self.outers.get_mut(key).and_then(|outer| outer.server.poll_event()) {
            match event {
                ServerEvent::Greeted => {
                    if let Some(outer) = self.outers.get_mut(key) {
                        outer.greeted = true;
                    }
                    if let Some(kept_back) = context.quiet.allow(now) {
                        let connections = self.outers.len();
                        tracing::info!(peer = %self.host(), connections, kept_back, "a C tcpcopy connected");
                    }
                }
                ServerEvent::Claim(flow) => {
                    let outcome = self.claim(now, flow, key);
                    context.tally.count(outcome);
                }
                ServerEvent::Ignored(kind) => {
                    tracing::debug!(peer = %self.host(), kind, "a C tcpcopy said something that means nothing");
                    context.tally.count(Legacy::Ignored);
                }
                ServerEvent::Closed(why) => self.hang_up(now, key, (context, refusals), why.into(), &why),
            }
        }
    }

    fn claim(&mut self, now: Time, key: FlowKey, connection: usize) -> Legacy {
        let Some(id) = self.flows.claim(now, key, connection) else { return Legacy::Full };
        if let Some(client) = self.client_for(&key) {
            client.claim(id, key);
        }
        Legacy::Claim
    }

    fn release(&mut self, id: FlowId, key: &FlowKey) {
        if let Some(client) = self.client_for(key) {
            client.release(id);
        }
    }

    fn client_for(&mut self, key: &FlowKey) -> Option<&mut Client> {
        let workers = u16::try_from(self.inners.len()).unwrap_or(u16::MAX);
        self.link(usize::from(split(key.client, workers))).map(|(_, client)| client)
    }

    /// Ends a connection: for `reason` if it has not introduced itself.
    fn hang_up(
        &mut self,
        now: Time,
        key: usize,
        (context, refusals): (&mut Context, &mut Refusals),
        reason: TurnedAway,
        why: &dyn std::fmt::Display,
    ) {
        if self.outers.get(key).is_some_and(|outer| outer.greeted) {
            self.close(now, key, context, why);
        } else if self.outers.try_remove(key).is_some() {
            let host = self.host();
            refusals.complain(now, reason, &format_args!("{host}, which is in `legacy`: {why}"));
        }
    }

    /// Ends a connection, and with it the claims that were made on it.
    fn close(&mut self, now: Time, key: usize, context: &mut Context, why: &dyn std::fmt::Display) {
        if self.outers.try_remove(key).is_none() {
            return;
        }
        for (id, flow) in self.flows.remove_all_of(key) {
            self.release(id, &flow);
        }
        if let Some(kept_back) = context.quiet.allow(now) {
            tracing::info!(peer = %self.host(), %why, kept_back, "a C tcpcopy disconnected");
        }
    }

    fn flush(&mut self, now: Time, context: &mut Context) {
        self.memory.set(self.flows.memory());
        for worker in 0..self.inners.len() {
            let Some((pipe, client)) = self.link(worker) else { continue };
            if let Err(error) = pipe.flush(client) {
                self.lose(now, worker, context, &error);
            }
        }
        for key in self.keys() {
            let Some(outer) = self.outers.get_mut(key) else { continue };
            let flushed = outer.pipe.flush(&mut outer.server);
            outer.memory.set(outer.server.memory());
            if let Err(error) = flushed {
                self.close(now, key, context, &error);
            }
        }
    }
}

/// Makes a pipe to a worker, and introduces the host there.
fn connect(
    now: Time,
    address: SocketAddr,
    instance: u64,
    worker: usize,
    context: &Context,
) -> io::Result<(Pipe, Client)> {
    let orders = context.workers.get(worker).ok_or(io::ErrorKind::NotFound)?;
    let (ours, theirs) = Pipe::pair(address)?;
    let wanted = u16::try_from(worker).unwrap_or(u16::MAX);
    let mut client = Client::new(
        now,
        Hello { instance, claimer: 0, worker: wanted, features: Features::NONE },
        Limits::default(),
    );
    let mut server = tunnel::Server::new(now, limits());
    let hello = client.pending();
    let said = hello.len();
    server.handle_bytes(now, hello);
    client.sent(said);
    if let Some(tunnel::ServerEvent::Hello(hello)) = server.poll_event() {
        orders.send(Order::Connection(Box::new(Newcomer { pipe: theirs, server, hello, bridged: true })));
    }
    Ok((ours, client))
}

fn warn(now: Time, context: &mut Context, peer: SocketAddr, why: &dyn std::fmt::Display) {
    if let Some(kept_back) = context.quiet.allow(now) {
        tracing::warn!(peer = %peer.ip(), %why, kept_back, "a worker does not serve a C tcpcopy, trying again");
    }
}
