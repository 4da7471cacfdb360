//! What holds for every course of events: of the gate, and of the sender.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::candidates::WriteEnd;
use super::super::gate::{Decision, Gate, Opened, View};
use super::super::learned::Learned;
use super::super::sender::{Ack, Acked, Sender, Sizes};
use super::super::upstream::Mark;
use super::*;

/// What happens while a burst waits: so much time passes, then the target says so much.
type Step = (u32, u64);

fn mark(gate: u64, captured: Time) -> Mark {
    Mark { offset: 1, before: 1, gate, captured, torn: false }
}

/// A gate in the middle of its work: the view of the session is kept as the session keeps it.
struct Course {
    gate: Gate,
    learned: Learned,
    view: View,
}

impl Course {
    fn new() -> Self {
        let view = View {
            now: Time::ZERO,
            received: 0,
            last_received: Time::ZERO,
            hole: false,
            quiet_since: Time::ZERO,
            replied: true,
            last_sent: Time::ZERO,
            target_rtt: Some(MS),
            lag: Duration::ZERO,
            greeting: false,
            finished: false,
        };
        Self { gate: Gate::default(), learned: Learned::default(), view }
    }

    fn receive(&mut self, bytes: u64) {
        if bytes > 0 {
            let end = [WriteEnd::Short, WriteEnd::Whole, WriteEnd::None]
                [usize::from(!bytes.is_multiple_of(3)) + usize::from(bytes.is_multiple_of(7))];
            self.gate.arrived(self.view.now, self.view.received, end);
            self.view.received += bytes;
            self.view.last_received = self.view.now;
            self.view.quiet_since = self.view.now;
        }
    }

    /// Lets time pass and the target speak until the gate opens, and the burst pass.
    fn wait(&mut self, config: &Config, mark: &Mark, steps: &[Step]) -> Opened {
        let mut steps = steps.iter();
        loop {
            let wakes = match self.gate.decide(config, &self.learned, mark, &self.view) {
                Decision::Open(how) => {
                    self.gate.pass(&self.learned, mark, &self.view, how);
                    self.view.last_sent = self.view.now;
                    return how;
                }
                Decision::Wait(until) => until,
            };
            assert!(wakes > self.view.now, "a deadline in the past would spin");
            let said = steps.next().map(|(millis, bytes)| (self.view.now + MS * *millis, *bytes));
            match said {
                Some((at, bytes)) if at < wakes => {
                    self.view.now = at;
                    self.receive(bytes);
                }
                Some(_) | None => self.view.now = wakes,
            }
        }
    }
}

proptest! {
    /// A target that says nothing or has a hole in what it says is waited for to the end: no gate
    /// opens without a timeout before the target has said what was asked for since the beginning.
    #[test]
    fn no_gate_opens_early_while_the_target_has_more_to_say(
        bursts in vec((1u64..500, vec((0u32..3_000, 0u64..300), 0..6)), 1..12),
    ) {
        let config = Config::default();
        let mut course = Course::new();
        course.view.hole = true;
        let mut asked = 0;
        for (online, steps) in bursts {
            asked += online;
            let base = course.gate.target_response(course.view.received);
            prop_assert_eq!(base, 0, "counted from the last burst");
            let how = course.wait(&config, &mark(asked, course.view.now), &steps);
            prop_assert_ne!(how, Opened::Short);
            prop_assert_ne!(how, Opened::Ungated);
            if how == Opened::TimedOut {
                // What an answer says from here on is measured by what comes next.
                return Ok(());
            }
            prop_assert!(course.view.received >= asked, "{} of {asked}", course.view.received);
        }
    }

    /// Whatever the target says, a burst leaves, and not later than the response timeout after all
    /// before it has left and it was captured.
    #[test]
    fn every_gate_opens_in_time(
        bursts in vec(
            (0u64..500, 0u32..20_000, any::<bool>(), any::<bool>(), vec((0u32..3_000, 0u64..300), 0..20)),
            1..12,
        ),
        lag in 0u32..1_000,
    ) {
        let config = Config::default();
        let mut course = Course::new();
        course.view.lag = MS * lag;
        let mut asked = 0;
        for (online, later, hole, soon, steps) in bursts {
            asked += online;
            course.view.hole = hole;
            course.view.replied = soon;
            let mark = mark(asked, course.view.now + MS * later);
            course.view.now = mark.captured;
            let latest = mark.captured.max(course.view.last_sent) + config.response_timeout;
            course.wait(&config, &mark, &steps);
            prop_assert!(course.view.now <= latest);
            course.gate.answered_after(&course.learned, if soon { MS } else { MS * 900 });
        }
    }

    /// Equal responses open every gate at their last byte, however they are cut.
    #[test]
    fn equal_responses_open_exactly(bursts in vec((vec(1u64..2_000, 1..6), 0u32..5_000), 1..20)) {
        let config = Config::default();
        let mut course = Course::new();
        let mut asked = 0;
        for (parts, delay) in bursts {
            asked += parts.iter().sum::<u64>();
            let steps: Vec<_> =
                parts.iter().enumerate().map(|(i, len)| (if i == 0 { delay } else { 1 }, *len)).collect();
            let begin = course.view.now;
            let how = course.wait(&config, &mark(asked, begin), &steps);
            prop_assert_eq!((how, course.view.received), (Opened::Answered, asked));
            let last = u32::try_from(steps.len() - 1).expect("few");
            prop_assert_eq!(course.view.now, begin + MS * (delay + last));
        }
    }
}

/// What happens to a sender.
#[derive(Clone, Debug)]
enum Happens {
    /// More may leave.
    Limit(u64),
    /// The target's receiver takes in, in order of sending, all that left so far but what these say.
    Delivery(Vec<bool>),
    /// It acknowledges what it has, with such a window.
    Ack(u32),
    /// The timer goes off.
    Timer,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        (1u64..5_000).prop_map(Happens::Limit),
        vec(any::<bool>(), 0..8).prop_map(Happens::Delivery),
        prop_oneof![Just(0u32), 1u32..3_000].prop_map(Happens::Ack),
        Just(Happens::Timer),
    ]
}

/// A sender and what it sends to.
struct Stream {
    sender: Sender,
    now: Time,
    limit: u64,
    fin: bool,
    /// Sent, and neither lost nor delivered.
    under_way: Vec<(u64, u64)>,
    delivered: Vec<(u64, u64)>,
    /// The highest offset the target has ever allowed.
    allowed: u64,
    train: u32,
}

impl Stream {
    fn new(train: u32) -> Self {
        let mut sender = Sender::new(Seq(u32::MAX - 700), 0);
        sender.syn_sent(Time::ZERO);
        sender.established(Time::ZERO, Sizes { segment: 100, train }, 1_000, Some(MS));
        Self {
            sender,
            now: Time::ZERO,
            limit: 0,
            fin: false,
            under_way: Vec::new(),
            delivered: Vec::new(),
            allowed: 1_000,
            train,
        }
    }

    /// The end of what has been delivered without a hole.
    fn reached(&self) -> u64 {
        let mut ranges = self.delivered.clone();
        ranges.sort_unstable();
        ranges.iter().fold(0, |at, (from, to)| if *from <= at { at.max(*to) } else { at })
    }

    fn transmit(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..10_000 {
            let Some(range) = self.sender.next(self.now, self.limit, self.fin) else { return Ok(()) };
            prop_assert!(range.from <= range.to && range.to <= self.limit, "{range:?} of {}", self.limit);
            let len = range.to - range.from;
            prop_assert!(len <= u64::from(self.train).max(100), "{range:?} is longer than a train");
            let whole = len <= 100 || len % 100 == 0 || range.to == self.limit;
            prop_assert!(whole, "{range:?} has a short segment before the last of {}", self.limit);
            prop_assert!(!range.fin || (self.fin && range.to == self.limit), "{range:?} ends the stream");
            prop_assert!(range.to <= self.allowed || len <= 1, "{range:?}, allowed {}", self.allowed);
            // As it is cut on its way.
            let end = range.to + u64::from(range.fin);
            let cuts = (range.from + 100..range.to).step_by(100).chain([end]);
            let mut from = range.from;
            for to in cuts {
                self.under_way.push((std::mem::replace(&mut from, to), to));
            }
        }
        Err(TestCaseError::fail("it sends without end"))
    }

    fn acknowledge(&mut self, window: u32) -> Result<(), TestCaseError> {
        let offset = self.reached();
        self.allowed = self.allowed.max(offset + u64::from(window));
        let ack = Ack { offset, window, bare: true, rtt: None };
        let acked = self.sender.handle_ack(self.now, &ack);
        prop_assert!(acked != Acked::Unsent && acked != Acked::Old, "{acked:?}");
        prop_assert_eq!(self.sender.una(), offset);
        Ok(())
    }

    fn happen(&mut self, what: Happens) -> Result<(), TestCaseError> {
        self.now += MS;
        match what {
            Happens::Limit(more) => self.limit += more,
            Happens::Delivery(lost) => {
                let mut lost = lost.into_iter();
                let arrive = self.under_way.drain(..).filter(|_| !lost.next().unwrap_or(false));
                self.delivered.extend(arrive);
            }
            Happens::Ack(window) => self.acknowledge(window)?,
            Happens::Timer => self.time_out(),
        }
        self.transmit()
    }

    fn time_out(&mut self) {
        if let Some(due) = self.sender.timer() {
            self.now = self.now.max(due);
            self.sender.handle_timer(self.now);
        }
    }
}

proptest! {
    #[test]
    fn everything_is_sent_within_limit_and_window(course in vec(happens(), 0..60), train in 0_u32..900) {
        let mut stream = Stream::new(train);
        for what in course {
            stream.happen(what)?;
        }
        // From here on nothing is lost, and the stream ends.
        stream.fin = true;
        let end = stream.limit + 1;
        for _ in 0..2_000 {
            stream.transmit()?;
            stream.happen(Happens::Delivery(Vec::new()))?;
            stream.happen(Happens::Ack(1_000))?;
            if stream.sender.una() == end {
                break;
            }
            if stream.under_way.is_empty() {
                prop_assert!(stream.sender.timer().is_some(), "nothing is under way, and nothing will be");
                stream.happen(Happens::Timer)?;
            }
        }
        prop_assert_eq!((stream.sender.una(), stream.sender.timer()), (end, None));
    }
}
