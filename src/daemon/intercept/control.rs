//! The control thread: signals, statistics, and the stop.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;

use mio::{Events, Poll, Token};

use super::acceptor;
use super::bridge;
use super::closures::Keeper;
use super::connections::Shared;
use super::feed::Feed;
use super::rules::Rules;
use super::spec;
use super::statistics::{Statistics, Totals};
use super::strays::Strays;
use super::worker::{self, Order, Report};
use crate::config::intercept::Settings;
use crate::daemon::clock::Clock;
use crate::daemon::exit::Failure;
use crate::daemon::logging::Level;
use crate::daemon::memory::Trimmer;
use crate::daemon::message_id;
use crate::daemon::notify;
use crate::daemon::reload;
use crate::daemon::signals::{Signal, Signals};
use crate::daemon::start;
use crate::daemon::statistics::Rounds;
use crate::daemon::threads::{self, Handle};
use crate::daemon::wait::{wait, watch};
use crate::doctor;

const SIGNALS: Token = Token(1);
const RULES: Token = Token(2);
const ROUTING: Token = Token(3);

/// What [`Control`] is made of.
pub(super) struct Parts {
    pub(super) poll: Poll,
    pub(super) clock: Clock,
    pub(super) signals: Signals,
    pub(super) rules: Rules,
    /// With `unclaimed = accept`.
    pub(super) closures: Option<Keeper>,
    pub(super) inbox: Receiver<Report>,
    pub(super) workers: Vec<Handle<Order>>,
    pub(super) feed: Feed,
    pub(super) statistics: Statistics,
    pub(super) strays: Strays,
    pub(super) shared: Shared,
    pub(super) acceptor: Handle<acceptor::Order>,
    pub(super) bridge: bridge::Handle,
    /// In force.
    pub(super) settings: Settings,
    pub(super) level: Level,
}

/// What the main thread does once everything runs.
pub(super) struct Control {
    parts: Parts,
    rounds: Rounds,
    trimmer: Trimmer,
    /// Counters of the workers that have reported since they were asked.
    totals: Totals,
}

impl Control {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let registry = parts.poll.registry();
        watch(registry, parts.signals.as_fd(), SIGNALS)?;
        watch(registry, parts.rules.as_fd(), RULES)?;
        watch(registry, parts.rules.routing().as_fd(), ROUTING)?;
        let now = parts.clock.now();
        let others = [acceptor::NAME, bridge::NAME].map(str::to_owned);
        let threads = (0..parts.settings.workers).map(threads::worker).chain(others);
        let rounds = Rounds::new(now, threads);
        Ok(Self { rounds, trimmer: Trimmer::default(), totals: Totals::default(), parts })
    }

    /// Runs until a signal, or until a worker ends for another reason; then stops the workers.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        let outcome = self.watch_over();
        notify::stopping();
        // Reports under way are of another round.
        while self.parts.inbox.try_recv().is_ok() {}
        self.ask_for_reports();
        threads::end([self.parts.acceptor], || acceptor::Order::Stop);
        // Before the workers, whose ends it would miss.
        self.totals.legacy = self.parts.bridge.stop();
        threads::end(std::mem::take(&mut self.parts.workers), || Order::Stop);
        while let Ok(report) = self.parts.inbox.try_recv() {
            if let Report::Counters { snapshot, .. } = report {
                self.totals.workers.merge(&snapshot);
            }
        }
        let time = self.rounds.since_log(self.parts.clock.now());
        self.parts.statistics.log(&self.totals, time);
        let table = self.parts.rules.table();
        tracing::info!(MESSAGE_ID = message_id::STOPPED, %table, "{}", self.parts.rules.farewell());
        outcome
    }

    fn watch_over(&mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(16);
        loop {
            let now = self.parts.clock.now();
            let deadline = self.rounds.next().min(self.parts.rules.poll_timeout());
            wait(&mut self.parts.poll, &mut events, now, Some(deadline))
                .map_err(|error| Failure::system("cannot wait for events", &error, "restart intercept"))?;
            for signal in self.parts.signals.drain() {
                match signal {
                    Signal::Stop => return Ok(()),
                    Signal::Reload => reload::reload(|| self.take_settings()),
                }
            }
            let now = self.parts.clock.now();
            self.read_reports()?;
            self.parts.rules.keep(now);
            if let Some(closures) = &mut self.parts.closures {
                closures.keep(now, &self.parts.workers);
            }
            self.tell_readiness();
            if self.rounds.is_due(now) {
                self.ask_for_reports();
            }
        }
    }

    /// Has the workers tell every tcpcopy whether this host is closed, if that has changed.
    fn tell_readiness(&self) {
        let claimed = || self.parts.closures.as_ref().and_then(Keeper::open);
        if self.parts.shared.readiness.set(self.parts.rules.open().or_else(claimed)) {
            for worker in &self.parts.workers {
                worker.orders.send(Order::TellReadiness);
            }
        }
    }

    /// Reads the configuration again and puts in force what can be; returns the keys that take a restart.
    fn take_settings(&mut self) -> Result<Vec<&'static str>, Failure> {
        let mut settings = reload::settings(Settings::load(std::env::args_os()))?;
        let mut fixed = settings.keep_fixed(&self.parts.settings);
        start::judge(&settings.warnings, doctor::assistant_host(&settings))?;
        // Before any claim on a new target: nothing of it may pass. And only these two can be refused.
        self.parts.feed.replace(&settings)?;
        let replaced = self.parts.rules.replace(&spec(&settings, self.parts.feed.queues()));
        match replaced {
            Ok(still_closed) => fixed.extend(still_closed),
            Err(failure) => {
                self.parts.feed.replace(&self.parts.settings)?;
                return Err(failure);
            }
        }
        if let Some(closures) = &mut self.parts.closures {
            closures.replace(&spec(&settings, self.parts.feed.queues()));
        }
        // Before the workers look at the keys of their tunnels.
        self.parts.shared.door.set(&settings.keys, &settings.legacy);
        self.parts.shared.budget.set_limit(settings.memory_limit);
        for worker in &self.parts.workers {
            worker.orders.send(Order::Configure(Box::new(settings.clone())));
        }
        self.parts
            .bridge
            .thread
            .orders
            .send(bridge::Order::Configure { max_flows: worker::max_flows(&settings) });
        self.parts.level.set(settings.log.level);
        self.parts.settings = settings;
        Ok(fixed)
    }

    fn read_reports(&mut self) -> Result<(), Failure> {
        while let Ok(report) = self.parts.inbox.try_recv() {
            match report {
                Report::Counters { worker, snapshot } => {
                    self.totals.workers.merge(&snapshot);
                    self.note_answer(&threads::worker(worker));
                }
                Report::Progress { thread } => self.note_answer(thread),
                Report::Ended(ended) => {
                    return Err(ended.failure("the rules stay closed, restart intercept"));
                }
            }
        }
        Ok(())
    }

    fn note_answer(&mut self, thread: &str) {
        if !self.rounds.answered(thread) {
            return;
        }
        let now = self.parts.clock.now();
        let totals = std::mem::take(&mut self.totals);
        if let Some(time) = self.rounds.is_log_due(now) {
            self.parts.statistics.log(&totals, time);
        }
        self.trimmer.look(totals.tunnel_bytes + totals.flow_bytes);
        self.parts.statistics.take(now, totals, self.parts.rules.open().as_deref());
    }

    fn ask_for_reports(&mut self) {
        match self.parts.rules.strays() {
            Ok(counters) => self.parts.strays.take(counters),
            Err(error) => tracing::debug!(%error, "the counters of dropped packets cannot be read"),
        }
        self.totals = Totals {
            strays: self.parts.strays.to_string(),
            turned_away: self.parts.shared.door.turned_away(),
            legacy: self.parts.bridge.counters(),
            tunnel_bytes: self.parts.shared.budget.used(),
            flow_bytes: self.parts.shared.budget.flows(),
            memory_limit: self.parts.settings.memory_limit,
            ..Totals::default()
        };
        self.parts.acceptor.orders.send(acceptor::Order::Report);
        self.parts.bridge.thread.orders.send(bridge::Order::Report);
        let drops = self.parts.feed.kernel_dropped();
        self.totals.kernel_dropped = drops.as_ref().map(|each| each.iter().sum());
        let each = drops.unwrap_or_default().into_iter().chain(std::iter::repeat(0));
        for (worker, dropped) in self.parts.workers.iter().zip(each) {
            worker.orders.send(Order::Report { queue_dropped: dropped });
        }
    }
}
