//! The control thread: signals, what feeds the workers, readiness, statistics, and the stop.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use mio::{Events, Poll, Token};

use super::HostNow;
use super::configuration;
use super::feed::Feed;
use super::guard::Guard;
use super::paths::Paths;
use super::peers::Peers;
use super::statistics::{Statistics, Totals};
use super::worker::{Order, Report};
use crate::config::tcpcopy::Settings;
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
use crate::replayer::TargetHealth;
use crate::sys::links::LinkWatch;

pub(super) const INBOX: Token = Token(0);
const SIGNALS: Token = Token(1);
const LINKS: Token = Token(2);

/// What [`Control`] is made of.
pub(super) struct Parts {
    pub(super) poll: Poll,
    pub(super) clock: Clock,
    pub(super) signals: Signals,
    pub(super) links: LinkWatch,
    pub(super) feed: Feed,
    pub(super) inbox: Receiver<Report>,
    pub(super) workers: Vec<Handle<Order>>,
    /// What the workers share of each target.
    pub(super) targets: Vec<Arc<TargetHealth>>,
    pub(super) peers: Peers,
    pub(super) statistics: Statistics,
    /// In force.
    pub(super) settings: Settings,
    pub(super) level: Level,
}

/// What the main thread does once everything runs.
pub(super) struct Control {
    parts: Parts,
    /// Which workers' responses would be taken.
    reachable: Vec<bool>,
    guard: Guard,
    paths: Paths,
    /// `ready` was said.
    ready: bool,
    rounds: Rounds,
    trimmer: Trimmer,
    /// What has been answered in this round.
    totals: Totals,
}

impl Control {
    /// `paths` are those that the workers go by.
    pub(super) fn new(parts: Parts, paths: Paths) -> io::Result<Self> {
        let registry = parts.poll.registry();
        watch(registry, parts.signals.as_fd(), SIGNALS)?;
        watch(registry, parts.links.as_fd(), LINKS)?;
        Ok(Self {
            reachable: vec![false; parts.workers.len()],
            guard: Guard::default(),
            paths,
            ready: false,
            rounds: Rounds::new(parts.clock.now(), (0..parts.settings.workers).map(threads::worker)),
            trimmer: Trimmer::default(),
            totals: Totals::default(),
            parts,
        })
    }

    /// Runs until a signal, or until a worker ends for another reason; then stops in order: rules
    /// out, queues drained, sessions reset.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        // From here on it does what it can, whoever else is up yet.
        notify::ready();
        let outcome = self.watch_over();
        notify::stopping();
        self.begin_totals();
        let (duplicated, farewell) = self.parts.feed.take_out();
        self.totals.duplicated = duplicated;
        // Reports under way are older than those the workers end with.
        while self.parts.inbox.try_recv().is_ok() {}
        threads::end(std::mem::take(&mut self.parts.workers), || Order::Stop);
        while let Ok(report) = self.parts.inbox.try_recv() {
            if let Report::Counters { snapshot, .. } = report {
                self.totals.workers.merge(&snapshot);
            }
        }
        self.totals.conclude(self.parts.statistics.dropped_before());
        let time = self.rounds.since_log(self.parts.clock.now());
        self.parts.statistics.log(&self.totals, time);
        tracing::info!(MESSAGE_ID = message_id::STOPPED, "{farewell}");
        outcome
    }

    fn watch_over(&mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(16);
        loop {
            let now = self.parts.clock.now();
            let deadline =
                [Some(self.rounds.next()), self.parts.feed.poll_timeout()].into_iter().flatten().min();
            wait(&mut self.parts.poll, &mut events, now, deadline)
                .map_err(|error| Failure::system("cannot wait for events", &error, "restart tcpcopy"))?;
            for signal in self.parts.signals.drain() {
                match signal {
                    Signal::Stop => return Ok(()),
                    Signal::Reload => reload::reload(|| self.take_settings()),
                }
            }
            let now = self.parts.clock.now();
            self.read_reports()?;
            self.parts.feed.watch(now, &mut self.parts.links);
            if self.rounds.is_due(now) {
                self.order_reports();
            }
        }
    }

    /// Reads the configuration again and puts in force what can be; returns the keys that take a restart.
    fn take_settings(&mut self) -> Result<Vec<&'static str>, Failure> {
        let mut settings = reload::settings(Settings::load(std::env::args_os()))?;
        let fixed = settings.keep_fixed(&self.parts.settings);
        start::judge(&settings.warnings, doctor::online_host(&settings))?;
        // Only this can be refused; so it comes first.
        self.parts.feed.replace(&settings)?;
        self.parts.targets = TargetHealth::of(&settings.mappings, &self.parts.targets);
        self.parts.peers.replace(&settings.intercepts);
        self.parts.statistics.configure(&settings);
        self.parts.level.set(settings.log.level);
        self.parts.settings = settings;
        // None are, or the settings would have been refused.
        self.look_at_host();
        self.configure_workers();
        Ok(fixed)
    }

    /// Looks at what of this host bears on the replay; true if it is other than before.
    fn look_at_host(&mut self) -> bool {
        let settings = &self.parts.settings;
        self.guard.look(settings) | self.paths.look(settings)
    }

    /// Has the workers go by the settings that are in force.
    fn configure_workers(&self) {
        let Parts { settings, targets, feed, workers, .. } = &self.parts;
        let host = HostNow { guard: &self.guard, paths: &self.paths };
        for (index, worker) in (0..).zip(workers) {
            let configuration = configuration(settings, targets, feed.own(), host, index);
            worker.orders.send(Order::Configure(Box::new(configuration)));
        }
    }

    fn read_reports(&mut self) -> Result<(), Failure> {
        while let Ok(report) = self.parts.inbox.try_recv() {
            match report {
                Report::Reachable { worker, reachable } => {
                    if let Some(known) = self.reachable.get_mut(usize::from(worker)) {
                        *known = reachable;
                    }
                    self.say_ready();
                }
                Report::Intercept { worker, address, view } => {
                    self.parts.peers.note(worker, address, view);
                }
                Report::Counters { worker, snapshot } => {
                    self.totals.workers.merge(&snapshot);
                    if self.rounds.answered(&threads::worker(worker)) {
                        self.conclude_round();
                    }
                }
                Report::Ended(ended) => return Err(ended.failure("restart tcpcopy")),
            }
        }
        Ok(())
    }

    /// Traffic flows once every worker's responses would be taken.
    fn say_ready(&mut self) {
        if self.ready || !self.reachable.iter().all(|reachable| *reachable) {
            return;
        }
        self.ready = true;
        self.parts.feed.tell_ready(self.parts.workers.len());
        self.parts.statistics.set_ready();
    }

    /// All workers have answered.
    fn conclude_round(&mut self) {
        let now = self.parts.clock.now();
        let mut totals = std::mem::take(&mut self.totals);
        totals.conclude(self.parts.statistics.dropped_before());
        if let Some(time) = self.rounds.is_log_due(now) {
            self.parts.statistics.log(&totals, time);
            self.parts.feed.check(now);
        }
        self.trimmer.look(totals.workers.memory);
        self.parts.statistics.take(now, totals, &self.parts.peers);
        if self.look_at_host() {
            self.configure_workers();
        }
    }

    /// Nothing is added up yet, but what the kernel says: its queues' counters go with the queues.
    fn begin_totals(&mut self) {
        self.totals = Totals {
            kernel_dropped: self.parts.feed.kernel_dropped(),
            responses_dropped: self.parts.feed.responses_dropped(),
            duplicated: self.parts.feed.duplicated(),
            over_limit: self.parts.feed.over_limit(),
            ..Totals::default()
        };
    }

    fn order_reports(&mut self) {
        self.begin_totals();
        for worker in &self.parts.workers {
            worker.orders.send(Order::Report);
        }
    }
}
