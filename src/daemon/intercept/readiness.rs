//! Whether this host is closed: both layers that keep responses from real clients are in force.
//!
//! The control thread sets it, each time it has looked at the rules. The workers read it: they take no
//! claim while the host is open, and tell every tcpcopy when it connects and when it changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The state of the host, shared by all threads.
#[derive(Clone, Debug)]
pub(super) struct Readiness(Arc<Mutex<Option<String>>>);

impl Readiness {
    /// `open` is the reason why the host is open; `None` means that it is closed.
    pub(super) fn new(open: Option<String>) -> Self {
        Self(Arc::new(Mutex::new(open)))
    }

    /// Why the host is open; `None` if it is closed.
    pub(super) fn open(&self) -> Option<String> {
        self.state().clone()
    }

    /// Sets the state and returns whether it changed.
    pub(super) fn set(&self, open: Option<String>) -> bool {
        let mut state = self.state();
        let changed = *state != open;
        *state = open;
        changed
    }

    fn state(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing that panics is done while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_reported_once_and_seen_by_all() {
        let readiness = Readiness::new(Some("not looked at yet".to_owned()));
        let other = readiness.clone();
        assert!(readiness.set(None));
        assert_eq!(other.open(), None);
        assert!(!readiness.set(None));
        assert!(readiness.set(Some("table ip intercept is gone".to_owned())));
        assert_eq!(other.open().as_deref(), Some("table ip intercept is gone"));
    }
}
