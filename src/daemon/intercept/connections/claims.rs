//! Claims: taken by the router, then confirmed where tcpcopys wait for that.

use super::{
    ClaimRefusal, ConnId, Connection, Connections, FlowId, FlowKey, Held, Outcome, Refusal, Router, Time,
};

/// A claim that was taken and is to be confirmed.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Unconfirmed {
    pub(in super::super) conn: ConnId,
    pub(in super::super) flow: FlowId,
    pub(in super::super) key: FlowKey,
}

impl Connections {
    /// The claims that are to be confirmed.
    pub(in super::super) fn take_unconfirmed(&mut self) -> Vec<Unconfirmed> {
        std::mem::take(&mut self.unconfirmed)
    }

    /// Confirms a claim, or says why it is not held after all.
    pub(in super::super) fn answer(&mut self, claim: &Unconfirmed, answer: Result<(), ClaimRefusal>) {
        let Some(key) = self.key(claim.conn) else { return };
        if let Some(connection) = self.all.get_mut(key) {
            match answer {
                Ok(()) => connection.server.confirmed(claim.flow),
                Err(why) => connection.server.refused(claim.flow, why),
            }
            self.mark_dirty(key);
        }
    }
}

/// Returns whether the claim is held.
pub(super) fn claim(
    now: Time,
    connection: &mut Connection,
    flow: FlowId,
    key: FlowKey,
    router: &mut Router,
) -> bool {
    let why = match router.claim(now, connection.id, flow, key) {
        Ok(waited) => {
            for Held { header, arrived } in waited {
                let sent = connection.server.response(flow, &header, now.since(arrived));
                router.count(if sent { Outcome::ForwardedLate } else { Outcome::TunnelFull });
            }
            return true;
        }
        Err(Refusal::Taken) => ClaimRefusal::Taken,
        Err(Refusal::ForeignTarget) => ClaimRefusal::ForeignTarget,
        Err(Refusal::ForeignClient) => ClaimRefusal::ForeignClient,
        Err(Refusal::TableFull) => ClaimRefusal::TableFull,
        // The connection was replaced and is about to be closed.
        Err(Refusal::NotConnected) => return false,
    };
    connection.server.refused(flow, why);
    false
}
