//! The control thread: signals, the rules and their watch, statistics, and the stop.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::door::Door;
use super::ruleset;
use super::statistics::{Statistics, Totals};
use super::worker::{Order, Report};
use crate::config::intercept::Settings;
use crate::daemon::clock::Clock;
use crate::daemon::exit::Failure;
use crate::daemon::failures::with_causes;
use crate::daemon::logging::Level;
use crate::daemon::message_id;
use crate::daemon::notify;
use crate::daemon::queues::KernelDrops;
use crate::daemon::quiet::Quiet;
use crate::daemon::reload;
use crate::daemon::signals::{Signal, Signals};
use crate::daemon::start;
use crate::daemon::statistics::Rounds;
use crate::daemon::threads::{self, Handle};
use crate::daemon::wait::{wait, watch};
use crate::doctor;
use crate::netfilter::{Change, Installed, Presence, Queues, RulesWatch};
use crate::wire::Time;

const SIGNALS: Token = Token(1);
const RULES: Token = Token(2);

/// The rules are put back at once, but only so many times in a row, and then at this pace: two
/// programs at odds over them must not keep the kernel busy.
const REINSTALLS: u32 = 20;
const REINSTALL: Duration = Duration::from_millis(200);

/// What [`Control`] is made of.
pub(super) struct Parts {
    pub(super) poll: Poll,
    pub(super) clock: Clock,
    pub(super) signals: Signals,
    pub(super) watch: RulesWatch,
    pub(super) rules: Installed,
    pub(super) inbox: Receiver<Report>,
    pub(super) workers: Vec<Handle<Order>>,
    pub(super) queues: Queues,
    pub(super) drops: KernelDrops,
    pub(super) statistics: Statistics,
    /// What is shared with the acceptor.
    pub(super) door: Door,
    /// In force.
    pub(super) settings: Settings,
    pub(super) level: Level,
}

/// What the main thread does once everything runs.
pub(super) struct Control {
    parts: Parts,
    rounds: Rounds,
    /// When the rules are to be looked at.
    next_check: Option<Time>,
    reinstalls: Quiet,
    /// Counters of the workers that have reported since they were asked.
    totals: Totals,
}

impl Control {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let registry = parts.poll.registry();
        watch(registry, parts.signals.as_fd(), SIGNALS)?;
        watch(registry, parts.watch.as_fd(), RULES)?;
        let now = parts.clock.now();
        Ok(Self {
            rounds: Rounds::new(now, parts.workers.len()),
            // What happened before the watch was polled has made no event.
            next_check: Some(now),
            reinstalls: Quiet::new(REINSTALLS, REINSTALL),
            totals: Totals::default(),
            parts,
        })
    }

    /// Runs until a signal, or until a worker ends for another reason; then stops the workers.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        let outcome = self.watch_over();
        notify::stopping();
        // Reports under way are of another round.
        while self.parts.inbox.try_recv().is_ok() {}
        self.ask_for_reports();
        threads::end(std::mem::take(&mut self.parts.workers), || Order::Stop);
        while let Ok(report) = self.parts.inbox.try_recv() {
            if let Report::Counters { snapshot, .. } = report {
                self.totals.workers.merge(&snapshot);
            }
        }
        let time = self.rounds.since_log(self.parts.clock.now());
        self.parts.statistics.log(&self.totals, time);
        let table = &self.parts.rules.ruleset().name;
        tracing::info!(
            MESSAGE_ID = message_id::STOPPED,
            %table,
            "stopped; the rules stay and drop all responses of the targets: `intercept rules remove` takes them away"
        );
        outcome
    }

    fn watch_over(&mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(16);
        loop {
            let now = self.parts.clock.now();
            let deadline = [Some(self.rounds.next()), self.next_check].into_iter().flatten().min();
            wait(&mut self.parts.poll, &mut events, now, deadline)
                .map_err(|error| Failure::system("cannot wait for events", &error, "restart intercept"))?;
            for signal in self.parts.signals.drain() {
                match signal {
                    Signal::Stop => return Ok(()),
                    Signal::Reload => reload::reload(|| self.take_settings()),
                }
            }
            let now = self.parts.clock.now();
            self.read_reports()?;
            self.keep_rules(now);
            if self.rounds.is_due(now) {
                self.ask_for_reports();
            }
        }
    }

    /// Reads the configuration again and puts in force what can be; returns the keys that take a restart.
    fn take_settings(&mut self) -> Result<Vec<&'static str>, Failure> {
        let mut settings = reload::settings(Settings::load(std::env::args_os()))?;
        let fixed = settings.keep_fixed(&self.parts.settings);
        start::judge(&settings.warnings, doctor::assistant_host(&settings))?;
        // Before any claim on a new target: nothing of it may pass. And only the rules can be refused.
        let rules = ruleset(&settings, self.parts.queues);
        if rules != *self.parts.rules.ruleset() {
            self.parts.rules.replace(&rules)?;
        }
        for worker in &self.parts.workers {
            worker.orders.send(Order::Configure(Box::new(settings.clone())));
        }
        self.parts.door.set_keys(&settings.keys);
        self.parts.level.set(settings.log.level);
        self.parts.settings = settings;
        Ok(fixed)
    }

    fn read_reports(&mut self) -> Result<(), Failure> {
        while let Ok(report) = self.parts.inbox.try_recv() {
            match report {
                Report::Counters { worker, snapshot } => {
                    self.totals.workers.merge(&snapshot);
                    if self.rounds.answered(worker) {
                        self.conclude_round();
                    }
                }
                Report::Ended(ended) => {
                    return Err(ended.failure("the rules stay closed, restart intercept"));
                }
            }
        }
        Ok(())
    }

    /// All workers have answered.
    fn conclude_round(&mut self) {
        let now = self.parts.clock.now();
        let totals = std::mem::take(&mut self.totals);
        if let Some(time) = self.rounds.is_log_due(now) {
            self.parts.statistics.log(&totals, time);
            self.next_check.get_or_insert(now);
        }
        self.parts.statistics.take(now, totals);
    }

    /// Puts the rules back if somebody changed them.
    fn keep_rules(&mut self, now: Time) {
        match self.parts.watch.drain() {
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
        match self.parts.rules.check() {
            Ok(Presence::Complete) => self.next_check = None,
            Ok(Presence::Altered(what)) if self.reinstalls.allow(now).is_some() => self.reinstall(now, &what),
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

    fn reinstall(&mut self, now: Time, what: &str) {
        match self.parts.rules.restore() {
            Ok(()) => {
                self.next_check = None;
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

    fn ask_for_reports(&mut self) {
        self.totals = Totals { turned_away: self.parts.door.turned_away(), ..Totals::default() };
        let drops = self.parts.drops.read();
        self.totals.kernel_dropped = drops.as_ref().map(|each| each.iter().sum());
        let each = drops.unwrap_or_default().into_iter().chain(std::iter::repeat(0));
        for (worker, dropped) in self.parts.workers.iter().zip(each) {
            worker.orders.send(Order::Report { queue_dropped: dropped });
        }
    }
}
