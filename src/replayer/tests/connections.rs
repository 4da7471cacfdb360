//! When connections to a target are opened: the budget, the bucket, the canary.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::session::ISS_STEP;

fn flags(sent: &[Transmit]) -> Vec<Flags> {
    sent.iter().map(|transmit| transmit.header.flags).collect()
}

fn syns(sent: &[Transmit]) -> usize {
    sent.iter().filter(|transmit| transmit.header.flags == Flags::SYN).count()
}

fn client(number: usize) -> String {
    format!("10.9.0.1:{}", 1000 + number)
}

/// The SYN-ACK to a SYN.
fn accept(b: &mut Bench, syn: &Transmit) -> Vec<Transmit> {
    b.target(syn.src, header(500, syn.header.seq.add(1).0, Flags::SYN | A, 0))
}

/// Lets `span` pass, and returns what leaves with the time.
fn pass(b: &mut Bench, span: Duration) -> Vec<(Time, Transmit)> {
    let until = b.now + span;
    let mut sent: Vec<_> = b.run().into_iter().map(|transmit| (b.now, transmit)).collect();
    while let Some(due) = b.replayer.poll_timeout().filter(|due| *due <= until) {
        b.now = b.now.max(due);
        b.replayer.handle_timeout(b.now);
        sent.extend(b.run().into_iter().map(|transmit| (b.now, transmit)));
    }
    b.now = until;
    sent
}

/// The same with a target that accepts all connections, once it is asked for `first`.
fn pass_accepting(b: &mut Bench, first: Vec<Transmit>, span: Duration) -> Vec<(Time, Transmit)> {
    let until = b.now + span;
    let mut all = Vec::new();
    let mut sent = first;
    loop {
        for transmit in sent.iter().filter(|sent| sent.header.flags == Flags::SYN) {
            accept(b, transmit);
        }
        all.extend(sent.into_iter().map(|transmit| (b.now, transmit)));
        sent = b.run();
        if sent.is_empty() {
            let Some(due) = b.replayer.poll_timeout().filter(|due| *due <= until) else { break };
            b.now = b.now.max(due);
            b.replayer.handle_timeout(b.now);
            sent = b.run();
        }
    }
    b.now = until;
    all
}

/// The milliseconds after `since` at which SYNs left.
fn syn_times(sent: &[(Time, Transmit)], since: Time) -> Vec<u128> {
    let syns = sent.iter().filter(|(_, transmit)| transmit.header.flags == Flags::SYN);
    syns.map(|(at, _)| (*at - since).as_millis()).collect()
}

#[test]
fn at_the_start_one_connection_is_tried_and_the_others_follow_its_answer_in_order() {
    let mut b = Bench::at_start(config());
    let first = b.syn(&client(0));
    assert_eq!(first.len(), 1);
    for number in 1..30 {
        assert!(b.syn(&client(number)).is_empty());
    }
    let answered = b.now;
    let sent = pass_accepting(&mut b, first, MS * 40);
    let order: Vec<_> = sent.iter().filter(|(_, sent)| sent.header.flags == Flags::SYN).collect();
    assert!(order.iter().map(|(_, sent)| sent.src).eq((0..30).map(|number| addr(&client(number)))));
    let times = syn_times(&sent, answered);
    assert_eq!((times.iter().filter(|at| **at == 0).count(), times.last()), (12, Some(&18)), "{times:?}");
    assert_eq!(b.syn(&client(30)).len(), 1, "a new one leaves at once");
    assert_eq!((b.counters().canaries, b.counters().reconnects), (1, 0));
}

#[test]
fn a_new_connection_does_not_wait_behind_those_that_resume() {
    let mut b = Bench::new(Config { max_sessions: 1000, ..config() });
    b.replayer.set_reachable(b.now, false);
    (0..250).for_each(|number| drop(b.syn(&client(number))));
    let back = b.now;
    b.replayer.set_reachable(b.now, true);
    let mut sent = b.run();
    assert_eq!(sent.len(), 11);
    sent.extend(b.syn(&client(300)));
    assert_eq!(sent.len(), 12);
    let sent = pass_accepting(&mut b, sent, MS * 300);
    assert_eq!(syn_times(&sent, back).iter().filter(|at| **at <= 239).count(), 251);
    assert_eq!(b.counters().connections, 251);
}

#[test]
fn without_an_intercept_connections_are_taken_back_and_made_anew_when_it_is_back() {
    let mut b = Bench::new(config());
    (1..=3).for_each(|number| drop(b.syn(&client(number))));
    b.replayer.set_reachable(b.now, false);
    assert_eq!(flags(&b.run()), [Flags::RST; 3]);
    assert_eq!(pass(&mut b, MS * 5_000).len(), 0, "no SYN again");
    b.replayer.set_reachable(b.now, true);
    let sent = b.run();
    assert_eq!(
        (flags(&sent), b.counters().taken_back),
        (vec![Flags::SYN; 3], 3),
        "the target is not to blame"
    );
    assert!(sent.iter().map(|sent| sent.src).eq((1..=3).map(|number| addr(&client(number)))));
}

#[test]
fn unanswered_syns_are_taken_back_and_one_a_second_is_tried() {
    let mut b = Bench::new(Config { max_sessions: 1000, ..config() });
    let began = b.now;
    let mut sent = Vec::new();
    for number in 0..1000 {
        b.packet(&client(number), ONLINE, header(100, 0, Flags::SYN, 0), b"");
        sent.extend(pass(&mut b, MS * 20));
    }
    let times = syn_times(&sent, began);
    let early = times.iter().filter(|at| **at < 1_000).count();
    assert!(early <= 5, "{times:?}");
    assert!(times.windows(2).all(|two| two[1] < 1_000 || two[1] - two[0] >= 990), "{times:?}");
    assert!(times.len() <= 12, "in 20 s: {times:?}");
    let resets = sent.iter().filter(|(_, sent)| sent.header.flags == Flags::RST).count();
    assert!(resets + 2 >= times.len(), "{resets} of {}", times.len());
    assert!(b.replayer.targets()[0].canary.is_some());
}

#[test]
fn the_first_answer_ends_the_canary_and_no_session_is_lost() {
    let mut b = Bench::new(Config { max_sessions: 1000, ..config() });
    for number in 0..50 {
        b.packet(&client(number), ONLINE, header(100, 0, Flags::SYN, 0), b"");
        pass(&mut b, MS * 100);
    }
    assert_eq!(b.replayer.sessions(), 50);
    let mut canary = Vec::new();
    while syns(&canary) == 0 {
        canary = next_sent(&mut b);
    }
    let sent = pass_accepting(&mut b, canary, MS * 60);
    assert_eq!(sent.iter().filter(|(_, sent)| sent.header.flags == Flags::SYN).count(), 50);
    assert_eq!(b.replayer.targets()[0].canary, None);
    assert_eq!(b.counters().ended.total(), 0);
}

#[test]
fn an_answer_that_is_late_ends_the_canary_though_its_connection_was_taken_back() {
    let mut b = Bench::new(config());
    let mut tried = Vec::new();
    for number in 0..6 {
        b.packet(&client(number), ONLINE, header(100, 0, Flags::SYN, 0), b"");
        tried.extend(pass(&mut b, MS * 5).into_iter().map(|(_, sent)| sent));
    }
    pass(&mut b, MS * 10);
    assert!(b.counters().taken_back >= 4 && b.replayer.targets()[0].canary.is_some());
    accept(&mut b, &tried[0]);
    assert_eq!(b.replayer.targets()[0].canary, None);
    let sent = pass(&mut b, MS * 10);
    assert_eq!(sent.iter().filter(|(_, sent)| sent.header.flags == Flags::SYN).count(), 6, "all begin anew");
}

#[test]
fn a_target_that_refuses_is_tried_once_a_second_and_is_known_for_it() {
    let mut b = Bench::new(config());
    let began = b.now;
    (0..20).for_each(|number| b.packet(&client(number), ONLINE, header(100, 0, Flags::SYN, 0), b""));
    let mut times = Vec::new();
    let mut due = b.run();
    while b.now < began + Duration::from_secs(10) {
        for syn in due.iter().filter(|sent| sent.header.flags == Flags::SYN) {
            times.push((b.now - began).as_millis());
            b.target(syn.src, header(0, syn.header.seq.add(1).0, Flags::RST | A, 0));
        }
        due = next_sent(&mut b);
    }
    assert!(times.iter().filter(|at| **at > 0).count() <= 10, "{times:?}");
    assert!(b.replayer.targets()[0].refuses);
    assert_eq!(b.replayer.sessions(), 20, "the target's fault ends no session");
}

#[test]
fn sessions_lose_patience_with_a_target_that_never_answers() {
    let mut b = Bench::new(config());
    (0..20).for_each(|number| drop(b.syn(&client(number))));
    pass(&mut b, Duration::from_secs(59));
    assert_eq!(b.replayer.sessions(), 20);
    pass(&mut b, Duration::from_secs(2));
    assert_eq!((b.replayer.sessions(), b.counters().ended.of(End::Unreachable)), (0, 20));
}

#[test]
fn data_that_waits_for_a_silent_target_is_sent_again_when_it_answers_another() {
    let mut b = Bench::new(config());
    for number in 0..2 {
        let syn = b.syn(&client(number));
        accept(&mut b, &syn[0]);
        b.client(&client(number), header(101, 1, A, 5), b"hello");
    }
    pass(&mut b, MS * 3_500);
    b.target(addr(&client(0)), header(501, 106, A, 1));
    let answered = b.now;
    assert_eq!(flags(&next_sent(&mut b)), [Flags::PSH | A]);
    assert!(b.now < answered + MS);
}

/// Of all workers together, one connection a second goes to a suspect target.
#[test]
fn workers_share_the_canary() {
    let shared = config();
    let mut workers: Vec<_> =
        (0..4).map(|worker| Bench::at_start(Config { workers: 4, worker, ..shared.clone() })).collect();
    let began = workers[0].now;
    let mut times = Vec::new();
    for step in 0..1_000 {
        for (index, b) in workers.iter_mut().enumerate() {
            b.packet(&client(step % 20 + 20 * index), ONLINE, header(100, 0, Flags::SYN, 0), b"");
            let sent = pass(b, MS * 10);
            times.extend(syn_times(&sent, began));
        }
    }
    times.sort_unstable();
    assert!((5..=8).contains(&times.len()), "{times:?}");
    assert!(times.windows(2).all(|two| two[1] - two[0] >= 990), "{times:?}");
}

/// The workers resume at the rate of all together.
#[test]
fn workers_share_the_rate() {
    let mut b = Bench::new(Config { workers: 4, max_sessions: 1000, ..config() });
    b.replayer.set_reachable(b.now, false);
    (0..400).for_each(|number| drop(b.syn(&client(number))));
    b.replayer.set_reachable(b.now, true);
    let resumed = b.run();
    let sent = pass_accepting(&mut b, resumed, MS * 1_000);
    let syns = sent.iter().filter(|(_, sent)| sent.header.flags == Flags::SYN).count();
    assert!((250..=254).contains(&syns), "{syns}");
}

/// What the target does with the data of a connection.
#[derive(Clone, Copy, Debug)]
enum Reaction {
    /// Resets it before it acknowledges anything.
    Reset,
    /// Acknowledges some bytes, and resets it.
    AcknowledgeAndReset(u32),
    /// Acknowledges all, and closes.
    Close,
    /// Answers, and goes on.
    Answer,
}

fn reaction() -> impl Strategy<Value = Reaction> {
    prop_oneof![
        3 => Just(Reaction::Reset),
        2 => (1..30u32).prop_map(Reaction::AcknowledgeAndReset),
        1 => Just(Reaction::Close),
        1 => Just(Reaction::Answer),
    ]
}

/// A session without checks of its own against a target, and what the budget has to hold to.
struct Storm {
    b: Bench,
    connections: u32,
    requests: u32,
    refunds: u32,
    /// Connections in a row without progress, and when the last one was opened.
    idle: u32,
    opened: Option<Time>,
    progressed: bool,
    /// Request bytes that were acknowledged.
    acknowledged: u32,
    said: u32,
}

impl Storm {
    fn new() -> Self {
        let session = session::Config { relentless: true, ..session::Config::default() };
        Self {
            b: Bench::new(Config { session: Arc::new(session), ..config() }),
            connections: 0,
            requests: 0,
            refunds: 0,
            idle: 0,
            opened: None,
            progressed: true,
            acknowledged: 0,
            said: 0,
        }
    }

    fn request(&mut self) {
        self.requests += 1;
        let header = header(101 + self.said, 1 + 10 * self.requests, A, 20);
        self.said += 20;
        self.b.packet(CLIENT, ONLINE, header, &[b'x'; 20]);
    }

    fn opens(&mut self) {
        self.idle = if self.progressed { 0 } else { self.idle + 1 };
        if let Some(before) = self.opened.filter(|_| self.idle > 0) {
            assert!(self.b.now >= before + MS * (100 << (self.idle - 1)), "{} in a row", self.idle);
        }
        self.connections += 1;
        (self.opened, self.progressed) = (Some(self.b.now), false);
        assert!(self.connections <= 1 + self.requests + self.refunds, "{} connections", self.connections);
        assert!(self.idle < 5);
    }

    /// The target acknowledges up to `ack`.
    fn acknowledge(&mut self, ack: u32) {
        let bytes = ack.wrapping_sub((self.connections - 1).wrapping_mul(ISS_STEP)).wrapping_sub(101);
        if bytes > self.acknowledged {
            self.acknowledged = bytes;
            self.refunds += u32::from(!std::mem::replace(&mut self.progressed, true));
        }
    }

    /// Lets `span` pass, with a target that reacts so.
    fn drive(&mut self, span: Duration, reactions: &mut impl Iterator<Item = Reaction>) {
        let until = self.b.now + span;
        let sent = self.b.run();
        self.react(sent, reactions);
        for _ in 0..1_000 {
            let Some(due) = self.b.replayer.poll_timeout().filter(|due| *due <= until) else { break };
            self.b.now = self.b.now.max(due);
            self.b.replayer.handle_timeout(self.b.now);
            let sent = self.b.run();
            self.react(sent, reactions);
        }
        self.b.now = self.b.now.max(until);
    }

    fn react(&mut self, sent: Vec<Transmit>, reactions: &mut impl Iterator<Item = Reaction>) {
        let mut sent = std::collections::VecDeque::from(sent);
        while let Some(transmit) = sent.pop_front() {
            let end = transmit.header.seq.add(transmit.header.payload_len).0;
            let answer = |b: &mut Bench, ack: u32, flags| b.target(transmit.src, header(501, ack, flags, 0));
            if transmit.header.flags == Flags::SYN {
                self.opens();
                sent.extend(accept(&mut self.b, &transmit));
            } else if transmit.header.payload_len > 0
                && self.b.claims.iter().any(|(_, key)| key.client == transmit.src)
            {
                match reactions.next().unwrap_or(Reaction::Reset) {
                    Reaction::Reset => sent.extend(answer(&mut self.b, 0, Flags::RST)),
                    Reaction::AcknowledgeAndReset(bytes) => {
                        let ack = transmit.header.seq.add(bytes.min(transmit.header.payload_len)).0;
                        self.acknowledge(ack);
                        sent.extend(answer(&mut self.b, ack, A));
                        sent.extend(answer(&mut self.b, ack, Flags::RST));
                    }
                    Reaction::Close => {
                        self.acknowledge(end);
                        sent.extend(answer(&mut self.b, end, Flags::FIN | A));
                    }
                    Reaction::Answer => {
                        self.acknowledge(end);
                        sent.extend(answer(&mut self.b, end, A));
                    }
                }
            }
        }
    }
}

proptest! {
    /// The session's own checks are off: it asks for a connection whenever it has none, at once.
    #[test]
    fn the_budget_alone_bounds_the_connections(
        pauses in vec(0..2_000u32, 0..20),
        reactions in vec(reaction(), 0..60),
    ) {
        let mut storm = Storm::new();
        let mut reactions = reactions.into_iter();
        storm.b.packet(CLIENT, ONLINE, header(100, 0, Flags::SYN, 0), b"");
        for pause in pauses {
            storm.request();
            storm.drive(MS * pause, &mut reactions);
            if storm.b.replayer.sessions() == 0 {
                break;
            }
        }
    }
}

#[test]
fn a_session_without_progress_ends_after_five_connections_and_says_so() {
    let mut storm = Storm::new();
    storm.b.packet(CLIENT, ONLINE, header(100, 0, Flags::SYN, 0), b"");
    for _ in 0..10 {
        storm.request();
    }
    let mut resets = std::iter::repeat(Reaction::Reset);
    storm.drive(Duration::from_secs(2), &mut resets);
    assert_eq!((storm.connections, storm.b.counters().ended.of(End::NoProgress)), (5, 1));
    assert_eq!(storm.b.counters().backed_off, 4);
}

#[test]
fn a_session_without_a_grant_waits_for_a_request_or_for_its_clients_end() {
    for ends in [false, true] {
        let mut storm = Storm::new();
        storm.b.packet(CLIENT, ONLINE, header(100, 0, Flags::SYN, 0), b"");
        storm.request();
        let mut resets = std::iter::repeat(Reaction::Reset);
        storm.drive(Duration::from_secs(10), &mut resets);
        assert_eq!((storm.connections, storm.b.replayer.sessions()), (2, 1));
        if ends {
            storm.b.client(CLIENT, header(121, 11, Flags::FIN | A, 0), b"");
            assert_eq!(storm.b.counters().ended.of(End::NoProgress), 1);
        } else {
            storm.request();
            storm.drive(Duration::from_secs(1), &mut resets);
            assert_eq!(storm.connections, 3);
        }
    }
}
