//! The control thread: signals, the rules and their watch, statistics, and the stop.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::worker::{Order, Report, Snapshot};
use crate::capture::kernel_counters;
use crate::daemon::clock::{self, Clock};
use crate::daemon::exit::{Code, Failure};
use crate::daemon::failures::with_causes;
use crate::daemon::notify::Notifier;
use crate::daemon::quiet::Quiet;
use crate::daemon::signals::{Signal, Signals};
use crate::daemon::threads::Handle;
use crate::netfilter::{Change, Installed, Presence, RulesWatch};
use crate::router::Outcome;
use crate::wire::Time;

const SIGNALS: Token = Token(1);
const RULES: Token = Token(2);

/// How often statistics are logged, and the rules looked at without a reason.
const STATS: Duration = Duration::from_secs(30);
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
    pub(super) first_queue: u16,
}

/// What the main thread does once everything runs.
pub(super) struct Control {
    parts: Parts,
    next_stats: Time,
    /// When the rules are to be looked at.
    next_check: Option<Time>,
    reinstalls: Quiet,
    /// Counters of the workers that have reported since they were asked.
    snapshots: Vec<Snapshot>,
    queue_dropped: u64,
}

impl Control {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let registry = parts.poll.registry();
        let (signals, rules) = (parts.signals.as_raw_fd(), parts.watch.as_fd().as_raw_fd());
        registry.register(&mut SourceFd(&signals), SIGNALS, Interest::READABLE)?;
        registry.register(&mut SourceFd(&rules), RULES, Interest::READABLE)?;
        let now = parts.clock.now();
        Ok(Self {
            next_stats: now + STATS,
            // What happened before the watch was polled has made no event.
            next_check: Some(now),
            reinstalls: Quiet::new(REINSTALLS, REINSTALL),
            snapshots: Vec::new(),
            queue_dropped: 0,
            parts,
        })
    }

    /// Runs until a signal, or until a worker ends for another reason; then stops the workers.
    pub(super) fn run(mut self, notifier: &Notifier) -> Result<(), Failure> {
        let outcome = self.watch_over();
        notifier.stopping();
        self.ask_for_reports();
        for worker in &self.parts.workers {
            worker.orders.send(Order::Stop);
        }
        for worker in std::mem::take(&mut self.parts.workers) {
            worker.join();
        }
        while let Ok(report) = self.parts.inbox.try_recv() {
            if let Report::Counters(snapshot) = report {
                self.snapshots.push(*snapshot);
            }
        }
        self.log_stats();
        let table = &self.parts.rules.ruleset().name;
        tracing::info!(
            %table,
            "stopped; the rules stay and drop all responses of the targets: `intercept rules remove` takes them away"
        );
        outcome
    }

    fn watch_over(&mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(16);
        loop {
            let now = self.parts.clock.now();
            let deadline = [Some(self.next_stats), self.next_check].into_iter().flatten().min();
            match self.parts.poll.poll(&mut events, clock::wait(now, deadline)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(Failure::system("cannot wait for events", &error, "restart intercept"));
                }
                Ok(()) | Err(_) => {}
            }
            for signal in self.parts.signals.drain() {
                match signal {
                    Signal::Stop => return Ok(()),
                    Signal::Reload => {
                        tracing::warn!("the configuration is read at the start only: restart intercept");
                    }
                }
            }
            let now = self.parts.clock.now();
            self.read_reports()?;
            self.keep_rules(now);
            if now >= self.next_stats {
                self.next_stats = now + STATS;
                self.next_check.get_or_insert(now);
                self.ask_for_reports();
            }
        }
    }

    fn read_reports(&mut self) -> Result<(), Failure> {
        while let Ok(report) = self.parts.inbox.try_recv() {
            match report {
                Report::Counters(snapshot) => {
                    self.snapshots.push(*snapshot);
                    if self.snapshots.len() == self.parts.workers.len() {
                        self.log_stats();
                    }
                }
                Report::Ended { worker, why } => {
                    let why = why.unwrap_or_else(|| "without a reason".to_owned());
                    return Err(Failure::new(
                        Code::Software,
                        format_args!(
                            "worker {worker} has ended: {why}; the rules stay closed, restart intercept"
                        ),
                    ));
                }
            }
        }
        Ok(())
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
                    what,
                    "somebody changed the rules that keep responses from real clients; they are back (see `nft monitor` \
                     for who did it, and stop intercept before `intercept rules remove`)"
                );
            }
            Err(error) => {
                self.next_check = Some(now + REINSTALL);
                tracing::error!(
                    what,
                    error = with_causes(&error),
                    "the rules were changed and cannot be put back"
                );
            }
        }
    }

    fn ask_for_reports(&mut self) {
        self.snapshots.clear();
        let counters = kernel_counters().unwrap_or_default();
        self.queue_dropped = 0;
        for (queue, worker) in (self.parts.first_queue..).zip(&self.parts.workers) {
            let own = counters.iter().find(|counters| counters.queue == queue);
            let dropped = own.map_or(0, |own| u64::from(own.queue_dropped) + u64::from(own.user_dropped));
            self.queue_dropped += dropped;
            worker.orders.send(Order::Report { queue_dropped: dropped });
        }
    }

    fn log_stats(&mut self) {
        let sum = |field: &dyn Fn(&Snapshot) -> u64| self.snapshots.iter().map(field).sum::<u64>();
        let size = |field: &dyn Fn(&Snapshot) -> usize| self.snapshots.iter().map(field).sum::<usize>();
        let outcome = |outcome| sum(&|snapshot| snapshot.router.outcomes.of(outcome));
        tracing::info!(
            responses = sum(&|snapshot| snapshot.packets),
            forwarded = outcome(Outcome::Forwarded),
            forwarded_late = outcome(Outcome::ForwardedLate),
            tunnel_full = outcome(Outcome::TunnelFull),
            orphaned = outcome(Outcome::Orphaned),
            released = outcome(Outcome::Released),
            unclaimed_dropped = outcome(Outcome::UnclaimedDropped),
            unclaimed_accepted = outcome(Outcome::UnclaimedAccepted),
            hold_full = outcome(Outcome::HoldFull),
            unreadable = outcome(Outcome::Unreadable),
            held = size(&|snapshot| snapshot.held),
            kernel_dropped = self.queue_dropped,
            overruns = sum(&|snapshot| snapshot.overruns),
            malformed = sum(&|snapshot| snapshot.malformed),
            verdicts_refused = sum(&|snapshot| snapshot.refused),
            claims = sum(&|snapshot| snapshot.router.claims),
            claims_taken = sum(&|snapshot| snapshot.router.refused_taken),
            claims_foreign = sum(&|snapshot| snapshot.router.refused_target),
            claims_full = sum(&|snapshot| snapshot.router.refused_full),
            evicted = sum(&|snapshot| snapshot.router.evicted),
            expired = sum(&|snapshot| snapshot.router.expired),
            flows = size(&|snapshot| snapshot.flows),
            connections = size(&|snapshot| snapshot.connections),
            "stats"
        );
        self.snapshots.clear();
    }
}
