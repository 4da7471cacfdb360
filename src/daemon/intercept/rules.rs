//! The two layers that keep responses from real clients: netfilter rules, and routing behind them. Both are in force
//! before anything else, watched, and restored.
//!
//! They outlive the process on purpose. With `rules = "manual"` they are the operator's: nothing is changed then, but
//! they are read back, and the host counts as open if they are not those that would be put in force.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::lockout;
use super::routing::Routing;
use crate::config::RulesBy;
use crate::daemon::exit::{Code, Failure};
use crate::daemon::failures::with_causes;
use crate::daemon::message_id;
use crate::daemon::queues::kind_name;
use crate::daemon::quiet::Quiet;
use crate::daemon::start::cannot;
use crate::netfilter::{
    self, AssistantSpec, Change, Family, Installed, Place, Presence, RulesWatch, Ruleset, Strays, TableName,
    Unclaimed, assistant, present,
};
use crate::wire::{Prefix, Time};

/// The rules are put back at once, but only so many times in a row, and then at this pace: two
/// programs at odds over them must not keep the kernel busy.
const REINSTALLS: u32 = 20;
const REINSTALL: Duration = Duration::from_millis(200);
/// They are read back this often without an event.
const POLL: Duration = Duration::from_secs(1);

/// The layers on the assistant host or the target.
pub(super) struct Rules {
    /// What is wanted.
    spec: AssistantSpec,
    ruleset: Ruleset,
    watch: RulesWatch,
    /// `None` if the rules are the operator's.
    installed: Option<Installed>,
    routing: Routing,
    /// When the rules are to be read back.
    next_check: Time,
    reinstalls: Quiet,
    /// What is missing of the rules, by the last look at them.
    missing: Option<String>,
    /// The difference of the operator's rules has been logged.
    told: bool,
}

impl Rules {
    /// Puts both layers in force, routing first, unless they are the operator's. The queues must be there.
    pub(super) fn install(spec: &AssistantSpec, by: RulesBy) -> Result<Self, Failure> {
        let ruleset = assistant(spec);
        if by == RulesBy::Program {
            lockout::refuse_first_lockout(spec)?;
        }
        let watch = RulesWatch::open(ruleset.name.clone()).map_err(cannot("watch the rules"))?;
        let routing = Routing::install(spec, by)?;
        let installed = match by {
            RulesBy::Program => Some(Installed::install(&ruleset)?),
            RulesBy::Operator => None,
        };
        // Rules that were installed were read back.
        let missing = match &installed {
            Some(_) => None,
            None => missing(&present(&ruleset)),
        };
        if spec.place == Place::Target && spec.unclaimed == Unclaimed::Drop {
            tell_open_families(spec);
        }
        Ok(Self {
            spec: spec.clone(),
            ruleset,
            watch,
            installed,
            routing,
            // What happened before the watch was polled has made no event.
            next_check: Time::ZERO,
            reinstalls: Quiet::new(REINSTALLS, REINSTALL),
            missing,
            told: false,
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

    /// Why this host is open, with the remedy; `None` if it is closed, which is when both layers are in force.
    pub(super) fn open(&self) -> Option<String> {
        if let Some(what) = &self.missing {
            let remedy = match self.installed {
                Some(_) => "see the log of intercept for why it cannot put them back",
                None => "rules = \"manual\": load the rules that `intercept` would put in force",
            };
            return Some(format!("the rules are not in force: {what}; {remedy}"));
        }
        self.routing.open().map(str::to_owned)
    }

    /// The table they are in.
    pub(super) fn table(&self) -> &TableName {
        &self.ruleset.name
    }

    /// The notifications about the second layer, for polling.
    pub(super) fn routing(&self) -> &Routing {
        &self.routing
    }

    /// Puts the layers for another specification in force. If that fails, those before still are.
    ///
    /// Nothing that was closed becomes open: what the new specification leaves out stays closed. Returns the keys that
    /// this concerns, whose new values take a restart.
    pub(super) fn replace(&mut self, spec: &AssistantSpec) -> Result<Vec<&'static str>, Failure> {
        let (spec, kept) = closed_as_before(&self.spec, spec);
        if spec == self.spec {
            return Ok(kept);
        }
        let ruleset = assistant(&spec);
        if let Some(installed) = &mut self.installed {
            lockout::refuse_lockout(&spec)?;
            let before = self.routing.replace(&spec).map_err(|error| Failure::new(Code::System, error))?;
            if let Err(error) = installed.replace(&ruleset) {
                self.routing.restore(before);
                return Err(error.into());
            }
            self.missing = None;
        } else {
            self.routing.look_at(&spec);
            self.missing = missing(&present(&ruleset));
        }
        if !kept.is_empty() {
            tracing::warn!(
                keys = kept.join(" "),
                "a reload opens nothing: this host stays closed to targets and clients that the new configuration leaves \
                 out, until intercept is restarted; before that, delete the route for replayed clients on those targets"
            );
        }
        self.next_check = Time::ZERO;
        (self.spec, self.ruleset) = (spec, ruleset);
        self.told = false;
        Ok(kept)
    }

    /// When [`Rules::keep`] has something to do without an event.
    pub(super) fn poll_timeout(&self) -> Time {
        self.next_check.min(self.routing.poll_timeout())
    }

    /// Restores what was changed; the operator's layers are read back only.
    pub(super) fn keep(&mut self, now: Time) {
        self.routing.keep(now);
        match self.watch.drain() {
            Ok(Change::None) => {}
            Ok(Change::Touched | Change::Unknown) => self.next_check = now,
            Err(error) => {
                tracing::debug!(%error, "the watch of the rules has failed for a moment");
                self.next_check = now;
            }
        }
        if now < self.next_check {
            return;
        }
        self.next_check = now + POLL;
        let looked = self.look();
        self.missing = missing(&looked);
        match looked {
            Ok(Presence::Complete) => self.told = false,
            Ok(Presence::Altered(what)) if self.installed.is_none() => self.tell(&what),
            Ok(Presence::Altered(what)) if self.reinstalls.allow(now).is_some() => self.put_back(now, &what),
            Ok(Presence::Altered(what)) => {
                tracing::debug!(what, "the rules were changed again");
                self.next_check = now + REINSTALL;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look at the rules, trying again");
                self.next_check = now + REINSTALL;
            }
        }
    }

    /// What the rules have dropped beside responses.
    pub(super) fn strays(&mut self) -> io::Result<Vec<(Family, Strays)>> {
        match &mut self.installed {
            Some(installed) => installed.strays(),
            None => netfilter::strays(&self.ruleset),
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
                self.missing = None;
                tracing::warn!(
                    MESSAGE_ID = message_id::RULES_BACK,
                    what,
                    "somebody changed the rules that keep responses from real clients; they are back (see `nft monitor` \
                     for who did it, and stop intercept before `intercept rules remove`)"
                );
            }
            Err(error) => {
                self.next_check = now + REINSTALL;
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
    pub(super) fn farewell(&self) -> String {
        match self.installed {
            Some(_) => format!(
                "stopped; the host stays closed to the targets, by rules and by routing: `intercept rules remove --table \
                 {}` opens it",
                self.table()
            ),
            None => "stopped; the rules are as you made them".to_owned(),
        }
    }
}

/// Says once what is not closed on the target without `clients`.
fn tell_open_families(spec: &AssistantSpec) {
    let has_targets = |family| spec.targets.iter().any(|target| Family::of(target.ip()) == family);
    if Family::ALL.into_iter().any(|family| has_targets(family) && !spec.is_closed(family)) {
        tracing::info!(
            "only responses of the targets, their fragments and ICMP errors about them are dropped here; other traffic of \
             this host to replayed clients goes on. To close it, replay with a pool (tcpcopy -c) and name the pool in \
             `clients`"
        );
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

/// The new specification with all that the old one closes, and the keys in which that makes a difference.
fn closed_as_before(old: &AssistantSpec, new: &AssistantSpec) -> (AssistantSpec, Vec<&'static str>) {
    let mut spec = new.clone();
    let mut kept = Vec::new();
    let removed: Vec<_> = old.targets.iter().filter(|target| !new.targets.contains(target)).collect();
    if !removed.is_empty() {
        spec.targets.extend(removed);
        kept.push("target");
    }
    let is_in =
        |inner: &Prefix, outer: &Prefix| outer.length() <= inner.length() && outer.contains(inner.address());
    let covers = |prefix: &Prefix| new.clients.iter().any(|outer| is_in(prefix, outer));
    if old.clients.is_empty() && !new.clients.is_empty() {
        spec.clients.clear();
        kept.push("clients");
    } else if !new.clients.is_empty() && !old.clients.iter().all(covers) {
        spec.clients.extend(old.clients.iter().filter(|prefix| !covers(prefix)));
        kept.push("clients");
    }
    (spec, kept)
}

impl AsFd for Rules {
    /// Readable when somebody has changed rules.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}
