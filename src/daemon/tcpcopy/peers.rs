//! Which intercepts are there, as all workers see it: told once when one is lost, and once when it is back.

use std::net::SocketAddr;

use crate::daemon::message_id;

/// All intercepts.
#[derive(Debug)]
pub(super) struct Peers {
    workers: usize,
    all: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    /// Each worker's view: whether all its tunnels to it are up; none if it has not been tried yet.
    up: Vec<Option<bool>>,
    /// What was told last.
    told: Option<bool>,
    why: String,
}

impl Peer {
    fn new(address: SocketAddr, workers: usize) -> Self {
        Self { address, up: vec![None; workers], told: None, why: "not tried yet".to_owned() }
    }

    /// Whether it is there, or lost; none if that is not clear yet.
    fn state(&self) -> Option<bool> {
        if self.up.contains(&Some(false)) {
            return Some(false);
        }
        self.up.iter().all(Option::is_some).then_some(true)
    }
}

impl Peers {
    /// None has been tried yet.
    pub(super) fn new(addresses: &[SocketAddr], workers: usize) -> Self {
        Self { workers, all: addresses.iter().map(|address| Peer::new(*address, workers)).collect() }
    }

    /// These are the intercepts now; what is known of those that stay is kept.
    pub(super) fn replace(&mut self, addresses: &[SocketAddr]) {
        self.all.retain(|peer| addresses.contains(&peer.address));
        for address in addresses {
            if !self.all.iter().any(|peer| peer.address == *address) {
                self.all.push(Peer::new(*address, self.workers));
            }
        }
    }

    /// A worker's tunnels to an intercept are up, or are not and why.
    pub(super) fn note(&mut self, worker: u16, address: SocketAddr, state: Result<(), String>) {
        let Some(peer) = self.all.iter_mut().find(|peer| peer.address == address) else { return };
        if let Some(up) = peer.up.get_mut(usize::from(worker)) {
            *up = Some(state.is_ok());
        }
        if let Err(why) = state {
            peer.why = why;
        }
        let now = peer.state();
        if now.is_none() || now == peer.told {
            return;
        }
        peer.told = now;
        if now == Some(true) {
            tracing::info!(
                MESSAGE_ID = message_id::INTERCEPT_BACK,
                intercept = %peer.address,
                "the intercept is connected"
            );
        } else {
            tracing::warn!(
                MESSAGE_ID = message_id::INTERCEPT_LOST,
                intercept = %peer.address,
                reason = peer.why,
                "no connection to the intercept, trying again: is it running there, and reachable?"
            );
        }
    }

    /// The intercepts that are not there, and why.
    pub(super) fn missing(&self) -> String {
        let missing = self.all.iter().filter(|peer| peer.state() != Some(true));
        let texts: Vec<_> =
            missing.map(|peer| format!("intercept {} ({})", peer.address, peer.why)).collect();
        texts.join(" and ")
    }

    /// How many of them are there.
    pub(super) fn summary(&self) -> String {
        if self.all.is_empty() {
            return "embedded".to_owned();
        }
        let up = self.all.iter().filter(|peer| peer.state() == Some(true)).count();
        format!("{up} of {} intercepts up", self.all.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intercept_is_there_once_all_workers_are_connected() {
        let [one, other] = ["10.0.0.8:1", "10.0.0.9:1"].map(|text| text.parse().expect("address"));
        let mut peers = Peers::new(&[one], 2);
        assert_eq!(peers.missing(), "intercept 10.0.0.8:1 (not tried yet)");
        peers.note(0, one, Ok(()));
        assert_eq!((peers.all[0].told, peers.summary().as_str()), (None, "0 of 1 intercepts up"));
        peers.note(1, one, Ok(()));
        assert_eq!((peers.all[0].told, peers.summary().as_str()), (Some(true), "1 of 1 intercepts up"));
        peers.note(1, one, Err("refused".to_owned()));
        assert_eq!(peers.all[0].told, Some(false));
        assert_eq!(peers.missing(), "intercept 10.0.0.8:1 (refused)");
        peers.note(0, other, Ok(()));
        peers.replace(&[other, one]);
        assert_eq!(peers.all.iter().map(|peer| peer.told).collect::<Vec<_>>(), [Some(false), None]);
        peers.replace(&[other]);
        assert_eq!(peers.summary(), "0 of 1 intercepts up");
    }
}
