//! The second layer at run time: routing that keeps the host closed without the netfilter rules.
//!
//! It is put in force before the rules, outlives the process, and is restored when it is changed: notifications of the
//! kernel tell of it at once, and it is read back once a second in any case. With `rules = "manual"` it is read back only.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::config::RulesBy;
use crate::daemon::exit::{Code, Failure};
use crate::daemon::message_id;
use crate::daemon::start::cannot;
use crate::netfilter::{AssistantSpec, Backstop, BackstopError};
use crate::sys::changes::RoutingWatch;
use crate::wire::Time;

/// It is read back this often without a notification.
const POLL: Duration = Duration::from_secs(1);
/// It is read back no more often than this: routes may change many times a second.
const PAUSE: Duration = Duration::from_millis(50);

/// The second layer and its state.
pub(super) struct Routing {
    backstop: Backstop,
    by: RulesBy,
    watch: RoutingWatch,
    last_check: Time,
    next_check: Time,
    /// Why it is not in force.
    open: Option<String>,
    /// The interfaces that a warning was logged about.
    strict: Vec<String>,
}

impl Routing {
    /// Puts the layer in force, or looks at the operator's. That it cannot be is no failure, but the host counts as open.
    pub(super) fn install(spec: &AssistantSpec, by: RulesBy) -> Result<Self, Failure> {
        let backstop = Backstop::new(spec);
        let watch = RoutingWatch::open().map_err(cannot("watch the routing policy"))?;
        let strict = backstop.strict_interfaces().map_err(cannot("look at reverse path filters"))?;
        if !strict.is_empty() {
            if backstop.refuses_strict_filters() {
                return Err(Failure::new(Code::Config, strict_filter(&strict)));
            }
            tracing::warn!("{}", strict_filter(&strict));
        }
        let mut routing = Self {
            backstop,
            by,
            watch,
            last_check: Time::ZERO,
            // What happened before the watch was polled has made no event.
            next_check: Time::ZERO,
            open: None,
            strict,
        };
        let state = routing.put().map(drop);
        routing.set(state);
        Ok(routing)
    }

    /// Why the layer is not in force, with the remedy.
    pub(super) fn open(&self) -> Option<&str> {
        self.open.as_deref()
    }

    /// Puts the layer for another specification in force, and returns the one before.
    pub(super) fn replace(&mut self, spec: &AssistantSpec) -> Result<Backstop, BackstopError> {
        let before = std::mem::replace(&mut self.backstop, Backstop::new(spec));
        match self.put() {
            Ok(_) => {
                self.open = None;
                Ok(before)
            }
            Err(error) => {
                self.restore(before);
                Err(error)
            }
        }
    }

    /// Has the operator's layer compared with that of another specification.
    pub(super) fn look_at(&mut self, spec: &AssistantSpec) {
        self.restore(Backstop::new(spec));
    }

    /// Puts the layer from before a [`Routing::replace`] in force again.
    pub(super) fn restore(&mut self, before: Backstop) {
        self.backstop = before;
        let state = self.put().map(drop);
        self.set(state);
    }

    /// When [`Routing::keep`] has something to do without a notification.
    pub(super) fn poll_timeout(&self) -> Time {
        self.next_check
    }

    /// Reads the layer back when it may have changed, and restores it.
    pub(super) fn keep(&mut self, now: Time) {
        match self.watch.drain() {
            Ok(false) => {}
            Ok(true) => self.next_check = self.next_check.min((self.last_check + PAUSE).max(now)),
            Err(error) => {
                tracing::debug!(%error, "cannot read the kernel's notifications about routing; it is polled");
            }
        }
        if now < self.next_check {
            return;
        }
        (self.last_check, self.next_check) = (now, now + POLL);
        let state = self.put();
        if let Ok(restored) = &state
            && !restored.is_empty()
        {
            let what = restored.join(", ");
            tracing::warn!(
                MESSAGE_ID = message_id::RULES_BACK,
                what,
                "the routing that keeps the host closed was changed and has been restored: {what}; see `ip monitor` for \
                 when it changes, and stop intercept before `intercept rules remove`"
            );
        }
        self.set(state.map(drop));
        self.watch_filters();
    }

    fn put(&self) -> Result<Vec<String>, BackstopError> {
        match self.by {
            RulesBy::Program => self.backstop.put(),
            RulesBy::Operator => self.backstop.check().map(|()| Vec::new()),
        }
    }

    fn set(&mut self, state: Result<(), BackstopError>) {
        let open = state.err().map(|error| error.to_string());
        if open != self.open {
            if let Some(reason) = &open {
                tracing::error!(
                    MESSAGE_ID = message_id::RULES_MISSING,
                    reason,
                    "the routing that keeps the host closed is not in force, and nothing is replayed until it is: \
                     {reason}; intercept tries again every second"
                );
            } else {
                tracing::info!(
                    MESSAGE_ID = message_id::RULES_BACK,
                    what = "routing policy",
                    "the routing that keeps the host closed is in force"
                );
            }
        }
        self.open = open;
    }

    /// A filter that becomes strict keeps packets away from the targets, and opens nothing.
    fn watch_filters(&mut self) {
        let strict = self.backstop.strict_interfaces().unwrap_or_default();
        if strict != self.strict && !strict.is_empty() {
            tracing::error!("{}", strict_filter(&strict));
        }
        self.strict = strict;
    }
}

impl AsFd for Routing {
    /// Readable when rules, routes or links have changed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

fn strict_filter(interfaces: &[String]) -> String {
    let setting = |name: &String| format!("net.ipv4.conf.{}.rp_filter=2", name.replace('.', "/"));
    let settings: Vec<_> = interfaces.iter().map(setting).collect();
    format!(
        "the reverse path filter of {} is strict, and drops what comes in there for a target, because the responses are \
         routed into a device that swallows them; run: sysctl -w {}",
        interfaces.join(", "),
        settings.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_for_a_strict_filter_names_each_interface() {
        let text = strict_filter(&["eth0".to_owned(), "bond0.7".to_owned()]);
        assert!(
            text.ends_with("run: sysctl -w net.ipv4.conf.eth0.rp_filter=2 net.ipv4.conf.bond0/7.rp_filter=2")
        );
    }
}
