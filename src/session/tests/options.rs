//! Options and flags: timestamps, data on a SYN, ECN, urgent data.

use super::*;

#[test]
fn timestamps_are_echoed_and_cost_room() {
    let syn = TcpHeader { options: options(true), ..client_header(0, 0, Flags::SYN, 0) };
    let now = Time::from_micros(5_000_000);
    let session = Session::open(now, Arc::default(), Arc::default(), &syn);
    let mut b = Bench { session, now, events: Vec::new(), timestamps: true };
    b.run();
    b.target(0, 1, Flags::SYN | A, 0);
    b.client(1, 1, pa(), &[b'x'; 1460]);
    let mut payload = Vec::new();
    let header = b.session.poll_transmit(b.now, &mut payload).expect("data");
    assert_eq!(header.options.timestamps, Some(Timestamps { value: 5000, echo: 1 }));
    assert_eq!(payload.len(), 1448);
}

/// The window field that a target sees which does, or does not, scale windows; the client does, by 7.
fn advertised(scale: Option<u8>, window: u16) -> u16 {
    let mut b = Bench::new(Config::default());
    b.run();
    let options = TcpOptions { window_scale: scale, ..options(false) };
    let flags = Flags::SYN | A;
    let syn_ack =
        TcpHeader { seq: TARGET_ISN, ack: CLIENT_ISN.add(1), options, ..client_header(0, 1, flags, 0) };
    b.session.handle_target(b.now, &syn_ack);
    b.session.handle_client(b.now, &TcpHeader { window, ..client_header(1, 1, pa(), 1) }, b"x");
    b.session.poll_transmit(b.now, &mut Vec::new()).expect("data").window
}

#[test]
fn windows_are_scaled_if_both_sides_do() {
    assert_eq!((advertised(Some(3), 500), advertised(None, 500)), (500, 64_000));
    assert_eq!(advertised(Some(3), 1), 502 >> 7, "a SYN's own window is not scaled, and larger than 1 << 7");
}

#[test]
fn data_on_a_syn_is_replayed() {
    let now = Time::from_micros(1);
    let syn = client_header(0, 0, Flags::SYN, 4);
    let session = Session::open(now, Arc::default(), Arc::default(), &syn);
    let mut b = Bench { session, now, events: Vec::new(), timestamps: false };
    assert_eq!(b.client(0, 0, Flags::SYN, b"fast"), Taken::Data);
    b.run();
    b.target(0, 1, Flags::SYN | A, 0);
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"fast")]);
}

#[test]
fn data_on_a_syn_arrive_once_whatever_the_online_server_did_with_them() {
    // It took them; or the client sends them again, after a SYN without them or together with more.
    let again: [&[(u32, Flags, &[u8])]; 4] =
        [&[], &[(1, pa(), b"fast")], &[(0, Flags::SYN, b""), (1, pa(), b"fast")], &[(1, pa(), b"faster")]];
    for segments in again {
        let now = Time::from_micros(1);
        let session = Session::open(now, Arc::default(), Arc::default(), &client_header(0, 0, Flags::SYN, 4));
        let mut b = Bench { session, now, events: Vec::new(), timestamps: false };
        b.client(0, 0, Flags::SYN, b"fast");
        b.client(0, 0, Flags::SYN, b"fast");
        for (seq, flags, data) in segments {
            b.client(*seq, 1, *flags, data);
        }
        assert_eq!(b.run(), [sent(Flags::SYN, 0, 0, b"")]);
        b.target(0, 1, Flags::SYN | A, 0);
        let all = segments.last().map_or(&b"fast"[..], |(_, _, data)| data);
        assert_eq!(b.run(), [sent(pa(), 1, 1, all)]);
        let end = 1 + u32::try_from(all.len()).expect("short");
        b.client(end, 101, pa(), b"next");
        b.target(1, end, pa(), 100);
        assert_eq!(b.run(), [sent(pa(), end, 101, b"next")]);
    }
}

/// A session with timestamps; the target's so far is 1.
fn stamped() -> Bench {
    let syn = TcpHeader { options: options(true), ..client_header(0, 0, Flags::SYN, 0) };
    let now = Time::from_micros(5_000_000);
    let session = Session::open(now, Arc::default(), Arc::default(), &syn);
    let mut b = Bench { session, now, events: Vec::new(), timestamps: true };
    b.run();
    b.target(0, 1, Flags::SYN | A, 0);
    b.client(1, 1, pa(), b"get");
    b.run();
    b
}

fn stamped_segment(seq: u32, flags: Flags, payload_len: u32, value: u32) -> TcpHeader {
    let options = TcpOptions { timestamps: Some(Timestamps { value, echo: 5000 }), ..TcpOptions::default() };
    TcpHeader {
        seq: TARGET_ISN.add(seq),
        ack: CLIENT_ISN.add(4),
        flags,
        window: 64_000,
        options,
        payload_len,
    }
}

#[test]
fn what_was_sent_before_what_came_already_is_refused() {
    let mut b = stamped();
    assert_eq!(b.session.handle_target(b.now, &stamped_segment(1, A, 100, 10)), Answer::Accepted);
    b.wait(50 * MS);
    let late = [stamped_segment(101, A, 100, 9), stamped_segment(101, A, 100, 10_u32.wrapping_sub(1 << 30))];
    for header in late {
        assert_eq!(b.session.handle_target(b.now, &header), Answer::Unacceptable);
        assert_eq!(b.run(), [sent(A, 4, 101, b"")], "answered, and not taken");
    }
    assert_eq!(b.session.handle_target(b.now, &stamped_segment(101, A, 0, 9)), Answer::Unacceptable);
    assert_eq!(b.run(), [], "an ACK is not answered");
    assert_eq!(b.session.handle_target(b.now, &stamped_segment(101, A, 100, 10)), Answer::Accepted);
    assert_eq!(
        b.session.handle_target(b.now, &stamped_segment(201, A, 100, 10 + (1 << 30))),
        Answer::Accepted
    );
    assert_eq!(b.session.handle_target(b.now, &stamped_segment(301, Flags::RST, 0, 9)), Answer::Reset);
}

#[test]
fn a_segment_behind_a_hole_outdates_nothing() {
    let mut b = stamped();
    assert_eq!(b.session.handle_target(b.now, &stamped_segment(101, A, 100, 11)), Answer::OutOfOrder);
    assert_eq!(b.session.handle_target(b.now, &stamped_segment(1, A, 100, 10)), Answer::Accepted);
}

#[test]
fn congestion_notification_is_not_offered_and_not_minded() {
    let now = Time::from_micros(1);
    let flags = Flags::SYN | Flags::ECE | Flags::CWR;
    let session = Session::open(now, Arc::default(), Arc::default(), &client_header(0, 0, flags, 0));
    let mut b = Bench { session, now, events: Vec::new(), timestamps: false };
    assert_eq!(b.client(0, 0, flags, b""), Taken::Control);
    assert_eq!(b.run(), [sent(Flags::SYN, 0, 0, b"")]);
    assert_eq!(b.target(0, 1, Flags::SYN | A | Flags::ECE, 0), Answer::Accepted);
    b.client(1, 1, pa() | Flags::CWR | Flags::ECE, b"get");
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"get")]);
    assert_eq!(b.target(1, 4, pa() | Flags::ECE | Flags::CWR, 100), Answer::Accepted);
    assert_eq!(b.wait(50 * MS), [sent(A, 4, 101, b"")]);
}

#[test]
fn urgent_data_arrive_in_their_place() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.client(4, 1, pa() | Flags::URG, b"!");
    b.client(5, 1, pa(), b"two");
    assert_eq!(b.run(), [sent(pa(), 1, 1, b"one!two")]);
    assert_eq!(b.target(1, 8, pa() | Flags::URG, 100), Answer::Accepted);
}
