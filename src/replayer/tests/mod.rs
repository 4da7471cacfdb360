//! The replayer with packets of scripted clients, in virtual time.

mod claims;
mod configuration;
mod connections;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::session::{self, Answer, End, Taken};
use crate::wire::{Flags, FlowId, FlowKey, Mapping, Outgoing, Seq, TcpHeader, Time, parse};

const ONLINE: &str = "10.1.0.1:80";
const TARGET: &str = "10.2.0.2:8080";
const A: Flags = Flags::ACK;

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

fn config() -> Config {
    let mapping = Mapping { online: None, port: 80, target: addr(TARGET) };
    Config { max_sessions: 100, memory_limit: 1 << 20, ..Config::new(vec![mapping]) }
}

fn header(seq: u32, ack: u32, flags: Flags, payload_len: usize) -> TcpHeader {
    let payload_len = u32::try_from(payload_len).expect("short");
    TcpHeader { payload_len, ..TcpHeader::bare(Seq(seq), Seq(ack), flags, 60_000) }
}

struct Bench {
    replayer: Replayer,
    now: Time,
    out: Outgoing,
    /// Claims in force.
    claims: Vec<(FlowId, FlowKey)>,
    /// Intercepts that confirm claims, one bit each.
    confirms: u64,
    /// Claims that they have not confirmed.
    awaited: HashSet<FlowId>,
}

impl Bench {
    /// Of a target that has answered before.
    fn new(config: Config) -> Self {
        config.targets.iter().for_each(|health| health.answered(MS));
        Self::at_start(config)
    }

    /// Of a target that nothing is known of.
    fn at_start(config: Config) -> Self {
        let mut bench = Self {
            replayer: Replayer::new(Arc::new(config)),
            now: Time::from_micros(1_000_000),
            out: Outgoing::default(),
            claims: Vec::new(),
            confirms: 0,
            awaited: HashSet::new(),
        };
        bench.replayer.set_reachable(bench.now, true);
        bench
    }

    /// A client's packet, then all that the replayer sends because of it.
    fn client(&mut self, client: &str, header: TcpHeader, payload: &[u8]) -> Vec<Transmit> {
        self.packet(client, ONLINE, header, payload);
        self.run()
    }

    fn packet(&mut self, client: &str, online: &str, header: TcpHeader, payload: &[u8]) {
        let mut build = Outgoing::default();
        build.payload().extend_from_slice(payload);
        let bytes = build.finish(addr(client), addr(online), &header).expect("fits");
        let packet = parse(bytes, bytes.len()).expect("whole");
        self.replayer.handle_client(self.now, &packet);
    }

    fn syn(&mut self, client: &str) -> Vec<Transmit> {
        self.client(client, header(100, 0, Flags::SYN, 0), b"")
    }

    fn run(&mut self) -> Vec<Transmit> {
        self.take_claims();
        let mut sent = Vec::new();
        loop {
            while let Some(transmit) = self.replayer.poll_transmit(self.now, &mut self.out) {
                let flow = FlowKey { client: transmit.src, server: transmit.dst };
                let told = self.claims.iter().any(|(id, key)| *key == flow && !self.awaited.contains(id));
                assert!(told, "a packet of {flow:?}, whose claim was not told: {:?}", transmit.header);
                sent.push(transmit);
            }
            if !self.take_claims() {
                break;
            }
        }
        let mut live: Vec<_> = self.replayer.claims().collect();
        live.sort_unstable_by_key(|(id, _)| *id);
        self.claims.sort_unstable_by_key(|(id, _)| *id);
        assert_eq!(live, self.claims, "claims told and claims in force are one");
        let accounted = self.counters().settled_bytes() + self.replayer.buffered() as u64;
        assert_eq!(self.counters().captured_bytes, accounted, "every byte has one fate, or is held");
        sent
    }

    /// Tells the claims to nobody, or to an intercept that confirms them. Returns whether there were any.
    fn take_claims(&mut self) -> bool {
        let mut claimed = false;
        while let Some(claim) = self.replayer.poll_claim() {
            match claim {
                Claim::Claim(id, key) => {
                    claimed = true;
                    self.claims.retain(|claim| *claim != (id, key));
                    self.claims.push((id, key));
                    if self.confirms != 0 {
                        self.awaited.insert(id);
                    }
                    self.replayer.handle_claim_told(self.now, id, self.confirms);
                }
                Claim::Release(id, key) => {
                    let known = self.claims.iter().position(|claim| *claim == (id, key));
                    self.claims.swap_remove(known.expect("was claimed"));
                }
            }
        }
        claimed
    }

    /// The target's answer on the flow of `local`.
    fn target(&mut self, local: SocketAddr, header: TcpHeader) -> Vec<Transmit> {
        let (id, _) = self.claims.iter().find(|(_, key)| key.client == local).expect("claimed");
        self.replayer.handle_target(self.now, *id, &header);
        self.run()
    }

    fn counters(&self) -> &Counters {
        self.replayer.counters()
    }

    /// Captured packets that were counted.
    fn counted(&self) -> u64 {
        self.counters().taken.total() + self.counters().unused.total()
    }
}

const CLIENT: &str = "10.9.0.1:40000";

#[test]
fn a_connection_is_claimed_and_opened_and_its_data_follows() {
    let mut b = Bench::new(config());
    let sent = b.syn(CLIENT);
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].src, sent[0].dst, sent[0].header.flags), (addr(CLIENT), addr(TARGET), Flags::SYN));
    assert_eq!(b.claims.len(), 1);
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    let sent = b.target(addr(CLIENT), header(500, 101, Flags::SYN | A, 0));
    assert_eq!((sent.len(), sent[0].header.payload_len, sent[0].header.ack), (1, 5, Seq(501)));
    assert_eq!(b.counters().taken.of(Taken::Data), 1);
    assert_eq!(b.counted(), 2);
}

#[test]
fn without_an_intercept_nothing_leaves_and_with_one_it_does() {
    let mut b = Bench::new(config());
    b.replayer.set_reachable(b.now, false);
    assert!(b.syn(CLIENT).is_empty() && b.claims.is_empty());
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    b.replayer.set_reachable(b.now, true);
    assert_eq!(b.run().len(), 1);
    assert_eq!(b.claims.len(), 1);
}

/// Lets time pass until something leaves.
fn next_sent(b: &mut Bench) -> Vec<Transmit> {
    loop {
        b.now = b.replayer.poll_timeout().expect("something is to come");
        b.replayer.handle_timeout(b.now);
        let sent = b.run();
        if !sent.is_empty() {
            return sent;
        }
    }
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_session_that_ends_while_it_waits_gives_its_place_to_nobody() {
    let mut b = Bench::new(config());
    b.replayer.set_reachable(b.now, false);
    b.syn(CLIENT);
    b.replayer.shut_down(b.now);
    b.run();
    assert_eq!(b.replayer.sessions(), 0);
    b.replayer.set_reachable(b.now, true);
    assert!(b.run().is_empty() && b.claims.is_empty());
}

#[test]
fn a_burst_that_leaves_late_for_our_own_sake_is_behind_unless_it_is_one_of_the_first() {
    for (late, first) in [(0, 6), (50, 5)] {
        let mut b = Bench::new(config());
        b.syn(CLIENT);
        b.client(CLIENT, header(101, 1, A, 5), b"hello");
        for n in 1..=7 {
            assert!(b.client(CLIENT, header(101 + n * 5, 1 + n * 3, A, 5), b"again").is_empty());
        }
        b.now += Duration::from_millis(late);
        b.target(addr(CLIENT), header(500, 101, Flags::SYN | A, 0));
        for n in 1..=7 {
            b.now += Duration::from_millis(2);
            let sent = b.target(addr(CLIENT), header(498 + n * 3, 101 + n * 5, A, 3));
            assert_eq!(sent.len(), 1, "{n}");
            assert_eq!(b.replayer.take_behind(), n >= first, "{n}");
        }
    }
}

#[test]
fn copies_have_flows_of_their_own() {
    let mut b = Bench::new(Config { copies: 3, ..config() });
    let sent = b.syn(CLIENT);
    let flows: HashSet<_> = sent.iter().map(|transmit| transmit.src).collect();
    assert_eq!((sent.len(), flows.len()), (3, 3));
    assert!(flows.contains(&addr(CLIENT)));
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    for local in flows {
        let sent = b.target(local, header(500, 101, Flags::SYN | A, 0));
        assert_eq!((sent.len(), sent[0].src, sent[0].header.payload_len), (1, local, 5));
    }
    assert_eq!(b.counted(), 2, "a packet counts once, however many copies take it");
}

#[test]
fn no_two_live_sessions_share_a_flow() {
    let pools = vec!["10.99.0.1/32".parse().expect("prefix")];
    let mut b = Bench::new(Config { pools, ..config() });
    let mut flows = HashSet::new();
    for host in 1..=50 {
        let sent = b.syn(&format!("10.9.0.{host}:40000"));
        assert!(flows.insert(sent[0].src), "all have the same port on one address");
    }
    assert_eq!(b.claims.len(), 50);
}

#[test]
fn a_port_used_again_begins_a_session_beside_the_old_one() {
    let mut b = Bench::new(config());
    b.syn(CLIENT);
    b.client(CLIENT, header(101, 1, A, 3), b"old");
    assert!(b.syn(CLIENT).is_empty(), "the same SYN again");
    let sent = b.client(CLIENT, header(9_000, 0, Flags::SYN, 0), b"");
    assert_eq!((sent.len(), sent[0].header.flags), (1, Flags::SYN));
    let other = sent[0].src;
    assert_ne!(other, addr(CLIENT), "the old one is not done");
    b.client(CLIENT, header(9_001, 1, A, 2), b"hi");
    let lens =
        |sent: &[Transmit]| sent.iter().map(|transmit| transmit.header.payload_len).collect::<Vec<_>>();
    assert_eq!(lens(&b.target(other, header(700, 9_001, Flags::SYN | A, 0))), [2]);
    assert_eq!(lens(&b.target(addr(CLIENT), header(500, 101, Flags::SYN | A, 0))), [3]);
    let last = b.target(addr(CLIENT), header(501, 104, A, 0));
    assert_eq!(last.iter().map(|transmit| transmit.header.flags).collect::<Vec<_>>(), [Flags::RST | A]);
}

#[test]
fn a_refused_claim_moves_the_connection() {
    let mut b = Bench::new(config());
    b.syn(CLIENT);
    let (id, _) = b.claims[0];
    b.replayer.handle_claim_loss(b.now, id, ClaimLoss::Taken);
    let sent = b.run();
    let syn = sent.iter().find(|transmit| transmit.header.flags == Flags::SYN).expect("anew");
    assert_ne!(syn.src, addr(CLIENT));
    assert_eq!(b.claims.len(), 1);
    b.replayer.handle_claim_loss(b.now, id, ClaimLoss::Taken);
    assert!(b.run().is_empty(), "a refusal of the old name is nothing");
}

#[test]
fn the_session_limit_refuses_and_counts() {
    let mut b = Bench::new(Config { max_sessions: 2, ..config() });
    for host in 1..=5 {
        b.syn(&format!("10.9.0.{host}:40000"));
    }
    assert_eq!((b.replayer.sessions(), b.counters().unused.of(Unused::SessionLimit)), (2, 3));
}

/// What the replayer takes after `steps`.
fn memory_after(steps: impl Fn(&mut Bench)) -> usize {
    let mut b = Bench::new(config());
    steps(&mut b);
    b.replayer.memory()
}

#[test]
fn the_memory_limit_ends_the_session_furthest_behind() {
    let fits = |b: &mut Bench| {
        b.syn("10.9.0.1:1");
        b.syn("10.9.0.2:2");
        b.client("10.9.0.1:1", header(101, 1, A, 1000), &[0; 1000]);
        b.client("10.9.0.2:2", header(101, 1, A, 1400), &[0; 1400]);
    };
    let mut b = Bench::new(Config { memory_limit: memory_after(fits), ..config() });
    fits(&mut b);
    assert_eq!((b.replayer.sessions(), b.replayer.buffered()), (2, 2400));
    b.client("10.9.0.2:2", header(1501, 1, A, 1400), &[0; 1400]);
    assert_eq!((b.replayer.sessions(), b.replayer.buffered()), (1, 1000));
    assert_eq!(b.counters().ended.of(End::Shed), 1);
    assert_eq!(b.counters().ledger.discarded.of(End::Shed), 2800);
}

#[test]
fn the_memory_limit_ends_no_more_sessions_than_it_must() {
    let clients: Vec<_> = (1..=10).map(|host| format!("10.9.0.{host}:1")).collect();
    let fits = |b: &mut Bench| {
        for client in &clients {
            b.syn(client);
            b.client(client, header(101, 1, A, 1000), &[0; 1000]);
        }
    };
    let mut b = Bench::new(Config { memory_limit: memory_after(fits), ..config() });
    fits(&mut b);
    assert_eq!((b.replayer.sessions(), b.replayer.buffered()), (10, 10_000));
    // All of them have something to do in the turn that goes beyond the limit.
    for client in &clients {
        b.packet(client, ONLINE, header(1101, 1, A, 50), &[0; 50]);
    }
    b.run();
    assert_eq!((b.replayer.sessions(), b.replayer.buffered()), (9, 9_450));
}

#[test]
fn close_to_the_memory_limit_no_session_begins() {
    let fits = |b: &mut Bench| {
        b.syn(CLIENT);
        b.client(CLIENT, header(101, 1, A, 1400), &[0; 1400]);
        b.syn("10.9.0.2:2");
    };
    let mut b = Bench::new(Config { memory_limit: memory_after(fits) + 200, ..config() });
    fits(&mut b);
    assert_eq!(b.replayer.sessions(), 2);
    b.client(CLIENT, header(1501, 1, A, 101), &[0; 101]);
    assert!(b.syn("10.9.0.3:3").is_empty());
    assert_eq!(b.counters().unused.of(Unused::MemoryLimit), 1);
    b.client(CLIENT, header(1602, 1, A, 100), &[0; 100]);
    assert_eq!((b.counters().ended.of(End::Shed), b.replayer.buffered()), (1, 0));
    assert_eq!(b.syn("10.9.0.3:3").len(), 1, "there is room again");
}

#[test]
fn what_is_taken_besides_the_sessions_leaves_them_less() {
    let fits = |b: &mut Bench| {
        b.syn(CLIENT);
        b.client(CLIENT, header(101, 1, A, 1400), &[0; 1400]);
        b.syn("10.9.0.2:2");
    };
    let (mut b, Config { memory_limit, .. }) = (Bench::new(config()), config());
    fits(&mut b);
    let own = b.replayer.memory();
    b.replayer.set_memory_besides(memory_limit / 16 * 15 - own + 1);
    assert!(b.syn("10.9.0.3:3").is_empty());
    assert_eq!(b.counters().unused.of(Unused::MemoryLimit), 1);
    b.replayer.set_memory_besides(memory_limit - own + 1);
    b.client("10.9.0.2:2", header(101, 1, A, 0), b"");
    assert_eq!((b.counters().ended.of(End::Shed), b.replayer.sessions(), b.replayer.buffered()), (1, 1, 0));
    b.replayer.set_memory_besides(0);
    assert_eq!(b.syn("10.9.0.3:3").len(), 1, "there is room again");
}

#[test]
fn bytes_that_come_one_by_one_count_with_what_each_of_them_takes() {
    let mut b = Bench::new(Config { memory_limit: 100_000, ..config() });
    b.syn(CLIENT);
    for n in 0..2_000 {
        b.client(CLIENT, header(101 + n, 1, A, 1), b"x");
    }
    assert_eq!((b.counters().ended.of(End::Shed), b.replayer.buffered()), (1, 0));
    assert!(b.counters().ledger.discarded.of(End::Shed) < 2_000);
    assert!(b.replayer.memory() < 100_000);
}

#[test]
fn without_an_intercept_the_queue_for_connections_is_bounded_as_sessions_are() {
    let mut b = Bench::new(Config { max_sessions: 10, ..config() });
    b.replayer.set_reachable(b.now, false);
    for n in 0..5_000 {
        b.client(CLIENT, header(n * 1_000, 0, Flags::SYN, 0), b"");
        b.client(CLIENT, header(n * 1_000 + 1, 0, Flags::RST, 0), b"");
    }
    assert!(b.replayer.reconnect.len() < 500, "{} wait", b.replayer.reconnect.len());
    b.replayer.set_reachable(b.now, true);
    b.run();
    assert!(b.counters().connections > 0);
}

#[test]
fn nonsense_from_the_target_is_counted_and_sends_nothing_on() {
    let mut b = Bench::new(config());
    b.syn(CLIENT);
    let local = addr(CLIENT);
    b.client(CLIENT, header(101, 1, A, 3), b"get");
    b.target(local, header(500, 999, Flags::SYN | A, 0));
    b.target(local, header(500, 101, Flags::SYN, 0));
    assert_eq!(b.counters().answers.of(Answer::Unacceptable), 2, "no answer to our SYN");
    b.target(local, header(500, 101, Flags::SYN | A, 0));
    b.target(local, header(501, 4_000, A, 0));
    b.target(local, header(1_000_000_000, 104, A, 9));
    b.target(local, header(501, 104, Flags::NONE, 9));
    b.target(local, TcpHeader { payload_len: u32::MAX, ..header(501, 104, A, 0) });
    b.target(local, header(777, 104, Flags::RST, 0));
    let answers = &b.counters().answers;
    assert!(answers.of(Answer::Unacceptable) >= 6, "{answers:?}");
    assert_eq!(answers.total(), 8, "each counts once");
    assert_eq!((b.replayer.sessions(), b.counters().bytes), (1, 3));
}

#[test]
fn what_no_session_takes_is_counted_by_reason() {
    let mut b = Bench::new(config());
    b.packet(CLIENT, "10.1.0.1:81", header(1, 0, Flags::SYN, 0), b"");
    b.packet(CLIENT, ONLINE, header(1, 1, Flags::SYN | A, 0), b"");
    b.packet(CLIENT, ONLINE, header(1, 1, A, 0), b"");
    b.packet(CLIENT, ONLINE, header(1, 1, Flags::FIN | A, 0), b"");
    let unused = &b.counters().unused;
    assert_eq!(
        (unused.of(Unused::NotRouted), unused.of(Unused::Flags), unused.of(Unused::NoSession)),
        (1, 1, 2)
    );
    b.replayer.handle_target(b.now, FlowId(77), &header(1, 1, A, 0));
    assert_eq!(b.counters().answers.of(Answer::Stray), 1);
}

#[test]
fn bytes_that_reach_no_session_are_counted_for_each_copy() {
    let mut b = Bench::new(Config { copies: 3, max_sessions: 3, ..config() });
    b.syn(CLIENT);
    b.client("10.9.0.2:5", header(101, 1, A, 7), b"refused");
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    assert_eq!((b.counters().captured_bytes, b.replayer.buffered()), (36, 15));
    assert_eq!(b.counters().unused_bytes.of(Unused::SessionLimit), 21);
    // One copy is refused again and again until it gives up; the others go on without it.
    let copies = b.replayer.sessions();
    while b.replayer.sessions() == copies {
        while b.claims.len() < copies {
            next_sent(&mut b);
        }
        let (id, _) = *b.claims.iter().max_by_key(|(id, _)| id.0 & u64::from(u32::MAX)).expect("claimed");
        b.replayer.handle_claim_loss(b.now, id, ClaimLoss::Taken);
        b.run();
    }
    assert_eq!(b.counters().ledger.discarded.of(End::ClaimRefused), 5);
    b.client(CLIENT, header(106, 1, A, 4), b"more");
    assert_eq!(b.counters().unused_bytes.of(Unused::NoSession), 4);
    assert_eq!(b.replayer.buffered(), 18);
}

#[test]
fn acknowledged_bytes_are_delivered_and_the_rest_is_discarded_with_the_session() {
    let mut b = Bench::new(config());
    b.syn(CLIENT);
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    b.target(addr(CLIENT), header(500, 101, Flags::SYN | A, 0));
    b.target(addr(CLIENT), header(501, 104, A, 0));
    b.replayer.shut_down(b.now);
    b.packet(CLIENT, ONLINE, header(106, 1, A, 4), b"late");
    b.run();
    let ledger = &b.counters().ledger;
    let fates: Vec<_> = ledger.fates.nonzero().collect();
    assert_eq!(fates, [("delivered", 3), ("duplicate", 5), ("late", 4)]);
    assert_eq!(ledger.discarded.nonzero().collect::<Vec<_>>(), [("shed", 2)]);
}

#[test]
fn a_share_of_connections_is_whole() {
    let mut b = Bench::new(Config { share: 3_000, max_sessions: 10_000, ..config() });
    for port in 1000..2000u16 {
        let client = format!("10.9.0.1:{port}");
        let selected = !b.syn(&client).is_empty();
        let before = b.counters().taken.total();
        b.client(&client, header(101, 1, A, 1), b"x");
        assert_eq!(b.counters().taken.total() > before, selected);
    }
    assert_eq!(b.counted(), 2_000);
    assert_eq!(b.counters().unused.of(Unused::NotSelected), 2 * (1_000 - b.counters().started));
    assert!((230..370).contains(&b.replayer.sessions()), "{}", b.replayer.sessions());
}

#[test]
fn the_end_resets_and_releases() {
    let mut b = Bench::new(config());
    b.syn(CLIENT);
    b.target(addr(CLIENT), header(500, 101, Flags::SYN | A, 0));
    b.replayer.shut_down(b.now);
    let sent = b.run();
    assert_eq!(sent.iter().map(|transmit| transmit.header.flags).collect::<Vec<_>>(), [Flags::RST | A]);
    assert_eq!((b.replayer.sessions(), b.claims.len()), (0, 0));
    assert!(b.syn("10.9.0.3:5").is_empty(), "no new ones");
}

#[test]
fn deadlines_are_met() {
    let session = session::Config { give_up: Duration::from_secs(5), ..session::Config::default() };
    let mut b = Bench::new(Config { session: Arc::new(session), ..config() });
    b.syn(CLIENT);
    let mut syns = 1;
    while let Some(due) = b.replayer.poll_timeout() {
        assert!(due >= b.now && due.micros() < 700_000_000, "deadlines end");
        b.now = due;
        b.replayer.handle_timeout(due);
        syns += b.run().iter().filter(|transmit| transmit.header.flags == Flags::SYN).count();
    }
    assert_eq!((syns, b.replayer.sessions()), (3, 0), "after 1 and 3 s");
    assert_eq!(b.counters().ended.of(End::Unreachable), 1);
}

#[test]
fn a_target_that_answers_nothing_is_known() {
    let mut b = Bench::new(config());
    let local = b.syn(CLIENT).first().expect("a SYN").src;
    assert_eq!(b.replayer.targets(), []);
    let began = b.now;
    let tried: Vec<_> = (0..5).flat_map(|_| next_sent(&mut b)).collect();
    let unanswered = |b: &Bench| b.replayer.targets().first().and_then(|target| target.canary);
    assert_eq!(unanswered(&b), Some(began));
    let syn = tried.iter().rfind(|sent| sent.header.flags == Flags::SYN).expect("a canary");
    let syn_ack = header(7, syn.header.seq.add(1).0, Flags::SYN | Flags::ACK, 0);
    let (id, key) = *b.claims.first().expect("claimed");
    assert_eq!(key.client, local);
    b.replayer.handle_target(b.now, id, &syn_ack);
    b.run();
    assert_eq!(unanswered(&b), None);
}
