//! The rules that keep responses from real clients: in force before anything else, watched, put back.
//!
//! They outlive the process on purpose. With `rules = "manual"` they are the operator's: nothing is changed then, but
//! the log says if they are not those that would be put in force.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::config::RulesBy;
use crate::daemon::exit::Failure;
use crate::daemon::failures::with_causes;
use crate::daemon::message_id;
use crate::daemon::queues::kind_name;
use crate::daemon::quiet::Quiet;
use crate::daemon::start::cannot;
use crate::netfilter::{
    AssistantSpec, Backstop, Change, Installed, Presence, RulesWatch, Ruleset, TableName, assistant, present,
};
use crate::wire::Time;

/// Said where the routing policy takes no rules of ours.
pub(super) const NO_BACKSTOP: &str = "the routing policy takes no rules (CONFIG_IP_MULTIPLE_TABLES), so that while \
                                      somebody flushes the ruleset, a host that forwards lets responses through";

/// The rules are put back at once, but only so many times in a row, and then at this pace: two
/// programs at odds over them must not keep the kernel busy.
const REINSTALLS: u32 = 20;
const REINSTALL: Duration = Duration::from_millis(200);

/// The rules on the assistant host or the target.
pub(super) struct Rules {
    /// What is wanted.
    ruleset: Ruleset,
    watch: RulesWatch,
    /// `None` if the rules are the operator's.
    installed: Option<Installed>,
    /// What stands in while they are not in force; `None` with the operator's.
    backstop: Option<Backstop>,
    /// When they are to be looked at.
    next_check: Option<Time>,
    reinstalls: Quiet,
    /// What is different about the operator's rules has been said.
    told: bool,
    /// What is missing of the rules, by the last look at them.
    missing: Option<String>,
    /// Why the routing policy does not stand in for them.
    no_backstop: Option<String>,
}

impl Rules {
    /// Puts the rules in force, unless they are the operator's. The queues must be there.
    pub(super) fn install(spec: &AssistantSpec, by: RulesBy) -> Result<Self, Failure> {
        let ruleset = assistant(spec);
        let watch = RulesWatch::open(ruleset.name.clone()).map_err(cannot("watch the rules"))?;
        let installed = match by {
            RulesBy::Program => Some(Installed::install(&ruleset)?),
            RulesBy::Operator => None,
        };
        let backstop = installed.is_some().then(|| Backstop::new(spec));
        let mut no_backstop = None;
        if let Some(Err(error)) = backstop.as_ref().map(Backstop::put) {
            tracing::warn!(%error, "{NO_BACKSTOP}");
            no_backstop = Some(error.to_string());
        }
        // Rules that were installed were read back.
        let missing = match &installed {
            Some(_) => None,
            None => missing(&present(&ruleset)),
        };
        Ok(Self {
            ruleset,
            watch,
            installed,
            backstop,
            // What happened before the watch was polled has made no event.
            next_check: Some(Time::ZERO),
            reinstalls: Quiet::new(REINSTALLS, REINSTALL),
            told: false,
            missing,
            no_backstop,
        })
    }

    /// How packets get into the queues, or that they do not.
    pub(super) fn kind(&self) -> &'static str {
        match &self.installed {
            None => "manual",
            Some(_) if !self.ruleset.uses_queues() => "drop",
            Some(installed) => kind_name(installed.queue_kind()),
        }
    }

    /// Why this host is open, with the remedy; `None` if it is closed. It is closed if the rules are in force by the last
    /// look at them, and the routing policy stands in for them if they are ours.
    pub(super) fn open(&self) -> Option<String> {
        if let Some(what) = &self.missing {
            let remedy = match self.installed {
                Some(_) => "see the log of intercept for why it cannot put them back",
                None => "rules = \"manual\": load the rules that `intercept` would put in force",
            };
            return Some(format!("the rules are not in force: {what}; {remedy}"));
        }
        let error = self.no_backstop.as_ref()?;
        Some(format!(
            "the routing policy does not stand in for the rules: {error}; the kernel needs CONFIG_IP_MULTIPLE_TABLES"
        ))
    }

    /// The table they are in.
    pub(super) fn table(&self) -> &TableName {
        &self.ruleset.name
    }

    /// Puts other rules in force. If that fails, those before still are.
    pub(super) fn replace(&mut self, spec: &AssistantSpec) -> Result<(), Failure> {
        let ruleset = assistant(spec);
        if ruleset == self.ruleset {
            return Ok(());
        }
        match &mut self.installed {
            Some(installed) => {
                installed.replace(&ruleset)?;
                let backstop = self.backstop.insert(Backstop::new(spec));
                self.no_backstop = backstop.put().err().map(|error| {
                    tracing::debug!(%error, "{NO_BACKSTOP}");
                    error.to_string()
                });
                self.missing = None;
            }
            None => self.next_check = Some(Time::ZERO),
        }
        self.ruleset = ruleset;
        self.told = false;
        Ok(())
    }

    /// Has the rules looked at when they are next kept.
    pub(super) fn ask_for_check(&mut self, now: Time) {
        self.next_check.get_or_insert(now);
    }

    /// When [`Rules::keep`] has something to do without news.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.next_check
    }

    /// Puts the rules back if somebody changed them; the operator's are only looked at.
    pub(super) fn keep(&mut self, now: Time) {
        match self.watch.drain() {
            Ok(Change::None) => {}
            Ok(Change::Touched | Change::Unknown) => self.next_check = Some(now),
            Err(error) => {
                tracing::debug!(%error, "the watch of the rules has failed for a moment");
                self.next_check = Some(now);
            }
        }
        if self.next_check.is_none_or(|at| now < at) {
            return;
        }
        self.keep_backstop();
        let looked = self.look();
        self.missing = missing(&looked);
        match looked {
            Ok(Presence::Complete) => {
                self.next_check = None;
                self.told = false;
            }
            Ok(Presence::Altered(what)) if self.installed.is_none() => {
                self.next_check = None;
                self.tell(&what);
            }
            Ok(Presence::Altered(what)) if self.reinstalls.allow(now).is_some() => self.put_back(now, &what),
            Ok(Presence::Altered(what)) => {
                tracing::debug!(what, "the rules were changed again");
                self.next_check = Some(now + REINSTALL);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look at the rules, trying again");
                self.next_check = Some(now + REINSTALL);
            }
        }
    }

    /// As long as the rules are in force, nothing is open without it.
    fn keep_backstop(&mut self) {
        let put = self.backstop.as_ref().map(Backstop::put);
        self.no_backstop = put.as_ref().and_then(|put| put.as_ref().err()).map(io::Error::to_string);
        match put {
            None | Some(Ok(false)) => {}
            Some(Ok(true)) => tracing::warn!(
                MESSAGE_ID = message_id::RULES_BACK,
                what = "routing policy",
                "somebody deleted the rules of the routing policy that stand in for flushed ones; they are back"
            ),
            Some(Err(error)) => tracing::debug!(%error, "{NO_BACKSTOP}"),
        }
    }

    fn look(&mut self) -> io::Result<Presence> {
        match &mut self.installed {
            Some(installed) => installed.check(),
            None => present(&self.ruleset),
        }
    }

    /// Says once what is different about the operator's rules.
    fn tell(&mut self, what: &str) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                MESSAGE_ID = message_id::RULES_MISSING,
                what,
                "the rules are not those that intercept would put in force, and rules = \"manual\": that no response \
                 reaches a real client is in your hands"
            );
        }
    }

    fn put_back(&mut self, now: Time, what: &str) {
        let Some(installed) = &mut self.installed else { return };
        match installed.restore() {
            Ok(()) => {
                self.next_check = None;
                self.missing = None;
                tracing::warn!(
                    MESSAGE_ID = message_id::RULES_BACK,
                    what,
                    "somebody changed the rules that keep responses from real clients; they are back (see `nft monitor` \
                     for who did it, and stop intercept before `intercept rules remove`)"
                );
            }
            Err(error) => {
                self.next_check = Some(now + REINSTALL);
                tracing::error!(
                    MESSAGE_ID = message_id::RULES_MISSING,
                    what,
                    error = with_causes(&error),
                    "the rules were changed and cannot be put back"
                );
            }
        }
    }

    /// What is said of them at the end.
    pub(super) fn farewell(&self) -> &'static str {
        match self.installed {
            Some(_) => {
                "stopped; the rules stay and drop all responses of the targets: `intercept rules remove` takes them away"
            }
            None => "stopped; the rules are as you made them",
        }
    }
}

/// What is missing by a look at the rules. Rules that cannot be looked at may be missing.
fn missing(looked: &io::Result<Presence>) -> Option<String> {
    match looked {
        Ok(Presence::Complete) => None,
        Ok(Presence::Altered(what)) => Some(what.clone()),
        Err(error) => Some(format!("they cannot be looked at ({error})")),
    }
}

impl AsFd for Rules {
    /// Readable when somebody has changed rules.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}
