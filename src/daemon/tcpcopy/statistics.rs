//! What the control thread makes of the workers' counters: a line of log, the service manager's status, and events
//! for what an operator should know of at once.

use std::net::SocketAddr;
use std::time::Duration;

use super::peers::Peers;
use super::worker::Snapshot;
use crate::config::tcpcopy::Settings;
use crate::daemon::condition::{self, Condition, Turn};
use crate::daemon::statistics::{grouped, list, rate};
use crate::daemon::{message_id, notify};
use crate::replayer::{Histogram, Target, Unused};
use crate::session::{End, Outcome};
use crate::wire::{Mapping, Time};

/// Requests that leave so much later than they were captured are behind.
const BEHIND: Duration = Duration::from_millis(500);

/// A target that is awaited for so long answers nothing.
const UNREACHABLE: Duration = Duration::from_secs(3);

/// All workers' counters, and those that are not theirs.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) workers: Snapshot,
    /// By the kernel, of our queues or packet sockets; `None` as long as it is not known.
    pub(super) kernel_dropped: Option<u64>,
    /// The same of the queues of responses, if they are met on this host.
    pub(super) responses_dropped: Option<u64>,
    /// By the rules, or the packet sockets.
    pub(super) duplicated: Option<u64>,
    /// Not duplicated, because of `capture.max-packets-per-second`; `None` without it.
    pub(super) over_limit: Option<u64>,
}

impl Totals {
    /// All workers have answered. Where the kernel does not say what it dropped, that is what was duplicated before they
    /// were asked and has not been received since; while a worker has not received all, it is what it was `before`.
    pub(super) fn conclude(&mut self, before: u64) {
        let Snapshot { intake, behind, .. } = &self.workers;
        self.kernel_dropped.get_or_insert_with(|| match self.duplicated {
            Some(duplicated) if !behind => {
                before.max(duplicated.saturating_sub(intake.packets + intake.malformed))
            }
            Some(_) | None => before.max(intake.overruns),
        });
    }

    fn kernel_dropped(&self) -> u64 {
        self.kernel_dropped.unwrap_or(0)
    }
}

/// What was counted before, and what is the matter.
#[derive(Debug)]
pub(super) struct Statistics {
    memory_limit: u64,
    reconnect_limit: u32,
    mappings: Vec<Mapping>,
    /// At the round before.
    before: Totals,
    before_at: Time,
    /// At the last line of log.
    logged: Totals,
    drops: Condition,
    sampling: Condition,
    memory: Condition,
    /// Connections that no intercept takes the responses of.
    refused: Condition,
    behind: Condition,
    /// How late requests leave, by the last round.
    lag: Duration,
    reconnects: Condition,
    /// Targets that are known, and those that are silent.
    targets: Vec<(SocketAddr, Condition)>,
    ready: bool,
}

impl Statistics {
    /// Nothing is known yet.
    pub(super) fn new(now: Time, settings: &Settings) -> Self {
        Self {
            memory_limit: settings.memory_limit,
            reconnect_limit: settings.max_reconnects_per_second,
            mappings: settings.mappings.clone(),
            before: Totals::default(),
            before_at: now,
            logged: Totals::default(),
            drops: Condition::default(),
            sampling: Condition::default(),
            memory: Condition::default(),
            refused: Condition::default(),
            behind: Condition::default(),
            lag: Duration::ZERO,
            reconnects: Condition::default(),
            targets: Vec::new(),
            ready: false,
        }
    }

    /// Goes by other settings.
    pub(super) fn configure(&mut self, settings: &Settings) {
        self.memory_limit = settings.memory_limit;
        self.reconnect_limit = settings.max_reconnects_per_second;
        self.mappings.clone_from(&settings.mappings);
        let mappings = &self.mappings;
        self.targets.retain(|(address, _)| mappings.iter().any(|mapping| mapping.target == *address));
    }

    /// What the kernel had dropped at the last round.
    pub(super) fn dropped_before(&self) -> u64 {
        self.before.kernel_dropped()
    }

    /// Traffic flows.
    pub(super) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// A round is complete: tells what has changed since the one before.
    pub(super) fn take(&mut self, now: Time, totals: Totals, peers: &Peers) {
        self.watch_drops(now, &totals);
        self.watch_sampling(now, &totals);
        self.watch_refusals(now, &totals);
        self.watch_reconnects(now, &totals);
        self.watch_targets(now, &totals.workers.targets);
        self.watch_lag(now, &totals);
        notify::status(&self.status(now, &totals, peers));
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
                "the kernel drops duplicates because workers do not keep up: requests are missing from the replay; \
                 give it more workers or a smaller percentage"
            ),
            Some(Turn::Ends { lasted, count }) => tracing::info!(
                MESSAGE_ID = message_id::QUEUE_DROPS_OVER,
                dropped = count,
                seconds = lasted.as_secs(),
                "the kernel drops no more duplicates"
            ),
        }
    }

    fn watch_sampling(&mut self, now: Time, totals: &Totals) {
        let (after, before) = (&totals.workers.replay, &self.before.workers.replay);
        let unused = |why| after.unused.of(why) - before.unused.of(why);
        let (sessions, memory) = (unused(Unused::SessionLimit), unused(Unused::MemoryLimit));
        let no_address = after.no_address - before.no_address;
        // Sessions without an address end as shed, too.
        let shed = (after.ended.of(End::Shed) - before.ended.of(End::Shed)).saturating_sub(no_address);
        let reasons =
            [(sessions, "session_limit"), (memory + shed, "memory_limit"), (no_address, "addresses")];
        let reason = reasons.iter().filter(|(count, _)| *count > 0).map(|(_, name)| *name);
        let reason = reason.collect::<Vec<_>>().join(" ");
        match self.sampling.look(now, sessions + memory + shed + no_address) {
            None => {}
            Some(Turn::Begins) => tracing::warn!(
                MESSAGE_ID = message_id::SAMPLING_REDUCED,
                reason,
                refused = sessions + memory,
                shed,
                no_address,
                sessions = totals.workers.sessions,
                "less of production is replayed than asked for: see the limits, or replay a smaller percentage"
            ),
            Some(Turn::Ends { lasted, count }) => tracing::info!(
                MESSAGE_ID = message_id::SAMPLING_RESTORED,
                refused = count,
                seconds = lasted.as_secs(),
                "all of production that was asked for is replayed again"
            ),
        }
        let buffered = totals.workers.buffered;
        match self.memory.look(now, memory + shed) {
            None => {}
            Some(Turn::Begins) => tracing::warn!(
                MESSAGE_ID = message_id::MEMORY_LIMIT_REACHED,
                limit = self.memory_limit,
                buffered,
                "sessions hold as much memory as they may (memory-limit): new ones are refused, the fullest ended"
            ),
            Some(Turn::Ends { lasted, .. }) => tracing::info!(
                MESSAGE_ID = message_id::MEMORY_LIMIT_LEFT,
                limit = self.memory_limit,
                buffered,
                seconds = lasted.as_secs(),
                "there is memory for new sessions again"
            ),
        }
    }

    fn watch_refusals(&mut self, now: Time, totals: &Totals) {
        let (after, before) = (&totals.workers.replay, &self.before.workers.replay);
        let ended = |why| after.ended.of(why) - before.ended.of(why);
        let (out_of_scope, refused) = (ended(End::OutOfScope), ended(End::ClaimRefused));
        match self.refused.look(now, out_of_scope + refused) {
            None => {}
            Some(Turn::Begins) => tracing::error!(
                MESSAGE_ID = message_id::CLAIMS_REFUSED,
                out_of_scope,
                refused,
                "{} connections are not replayed, and nothing was sent for them: no intercept takes the responses of \
                 their target to their client's address ({out_of_scope}), or it refused the claim ({refused}). Give the \
                 intercepts the targets (--target), set pool (-c) to addresses in their `clients` and those of our key, \
                 or raise their max-flows",
                out_of_scope + refused
            ),
            Some(Turn::Ends { lasted, count }) => tracing::info!(
                MESSAGE_ID = message_id::CLAIMS_REFUSED_OVER,
                refused = count,
                seconds = lasted.as_secs(),
                "the intercepts take the responses of all connections again; {count} were not replayed"
            ),
        }
    }

    fn watch_reconnects(&mut self, now: Time, totals: &Totals) {
        let (after, before) = (&totals.workers.replay, &self.before.workers.replay);
        let delayed = after.reconnects_delayed - before.reconnects_delayed;
        match self.reconnects.look(now, delayed) {
            None => {}
            Some(Turn::Begins) => tracing::warn!(
                MESSAGE_ID = message_id::RECONNECT_LIMIT_REACHED,
                delayed,
                limit = self.reconnect_limit,
                "{delayed} connections to targets wait: more than {} a second replace others of their session or resume \
                 after an outage (max-reconnects-per-second); if no target was away, find out why targets end \
                 connections early",
                self.reconnect_limit,
            ),
            Some(Turn::Ends { lasted, count }) => tracing::info!(
                MESSAGE_ID = message_id::RECONNECT_LIMIT_LEFT,
                delayed = count,
                seconds = lasted.as_secs(),
                "connections to targets no longer wait for max-reconnects-per-second: {count} waited in {} s",
                lasted.as_secs(),
            ),
        }
    }

    fn watch_targets(&mut self, now: Time, targets: &[Target]) {
        // What is no target any more is nobody's concern, though sessions may still wait for it.
        let wanted = |target: &&Target| self.mappings.iter().any(|mapping| mapping.target == target.address);
        for target in targets.iter().filter(wanted) {
            let known = self.targets.iter().position(|(address, _)| *address == target.address);
            let at = known.unwrap_or_else(|| {
                self.targets.push((target.address, Condition::default()));
                self.targets.len() - 1
            });
            let Some((_, condition)) = self.targets.get_mut(at) else { continue };
            let canary = target.canary.map(|since| now.since(since));
            let silence = target.silence(now).max(canary).filter(|silence| *silence >= UNREACHABLE);
            match condition.look(now, u64::from(silence.is_some())) {
                None => {}
                Some(Turn::Begins) => warn_of_target(target, silence.unwrap_or_default()),
                Some(Turn::Ends { lasted, .. }) => tracing::info!(
                    MESSAGE_ID = message_id::TARGET_BACK,
                    target = %target.address,
                    seconds = lasted.as_secs(),
                    "the target answers again"
                ),
            }
        }
    }

    fn watch_lag(&mut self, now: Time, totals: &Totals) {
        let Snapshot { replay, backlog, .. } = &totals.workers;
        let left = replay.lag.since(&self.before.workers.replay.lag).quantile(990).unwrap_or_default();
        self.lag = left.max(backlog.oldest);
        let lag = self.lag.as_millis();
        match self.behind.look(now, u64::from(self.lag >= BEHIND)) {
            None => {}
            Some(Turn::Begins) => tracing::warn!(
                MESSAGE_ID = message_id::REPLAY_BEHIND,
                lag_ms = lag,
                waiting = backlog.waiting,
                "the replay is {lag} ms behind production: requests wait for responses of the target; it is slower than \
                 production, or its responses end where the replay cannot tell"
            ),
            Some(Turn::Ends { lasted, .. }) => tracing::info!(
                MESSAGE_ID = message_id::REPLAY_KEEPS_UP,
                lag_ms = lag,
                seconds = lasted.as_secs(),
                "the replay keeps up with production again: requests leave within {lag} ms"
            ),
        }
    }

    fn status(&self, now: Time, totals: &Totals, peers: &Peers) -> String {
        if !self.ready {
            return format!("waiting for {}", peers.missing());
        }
        let (after, before) = (&totals.workers.replay, &self.before.workers.replay);
        let time = now.since(self.before_at);
        let exchanges = rate(after.exchanges.total(), before.exchanges.total(), time);
        let ended = after.exchanges.total() - before.exchanges.total();
        let answered = after.exchanges.of(Outcome::Answered) - before.exchanges.of(Outcome::Answered);
        // What waits to leave is not answered.
        let share = match (answered * 1000).checked_div(ended + totals.workers.backlog.waiting) {
            Some(permille) => format!(" ({}.{} % answered in full)", permille / 10, permille % 10),
            None => String::new(),
        };
        let mut text = vec![format!(
            "{} sessions, {} requests/s{share}, {}",
            grouped(totals.workers.sessions as u64),
            grouped(exchanges),
            peers.summary()
        )];
        if self.behind.is_on() {
            text.push(format!("requests leave {} ms late", grouped(saturated(self.lag.as_millis()))));
        }
        let silent = self.targets.iter().filter(|(_, condition)| condition.is_on());
        text.extend(silent.map(|(address, _)| format!("target {address} silent")));
        text.extend(condition::named([
            (&self.memory, "memory limit"),
            (&self.sampling, "sampling reduced"),
            (&self.reconnects, "reconnect limit"),
            (&self.drops, "queue drops"),
        ]));
        text.join("; ")
    }

    /// The line `stats`: what was counted since the start, and the rates over `time`, which has passed since the last
    /// such line.
    #[expect(clippy::too_many_lines, reason = "one field of the line each")]
    pub(super) fn log(&mut self, totals: &Totals, time: Duration) {
        let Snapshot { replay, intake, responses, response_rejects, delay, backlog, .. } = &totals.workers;
        let embedded = totals.responses_dropped.is_some();
        let logged = &self.logged.workers;
        let micros = |times: &Histogram, permille| times.quantile(permille).map(|time| time.as_micros());
        tracing::info!(
            MESSAGE_ID = message_id::STATS,
            captured = intake.packets,
            left_out = intake.left_out,
            captured_per_s = rate(intake.packets, logged.intake.packets, time),
            rejected = totals.workers.rejects.total(),
            rejects = list(&totals.workers.rejects),
            taken = list(&replay.taken),
            unused = list(&replay.unused),
            responses = embedded.then_some(responses.packets),
            response_rejects = (embedded || response_rejects.total() > 0).then(|| list(response_rejects)),
            responses_dropped = totals.responses_dropped,
            answers = list(&replay.answers),
            exchanges = replay.exchanges.total(),
            exchanges_per_s = rate(replay.exchanges.total(), logged.replay.exchanges.total(), time),
            outcomes = list(&replay.exchanges),
            delays = powers(delay),
            delay_p50_us = micros(delay, 500),
            delay_p99_us = micros(delay, 990),
            lag_p50_us = micros(&replay.lag.since(&logged.replay.lag), 500),
            lag_p99_us = micros(&replay.lag.since(&logged.replay.lag), 990),
            lag_max_us = replay.lag_max.as_micros(),
            waiting = backlog.waiting,
            waiting_longest_us = backlog.oldest.as_micros(),
            early = replay.early,
            response_p50_us = micros(&replay.response_time, 500),
            response_p99_us = micros(&replay.response_time, 990),
            segments = replay.segments,
            trains = totals.workers.sent.trains,
            bytes = replay.bytes,
            bytes_per_s = rate(replay.bytes, logged.replay.bytes, time),
            send_errors = list(&totals.workers.sent.errors),
            sessions = totals.workers.sessions,
            started = replay.started,
            started_per_s = rate(replay.started, logged.replay.started, time),
            connections = replay.connections,
            reconnects = replay.reconnects,
            reconnects_delayed = replay.reconnects_delayed,
            backed_off = replay.backed_off,
            canaries = replay.canaries,
            taken_back = replay.taken_back,
            connections_waiting = totals.workers.targets.iter().map(|target| target.waiting).sum::<usize>(),
            suspect_targets = totals.workers.targets.iter().filter(|target| target.canary.is_some()).count(),
            ended = list(&replay.ended),
            no_address = replay.no_address,
            claims_refused = replay.claims_refused,
            claims_unconfirmed = replay.claims_unconfirmed,
            claims_evicted = replay.claims_evicted,
            captured_bytes = replay.captured_bytes,
            fates = list(&replay.ledger.fates),
            discarded_bytes = list(&replay.ledger.discarded),
            unused_bytes = list(&replay.unused_bytes),
            missing_bytes = replay.ledger.missing,
            skipped_bytes = replay.skipped_bytes,
            unanswered = replay.unanswered,
            buffered = totals.workers.buffered,
            memory = totals.workers.memory,
            kernel_dropped = totals.kernel_dropped(),
            overruns = intake.overruns + responses.overruns,
            malformed = intake.malformed + responses.malformed,
            verdicts_refused = intake.refused + responses.refused,
            duplicated = totals.duplicated,
            over_limit = totals.over_limit,
            "stats"
        );
        self.logged = totals.clone();
    }
}

fn saturated(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Says what is the matter with a target, and what is done about it.
fn warn_of_target(target: &Target, silence: Duration) {
    let Target { address, refuses, waiting, .. } = target;
    let seconds = silence.as_secs();
    let (reason, what) = match target.canary {
        Some(_) if *refuses => (
            "refuses",
            format!(
                "the target {address} has refused connections for {seconds} s; at most one connection per second is \
                 tried, {waiting} sessions wait: start its service, or correct the port"
            ),
        ),
        Some(_) => (
            "unanswered_syns",
            format!(
                "the target {address} has not answered a SYN for {seconds} s; at most one connection per second is \
                 tried, {waiting} sessions wait: check that it is up, and that its route for the replayed clients leads \
                 to intercept"
            ),
        ),
        None => (
            "unacknowledged_data",
            format!(
                "the target {address} has not acknowledged data for {seconds} s; sessions wait for it: check that it is \
                 up, and that its route for the replayed clients leads to intercept"
            ),
        ),
    };
    tracing::warn!(
        MESSAGE_ID = message_id::TARGET_UNREACHABLE,
        target = %address,
        seconds,
        reason,
        waiting,
        "{what}"
    );
}

/// A histogram for one field of a log line, coarser than it is.
fn powers(times: &Histogram) -> String {
    let counted = times.by_power().filter(|(_, count)| *count > 0);
    counted.map(|(below, count)| format!("{below}={count}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::queues::Intake;

    #[test]
    fn what_was_duplicated_and_is_not_there_was_dropped() {
        let totals = |kernel_dropped, duplicated, behind| {
            let intake = Intake { packets: 90, overruns: 3, ..Intake::default() };
            let workers = Snapshot { intake, behind, ..Snapshot::default() };
            let mut totals = Totals { workers, kernel_dropped, duplicated, ..Totals::default() };
            totals.conclude(5);
            totals.kernel_dropped()
        };
        assert_eq!(totals(Some(2), Some(100), false), 2, "the kernel knows");
        assert_eq!(totals(None, Some(100), false), 10);
        assert_eq!(totals(None, Some(100), true), 5, "some may be under way");
        assert_eq!(totals(None, Some(80), false), 5, "more came while it was asked");
        assert_eq!(totals(None, None, false), 5);
    }
}
