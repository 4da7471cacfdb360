//! One worker: a source of duplicates, the replayer of their sessions, the sockets that segments leave by, and the responses.
//!
//! A turn of its loop: receive responses, so that sessions know what the target has said; receive
//! from the source, up to a budget; let deadlines pass; tell the intercepts of new claims; send.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::departures::{Departures, Sent};
use super::peers::View;
use super::responses::{Origin, Responses};
use crate::capture::{Checksums, Received};
use crate::daemon::clock::Clock;
use crate::daemon::intake;
use crate::daemon::link::Protocol;
use crate::daemon::queues::{self, AnySource, BATCHES, Intake};
use crate::daemon::spacing::Spacing;
use crate::daemon::threads::{self, Ended, Handle, Outbox};
use crate::daemon::wait::{Woken, rest_and_wait, watch};
use crate::replayer::{self, Backlog, Claim, Histogram, Replayer, Target};
use crate::wire::{FlowId, Outgoing, Reject, Tally, Time};

const WAKER: Token = Token(0);
const SOURCE: Token = Token(1);
const FIRST_RESPONSES: usize = 2;
/// Packets sent in one turn before the source is looked at again.
const SENDS: usize = 1024;
/// The same while the source has more than a turn can receive: what is captured is safe in memory, what
/// waits in the kernel is not.
const SENDS_UNDER_PRESSURE: usize = 128;

/// How long nothing rests after a session has fallen behind.
const HURRY: Duration = Duration::from_secs(1);

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// To report its counters.
    Report,
    /// To go by other settings from now on.
    Configure(Box<Configuration>),
    /// To drain its source, reset its sessions on the target, and end.
    Stop,
}

/// What workers tell `control`.
#[derive(Debug)]
pub(super) enum Report {
    /// Whether the worker's responses would be taken has changed.
    Reachable { worker: u16, reachable: bool },
    /// The state of an intercept, as the worker sees it, has changed.
    Intercept { worker: u16, address: SocketAddr, view: View },
    /// Counters, as ordered.
    Counters { worker: u16, snapshot: Box<Snapshot> },
    /// The worker has ended: by order, or for a reason.
    Ended(Ended),
}

/// A worker's counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) intake: Intake,
    pub(super) rejects: Tally<Reject>,
    /// Of this host's own queue of responses, if it has one.
    pub(super) responses: Intake,
    pub(super) response_rejects: Tally<Reject>,
    pub(super) sent: Sent,
    /// From capture to the end of the turn in which what could be sent was sent: at most this, for each packet.
    pub(super) delay: Histogram,
    pub(super) replay: replayer::Counters,
    pub(super) sessions: usize,
    pub(super) buffered: usize,
    /// Accounted, with the buffers of the tunnels.
    pub(super) memory: usize,
    pub(super) targets: Vec<Target>,
    /// Requests that wait to leave.
    pub(super) backlog: Backlog,
    /// There may be more in the queue than was received.
    pub(super) behind: bool,
}

impl Snapshot {
    /// Adds another worker's counters to these.
    pub(super) fn merge(&mut self, other: &Self) {
        self.intake.merge(&other.intake);
        self.rejects.merge(&other.rejects);
        self.responses.merge(&other.responses);
        self.response_rejects.merge(&other.response_rejects);
        self.sent.merge(&other.sent);
        self.delay.merge(&other.delay);
        self.replay.merge(&other.replay);
        self.sessions += other.sessions;
        self.buffered += other.buffered;
        self.memory += other.memory;
        self.behind |= other.behind;
        self.backlog.merge(&other.backlog);
        for target in &other.targets {
            match self.targets.iter_mut().find(|known| known.address == target.address) {
                Some(known) => known.merge(target),
                None => self.targets.push(*target),
            }
        }
    }
}

/// What a worker is made of.
pub(super) struct Parts {
    pub(super) index: u16,
    pub(super) clock: Clock,
    pub(super) source: AnySource,
    pub(super) departures: Departures,
    pub(super) configuration: Configuration,
    pub(super) origin: Origin,
}

/// What a worker goes by, as long as it is not told otherwise.
#[derive(Clone, Debug)]
pub(super) struct Configuration {
    pub(super) replay: Arc<replayer::Config>,
    pub(super) intercepts: Vec<SocketAddr>,
    /// How the intercepts are spoken with.
    pub(super) protocol: Protocol,
    pub(super) coalesce: Duration,
}

/// Starts a worker.
pub(super) fn spawn(parts: Parts, reports: Outbox<Report>) -> io::Result<Handle<Order>> {
    let index = parts.index;
    let poll = Poll::new()?;
    let (orders, inbox) = threads::inbox(poll.registry(), WAKER)?;
    for fd in parts.source.fds() {
        watch(poll.registry(), fd, SOURCE)?;
    }
    let now = parts.clock.now();
    let Configuration { replay, intercepts, protocol, coalesce } = parts.configuration;
    let mut worker = Worker {
        responses: Responses::new(
            now,
            parts.origin,
            (&intercepts, protocol),
            index,
            poll.registry(),
            FIRST_RESPONSES,
        )?,
        replayer: Replayer::new(replay),
        index,
        poll,
        inbox,
        clock: parts.clock,
        source: parts.source,
        checksums: Checksums::default(),
        source_ready: true,
        report_due: false,
        sends_pending: false,
        told: Vec::new(),
        departures: parts.departures,
        outgoing: Outgoing::default(),
        reachable: false,
        totals: Snapshot::default(),
        spacing: Spacing::new(coalesce),
        hurry: Time::ZERO,
        waiting_since: now,
        flowing: false,
    };
    threads::spawn(threads::worker(index), orders, reports, Report::Ended, move |reports| worker.run(reports))
}

/// A worker.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
struct Worker {
    index: u16,
    poll: Poll,
    inbox: Receiver<Order>,
    clock: Clock,
    source: AnySource,
    checksums: Checksums,
    /// The source has packets, or may have.
    source_ready: bool,
    /// Counters are to be reported after the next turn.
    report_due: bool,
    /// The turn's budget ended before everything was sent.
    sends_pending: bool,
    replayer: Replayer,
    responses: Responses,
    /// Claims that were told, and may not have left, with the intercepts that will confirm them.
    told: Vec<(FlowId, u64)>,
    departures: Departures,
    outgoing: Outgoing,
    reachable: bool,
    totals: Snapshot,
    spacing: Spacing,
    /// Until when nothing rests.
    hurry: Time,
    /// Since when the packets received next can have been waiting, at most.
    waiting_since: Time,
    /// In the last turn something came from the source and from wherever responses come.
    flowing: bool,
}

impl Worker {
    /// Runs until told to stop. An error is of the source or the poll itself: nothing works without
    /// them.
    fn run(&mut self, reports: &Outbox<Report>) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            let now = self.clock.now();
            let busy = self.source_ready || self.sends_pending || self.responses.want_turn();
            let deadline = if busy {
                Some(now)
            } else {
                [self.replayer.poll_timeout(), self.responses.poll_timeout()].into_iter().flatten().min()
            };
            let rest = self.spacing.rest().filter(|_| !busy);
            let Self { poll, clock, flowing, .. } = self;
            let woken = rest_and_wait(poll, &mut events, *clock, rest, *flowing, deadline)?;
            let waiting_since = now;
            let now = self.clock.now();
            if !busy {
                self.waiting_since = if woken == Woken::Waited { now } else { waiting_since };
            }
            if woken == Woken::Unasked {
                self.source_ready = true;
                self.responses.expect();
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    SOURCE => self.source_ready = true,
                    Token(_) => self.responses.ready(now, event),
                }
            }
            let (input, captured) = (self.input(), self.totals.intake.packets);
            self.turn(now, reports)?;
            self.spacing.turn(now, self.input() - input);
            let captured = self.totals.intake.packets - captured;
            self.flowing = captured > 0 && self.responses.flow(now);
            if captured > 0 {
                self.totals.delay.record_many(self.clock.now() - self.waiting_since, captured);
            }
            if std::mem::take(&mut self.report_due) {
                self.replayer.shrink();
                reports.send(self.counters());
            }
            if !self.take_orders() {
                self.stop()?;
                reports.send(self.counters());
                return Ok(());
            }
        }
    }

    fn turn(&mut self, now: Time, reports: &Outbox<Report>) -> io::Result<()> {
        self.responses.receive(now, &mut self.replayer)?;
        self.responses.handle_timeout(now, self.poll.registry());
        self.note_reachable(now, reports);
        self.receive()?;
        let now = self.clock.now();
        self.replayer.handle_timeout(now);
        self.keep_up(now);
        self.send(now, if self.source_ready { SENDS_UNDER_PRESSURE } else { SENDS });
        Ok(())
    }

    /// While sessions fall behind their clients, nothing rests: neither this worker nor the intercepts.
    fn keep_up(&mut self, now: Time) {
        if self.replayer.take_behind() && now + HURRY / 2 >= self.hurry {
            self.hurry = now + HURRY;
            self.spacing.hurry(self.hurry);
            self.responses.hurry(HURRY);
        }
    }

    /// Packets taken in so far, from either side.
    fn input(&self) -> u64 {
        self.totals.intake.packets + self.replayer.counters().answers.total()
    }

    fn note_reachable(&mut self, now: Time, reports: &Outbox<Report>) {
        let worker = self.index;
        self.responses.changes(|address, view| reports.send(Report::Intercept { worker, address, view }));
        let reachable = self.responses.are_reachable();
        if reachable != self.reachable {
            self.reachable = reachable;
            self.replayer.set_reachable(now, reachable);
            reports.send(Report::Reachable { worker, reachable });
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        for _ in 0..BATCHES {
            if !self.source_ready {
                break;
            }
            self.source_ready = self.receive_batch()?.full;
        }
        Ok(())
    }

    fn receive_batch(&mut self) -> io::Result<Received> {
        let now = self.clock.now();
        let Self { source, checksums, replayer, totals, .. } = self;
        let received = source.receive(&mut |captured| match intake::read(&captured, checksums) {
            Ok(packet) => {
                tracing::trace!(client = %packet.src, header = ?packet.header, "captured");
                replayer.handle_client(now, &packet);
            }
            Err(reject) => {
                tracing::trace!(%reject, "captured");
                totals.rejects.count(reject);
            }
        })?;
        totals.intake.add(&received);
        Ok(received)
    }

    /// Tells claims, then sends at most `budget` segments. Sessions that connect again while segments are sent make claims
    /// too, which are told before their SYNs are asked for.
    fn send(&mut self, now: Time, budget: usize) {
        self.tell_claims();
        self.responses.flush(now);
        self.claims_left(now);
        let mut left = budget;
        loop {
            left = self.transmit(now, left);
            self.sends_pending = left == 0;
            // Releases can wait for the next turn: a write of their own costs as much as sending a segment.
            if !self.tell_claims() {
                return;
            }
            self.responses.flush(now);
            self.claims_left(now);
            if left == 0 {
                return;
            }
        }
    }

    /// Sends at most `budget` segments, and returns what is left of it.
    fn transmit(&mut self, now: Time, budget: usize) -> usize {
        let closed = self.responses.are_closed();
        for left in (0..budget).rev() {
            let Some(transmit) = self.replayer.poll_transmit(now, &mut self.outgoing) else {
                return left + 1;
            };
            tracing::trace!(src = %transmit.src, header = ?transmit.header, "send");
            if closed {
                self.departures.send(now, &transmit, &mut self.outgoing, &mut self.totals.sent);
            } else {
                self.totals.sent.withhold(&transmit);
            }
        }
        0
    }

    /// Hands over claims and releases, and returns whether there were claims. They leave with the next flush.
    fn tell_claims(&mut self) -> bool {
        let mut claimed = false;
        while let Some(claim) = self.replayer.poll_claim() {
            let awaited = self.responses.tell(claim);
            if let Claim::Claim(id, _) = claim {
                claimed = true;
                self.told.push((id, awaited));
            }
        }
        claimed
    }

    /// Lets sessions connect whose claims have left.
    fn claims_left(&mut self, now: Time) {
        if !self.told.is_empty() && !self.responses.has_pending() {
            for (id, awaited) in self.told.drain(..) {
                self.replayer.handle_claim_told(now, id, awaited);
            }
        }
    }

    /// `false` when told to stop.
    fn take_orders(&mut self) -> bool {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                // After the next turn: what was queued when the order was given is received then.
                Order::Report => {
                    self.source_ready = true;
                    self.report_due = true;
                }
                Order::Configure(configuration) => self.configure(*configuration),
                Order::Stop => return false,
            }
        }
        true
    }

    fn configure(&mut self, Configuration { replay, intercepts, protocol, coalesce }: Configuration) {
        let now = self.clock.now();
        self.replayer.configure(now, replay);
        self.responses.replace(now, &intercepts, protocol);
        self.spacing = Spacing::new(coalesce);
    }

    fn counters(&mut self) -> Report {
        Report::Counters { worker: self.index, snapshot: Box::new(self.snapshot()) }
    }

    fn snapshot(&mut self) -> Snapshot {
        let backlog = self.replayer.backlog(self.clock.now());
        let (responses, response_rejects) = self.responses.counters();
        Snapshot {
            responses,
            response_rejects,
            replay: self.replayer.counters().clone(),
            sessions: self.replayer.sessions(),
            buffered: self.replayer.buffered(),
            memory: self.replayer.memory(),
            targets: self.replayer.targets(),
            behind: self.source_ready,
            backlog,
            ..self.totals.clone()
        }
    }

    /// The rules are out: what is queued still counts, then every session ends with a reset to the
    /// target.
    fn stop(&mut self) -> io::Result<()> {
        queues::drain(|| self.receive_batch())?;
        self.source_ready = false;
        let now = self.clock.now();
        self.responses.drain(now, &mut self.replayer)?;
        self.replayer.shut_down(now);
        self.sends_pending = true;
        while self.sends_pending {
            self.send(now, SENDS);
        }
        Ok(())
    }
}
