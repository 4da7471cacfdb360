//! When a burst may leave: after the target has answered what the online server had answered.
//!
//! A burst waits for `L` downstream bytes, the length of the online response that the client had
//! acknowledged before it sent the burst. `t` is what the target has sent since the burst before
//! left. The gate opens
//!
//! * when `t >= L`;
//! * when `0 < t < L`, nothing is known to be missing, and the target has been quiet for a while: its
//!   response is shorter. A shortfall seen once is expected again, so a constant one costs its quiet
//!   time once. What it said before it had all of the burst may be an interim response, or that to the
//!   first of several requests, so without a word since then its quiet has to be long;
//! * when `t < L`, but with what the target had sent beyond the gates before, its *surplus*, it is
//!   enough: a client that pipelines sends its next request while responses are still to come. A
//!   target whose responses are longer than the online server's has a surplus, too, so this holds
//!   only after a quiet time, until the surplus has proved right;
//! * when the target has sent as much on the whole connection as the online server, and then nothing
//!   for long: both speak at will, and their messages do not answer each other;
//! * after the response timeout, which begins when the target has acknowledged what came before: what has not
//!   arrived is not answered.
//!
//! A wait for the response timeout was *vain* if nothing came, and the target answered soon once the
//! burst had left: it had been waiting for us. From then on silence is waited for no longer than its
//! answers take, with much to spare, and with more each time that one silence follows another. What
//! comes then may answer an earlier burst, if it does not come soon: the target has proved slow, and is
//! waited for as before.
//!
//! A surplus proves right when the client's acknowledgments come to exactly where the target's
//! response was: they *foresaw* each other. It proves wrong when they pass that place by, and what is
//! proved wrong is forgotten, so differences do not add up.
//!
//! With latency emulation, the opening lags by the client's round-trip time, as the real client's
//! next request would.

use std::time::Duration;

use super::config::{Config, GateMode};
use super::upstream::Mark;
use crate::wire::Time;

/// Bounds of the quiet time.
const MIN_QUIET: Duration = Duration::from_millis(20);
const MAX_QUIET: Duration = Duration::from_millis(500);
/// Quiet time as a multiple of the target's round-trip time.
const QUIET_RTTS: u32 = 8;
/// Shortest quiet time for a shortfall that is expected, and as a multiple of the round-trip time: what the
/// target holds back until our ACK comes takes one.
const EXPECTED_QUIET: Duration = Duration::from_millis(1);
const EXPECTED_RTTS: u32 = 2;

/// How a gate opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Opened {
    /// The target had answered as much as the online server.
    Answered,
    /// The target had answered less and fell silent.
    Short,
    /// The target did not answer in time.
    TimedOut,
    /// Gating is off.
    Ungated,
}

/// A silent target may be so many times as slow as it ever was.
const SLOWER: u32 = 4;
/// Times that a surplus which has proved right may be wrong before it is no longer trusted.
const MAX_DOUBTS: u8 = 3;

/// What the gate says of the waiting burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It may leave.
    Open(Opened),
    /// Not before this time, unless the target answers.
    Wait(Time),
}

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) now: Time,
    /// Downstream sequence space received in order on this connection.
    pub(super) received: u64,
    /// When the last of it came, or the connection was opened.
    pub(super) last_received: Time,
    /// A part of the response is missing: the target is to send it again, and is not quiet.
    pub(super) hole: bool,
    /// Since when the target could have sent more.
    pub(super) quiet_since: Time,
    /// The target has said something since it had all that left.
    pub(super) replied: bool,
    /// When upstream bytes last left, and the target has acknowledged them all; far ahead while it has not.
    pub(super) last_sent: Time,
    /// The target's smoothed round-trip time.
    pub(super) target_rtt: Option<Duration>,
    /// How much the opening lags behind the response.
    pub(super) lag: Duration,
}

/// The gate of one session.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The gate value up to which bursts have passed, or where the response begins.
    passed: u64,
    /// The gate value at which the connection began: what it has received counts from here.
    origin: u64,
    /// How the last burst passed, if one has.
    last: Option<Opened>,
    /// `received` when the last burst passed.
    base: u64,
    /// What the target had sent beyond the gate when the last burst passed.
    surplus: u64,
    /// The gate at which a surplus will have proved right.
    foreseen: Option<u64>,
    /// A surplus has proved right, and how often it was wrong since.
    trusted: bool,
    doubts: u8,
    /// By how much the last short response was short.
    shortfall: Option<u64>,
    /// The longest that the target has taken to begin a response.
    slowest: Duration,
    /// How many of the last bursts passed although nothing had come.
    silences: u32,
    /// A wait was vain.
    impatient: bool,
}

impl Gate {
    /// The online server's response begins at the downstream offset `first`, as far as is known.
    pub(super) fn begin(&mut self, first: u64) {
        if self.last.is_none() {
            self.passed = first;
            self.origin = first;
        }
    }

    /// Downstream bytes the online server sent between the last burst and this one: `L`.
    pub(super) fn online_response(&self, mark: &Mark) -> u64 {
        mark.gate.saturating_sub(self.passed)
    }

    /// The same, up to the downstream offset `seen`.
    pub(super) fn online_until(&self, seen: u64) -> u64 {
        seen.saturating_sub(self.passed)
    }

    /// Downstream bytes the target has sent since the last burst: `t`.
    pub(super) fn target_response(&self, received: u64) -> u64 {
        received.saturating_sub(self.base)
    }

    /// Whether, and if not when, the burst at `mark` may leave. All before it has left.
    pub(super) fn decide(&self, config: &Config, mark: &Mark, view: &View) -> Decision {
        let wanted = self.online_response(mark);
        if wanted == 0 || config.gate == GateMode::None {
            return Decision::Open(Opened::Ungated);
        }
        let answered = self.target_response(view.received);
        let in_all = answered + self.surplus;
        let quiet_since = view.quiet_since.max(view.last_sent);
        let asked = view.last_sent.max(mark.captured);
        let latest = asked + config.response_timeout;
        let (due, how) = if answered >= wanted || in_all == wanted || (self.trusted && in_all > wanted) {
            (view.last_received + view.lag, Opened::Answered)
        } else if in_all > wanted {
            let quiet = quiet_time(view.target_rtt).max(self.slowest * 2);
            (quiet_since + quiet + view.lag, Opened::Answered)
        } else if answered > 0 && !view.hole && !view.replied {
            (quiet_since.max(asked) + self.long_silence() + view.lag, Opened::Short)
        } else if answered > 0 && !view.hole {
            let expected = self.shortfall == Some(wanted - in_all);
            let quiet = quiet_time(view.target_rtt);
            let quiet = if expected { quiet.min(expected_quiet(view.target_rtt)) } else { quiet };
            (quiet_since + quiet + view.lag, Opened::Short)
        } else if view.received >= mark.gate.saturating_sub(self.origin) {
            (quiet_since + self.long_silence() + view.lag, Opened::Answered)
        } else if answered == 0 {
            (asked + self.patience(config), Opened::TimedOut)
        } else {
            (latest, Opened::TimedOut)
        };
        if view.now >= due {
            Decision::Open(how)
        } else if view.now >= latest {
            Decision::Open(Opened::TimedOut)
        } else {
            Decision::Wait(due.min(latest))
        }
    }

    /// Whether, and if not when, a connection may be left for the burst at `mark`, before which bytes
    /// are missing: once what it was sent is answered. How long that answer is nobody knows, because
    /// `mark` tells of the answer to the missing bytes too. Nor can silence be cut short, unless what was
    /// sent is known to hold no whole request.
    pub(super) fn decide_leaving(&self, config: &Config, mark: &Mark, view: &View) -> Decision {
        let due = if config.gate == GateMode::None {
            view.now
        } else if self.target_response(view.received) > 0 {
            let quiet = if view.replied { quiet_time(view.target_rtt) } else { self.long_silence() };
            view.quiet_since.max(view.last_sent) + quiet + view.lag
        } else if mark.torn {
            view.last_sent + self.long_silence().min(config.response_timeout)
        } else {
            view.last_sent + self.patience(config)
        };
        if view.now >= due { Decision::Open(Opened::Short) } else { Decision::Wait(due) }
    }

    /// Silence that no answer of the target is likely to follow.
    fn long_silence(&self) -> Duration {
        MAX_QUIET.max(self.slowest * SLOWER)
    }

    /// How long a target that says nothing is waited for.
    fn patience(&self, config: &Config) -> Duration {
        let most = config.response_timeout;
        if self.impatient { most.min(self.long_silence() * SLOWER.pow(self.silences.min(8))) } else { most }
    }

    /// The target took so long to begin its response to the last burst that passed.
    pub(super) fn answered_after(&mut self, took: Duration) {
        self.impatient = match self.silences {
            0 => self.impatient && took <= MAX_QUIET,
            // The last of these waits was one for a `SLOWER`th of this, and the answer came in less than
            // a `SLOWER`th of that wait.
            n if self.impatient => took * SLOWER * SLOWER <= self.long_silence() * SLOWER.pow(n.min(8)),
            _ => took <= MAX_QUIET,
        };
        self.slowest = self.slowest.max(took);
    }

    /// The burst at `mark` passes.
    pub(super) fn pass(&mut self, mark: &Mark, received: u64, how: Opened) {
        let wanted = self.online_response(mark);
        let in_all = self.target_response(received) + self.surplus;
        let silent = how == Opened::TimedOut && self.target_response(received) == 0;
        self.silences = if silent { self.silences.saturating_add(1) } else { 0 };
        self.last = Some(how);
        self.passed = self.passed.max(mark.gate);
        self.base = received;
        match how {
            Opened::Answered => {
                self.surplus = in_all - wanted.min(in_all);
                self.foresee(in_all == wanted);
            }
            Opened::Short => {
                self.shortfall = Some(wanted - wanted.min(in_all));
                self.distrust();
            }
            Opened::TimedOut => self.distrust(),
            // Nothing was waited for, so nothing was learned.
            Opened::Ungated => {}
        }
    }

    /// The burst that passed last has not left yet, because the target's window is closed: what has been received
    /// by now, `received`, answers earlier ones.
    pub(super) fn hold_back(&mut self, received: u64) {
        let Some(how) = self.last else { return };
        let early = self.target_response(received);
        self.base = received;
        // Behind a whole response it is more than was waited for, else it is what was waited for in vain.
        if how == Opened::Answered {
            let foreseen = self.passed + self.surplus;
            self.surplus += early;
            if self.foreseen.is_none_or(|gate| gate == foreseen) {
                self.foreseen = Some(foreseen + early);
            }
        }
    }

    /// Judges the surplus by the gate that has just passed; `exact` if it left none.
    fn foresee(&mut self, exact: bool) {
        if exact || self.foreseen == Some(self.passed) {
            (self.trusted, self.doubts, self.foreseen) = (true, 0, None);
        } else if self.foreseen.is_some_and(|foreseen| foreseen < self.passed) {
            self.foreseen = None;
            self.doubts += 1;
            if !self.trusted || self.doubts > MAX_DOUBTS {
                self.distrust();
            }
        }
        if self.surplus > 0 && self.foreseen.is_none() {
            self.foreseen = Some(self.passed + self.surplus);
        }
    }

    /// What the target has sent so far says nothing of the gates to come.
    fn distrust(&mut self) {
        (self.surplus, self.foreseen, self.trusted, self.doubts) = (0, None, false, 0);
    }

    /// A new connection: nothing has been received on it, and the burst at `mark` begins it.
    pub(super) fn restart(&mut self, mark: &Mark) {
        self.last = Some(Opened::Ungated);
        // Bursts behind it that had passed before wait again: what let them pass is gone with the old connection.
        self.passed = mark.gate;
        self.origin = self.passed;
        self.base = 0;
        self.silences = 0;
        self.distrust();
    }
}

fn quiet_time(target_rtt: Option<Duration>) -> Duration {
    target_rtt.map_or(MAX_QUIET, |rtt| (rtt * QUIET_RTTS).clamp(MIN_QUIET, MAX_QUIET))
}

fn expected_quiet(target_rtt: Option<Duration>) -> Duration {
    target_rtt.map_or(EXPECTED_QUIET, |rtt| (rtt * EXPECTED_RTTS).max(EXPECTED_QUIET))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(gate: u64) -> Mark {
        Mark { offset: 10, before: 10, gate, captured: Time::ZERO, torn: false }
    }

    fn at(millis: u64, received: u64) -> View {
        View {
            now: Time::from_micros(millis * 1000),
            received,
            last_received: Time::from_micros(1000),
            hole: false,
            quiet_since: Time::from_micros(1000),
            replied: true,
            last_sent: Time::ZERO,
            target_rtt: Some(Duration::from_millis(1)),
            lag: Duration::ZERO,
        }
    }

    fn decide(gate: &Gate, mark_gate: u64, view: &View) -> Decision {
        gate.decide(&Config::default(), &mark(mark_gate), view)
    }

    #[test]
    fn opens_with_the_whole_response() {
        let gate = Gate::default();
        assert_eq!(decide(&gate, 100, &at(1, 100)), Decision::Open(Opened::Answered));
        assert_eq!(decide(&gate, 0, &at(1, 0)), Decision::Open(Opened::Ungated));
    }

    #[test]
    fn lags_by_the_clients_round_trip() {
        let gate = Gate::default();
        let view = View { lag: Duration::from_millis(30), ..at(1, 100) };
        assert_eq!(decide(&gate, 100, &view), Decision::Wait(Time::from_micros(31_000)));
        assert_eq!(
            decide(&gate, 100, &View { now: Time::from_micros(31_000), ..view }),
            Decision::Open(Opened::Answered)
        );
    }

    #[test]
    fn a_short_response_costs_its_quiet_time_once() {
        let mut gate = Gate::default();
        assert_eq!(decide(&gate, 100, &at(1, 90)), Decision::Wait(Time::from_micros(21_000)));
        assert_eq!(decide(&gate, 100, &at(21, 90)), Decision::Open(Opened::Short));
        gate.pass(&mark(100), 90, Opened::Short);
        assert_eq!(decide(&gate, 200, &at(2, 180)), Decision::Wait(Time::from_micros(3_000)));
        assert_eq!(decide(&gate, 200, &at(3, 180)), Decision::Open(Opened::Short), "two round trips");
        let near = View { target_rtt: Some(Duration::ZERO), ..at(2, 180) };
        assert_eq!(decide(&gate, 200, &near), Decision::Open(Opened::Short), "but one millisecond");
    }

    #[test]
    fn what_was_said_before_the_end_of_the_burst_does_not_cut_the_silence_short() {
        let view = View { replied: false, ..at(21, 90) };
        assert_eq!(decide(&Gate::default(), 100, &view), Decision::Wait(Time::from_micros(501_000)));
        let later = View { now: Time::from_micros(501_000), ..view };
        assert_eq!(decide(&Gate::default(), 100, &later), Decision::Open(Opened::Short));
    }

    #[test]
    fn what_comes_before_a_burst_can_leave_answers_earlier_ones() {
        let mut gate = Gate::default();
        gate.pass(&mark(100), 90, Opened::Short);
        gate.hold_back(100);
        assert_eq!(gate.target_response(100), 0);
        assert_eq!(decide(&gate, 110, &at(1, 100)), Decision::Wait(Time::from_micros(10_000_000)));
        gate.pass(&mark(110), 110, Opened::Answered);
        gate.hold_back(130);
        assert_eq!(gate.target_response(130), 0);
        assert_eq!(decide(&gate, 130, &at(1, 130)), Decision::Open(Opened::Answered), "sent ahead");
    }

    #[test]
    fn a_response_with_a_hole_is_not_short() {
        let view = View { hole: true, ..at(21, 90) };
        assert_eq!(decide(&Gate::default(), 100, &view), Decision::Wait(Time::from_micros(10_000_000)));
    }

    #[test]
    fn no_response_waits_for_the_timeout() {
        let gate = Gate::default();
        assert_eq!(decide(&gate, 100, &at(9_999, 0)), Decision::Wait(Time::from_micros(10_000_000)));
        assert_eq!(decide(&gate, 100, &at(10_000, 0)), Decision::Open(Opened::TimedOut));
    }

    /// A gate that has opened in vain, and then had an answer after so many milliseconds.
    fn after_a_vain_wait(took: u64) -> Gate {
        let mut gate = Gate::default();
        gate.pass(&mark(100), 100, Opened::Answered);
        gate.pass(&mark(200), 100, Opened::TimedOut);
        gate.answered_after(Duration::from_millis(took));
        gate.pass(&mark(300), 200, Opened::Answered);
        gate
    }

    #[test]
    fn a_target_that_waits_for_us_is_waited_for_once() {
        let gate = after_a_vain_wait(3);
        assert_eq!(decide(&gate, 400, &at(1, 200)), Decision::Wait(Time::from_micros(500_000)));
        assert_eq!(decide(&gate, 400, &at(500, 200)), Decision::Open(Opened::TimedOut));
        let view = View { hole: true, ..at(1, 210) };
        assert_eq!(decide(&gate, 400, &view), Decision::Wait(Time::from_micros(10_000_000)), "it answers");
    }

    #[test]
    fn silence_after_silence_is_waited_for_longer() {
        let mut gate = after_a_vain_wait(3);
        gate.answered_after(Duration::from_millis(200));
        assert_eq!(decide(&gate, 400, &at(1, 200)), Decision::Wait(Time::from_micros(800_000)));
        gate.pass(&mark(400), 200, Opened::TimedOut);
        assert_eq!(decide(&gate, 500, &at(1, 200)), Decision::Wait(Time::from_micros(3_200_000)));
        gate.pass(&mark(500), 200, Opened::TimedOut);
        assert_eq!(decide(&gate, 600, &at(1, 200)), Decision::Wait(Time::from_micros(10_000_000)));
        gate.answered_after(Duration::from_millis(800));
        gate.pass(&mark(600), 300, Opened::Answered);
        assert_eq!(decide(&gate, 700, &at(1, 300)), Decision::Wait(Time::from_micros(3_200_000)), "still");
    }

    #[test]
    fn an_answer_that_may_be_an_earlier_ones_proves_slowness() {
        let mut gate = after_a_vain_wait(3);
        gate.pass(&mark(400), 200, Opened::TimedOut);
        gate.answered_after(Duration::from_millis(126));
        gate.pass(&mark(500), 300, Opened::Answered);
        assert_eq!(decide(&gate, 600, &at(1, 300)), Decision::Wait(Time::from_micros(10_000_000)));
    }

    #[test]
    fn a_slow_target_has_the_whole_timeout() {
        let late = Decision::Wait(Time::from_micros(10_000_000));
        assert_eq!(decide(&after_a_vain_wait(501), 400, &at(1, 200)), late, "not vain");
        let mut gate = after_a_vain_wait(3);
        gate.answered_after(Duration::from_millis(501));
        assert_eq!(decide(&gate, 400, &at(1, 200)), late, "slow again");
        let mut gate = Gate::default();
        gate.pass(&mark(100), 100, Opened::Answered);
        gate.answered_after(Duration::from_millis(3));
        assert_eq!(decide(&gate, 400, &at(1, 100)), late, "nothing was waited for in vain");
    }

    #[test]
    fn a_target_that_is_ahead_on_the_whole_is_not_waited_for_long() {
        let mut gate = Gate::default();
        gate.begin(1000);
        gate.pass(&mark(1100), 150, Opened::Short);
        assert_eq!(decide(&gate, 1140, &at(1, 150)), Decision::Wait(Time::from_micros(501_000)));
        assert_eq!(decide(&gate, 1140, &at(501, 150)), Decision::Open(Opened::Answered));
        assert_eq!(decide(&gate, 1160, &at(501, 150)), Decision::Wait(Time::from_micros(10_000_000)));
    }

    #[test]
    fn responses_to_pipelined_requests_may_come_together() {
        let mut gate = Gate::default();
        gate.pass(&mark(100), 300, Opened::Answered);
        assert_eq!(decide(&gate, 200, &at(1, 300)), Decision::Wait(Time::from_micros(21_000)));
        assert_eq!(decide(&gate, 200, &at(21, 300)), Decision::Open(Opened::Answered));
        gate.pass(&mark(200), 300, Opened::Answered);
        assert_eq!(decide(&gate, 300, &at(1, 300)), Decision::Open(Opened::Answered), "to the byte");
        gate.pass(&mark(300), 300, Opened::Answered);
        assert_eq!(decide(&gate, 400, &at(21, 300)), Decision::Wait(Time::from_micros(10_000_000)));
    }

    #[test]
    fn a_surplus_that_proved_right_is_trusted() {
        let mut gate = Gate::default();
        gate.pass(&mark(100), 300, Opened::Answered);
        gate.pass(&mark(200), 400, Opened::Answered);
        gate.pass(&mark(300), 500, Opened::Answered);
        assert_eq!(decide(&gate, 400, &at(1, 500)), Decision::Open(Opened::Answered), "as foreseen at 300");
    }

    #[test]
    fn longer_responses_do_not_add_up() {
        let mut gate = Gate::default();
        gate.pass(&mark(100), 130, Opened::Answered);
        assert_eq!(decide(&gate, 200, &at(1, 230)), Decision::Open(Opened::Answered), "whole by itself");
        gate.pass(&mark(200), 260, Opened::Answered);
        gate.pass(&mark(300), 390, Opened::Answered);
        assert_eq!(decide(&gate, 400, &at(1, 390)), Decision::Wait(Time::from_micros(10_000_000)));
    }
}
