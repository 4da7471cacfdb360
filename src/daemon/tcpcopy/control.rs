//! The control thread: signals, the sink and the rules, readiness, statistics, and the stop.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;

use mio::{Events, Poll, Token};

use super::rules::Rules;
use super::worker::{Order, Report, Snapshot};
use crate::config::tcpcopy::PROGRAM;
use crate::daemon::clock::Clock;
use crate::daemon::exit::Failure;
use crate::daemon::notify;
use crate::daemon::queues;
use crate::daemon::signals::Signals;
use crate::daemon::statistics::{Rounds, list};
use crate::daemon::threads::{self, Handle};
use crate::daemon::wait::{wait, watch};
use crate::netfilter::Queues;
use crate::replayer::Histogram;
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
    pub(super) rules: Rules,
    pub(super) inbox: Receiver<Report>,
    pub(super) workers: Vec<Handle<Order>>,
    pub(super) queues: Queues,
}

/// What the main thread does once everything runs.
pub(super) struct Control {
    parts: Parts,
    /// Which workers' responses would be taken.
    reachable: Vec<bool>,
    /// `ready` was said.
    ready: bool,
    rounds: Rounds,
    totals: Snapshot,
    /// By the kernel, of our queues.
    kernel_dropped: u64,
}

impl Control {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let registry = parts.poll.registry();
        watch(registry, parts.signals.as_fd(), SIGNALS)?;
        watch(registry, parts.links.as_fd(), LINKS)?;
        Ok(Self {
            reachable: vec![false; parts.workers.len()],
            ready: false,
            rounds: Rounds::new(parts.clock.now(), parts.workers.len()),
            totals: Snapshot::default(),
            kernel_dropped: 0,
            parts,
        })
    }

    /// Runs until a signal, or until a worker ends for another reason; then stops in order: rules
    /// out, queues drained, sessions reset.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        let outcome = self.watch_over();
        notify::stopping();
        // The rules' counter goes with them.
        let duplicated = self.parts.rules.duplicated();
        self.parts.rules.take_out();
        // Reports under way are older than those the workers end with.
        while self.parts.inbox.try_recv().is_ok() {}
        self.begin_totals();
        threads::end(std::mem::take(&mut self.parts.workers), || Order::Stop);
        while let Ok(report) = self.parts.inbox.try_recv() {
            if let Report::Counters(snapshot) = report {
                self.totals.merge(&snapshot);
            }
        }
        self.log_stats(duplicated);
        tracing::info!("stopped; the rules and the sink are gone");
        outcome
    }

    fn watch_over(&mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(16);
        loop {
            let now = self.parts.clock.now();
            let deadline =
                [Some(self.rounds.next()), self.parts.rules.poll_timeout()].into_iter().flatten().min();
            wait(&mut self.parts.poll, &mut events, now, deadline)
                .map_err(|error| Failure::system("cannot wait for events", &error, "restart tcpcopy"))?;
            if self.parts.signals.stop_asked(PROGRAM.name) {
                return Ok(());
            }
            let now = self.parts.clock.now();
            self.read_reports()?;
            self.parts.rules.watch(now, &mut self.parts.links);
            if self.rounds.is_due(now) {
                self.parts.rules.check(now);
                self.order_reports();
            }
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
                Report::Counters(snapshot) => {
                    self.totals.merge(&snapshot);
                    if self.rounds.answered() {
                        let duplicated = self.parts.rules.duplicated();
                        self.log_stats(duplicated);
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
        tracing::info!(
            workers = self.parts.workers.len(),
            queue = self.parts.queues.numbers().next(),
            sink = self.parts.rules.sink(),
            rules = self.parts.rules.kind(),
            "ready"
        );
        notify::ready();
    }

    /// Nothing is added up yet, but what the kernel says: its queues' counters go with the queues.
    fn begin_totals(&mut self) {
        self.totals = Snapshot::default();
        self.kernel_dropped = queues::kernel_dropped(self.parts.queues).iter().sum();
    }

    fn order_reports(&mut self) {
        self.begin_totals();
        for worker in &self.parts.workers {
            worker.orders.send(Order::Report);
        }
    }

    fn log_stats(&self, duplicated: Option<u64>) {
        let Snapshot { replay, .. } = &self.totals;
        let micros = |times: &Histogram, permille| times.quantile(permille).map(|time| time.as_micros());
        let (delay, response) = (&self.totals.delay, &replay.response_time);
        tracing::info!(
            captured = self.totals.intake.packets,
            rejected = self.totals.rejects.total(),
            rejects = list(&self.totals.rejects),
            taken = list(&replay.taken),
            unused = list(&replay.unused),
            answers = list(&replay.answers),
            exchanges = replay.exchanges.total(),
            outcomes = list(&replay.exchanges),
            delay_p50_us = micros(delay, 500),
            delay_p99_us = micros(delay, 990),
            response_p50_us = micros(response, 500),
            response_p99_us = micros(response, 990),
            segments = replay.segments,
            bytes = replay.bytes,
            send_errors = list(&self.totals.send_errors),
            sessions = self.totals.sessions,
            started = replay.started,
            connections = replay.connections,
            ended = list(&replay.ended),
            no_address = replay.no_address,
            claims_refused = replay.claims_refused,
            captured_bytes = replay.captured_bytes,
            fates = list(&replay.ledger.fates),
            discarded_bytes = list(&replay.ledger.discarded),
            unused_bytes = list(&replay.unused_bytes),
            missing_bytes = replay.ledger.missing,
            skipped_bytes = replay.skipped_bytes,
            unanswered = replay.unanswered,
            buffered = self.totals.buffered,
            kernel_dropped = self.kernel_dropped,
            overruns = self.totals.intake.overruns,
            malformed = self.totals.intake.malformed,
            verdicts_refused = self.totals.intake.refused,
            duplicated,
            "stats"
        );
    }
}
