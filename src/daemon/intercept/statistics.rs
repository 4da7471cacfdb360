//! What the control thread makes of the workers' counters: a line of log, the service manager's status, and events
//! for what an operator should know of at once.

use std::time::Duration;

use super::bridge::Legacy;
use super::connections::Denied;
use super::door::TurnedAway;
use super::worker::Snapshot;
use crate::daemon::condition::{self, Condition, Turn};
use crate::daemon::statistics::{grouped, list, rate};
use crate::daemon::{message_id, notify};
use crate::router::Outcome;
use crate::wire::{Tally, Time};

/// All workers' counters, and those that are not theirs.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) workers: Snapshot,
    /// By the kernel, of our queues; `None` where it does not say.
    pub(super) kernel_dropped: Option<u64>,
    /// By the acceptor.
    pub(super) turned_away: Tally<TurnedAway>,
    /// By the rules of a closed host, beside responses: each kind with its count.
    pub(super) strays: String,
    /// By the bridge to C tcpcopys.
    pub(super) legacy: Tally<Legacy>,
    /// What the tunnels' buffers take, and may take.
    pub(super) tunnel_bytes: usize,
    /// What the flows take of the same limit.
    pub(super) flow_bytes: usize,
    pub(super) memory_limit: u64,
}

impl Totals {
    /// Of these, what the receive buffers had no room for is always known.
    fn kernel_dropped(&self) -> u64 {
        self.kernel_dropped.unwrap_or(self.workers.intake.overruns)
    }

    /// Headers that a tcpcopy was too slow for.
    fn headers_dropped(&self) -> u64 {
        self.workers.router.outcomes.of(Outcome::TunnelFull) + self.legacy.of(Legacy::Dropped)
    }
}

/// What was counted before, and what is the matter.
#[derive(Debug)]
pub(super) struct Statistics {
    /// At the round before.
    before: Totals,
    before_at: Time,
    /// At the last line of log.
    logged: Totals,
    drops: Condition,
    flows: Condition,
    claims: Condition,
    tunnels: Condition,
    memory: Condition,
}

impl Statistics {
    /// Nothing is known yet.
    pub(super) fn new(now: Time) -> Self {
        Self {
            before: Totals::default(),
            before_at: now,
            logged: Totals::default(),
            drops: Condition::default(),
            flows: Condition::default(),
            claims: Condition::default(),
            tunnels: Condition::default(),
            memory: Condition::default(),
        }
    }

    /// A round is complete: tells what has changed since the one before. `open` is why the host is open, if it is.
    pub(super) fn take(&mut self, now: Time, totals: Totals, open: Option<&str>) {
        self.watch_drops(now, &totals);
        self.watch_flows(now, &totals);
        self.watch_claims(now, &totals);
        self.watch_tunnels(now, &totals);
        self.watch_memory(now, &totals);
        notify::status(&self.status(now, &totals, open));
        self.before = totals;
        self.before_at = now;
    }

    fn watch_drops(&mut self, now: Time, totals: &Totals) {
        let dropped = totals.kernel_dropped().saturating_sub(self.before.kernel_dropped());
        let overruns = totals.workers.intake.overruns - self.before.workers.intake.overruns;
        match self.drops.look(now, dropped.max(overruns)) {
            None => {}
            Some(Turn::Begins) => tracing::warn!(
                MESSAGE_ID = message_id::QUEUE_DROPS,
                dropped,
                overruns,
                "the kernel drops responses because workers do not keep up: the target sends them again; give it more \
                 workers"
            ),
            Some(Turn::Ends { lasted, count }) => tracing::info!(
                MESSAGE_ID = message_id::QUEUE_DROPS_OVER,
                dropped = count,
                seconds = lasted.as_secs(),
                "the kernel drops no more responses"
            ),
        }
    }

    fn watch_flows(&mut self, now: Time, totals: &Totals) {
        let (after, before) = (&totals.workers.router, &self.before.workers.router);
        let (refused, evicted) = (after.refused_full - before.refused_full, after.evicted - before.evicted);
        match self.flows.look(now, refused + evicted) {
            None => {}
            Some(Turn::Begins) => tracing::warn!(
                MESSAGE_ID = message_id::SAMPLING_REDUCED,
                reason = "flow_limit",
                refused,
                evicted,
                flows = totals.workers.flows,
                "there are as many flows as there may be (max-flows): who has its fair share gives up its idlest flow, or is \
                 refused"
            ),
            Some(Turn::Ends { lasted, count }) => tracing::info!(
                MESSAGE_ID = message_id::SAMPLING_RESTORED,
                refused = count,
                seconds = lasted.as_secs(),
                "there is room for new flows again"
            ),
        }
    }

    fn watch_claims(&mut self, now: Time, totals: &Totals) {
        let (after, before) = (&totals.workers.router, &self.before.workers.router);
        let target = after.refused_target - before.refused_target;
        let client = after.refused_client - before.refused_client;
        match self.claims.look(now, target + client) {
            None => {}
            Some(Turn::Begins) => tracing::warn!(
                MESSAGE_ID = message_id::CLAIMS_REFUSED,
                foreign_target = target,
                foreign_client = client,
                "a tcpcopy claims flows that it may not have: name their target (--target), or widen `clients`, here or \
                 with its key, if it is to have them"
            ),
            Some(Turn::Ends { lasted, count }) => tracing::info!(
                MESSAGE_ID = message_id::CLAIMS_REFUSED_OVER,
                refused = count,
                seconds = lasted.as_secs(),
                "all claims are for what their tcpcopy may have again"
            ),
        }
    }

    fn watch_tunnels(&mut self, now: Time, totals: &Totals) {
        let dropped = totals.headers_dropped() - self.before.headers_dropped();
        match self.tunnels.look(now, dropped) {
            None => {}
            Some(Turn::Begins) => tracing::warn!(
                MESSAGE_ID = message_id::TUNNEL_FULL,
                dropped,
                "a tcpcopy reads its tunnel too slowly: headers are dropped, and the target sends the segments again"
            ),
            Some(Turn::Ends { lasted, count }) => tracing::info!(
                MESSAGE_ID = message_id::TUNNEL_FULL_OVER,
                dropped = count,
                seconds = lasted.as_secs(),
                "every tcpcopy reads its tunnel in time again"
            ),
        }
    }

    fn watch_memory(&mut self, now: Time, totals: &Totals) {
        let of = |denied| totals.workers.denied.of(denied) - self.before.workers.denied.of(denied);
        let (refused, ended) = (of(Denied::MemoryLimit), of(Denied::Shed));
        let (used, flows, limit) = (totals.tunnel_bytes, totals.flow_bytes, totals.memory_limit);
        match self.memory.look(now, refused + ended) {
            None => {}
            Some(Turn::Begins) => tracing::warn!(
                MESSAGE_ID = message_id::MEMORY_LIMIT_REACHED,
                limit,
                used,
                flows,
                refused,
                ended,
                "the tunnels hold as much memory as they may (memory-limit): new ones are refused, the fullest ended, of keys \
                 above their equal part"
            ),
            Some(Turn::Ends { lasted, count }) => tracing::info!(
                MESSAGE_ID = message_id::MEMORY_LIMIT_LEFT,
                limit,
                refused_or_ended = count,
                seconds = lasted.as_secs(),
                "there is memory for new tunnels again"
            ),
        }
    }

    fn status(&self, now: Time, totals: &Totals, open: Option<&str>) -> String {
        let time = now.since(self.before_at);
        let responses = rate(totals.workers.intake.packets, self.before.workers.intake.packets, time);
        let mut text = vec![format!(
            "{} tunnels, {} flows, {} responses/s; {}",
            grouped(totals.workers.connections as u64),
            grouped(totals.workers.flows as u64),
            grouped(responses),
            open.map_or_else(|| "rules closed".to_owned(), |reason| format!("OPEN: {reason}"))
        )];
        text.extend(condition::named([
            (&self.flows, "flow limit"),
            (&self.drops, "queue drops"),
            (&self.claims, "foreign claims"),
            (&self.tunnels, "slow tunnels"),
            (&self.memory, "memory limit"),
        ]));
        text.join("; ")
    }

    /// The line `stats`: what was counted since the start, and the rates over `time`, which has passed since the last
    /// such line.
    pub(super) fn log(&mut self, totals: &Totals, time: Duration) {
        let Snapshot { intake, rejects, router, denied, connections, flows, held } = &totals.workers;
        let logged = &self.logged.workers;
        let outcome = |outcome| router.outcomes.of(outcome);
        let forwarded_before = logged.router.outcomes.of(Outcome::Forwarded);
        tracing::info!(
            MESSAGE_ID = message_id::STATS,
            responses = intake.packets,
            responses_per_s = rate(intake.packets, logged.intake.packets, time),
            forwarded = outcome(Outcome::Forwarded),
            forwarded_per_s = rate(outcome(Outcome::Forwarded), forwarded_before, time),
            forwarded_late = outcome(Outcome::ForwardedLate),
            tunnel_full = outcome(Outcome::TunnelFull),
            orphaned = outcome(Outcome::Orphaned),
            released = outcome(Outcome::Released),
            unclaimed_dropped = outcome(Outcome::UnclaimedDropped),
            unclaimed_accepted = outcome(Outcome::UnclaimedAccepted),
            hold_full = outcome(Outcome::HoldFull),
            strays = totals.strays,
            unreadable = outcome(Outcome::Unreadable),
            rejects = list(rejects),
            held,
            kernel_dropped = totals.kernel_dropped(),
            overruns = intake.overruns,
            malformed = intake.malformed,
            verdicts_refused = intake.refused,
            claims = router.claims,
            claims_per_s = rate(router.claims, logged.router.claims, time),
            claims_taken = router.refused_taken,
            claims_foreign = router.refused_target,
            claims_foreign_client = router.refused_client,
            claims_full = router.refused_full,
            evicted = router.evicted,
            displaced = router.displaced,
            expired = router.expired,
            flows,
            connections,
            tunnel_bytes = totals.tunnel_bytes,
            flow_bytes = totals.flow_bytes,
            denied = list(denied),
            turned_away = list(&totals.turned_away),
            legacy = list(&totals.legacy),
            "stats"
        );
        self.logged = totals.clone();
    }
}
