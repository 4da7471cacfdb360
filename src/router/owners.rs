//! Claimers, their connections, and the flows of each.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use slab::Slab;

use super::shares::{InstanceId, Shares};
use super::table::List;
use super::{ConnId, Identity};
use crate::wire::{Prefix, Time};

/// A claimer, as long as it is connected or has flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct OwnerId(u32);

#[derive(Debug)]
struct Owner {
    identity: Identity,
    instance: InstanceId,
    conn: Option<ConnId>,
    /// Counts its connections, so that one disconnect orphans all claims at once.
    epoch: u32,
    flows: List,
    /// Its place among the orphans, while it is not connected.
    orphaned: Option<Time>,
    /// The clients it may speak for; `None` is all.
    clients: Option<Arc<[Prefix]>>,
}

#[derive(Debug, Default)]
pub(super) struct Owners {
    all: Slab<Owner>,
    by_identity: HashMap<Identity, OwnerId>,
    by_conn: HashMap<ConnId, OwnerId>,
    /// Claimers that have flows and are not connected: by a time since which they have had no response, or an earlier one.
    orphans: BTreeSet<(Time, OwnerId)>,
    shares: Shares,
    /// What takes the place of an owner that is not there.
    nobody: List,
}

impl Owners {
    /// Returns the connection that the new one takes the place of.
    pub(super) fn connect(
        &mut self,
        conn: ConnId,
        identity: Identity,
        clients: Option<Arc<[Prefix]>>,
    ) -> Option<ConnId> {
        let id = self.by_identity.get(&identity).copied().or_else(|| self.add(identity))?;
        let owner = self.all.get_mut(id.index())?;
        owner.clients = clients;
        owner.epoch = owner.epoch.wrapping_add(1);
        let before = owner.conn.replace(conn);
        if let Some(since) = owner.orphaned.take() {
            self.orphans.remove(&(since, id));
        }
        match before {
            Some(before) => {
                self.by_conn.remove(&before);
            }
            None => self.shares.connected(owner.instance, id.index(), owner.flows.len()),
        }
        self.by_conn.insert(conn, id);
        before
    }

    fn add(&mut self, identity: Identity) -> Option<OwnerId> {
        let id = OwnerId(u32::try_from(self.all.vacant_key()).ok()?);
        let instance = self.shares.add(identity.tenant, identity.instance);
        self.all.insert(Owner {
            identity,
            instance,
            conn: None,
            epoch: 0,
            flows: List::default(),
            orphaned: None,
            clients: None,
        });
        self.by_identity.insert(identity, id);
        Some(id)
    }

    /// Returns who is no longer connected.
    pub(super) fn disconnect(&mut self, conn: ConnId) -> Option<OwnerId> {
        let id = self.by_conn.remove(&conn)?;
        let owner = self.all.get_mut(id.index())?;
        owner.conn = None;
        self.shares.disconnected(owner.instance, id.index(), owner.flows.len());
        self.tidy(id);
        Some(id)
    }

    /// A claimer that is not connected has had no response since then.
    pub(super) fn orphaned(&mut self, id: OwnerId, since: Time) {
        let Some(owner) = self.all.get_mut(id.index()).filter(|owner| owner.conn.is_none()) else { return };
        if let Some(before) = owner.orphaned.replace(since) {
            self.orphans.remove(&(before, id));
        }
        self.orphans.insert((since, id));
    }

    /// The first of the claimers that are not connected, and a time since which it has had no response, or an earlier one.
    pub(super) fn first_orphan(&self) -> Option<(Time, OwnerId)> {
        self.orphans.first().copied()
    }

    /// The claimer of a connection, and the epoch of its claims.
    pub(super) fn of(&self, conn: ConnId) -> Option<(OwnerId, u32)> {
        let id = *self.by_conn.get(&conn)?;
        Some((id, self.all.get(id.index())?.epoch))
    }

    /// Whether a claimer may speak for a client.
    pub(super) fn may_claim(&self, id: OwnerId, client: IpAddr) -> bool {
        self.all.get(id.index()).is_some_and(|owner| {
            owner.clients.as_ref().is_none_or(|clients| clients.iter().any(|prefix| prefix.contains(client)))
        })
    }

    /// The connection that a claim of that epoch is held over, if it is still there.
    pub(super) fn live(&self, id: OwnerId, epoch: u32) -> Option<ConnId> {
        self.all.get(id.index()).filter(|owner| owner.epoch == epoch)?.conn
    }

    /// The connection of a claimer.
    pub(super) fn conn(&self, id: OwnerId) -> Option<ConnId> {
        self.all.get(id.index())?.conn
    }

    /// Claimers that are connected.
    pub(super) fn connected(&self) -> impl Iterator<Item = OwnerId> + '_ {
        self.by_conn.values().copied()
    }

    /// The flows of a claimer.
    pub(super) fn flows(&self, id: OwnerId) -> &List {
        self.all.get(id.index()).map_or(&self.nobody, |owner| &owner.flows)
    }

    /// The same, to be changed.
    pub(super) fn flows_mut(&mut self, id: OwnerId) -> &mut List {
        self.all.get_mut(id.index()).map_or(&mut self.nobody, |owner| &mut owner.flows)
    }

    /// The claimer has one more flow in its list. It is connected.
    pub(super) fn gained(&mut self, id: OwnerId) {
        if let Some(owner) = self.all.get(id.index()) {
            self.shares.gain(owner.instance);
        }
    }

    /// The claimer has one flow less in its list.
    pub(super) fn lost(&mut self, id: OwnerId) {
        if let Some(owner) = self.all.get(id.index())
            && owner.conn.is_some()
        {
            self.shares.lose(owner.instance);
        }
        self.tidy(id);
    }

    /// The flows of a claimer's instance, and its share of so many.
    pub(super) fn standing(&self, id: OwnerId, limit: usize) -> (usize, usize) {
        self.all.get(id.index()).map_or((0, 0), |owner| self.shares.standing(owner.instance, limit))
    }

    /// The claimers that a full table takes a flow from when `id` claims one more: those of one instance. `true` if that is
    /// the instance of `id`, which has its share.
    pub(super) fn displaced_by(&self, id: OwnerId, limit: usize) -> (bool, impl Iterator<Item = OwnerId>) {
        let own = self.all.get(id.index()).map(|owner| owner.instance);
        let from = own.map(|own| self.shares.displaced_by(own, limit));
        let owners = from.into_iter().flat_map(|from| self.shares.owners(from));
        (from == own, owners.filter_map(|owner| u32::try_from(owner).ok().map(OwnerId)))
    }

    fn tidy(&mut self, id: OwnerId) {
        let Some(owner) = self.all.get(id.index()) else { return };
        if owner.conn.is_some() || owner.flows.len() > 0 {
            return;
        }
        let owner = self.all.remove(id.index());
        self.by_identity.remove(&owner.identity);
        self.shares.remove(owner.instance);
        if let Some(since) = owner.orphaned {
            self.orphans.remove(&(since, id));
        }
    }
}

impl OwnerId {
    fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}
