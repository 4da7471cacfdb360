//! The control thread: signals, the rules and their watch, statistics, and the stop.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::worker::{Order, Report, Snapshot};
use crate::config::intercept::PROGRAM;
use crate::daemon::clock::Clock;
use crate::daemon::exit::Failure;
use crate::daemon::failures::with_causes;
use crate::daemon::notify;
use crate::daemon::queues;
use crate::daemon::quiet::Quiet;
use crate::daemon::signals::Signals;
use crate::daemon::statistics::{Rounds, list};
use crate::daemon::threads::{self, Handle};
use crate::daemon::wait::{wait, watch};
use crate::netfilter::{Change, Installed, Presence, Queues, RulesWatch};
use crate::router::Outcome;
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
}

/// What the main thread does once everything runs.
pub(super) struct Control {
    parts: Parts,
    rounds: Rounds,
    /// When the rules are to be looked at.
    next_check: Option<Time>,
    reinstalls: Quiet,
    /// Counters of the workers that have reported since they were asked.
    totals: Snapshot,
    kernel_dropped: u64,
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
            totals: Snapshot::default(),
            kernel_dropped: 0,
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
            if let Report::Counters(snapshot) = report {
                self.totals.merge(&snapshot);
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
            let deadline = [Some(self.rounds.next()), self.next_check].into_iter().flatten().min();
            wait(&mut self.parts.poll, &mut events, now, deadline)
                .map_err(|error| Failure::system("cannot wait for events", &error, "restart intercept"))?;
            if self.parts.signals.stop_asked(PROGRAM.name) {
                return Ok(());
            }
            let now = self.parts.clock.now();
            self.read_reports()?;
            self.keep_rules(now);
            if self.rounds.is_due(now) {
                self.next_check.get_or_insert(now);
                self.ask_for_reports();
            }
        }
    }

    fn read_reports(&mut self) -> Result<(), Failure> {
        while let Ok(report) = self.parts.inbox.try_recv() {
            match report {
                Report::Counters(snapshot) => {
                    self.totals.merge(&snapshot);
                    if self.rounds.answered() {
                        self.log_stats();
                    }
                }
                Report::Ended(ended) => {
                    return Err(ended.failure("the rules stay closed, restart intercept"));
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
        self.totals = Snapshot::default();
        self.kernel_dropped = 0;
        for (worker, dropped) in self.parts.workers.iter().zip(queues::kernel_dropped(self.parts.queues)) {
            self.kernel_dropped += dropped;
            worker.orders.send(Order::Report { queue_dropped: dropped });
        }
    }

    fn log_stats(&self) {
        let Snapshot { intake, rejects, router, connections, flows, held } = &self.totals;
        let outcome = |outcome| router.outcomes.of(outcome);
        tracing::info!(
            responses = intake.packets,
            forwarded = outcome(Outcome::Forwarded),
            forwarded_late = outcome(Outcome::ForwardedLate),
            tunnel_full = outcome(Outcome::TunnelFull),
            orphaned = outcome(Outcome::Orphaned),
            released = outcome(Outcome::Released),
            unclaimed_dropped = outcome(Outcome::UnclaimedDropped),
            unclaimed_accepted = outcome(Outcome::UnclaimedAccepted),
            hold_full = outcome(Outcome::HoldFull),
            unreadable = outcome(Outcome::Unreadable),
            rejects = list(rejects),
            held,
            kernel_dropped = self.kernel_dropped,
            overruns = intake.overruns,
            malformed = intake.malformed,
            verdicts_refused = intake.refused,
            claims = router.claims,
            claims_taken = router.refused_taken,
            claims_foreign = router.refused_target,
            claims_foreign_client = router.refused_client,
            claims_full = router.refused_full,
            evicted = router.evicted,
            expired = router.expired,
            flows,
            connections,
            "stats"
        );
    }
}
