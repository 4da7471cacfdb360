//! Claims: told before anything is sent, confirmed where an intercept confirms them, lost and made again.

use super::*;
use crate::wire::Scope;

fn scope(targets: &[&str], clients: Option<&[&str]>) -> Scope {
    let prefix = |text: &&str| text.parse().expect("prefix");
    Scope {
        targets: targets.iter().map(|target| addr(target)).collect(),
        clients: clients.map(|clients| clients.iter().map(prefix).collect()),
    }
}

#[test]
fn no_syn_is_there_before_its_claim_was_told() {
    let mut b = Bench::new(config());
    b.packet(CLIENT, ONLINE, header(100, 0, Flags::SYN, 0), b"");
    assert!(b.replayer.poll_transmit(b.now, &mut b.out).is_none(), "whatever the order of the calls");
    assert_eq!(b.run().len(), 1);
}

#[test]
fn no_syn_of_a_reconnect_is_there_before_its_claim_was_told() {
    let mut b = Bench::new(config());
    b.syn(CLIENT);
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    b.target(addr(CLIENT), header(500, 101, Flags::SYN | A, 0));
    b.target(addr(CLIENT), header(501, 106, A, 4));
    // The target closes, and the client has more to say.
    b.target(addr(CLIENT), header(505, 106, Flags::FIN | A, 0));
    b.packet(CLIENT, ONLINE, header(106, 5, A, 5), b"again");
    let mut untold = Vec::new();
    while let Some(transmit) = b.replayer.poll_transmit(b.now, &mut b.out) {
        untold.push(transmit.header.flags);
    }
    assert!(!untold.iter().any(|flags| flags.syn()), "{untold:?}");
    let sent = b.run();
    assert_eq!(sent.iter().filter(|transmit| transmit.header.flags.syn()).count(), 1, "{sent:?}");
    assert_eq!(b.counters().connections, 2);
}

#[test]
fn a_syn_waits_for_every_intercept_that_confirms_claims() {
    let mut b = Bench::new(config());
    b.confirms = 0b101;
    assert!(b.syn(CLIENT).is_empty());
    let (id, _) = b.claims[0];
    for (from, is_ready) in [(0b100, false), (0b100, false), (0b010, false), (0b001, true)] {
        b.replayer.handle_confirmation(b.now, id, from);
        if is_ready {
            b.awaited.clear();
        }
        assert_eq!(b.run().len(), usize::from(is_ready), "{from:b}");
    }
    b.replayer.handle_confirmation(b.now, id, 0b001);
    assert!(b.run().is_empty(), "once only");
}

#[test]
fn a_claim_that_is_not_confirmed_is_made_for_other_ports_and_then_given_up() {
    let mut b = Bench::new(config());
    b.confirms = 1;
    assert!(b.syn(CLIENT).is_empty());
    let mut tried = HashSet::new();
    while b.replayer.sessions() > 0 {
        assert!(tried.insert(b.claims[0].1.client), "another one each time");
        b.now = b.replayer.poll_timeout().expect("a deadline");
        b.replayer.handle_timeout(b.now);
        assert!(b.run().is_empty(), "nothing is sent");
    }
    assert_eq!((tried.len(), b.counters().claims_unconfirmed), (5, 5));
    assert_eq!(b.counters().ended.of(End::ClaimRefused), 1);
    assert!(b.claims.is_empty(), "and nothing stays claimed");
}

#[test]
fn a_flow_without_room_or_right_ends_its_session() {
    for loss in [ClaimLoss::Full, ClaimLoss::Foreign] {
        let mut b = Bench::new(config());
        b.confirms = 1;
        b.syn(CLIENT);
        b.replayer.handle_claim_loss(b.now, b.claims[0].0, loss);
        assert!(b.run().is_empty(), "nothing was ever sent, and nothing is");
        assert_eq!((b.replayer.sessions(), b.counters().ended.of(End::ClaimRefused)), (0, 1));
        assert_eq!(b.counters().claims_refused, 1);
    }
}

#[test]
fn an_evicted_flow_is_claimed_again_and_its_session_goes_on() {
    let mut b = Bench::new(config());
    b.syn(CLIENT);
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    b.target(addr(CLIENT), header(500, 101, Flags::SYN | A, 0));
    let (id, key) = b.claims[0];
    b.replayer.handle_claim_loss(b.now, id, ClaimLoss::Evicted);
    assert_eq!(b.replayer.poll_claim(), Some(Claim::Claim(id, key)));
    b.replayer.handle_claim_told(b.now, id, 1);
    assert_eq!(b.target(addr(CLIENT), header(501, 106, A, 4)).len(), 0);
    assert_eq!((b.replayer.sessions(), b.counters().claims_evicted), (1, 1));
    b.now += Duration::from_secs(5);
    b.replayer.handle_timeout(b.now);
    assert_eq!(b.counters().claims_unconfirmed, 0, "the connection is there already");
}

#[test]
fn nothing_is_sent_for_a_client_or_target_outside_the_scopes() {
    let cases: [(Vec<Option<Scope>>, bool); 7] = [
        (vec![], true),
        (vec![None], true),
        (vec![Some(scope(&[TARGET], None))], true),
        (vec![Some(scope(&[TARGET], Some(&["10.9.0.0/24"])))], true),
        (vec![Some(scope(&[TARGET], Some(&["10.99.0.0/24"])))], false),
        (vec![Some(scope(&["10.2.0.3:8080"], None)), None], true),
        (vec![Some(scope(&["10.2.0.3:8080"], None)), Some(scope(&[TARGET], Some(&[])))], false),
    ];
    for (scopes, inside) in cases {
        let mut b = Bench::new(config());
        b.replayer.set_scopes(b.now, scopes.clone());
        assert_eq!(b.syn(CLIENT).len(), usize::from(inside), "{scopes:?}");
        let outside = u64::from(!inside);
        assert_eq!(b.counters().ended.of(End::OutOfScope), outside, "{scopes:?}");
        assert_eq!((b.counters().no_address, b.claims.len()), (0, usize::from(inside)));
    }
}

#[test]
fn clients_of_a_pool_get_the_addresses_in_scope() {
    let pool = "10.99.0.0/24".parse().expect("prefix");
    let mut b = Bench::new(Config { pools: vec![pool], ..config() });
    b.replayer.set_scopes(b.now, vec![Some(scope(&[TARGET], Some(&["10.99.0.0/25"])))]);
    for host in 1..=50 {
        let sent = b.syn(&format!("10.9.0.{host}:40000"));
        let std::net::IpAddr::V4(local) = sent[0].src.ip() else { panic!("{sent:?}") };
        assert!(local.octets()[3] < 128, "{local}");
    }
}

#[test]
fn sessions_outside_a_new_scope_end() {
    let mut b = Bench::new(config());
    b.syn(CLIENT);
    b.syn("10.8.0.1:5");
    b.replayer.set_scopes(b.now, vec![Some(scope(&[TARGET], Some(&["10.9.0.0/24"])))]);
    b.run();
    assert_eq!((b.replayer.sessions(), b.counters().ended.of(End::OutOfScope)), (1, 1));
    assert_eq!(b.claims[0].1.client, addr(CLIENT));
}
