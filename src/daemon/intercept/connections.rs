//! The tunnels of one worker.

use std::time::Duration;

use mio::event::Event;
use mio::{Registry, Token};
use slab::Slab;

use super::worker::Newcomer;
use crate::daemon::pipe::Pipe;
use crate::daemon::quiet::Quiet;
use crate::router::{ConnId, Held, Identity, Outcome, Refusal, Router};
use crate::tunnel::{ClaimRefusal, Endpoint, Refuse, Server, ServerEvent, Welcome};
use crate::wire::{FlowId, FlowKey, TcpHeader, Time, flow::SPLIT_SEED};

/// Connections one worker takes.
const MAX_CONNECTIONS: usize = 1024;
/// Log lines about connections, and the time between two after the first ones: 32 tcpcopy may come at once.
const LOG_BURST: u32 = 100;
const LOG_INTERVAL: Duration = Duration::from_secs(2);
/// Longest time that headers leave at once because a tcpcopy asked for it.
const MAX_HURRY: Duration = Duration::from_secs(10);
/// Reads from one connection in a turn.
const READS: usize = 8;

#[derive(Debug)]
struct Connection {
    id: ConnId,
    pipe: Pipe,
    server: Server,
    /// It is in `dirty`.
    dirty: bool,
    /// It is in `readable`.
    readable: bool,
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
    readable: Vec<usize>,
    first_token: usize,
    worker: u16,
    workers: u16,
    /// Until when headers are to leave at once.
    hurry: Time,
    quiet: Quiet,
}

impl Connections {
    /// None yet; their tokens will be `first_token` and those after it.
    pub(super) fn new(first_token: usize, worker: u16, workers: u16) -> Self {
        Self {
            all: Slab::new(),
            count: 0,
            dirty: Vec::new(),
            readable: Vec::new(),
            first_token,
            worker,
            workers,
            hurry: Time::ZERO,
            quiet: Quiet::new(LOG_BURST, LOG_INTERVAL),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
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
        if self.all.len() >= MAX_CONNECTIONS {
            new.server.refuse(Refuse::Full);
            // It fits into the empty socket buffer, or the peer is past caring.
            let _ = new.pipe.flush(&mut new.server);
            if let Some(kept_back) = self.quiet.allow(now) {
                tracing::warn!(
                    worker = self.worker,
                    limit = MAX_CONNECTIONS,
                    kept_back,
                    "too many tcpcopy: one was turned away"
                );
            }
            return;
        }
        let entry = self.all.vacant_entry();
        let key = entry.key();
        if let Err(error) = new.pipe.register(registry, Token(key + self.first_token)) {
            tracing::warn!(worker = self.worker, %error, "a tcpcopy was lost before its welcome");
            return;
        }
        let id = ConnId((self.count << 32) | u64::try_from(key).unwrap_or_default());
        self.count += 1;
        new.server
            .welcome(now, Welcome { workers: self.workers, worker: self.worker, split_seed: SPLIT_SEED });
        let peer = new.pipe.peer().ok();
        entry.insert(Connection { id, pipe: new.pipe, server: new.server, dirty: false, readable: false });
        if let Some(kept_back) = self.quiet.allow(now) {
            tracing::info!(
                worker = self.worker,
                ?peer,
                claimer = new.hello.claimer,
                kept_back,
                "tcpcopy connected"
            );
        }
        let identity = Identity { instance: new.hello.instance, worker: new.hello.claimer };
        if let Some(before) = router.connect(id, identity, new.clients) {
            self.close(now, before, router, &"replaced by a later connection of the same tcpcopy worker");
        }
        self.mark_dirty(key);
        // Claims may have come with the hello.
        self.obey(now, key, router);
    }

    /// Takes an event of one of the tokens.
    pub(super) fn ready(&mut self, event: &Event) {
        let key = event.token().0.wrapping_sub(self.first_token);
        let Some(connection) = self.all.get_mut(key) else { return };
        connection.pipe.ready(event);
        if connection.pipe.is_readable() && !connection.readable {
            connection.readable = true;
            self.readable.push(key);
        }
        if connection.server.has_pending() {
            self.mark_dirty(key);
        }
    }

    /// Reads from those that have something, each up to its share of a turn.
    pub(super) fn receive(&mut self, now: Time, router: &mut Router) {
        for key in std::mem::take(&mut self.readable) {
            for _ in 0..READS {
                let Some(connection) = self.all.get_mut(key) else { break };
                if !connection.pipe.is_readable() {
                    break;
                }
                let received = connection.pipe.receive(now, &mut connection.server);
                self.obey(now, key, router);
                if let Err(error) = received {
                    self.close_key(now, key, router, &error);
                }
            }
            if let Some(connection) = self.all.get_mut(key) {
                connection.readable = connection.pipe.is_readable();
                if connection.readable {
                    self.readable.push(key);
                }
            }
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
        let sent =
            self.all.get_mut(key).is_some_and(|connection| connection.server.response(flow, header, waited));
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

    /// Writes what is pending.
    pub(super) fn flush(&mut self, now: Time, router: &mut Router) {
        for key in std::mem::take(&mut self.dirty) {
            let Some(connection) = self.all.get_mut(key) else { continue };
            connection.dirty = false;
            if let Err(error) = connection.pipe.flush(&mut connection.server) {
                self.close_key(now, key, router, &error);
            }
        }
    }

    /// Does what a claimer says.
    fn obey(&mut self, now: Time, key: usize, router: &mut Router) {
        while let Some(connection) = self.all.get_mut(key) {
            let conn = connection.id;
            match connection.server.poll_event() {
                // A second hello is never decoded.
                None | Some(ServerEvent::Hello(_)) => break,
                Some(ServerEvent::Claim { flow, key }) => claim(now, connection, flow, key, router),
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

fn claim(now: Time, connection: &mut Connection, flow: FlowId, key: FlowKey, router: &mut Router) {
    let why = match router.claim(now, connection.id, flow, key) {
        Ok(waited) => {
            for Held { header, arrived } in waited {
                let sent = connection.server.response(flow, &header, now.since(arrived));
                router.count(if sent { Outcome::ForwardedLate } else { Outcome::TunnelFull });
            }
            return;
        }
        Err(Refusal::Taken) => ClaimRefusal::Taken,
        Err(Refusal::ForeignTarget) => ClaimRefusal::ForeignTarget,
        Err(Refusal::ForeignClient) => ClaimRefusal::ForeignClient,
        Err(Refusal::TableFull) => ClaimRefusal::TableFull,
        // The connection was replaced and is about to be closed.
        Err(Refusal::NotConnected) => return,
    };
    connection.server.refused(flow, why);
}
