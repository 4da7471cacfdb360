//! What the service manager is told (sd_notify(3)). Without one, nothing happens.

use sd_notify::NotifyState;

/// Tells the service manager how this process is doing.
///
/// A service manager that does not listen is none of the replay's business: failures are logged at
/// DEBUG and otherwise ignored.
#[derive(Debug, Default)]
pub struct Notifier(());

impl Notifier {
    /// A notifier for the manager that `NOTIFY_SOCKET` names, if any.
    pub fn new() -> Self {
        Self(())
    }

    /// Traffic flows from now on.
    pub fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// The process has begun to stop.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }

    /// One line for `systemctl status`.
    pub fn status(&self, text: &str) {
        // A line break would begin another assignment.
        let line = text.replace(['\n', '\r'], " ");
        send(&[NotifyState::Status(&line)]);
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be notified");
    }
}
