//! The session's bursts at the gate: what the gate is shown, and what follows when one passes.

use std::time::Duration;

use super::Session;
use super::connection::State;
use super::event::{Event, Outcome};
use super::gate::{Decision, Opened, View};
use super::receiver::Receiver;
use super::upstream::Mark;
use crate::wire::Time;

/// A burst that leaves later than this after its capture is behind, if nothing else took long. Delays of single packets
/// add up to less in a connection of a few exchanges, and to more only where they go on adding up.
const BEHIND: Duration = Duration::from_millis(10);

/// Before so many exchanges are over, rests cannot have added up to that: what is late then is late because processors
/// are busy, and to do without rests would keep them busier.
const BEHIND_AFTER: u32 = 4;

/// An answer within this time did not take long.
const PROMPT: Duration = Duration::from_millis(3);

/// The first exchanges of a session are timed for all sessions, and of the others one of so many.
const SAMPLED: u32 = 4;
const SAMPLE: u32 = 16;

impl Session {
    /// Lets bursts pass whose gate is open.
    pub(super) fn pass_bursts(&mut self, now: Time) {
        while let Some((mark, view, Decision::Open(how))) = self.waiting_at_gate(now) {
            if self.needs_another_connection(&mark) {
                let closed = self.receiver().is_some_and(Receiver::finished);
                self.conclude(if closed { Outcome::TargetClosed } else { Outcome::Left });
                return self.reconnect(now, mark.before);
            }
            self.pass(&mark, &view, how);
        }
    }

    /// Whether the burst at the gate cannot go on this connection: bytes before it are missing, or
    /// the target has closed and the client goes on.
    pub(super) fn needs_another_connection(&self, mark: &Mark) -> bool {
        let is_close = self.upstream.close().is_some() && mark.offset == self.upstream.end();
        mark.follows_gap() || (!is_close && self.receiver().is_some_and(Receiver::finished))
    }

    /// The burst at the gate, once everything before it has left, and what the gate says of it.
    pub(super) fn waiting_at_gate(&self, now: Time) -> Option<(Mark, View, Decision)> {
        let connection = self.connection.as_ref().filter(|connection| connection.state == State::Open)?;
        let receiver = connection.receiver.as_ref()?;
        let mark = self.upstream.waiting().filter(|mark| connection.sender.nxt() >= mark.before)?;
        let view = View {
            now,
            received: receiver.received(),
            last_received: receiver.last_at(),
            hole: receiver.has_hole(),
            quiet_since: receiver.quiet_since(),
            replied: connection.replied,
            last_sent: connection.arrived_at(),
            target_rtt: connection.sender.rtt(),
            lag: self.lag(),
            greeting: connection.sender.max() == connection.sender.base(),
            finished: receiver.finished(),
        };
        if !self.needs_another_connection(&mark) {
            let decision = self.gate.decide(&self.config, &self.learned, &mark, &view);
            return Some((mark, view, decision));
        }
        if connection.sender.una() < mark.before {
            // Leaving now would lose what is under way. The target acknowledges it, or resets the
            // connection, and then all of it goes on the next one.
            return None;
        }
        let decision = if view.greeting || view.finished {
            Decision::Open(Opened::Ungated)
        } else {
            self.gate.decide_leaving(&self.config, &self.learned, &mark, &view)
        };
        Some((mark, view, decision))
    }

    pub(super) fn pass(&mut self, mark: &Mark, view: &View, how: Opened) {
        let Some(connection) = &self.connection else { return };
        let late = view.now - mark.captured;
        if mark.offset > self.burst_start {
            if let Some(at) = self.first_answer {
                self.gate.answered_after(&self.learned, at - connection.last_sent);
            }
            let answered_in = view.last_received - connection.last_sent + view.lag;
            let behind = late > BEHIND && self.exchanges >= BEHIND_AFTER;
            if how == Opened::Answered && answered_in < PROMPT && behind {
                self.events.push_back(Event::Behind);
            }
            self.report(mark.offset, self.gate.online_response(mark), how.into());
            self.exchanges = self.exchanges.saturating_add(1);
        }
        self.gate.pass(&self.learned, mark, view, how);
        self.burst_start = mark.offset;
        self.late = late;
        self.upstream.pass();
    }

    /// Whether this exchange is one of those whose response is timed for all sessions.
    pub(super) fn is_sampled(&self) -> bool {
        self.exchanges < SAMPLED || self.exchanges.is_multiple_of(SAMPLE)
    }
}
