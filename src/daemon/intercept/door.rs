//! What the threads share: who is let in, and what was turned away.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::keys::TunnelKey;
use crate::daemon::quiet::Quiet;
use crate::tunnel::{Closed, KeyId, Secret};
use crate::wire::{Counted, Prefix, Tally, Time};

/// The time between two log lines with the same reason.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Why a connection was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TurnedAway {
    /// There were too many, and it had waited for longest.
    Crowded,
    /// No hello in time.
    Late,
    /// It does not speak the protocol, or another version of it.
    Foreign,
    /// It has no key, and one is wanted, or the other way round.
    NoKey,
    /// It names a key that is not known here, or does not have the key that it names.
    WrongKey,
    /// What it said after the handshake is not its own: a recording, perhaps.
    Forged,
    /// It wants a worker that does not exist.
    NoWorker,
    /// It ended before its hello.
    Gone,
    /// The system could not serve it.
    Failed,
}

crate::counted!(TurnedAway {
    Crowded => "crowded",
    Late => "late",
    Foreign => "foreign",
    NoKey => "no_key",
    WrongKey => "wrong_key",
    Forged => "forged",
    NoWorker => "no_worker",
    Gone => "gone",
    Failed => "failed",
});

impl From<Closed> for TurnedAway {
    fn from(why: Closed) -> Self {
        match why {
            Closed::HandshakeTimeout | Closed::Silent => Self::Late,
            Closed::NoKey | Closed::KeyOffered => Self::NoKey,
            Closed::UnknownKey(_) | Closed::NotProven(_) => Self::WrongKey,
            Closed::Forged => Self::Forged,
            Closed::Overflow
            | Closed::Frame(_)
            | Closed::Magic
            | Closed::Version(_)
            | Closed::SplitSeed(_)
            | Closed::Worker(_)
            | Closed::Refused(_)
            | Closed::CTool
            | Closed::Legacy(_)
            | Closed::Unexpected(_) => Self::Foreign,
        }
    }
}

/// The keys of those who are let in; at least one.
#[derive(Debug)]
pub(super) struct Keys {
    /// The keys.
    pub(super) secrets: Arc<[Secret]>,
    permits: Vec<(KeyId, Permit)>,
}

/// The clients that a key's holder may speak for; `None` is all.
pub(super) type Permit = Option<Arc<[Prefix]>>;

impl Keys {
    /// What the holder of a key may do; `None` if it is none of them.
    fn permit(&self, key: KeyId) -> Option<Permit> {
        self.permits.iter().find(|(known, _)| *known == key).map(|(_, permit)| permit.clone())
    }
}

/// The door, as both threads see it.
#[derive(Clone, Debug)]
pub(super) struct Door(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// `None`: no key is wanted.
    keys: Option<Arc<Keys>>,
    /// The hosts that are spoken with in the C tools' protocol, and in no other.
    legacy: Vec<Prefix>,
    turned_away: Tally<TurnedAway>,
}

impl Door {
    pub(super) fn new(keys: &[TunnelKey], legacy: &[Prefix]) -> Self {
        let state = State { keys: None, legacy: Vec::new(), turned_away: Tally::default() };
        let door = Self(Arc::new(Mutex::new(state)));
        door.set(keys, legacy);
        door
    }

    /// From now on, who connects has to have one of these keys; without any, none is wanted. Hosts in `legacy` are C
    /// tcpcopys', which have none.
    pub(super) fn set(&self, keys: &[TunnelKey], legacy: &[Prefix]) {
        let permit = |key: &TunnelKey| (key.secret.id(), key.clients.as_deref().map(Arc::from));
        let keys = (!keys.is_empty()).then(|| {
            let secrets = keys.iter().map(|key| key.secret.clone()).collect();
            Arc::new(Keys { secrets, permits: keys.iter().map(permit).collect() })
        });
        let mut state = self.state();
        state.keys = keys;
        state.legacy = legacy.to_vec();
    }

    /// Whether an address is one that C tcpcopys connect from.
    pub(super) fn is_legacy(&self, address: IpAddr) -> bool {
        self.state().legacy.iter().any(|prefix| prefix.contains(address))
    }

    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        self.state().keys.clone()
    }

    /// What may do who has proved that key, or came without one; `None` if he may not come in.
    pub(super) fn permit(&self, key: Option<KeyId>) -> Option<Permit> {
        match (key, self.keys()) {
            (None, None) => Some(None),
            (Some(key), Some(keys)) => keys.permit(key),
            // Keys came, or went, since he connected.
            (None, Some(_)) | (Some(_), None) => None,
        }
    }

    pub(super) fn count(&self, why: TurnedAway) {
        self.state().turned_away.count(why);
    }

    pub(super) fn turned_away(&self) -> Tally<TurnedAway> {
        self.state().turned_away.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that panics is done while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one thread turns away: counted, and logged unless that was done a moment ago.
#[derive(Debug)]
pub(super) struct Refusals {
    door: Door,
    /// One for each reason.
    quiet: Vec<Quiet>,
}

impl Refusals {
    pub(super) fn new(door: Door) -> Self {
        Self { door, quiet: vec![Quiet::new(1, LOG_INTERVAL); TurnedAway::ALL.len()] }
    }

    pub(super) fn complain(&mut self, now: Time, reason: TurnedAway, why: &fmt::Arguments<'_>) {
        self.door.count(reason);
        if let Some(kept_back) = self.quiet.get_mut(reason.index()).and_then(|quiet| quiet.allow(now)) {
            tracing::warn!(reason = reason.name(), %why, kept_back, "a connection was turned away");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_and_go_with_what_they_permit() {
        let key = |n: u8, clients: Option<Vec<Prefix>>| TunnelKey {
            name: n.to_string(),
            secret: Secret::new([n; 32]),
            clients,
        };
        let door = Door::new(&[], &[]);
        assert!(door.keys().is_none());
        assert_eq!(door.permit(None), Some(None), "without keys none is wanted");
        let clients = vec!["10.99.0.0/24".parse().expect("prefix")];
        door.set(&[key(1, None), key(2, Some(clients.clone()))], &[]);
        let permit = |n: u8| door.permit(Some(Secret::new([n; 32]).id()));
        assert_eq!(permit(1), Some(None));
        assert_eq!(permit(2), Some(Some(clients.into())));
        assert_eq!(permit(3), None, "not everything: nothing");
        assert_eq!(door.permit(None), None);
        door.set(&[], &["10.0.0.0/30".parse().expect("prefix")]);
        assert_eq!(permit(1), None, "it has been seen, and is no more");
        let is_legacy = |text: &str| door.is_legacy(text.parse().expect("address"));
        assert!(is_legacy("10.0.0.3") && !is_legacy("10.0.0.4") && !is_legacy("::ffff:10.0.0.3"));
    }
}
