//! The configuration read again while the program runs. What is wrong changes nothing; what takes a restart is named.

use super::exit::{Code, Failure};
use super::{message_id, notify};
use crate::config::{Action, ConfigError};

/// Has `apply` put new settings in force, tells the service manager that this goes on, and tells what came of it.
/// `apply` returns the keys whose new values take a restart.
pub(super) fn reload(apply: impl FnOnce() -> Result<Vec<&'static str>, Failure>) {
    notify::reloading();
    match apply() {
        Ok(fixed) => {
            if !fixed.is_empty() {
                let keys = fixed.join(" ");
                tracing::warn!(
                    MESSAGE_ID = message_id::RESTART_NEEDED,
                    keys,
                    "keys whose new values are not in force before a restart: {keys}"
                );
            }
            tracing::info!(
                MESSAGE_ID = message_id::CONFIG_RELOADED,
                "the configuration was read again: what is new follows it"
            );
        }
        Err(failure) => tracing::error!(
            MESSAGE_ID = message_id::CONFIG_REJECTED,
            reason = failure.message,
            "the new configuration is not in force, the running one still is: {failure}"
        ),
    }
    notify::ready();
}

/// The settings of a command line that asked to run when the program started.
pub(super) fn settings<S>(loaded: Result<Action<S>, ConfigError>) -> Result<S, Failure> {
    match loaded? {
        Action::Run(settings) => Ok(settings),
        Action::Print(_)
        | Action::LoadRules(_)
        | Action::ShowRules(_)
        | Action::RemoveRules(_)
        | Action::MakeKey(_) => Err(Failure::new(Code::Software, "the command line no longer asks to run")),
    }
}
