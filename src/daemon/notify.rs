//! What the service manager is told (sd_notify(3)): the one that `NOTIFY_SOCKET` names. Without one,
//! nothing happens.
//!
//! A service manager that does not listen is none of the replay's business: failures are logged at
//! DEBUG and otherwise ignored.

use sd_notify::NotifyState;

/// Traffic flows from now on.
pub(super) fn ready() {
    send(NotifyState::Ready);
}

/// The process has begun to stop.
pub(super) fn stopping() {
    send(NotifyState::Stopping);
}

fn send(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the service manager could not be notified");
    }
}
