//! The control thread: signals, the sink and the rules, readiness, statistics, and the stop.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::rules::Rules;
use super::worker::{Order, Report, Snapshot};
use crate::capture::kernel_counters;
use crate::daemon::clock::{self, Clock};
use crate::daemon::exit::{Code, Failure};
use crate::daemon::notify::Notifier;
use crate::daemon::signals::{Signal, Signals};
use crate::daemon::threads::Handle;
use crate::sys::links::LinkWatch;
use crate::wire::Time;

pub(super) const INBOX: Token = Token(0);
const SIGNALS: Token = Token(1);
const LINKS: Token = Token(2);

/// How often statistics are logged, and the rules looked at without a reason.
const STATS: Duration = Duration::from_secs(30);

/// What [`Control`] is made of.
pub(super) struct Parts {
    pub(super) poll: Poll,
    pub(super) clock: Clock,
    pub(super) signals: Signals,
    pub(super) links: LinkWatch,
    pub(super) rules: Rules,
    pub(super) inbox: Receiver<Report>,
    pub(super) workers: Vec<Handle<Order>>,
    pub(super) first_queue: u16,
}

/// What the main thread does once everything runs.
pub(super) struct Control {
    parts: Parts,
    /// Which workers' responses would be taken.
    reachable: Vec<bool>,
    /// `ready` was said.
    ready: bool,
    next_stats: Time,
    reports: usize,
    totals: Snapshot,
}

impl Control {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let registry = parts.poll.registry();
        let (signals, links) = (parts.signals.as_raw_fd(), parts.links.as_fd().as_raw_fd());
        registry.register(&mut SourceFd(&signals), SIGNALS, Interest::READABLE)?;
        registry.register(&mut SourceFd(&links), LINKS, Interest::READABLE)?;
        Ok(Self {
            reachable: vec![false; parts.workers.len()],
            ready: false,
            next_stats: parts.clock.now() + STATS,
            reports: 0,
            totals: Snapshot::default(),
            parts,
        })
    }

    /// Runs until a signal, or until a worker ends for another reason; then stops in order: rules
    /// out, queues drained, sessions reset.
    pub(super) fn run(mut self, notifier: &Notifier) -> Result<(), Failure> {
        let outcome = self.watch_over(notifier);
        notifier.stopping();
        // The rules' counter goes with them, and the kernel's with the queues.
        let duplicated = self.parts.rules.duplicated();
        self.parts.rules.take_out();
        let kernel_dropped = self.kernel_dropped();
        // Reports under way are older than those the workers end with.
        while self.parts.inbox.try_recv().is_ok() {}
        self.totals = Snapshot::default();
        for worker in &self.parts.workers {
            worker.orders.send(Order::Stop);
        }
        for worker in std::mem::take(&mut self.parts.workers) {
            worker.join();
        }
        while let Ok(report) = self.parts.inbox.try_recv() {
            if let Report::Counters(snapshot) = report {
                self.totals.merge(&snapshot);
            }
        }
        self.log_stats(duplicated, kernel_dropped);
        tracing::info!("stopped; the rules and the sink are gone");
        outcome
    }

    fn watch_over(&mut self, notifier: &Notifier) -> Result<(), Failure> {
        let mut events = Events::with_capacity(16);
        loop {
            let now = self.parts.clock.now();
            let deadline =
                [Some(self.next_stats), self.parts.rules.poll_timeout()].into_iter().flatten().min();
            match self.parts.poll.poll(&mut events, clock::wait(now, deadline)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(Failure::system("cannot wait for events", &error, "restart tcpcopy"));
                }
                Ok(()) | Err(_) => {}
            }
            for signal in self.parts.signals.drain() {
                match signal {
                    Signal::Stop => return Ok(()),
                    Signal::Reload => {
                        tracing::warn!("the configuration is read at the start only: restart tcpcopy");
                    }
                }
            }
            let now = self.parts.clock.now();
            self.read_reports(notifier)?;
            self.parts.rules.watch(now, &mut self.parts.links);
            if now >= self.next_stats {
                self.next_stats = now + STATS;
                self.parts.rules.check(now);
                self.order_reports();
            }
        }
    }

    fn read_reports(&mut self, notifier: &Notifier) -> Result<(), Failure> {
        while let Ok(report) = self.parts.inbox.try_recv() {
            match report {
                Report::Reachable { worker, reachable } => {
                    if let Some(known) = self.reachable.get_mut(usize::from(worker)) {
                        *known = reachable;
                    }
                    self.say_ready(notifier);
                }
                Report::Counters(snapshot) => {
                    self.totals.merge(&snapshot);
                    self.reports += 1;
                    if self.reports == self.parts.workers.len() {
                        let duplicated = self.parts.rules.duplicated();
                        self.log_stats(duplicated, self.kernel_dropped());
                    }
                }
                Report::Ended { worker, why } => {
                    let why = why.unwrap_or_else(|| "without a reason".to_owned());
                    return Err(Failure::new(
                        Code::Software,
                        format_args!("worker {worker} has ended: {why}; restart tcpcopy"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Traffic flows once every worker's responses would be taken.
    fn say_ready(&mut self, notifier: &Notifier) {
        if self.ready || !self.reachable.iter().all(|reachable| *reachable) {
            return;
        }
        self.ready = true;
        tracing::info!(
            workers = self.parts.workers.len(),
            queue = self.parts.first_queue,
            sink = self.parts.rules.sink(),
            rules = self.parts.rules.kind(),
            "ready"
        );
        notifier.ready();
    }

    fn order_reports(&mut self) {
        self.reports = 0;
        self.totals = Snapshot::default();
        for worker in &self.parts.workers {
            worker.orders.send(Order::Report);
        }
    }

    /// What the kernel dropped of our queues: because they were full, or because we did not read.
    fn kernel_dropped(&self) -> u64 {
        let queues = self.parts.first_queue..;
        let ours = |queue: &u16| queues.clone().zip(&self.reachable).any(|(own, _)| own == *queue);
        kernel_counters()
            .unwrap_or_default()
            .iter()
            .filter(|counters| ours(&counters.queue))
            .map(|counters| u64::from(counters.queue_dropped) + u64::from(counters.user_dropped))
            .sum()
    }

    fn log_stats(&self, duplicated: Option<u64>, kernel_dropped: u64) {
        let Snapshot { replay, .. } = &self.totals;
        let micros = |permille| replay.response_time.quantile(permille).map(|time| time.as_micros());
        let list = |names: &mut dyn Iterator<Item = (&'static str, u64)>| {
            names.map(|(name, n)| format!("{name}={n}")).collect::<Vec<_>>().join(" ")
        };
        tracing::info!(
            captured = self.totals.captured,
            rejected = self.totals.rejects.total(),
            rejects = list(&mut self.totals.rejects.nonzero()),
            taken = list(&mut replay.taken.nonzero()),
            unused = list(&mut replay.unused.nonzero()),
            answers = list(&mut replay.answers.nonzero()),
            exchanges = replay.exchanges.total(),
            opened = list(&mut replay.exchanges.nonzero()),
            response_p50_us = micros(500),
            response_p99_us = micros(990),
            segments = replay.segments,
            bytes = replay.bytes,
            send_errors = list(&mut self.totals.send_errors.nonzero()),
            sessions = self.totals.sessions,
            started = replay.started,
            connections = replay.connections,
            ended = list(&mut replay.ended.nonzero()),
            no_address = replay.no_address,
            claims_refused = replay.claims_refused,
            skipped_bytes = replay.skipped_bytes,
            buffered = self.totals.buffered,
            kernel_dropped,
            overruns = self.totals.overruns,
            malformed = self.totals.malformed,
            verdicts_refused = self.totals.verdicts_refused,
            duplicated,
            "stats"
        );
    }
}
