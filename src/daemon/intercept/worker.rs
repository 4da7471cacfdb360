//! One worker: the inlet of its responses, the router of its flows, and the tunnels of those who claim them.
//!
//! A turn of its loop: read the tunnels, as a claim may be about a response that waits; receive
//! responses, up to a budget; end what took too long; give late verdicts; write the tunnels.
//! Headers gather during a turn, so that batches grow with the load and nothing waits for a timer.

use std::io;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::WAKER;
use super::budget;
use super::closures::Closures;
use super::connections::{Connections, Denied, Newcomer, Shared};
use super::feed::Inlet;
use crate::capture::{self, Captured, Checksums, NfQueue, Received, Source};
use crate::config::intercept::{Settings, Unclaimed};
use crate::daemon::clock::Clock;
use crate::daemon::intake;
use crate::daemon::queues::{BATCHES, Intake};
use crate::daemon::spacing::Spacing;
use crate::daemon::threads::{self, Ended, Handle, Outbox};
use crate::daemon::wait::{Woken, rest_and_wait, watch};
use crate::router::{self, Counters, Disposition, Outcome, Router};
use crate::tunnel::Features;
use crate::wire::{Reject, Scope, Tally, Time};

const RESPONSES: Token = Token(1);
const FIRST_CONNECTION: usize = 2;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// A tcpcopy wants this worker.
    Connection(Box<Newcomer>),
    /// To report, to `control` and to the claimers. With what the kernel dropped of its responses.
    Report { queue_dropped: u64 },
    /// To go by other settings from now on.
    Configure(Box<Settings>),
    /// To tell every tcpcopy whether this host is closed.
    TellReadiness,
    /// To put all flows that were claimed into the kernel's sets, which are new.
    RefillClosures,
    /// To end.
    Stop,
}

/// What the other threads tell `control`.
#[derive(Debug)]
pub(super) enum Report {
    /// Counters, as ordered.
    Counters { worker: u16, snapshot: Box<Snapshot> },
    /// A thread that is no worker, and has nothing to tell, makes progress.
    Progress { thread: &'static str },
    /// The thread has ended: by order, or for a reason.
    Ended(Ended),
}

/// A worker's counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) intake: Intake,
    /// What [`Outcome::Unreadable`] stands for, by reason.
    pub(super) rejects: Tally<Reject>,
    pub(super) router: Counters,
    pub(super) denied: Tally<Denied>,
    pub(super) connections: usize,
    pub(super) flows: usize,
    pub(super) held: usize,
}

impl Snapshot {
    /// Adds another worker's counters to these.
    pub(super) fn merge(&mut self, other: &Self) {
        self.intake.merge(&other.intake);
        self.rejects.merge(&other.rejects);
        self.router.merge(&other.router);
        self.denied.merge(&other.denied);
        self.connections += other.connections;
        self.flows += other.flows;
        self.held += other.held;
    }
}

/// Starts a worker's thread.
pub(super) fn spawn(mut worker: Worker, reports: Outbox<Report>) -> io::Result<Handle<Order>> {
    let (index, orders) = (worker.index, worker.orders.clone());
    threads::spawn(threads::worker(index), orders, reports, Report::Ended, move |reports| worker.run(reports))
}

/// A worker, before and while it runs.
pub(super) struct Worker {
    index: u16,
    poll: Poll,
    orders: Outbox<Order>,
    inbox: Receiver<Order>,
    clock: Clock,
    inlet: Inlet,
    checksums: Checksums,
    /// The inlet has packets, or may have.
    inlet_ready: bool,
    accept_mark: u32,
    router: Router,
    /// With `unclaimed = accept`, the kernel's sets of claimed flows.
    closures: Option<Closures>,
    connections: Connections,
    /// What the router takes, in the budget of all.
    memory: budget::Flows,
    /// Verdicts of one batch.
    verdicts: Vec<(u32, capture::Verdict)>,
    totals: Snapshot,
    spacing: Spacing,
    /// In the last turn something came from the inlet and from each tunnel.
    flowing: bool,
}

impl Worker {
    pub(super) fn new(
        index: u16,
        inlet: Inlet,
        settings: &Settings,
        clock: Clock,
        shared: Shared,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let (orders, inbox) = threads::inbox(poll.registry(), WAKER)?;
        let fds = match &inlet {
            Inlet::Ending(source) => source.fds(),
            Inlet::Deciding(queue) => queue.fds(),
        };
        for fd in fds {
            watch(poll.registry(), fd, RESPONSES)?;
        }
        let now = clock.now();
        let mut router = Router::new(now, router_settings(settings));
        let spec = super::spec(settings, None);
        let closures = Closures::new(now, settings, &spec, index, &mut router)?;
        Ok(Self {
            index,
            poll,
            orders,
            inbox,
            clock,
            inlet,
            checksums: Checksums::default(),
            inlet_ready: true,
            accept_mark: settings.accept_mark,
            router,
            closures,
            memory: shared.budget.open_flows(),
            connections: Connections::new(
                FIRST_CONNECTION,
                (index, settings.workers),
                shared,
                scope(settings),
                features(settings),
            ),
            verdicts: Vec::new(),
            totals: Snapshot::default(),
            spacing: Spacing::new(settings.coalesce),
            flowing: false,
        })
    }

    /// Runs until told to stop. An error is of the inlet or the poll itself: nothing works without
    /// them.
    fn run(&mut self, reports: &Outbox<Report>) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            let now = self.clock.now();
            let busy = self.inlet_ready || self.connections.wants_turn();
            let deadline = if busy {
                Some(now)
            } else {
                [self.router.poll_timeout(), self.connections.poll_timeout()].into_iter().flatten().min()
            };
            let rest = self.spacing.rest().filter(|_| !busy);
            let Self { poll, clock, flowing, .. } = self;
            let woken = rest_and_wait(poll, &mut events, *clock, rest, *flowing, deadline)?;
            let now = self.clock.now();
            if woken == Woken::Unasked {
                self.inlet_ready = true;
                self.connections.expect();
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    RESPONSES => self.inlet_ready = true,
                    Token(_) => self.connections.ready(event),
                }
            }
            if !self.take_orders(now, reports) {
                return Ok(());
            }
            let before = self.totals.intake.packets;
            self.connections.receive(now, &mut self.router);
            self.spacing.hurry(self.connections.hurry());
            self.receive()?;
            let received = self.totals.intake.packets - before;
            self.flowing = received > 0 && self.connections.flow(now);
            self.spacing.turn(now, received);
            let now = self.clock.now();
            self.router.handle_timeout(now);
            self.connections.handle_timeout(now, &mut self.router);
            self.give_late_verdicts();
            while let Some((conn, flow)) = self.router.poll_evicted() {
                self.connections.evicted(conn, flow);
            }
            if let Some(displaced) = self.router.take_displaced() {
                self.connections.displaced(now, displaced);
            }
            self.memory.set(self.router.memory());
            if let Some(closures) = &mut self.closures {
                closures.turn(now, &mut self.router, &mut self.connections);
            }
            self.connections.flush(now, &mut self.router);
        }
    }

    /// `false` when told to stop.
    fn take_orders(&mut self, now: Time, reports: &Outbox<Report>) -> bool {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Connection(newcomer) => {
                    self.connections.add(now, *newcomer, self.poll.registry(), &mut self.router);
                }
                Order::Report { queue_dropped } => {
                    self.router.shrink();
                    let responses = self.router.counters().outcomes.total();
                    self.connections.report(responses, queue_dropped);
                    reports.send(Report::Counters {
                        worker: self.index,
                        snapshot: Box::new(Snapshot {
                            router: self.router.counters().clone(),
                            denied: self.connections.denied().clone(),
                            connections: self.connections.len(),
                            flows: self.router.flows(),
                            held: self.router.held(),
                            ..self.totals.clone()
                        }),
                    });
                }
                Order::Configure(settings) => {
                    self.router.configure(router_settings(&settings));
                    self.connections.keys_changed(now, &mut self.router);
                    self.connections.set_scope(scope(&settings));
                    self.spacing = Spacing::new(settings.coalesce);
                }
                Order::RefillClosures => {
                    if let Some(closures) = &mut self.closures {
                        closures.refill(&self.router);
                    }
                }
                Order::TellReadiness => self.connections.tell_readiness(),
                Order::Stop => return false,
            }
        }
        true
    }

    fn receive(&mut self) -> io::Result<()> {
        for _ in 0..BATCHES {
            if !self.inlet_ready {
                break;
            }
            let now = self.clock.now();
            let received = self.receive_batch(now)?;
            self.inlet_ready = received.full;
            self.totals.intake.add(&received);
        }
        Ok(())
    }

    fn receive_batch(&mut self, now: Time) -> io::Result<Received> {
        let Self { inlet, checksums, router, connections, verdicts, accept_mark, totals, .. } = self;
        let rejects = &mut totals.rejects;
        match inlet {
            Inlet::Ending(source) => source.receive(&mut |captured| {
                route(now, &captured, checksums, router, connections, rejects);
            }),
            Inlet::Deciding(queue) => {
                let received = queue.receive_deferred(&mut |captured| {
                    let verdict = match route(now, &captured, checksums, router, connections, rejects) {
                        Disposition::Forward(..) | Disposition::Drop => capture::Verdict::Drop,
                        Disposition::Accept => capture::Verdict::Accept { mark: *accept_mark },
                        Disposition::Held => return,
                    };
                    verdicts.push((captured.id, verdict));
                })?;
                for (id, verdict) in verdicts.drain(..) {
                    give(queue, totals, id, verdict);
                }
                Ok(received)
            }
        }
    }

    fn give_late_verdicts(&mut self) {
        let Inlet::Deciding(queue) = &mut self.inlet else { return };
        while let Some((id, verdict)) = self.router.poll_verdict() {
            let verdict = match verdict {
                router::Verdict::Drop => capture::Verdict::Drop,
                router::Verdict::Accept => capture::Verdict::Accept { mark: self.accept_mark },
            };
            give(queue, &mut self.totals, id, verdict);
        }
        if queue.flush().is_err() {
            self.totals.intake.refused += 1;
        }
    }
}

/// What the tunnels say that this intercept does. Where unclaimed responses go on, no packet of a flow may reach the target
/// before its claim is held.
fn features(settings: &Settings) -> Features {
    match settings.unclaimed {
        Unclaimed::Drop => Features::HOST_STATE,
        Unclaimed::Accept => Features::HOST_STATE.with(Features::CONFIRMATION),
    }
}

/// Whose responses are taken.
fn scope(settings: &Settings) -> Scope {
    let clients = (!settings.clients.is_empty()).then(|| settings.clients.clone());
    Scope { targets: settings.targets.clone(), clients }
}

/// Flows that all workers together may have: as many as half of `memory-limit` has room for.
pub(super) fn max_flows(settings: &Settings) -> u32 {
    let room = settings.memory_limit / 2 / u64::try_from(router::FLOW_MEMORY).unwrap_or(u64::MAX);
    settings.max_flows.min(u32::try_from(room).unwrap_or(u32::MAX))
}

/// The share of one worker.
fn router_settings(settings: &Settings) -> router::Settings {
    let unclaimed = match settings.unclaimed {
        Unclaimed::Drop => router::Unclaimed::Drop,
        Unclaimed::Accept => router::Unclaimed::Accept,
    };
    let flows = max_flows(settings).div_ceil(u32::from(settings.workers.max(1)));
    router::Settings {
        clients: settings.clients.clone(),
        hold: settings.receive_hold,
        max_flows: usize::try_from(flows).unwrap_or(usize::MAX),
        ..router::Settings::new(settings.targets.clone(), unclaimed)
    }
}

/// A verdict that the kernel does not take leaves the packet with it, to be dropped later.
fn give(queue: &mut NfQueue, totals: &mut Snapshot, id: u32, verdict: capture::Verdict) {
    if queue.verdict(id, verdict).is_err() {
        totals.intake.refused += 1;
    }
}

/// Does with one packet what the router says, and counts it.
fn route(
    now: Time,
    captured: &Captured<'_>,
    checksums: &mut Checksums,
    router: &mut Router,
    connections: &mut Connections,
    rejects: &mut Tally<Reject>,
) -> Disposition {
    let packet = match intake::read(captured, checksums) {
        Ok(packet) => packet,
        Err(reject) => {
            tracing::trace!(%reject, "unreadable packet");
            rejects.count(reject);
            router.count(Outcome::Unreadable);
            return Disposition::Drop;
        }
    };
    let disposition = router.handle_response(now, captured.id, &packet);
    if let Disposition::Forward(conn, flow) = disposition {
        let sent = connections.forward(conn, flow, &packet.header, Duration::ZERO);
        router.count(if sent { Outcome::Forwarded } else { Outcome::TunnelFull });
    }
    tracing::trace!(?disposition, header = ?packet.header, "response");
    disposition
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::door::Door;
    use super::super::readiness::Readiness;
    use super::*;
    use crate::wire::{Flags, Outgoing, Seq, TcpHeader};

    #[test]
    fn what_cannot_be_read_is_dropped_and_counted_by_reason() {
        let target = ([10, 0, 0, 2], 80).into();
        let settings = router::Settings::new(vec![target], router::Unclaimed::Accept);
        let mut router = Router::new(Time::ZERO, settings);
        let shared = Shared {
            most: 1,
            budget: Budget::new(0),
            door: Door::new(&[], &[]),
            readiness: Readiness::new(None),
        };
        let mut connections =
            Connections::new(FIRST_CONNECTION, (0, 1), shared, Scope::default(), Features::NONE);
        let mut rejects = Tally::default();
        let header = TcpHeader::bare(Seq(1), Seq(2), Flags::ACK, 3);
        let mut out = Outgoing::default();
        let whole =
            out.finish(target, ([10, 9, 0, 1], 5).into(), &header).expect("one family, short").to_vec();
        let changed = |at: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            bytes
        };
        let cases = [
            (Vec::new(), Reject::IpHeader),
            (changed(3, 200), Reject::IpLength),
            (changed(6, 0x20), Reject::Fragment),
            (changed(9, 17), Reject::NotTcp),
            (changed(32, 0xf0), Reject::TcpHeader),
            (whole.get(..39).expect("40 bytes").to_vec(), Reject::IpLength),
        ];
        for (bytes, reject) in &cases {
            let captured = Captured { id: 1, bytes, original_len: bytes.len(), has_checksum: false };
            let before = rejects.of(*reject);
            let disposition = route(
                Time::ZERO,
                &captured,
                &mut Checksums::default(),
                &mut router,
                &mut connections,
                &mut rejects,
            );
            assert_eq!((disposition, rejects.of(*reject)), (Disposition::Drop, before + 1), "{reject:?}");
        }
        let outcomes = &router.counters().outcomes;
        assert_eq!((outcomes.of(Outcome::Unreadable), outcomes.total(), rejects.total()), (6, 6, 6));
    }
}
