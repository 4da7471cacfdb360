//! The state of each intercept, as all workers see it: logged once when it changes.

use std::net::SocketAddr;

use crate::daemon::message_id;

/// The state of an intercept, as one worker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// All tunnels are up, and its host is closed: nothing of the target reaches a real client.
    Closed,
    /// All tunnels are up, and it cannot say whether its host is closed: it is of the first release, or a C intercept.
    Unconfirmed,
    /// All tunnels are up, and its host is open, for this reason.
    Open(String),
    /// A tunnel is down, for this reason.
    Down(String),
}

impl View {
    /// Whether a tunnel is down.
    pub(super) fn is_down(&self) -> bool {
        matches!(self, Self::Down(_))
    }
}

/// What is logged of an intercept. The order is that of precedence among the workers' views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Down,
    Open,
    Unconfirmed,
    Closed,
}

/// All intercepts.
#[derive(Debug)]
pub(super) struct Peers {
    workers: usize,
    all: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    /// Each worker's view; `None` if the worker has not tried yet.
    views: Vec<Option<View>>,
    /// What was logged last.
    told: Option<State>,
    /// Why it is down or its host is open, or was last.
    why: String,
    /// It was logged that the intercept cannot say whether its host is closed.
    warned: bool,
}

impl Peer {
    fn new(address: SocketAddr, workers: usize) -> Self {
        Self {
            address,
            views: vec![None; workers],
            told: None,
            why: "not tried yet".to_owned(),
            warned: false,
        }
    }

    /// The worst that a worker sees. Unless that is bad, all of them must have seen something.
    fn state(&self) -> Option<State> {
        let states = self.views.iter().flatten().map(|view| match view {
            View::Down(_) => State::Down,
            View::Open(_) => State::Open,
            View::Unconfirmed => State::Unconfirmed,
            View::Closed => State::Closed,
        });
        let worst = states.min()?;
        let sure = worst <= State::Open || self.views.iter().all(Option::is_some);
        sure.then_some(worst)
    }

    /// Whether it takes responses, and its host is not known to be open.
    fn serves(&self) -> bool {
        self.state().is_some_and(|state| state > State::Open)
    }

    fn log(&mut self, state: State, before: Option<State>) {
        let intercept = self.address;
        match state {
            State::Down => tracing::warn!(
                MESSAGE_ID = message_id::INTERCEPT_LOST,
                %intercept,
                reason = self.why,
                "no connection to the intercept, trying again: is it running there, and reachable?"
            ),
            State::Open => tracing::error!(
                MESSAGE_ID = message_id::INTERCEPT_OPEN,
                %intercept,
                reason = self.why,
                "intercept {intercept} does not keep the target's responses from real clients: {}. Nothing is sent to \
                 any target until it does",
                self.why
            ),
            State::Unconfirmed | State::Closed if before == Some(State::Open) => tracing::info!(
                MESSAGE_ID = message_id::INTERCEPT_CLOSED,
                %intercept,
                "intercept {intercept} keeps the target's responses from real clients again; the replay goes on"
            ),
            State::Unconfirmed | State::Closed => tracing::info!(
                MESSAGE_ID = message_id::INTERCEPT_BACK,
                %intercept,
                "the intercept is connected"
            ),
        }
        if state == State::Unconfirmed && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                %intercept,
                "intercept {intercept} cannot confirm that its host keeps the target's responses from real clients: it \
                 is a C intercept or of release 0.1. Check the rules on that host, or upgrade the intercept"
            );
        }
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

    /// Takes in how a worker sees an intercept.
    pub(super) fn note(&mut self, worker: u16, address: SocketAddr, view: View) {
        let Some(peer) = self.all.iter_mut().find(|peer| peer.address == address) else { return };
        if let View::Down(why) | View::Open(why) = &view {
            peer.why.clone_from(why);
        }
        if let Some(known) = peer.views.get_mut(usize::from(worker)) {
            *known = Some(view);
        }
        if let Some(state) = peer.state().filter(|state| peer.told != Some(*state)) {
            let before = peer.told.replace(state);
            peer.log(state, before);
        }
    }

    /// The intercepts that sessions wait for, and why.
    pub(super) fn missing(&self) -> String {
        let missing = self.all.iter().filter(|peer| !peer.serves());
        let texts: Vec<_> =
            missing.map(|peer| format!("intercept {} ({})", peer.address, peer.why)).collect();
        texts.join(" and ")
    }

    /// How many of them are there.
    pub(super) fn summary(&self) -> String {
        if self.all.is_empty() {
            return "embedded".to_owned();
        }
        let up = self.all.iter().filter(|peer| peer.serves()).count();
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
        peers.note(0, one, View::Closed);
        assert_eq!((peers.all[0].told, peers.summary().as_str()), (None, "0 of 1 intercepts up"));
        peers.note(1, one, View::Closed);
        assert_eq!(
            (peers.all[0].told, peers.summary().as_str()),
            (Some(State::Closed), "1 of 1 intercepts up")
        );
        peers.note(1, one, View::Down("refused".to_owned()));
        assert_eq!(peers.all[0].told, Some(State::Down));
        assert_eq!(peers.missing(), "intercept 10.0.0.8:1 (refused)");
        peers.note(0, other, View::Closed);
        peers.replace(&[other, one]);
        let told = peers.all.iter().map(|peer| peer.told).collect::<Vec<_>>();
        assert_eq!(told, [Some(State::Down), None]);
        peers.replace(&[other]);
        assert_eq!(peers.summary(), "0 of 1 intercepts up");
    }

    #[test]
    fn an_open_host_is_logged_once_and_so_is_its_end() {
        let one = "10.0.0.8:1".parse().expect("address");
        let mut peers = Peers::new(&[one], 2);
        peers.note(0, one, View::Open("table ip intercept is gone".to_owned()));
        assert_eq!(peers.all[0].told, Some(State::Open), "one worker that knows is enough");
        assert_eq!(peers.missing(), "intercept 10.0.0.8:1 (table ip intercept is gone)");
        peers.note(1, one, View::Open("table ip intercept is gone".to_owned()));
        peers.note(0, one, View::Closed);
        assert_eq!(peers.all[0].told, Some(State::Open), "all must see that it is closed");
        peers.note(1, one, View::Closed);
        assert_eq!(
            (peers.all[0].told, peers.summary().as_str()),
            (Some(State::Closed), "1 of 1 intercepts up")
        );
        peers.note(0, one, View::Unconfirmed);
        assert_eq!(
            peers.all[0].told,
            Some(State::Unconfirmed),
            "it was replaced by one of the first release"
        );
    }
}
