//! The intercept and its tunnel: claims go there, the headers of claimed flows come back.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tcpcopy::wire::{FlowId, FlowKey};

/// Who claimed what. A small model of `tcpcopy::router`.
#[derive(Debug, Default)]
pub(crate) struct Intercept {
    owners: BTreeMap<SocketAddr, (FlowId, FlowKey)>,
    /// The tunnel is up.
    pub(crate) up: bool,
}

impl Intercept {
    /// An intercept that can be reached.
    pub(crate) fn new() -> Self {
        Self { up: true, ..Self::default() }
    }

    /// A claim has come through the tunnel.
    pub(crate) fn claim(&mut self, id: FlowId, key: FlowKey) {
        self.owners.insert(key.client, (id, key));
    }

    /// A release has.
    pub(crate) fn release(&mut self, id: FlowId) {
        self.owners.retain(|_, (own, _)| *own != id);
    }

    /// The name of the flow of a packet from `server` to `client`, if it was claimed.
    pub(crate) fn owner(&self, client: SocketAddr, server: SocketAddr) -> Option<FlowId> {
        self.owners.get(&client).filter(|(_, key)| key.server == server).map(|(id, _)| *id)
    }

    /// It starts again and knows nothing.
    pub(crate) fn forget(&mut self) {
        self.owners.clear();
    }
}
