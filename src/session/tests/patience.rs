//! How long a target that says nothing is waited for.

use super::*;

/// Length of a request, and of the online server's response.
const REQUEST: u32 = 10;
const RESPONSE: u32 = 100;

/// A target that answers every whole request after `delay`, and says nothing before; of what the online
/// server answers, so many bytes come `early`, when half of the request is there. Returns when the halves
/// of requests left, and when their responses came.
fn replay(delay: Duration, early: &dyn Fn(u32) -> u32, requests: u32) -> (Vec<[Time; 2]>, Vec<Time>) {
    let mut b = Bench::established();
    let half = REQUEST / 2;
    for i in 0..requests {
        let (seq, ack) = (1 + i * REQUEST, 1 + i * RESPONSE);
        b.client(seq, ack, pa(), &[b'x'; 5]);
        b.client(seq + half, ack + early(i), pa(), &[b'y'; 5]);
    }
    let (mut arrived, mut said, mut answers, mut due) = (0, 0, Vec::new(), None);
    let mut left: Vec<Time> = Vec::new();
    while answers.len() < requests as usize {
        for sent in b.run() {
            if !sent.data.is_empty() && sent.seq > arrived {
                arrived = sent.seq - 1 + u32::try_from(sent.data.len()).expect("short");
                let halves = arrived / half;
                left.resize(halves as usize, b.now);
                b.target(1 + said, 1 + arrived, A, 0);
                if halves.is_multiple_of(2) {
                    due = Some(b.now + delay);
                }
            }
        }
        let next = b.session.poll_timeout().into_iter().chain(due).min().expect("something is to come");
        b.now = next;
        if due == Some(next) {
            due = None;
            let len = RESPONSE - early(u32::try_from(answers.len()).expect("few"));
            answers.push(b.now);
            b.target(1 + said, 1 + arrived, pa(), len);
            said += len;
        } else {
            b.session.handle_timeout(b.now);
        }
    }
    (left.chunks(2).map(|halves| [halves[0], halves[1]]).collect(), answers)
}

#[test]
fn a_target_that_waits_for_the_client_costs_one_response_timeout() {
    let (left, answers) = replay(20 * MS, &|_| 30, 6);
    let waits: Vec<_> = left.iter().map(|[first, second]| (*second - *first).as_millis()).collect();
    assert_eq!(waits, [10_000, 500, 500, 500, 500, 500]);
    assert!(left.windows(2).zip(&answers).all(|(pair, answer)| pair[1][0] >= *answer));
}

#[test]
fn a_slow_target_is_not_asked_before_it_has_answered() {
    for millis in [0, 100, 499, 501, 2_000, 9_900] {
        // The first and the fourth response are waited for in vain.
        let (left, answers) = replay(MS * millis, &|i| if i % 3 == 0 { 30 } else { 0 }, 8);
        for (pair, answer) in left.windows(2).zip(&answers) {
            assert!(pair[1][0] >= *answer, "{millis} ms: {left:?} {answers:?}");
        }
    }
}

#[test]
fn a_target_that_becomes_slow_is_waited_for_again() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"half");
    b.client(5, 31, pa(), b"whole");
    b.client(10, 101, pa(), b"two");
    b.client(13, 201, pa(), b"three");
    b.client(18, 301, pa(), b"four");
    b.run();
    b.target(1, 5, A, 0);
    assert_eq!(b.wait(Duration::from_secs(10)).last(), Some(&sent(pa(), 5, 1, b"whole")));
    b.target(1, 10, pa(), 100);
    assert_eq!(b.wait(10 * MS).last(), Some(&sent(pa(), 10, 101, b"two")), "vain");
    b.target(101, 13, A, 0);
    assert_eq!(b.wait(500 * MS), [sent(pa(), 13, 101, b"three")], "silence is not waited for");
    b.target(101, 18, A, 0);
    assert_eq!(b.wait(1_500 * MS), [], "but now");
    b.target(101, 18, pa(), 100);
    assert_eq!(b.wait(10 * MS).last(), Some(&sent(pa(), 18, 201, b"four")), "slow");
    b.target(201, 22, A, 0);
    b.client(22, 401, pa(), b"five");
    assert_eq!(b.wait(Duration::from_secs(9)), []);
    assert_eq!(b.wait(Duration::from_secs(1)), [sent(pa(), 22, 201, b"five")]);
}

#[test]
fn an_interim_response_is_not_taken_for_a_short_one() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"head");
    assert_eq!(b.run().len(), 1);
    b.target(1, 5, pa(), 25);
    b.client(5, 1, pa(), b"body");
    b.client(9, 126, pa(), b"next");
    assert_eq!(b.run(), [sent(pa(), 5, 26, b"body")], "of the same burst");
    b.target(26, 9, A, 0);
    assert_eq!(b.wait(499 * MS), [], "it may be at work");
    b.target(26, 9, pa(), 100);
    assert_eq!(b.run(), [sent(pa(), 9, 126, b"next")]);
}
