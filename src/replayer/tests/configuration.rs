//! What another configuration does to sessions that live.

use super::*;

#[test]
fn another_configuration_is_for_sessions_that_begin() {
    let mut b = Bench::new(Config { copies: 2, ..config() });
    assert_eq!(b.syn(CLIENT).len(), 2);
    let other = addr("10.2.0.3:8080");
    let mapping = Mapping { online: None, port: 80, target: other };
    let next = Config { mappings: vec![mapping], max_sessions: 2, ..config() };
    b.replayer.configure(b.now, Arc::new(next.clone()));

    // The live ones go on, and number more than there are copies.
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    assert_eq!((b.counters().unused.total(), b.counters().captured_bytes), (0, 10));
    b.syn("10.9.0.2:40000");
    assert_eq!(b.counters().unused.total(), 1, "no room");
    b.replayer.configure(b.now, Arc::new(Config { max_sessions: 3, ..next.clone() }));
    let sent = b.syn("10.9.0.3:40000");
    assert_eq!(sent.iter().map(|transmit| transmit.dst).collect::<Vec<_>>(), [other]);

    // Nothing more comes for those whose mapping is gone.
    let mapping = Mapping { online: None, port: 81, target: other };
    b.replayer.configure(b.now, Arc::new(Config { mappings: vec![mapping], ..next }));
    b.client(CLIENT, header(106, 1, A, 5), b"hello");
    assert_eq!(b.counters().unused.of(Unused::NotRouted), 1);
    for _ in 0..1000 {
        b.now = b.replayer.poll_timeout().unwrap_or(b.now).max(b.now);
        b.replayer.handle_timeout(b.now);
        b.run();
    }
    assert_eq!(b.replayer.sessions(), 0);
}

/// The rules leave such connections out from then on, so their sessions get nothing more.
#[test]
fn sessions_that_are_not_selected_any_more_end_when_they_have_sent_what_they_hold() {
    let before = config();
    let none = Config { share: 0, ..before.clone() };
    let others = Config { clients: vec!["10.8.0.0/16".parse().expect("a prefix")], ..before.clone() };
    for after in [none, others] {
        let mut b = Bench::new(before.clone());
        b.syn(CLIENT);
        b.target(addr(CLIENT), header(500, 101, Flags::SYN | A, 0));
        b.replayer.configure(b.now, Arc::new(after));
        let sent = b.client(CLIENT, header(101, 1, A, 5), b"hello");
        assert_eq!(b.counters().unused.of(Unused::NotSelected), 1);
        let mut flags: Vec<_> = sent.iter().map(|transmit| transmit.header.flags).collect();
        for _ in 0..1000 {
            b.now = b.replayer.poll_timeout().unwrap_or(b.now).max(b.now);
            b.replayer.handle_timeout(b.now);
            flags.extend(b.run().iter().map(|transmit| transmit.header.flags));
        }
        assert_eq!(b.replayer.sessions(), 0);
        assert!(flags.iter().any(|flags| flags.fin() || flags.rst()), "the target learns of it: {flags:?}");
    }
}

/// Nothing is sent to a target that has become production but the resets that end what is open there.
#[test]
fn a_forbidden_target_gets_resets_and_no_more() {
    let mut b = Bench::new(config());
    b.syn(CLIENT);
    b.target(addr(CLIENT), header(500, 101, Flags::SYN | A, 0));
    b.client(CLIENT, header(101, 1, A, 5), b"hello");
    // The gate holds this one back until the first has been answered.
    b.client(CLIENT, header(106, 100, A, 5), b"again");
    let forbidden = vec![addr(TARGET)];
    b.replayer.configure(b.now, Arc::new(Config { forbidden, ..config() }));
    let mut sent = b.run();
    sent.extend(b.syn("10.9.0.2:40000"));
    sent.extend(b.client("10.9.0.3:40000", header(101, 1, A, 5), b"joins"));
    assert!(sent.iter().all(|transmit| transmit.header.flags.rst()), "{sent:?}");
    assert_eq!(sent.len(), 1);
    assert_eq!((b.replayer.sessions(), b.counters().ended.of(End::Forbidden)), (0, 1));
    assert_eq!(b.counters().unused.of(Unused::NotRouted), 2);
    b.replayer.configure(b.now, Arc::new(config()));
    assert_eq!(b.syn("10.9.0.2:40001").len(), 1, "it is apart again");
}

#[test]
fn segments_fit_the_way_to_their_target() {
    for (path, segment) in [(1400, 1360), (9000, 1460)] {
        let path_mtus = vec![(addr("10.2.0.9:80").ip(), 600), (addr(TARGET).ip(), path)];
        let mut b = Bench::new(Config { path_mtus, ..config() });
        b.syn(CLIENT);
        let mut answer = header(500, 101, Flags::SYN | A, 0);
        answer.options.mss = Some(9000);
        b.target(addr(CLIENT), answer);
        let sent = b.client(CLIENT, header(101, 1, A, 3000), &[b'x'; 3000]);
        let longest = sent.iter().map(|transmit| transmit.header.payload_len.min(transmit.segment)).max();
        assert_eq!(longest, Some(segment), "{sent:?}");
    }
}
