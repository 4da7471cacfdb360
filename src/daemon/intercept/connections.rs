//! The tunnels of one worker.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use mio::event::Event;
use mio::{Registry, Token};
use slab::Slab;

use super::budget::{Account, Budget, Instance};
use super::door::{Door, Permit};
use super::readiness::Readiness;
use super::turns::Turns;
use crate::config::intercept::Settings;
use crate::daemon::pipe::Pipe;
use crate::daemon::quiet::Quiet;
use crate::router::{ConnId, Displaced, Held, Identity, Outcome, Refusal, Router, Tenant};
use crate::tunnel::{
    ClaimRefusal, Endpoint, Features, Hello, KeyId, Limits, Refuse, Server, ServerEvent, Welcome,
};
use crate::wire::{Counted, FlowId, FlowKey, Scope, Tally, TcpHeader, Time, flow::SPLIT_SEED};

mod claims;

pub(super) use claims::Unconfirmed;

/// Log lines about connections, and the time between two after the first ones: 32 tcpcopy may come at once.
const LOG_BURST: u32 = 100;
const LOG_INTERVAL: Duration = Duration::from_secs(2);
/// The time between two log lines about tcpcopys that lose flows to others.
const DISPLACED_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time that headers leave at once because a tcpcopy asked for it.
const MAX_HURRY: Duration = Duration::from_secs(10);
/// What a read costs at least, as bytes of a long one.
const READ_COST: usize = 256;

/// Why the tunnel of a tcpcopy was not taken, or was ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Denied {
    /// There are as many as there may be, and its tenant (key, or host) has its fair share.
    ConnectionLimit,
    /// There are as many as there may be, and its tenant has most: it made room for another one.
    Displaced,
    /// There was no memory for another one.
    MemoryLimit,
    /// It took most when memory was short.
    Shed,
    /// Its key is no longer one of ours, or is for other clients now.
    Key,
}

crate::counted!(Denied {
    ConnectionLimit => "connection_limit",
    Displaced => "displaced",
    MemoryLimit => "memory_limit",
    Shed => "shed",
    Key => "key",
});

/// Limits of a tunnel connection of intercept's. What waits to be written is 100,000 headers, which
/// are old by the time a slow peer gets them: more would help nobody. A tcpcopy that is stopped for a while (SIGSTOP, a
/// snapshot of its machine) is not a lost one.
pub(super) fn limits() -> Limits {
    Limits { output: 4 << 20, silence: Duration::from_secs(30), ..Limits::default() }
}

/// A connection whose hello was read.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) pipe: Pipe,
    pub(super) server: Server,
    pub(super) hello: Hello,
    /// It comes from the bridge, on behalf of a C tcpcopy, which has no key.
    pub(super) bridged: bool,
}

#[derive(Debug)]
struct Connection {
    id: ConnId,
    pipe: Pipe,
    server: Server,
    /// What its key permits.
    permit: Permit,
    /// It is of the bridge, and has no key.
    bridged: bool,
    memory: Account,
    /// It is in `dirty`.
    dirty: bool,
    /// It is in `readable`.
    readable: bool,
}

/// What the threads share, and how many tunnels each worker may have.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) most: usize,
    pub(super) budget: Budget,
    pub(super) door: Door,
    pub(super) readiness: Readiness,
}

impl Shared {
    /// What `settings` say. `open` is the reason why this host is open.
    pub(super) fn new(settings: &Settings, most: usize, open: Option<String>) -> Self {
        Self {
            most,
            budget: Budget::new(settings.memory_limit),
            door: Door::new(&settings.keys, &settings.legacy),
            readiness: Readiness::new(open),
        }
    }
}

/// The connections of those who claim a worker's flows.
#[derive(Debug)]
pub(super) struct Connections {
    all: Slab<Connection>,
    /// Counts them all, so that no id is used twice.
    count: u64,
    /// Those with something to write.
    dirty: Vec<usize>,
    /// Those with something to read.
    readable: Turns,
    first_token: usize,
    worker: u16,
    workers: u16,
    /// How many there may be.
    most: usize,
    budget: Budget,
    door: Door,
    readiness: Readiness,
    /// Why the host is open, by what was read last.
    open: Option<String>,
    /// Whose responses are taken.
    scope: Scope,
    /// What this intercept does beyond the first release.
    features: Features,
    /// Claims that were taken in this turn, and are to be confirmed.
    unconfirmed: Vec<Unconfirmed>,
    denied: Tally<Denied>,
    /// Until when headers are to leave at once.
    hurry: Time,
    quiet: Quiet,
    quiet_displaced: Quiet,
}

impl Connections {
    /// None yet; their tokens will be `first_token` and those after it. `worker` is the worker's index, and how many there
    /// are.
    pub(super) fn new(
        first_token: usize,
        (worker, workers): (u16, u16),
        shared: Shared,
        scope: Scope,
        features: Features,
    ) -> Self {
        Self {
            all: Slab::new(),
            count: 0,
            dirty: Vec::new(),
            readable: Turns::default(),
            first_token,
            worker,
            workers,
            most: shared.most,
            budget: shared.budget,
            door: shared.door,
            open: shared.readiness.open(),
            readiness: shared.readiness,
            scope,
            features,
            unconfirmed: Vec::new(),
            denied: Tally::default(),
            hurry: Time::ZERO,
            quiet: Quiet::new(LOG_BURST, LOG_INTERVAL),
            quiet_displaced: Quiet::new(1, DISPLACED_INTERVAL),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Tunnels that were not taken, or ended here.
    pub(super) fn denied(&self) -> &Tally<Denied> {
        &self.denied
    }

    /// Until when headers are to leave at once, because sessions wait for them.
    pub(super) fn hurry(&self) -> Time {
        self.hurry
    }

    /// Whether some could not be read to their end.
    pub(super) fn wants_turn(&self) -> bool {
        !self.readable.is_empty()
    }

    /// When [`Connections::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.all.iter().filter_map(|(_, connection)| connection.server.poll_timeout()).min()
    }

    /// Takes a connection from the acceptor and welcomes it.
    pub(super) fn add(&mut self, now: Time, mut new: Newcomer, registry: &Registry, router: &mut Router) {
        let instance = instance(&new);
        if self.all.len() >= self.most {
            self.make_room(now, instance.tenant, router);
        }
        let permit = match self.admit(new.server.key(), new.bridged, instance.tenant) {
            Ok(permit) => permit,
            Err((denied, refuse)) => {
                new.server.refuse(refuse);
                // It fits into the empty socket buffer, or the peer is past caring.
                let _ = new.pipe.flush(&mut new.server);
                self.denied.count(denied);
                if let Some(kept_back) = self.quiet.allow(now) {
                    let (worker, reason) = (self.worker, denied.name());
                    let peer = new.pipe.peer().ok();
                    tracing::warn!(worker, ?peer, reason, kept_back, "a tcpcopy was turned away");
                }
                return;
            }
        };
        self.refresh_readiness();
        let entry = self.all.vacant_entry();
        let key = entry.key();
        if let Err(error) = new.pipe.register(registry, Token(key + self.first_token)) {
            tracing::warn!(worker = self.worker, %error, "a tcpcopy was lost before its welcome");
            return;
        }
        let id = ConnId((self.count << 32) | u64::try_from(key).unwrap_or_default());
        self.count += 1;
        new.server.welcome(
            now,
            Welcome {
                workers: self.workers,
                worker: self.worker,
                split_seed: SPLIT_SEED,
                features: self.features,
            },
        );
        new.server.host(self.open.as_deref(), Some(&permitted(&self.scope, &permit)));
        let peer = new.pipe.peer().ok();
        let Instance { tenant, number } = instance;
        let identity = Identity { tenant, instance: number, worker: new.hello.claimer };
        let before = router.connect(id, identity, permit.clone());
        entry.insert(Connection {
            id,
            pipe: new.pipe,
            server: new.server,
            permit,
            bridged: new.bridged,
            memory: self.budget.open(instance),
            dirty: false,
            readable: false,
        });
        if let Some(kept_back) = self.quiet.allow(now) {
            let (worker, claimer) = (self.worker, new.hello.claimer);
            tracing::info!(worker, ?peer, claimer, kept_back, "tcpcopy connected");
        }
        if let Some(before) = before {
            self.close(now, before, router, &"replaced by a later connection of the same tcpcopy worker");
        }
        self.mark_dirty(key);
        // Claims may have come with the hello.
        self.obey(now, key, router);
    }

    /// What somebody with that key may do, or why there is no tunnel for him. Who comes over the bridge was let in there.
    fn admit(&self, key: Option<KeyId>, bridged: bool, tenant: Tenant) -> Result<Permit, (Denied, Refuse)> {
        if self.all.len() >= self.most {
            return Err((Denied::ConnectionLimit, Refuse::Full));
        }
        if !self.budget.has_room(tenant) {
            return Err((Denied::MemoryLimit, Refuse::Full));
        }
        if bridged {
            return Ok(None);
        }
        // The keys may have changed since its hello.
        self.door.permit(key).ok_or((Denied::Key, Refuse::UnknownKey))
    }

    /// Ends a tunnel of the tenant that has most, if that is more than `tenant` will have with its new one. It is one of the
    /// tcpcopy that has most of them, and the last that came.
    fn make_room(&mut self, now: Time, tenant: Tenant, router: &mut Router) {
        let mut tenants: HashMap<Tenant, usize> = HashMap::new();
        let mut instances: HashMap<Instance, usize> = HashMap::new();
        for (_, connection) in &self.all {
            let instance = connection.memory.instance();
            *tenants.entry(instance.tenant).or_default() += 1;
            *instances.entry(instance).or_default() += 1;
        }
        let own = tenants.get(&tenant).copied().unwrap_or(0);
        let most = tenants.into_iter().max_by_key(|(_, tunnels)| *tunnels);
        let Some((fullest, _)) = most.filter(|(_, tunnels)| *tunnels > own + 1) else { return };
        let its = self.all.iter().filter(|(_, each)| each.memory.instance().tenant == fullest);
        let of_instance = |each: &Connection| instances.get(&each.memory.instance()).copied();
        let Some((key, _)) = its.max_by_key(|(_, each)| (of_instance(each), each.id.0)) else { return };
        self.denied.count(Denied::Displaced);
        self.close_key(now, key, router, &"there are as many tunnels as there may be, and its key has most");
    }

    /// Ends the tunnels whose keys are no longer ours, or permit something else now.
    pub(super) fn keys_changed(&mut self, now: Time, router: &mut Router) {
        let door = self.door.clone();
        let stale = |connection: &Connection| {
            !connection.bridged && door.permit(connection.server.key()).as_ref() != Some(&connection.permit)
        };
        let keys: Vec<_> = self.all.iter().filter(|(_, each)| stale(each)).map(|(key, _)| key).collect();
        for key in keys {
            self.denied.count(Denied::Key);
            self.close_key(
                now,
                key,
                router,
                &"its key is no longer one of ours, or is for other clients now",
            );
        }
    }

    /// Reads the state of the host, which may be ahead of the order that announces it. Every connection learns of a change
    /// at once: claims are judged by it, and a claimer repeats refused claims only if it was told that the host was open.
    fn refresh_readiness(&mut self) {
        let open = self.readiness.open();
        if open != self.open {
            self.open = open;
            self.tell_host(false);
        }
    }

    /// Tells every tcpcopy whether this host is closed.
    pub(super) fn tell_readiness(&mut self) {
        self.open = self.readiness.open();
        self.tell_host(false);
    }

    /// From now on the responses in this scope are taken.
    pub(super) fn set_scope(&mut self, scope: Scope) {
        self.scope = scope;
        self.tell_host(true);
    }

    fn tell_host(&mut self, with_scope: bool) {
        for (key, connection) in &mut self.all {
            let scope = with_scope.then(|| permitted(&self.scope, &connection.permit));
            connection.server.host(self.open.as_deref(), scope.as_ref());
            if !std::mem::replace(&mut connection.dirty, true) {
                self.dirty.push(key);
            }
        }
    }

    /// Takes an event of one of the tokens.
    pub(super) fn ready(&mut self, event: &Event) {
        let key = event.token().0.wrapping_sub(self.first_token);
        let Some(connection) = self.all.get_mut(key) else { return };
        connection.pipe.ready(event);
        if connection.pipe.is_readable() && !connection.readable {
            connection.readable = true;
            self.readable.add(connection.memory.instance().tenant, key);
        }
        if connection.server.has_pending() {
            self.mark_dirty(key);
        }
    }

    /// Whether each of them gave something at `now` or later.
    pub(super) fn flow(&self, now: Time) -> bool {
        self.all.iter().all(|(_, connection)| connection.pipe.flows(now))
    }

    /// There may be something to read from each, without an event.
    pub(super) fn expect(&mut self) {
        for (key, connection) in &mut self.all {
            connection.pipe.expect();
            if !std::mem::replace(&mut connection.readable, true) {
                self.readable.add(connection.memory.instance().tenant, key);
            }
        }
    }

    /// Reads from those that have something, each tenant up to its share of a turn.
    pub(super) fn receive(&mut self, now: Time, router: &mut Router) {
        for mut turn in self.readable.begin() {
            while let Some(key) = turn.next() {
                let Some(connection) = self.all.get_mut(key) else { continue };
                let received = connection.pipe.receive(now, &mut connection.server);
                turn.read(received.as_ref().copied().unwrap_or(0).max(READ_COST));
                self.obey(now, key, router);
                if let Err(error) = received {
                    self.close_key(now, key, router, &error);
                }
                let Some(connection) = self.all.get_mut(key) else { continue };
                connection.memory.set(connection.server.memory());
                connection.readable = connection.pipe.is_readable();
                if connection.readable {
                    turn.again(key);
                }
            }
            self.readable.end(turn);
        }
    }

    /// Sends a response's header, and counts what came of it.
    pub(super) fn forward(
        &mut self,
        conn: ConnId,
        flow: FlowId,
        header: &TcpHeader,
        waited: Duration,
    ) -> bool {
        let Some(key) = self.key(conn) else { return false };
        let sent = self.all.get_mut(key).is_some_and(|connection| {
            !connection.memory.is_to_drop() && connection.server.response(flow, header, waited)
        });
        if sent {
            self.mark_dirty(key);
        }
        sent
    }

    /// Tells a claimer that a claim of its is no longer held.
    pub(super) fn evicted(&mut self, conn: ConnId, flow: FlowId) {
        let Some(key) = self.key(conn) else { return };
        if let Some(connection) = self.all.get_mut(key) {
            connection.server.refused(flow, ClaimRefusal::Evicted);
            self.mark_dirty(key);
        }
    }

    /// Logs that a claimer has more flows than its fair share, and loses them to others.
    pub(super) fn displaced(&mut self, now: Time, Displaced { conn, flows, share }: Displaced) {
        let Some(connection) = self.key(conn).and_then(|key| self.all.get(key)) else { return };
        let Some(kept_back) = self.quiet_displaced.allow(now) else { return };
        let peer =
            connection.pipe.peer().map_or_else(|_| "a peer that is gone".to_owned(), |peer| peer.to_string());
        let key = connection.server.key().map_or_else(|| "none".to_owned(), |key| key.to_string());
        tracing::warn!(
            worker = self.worker,
            peer,
            key,
            flows,
            share,
            kept_back,
            "The flow table is full, and the tcpcopy at {peer} (key {key}) has {flows} flows where its fair share is \
             {share}: its idlest flows make room for other tcpcopys. If it needs as many, raise max-flows."
        );
    }

    /// Sends the worker's counters to all.
    pub(super) fn report(&mut self, responses: u64, queue_dropped: u64) {
        for (key, connection) in &mut self.all {
            if connection.server.report(responses, queue_dropped) && !connection.dirty {
                connection.dirty = true;
                self.dirty.push(key);
            }
        }
    }

    /// Ends those that have been silent for too long.
    pub(super) fn handle_timeout(&mut self, now: Time, router: &mut Router) {
        let late = |connection: &Connection| connection.server.poll_timeout().is_some_and(|at| at <= now);
        let keys: Vec<_> = self.all.iter().filter(|(_, each)| late(each)).map(|(key, _)| key).collect();
        for key in keys {
            if let Some(connection) = self.all.get_mut(key) {
                connection.server.handle_timeout(now);
            }
            self.obey(now, key, router);
        }
    }

    /// Writes what is pending, and ends what takes too much because its peer does not read.
    pub(super) fn flush(&mut self, now: Time, router: &mut Router) {
        for key in std::mem::take(&mut self.dirty) {
            let Some(connection) = self.all.get_mut(key) else { continue };
            connection.dirty = false;
            let flushed = connection.pipe.flush(&mut connection.server);
            connection.memory.set(connection.server.memory());
            if let Err(error) = flushed {
                self.close_key(now, key, router, &error);
            }
        }
        while self.budget.is_exceeded() {
            let above = self.all.iter().filter(|(_, connection)| connection.memory.is_above_part());
            let most = above.max_by_key(|(_, connection)| connection.memory.taken());
            // Without one, it is another worker's turn.
            let Some((key, _)) = most else { break };
            self.denied.count(Denied::Shed);
            self.close_key(
                now,
                key,
                router,
                &"the tunnels take more than memory-limit, and this one most, of a key above its part",
            );
        }
    }

    /// Does what a claimer says.
    fn obey(&mut self, now: Time, key: usize, router: &mut Router) {
        while let Some(connection) = self.all.get_mut(key) {
            let conn = connection.id;
            match connection.server.poll_event() {
                // A second hello is never decoded.
                None | Some(ServerEvent::Hello(_)) => break,
                Some(ServerEvent::Claim { flow, .. }) if self.open.is_some() => {
                    connection.server.refused(flow, ClaimRefusal::HostOpen);
                }
                Some(ServerEvent::Claim { flow, key }) => {
                    if claims::claim(now, connection, flow, key, router)
                        && self.features.has(Features::CONFIRMATION)
                    {
                        self.unconfirmed.push(Unconfirmed { conn, flow, key });
                    }
                }
                Some(ServerEvent::Release(flow)) => router.release(now, conn, flow),
                Some(ServerEvent::Hurry(time)) => self.hurry = self.hurry.max(now + time.min(MAX_HURRY)),
                Some(ServerEvent::Closed(why)) => self.close_key(now, key, router, &why),
            }
        }
        if self.all.get(key).is_some_and(|connection| connection.server.has_pending()) {
            self.mark_dirty(key);
        }
    }

    fn close(&mut self, now: Time, conn: ConnId, router: &mut Router, why: &dyn std::fmt::Display) {
        if let Some(key) = self.key(conn) {
            self.close_key(now, key, router, why);
        }
    }

    fn close_key(&mut self, now: Time, key: usize, router: &mut Router, why: &dyn std::fmt::Display) {
        let Some(connection) = self.all.try_remove(key) else { return };
        router.disconnect(connection.id);
        let Some(kept_back) = self.quiet.allow(now) else { return };
        let stats = connection.server.stats();
        tracing::info!(
            worker = self.worker,
            peer = ?connection.pipe.peer().ok(),
            %why,
            headers = stats.headers,
            headers_dropped = stats.headers_dropped,
            kept_back,
            "tcpcopy disconnected"
        );
    }

    /// The slab's key of a connection, if it is still the same one.
    fn key(&self, conn: ConnId) -> Option<usize> {
        let key = usize::try_from(conn.0 & u64::from(u32::MAX)).ok()?;
        (self.all.get(key)?.id == conn).then_some(key)
    }

    fn mark_dirty(&mut self, key: usize) {
        if let Some(connection) = self.all.get_mut(key)
            && !connection.dirty
        {
            connection.dirty = true;
            self.dirty.push(key);
        }
    }
}

/// The tcpcopy that a connection's use is charged to. C tcpcopys of one host are one.
fn instance(new: &Newcomer) -> Instance {
    let tenant = match new.server.key() {
        Some(KeyId(key)) => Tenant::Key(key),
        None => Tenant::Host(new.pipe.peer().map_or(Ipv6Addr::UNSPECIFIED.into(), |peer| peer.ip())),
    };
    Instance { tenant, number: new.hello.instance }
}

/// The part of the scope that a tcpcopy may claim.
fn permitted(scope: &Scope, permit: &Permit) -> Scope {
    permit.as_ref().map_or_else(|| scope.clone(), |clients| scope.limited_to(clients))
}

#[cfg(test)]
mod tests;
