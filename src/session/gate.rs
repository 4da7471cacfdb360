//! When a burst may leave: after the target has answered what the online server had answered.
//!
//! A burst waits for `L` downstream bytes, the length of the online response that the client had
//! acknowledged before it sent the burst. `t` is what the target has sent since the burst before
//! left. A new version's responses differ in length, so `t >= L` is one witness of several. The gate opens
//!
//! * when `t == L`, or `t == L - d` with the difference `d` that responses of this target keep showing;
//! * at a candidate for the end of the response (see [`super::learned`]), once the target has been quiet for as long
//!   as such candidates need. If data never followed such a candidate, that is no time at all. While little is known,
//!   it is long. A burst that is late already waits for less certainty, so that waits do not add up;
//! * when the target has sent part of a response, nothing is known to be missing, and it has been quiet for a while.
//!   What it said before it had all of the burst may be an interim response, or that to the
//!   first of several requests, so without a word since then it has to be quiet for as long as it takes to begin a
//!   response;
//! * when `t < L`, but with what the target had sent beyond the gates before, its *surplus*, it is
//!   enough: a client that pipelines sends its next request while responses are still to come. A
//!   target whose responses are longer than the online server's has a surplus, too, so this holds
//!   only after a quiet time, until the surplus has proved right;
//! * when nothing came since the last burst, but the surplus is about as long: it holds the response if the target
//!   stays quiet for longer than it takes to begin one. Where both sides speak at will (HTTP/2), their frames cross;
//! * when the target has sent as much on the whole connection as the online server, and then nothing
//!   for long: both speak at will, and their messages do not answer each other;
//! * when the target has ended its stream;
//! * after the response timeout, which begins when the target has acknowledged what came before: what has not
//!   arrived is not answered.
//!
//! A wait for the response timeout was *vain* if nothing came, and the target answered soon once the
//! burst had left: it had been waiting for us. From then on silence is waited for no longer than its
//! answers take, with much to spare, and with more each time that one silence follows another. What
//! comes then may answer an earlier burst, if it does not come soon: the target has proved slow, and is
//! waited for as before. If most such waits of a target were vain, its new sessions do not begin with one.
//!
//! A surplus proves right when the client's acknowledgments come to exactly where the target's
//! response was: they *foresaw* each other. It proves wrong when they pass that place by, and what is
//! proved wrong is forgotten, so differences do not add up.
//!
//! A gate has opened too early if the target sends data that do not acknowledge the burst: they were
//! under way. This is counted, and taken back from what was learned.
//!
//! With latency emulation, the opening lags by the client's round-trip time, as the real client's
//! next request would.

use std::time::Duration;

use super::candidates::{Candidates, WriteEnd};
use super::config::{Config, GateMode};
use super::learned::{Known, Learned, Position};
use super::upstream::Mark;
use crate::wire::Time;

/// Bounds of the quiet time.
const MIN_QUIET: Duration = Duration::from_millis(20);
const MAX_QUIET: Duration = Duration::from_millis(500);
/// Quiet time as a multiple of the target's round-trip time.
const QUIET_RTTS: u32 = 8;
/// How long a candidate of which little is known is waited for at least.
const LITTLE_QUIET: Duration = Duration::from_millis(10);
/// Of so many gates that open at a candidate, one may open too early, if the burst is late by less than this.
const TIERS: [(u32, Duration); 3] =
    [(100, Duration::ZERO), (50, Duration::from_millis(50)), (20, Duration::from_millis(500))];
/// A burst that is later than this keeps production's distance to the one before it, wherever responses are known to
/// end at such candidates.
const KEEPS_PACE: Duration = Duration::from_millis(500);
/// A target that speaks at will is quiet after so many times the time it takes to begin a response.
const FIRST_BYTES: u32 = 2;
/// And at least after this.
const MIN_CROSSED: Duration = Duration::from_millis(2);

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
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
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
    /// No request has left on this connection.
    pub(super) greeting: bool,
    /// The target has ended its stream.
    pub(super) finished: bool,
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
    /// Where the response under way may have ended.
    candidates: Candidates,
    /// The candidate at which the last burst passed, and when that had come.
    passed_at: Option<(Position, Time)>,
    /// When the last burst that passed was captured, and when it passed.
    pace: Option<Time>,
    /// The longest that the target has taken to begin a response.
    slowest: Duration,
    /// How many of the last bursts passed although nothing had come.
    silences: u32,
    /// The last wait for the response timeout was vain, or was not, if there was one.
    impatient: Option<bool>,
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
    pub(super) fn decide(&self, config: &Config, learned: &Learned, mark: &Mark, view: &View) -> Decision {
        let wanted = self.online_response(mark);
        if wanted == 0 || config.gate == GateMode::None {
            return Decision::Open(Opened::Ungated);
        }
        let (due, how) = self.evidence(config, learned, mark, view);
        let latest = view.last_sent.max(mark.captured) + config.response_timeout;
        if view.now >= due {
            Decision::Open(how)
        } else if view.now >= latest {
            Decision::Open(Opened::TimedOut)
        } else {
            Decision::Wait(due.min(latest))
        }
    }

    /// When the burst at `mark` may leave if the target says nothing more, and for which reason.
    fn evidence(&self, config: &Config, learned: &Learned, mark: &Mark, view: &View) -> (Time, Opened) {
        let wanted = self.online_response(mark);
        let answered = self.target_response(view.received);
        let in_all = answered + self.surplus;
        let asked = view.last_sent.max(mark.captured);
        let enough = in_all == wanted || (self.trusted && in_all > wanted);
        let (due, how) = if answered == wanted || (enough && !learned.is_shorter()) {
            (view.last_received, Opened::Answered)
        } else if view.finished {
            (view.last_received, if in_all < wanted { Opened::Short } else { Opened::Answered })
        } else if answered > wanted {
            (self.longer(learned, mark, view), Opened::Answered)
        } else if in_all >= wanted {
            self.with_surplus(learned, mark, view, answered)
        } else if !view.hole && (if answered == 0 { in_all * 2 >= wanted } else { !view.replied }) {
            self.crossed(learned, view, asked, answered)
        } else if answered > 0 && !view.hole {
            (self.shorter(learned, mark, view), Opened::Short)
        } else if view.received >= mark.gate.saturating_sub(self.origin) {
            (view.quiet_since.max(view.last_sent) + self.long_silence(), Opened::Answered)
        } else if answered == 0 {
            return (asked + self.patience(config, learned), Opened::TimedOut);
        } else {
            return (asked + config.response_timeout, Opened::TimedOut);
        };
        (due + view.lag, how)
    }

    /// With the surplus it is enough, but the surplus has not proved right. It may come from a longer response before a
    /// shorter one, which then ends where shorter ones do.
    fn with_surplus(&self, learned: &Learned, mark: &Mark, view: &View, answered: u64) -> (Time, Opened) {
        if answered == 0 && learned.is_shorter() {
            return self.crossed(learned, view, view.last_sent, answered);
        }
        let quiet = quiet_time(view.target_rtt).max(self.slowest * 2);
        let quiet = view.quiet_since.max(view.last_sent) + quiet;
        let shorter = (answered > 0 && view.replied && !view.hole).then(|| self.shorter(learned, mark, view));
        match shorter {
            Some(due) if due < quiet => (due, Opened::Short),
            Some(_) | None => (quiet, Opened::Answered),
        }
    }

    /// The response is longer than production's: its end is waited for where it is known to go on.
    fn longer(&self, learned: &Learned, mark: &Mark, view: &View) -> Time {
        let Some(since) = self.candidates.since() else {
            return view.last_received + quiet_time(view.target_rtt);
        };
        let position = self.candidates.position(view.greeting, true);
        match learned.known(position, TIERS[0].0) {
            Known::Nothing => since + LITTLE_QUIET,
            Known::Little(wait) => since + wait.max(LITTLE_QUIET),
            Known::Wait(_) => self.at_candidate(learned, mark, view, position, since),
            Known::NeverEnds => view.last_received + quiet_time(view.target_rtt),
        }
    }

    /// The response is shorter than production's, so far.
    fn shorter(&self, learned: &Learned, mark: &Mark, view: &View) -> Time {
        let quiet_since = view.quiet_since.max(view.last_sent);
        let in_all = self.target_response(view.received) + self.surplus;
        let missing = self.online_response(mark).checked_sub(in_all).filter(|missing| *missing > 0);
        if missing.is_some() && missing == learned.difference().map(u64::from) {
            return view.last_received;
        }
        let Some(since) = self.candidates.since() else {
            return quiet_since + quiet_time(view.target_rtt);
        };
        let position = self.candidates.position(view.greeting, false);
        match learned.known(position, TIERS[0].0) {
            Known::Nothing | Known::NeverEnds => quiet_since + MAX_QUIET,
            Known::Little(wait) => since + wait.max(LITTLE_QUIET),
            Known::Wait(_) => self.at_candidate(learned, mark, view, position, since),
        }
    }

    /// When a burst may leave at a candidate of a class that is known: the later it is, the less certainty is asked.
    fn at_candidate(
        &self,
        learned: &Learned,
        mark: &Mark,
        view: &View,
        position: Position,
        since: Time,
    ) -> Time {
        let tiers = TIERS.into_iter().filter_map(|(one_in, late)| match learned.known(position, one_in) {
            Known::Wait(wait) => Some((since + wait).max(mark.captured + late)),
            Known::Nothing | Known::Little(_) | Known::NeverEnds => None,
        });
        let pace = self.pace.map(|before| {
            let distance = mark.captured - before;
            since.max(view.last_sent + distance).max(mark.captured + KEEPS_PACE)
        });
        tiers.chain(pace).min().unwrap_or(since + MAX_QUIET)
    }

    /// What the target has said may answer the burst before, but was under way when it took that: their messages cross.
    fn crossed(&self, learned: &Learned, view: &View, asked: Time, answered: u64) -> (Time, Opened) {
        let known = learned.first_byte_within().map(|within| (within * FIRST_BYTES).max(MIN_CROSSED));
        let silence = known.map_or(self.long_silence(), |known| known.min(self.long_silence()));
        let since = if answered == 0 { view.last_sent } else { view.quiet_since.max(asked) };
        (since + silence, Opened::Short)
    }

    /// Whether, and if not when, a connection may be left for the burst at `mark`, before which bytes
    /// are missing: once what it was sent is answered. How long that answer is nobody knows, because
    /// `mark` tells of the answer to the missing bytes too. Nor can silence be cut short, unless what was
    /// sent is known to hold no whole request.
    pub(super) fn decide_leaving(
        &self,
        config: &Config,
        learned: &Learned,
        mark: &Mark,
        view: &View,
    ) -> Decision {
        let due = if config.gate == GateMode::None {
            view.now
        } else if self.target_response(view.received) > 0 {
            let quiet = if view.replied { quiet_time(view.target_rtt) } else { self.long_silence() };
            view.quiet_since.max(view.last_sent) + quiet + view.lag
        } else if mark.torn {
            view.last_sent + self.long_silence().min(config.response_timeout)
        } else {
            view.last_sent + self.patience(config, learned)
        };
        if view.now >= due { Decision::Open(Opened::Short) } else { Decision::Wait(due) }
    }

    /// Silence that no answer of the target is likely to follow.
    fn long_silence(&self) -> Duration {
        MAX_QUIET.max(self.slowest * SLOWER)
    }

    /// How long a target that says nothing is waited for.
    fn patience(&self, config: &Config, learned: &Learned) -> Duration {
        let most = config.response_timeout;
        if self.impatient.unwrap_or_else(|| learned.is_impatient()) {
            most.min(self.long_silence() * SLOWER.pow(self.silences.min(8)))
        } else {
            most
        }
    }

    /// The target took so long to begin its response to the last burst that passed.
    pub(super) fn answered_after(&mut self, learned: &Learned, took: Duration) {
        let quick = match self.silences {
            0 => self.impatient == Some(true) && took <= MAX_QUIET,
            // The last of these waits was one for a `SLOWER`th of this, and the answer came in less than
            // a `SLOWER`th of that wait.
            n if self.impatient == Some(true) => {
                took * SLOWER * SLOWER <= self.long_silence() * SLOWER.pow(n.min(8))
            }
            _ => took <= MAX_QUIET,
        };
        if self.silences > 0 && quick && self.impatient != Some(true) {
            learned.waited_in_vain();
        }
        if self.silences > 0 || self.impatient.is_some() {
            self.impatient = Some(quick);
        }
        self.slowest = self.slowest.max(took);
    }

    /// The target has sent more, in order; before that it had sent `received`.
    pub(super) fn arrived(&mut self, now: Time, received: u64, end: WriteEnd) {
        self.candidates.arrived(now, received, end);
    }

    /// The target has ended its stream, and nothing came with that.
    pub(super) fn finished(&mut self, now: Time) {
        self.candidates.finished(now);
    }

    /// What has just come was sent before the target had the burst that passed last. If that passed because the
    /// response seemed to be over, it passed too early: `received` answers earlier bursts. Returns whether it did.
    pub(super) fn take_back(&mut self, now: Time, learned: &Learned, received: u64) -> bool {
        let Some((position, since)) = self.passed_at.take() else { return false };
        learned.was_early(position, now - since);
        self.base = received;
        true
    }

    /// The burst at `mark` passes.
    pub(super) fn pass(&mut self, learned: &Learned, mark: &Mark, view: &View, how: Opened) {
        let wanted = self.online_response(mark);
        let answered = self.target_response(view.received);
        let in_all = answered + self.surplus;
        let silent = how == Opened::TimedOut && answered == 0;
        self.silences = if silent { self.silences.saturating_add(1) } else { 0 };
        // Where surplus was forgotten, enough may have come though it does not seem so.
        let shorter = view.received < mark.gate.saturating_sub(self.origin) && in_all < wanted;
        self.learn(learned, view, wanted, how, shorter);
        self.last = Some(how);
        self.passed = self.passed.max(mark.gate);
        self.base = view.received;
        self.pace = Some(mark.captured);
        match how {
            Opened::Answered => {
                self.surplus = in_all - wanted.min(in_all);
                self.foresee(in_all == wanted);
            }
            Opened::Short => self.distrust(),
            Opened::TimedOut => {
                learned.timed_out();
                self.distrust();
            }
            // Nothing was waited for, so nothing was learned.
            Opened::Ungated => {}
        }
    }

    /// Tells `learned` where the response ended that let a burst pass.
    fn learn(&mut self, learned: &Learned, view: &View, wanted: u64, how: Opened, shorter: bool) {
        let answered = self.target_response(view.received);
        self.passed_at = None;
        if how == Opened::Short && shorter {
            learned.differed(wanted - answered - self.surplus);
        }
        if how == Opened::Answered && answered == wanted {
            learned.was_equal();
        } else if (how == Opened::Short && answered > 0) || (how == Opened::Answered && answered > wanted) {
            self.passed_at = self.candidates.since().map(|_| {
                let position = self.candidates.position(view.greeting, answered > wanted);
                learned.ended(position);
                (position, view.last_received)
            });
        }
        if matches!(how, Opened::Answered | Opened::Short) {
            self.candidates.conclude(learned, self.base + wanted, view.greeting);
        } else {
            self.candidates = Candidates::default();
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
        self.candidates = Candidates::default();
        self.passed_at = None;
        self.distrust();
    }
}

fn quiet_time(target_rtt: Option<Duration>) -> Duration {
    target_rtt.map_or(MAX_QUIET, |rtt| (rtt * QUIET_RTTS).clamp(MIN_QUIET, MAX_QUIET))
}
