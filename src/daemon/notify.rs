//! What the service manager is told (sd_notify(3)): the one that `NOTIFY_SOCKET` names. Without one,
//! nothing happens.
//!
//! A service manager that does not listen is none of the replay's business: failures are logged at
//! DEBUG and otherwise ignored.

use std::time::Duration;

use sd_notify::NotifyState;

use super::exit::Failure;

/// The program is set up, or has taken in its new configuration.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the service manager is not told of the reload"),
    }
}

/// The process has begun to stop.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// What `systemctl status` shows, in one line.
pub(super) fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// The process makes progress.
pub(super) fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// Why the process is about to end before its time.
pub(super) fn failed(failure: &Failure) {
    let exit_status = format!("EXIT_STATUS={}", failure.code as u8);
    let mut states = vec![NotifyState::Status(&failure.message), NotifyState::Custom(&exit_status)];
    states.extend(failure.errno.map(NotifyState::Errno));
    send(&states);
}

/// How long the service manager waits to hear of progress before it takes the process for stuck, if it waits at all.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero())
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be notified");
    }
}
