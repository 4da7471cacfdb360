//! The router as its worker drives it: packets, frames and time in, records and verdicts out.

use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::wire::{Flags, Seq};

const TARGET: ([u8; 4], u16) = ([10, 0, 0, 2], 80);
pub(super) const A: ConnId = ConnId(1);
pub(super) const B: ConnId = ConnId(2);
const C: ConnId = ConnId(3);
pub(super) const ANN: Identity = Identity { tenant: Tenant::Key([1; 4]), instance: 100, worker: 0 };
pub(super) const BOB: Identity = Identity { tenant: Tenant::Key([2; 4]), instance: 200, worker: 0 };

pub(super) fn key(port: u16) -> FlowKey {
    FlowKey { client: ([10, 9, 0, 1], port).into(), server: TARGET.into() }
}

pub(super) fn at(millis: u64) -> Time {
    // Later than the time in which nothing is let through.
    Time::from_micros((20_000 + millis) * 1000)
}

fn header(flags: Flags) -> TcpHeader {
    TcpHeader::bare(Seq(1), Seq(2), flags, 100)
}

pub(super) fn response(key: FlowKey, flags: Flags) -> Packet<'static> {
    Packet { src: key.server, dst: key.client, header: header(flags), payload: &[] }
}

pub(super) fn settings(unclaimed: Unclaimed) -> Settings {
    Settings { max_flows: 4, max_held: 4, ..Settings::new(vec![TARGET.into()], unclaimed) }
}

/// A router with Ann on connection A and Bob on connection B.
fn router(unclaimed: Unclaimed) -> Router {
    let mut router = Router::new(Time::ZERO, settings(unclaimed));
    assert_eq!(router.connect(A, ANN, None), None);
    assert_eq!(router.connect(B, BOB, None), None);
    router
}

pub(super) fn ack(router: &mut Router, now: Time, port: u16) -> Disposition {
    router.handle_response(now, u32::from(port), &response(key(port), Flags::ACK))
}

fn syn(router: &mut Router, now: Time, port: u16) -> Disposition {
    router.handle_response(now, u32::from(port), &response(key(port), Flags::SYN | Flags::ACK))
}

fn verdicts(router: &mut Router) -> Vec<(u32, Verdict)> {
    std::iter::from_fn(|| router.poll_verdict()).collect()
}

#[test]
fn a_claimer_speaks_for_its_own_clients_only() {
    let mut router = Router::new(Time::ZERO, settings(Unclaimed::Drop));
    let clients = ["10.9.0.0/30", "fd00::/64"].map(|text| text.parse().expect("prefix"));
    assert_eq!(router.connect(A, ANN, Some(clients.into())), None);
    let elsewhere = FlowKey { client: ([10, 9, 0, 4], 1).into(), ..key(1) };
    assert_eq!(router.claim(at(0), A, FlowId(1), key(1)), Ok(vec![]));
    assert_eq!(router.claim(at(0), A, FlowId(2), elsewhere), Err(Refusal::ForeignClient));
    assert_eq!(router.counters().refused_client, 1);
    assert_eq!(router.connect(C, ANN, None), Some(A));
    assert_eq!(router.claim(at(0), C, FlowId(2), elsewhere), Ok(vec![]), "its next connection may");
}

#[test]
fn a_claimed_flow_is_forwarded_until_it_is_released() {
    let mut router = router(Unclaimed::Drop);
    assert_eq!(router.claim(at(0), A, FlowId(7), key(1)), Ok(vec![]));
    assert_eq!(ack(&mut router, at(1), 1), Disposition::Forward(A, FlowId(7)));
    router.release(at(2), B, FlowId(7));
    assert_eq!(ack(&mut router, at(2), 1), Disposition::Forward(A, FlowId(7)), "not Bob's to release");
    router.release(at(3), A, FlowId(7));
    assert_eq!(ack(&mut router, at(3), 1), Disposition::Drop);
    assert_eq!(router.counters().outcomes.of(Outcome::Released), 1);
    assert_eq!(router.flows(), 0);
    assert!(router.by_id.is_empty());
}

#[test]
fn a_live_flow_is_not_taken_by_another() {
    let mut router = router(Unclaimed::Drop);
    assert_eq!(router.claim(at(0), A, FlowId(1), key(1)), Ok(vec![]));
    assert_eq!(router.claim(at(0), B, FlowId(1), key(1)), Err(Refusal::Taken));
    assert_eq!(router.claim(at(0), A, FlowId(2), key(1)), Ok(vec![]), "a new name of its own flow");
    assert_eq!(ack(&mut router, at(0), 1), Disposition::Forward(A, FlowId(2)));
    router.release(at(0), A, FlowId(1));
    assert_eq!(ack(&mut router, at(0), 1), Disposition::Forward(A, FlowId(2)), "the old name is void");
    let foreign = FlowKey { server: ([10, 0, 0, 2], 81).into(), ..key(1) };
    assert_eq!(router.claim(at(0), B, FlowId(1), foreign), Err(Refusal::ForeignTarget));
    assert_eq!(router.claim(at(0), C, FlowId(1), key(2)), Err(Refusal::NotConnected));
    let counters = router.counters();
    assert_eq!((counters.claims, counters.refused_taken, counters.refused_target), (2, 1, 1));
}

#[test]
fn only_clients_whose_responses_are_taken_can_be_claimed() {
    let clients = vec!["10.9.0.0/24".parse().expect("prefix"), "fd00::/64".parse().expect("prefix")];
    let settings = Settings { clients, ..Settings::new(vec![TARGET.into()], Unclaimed::Drop) };
    let mut router = Router::new(at(0), settings);
    router.connect(A, Identity { instance: 1, ..ANN }, None);
    let claim = |router: &mut Router, client: [u8; 4]| {
        router.claim(at(0), A, FlowId(1), FlowKey { client: (client, 5).into(), server: TARGET.into() })
    };
    assert_eq!(claim(&mut router, [10, 9, 0, 255]), Ok(vec![]));
    assert_eq!(claim(&mut router, [10, 9, 1, 0]), Err(Refusal::ForeignClient));
    let counters = router.counters();
    assert_eq!((counters.claims, counters.refused_client), (1, 1));
}

#[test]
fn an_id_names_one_flow() {
    let mut router = router(Unclaimed::Drop);
    assert_eq!(router.claim(at(0), A, FlowId(1), key(1)), Ok(vec![]));
    assert_eq!(router.claim(at(0), A, FlowId(1), key(2)), Ok(vec![]));
    assert_eq!(router.claim(at(0), B, FlowId(1), key(3)), Ok(vec![]), "ids are per claimer");
    assert_eq!(syn(&mut router, at(0), 1), Disposition::Held);
    assert_eq!(ack(&mut router, at(0), 2), Disposition::Forward(A, FlowId(1)));
    assert_eq!(router.flows(), 2);
}

#[test]
fn responses_that_beat_their_claim_are_held_for_it() {
    for unclaimed in [Unclaimed::Drop, Unclaimed::Accept] {
        let mut router = router(unclaimed);
        assert_eq!(syn(&mut router, at(0), 1), Disposition::Held);
        assert_eq!(syn(&mut router, at(5), 2), Disposition::Held);
        assert_eq!(ack(&mut router, at(10), 1), Disposition::Held);
        assert_eq!(router.poll_timeout(), Some(at(200)));
        let held = router.claim(at(20), A, FlowId(1), key(1)).expect("free");
        let expected = [
            Held { header: header(Flags::SYN | Flags::ACK), arrived: at(0) },
            Held { header: header(Flags::ACK), arrived: at(10) },
        ];
        assert_eq!(held, expected);
        assert_eq!(router.held(), 1);
        let late: &[(u32, Verdict)] = match unclaimed {
            Unclaimed::Drop => &[],
            Unclaimed::Accept => &[(1, Verdict::Drop), (1, Verdict::Drop)],
        };
        assert_eq!(verdicts(&mut router), late);
        assert_eq!(router.poll_timeout(), Some(at(205)));
        router.handle_timeout(at(205));
        assert_eq!(router.held(), 0);
        assert_eq!(verdicts(&mut router).len(), late.len() / 2);
    }
}

#[test]
fn what_nobody_claims_is_counted_when_its_wait_ends_or_at_once_if_nobody_can() {
    let mut router = router(Unclaimed::Drop);
    assert_eq!(syn(&mut router, at(0), 1), Disposition::Held);
    router.handle_timeout(at(200));
    assert_eq!(router.counters().outcomes.of(Outcome::UnclaimedDropped), 1);
    let foreign = FlowKey { server: ([10, 0, 0, 9], 80).into(), ..key(1) };
    let packet = response(foreign, Flags::ACK);
    assert_eq!(router.handle_response(at(201), 7, &packet), Disposition::Drop);
    assert_eq!(router.counters().outcomes.of(Outcome::UnclaimedDropped), 2);
}

#[test]
fn nothing_else_is_held_when_too_many_are() {
    let mut router = router(Unclaimed::Accept);
    for port in 1..=4 {
        assert_eq!(syn(&mut router, at(0), port), Disposition::Held);
    }
    assert_eq!(syn(&mut router, at(0), 5), Disposition::Drop, "never let through unasked");
    assert_eq!(router.counters().outcomes.of(Outcome::HoldFull), 1);
    assert_eq!(router.claim(at(1), A, FlowId(1), key(1)).map(|held| held.len()), Ok(1));
    assert_eq!(syn(&mut router, at(1), 5), Disposition::Held);
}

#[test]
fn accept_lets_others_through_and_remembers_them() {
    let mut router = router(Unclaimed::Accept);
    assert_eq!(syn(&mut router, at(0), 1), Disposition::Held);
    router.handle_timeout(at(200));
    assert_eq!(verdicts(&mut router), [(1, Verdict::Accept)]);
    assert_eq!(ack(&mut router, at(201), 1), Disposition::Accept);
    assert_eq!(syn(&mut router, at(202), 1), Disposition::Held, "a new connection may be a replayed one");
    assert_eq!(router.claim(at(203), A, FlowId(1), key(1)).map(|held| held.len()), Ok(1));
    assert_eq!(ack(&mut router, at(204), 1), Disposition::Forward(A, FlowId(1)));
    assert_eq!(router.counters().outcomes.of(Outcome::UnclaimedAccepted), 2);
}

#[test]
fn accept_never_lets_a_once_claimed_flow_through() {
    let mut router = router(Unclaimed::Accept);
    let linger = settings(Unclaimed::Accept).linger;
    for (flow, port) in [(1, 1), (2, 2)] {
        assert_eq!(router.claim(at(0), A, FlowId(flow), key(port)), Ok(vec![]));
    }
    router.release(at(0), A, FlowId(2));
    router.disconnect(A);
    let mut now = at(0);
    for _ in 0..5 {
        now += linger / 2;
        router.handle_timeout(now);
        assert_eq!(ack(&mut router, now, 1), Disposition::Drop);
        assert_eq!(ack(&mut router, now, 2), Disposition::Drop);
        assert_eq!(syn(&mut router, now, 1), Disposition::Held);
        assert_eq!(syn(&mut router, now, 2), Disposition::Held);
        router.handle_timeout(now + Duration::from_millis(200));
        assert_eq!(verdicts(&mut router), [(1, Verdict::Drop), (2, Verdict::Drop)]);
    }
    assert_eq!(router.counters().outcomes.of(Outcome::Orphaned), 5);
    assert_eq!(router.counters().outcomes.of(Outcome::Released), 5);
    router.handle_timeout(now + linger);
    assert_eq!((router.flows(), router.poll_evicted()), (0, None));
    assert_eq!(ack(&mut router, now + linger, 1), Disposition::Held, "forgotten");
}

#[test]
fn nothing_is_let_through_right_after_the_start() {
    let mut router = Router::new(Time::ZERO, settings(Unclaimed::Accept));
    assert_eq!(ack(&mut router, Time::from_micros(9_000_000), 1), Disposition::Held);
    router.handle_timeout(Time::from_micros(9_200_000));
    assert_eq!(verdicts(&mut router), [(1, Verdict::Drop)]);
    assert_eq!(ack(&mut router, Time::from_micros(9_900_000), 1), Disposition::Held);
    router.handle_timeout(Time::from_micros(10_100_000));
    assert_eq!(verdicts(&mut router), [(1, Verdict::Accept)]);
}

#[test]
fn a_reconnect_makes_its_claims_again() {
    let mut router = router(Unclaimed::Accept);
    for port in 1..=2 {
        assert_eq!(router.claim(at(0), A, FlowId(port.into()), key(port)), Ok(vec![]));
    }
    router.disconnect(A);
    assert_eq!(ack(&mut router, at(1), 1), Disposition::Drop);
    assert_eq!(router.connect(C, ANN, None), None);
    assert_eq!(ack(&mut router, at(2), 1), Disposition::Drop, "not yet claimed again");
    assert_eq!(router.claim(at(3), C, FlowId(1), key(1)), Ok(vec![]));
    assert_eq!(ack(&mut router, at(4), 1), Disposition::Forward(C, FlowId(1)));
    assert_eq!(ack(&mut router, at(4), 2), Disposition::Drop);
    assert_eq!(router.counters().outcomes.of(Outcome::Orphaned), 3);
    assert_eq!(router.claim(at(5), B, FlowId(1), key(2)), Ok(vec![]), "an orphan is anybody's");
    assert_eq!(router.claim(at(5), C, FlowId(2), key(2)), Err(Refusal::Taken));
}

#[test]
fn a_second_connection_of_a_claimer_replaces_the_first() {
    let mut router = router(Unclaimed::Drop);
    assert_eq!(router.claim(at(0), A, FlowId(1), key(1)), Ok(vec![]));
    assert_eq!(router.connect(C, ANN, None), Some(A));
    assert_eq!(router.claim(at(1), A, FlowId(9), key(9)), Err(Refusal::NotConnected));
    assert_eq!(router.claim(at(1), C, FlowId(1), key(1)), Ok(vec![]));
    router.disconnect(A);
    assert_eq!(ack(&mut router, at(2), 1), Disposition::Forward(C, FlowId(1)));
    let other_worker = Identity { worker: 1, ..ANN };
    assert_eq!(router.connect(ConnId(4), other_worker, None), None);
    assert_eq!(router.claim(at(3), ConnId(4), FlowId(1), key(1)), Err(Refusal::Taken));
}

#[test]
fn in_a_full_table_who_has_its_share_gives_up_its_idlest_flow_or_is_refused() {
    let mut router = router(Unclaimed::Drop);
    for port in 1..=4 {
        assert_eq!(router.claim(at(0), A, FlowId(port.into()), key(port)), Ok(vec![]));
    }
    assert_eq!(router.claim(at(1), A, FlowId(5), key(5)), Err(Refusal::TableFull));
    assert_eq!(ack(&mut router, at(9_000), 1), Disposition::Forward(A, FlowId(1)));
    assert_eq!(router.claim(at(10_000), A, FlowId(5), key(5)), Ok(vec![]));
    assert_eq!(router.poll_evicted(), Some((A, FlowId(2))));
    assert_eq!(router.poll_evicted(), None);
    assert_eq!((router.counters().evicted, router.counters().displaced), (1, 0));
    // Who is below its share displaces even a busy flow of who is above.
    assert_eq!(router.claim(at(10_001), B, FlowId(6), key(6)), Ok(vec![]));
    assert_eq!(router.poll_evicted(), Some((A, FlowId(3))));
    assert_eq!(router.take_displaced(), Some(Displaced { conn: A, flows: 4, share: 2 }));
    assert_eq!((router.counters().evicted, router.counters().displaced), (2, 1));
    // Orphans go first.
    router.disconnect(A);
    assert_eq!(router.claim(at(10_002), B, FlowId(7), key(7)), Ok(vec![]));
    assert_eq!((router.flows(), router.poll_evicted()), (4, None));
}

#[test]
fn idle_flows_expire_and_their_claimers_are_told() {
    let mut router = router(Unclaimed::Drop);
    assert_eq!(router.claim(at(0), A, FlowId(1), key(1)), Ok(vec![]));
    let end = at(0) + settings(Unclaimed::Drop).max_idle;
    assert_eq!(router.poll_timeout(), Some(end));
    router.handle_timeout(end);
    assert_eq!(router.poll_evicted(), Some((A, FlowId(1))));
    assert_eq!((router.counters().expired, router.flows(), router.poll_timeout()), (1, 0, None));
}

proptest::proptest! {
    /// Whatever happens: every response is counted once, tables stay in their bounds, a late
    /// verdict comes for each held packet, and no response of a flow that somebody holds is
    /// let through.
    #[test]
    fn invariants(steps in proptest::collection::vec((0u8..8, 0u64..3, 1u16..8, 0u64..300), 0..400)) {
        let mut router = Router::new(Time::ZERO, settings(Unclaimed::Accept));
        let mut now = at(0);
        let (mut responses, mut held, mut late, mut next) = (0u64, 0u64, 0u64, 10u64);
        let mut conns: [Option<ConnId>; 3] = [None; 3];
        let mut owner: HashMap<u16, (ConnId, FlowId)> = HashMap::new();
        for (step, who, port, wait) in steps {
            let mine = conns[usize::try_from(who).expect("small")];
            match step {
                0 => {
                    next += 1;
                    let conn = ConnId(next);
                    router.connect(conn, Identity { instance: who, ..ANN }, None);
                    conns[usize::try_from(who).expect("small")] = Some(conn);
                    owner.retain(|_, (of, _)| Some(*of) != mine);
                }
                1 => if let Some(conn) = mine {
                    router.disconnect(conn);
                    conns[usize::try_from(who).expect("small")] = None;
                    owner.retain(|_, (of, _)| *of != conn);
                },
                2 | 3 => if let Some(conn) = mine {
                    let flow = FlowId(port.into());
                    match router.claim(now, conn, flow, key(port)) {
                        Ok(waiting) => {
                            for _ in waiting { router.count(Outcome::ForwardedLate); }
                            owner.insert(port, (conn, flow));
                        }
                        Err(Refusal::Taken) => proptest::prop_assert!(owner.contains_key(&port)),
                        Err(_) => {}
                    }
                },
                4 => if let Some(conn) = mine {
                    router.release(now, conn, FlowId(port.into()));
                    owner.retain(|p, (of, _)| *of != conn || *p != port);
                },
                _ => {
                    responses += 1;
                    let packet = response(key(port), if step == 5 { Flags::SYN } else { Flags::ACK });
                    match router.handle_response(now, port.into(), &packet) {
                        Disposition::Forward(conn, flow) => {
                            router.count(Outcome::Forwarded);
                            proptest::prop_assert_eq!(owner.get(&port), Some(&(conn, flow)));
                        }
                        Disposition::Held => held += 1,
                        Disposition::Drop => {}
                        Disposition::Accept => proptest::prop_assert!(!owner.contains_key(&port)),
                    }
                }
            }
            now += Duration::from_millis(wait * wait);
            router.handle_timeout(now);
            while let Some((port, verdict)) = router.poll_verdict() {
                late += 1;
                let claimed = owner.contains_key(&u16::try_from(port).expect("a port"));
                proptest::prop_assert!(verdict == Verdict::Drop || !claimed);
            }
            while let Some((conn, flow)) = router.poll_evicted() {
                let before = owner.len();
                owner.retain(|_, at| *at != (conn, flow));
                proptest::prop_assert_eq!(owner.len() + 1, before);
            }
            let waiting = u64::try_from(router.held()).expect("bounded");
            proptest::prop_assert_eq!(router.counters().outcomes.total() + waiting, responses);
            proptest::prop_assert_eq!(late + waiting, held);
            proptest::prop_assert!(router.flows() <= 4 && router.held() <= 4);
            proptest::prop_assert_eq!(router.by_id.len(), router.flows());
        }
    }
}

#[test]
fn other_settings_leave_claims_as_they_are() {
    let mut router = router(Unclaimed::Drop);
    router.connect(ConnId(1), Identity { instance: 1, ..ANN }, None);
    router.claim(at(0), ConnId(1), FlowId(1), key(1)).expect("free");
    let other = "10.0.0.99:99".parse().expect("address");
    router.configure(Settings { max_flows: 2, ..Settings::new(vec![other], Unclaimed::Accept) });

    assert_eq!(ack(&mut router, at(1), 1), Disposition::Forward(ConnId(1), FlowId(1)));
    assert_eq!(router.claim(at(2), ConnId(1), FlowId(2), key(2)), Err(Refusal::ForeignTarget));
    let foreign = FlowKey { server: other, ..key(2) };
    assert_eq!(router.claim(at(2), ConnId(1), FlowId(2), foreign), Ok(Vec::new()));
    assert_eq!(router.settings.unclaimed, Unclaimed::Drop);
}
