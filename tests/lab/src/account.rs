//! The account of a run: what the online server answered was answered by the target, or tcpcopy's counters say what
//! became of it. For loads whose clients wait for each response, so that a request is a burst; one copy, all connections.
//!
//! What is exact, and what is not:
//!
//! * in packets: duplicated = captured + left out + dropped by the kernel, and captured = taken + unused + rejected;
//! * in bytes: captured = those with a fate + discarded + unused + still held;
//! * the bytes of the online server's requests are those captured, each once, unless the kernel dropped packets. Of those
//!   nobody knows the content, so they are bounds then: from what is missing in streams to a request for each packet;
//! * what the target acknowledged are the bytes of the requests it answered, but for the last request of each connection
//!   that was left before its end: of that it may have taken a part, or all without an answer;
//! * as many exchanges as requests that left: those that the target answered, and the same last ones.

use std::fmt::{Display, Formatter};

use anyhow::{Result, ensure};

use crate::counters::Counters;
use crate::records::Answers;

/// Packets that may come between a reading of the rules' counter and the rules' end.
const MOMENT: u64 = 50;

/// Where the bytes of the online server's requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    /// Of requests that the target did not answer.
    pub(crate) lost: u64,
    /// Not captured: the kernel dropped their packets.
    pub(crate) dropped: u64,
    /// Captured, and given up by tcpcopy for a reason that is counted.
    pub(crate) given_up: u64,
    /// Acknowledged by the target's TCP, but not answered.
    pub(crate) unanswered: u64,
}

impl Display for Account {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { lost, dropped, given_up, unanswered } = self;
        write!(
            f,
            "{lost} bytes lost: {dropped} dropped by the kernel, {given_up} given up, {unanswered} unanswered"
        )
    }
}

impl Account {
    /// Draws the account up; fails if it does not balance.
    pub(crate) fn of(online: &Answers, target: &Answers, counters: &Counters) -> Result<Self> {
        balance(counters)?;
        let of = |name: &str| counters.of(name);

        let (received, answered) = (online.request_bytes(), target.request_bytes());
        let longest = online.longest_request();
        let delivered = of("fates.delivered");
        let once = of("captured_bytes") - of("fates.duplicate");
        // A packet that comes again outside a session that replays is not known as such.
        let given_up = once - delivered;
        let lost_packets = of("kernel_dropped") + of("rejected") + of("malformed");
        ensure!(
            once <= received + given_up && received <= once + lost_packets * longest,
            "{received} bytes received by the online server, {once} captured, {lost_packets} packets lost"
        );
        let dropped = received.saturating_sub(once);
        ensure!(of("missing_bytes") <= dropped, "{} bytes missing, {dropped} dropped", of("missing_bytes"));

        let departures = departures(counters);
        ensure!(
            answered <= delivered && delivered <= answered + departures * longest,
            "{answered} bytes answered by the target, {delivered} acknowledged, {departures} connections left early"
        );
        let (exchanges, requests) = (of("exchanges"), target.total());
        ensure!(
            requests <= exchanges && exchanges <= requests + departures,
            "{requests} requests answered, {exchanges} left, {departures} connections left early"
        );
        let lost = received.saturating_sub(answered);
        Ok(Self { lost, dropped, given_up, unanswered: delivered - answered })
    }
}

/// Fails if packets or bytes that tcpcopy captured are in no counter.
pub(crate) fn balance(counters: &Counters) -> Result<()> {
    balance_within(counters, 0)
}

/// The same for a tcpcopy that was stopped while packets came: what its rules had counted is known up to the moment
/// before they went.
pub(crate) fn balance_under_load(counters: &Counters) -> Result<()> {
    balance_within(counters, MOMENT)
}

fn balance_within(counters: &Counters, late: u64) -> Result<()> {
    let all = |groups: &[&str]| groups.iter().map(|group| counters.group(group, &[])).sum::<u64>();
    let of = |name: &str| counters.of(name);
    let counted = of("captured") + of("left_out") + of("kernel_dropped");
    let (duplicated, most) = (of("duplicated"), of("duplicated") + late);
    ensure!((duplicated..=most).contains(&counted), "{duplicated} packets duplicated, {counted} counted");
    let packets = all(&["taken", "unused"]) + of("rejected");
    equal("packets captured", of("captured"), "counted", packets)?;
    let bytes = all(&["fates", "discarded_bytes", "unused_bytes"]) + of("buffered");
    equal("bytes captured", of("captured_bytes"), "accounted for", bytes)
}

/// Connections to the target that did not come to the end that their clients put to them.
fn departures(counters: &Counters) -> u64 {
    let reconnected = counters.of("connections").saturating_sub(counters.of("started"));
    reconnected + counters.of("unanswered") + counters.group("ended", &["completed", "client_reset"])
}

fn equal(what: &str, count: u64, how: &str, other: u64) -> Result<()> {
    ensure!(count == other, "{count} {what}, {other} {how}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Record;

    /// Requests of 10 bytes each.
    fn answers(ids: std::ops::Range<u64>) -> Answers {
        let peer = "10.0.0.1:1".parse().unwrap();
        let mut answers = Answers::default();
        for id in ids {
            let record = Record { id, status: 200, sent: 1, received: 10, complete: true, peer, body: None };
            answers.add(&record);
        }
        answers
    }

    fn account(target: std::ops::Range<u64>, line: &str) -> Result<Account> {
        let mut counters = Counters::default();
        counters.add_last(&format!("x INFO stats {line}")).unwrap();
        Account::of(&answers(0..10), &answers(target), &counters)
    }

    const ALL: &str = "duplicated=30 captured=30 taken=\"data=10 control=20\" captured_bytes=100 \
                       fates=\"delivered=100\" exchanges=10 started=10 connections=10 ended=\"completed=10\"";

    #[test]
    fn everything_arrived() {
        let whole = Account { lost: 0, dropped: 0, given_up: 0, unanswered: 0 };
        assert_eq!(account(0..10, ALL).unwrap(), whole);
    }

    #[test]
    fn a_lost_request_needs_a_reason() {
        assert!(account(0..9, ALL).is_err(), "acknowledged and not answered");
        let never_left = ALL.replace("delivered=100", "delivered=90").replace("exchanges=10", "exchanges=9");
        assert!(account(0..9, &never_left).is_err(), "without a fate");
        let shed = format!("{never_left} discarded_bytes=\"shed=10\"");
        let explained = Account { lost: 10, dropped: 0, given_up: 10, unanswered: 0 };
        assert_eq!(account(0..9, &shed).unwrap(), explained);
        let left = shed.replace("exchanges=9", "exchanges=10");
        assert!(account(0..9, &left).is_err(), "left and not answered");
    }

    #[test]
    fn the_kernel_drops_packets_not_more() {
        let dropped = ALL
            .replace("captured=30", "captured=29 kernel_dropped=1 missing_bytes=10")
            .replace("data=10", "data=9")
            .replace("captured_bytes=100", "captured_bytes=90")
            .replace("delivered=100", "delivered=90")
            .replace("exchanges=10", "exchanges=9");
        let explained = Account { lost: 10, dropped: 10, given_up: 0, unanswered: 0 };
        assert_eq!(account(0..9, &dropped).unwrap(), explained);
        let other = dropped.replace("captured=29 kernel_dropped=1", "captured=29 rejected=1");
        assert!(account(0..9, &other).is_err(), "duplicated packets are captured or dropped");
        let two = dropped.replace("bytes=90", "bytes=80").replace("delivered=90", "delivered=80");
        assert!(
            account(0..8, &two.replace("exchanges=9", "exchanges=8")).is_err(),
            "two requests in a packet"
        );
    }
}
