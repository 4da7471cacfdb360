//! When things differ from production: resets, early closes, holes in the capture, joins, limits.

use std::sync::Arc;
use std::time::Duration;

use super::*;

#[test]
fn a_request_that_was_taken_and_not_answered_is_counted() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.run();
    b.target(1, 4, A, 0);
    assert_eq!(b.target(1, 4, Flags::RST, 0), Answer::Reset);
    b.run();
    assert_eq!(b.events.first(), Some(&Event::Unanswered));
    assert_eq!(b.outcomes(), [(3, 0, Outcome::TargetReset)]);

    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.run();
    b.target(1, 4, pa(), 10);
    assert_eq!(b.target(11, 4, Flags::RST, 0), Answer::Reset);
    b.run();
    assert_eq!(b.outcomes(), [(3, 10, Outcome::TargetReset)], "answered in part");
    assert_eq!(b.events.len(), 1);
}

#[test]
fn what_comes_while_the_window_is_closed_answers_nothing() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.run();
    let at = |seq, ack, flags, window, payload_len| TcpHeader {
        seq: TARGET_ISN.add(seq),
        ack: CLIENT_ISN.add(ack),
        window,
        payload_len,
        ..client_header(0, 0, flags, 0)
    };
    b.session.handle_target(b.now, &at(1, 4, pa(), 0, 100));
    b.client(4, 101, pa(), b"two");
    assert_eq!(b.run(), [], "its gate is open, the window is not");
    b.session.handle_target(b.now, &at(101, 4, pa(), 500, 10));
    assert_eq!(b.run(), [sent(pa(), 4, 111, b"two")]);
    b.target(111, 7, A, 0);
    assert_eq!(b.target(111, 7, Flags::RST, 0), Answer::Reset);
    b.run();
    assert!(b.events.contains(&Event::Unanswered));
}

#[test]
fn a_reset_in_time_wait_is_no_failure() {
    let mut b = Bench::established();
    b.client(1, 1, Flags::FIN | A, b"");
    b.run();
    b.target(1, 2, Flags::FIN | A, 0);
    assert_eq!(b.run(), [sent(A, 2, 2, b"")]);
    assert_eq!(b.target(2, 2, Flags::RST, 0), Answer::Reset);
    b.run();
    assert_eq!(b.ended(), Some(End::Completed));
}

#[test]
fn a_reset_for_want_of_the_last_acknowledgment_is_no_failure() {
    for (closed, end) in [(true, End::Completed), (false, End::TargetReset)] {
        let mut b = Bench::established();
        let target = if closed { Flags::FIN } else { Flags::NONE };
        b.target(1, 1, target | A, 0);
        b.client(1, 1 + u32::from(closed), Flags::FIN | A, b"");
        let ours: Vec<_> = b.run().into_iter().filter(|sent| sent.flags.fin()).collect();
        assert_eq!(ours.len(), 1, "the FIN leaves");
        // The target's acknowledgment of it was lost, and it has forgotten the connection since.
        assert_eq!(b.target(1 + u32::from(closed), 0, Flags::RST, 0), Answer::Reset);
        b.run();
        assert_eq!(b.ended(), Some(end), "closed by the target: {closed}");
    }
}

#[test]
fn client_segments_that_cannot_belong_to_the_connection_change_nothing() {
    let mut b = Bench::established();
    assert_eq!(b.client(1, 1, pa(), b"one"), Taken::Data);
    assert_eq!(b.client(5 + (1 << 30), 1, pa(), b"far ahead"), Taken::OutOfWindow);
    assert_eq!(b.client(5 + (1 << 30), 1, Flags::FIN | pa(), b"far ahead"), Taken::OutOfWindow);
    assert_eq!(b.client(5 + (1 << 31), 1, pa(), b"half the space away"), Taken::Duplicate);
    assert_eq!(b.client(1 << 30, 1, Flags::RST, b""), Taken::Control, "as far as a window reaches");
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"one")]);

    let mut b = Bench::established();
    b.client(1, 1, Flags::FIN | pa(), b"end");
    assert_eq!(b.client(4, 1, pa(), b"after the end"), Taken::OutOfWindow);
    assert_eq!(b.run(), [sent(Flags::FIN | pa(), 1, 1, b"end")]);
    assert_eq!(b.session.buffered(), 3);
}

#[test]
fn a_connection_that_is_never_joined_ends_by_itself() {
    let now = Time::from_micros(1);
    let join = || Session::join(now, Arc::default(), Arc::default(), &client_header(100, 500, pa(), 3));
    let mut b = Bench { session: join(), now, events: Vec::new(), timestamps: false };
    b.client(100, 500, pa(), b"mid");
    assert_eq!(b.client(103, 500, Flags::FIN | A, b""), Taken::BeforeJoin);
    assert_eq!((b.run(), b.ended()), (vec![], Some(End::NotJoined)));

    let mut b = Bench { session: join(), now, events: Vec::new(), timestamps: false };
    b.client(100, 500, pa(), b"mid");
    assert_eq!((b.wait(Duration::from_secs(700)), b.ended()), (vec![], Some(End::NotJoined)));
}

#[test]
fn a_target_that_never_closes_is_left_after_a_while() {
    let mut b = Bench::established();
    b.client(1, 1, Flags::FIN | A, b"");
    b.run();
    b.target(1, 2, A, 0);
    assert_eq!(b.wait(Duration::from_secs(59)), []);
    let flags: Vec<_> = b.wait(Duration::from_secs(2)).iter().map(|s| s.flags).collect();
    assert_eq!((flags, b.ended()), (vec![Flags::RST | A], Some(End::Lingering)));
    assert_eq!(b.target(1, 2, A, 0), Answer::Stray, "nobody is there any more");
}

#[test]
fn a_client_reset_becomes_one() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"get");
    b.run();
    b.client(4, 101, Flags::RST | A, b"");
    assert_eq!(b.run(), [], "after the response, as the client did");
    b.target(1, 4, pa(), 100);
    assert_eq!(b.run().first().map(|s| (s.flags, s.seq)), Some((Flags::RST | A, 4)));
    assert_eq!(b.ended(), Some(End::ClientReset));
}

#[test]
fn a_target_that_closes_early_gets_the_next_request_on_a_new_connection() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.run();
    b.target(1, 4, Flags::FIN | A, 100);
    b.client(4, 101, pa(), b"two");
    let flags: Vec<_> = b.run().iter().map(|s| (s.flags, s.seq)).collect();
    assert_eq!(
        flags,
        [(Flags::RST | A, 4), (Flags::SYN, NEXT + 3)],
        "the old one ends, SYN precedes the byte"
    );
    assert_eq!(b.outcomes(), [(3, 101, Outcome::TargetClosed)], "its FIN takes a number");
    b.target(0, NEXT + 4, Flags::SYN | A, 0);
    assert_eq!(b.run(), [sent(pa(), NEXT + 4, 1, b"two")]);
    assert_eq!(b.skipped(), 0);
}

#[test]
fn a_reset_resends_the_request_that_was_not_acknowledged() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.run();
    b.target(1, 4, pa(), 100);
    b.client(4, 101, pa(), b"two");
    b.run();
    assert_eq!(b.target(101, 4, Flags::RST, 0), Answer::Reset);
    assert_eq!(b.run(), [sent(Flags::SYN, NEXT + 3, 0, b"")]);
    b.target(0, NEXT + 4, Flags::SYN | A, 0);
    assert_eq!(b.run(), [sent(pa(), NEXT + 4, 1, b"two")]);
    assert_eq!(b.outcomes(), [(3, 100, Outcome::Answered)], "the second is not over");
    b.target(1, NEXT + 7, pa(), 50);
    b.session.end(b.now, End::Shed);
    b.run();
    assert_eq!(b.outcomes(), [(3, 100, Outcome::Answered), (3, 50, Outcome::Ended)]);
}

#[test]
fn requests_that_are_thrown_back_are_reported_once() {
    for again in [true, false] {
        let mut b = Bench::established();
        b.client(1, 1, pa(), b"one");
        b.client(4, 101, pa(), b"two");
        b.run();
        b.target(1, 1, pa(), 100);
        b.run();
        assert_eq!(b.outcomes(), [(3, 100, Outcome::Answered)]);
        // Nothing of either was acknowledged.
        b.target(101, 1, Flags::RST, 0);
        assert_eq!(b.run(), [sent(Flags::SYN, NEXT, 0, b"")]);
        if again {
            b.target(0, NEXT + 1, Flags::SYN | A, 0);
            assert_eq!(b.run(), [sent(pa(), NEXT + 1, 1, b"one")]);
            b.target(1, NEXT + 4, pa(), 100);
            assert_eq!(b.run(), [sent(pa(), NEXT + 4, 101, b"two")], "it waits for its gate again");
        }
        b.session.end(b.now, End::Shed);
        b.run();
        assert_eq!(b.outcomes(), [(3, 100, Outcome::Answered), (3, 0, Outcome::Ended)]);
    }
}

#[test]
fn what_does_not_arrive_is_not_waited_for_in_vain() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.client(4, 101, pa(), b"two");
    b.run();
    b.wait(Duration::from_secs(30));
    b.target(1, 4, A, 0);
    assert_eq!(b.run(), [], "its time begins when the target has it");
    b.wait(Duration::from_secs(9));
    b.target(1, 4, pa(), 100);
    assert_eq!(b.run(), [sent(pa(), 4, 101, b"two")]);
}

#[test]
fn a_request_that_never_left_is_no_exchange() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.client(4, 101, pa(), b"two");
    b.run();
    b.session.end(b.now, End::Idle);
    b.run();
    assert_eq!(b.outcomes(), [(3, 0, Outcome::Ended)]);
}

#[test]
fn only_a_reset_at_rcv_nxt_is_believed() {
    let mut b = Bench::established();
    b.run();
    assert_eq!(b.target(50, 1, Flags::RST, 0), Answer::Unacceptable);
    assert_eq!(b.run(), [sent(A, 1, 1, b"")], "challenge ACK");
    assert_eq!(b.target(5_000_000, 1, Flags::RST, 0), Answer::Unacceptable);
    assert_eq!(b.target(1, 1, Flags::RST, 0), Answer::Reset);
}

#[test]
fn an_old_half_open_connection_on_the_target_is_reset() {
    let mut b = Bench::new(Config::default());
    b.run();
    assert_eq!(b.target(9, 5000, A, 0), Answer::Unacceptable);
    assert_eq!(b.run(), [sent(Flags::RST, 5000, 0, b"")]);
}

#[test]
fn a_connection_captured_mid_stream_joins_at_a_request_boundary() {
    let now = Time::from_micros(1);
    let header = client_header(100, 500, pa(), 3);
    let session = Session::join(now, Arc::default(), Arc::default(), &header);
    let mut b = Bench { session, now, events: Vec::new(), timestamps: false };
    assert_eq!(b.client(100, 500, pa(), b"mid"), Taken::BeforeJoin);
    assert_eq!(b.client(103, 500, pa(), b"dle"), Taken::BeforeJoin);
    assert_eq!(b.client(106, 900, pa(), b"next"), Taken::Data);
    assert_eq!(b.run(), [sent(Flags::SYN, 105, 0, b"")]);
    b.target(0, 106, Flags::SYN | A, 0);
    assert_eq!(b.run(), [sent(pa(), 106, 1, b"next")], "the first request waits for nothing");
}

#[test]
fn a_connection_captured_mid_stream_joins_behind_no_hole() {
    let now = Time::from_micros(1);
    let session = Session::join(now, Arc::default(), Arc::default(), &client_header(100, 500, pa(), 3));
    let mut b = Bench { session, now, events: Vec::new(), timestamps: false };
    b.client(100, 500, pa(), b"mid");
    assert_eq!(b.client(104, 900, pa(), b"torn"), Taken::BeforeJoin, "a byte of it was lost");
    b.client(108, 990, A, b"");
    assert_eq!(b.client(108, 990, pa(), b"next"), Taken::Data, "an ACK before it changes nothing");
}

#[test]
fn a_connection_captured_mid_stream_is_not_joined_within_a_request() {
    let now = Time::from_micros(1);
    let session = Session::join(now, Arc::default(), Arc::default(), &client_header(100, 500, pa(), 4));
    let mut b = Bench { session, now, events: Vec::new(), timestamps: false };
    b.client(100, 500, pa(), b"post");
    b.client(104, 500, A, &[b'x'; 600]);
    assert_eq!(b.client(704, 530, A, &[b'x'; 600]), Taken::BeforeJoin, "the server has said something");
    assert_eq!(b.client(1304, 560, pa(), b"end"), Taken::BeforeJoin);
    assert_eq!(b.client(1307, 560, pa(), b"next"), Taken::Data);
    assert_eq!(b.client(1311, 560, A, &[b'x'; 600]), Taken::Data);
    b.client(1911, 590, A, b"x");
    b.run();
    b.target(0, 1307, Flags::SYN | A, 0);
    assert_eq!(b.run().iter().map(|s| s.data.len()).sum::<usize>(), 605, "nor gated within one");
}

#[test]
fn a_hole_in_the_capture_costs_what_it_tears() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.run();
    b.target(1, 4, pa(), 100);
    // "two", which follows, was lost by the capture; "three" may be its end.
    b.client(7, 201, pa(), b"three");
    b.wait(Duration::from_secs(2));
    assert!(b.events.is_empty(), "it may still come");
    b.client(12, 301, pa(), b"four");
    let after = b.wait(Duration::from_secs(2));
    let flags: Vec<_> = after.iter().map(|s| (s.flags, s.seq)).collect();
    assert_eq!(flags[..2], [(Flags::RST | A, 4), (Flags::SYN, NEXT + 11)]);
    b.target(0, NEXT + 12, Flags::SYN | A, 0);
    assert_eq!(b.run(), [sent(pa(), NEXT + 12, 1, b"four")]);
    assert_eq!(b.skipped(), 8);
    assert_eq!(b.outcomes(), [(3, 100, Outcome::Left)]);
    let mut ledger = Ledger::default();
    b.session.settle(&mut ledger);
    let fates: Vec<_> = ledger.fates.nonzero().collect();
    assert_eq!(fates, [("delivered", 3), ("torn", 5)]);
    assert_eq!((ledger.missing, b.session.buffered()), (3, 4));
}

#[test]
fn whole_requests_before_a_hole_are_delivered() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.client(4, 101, pa(), b"two");
    b.client(10, 301, pa(), b"four");
    b.client(14, 401, pa(), b"five");
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"one")]);
    b.wait(Duration::from_secs(4));
    b.target(1, 4, pa(), 100);
    assert_eq!(b.run(), [sent(pa(), 4, 101, b"two")], "though the hole was given up long since");
    b.target(101, 7, A, 0);
    assert_eq!(b.wait(Duration::from_secs(1)), [], "its response is awaited");
    b.target(101, 7, pa(), 80);
    let after = b.wait(Duration::from_secs(1));
    let flags: Vec<_> = after.iter().map(|s| (s.flags, s.seq)).collect();
    assert_eq!(flags, [(A, 7), (Flags::RST | A, 7), (Flags::SYN, NEXT + 13)]);
    b.target(0, NEXT + 14, Flags::SYN | A, 0);
    assert_eq!(b.run(), [sent(pa(), NEXT + 14, 1, b"five")]);
    assert_eq!(b.skipped(), 7);
}

/// A session that has sent a request and the beginning of one that a hole tears, then "next" behind it.
/// How long it waits until it leaves the connection.
fn left_after(head: &[u8]) -> Duration {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.run();
    b.target(1, 4, pa(), 100);
    b.client(4, 101, pa(), head);
    let body = 4 + u32::try_from(head.len()).expect("short");
    b.client(body, 101, A, &[b'x'; 600]);
    b.client(body + 800, 101, pa(), b"end");
    b.client(body + 803, 201, pa(), b"next");
    b.run();
    b.target(101, body + 600, A, 0);
    let since = b.now;
    while !b.wait(MS).iter().any(|s| s.flags == Flags::SYN) {}
    b.now - since
}

#[test]
fn a_torn_request_is_not_answered_so_its_answer_is_not_waited_for() {
    let gap = Config::default().gap_timeout;
    let torn = left_after(b"");
    assert!(torn >= gap && torn <= gap + 10 * MS, "{torn:?}");
    let timeout = Config::default().response_timeout;
    let perhaps = left_after(b"whole?");
    assert!(perhaps >= timeout && perhaps <= timeout + 10 * MS, "{perhaps:?}");
}

#[test]
fn a_close_behind_a_hole_ends_the_session() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.run();
    b.target(1, 4, pa(), 100);
    b.client(7, 201, Flags::FIN | A, b"");
    b.wait(Duration::from_secs(4));
    assert_eq!((b.ended(), b.skipped()), (Some(End::Completed), 3));
}

#[test]
fn a_reused_port_ends_the_old_connection_after_its_data() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"bye");
    assert!(b.session.is_new_connection(&client_header(9, 0, Flags::SYN, 0)));
    b.session.client_is_gone(b.now);
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"bye")], "a reset now could overtake it, or outlive it");
    b.target(1, 4, A, 0);
    let flags: Vec<_> = b.run().iter().map(|s| (s.flags, s.seq)).collect();
    assert_eq!(flags, [(Flags::RST | A, 4)]);
    assert_eq!(b.ended(), Some(End::ClientReset));
}

#[test]
fn limits_end_the_session() {
    let mut b = Bench::new(Config { buffer_limit: 10, ..Config::default() });
    b.client(1, 1, pa(), b"more than ten");
    b.run();
    assert_eq!(b.ended(), Some(End::BufferLimit));
    assert_eq!(b.client(14, 1, pa(), b"late"), Taken::Late);

    let mut b = Bench::established();
    b.wait(Duration::from_secs(700));
    assert_eq!(b.ended(), Some(End::Idle));
}

#[test]
fn a_cut_payload_counts_as_lost() {
    let mut b = Bench::established();
    let header = client_header(1, 1, pa(), 1000);
    assert_eq!(b.session.handle_client(b.now, &header, b"only this"), Taken::Cut);
    assert_eq!(b.run(), []);
    let mut ledger = Ledger::default();
    b.session.settle(&mut ledger);
    assert_eq!(ledger.fates.nonzero().collect::<Vec<_>>(), [("cut", 1000)]);
}

#[test]
fn data_cut_off_a_syn_count_as_lost() {
    let syn = client_header(0, 0, Flags::SYN, 9);
    let mut session = Session::open(Time::ZERO, Arc::default(), Arc::default(), &syn);
    assert_eq!(session.handle_client(Time::ZERO, &syn, b""), Taken::Cut);
    let mut ledger = Ledger::default();
    session.settle(&mut ledger);
    assert_eq!(ledger.fates.nonzero().collect::<Vec<_>>(), [("cut", 9)]);
}
