//! What the threads share: who is let in, and what was turned away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::keys::TunnelKey;
use crate::tunnel::{Closed, KeyId, Secret};
use crate::wire::{Prefix, Tally};

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
    turned_away: Tally<TurnedAway>,
}

impl Door {
    pub(super) fn new(keys: &[TunnelKey]) -> Self {
        let door = Self(Arc::new(Mutex::new(State { keys: None, turned_away: Tally::default() })));
        door.set_keys(keys);
        door
    }

    /// From now on, who connects has to have one of these keys; without any, none is wanted.
    pub(super) fn set_keys(&self, keys: &[TunnelKey]) {
        let permit = |key: &TunnelKey| (key.secret.id(), key.clients.as_deref().map(Arc::from));
        let keys = (!keys.is_empty()).then(|| {
            let secrets = keys.iter().map(|key| key.secret.clone()).collect();
            Arc::new(Keys { secrets, permits: keys.iter().map(permit).collect() })
        });
        self.state().keys = keys;
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
        let door = Door::new(&[]);
        assert!(door.keys().is_none());
        assert_eq!(door.permit(None), Some(None), "without keys none is wanted");
        let clients = vec!["10.99.0.0/24".parse().expect("prefix")];
        door.set_keys(&[key(1, None), key(2, Some(clients.clone()))]);
        let permit = |n: u8| door.permit(Some(Secret::new([n; 32]).id()));
        assert_eq!(permit(1), Some(None));
        assert_eq!(permit(2), Some(Some(clients.into())));
        assert_eq!(permit(3), None, "not everything: nothing");
        assert_eq!(door.permit(None), None);
        door.set_keys(&[]);
        assert_eq!(permit(1), None, "it has been seen, and is no more");
    }
}
