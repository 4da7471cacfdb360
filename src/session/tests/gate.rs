//! The gate, decision by decision.

use super::super::candidates::WriteEnd;
use super::super::gate::{Decision, Gate, Opened, View};
use super::super::learned::{Learned, Position};
use super::super::upstream::Mark;
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
        greeting: false,
        finished: false,
    }
}

fn decide(gate: &Gate, mark_gate: u64, view: &View) -> Decision {
    gate.decide(&Config::default(), &Learned::default(), &mark(mark_gate), view)
}

/// The burst at `mark_gate` passes when `received` bytes have come.
fn pass(gate: &mut Gate, mark_gate: u64, received: u64, how: Opened) {
    gate.pass(&Learned::default(), &mark(mark_gate), &at(1, received), how);
}

fn answered_after(gate: &mut Gate, took: Duration) {
    gate.answered_after(&Learned::default(), took);
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

/// A gate at which the response stands at a candidate that came at 1 ms, after so many bytes.
fn at_candidate(received: u64) -> Gate {
    let mut gate = Gate::default();
    gate.arrived(Time::from_micros(1000), 0, WriteEnd::Short);
    assert_eq!(gate.target_response(received), received);
    gate
}

fn taught(learned: &Learned, gate: &Gate, wanted: u64, view: &View) -> Decision {
    gate.decide(&Config::default(), learned, &mark(wanted), view)
}

#[test]
fn a_shorter_response_waits_long_while_nothing_is_known() {
    let gate = at_candidate(90);
    assert_eq!(decide(&gate, 100, &at(1, 90)), Decision::Wait(Time::from_micros(501_000)));
    assert_eq!(decide(&gate, 100, &at(501, 90)), Decision::Open(Opened::Short));
    let cut = Gate::default();
    assert_eq!(
        decide(&cut, 100, &at(1, 90)),
        Decision::Wait(Time::from_micros(21_000)),
        "no write has ended"
    );
}

#[test]
fn shorter_responses_cost_nothing_once_they_are_known_to_end_so() {
    let learned = Learned::default();
    let mut gate = at_candidate(90);
    for n in 1..20 {
        let (wanted, received) = (100 * n, 90 * n - n * n % 13);
        let decision = taught(&learned, &gate, wanted, &at(1, received));
        match n {
            1 | 2 => assert_eq!(decision, Decision::Wait(Time::from_micros(501_000)), "{n}"),
            3..9 => assert_eq!(decision, Decision::Wait(Time::from_micros(11_000)), "{n}"),
            _ => assert_eq!(decision, Decision::Open(Opened::Short), "{n}"),
        }
        gate.pass(&learned, &mark(wanted), &at(1, received), Opened::Short);
        gate.arrived(Time::from_micros(1000), received, WriteEnd::Short);
    }
}

#[test]
fn a_constant_difference_is_expected_after_two() {
    let learned = Learned::default();
    let mut gate = at_candidate(999);
    for n in 1..3 {
        assert!(matches!(taught(&learned, &gate, 1000 * n, &at(1, 999 * n)), Decision::Wait(_)), "{n}");
        gate.pass(&learned, &mark(1000 * n), &at(1, 999 * n), Opened::Short);
        gate.arrived(Time::from_micros(1000), 999 * n, WriteEnd::Short);
    }
    assert_eq!(taught(&learned, &gate, 3000, &at(1, 2997)), Decision::Open(Opened::Short));
    assert!(matches!(taught(&learned, &gate, 3000, &at(1, 2996)), Decision::Wait(_)), "another difference");
    let other = at_candidate(499);
    assert_eq!(taught(&learned, &other, 500, &at(1, 499)), Decision::Open(Opened::Short), "another session");
}

#[test]
fn a_late_burst_waits_for_less_certainty() {
    let learned = Learned::default();
    let candidate = at_candidate(90).decide(&Config::default(), &learned, &mark(100), &at(1, 90));
    assert!(matches!(candidate, Decision::Wait(_)));
    let position = Position::Short(0);
    (0..1000).for_each(|_| learned.ended(position));
    (0..100).for_each(|_| learned.followed(position, 3 * MS));
    (0..15).for_each(|_| learned.followed(position, 30 * MS));
    let gate = at_candidate(90);
    let waits = |millis| taught(&learned, &gate, 100, &at(millis, 90));
    assert_eq!(waits(1), Decision::Wait(Time::from_micros(33_768)), "nearly all pauses");
    let late = View { last_received: Time::from_micros(90_000), ..at(90, 90) };
    let mut gate = Gate::default();
    gate.arrived(Time::from_micros(90_000), 0, WriteEnd::Short);
    assert_eq!(taught(&learned, &gate, 100, &late), Decision::Wait(Time::from_micros(94_096)), "one in 50");
}

#[test]
fn a_response_that_always_goes_on_is_waited_for() {
    let learned = Learned::default();
    (0..50).for_each(|_| learned.followed(Position::Short(0), 400 * MS));
    let gate = at_candidate(50);
    assert_eq!(taught(&learned, &gate, 100, &at(400, 50)), Decision::Wait(Time::from_micros(501_000)));
}

#[test]
fn a_gate_that_opened_too_early_is_taken_back() {
    let learned = Learned::default();
    let mut gate = at_candidate(50);
    (0..20).for_each(|_| learned.ended(Position::Short(0)));
    assert_eq!(taught(&learned, &gate, 100, &at(1, 50)), Decision::Open(Opened::Short));
    gate.pass(&learned, &mark(100), &at(1, 50), Opened::Short);
    assert!(gate.take_back(Time::from_micros(9_000), &learned, 100));
    assert_eq!(gate.target_response(100), 0, "the rest of the response before");
    assert!(!gate.take_back(Time::from_micros(9_000), &learned, 100), "once");
    let again = at_candidate(50);
    assert!(matches!(taught(&learned, &again, 100, &at(1, 50)), Decision::Wait(_)));
}

#[test]
fn a_surplus_that_holds_the_response_costs_no_timeout() {
    let learned = Learned::default();
    (0..20).for_each(|_| learned.answered_after(MS));
    learned.differed(1);
    let mut gate = Gate::default();
    gate.pass(&learned, &mark(100), &at(1, 190), Opened::Answered);
    assert_eq!(taught(&learned, &gate, 200, &at(1, 190)), Decision::Wait(Time::from_micros(2_048)));
    assert_eq!(taught(&learned, &gate, 200, &at(3, 190)), Decision::Open(Opened::Short));
}

#[test]
fn a_target_that_has_closed_is_not_waited_for() {
    let view = View { finished: true, ..at(1, 0) };
    assert_eq!(decide(&Gate::default(), 100, &view), Decision::Open(Opened::Short));
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
    pass(&mut gate, 100, 90, Opened::Short);
    gate.hold_back(100);
    assert_eq!(gate.target_response(100), 0);
    assert_eq!(decide(&gate, 110, &at(1, 100)), Decision::Wait(Time::from_micros(10_000_000)));
    pass(&mut gate, 110, 110, Opened::Answered);
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
    pass(&mut gate, 100, 100, Opened::Answered);
    pass(&mut gate, 200, 100, Opened::TimedOut);
    answered_after(&mut gate, Duration::from_millis(took));
    pass(&mut gate, 300, 200, Opened::Answered);
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
    answered_after(&mut gate, Duration::from_millis(200));
    assert_eq!(decide(&gate, 400, &at(1, 200)), Decision::Wait(Time::from_micros(800_000)));
    pass(&mut gate, 400, 200, Opened::TimedOut);
    assert_eq!(decide(&gate, 500, &at(1, 200)), Decision::Wait(Time::from_micros(3_200_000)));
    pass(&mut gate, 500, 200, Opened::TimedOut);
    assert_eq!(decide(&gate, 600, &at(1, 200)), Decision::Wait(Time::from_micros(10_000_000)));
    answered_after(&mut gate, Duration::from_millis(800));
    pass(&mut gate, 600, 300, Opened::Answered);
    assert_eq!(decide(&gate, 700, &at(1, 300)), Decision::Wait(Time::from_micros(3_200_000)), "still");
}

#[test]
fn an_answer_that_may_be_an_earlier_ones_proves_slowness() {
    let mut gate = after_a_vain_wait(3);
    pass(&mut gate, 400, 200, Opened::TimedOut);
    answered_after(&mut gate, Duration::from_millis(126));
    pass(&mut gate, 500, 300, Opened::Answered);
    assert_eq!(decide(&gate, 600, &at(1, 300)), Decision::Wait(Time::from_micros(10_000_000)));
}

#[test]
fn a_slow_target_has_the_whole_timeout() {
    let late = Decision::Wait(Time::from_micros(10_000_000));
    assert_eq!(decide(&after_a_vain_wait(501), 400, &at(1, 200)), late, "not vain");
    let mut gate = after_a_vain_wait(3);
    answered_after(&mut gate, Duration::from_millis(501));
    assert_eq!(decide(&gate, 400, &at(1, 200)), late, "slow again");
    let mut gate = Gate::default();
    pass(&mut gate, 100, 100, Opened::Answered);
    answered_after(&mut gate, Duration::from_millis(3));
    assert_eq!(decide(&gate, 400, &at(1, 100)), late, "nothing was waited for in vain");
}

#[test]
fn a_target_that_is_ahead_on_the_whole_is_not_waited_for_long() {
    let mut gate = Gate::default();
    gate.begin(1000);
    pass(&mut gate, 1100, 150, Opened::Short);
    assert_eq!(decide(&gate, 1140, &at(1, 150)), Decision::Wait(Time::from_micros(501_000)));
    assert_eq!(decide(&gate, 1140, &at(501, 150)), Decision::Open(Opened::Answered));
    assert_eq!(decide(&gate, 1160, &at(501, 150)), Decision::Wait(Time::from_micros(10_000_000)));
}

#[test]
fn responses_to_pipelined_requests_may_come_together() {
    let mut gate = Gate::default();
    pass(&mut gate, 100, 300, Opened::Answered);
    assert_eq!(decide(&gate, 200, &at(1, 300)), Decision::Wait(Time::from_micros(21_000)));
    assert_eq!(decide(&gate, 200, &at(21, 300)), Decision::Open(Opened::Answered));
    pass(&mut gate, 200, 300, Opened::Answered);
    assert_eq!(decide(&gate, 300, &at(1, 300)), Decision::Open(Opened::Answered), "to the byte");
    pass(&mut gate, 300, 300, Opened::Answered);
    assert_eq!(decide(&gate, 400, &at(21, 300)), Decision::Wait(Time::from_micros(10_000_000)));
}

#[test]
fn a_surplus_that_proved_right_is_trusted() {
    let mut gate = Gate::default();
    pass(&mut gate, 100, 300, Opened::Answered);
    pass(&mut gate, 200, 400, Opened::Answered);
    pass(&mut gate, 300, 500, Opened::Answered);
    assert_eq!(decide(&gate, 400, &at(1, 500)), Decision::Open(Opened::Answered), "as foreseen at 300");
}

#[test]
fn longer_responses_do_not_add_up() {
    let mut gate = Gate::default();
    pass(&mut gate, 100, 130, Opened::Answered);
    assert_eq!(decide(&gate, 200, &at(1, 230)), Decision::Open(Opened::Answered), "whole by itself");
    pass(&mut gate, 200, 260, Opened::Answered);
    pass(&mut gate, 300, 390, Opened::Answered);
    assert_eq!(decide(&gate, 400, &at(1, 390)), Decision::Wait(Time::from_micros(10_000_000)));
}
