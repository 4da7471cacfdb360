//! Claimers and their connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use slab::Slab;

use super::{ConnId, Identity};
use crate::wire::Prefix;

/// A claimer, as long as it is connected or has flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct OwnerId(usize);

#[derive(Debug)]
struct Owner {
    identity: Identity,
    conn: Option<ConnId>,
    /// Counts its connections, so that one disconnect orphans all claims at once.
    epoch: u32,
    flows: usize,
    /// The clients it may speak for; `None` is all.
    clients: Option<Arc<[Prefix]>>,
}

#[derive(Debug, Default)]
pub(super) struct Owners {
    all: Slab<Owner>,
    by_identity: HashMap<Identity, OwnerId>,
    by_conn: HashMap<ConnId, OwnerId>,
}

impl Owners {
    /// Returns the connection that the new one takes the place of.
    pub(super) fn connect(
        &mut self,
        conn: ConnId,
        identity: Identity,
        clients: Option<Arc<[Prefix]>>,
    ) -> Option<ConnId> {
        let id = *self.by_identity.entry(identity).or_insert_with(|| {
            OwnerId(self.all.insert(Owner { identity, conn: None, epoch: 0, flows: 0, clients: None }))
        });
        let owner = self.all.get_mut(id.0)?;
        owner.clients = clients;
        owner.epoch = owner.epoch.wrapping_add(1);
        let before = owner.conn.replace(conn);
        if let Some(before) = before {
            self.by_conn.remove(&before);
        }
        self.by_conn.insert(conn, id);
        before
    }

    pub(super) fn disconnect(&mut self, conn: ConnId) {
        let Some(id) = self.by_conn.remove(&conn) else { return };
        if let Some(owner) = self.all.get_mut(id.0) {
            owner.conn = None;
        }
        self.tidy(id);
    }

    /// Who a connection is, and the epoch of its claims.
    pub(super) fn of(&self, conn: ConnId) -> Option<(OwnerId, u32)> {
        let id = *self.by_conn.get(&conn)?;
        Some((id, self.all.get(id.0)?.epoch))
    }

    /// Whether a claimer may speak for a client.
    pub(super) fn may_claim(&self, id: OwnerId, client: IpAddr) -> bool {
        self.all.get(id.0).is_some_and(|owner| {
            owner.clients.as_ref().is_none_or(|clients| clients.iter().any(|prefix| prefix.contains(client)))
        })
    }

    /// The connection that a claim of that epoch is held over, if it is still there.
    pub(super) fn live(&self, id: OwnerId, epoch: u32) -> Option<ConnId> {
        self.all.get(id.0).filter(|owner| owner.epoch == epoch)?.conn
    }

    /// The claimer has one more flow.
    pub(super) fn hold(&mut self, id: OwnerId) {
        if let Some(owner) = self.all.get_mut(id.0) {
            owner.flows += 1;
        }
    }

    /// The claimer has one flow less.
    pub(super) fn let_go(&mut self, id: OwnerId) {
        if let Some(owner) = self.all.get_mut(id.0) {
            owner.flows = owner.flows.saturating_sub(1);
        }
        self.tidy(id);
    }

    fn tidy(&mut self, id: OwnerId) {
        if self.all.get(id.0).is_some_and(|owner| owner.conn.is_none() && owner.flows == 0) {
            let owner = self.all.remove(id.0);
            self.by_identity.remove(&owner.identity);
        }
    }
}
