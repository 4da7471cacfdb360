//! What a replayer is told when it is made.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::session;
use crate::wire::Prefix;

/// Connections to `online` are replayed onto `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The address the clients connect to; `None` is any.
    pub online: Option<IpAddr>,
    /// The port the clients connect to.
    pub port: u16,
    /// Where their sessions are replayed.
    pub target: SocketAddr,
}

/// Settings of a replayer.
#[derive(Clone, Debug)]
pub struct Config {
    /// Settings of every session.
    pub session: Arc<session::Config>,
    /// What is replayed where.
    pub routes: Vec<Route>,
    /// Addresses of the replayed clients; those of the captured ones if empty.
    pub pools: Vec<Prefix>,
    /// Sessions made of each captured connection, at least 1.
    pub copies: u16,
    /// Percentage of connections replayed, 1 to 100.
    pub percent: u8,
    /// How many workers share the flows, and which of them this is. A replayed flow belongs to the
    /// worker that [`crate::wire::flow::split`] gives its client end.
    pub workers: u16,
    /// See `workers`.
    pub worker: u16,
    /// Longest IP packet sent, in bytes.
    pub mtu: u16,
    /// Most sessions at a time.
    pub max_sessions: usize,
    /// Most upstream bytes held by all sessions together.
    pub memory_limit: usize,
}

impl Config {
    /// The target of connections to `online`. A route that names the address goes before one that
    /// does not.
    pub(super) fn target_of(&self, online: SocketAddr) -> Option<SocketAddr> {
        let fits = |route: &&Route| route.port == online.port() && route.target.is_ipv4() == online.is_ipv4();
        let exact = self.routes.iter().filter(fits).find(|route| route.online == Some(online.ip()));
        let any = || self.routes.iter().filter(fits).find(|route| route.online.is_none());
        exact.or_else(any).map(|route| route.target)
    }
}
