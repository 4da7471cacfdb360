//! Reassembly, bursts and holes.

use super::super::ledger::Ledger;
use super::super::upstream::*;
use crate::wire::{Flags, Seq, Time};

const NOW: Time = Time::ZERO;

fn stream() -> Upstream {
    Upstream::new(Seq(u32::MAX - 1))
}

fn seq(offset: u32) -> Seq {
    Seq(u32::MAX - 1).add(offset)
}

fn bytes(up: &Upstream, from: u64, to: u64) -> Vec<u8> {
    let mut out = Vec::new();
    up.copy(from, to, &mut out);
    out
}

#[test]
fn segments_join_across_the_wrap_in_any_order() {
    let mut up = stream();
    assert_eq!(up.insert(seq(4), b"efgh", Flags::PSH, 0, NOW), Inserted::OutOfOrder);
    assert!(up.hole_since().is_some());
    assert_eq!(up.insert(seq(0), b"abcde", Flags::PSH, 0, NOW), Inserted::InOrder);
    assert_eq!(up.insert(seq(2), b"cd", Flags::PSH, 0, NOW), Inserted::Duplicate);
    assert_eq!((up.end(), up.buffered(), up.hole_since()), (8, 8, None));
    assert_eq!(bytes(&up, 1, 7), b"bcdefg");
    assert_eq!(up.seq_at(8), seq(8));
}

#[test]
fn marks_begin_where_the_gate_advances() {
    let mut up = stream();
    up.insert(seq(0), b"one", Flags::PSH, 0, NOW);
    up.insert(seq(3), b"more", Flags::PSH, 0, NOW);
    up.insert(seq(7), b"two", Flags::PSH, 100, NOW);
    assert_eq!(up.waiting().map(|m| (m.offset, m.gate)), Some((0, 0)));
    assert_eq!(up.limit(), (0, false));
    up.pass();
    assert_eq!(up.limit(), (7, false));
    up.pass();
    assert_eq!(up.limit(), (10, false));
    assert!(up.set_fin(seq(10), true, 200, NOW));
    assert_eq!(up.limit(), (10, false));
    up.pass();
    assert_eq!(up.limit(), (10, true));
}

#[test]
fn released_bytes_are_gone_and_counted() {
    let mut up = stream();
    up.insert(seq(0), b"abc", Flags::PSH, 0, NOW);
    up.insert(seq(3), b"def", Flags::PSH, 9, NOW);
    up.pass();
    up.release(3);
    assert_eq!(up.buffered(), 3);
    assert_eq!(up.waiting().map(|m| m.offset), Some(3));
    assert_eq!(up.insert(seq(0), b"abc", Flags::PSH, 9, NOW), Inserted::Duplicate);
}

#[test]
fn restart_goes_on_at_the_next_boundary() {
    let mut up = stream();
    up.insert(seq(0), b"abc", Flags::PSH, 0, NOW);
    up.insert(seq(3), b"def", Flags::PSH, 9, NOW);
    up.pass();
    up.pass();
    assert_eq!(up.restart_at_boundary(1).map(|m| m.offset), Some(3));
    assert_eq!((up.limit(), up.buffered()), ((3, false), 3));
    assert_eq!(up.restart_at_boundary(4), None);
}

#[test]
fn a_hole_given_up_loses_the_torn_request_only() {
    let mut up = stream();
    up.insert(seq(0), b"abc", Flags::PSH, 0, NOW);
    up.pass();
    up.insert(seq(3), b"def", Flags::PSH, 5, NOW);
    up.insert(seq(8), b"i", Flags::PSH, 9, NOW);
    up.insert(seq(9), b"jkl", Flags::PSH, 9, NOW);
    up.insert(seq(12), b"mno", Flags::PSH, 14, NOW);
    up.skip_hole();
    assert_eq!((up.end(), up.hole_since(), up.buffered()), (15, None, 9), "i to l are dropped");
    up.pass();
    assert_eq!(up.limit(), (6, false), "what precedes the hole leaves");
    let mark = up.waiting().expect("the next request");
    assert_eq!((mark.offset, mark.before, mark.follows_gap()), (12, 6, true));
    assert_eq!(up.restart_at_boundary(6).map(|mark| mark.follows_gap()), Some(false));
    assert_eq!((up.start(), up.buffered()), (12, 3));
    assert_eq!(bytes(&up, 12, 15), b"mno");
}

#[test]
fn a_hole_before_the_close_is_one_too() {
    let mut up = stream();
    up.insert(seq(0), b"abc", Flags::PSH, 0, NOW);
    up.pass();
    up.set_fin(seq(6), true, 5, NOW);
    assert_eq!((up.hole_since(), up.close()), (Some(NOW), None));
    up.skip_hole();
    assert_eq!((up.hole_since(), up.close()), (None, Some(Close::Fin(6))));
    assert_eq!(up.waiting().map(|mark| (mark.offset, mark.before)), Some((6, 3)));
}

#[test]
fn a_close_waits_for_what_comes_before_it() {
    let mut up = stream();
    assert!(up.set_fin(seq(3), true, 0, NOW));
    assert_eq!(up.close(), None);
    up.insert(seq(0), b"abc", Flags::PSH, 0, NOW);
    assert_eq!(up.close(), Some(Close::Fin(3)));
    assert_eq!(up.insert(seq(3), b"late", Flags::PSH, 0, NOW), Inserted::OutOfWindow);
    assert!(!up.set_fin(seq(3), true, 0, NOW));
    assert!(up.set_reset(seq(3), 0, NOW));
}

#[test]
fn fates_tell_what_arrived_from_what_did_not() {
    let mut up = stream();
    up.insert(seq(0), b"abcdef", Flags::PSH, 0, NOW);
    up.insert(seq(4), b"efgh", Flags::PSH, 0, NOW);
    up.release(5);
    assert_eq!(up.buffered(), 8, "a packet is held as a whole");
    up.insert(seq(8), b"next", Flags::PSH, 5, NOW);
    up.restart_at_boundary(5);
    up.insert(seq(15), b"torn", Flags::PSH, 5, NOW);
    up.skip_hole();
    up.insert(seq(13), b"xx", Flags::PSH, 5, NOW);
    let held = up.discard();
    let mut ledger = Ledger::default();
    up.entries.enter(&mut ledger);
    let fates: Vec<_> = ledger.fates.nonzero().collect();
    assert_eq!(fates, [("delivered", 5), ("duplicate", 4), ("torn", 4), ("skipped", 3)]);
    assert_eq!((held, ledger.missing), (4, 3));
}

proptest::proptest! {
    #[test]
    fn every_byte_has_one_fate_or_is_held(
        steps in proptest::collection::vec((0u8..8, 0u32..60, 1usize..30), 1..80),
    ) {
        let mut up = stream();
        let (mut given, mut ledger, mut gate) = (0, Ledger::default(), 0);
        for (what, at, len) in steps {
            let near = u32::try_from(up.end()).expect("short") + at;
            match what {
                0..=3 => {
                    gate += u64::from(what);
                    up.insert(seq(near).sub(20), &[0; 30][..len], Flags::PSH, gate, NOW);
                    given += len as u64;
                }
                4 => up.pass(),
                5 => up.release(up.limit().0.min(up.start() + u64::from(at))),
                6 => up.skip_hole(),
                _ => {
                    let boundary = up.restart_at_boundary(up.start());
                    up.skip(boundary.map_or(up.end(), |mark| mark.offset));
                }
            }
            up.entries.enter(&mut ledger);
            proptest::prop_assert_eq!(given, ledger.settled() + up.buffered() as u64);
        }
        let held = up.discard();
        up.entries.enter(&mut ledger);
        proptest::prop_assert_eq!((given, up.buffered()), (ledger.settled() + held, 0));
    }

    #[test]
    fn any_order_gives_the_stream(
        pieces in proptest::collection::vec((0u32..200, 1usize..40), 1..60),
    ) {
        let stream: Vec<u8> = (0..=255u8).collect();
        let mut up = Upstream::new(Seq(u32::MAX - 100));
        let whole = (0..240u32).step_by(20).map(|at| (at, 20));
        for (at, len) in pieces.into_iter().chain(whole) {
            let from = at as usize;
            up.insert(Seq(u32::MAX - 100).add(at), &stream[from..from + len], Flags::PSH, 0, NOW);
        }
        let end = usize::try_from(up.end()).expect("short");
        proptest::prop_assert!(end >= 240 && up.hole_since().is_none());
        proptest::prop_assert_eq!(bytes(&up, 0, up.end()), &stream[..end]);
        proptest::prop_assert_eq!(up.buffered(), end);
    }
}

const FULL: [u8; 600] = [b'x'; 600];

/// A stream of a client that has set PSH, at offset 600 of a write begun at gate 0.
fn in_a_write() -> Upstream {
    let mut up = stream();
    up.insert(seq(0), b"post", Flags::PSH, 0, NOW);
    up.insert(seq(4), &FULL, Flags::ACK, 0, NOW);
    up
}

fn marks(up: &mut Upstream) -> Vec<(u64, u64)> {
    std::iter::from_fn(|| {
        let mark = up.waiting()?;
        up.pass();
        Some((mark.offset, mark.gate))
    })
    .collect()
}

#[test]
fn what_continues_a_write_is_no_mark() {
    let mut up = in_a_write();
    up.insert(seq(604), &FULL, Flags::ACK, 30, NOW);
    up.insert(seq(1204), b"end", Flags::PSH, 30, NOW);
    up.insert(seq(1207), b"next", Flags::PSH, 30, NOW);
    assert_eq!(marks(&mut up), [(0, 0), (1207, 30)], "the next write is one, at the gate passed over");
}

#[test]
fn a_short_segment_ends_a_write_and_so_does_a_pushed_one() {
    let mut up = in_a_write();
    up.insert(seq(604), b"short", Flags::ACK, 0, NOW);
    up.insert(seq(609), &FULL, Flags::PSH, 30, NOW);
    up.insert(seq(1209), b"next", Flags::PSH, 60, NOW);
    assert_eq!(marks(&mut up), [(0, 0), (609, 30), (1209, 60)]);
}

#[test]
fn clients_that_never_push_have_marks_everywhere() {
    let mut up = stream();
    up.insert(seq(0), &FULL, Flags::ACK, 0, NOW);
    up.insert(seq(600), &FULL, Flags::ACK, 30, NOW);
    assert_eq!(marks(&mut up), [(0, 0), (600, 30)]);
}

#[test]
fn a_segment_out_of_order_remembers_whether_it_was_pushed() {
    for (flags, expected) in [(Flags::ACK, vec![(0, 0)]), (Flags::PSH, vec![(0, 0), (1204, 30)])] {
        let mut up = in_a_write();
        up.insert(seq(1204), b"end", Flags::PSH, 30, NOW);
        up.insert(seq(604), &FULL, flags, 0, NOW);
        assert_eq!(marks(&mut up), expected);
    }
}

#[test]
fn of_several_transmissions_one_with_psh_counts() {
    let mut up = in_a_write();
    up.insert(seq(4), &FULL, Flags::PSH, 0, NOW);
    up.insert(seq(604), b"next", Flags::PSH, 30, NOW);
    assert_eq!(marks(&mut up), [(0, 0), (604, 30)], "behind the stream");

    let mut up = in_a_write();
    up.insert(seq(1204), &FULL, Flags::ACK, 0, NOW);
    up.insert(seq(1204), &FULL, Flags::PSH, 0, NOW);
    up.insert(seq(1804), b"next", Flags::PSH, 30, NOW);
    up.insert(seq(604), &FULL, Flags::ACK, 0, NOW);
    assert_eq!(marks(&mut up), [(0, 0), (1804, 30)], "ahead of it");

    let mut up = in_a_write();
    up.insert(seq(4), &FULL, Flags::ACK, 30, NOW);
    up.insert(seq(600), b"xxxxnext", Flags::PSH, 30, NOW);
    assert_eq!(marks(&mut up), [(0, 0)], "one without changes nothing, nor does one that overlaps");
}

#[test]
fn no_write_continues_across_a_hole() {
    let mut up = in_a_write();
    up.insert(seq(700), &FULL, Flags::ACK, 30, NOW);
    up.insert(seq(1300), &FULL, Flags::PSH, 60, NOW);
    up.insert(seq(1900), b"next", Flags::PSH, 90, NOW);
    up.skip_hole();
    assert_eq!(marks(&mut up), [(0, 0), (1900, 90)], "1300 continues what the hole tore");
}

#[test]
fn a_close_that_ends_a_write_is_none_of_its_own() {
    let mut up = in_a_write();
    up.insert(seq(604), b"end", Flags::FIN, 30, NOW);
    up.set_fin(seq(607), false, 30, NOW);
    assert_eq!(marks(&mut up), [(0, 0)]);

    let mut up = in_a_write();
    up.set_fin(seq(604), true, 30, NOW);
    assert_eq!(marks(&mut up), [(0, 0), (604, 30)]);
}
