//! What a replayer is told when it is made.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::canary::TargetHealth;
use crate::session;
use crate::wire::flow::{SHARES, share_of};
use crate::wire::{Mapping, Prefix};

/// Settings of a replayer.
#[derive(Clone, Debug)]
pub struct Config {
    /// Settings of every session.
    pub session: Arc<session::Config>,
    /// What is replayed where.
    pub mappings: Vec<Mapping>,
    /// Targets that nothing may be sent to, whatever the mappings say: what is captured goes there.
    pub forbidden: Vec<SocketAddr>,
    /// What is known of each target, shared with the other workers.
    pub targets: Vec<Arc<TargetHealth>>,
    /// Connections a second, of all workers together, beyond the first of each session, and to targets that are back.
    pub reconnects_per_second: u32,
    /// Addresses of the replayed clients; those of the captured ones if empty.
    pub pools: Vec<Prefix>,
    /// Instead: this host's own.
    pub local: Option<Local>,
    /// Sessions made of each captured connection, at least 1.
    pub copies: u16,
    /// How many of [`SHARES`] connections are replayed.
    pub share: u16,
    /// Only clients in one of these are replayed; none means all.
    pub clients: Vec<Prefix>,
    /// How many workers share the flows, and which of them this is. A replayed flow belongs to the
    /// worker that [`crate::wire::flow::split`] gives its client end.
    pub workers: u16,
    /// See `workers`.
    pub worker: u16,
    /// Longest IP packet sent, in bytes.
    pub mtu: u16,
    /// Targets to which it is shorter.
    pub path_mtus: Vec<(IpAddr, u16)>,
    /// Most sessions at a time.
    pub max_sessions: usize,
    /// Most memory that all sessions together may take, in bytes: what they hold, what they are, and what is taken
    /// besides ([`super::Replayer::set_memory_besides`]).
    pub memory_limit: usize,
}

/// The addresses and ports of this host that sessions are replayed from.
#[derive(Clone, Debug)]
pub struct Local {
    /// Each target with an address to replay to it from; there may be several of one target.
    pub addresses: Vec<(SocketAddr, IpAddr)>,
    /// The ports, which nobody else uses toward a target.
    pub ports: RangeInclusive<u16>,
}

impl Config {
    /// One worker that replays all of it once, from the clients' own addresses, without limits.
    pub fn new(mappings: Vec<Mapping>) -> Self {
        Self {
            session: Arc::default(),
            targets: TargetHealth::of(&mappings, &[]),
            reconnects_per_second: 1_000,
            mappings,
            forbidden: Vec::new(),
            pools: Vec::new(),
            local: None,
            copies: 1,
            share: SHARES,
            clients: Vec::new(),
            workers: 1,
            worker: 0,
            mtu: 1500,
            path_mtus: Vec::new(),
            max_sessions: usize::MAX,
            memory_limit: usize::MAX,
        }
    }

    /// The longest IP packet to a target, in bytes.
    pub(super) fn mtu_toward(&self, target: IpAddr) -> u16 {
        let path = self.path_mtus.iter().find(|(address, _)| *address == target);
        path.map_or(self.mtu, |(_, mtu)| self.mtu.min(*mtu))
    }

    /// Whether a client's connections from this port are replayed: what rules and filters select too.
    pub(super) fn selects(&self, client: SocketAddr) -> bool {
        let in_share = self.share >= SHARES || share_of(client) < self.share;
        let is_wanted =
            || self.clients.is_empty() || self.clients.iter().any(|prefix| prefix.contains(client.ip()));
        in_share && is_wanted()
    }

    /// The target of connections to `online`. A mapping that names the address goes before one that
    /// does not.
    pub(super) fn target_of(&self, online: SocketAddr) -> Option<SocketAddr> {
        let fits = |mapping: &&Mapping| {
            mapping.port == online.port() && mapping.target.is_ipv4() == online.is_ipv4()
        };
        let exact = self.mappings.iter().filter(fits).find(|mapping| mapping.online == Some(online.ip()));
        let any = || self.mappings.iter().filter(fits).find(|mapping| mapping.online.is_none());
        let target = exact.or_else(any).map(|mapping| mapping.target);
        target.filter(|target| !self.forbidden.contains(target))
    }
}
