//! The session against a scripted client and target, in virtual time.
//!
//! Here what goes as in production, in [`departures`] what does not.

mod aborts;
mod departures;
mod gate;
mod options;
mod patience;
mod properties;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::wire::{Flags, Seq, TcpHeader, TcpOptions, Time, Timestamps};

const CLIENT_ISN: Seq = Seq(u32::MAX - 50);
const ONLINE_ISN: Seq = Seq(7_000);
const TARGET_ISN: Seq = Seq(u32::MAX - 20);
const MS: Duration = Duration::from_millis(1);
/// By how much the sequence numbers of a second connection are ahead.
const NEXT: u32 = 1 << 24;

fn options(timestamps: bool) -> TcpOptions {
    TcpOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: timestamps.then_some(Timestamps { value: 1, echo: 0 }),
    }
}

/// A segment the session sent, positions relative to the initial sequence numbers.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    flags: Flags,
    /// From the client's ISN.
    seq: u32,
    /// From the target's ISN; 0 without ACK.
    ack: u32,
    data: Vec<u8>,
}

fn sent(flags: Flags, seq: u32, ack: u32, data: &[u8]) -> Sent {
    Sent { flags, seq, ack, data: data.to_vec() }
}

const A: Flags = Flags::ACK;

fn pa() -> Flags {
    Flags::PSH | Flags::ACK
}

struct Bench {
    session: Session,
    now: Time,
    events: Vec<Event>,
    timestamps: bool,
}

impl Bench {
    fn new(config: Config) -> Self {
        let now = Time::from_micros(5_000_000);
        let mut bench = Self {
            session: Session::open(
                now,
                Arc::new(config),
                Arc::default(),
                &client_header(0, 0, Flags::SYN, 0),
            ),
            now,
            events: Vec::new(),
            timestamps: false,
        };
        assert_eq!(bench.client(0, 0, Flags::SYN, b""), Taken::Control);
        bench
    }

    /// A session whose handshake with the target is done.
    fn established() -> Self {
        let mut bench = Self::new(Config::default());
        assert_eq!(bench.run(), [sent(Flags::SYN, 0, 0, b"")]);
        assert_eq!(bench.target(0, 1, Flags::SYN | A, 0), Answer::Accepted);
        bench
    }

    /// A client's segment: `seq` from its ISN, `ack` from the online server's.
    fn client(&mut self, seq: u32, ack: u32, flags: Flags, data: &[u8]) -> Taken {
        let len = u32::try_from(data.len()).expect("short");
        self.session.handle_client(self.now, &client_header(seq, ack, flags, len), data)
    }

    /// A target's segment: `seq` from its ISN, `ack` from the client's.
    fn target(&mut self, seq: u32, ack: u32, flags: Flags, len: u32) -> Answer {
        let header = TcpHeader {
            seq: TARGET_ISN.add(seq),
            ack: CLIENT_ISN.add(ack),
            flags,
            window: 64_000,
            options: if flags.syn() { options(self.timestamps) } else { TcpOptions::default() },
            payload_len: len,
        };
        self.session.handle_target(self.now, &header)
    }

    /// What the session sends now.
    fn run(&mut self) -> Vec<Sent> {
        let mut all = Vec::new();
        loop {
            let mut payload = Vec::new();
            if let Some(header) = self.session.poll_transmit(self.now, &mut payload) {
                assert_eq!(header.payload_len as usize, payload.len());
                let ack = if header.flags.ack() { header.ack.offset_from(TARGET_ISN) } else { 0 };
                all.push(Sent {
                    flags: header.flags,
                    seq: header.seq.offset_from(CLIENT_ISN),
                    ack,
                    data: payload,
                });
            } else if let Some(event) = self.session.poll_event() {
                if event == Event::Connect {
                    self.session.connect(self.now, 1460);
                } else {
                    self.events.push(event);
                }
            } else {
                return all;
            }
        }
    }

    /// What it sends until `span` has passed, jumping from deadline to deadline.
    fn wait(&mut self, span: Duration) -> Vec<Sent> {
        let until = self.now + span;
        let mut all = self.run();
        while let Some(due) = self.session.poll_timeout().filter(|due| *due <= until) {
            assert!(due >= self.now, "a deadline in the past would spin");
            self.now = due;
            self.session.handle_timeout(self.now);
            all.extend(self.run());
        }
        self.now = until;
        all
    }

    fn ended(&self) -> Option<End> {
        self.events.iter().find_map(|event| match event {
            Event::Ended(why) => Some(*why),
            Event::Connect
            | Event::Exchange(_)
            | Event::Skipped(_)
            | Event::Behind
            | Event::Early
            | Event::Unanswered => None,
        })
    }

    /// Request bytes, target's bytes and outcome of each exchange.
    fn outcomes(&self) -> Vec<(u64, u64, Outcome)> {
        let exchange = |event: &Event| match event {
            Event::Exchange(e) => Some((e.request_bytes, e.target_bytes, e.outcome)),
            Event::Connect
            | Event::Skipped(_)
            | Event::Behind
            | Event::Early
            | Event::Unanswered
            | Event::Ended(_) => None,
        };
        self.events.iter().filter_map(exchange).collect()
    }

    fn skipped(&self) -> u64 {
        let bytes = |event: &Event| match event {
            Event::Skipped(bytes) => *bytes,
            Event::Connect
            | Event::Exchange(_)
            | Event::Behind
            | Event::Early
            | Event::Unanswered
            | Event::Ended(_) => 0,
        };
        self.events.iter().map(bytes).sum()
    }
}

fn client_header(seq: u32, ack: u32, flags: Flags, payload_len: u32) -> TcpHeader {
    TcpHeader {
        seq: CLIENT_ISN.add(seq),
        ack: if flags.ack() { ONLINE_ISN.add(ack) } else { Seq(0) },
        flags,
        window: 502,
        options: if flags.syn() { options(false) } else { TcpOptions::default() },
        payload_len,
    }
}

#[test]
fn one_request_per_connection_from_syn_to_time_wait() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"GET /");
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"GET /")], "data carries the handshake's ACK");
    b.target(1, 6, pa(), 100);
    assert_eq!(b.run(), []);
    // The online response was as long, and the client closes.
    b.client(6, 101, Flags::FIN | A, b"");
    assert_eq!(b.run(), [sent(Flags::FIN | A, 6, 101, b"")]);
    b.target(101, 7, Flags::FIN | A, 0);
    assert_eq!(b.run(), [sent(A, 7, 102, b"")]);
    assert_eq!(b.target(101, 7, Flags::FIN | A, 0), Answer::Duplicate, "its FIN again: our ACK was lost");
    assert_eq!(b.run(), [sent(A, 7, 102, b"")]);
    b.wait(Duration::from_secs(2));
    assert_eq!(b.ended(), Some(End::Completed));
}

#[test]
fn a_target_that_waits_for_our_ack_is_not_quiet() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.client(4, 201, pa(), b"two");
    b.run();
    b.target(1, 4, A, 150);
    let sent = b.wait(15 * MS);
    assert_eq!(sent, [Sent { flags: A, seq: 4, ack: 151, data: Vec::new() }], "the ACK first, at once");
    b.target(151, 4, pa(), 50);
    assert_eq!(b.run().first().map(|s| s.data.clone()), Some(b"two".to_vec()));
}

#[test]
fn a_request_waits_for_the_response_before_it() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.client(4, 201, pa(), b"two");
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"one")]);
    b.target(1, 4, A, 150);
    assert_eq!(b.run(), [sent(A, 4, 151, b"")], "150 of 200 bytes; Nagle may keep the rest");
    b.target(151, 4, pa(), 50);
    assert_eq!(b.run(), [sent(pa(), 4, 201, b"two")]);
    let Some(Event::Exchange(exchange)) = b.events.first() else { panic!("{:?}", b.events) };
    assert_eq!((exchange.request_bytes, exchange.online_bytes, exchange.target_bytes), (3, 200, 200));
}

#[test]
fn a_shorter_response_opens_the_gate_after_a_quiet_time() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.client(4, 201, pa(), b"two");
    b.run();
    b.target(1, 4, pa(), 150);
    let sent_after = b.wait(Duration::from_secs(1));
    assert_eq!(sent_after.last().map(|s| s.data.clone()), Some(b"two".to_vec()));
}

#[test]
fn what_is_captured_before_the_handshake_ends_waits_for_it() {
    let mut b = Bench::new(Config::default());
    b.client(1, 1, pa(), b"early");
    assert_eq!(b.run(), [sent(Flags::SYN, 0, 0, b"")]);
    b.target(0, 1, Flags::SYN | A, 0);
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"early")]);
}

#[test]
fn a_handshake_without_data_is_acknowledged_soon() {
    let mut b = Bench::established();
    assert_eq!(b.wait(100 * MS), [], "nor has the client ended its own");
    b.client(1, 1, A, b"");
    assert_eq!(b.wait(20 * MS), [sent(A, 1, 1, b"")]);

    let mut b = Bench::established();
    assert_eq!(b.wait(300 * MS), [sent(A, 1, 1, b"")], "its ACK may not be captured");
}

#[test]
fn our_fin_carries_the_ack_of_the_targets() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"get");
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"get")]);
    b.target(1, 4, Flags::FIN | pa(), 100);
    assert_eq!(b.wait(5 * MS), []);
    b.client(4, 102, Flags::FIN | A, b"");
    assert_eq!(b.run(), [sent(Flags::FIN | A, 4, 102, b"")]);
    b.target(102, 5, A, 0);
    assert_eq!((b.run(), b.ended()), (vec![], Some(End::Completed)));
}

#[test]
fn syn_is_sent_again_with_back_off_until_the_session_gives_up() {
    let mut b = Bench::new(Config { give_up: Duration::from_secs(20), ..Config::default() });
    let syns = b.wait(Duration::from_secs(30));
    assert!((6..=9).contains(&syns.len()), "{syns:?}");
    assert!(syns[..syns.len() - 1].iter().all(|s| s.flags == Flags::SYN));
    assert_eq!(b.ended(), Some(End::Unreachable));
}

#[test]
fn a_refused_syn_is_tried_again() {
    let mut b = Bench::new(Config::default());
    b.run();
    assert_eq!(b.target(0, 1, Flags::RST | A, 0), Answer::Reset);
    let again = b.wait(Duration::from_secs(2));
    assert_eq!(again.first(), Some(&sent(Flags::SYN, 0, 0, b"")));
}

#[test]
fn lost_data_is_sent_again() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"lost");
    b.run();
    assert_eq!(b.wait(300 * MS), [sent(pa(), 1, 1, b"lost")]);
    b.target(1, 5, A, 0);
    assert_eq!(b.wait(Duration::from_secs(3)), []);
}

#[test]
fn a_target_that_is_slow_to_read_is_not_given_up() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"long");
    b.run();
    let mut closed = TcpHeader { window: 0, ..client_header(0, 0, A, 0) };
    (closed.seq, closed.ack) = (TARGET_ISN.add(1), CLIENT_ISN.add(5));
    b.session.handle_target(b.now, &closed);
    b.client(5, 1, pa(), b"er");
    for _ in 0..100 {
        b.wait(Duration::from_secs(1));
        b.session.handle_target(b.now, &closed);
    }
    assert_eq!(b.ended(), None);
    b.target(1, 5, A, 0);
    assert_eq!(b.run(), [sent(pa(), 5, 1, b"er")]);
}

#[test]
fn large_segments_are_cut_to_the_targets_mss() {
    let mut b = Bench::established();
    let big = vec![b'x'; 4000];
    b.client(1, 1, pa(), &big);
    let lens: Vec<_> = b.run().iter().map(|s| (s.seq, s.data.len(), s.flags)).collect();
    assert_eq!(lens, [(1, 1460, A), (1461, 1460, A), (2921, 1080, pa())]);
}

#[test]
fn duplicates_and_disorder_of_the_capture_leave_no_trace() {
    let mut b = Bench::established();
    assert_eq!(b.client(4, 1, pa(), b"two"), Taken::OutOfOrder);
    assert_eq!(b.run(), []);
    assert_eq!(b.client(1, 1, pa(), b"one"), Taken::Data);
    assert_eq!(b.client(1, 1, pa(), b"one"), Taken::Duplicate);
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"onetwo")]);
}

#[test]
fn the_first_acknowledgment_captured_need_not_be_the_first() {
    let mut b = Bench::established();
    b.client(4, 201, pa(), b"two");
    b.client(1, 1, pa(), b"one");
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"one")], "two waits for the response to one");
    b.target(1, 4, pa(), 200);
    assert_eq!(b.run(), [sent(pa(), 4, 201, b"two")]);
}

#[test]
fn headers_out_of_order_are_acknowledged_as_rfc_9293_says() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"get");
    b.run();
    assert_eq!(b.target(101, 4, A, 100), Answer::OutOfOrder);
    assert_eq!(b.run(), [sent(A, 4, 1, b"")], "the duplicate ACK asks for what is missing");
    assert_eq!(b.target(1, 4, A, 100), Answer::Accepted);
    assert_eq!(b.wait(50 * MS), [sent(A, 4, 201, b"")]);
}

#[test]
fn a_request_under_way_while_the_target_closes_is_not_lost() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.client(4, 101, pa(), b"two");
    b.client(7, 201, pa(), b"three");
    b.run();
    b.target(1, 4, pa(), 100);
    assert_eq!(b.run(), [sent(pa(), 4, 101, b"two")]);
    b.target(101, 4, Flags::FIN | A, 0);
    assert_eq!(b.run(), [sent(A, 7, 102, b"")], "did it come too late?");
    b.target(102, 0, Flags::RST, 0);
    assert_eq!(b.run(), [sent(Flags::SYN, NEXT + 3, 0, b"")], "it did");
    b.target(0, NEXT + 4, Flags::SYN | A, 0);
    assert_eq!(b.run(), [sent(pa(), NEXT + 4, 1, b"two")]);
    assert_eq!(b.skipped(), 0);
}

#[test]
fn nonsense_from_the_target_is_refused() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"get");
    b.run();
    assert_eq!(b.target(1, 4000, A, 0), Answer::Unacceptable, "acknowledges what was never sent");
    assert_eq!(b.target(1, 4, Flags::PSH, 5), Answer::Unacceptable, "no ACK");
    assert_eq!(b.target(1_000_000_000, 4, A, 5), Answer::Unacceptable, "beyond the window");
    assert_eq!(b.target(0, 1, Flags::SYN | A, 0), Answer::Duplicate);
    b.run();
    assert_eq!(b.target(1, 4, A, 0), Answer::Accepted);
}

#[test]
fn an_old_connection_of_ours_on_the_target_is_not_taken_for_the_new_one() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.run();
    b.target(1, 4, Flags::FIN | A, 100);
    b.client(4, 101, pa(), b"two");
    b.run();
    // The reset was lost: the target answers the SYN on the same ports with a challenge ACK.
    assert_eq!(b.target(102, 4, A, 0), Answer::Unacceptable);
    assert_eq!(b.run(), [sent(Flags::RST, 4, 0, b"")]);
}

#[test]
fn the_clients_distance_delays_acks_and_gated_requests() {
    let mut b = Bench::established();
    b.now += 30 * MS;
    b.client(1, 1, A, b"");
    b.run();
    b.client(1, 1, pa(), b"one");
    b.run();
    b.client(4, 201, pa(), b"two");
    b.target(1, 4, pa(), 200);
    assert_eq!(b.run(), []);
    assert_eq!(b.wait(29 * MS), []);
    assert_eq!(b.wait(MS), [sent(pa(), 4, 201, b"two")]);
}

#[test]
fn a_client_that_connects_and_waits_is_not_taken_for_distant() {
    let mut b = Bench::established();
    b.wait(200 * MS);
    b.client(1, 1, pa(), b"one");
    b.run();
    b.client(4, 201, pa(), b"two");
    b.target(1, 4, pa(), 200);
    assert_eq!(b.run(), [sent(pa(), 4, 201, b"two")]);
}
