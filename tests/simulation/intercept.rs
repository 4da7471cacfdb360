//! The intercept and its tunnel: claims go there, the headers of claimed flows come back.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tcpcopy::replayer::Claim;
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

    /// A claim or release has come through the tunnel.
    pub(crate) fn take(&mut self, claim: Claim) {
        match claim {
            Claim::Claim(id, key) => {
                self.owners.insert(key.client, (id, key));
            }
            Claim::Release(id, key) => {
                if self.owners.get(&key.client).is_some_and(|(own, _)| *own == id) {
                    self.owners.remove(&key.client);
                }
            }
        }
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
