//! The sink device and the rules that lead duplicates into it: installed, watched, put back.
//!
//! With `rules = "manual"` both are the operator's: nothing is changed then, but the log says if they are not those that
//! would be put in force.

use std::time::Duration;

use super::feed::tracks_connections;
use crate::config::RulesBy;
use crate::daemon::exit::Failure;
use crate::daemon::failures::with_causes;
use crate::daemon::message_id;
use crate::daemon::queues::kind_name;
use crate::netfilter::{Device, Installed, OnlineSpec, Presence, Ruleset, online, present};
use crate::sys::links::{LinkEvent, LinkWatch};
use crate::sys::sink::Sink;
use crate::wire::Time;

/// How long after a failure sink and rules are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The rules on the online host, and their sink.
pub(super) struct Rules {
    /// All but the sink, which is filled in.
    spec: OnlineSpec,
    /// `None` while it is away, if it is the operator's, and if nothing is duplicated by rules.
    sink: Option<Sink>,
    /// `None` once taken out, and if the rules are the operator's.
    installed: Option<Installed>,
    /// When to try again what has failed.
    retry_at: Option<Time>,
    /// What rules that have been replaced since had counted.
    before: Counted,
}

/// Packets that rules have counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    duplicated: u64,
    over_limit: u64,
}

impl Rules {
    /// Makes the sink, if anything is duplicated, and installs the rules, unless they are the operator's. The queues must be
    /// there.
    pub(super) fn install(mut spec: OnlineSpec, by: RulesBy) -> Result<Self, Failure> {
        if by == RulesBy::Operator {
            tell_differences(&spec);
            return Ok(Self {
                spec,
                sink: None,
                installed: None,
                retry_at: None,
                before: Counted::default(),
            });
        }
        let sink = make_sink(&spec)?;
        if let Some(Err(error)) = sink.as_ref().map(Sink::ipv6)
            && spec.families.v6
        {
            tracing::warn!(%error, "no IPv6 duplicates: the sink has no IPv6 route");
        }
        spec.sink = device(&spec, sink.as_ref());
        let installed = Installed::install(&online(&spec))?;
        tell_refused_sets(&installed);
        Ok(Self { spec, sink, installed: Some(installed), retry_at: None, before: Counted::default() })
    }

    /// The sink's name, if there is to be one.
    pub(super) fn sink(&self) -> Option<&str> {
        needs_sink(&self.spec).then_some(&self.spec.sink.name)
    }

    /// How packets get into the queues.
    pub(super) fn kind(&self) -> &'static str {
        self.installed.as_ref().map_or("manual", |installed| kind_name(installed.queue_kind()))
    }

    /// Packets that the rules have duplicated.
    pub(super) fn duplicated(&mut self) -> Option<u64> {
        self.counted().map(|counted| counted.duplicated)
    }

    /// Packets that the rules have left out because they came faster than the greatest rate; `None` without one.
    pub(super) fn over_limit(&mut self) -> Option<u64> {
        self.spec.max_packets_per_second?;
        self.counted().map(|counted| counted.over_limit)
    }

    fn counted(&mut self) -> Option<Counted> {
        let captured = self.installed.as_mut()?.captured().ok()?;
        Some(Counted {
            duplicated: self.before.duplicated + captured.duplicated.packets,
            over_limit: self.before.over_limit + captured.over_limit.packets,
        })
    }

    /// Puts other rules in force, with the same sink. If that fails, those before still are.
    pub(super) fn replace(&mut self, spec: OnlineSpec) -> Result<(), Failure> {
        let spec = OnlineSpec { sink: self.spec.sink.clone(), ..spec };
        if spec == self.spec {
            return Ok(());
        }
        if self.installed.is_none() {
            tell_differences(&spec);
        }
        // If the sink is away they come with the next one.
        if self.sink.is_some() || !needs_sink(&spec) {
            self.put(&spec)?;
        }
        self.spec = spec;
        Ok(())
    }

    /// Puts rules in force in place of those that are. What is duplicated between the last look at the counter and the
    /// exchange of the rules is not counted.
    fn put(&mut self, spec: &OnlineSpec) -> Result<(), Failure> {
        let counted = self.counted();
        let Some(installed) = &mut self.installed else { return Ok(()) };
        installed.replace(&online(spec))?;
        self.before = counted.unwrap_or(self.before);
        tell_refused_sets(installed);
        Ok(())
    }

    /// When [`Rules::watch`] has something to do without news.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.retry_at
    }

    /// Takes news about links in: a sink that is gone or down is made again.
    pub(super) fn watch(&mut self, now: Time, links: &mut LinkWatch) {
        let index = self.spec.sink.index;
        let mut gone = false;
        let mut unsure = false;
        // The last word counts: a device that is made is down first.
        let drained = links.drain(|event| match event {
            LinkEvent::Deleted { index: which, .. } | LinkEvent::Down { index: which, .. }
                if which == index =>
            {
                gone = true;
            }
            LinkEvent::Up { index: which, .. } if which == index => gone = false,
            LinkEvent::Deleted { .. } | LinkEvent::Down { .. } | LinkEvent::Up { .. } => {}
            LinkEvent::Unknown => unsure = true,
        });
        if unsure || drained.is_err() {
            self.check(now);
        }
        let due = self.retry_at.is_some_and(|at| now >= at);
        if (gone || due) && self.installed.is_some() {
            tracing::warn!(sink = self.spec.sink.name, "the sink device is gone or down: making it again");
            self.put_back(now);
        }
    }

    /// Looks at the rules, and puts them back if they are not whole.
    pub(super) fn check(&mut self, now: Time) {
        let conntrack = tracks_connections();
        if conntrack != self.spec.conntrack
            && let Err(failure) = self.replace(OnlineSpec { conntrack, ..self.spec.clone() })
        {
            tracing::warn!(%failure, "cannot keep what is sent out of connection tracking");
        }
        let Some(installed) = &mut self.installed else { return };
        match installed.check() {
            Ok(Presence::Complete) => {}
            Ok(Presence::Altered(what)) => {
                tracing::warn!(what, "somebody changed our rules: putting them back");
                self.put_back(now);
            }
            Err(error) => tracing::debug!(%error, "cannot look at the rules"),
        }
    }

    fn put_back(&mut self, now: Time) {
        self.retry_at = None;
        if let Err(failure) = self.reinstall() {
            tracing::error!(MESSAGE_ID = message_id::RULES_MISSING, %failure, "no traffic is duplicated; trying again");
            self.retry_at = Some(now + RETRY);
        }
    }

    fn reinstall(&mut self) -> Result<(), Failure> {
        if self.installed.is_none() {
            return Ok(());
        }
        // The old one, if it is there, is removed before a new one takes its name.
        self.sink = None;
        let sink = make_sink(&self.spec)?;
        let spec = OnlineSpec { sink: device(&self.spec, sink.as_ref()), ..self.spec.clone() };
        self.put(&spec)?;
        self.spec = spec;
        self.sink = sink;
        let index = self.spec.sink.index;
        tracing::info!(
            MESSAGE_ID = message_id::RULES_BACK,
            sink = self.sink(),
            index,
            "sink and rules are back"
        );
        Ok(())
    }

    /// Takes the rules out, and then the sink. From here on nothing is duplicated, unless by the operator's rules, whose
    /// copies have nowhere to go. Returns what is to be said of it at the end.
    pub(super) fn take_out(&mut self) -> &'static str {
        let Some(installed) = self.installed.take() else { return "stopped; the rules are as you made them" };
        if let Err(error) = installed.remove() {
            tracing::warn!(error = with_causes(&error), "the rules go away when the process ends");
        }
        self.sink = None;
        "stopped; the rules and the sink are gone"
    }
}

/// Says what is different about the operator's rules. They have no owner, as nft loads them.
fn tell_differences(spec: &OnlineSpec) {
    match present(&Ruleset { owner: false, ..online(spec) }) {
        Ok(Presence::Complete) => {}
        Ok(Presence::Altered(what)) => tracing::warn!(
            what,
            "the rules are not those that tcpcopy would put in force, and rules = \"manual\": what is captured is in \
             your hands"
        ),
        Err(error) => tracing::warn!(%error, "cannot look at the rules"),
    }
}

/// Rules without sets capture all that sessions cannot do without.
fn tell_refused_sets(installed: &Installed) {
    if let Some(error) = installed.without_sets() {
        tracing::warn!(
            error = with_causes(error),
            "the kernel refuses the set that tells the ACKs of clients' handshakes, so they are not captured and the \
             target does not feel the clients' latency: set capture.pure-acks = true, or capture.handshake-acks = false \
             to keep this quiet"
        );
    }
}

/// Rules for responses alone duplicate nothing.
fn needs_sink(spec: &OnlineSpec) -> bool {
    !spec.captures.is_empty()
}

fn make_sink(spec: &OnlineSpec) -> Result<Option<Sink>, Failure> {
    Ok(if needs_sink(spec) { Some(Sink::create(&spec.sink.name)?) } else { None })
}

/// As rules name it.
fn device(spec: &OnlineSpec, sink: Option<&Sink>) -> Device {
    Device { name: spec.sink.name.clone(), index: sink.map_or(0, Sink::index) }
}
