//! Clients that abort: FIN, then RST, in every order and state. A control segment stands for no byte of the stream.

use super::*;
use crate::session::ledger::Ledger;

/// How far the FIN has come when the RST is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    /// The capture lost it.
    Lost,
    /// It is captured after the RST.
    Late,
    /// It waits for the response of the target.
    Gated,
    /// It was sent to the target.
    Sent,
    /// The target has acknowledged it.
    Acknowledged,
}

/// A client that aborts a download of which it has seen 100 bytes.
#[derive(Clone, Copy, Debug)]
struct Abort {
    fin: Fin,
    /// From the end of the stream.
    reset_at: u32,
    flags: Flags,
}

fn aborts() -> impl Iterator<Item = Abort> {
    let fins = [Fin::Lost, Fin::Late, Fin::Gated, Fin::Sent, Fin::Acknowledged];
    fins.into_iter().flat_map(|fin| {
        [0, 1].into_iter().flat_map(move |reset_at| {
            [Flags::RST, Flags::RST | A].map(|flags| Abort { fin, reset_at, flags })
        })
    })
}

fn missing(bench: &mut Bench) -> u64 {
    let mut ledger = Ledger::default();
    bench.session.settle(&mut ledger);
    ledger.missing
}

#[test]
fn an_abort_in_any_way_ends_the_one_connection_and_loses_no_byte() {
    for abort in aborts() {
        let mut b = Bench::established();
        b.client(1, 1, pa(), b"GET /");
        assert_eq!(b.run(), [sent(pa(), 1, 1, b"GET /")], "{abort:?}");
        b.target(1, 6, pa(), 50);
        // The FIN acknowledges more of the response than the request did: it is a burst of its own.
        let fin = |b: &mut Bench| b.client(6, 101, Flags::FIN | A, b"");
        let mut out = Vec::new();
        match abort.fin {
            Fin::Lost | Fin::Late => {}
            Fin::Gated => _ = fin(&mut b),
            Fin::Sent | Fin::Acknowledged => {
                fin(&mut b);
                b.target(51, 6, pa(), 50);
                out.extend(b.wait(MS));
                assert!(out.iter().any(|segment| segment.flags.fin()), "{abort:?}: {out:?}");
            }
        }
        if abort.fin == Fin::Acknowledged {
            b.target(101, 7, A, 0);
        }
        out.extend(b.run());
        b.client(6 + abort.reset_at, 101, abort.flags, b"");
        if abort.fin == Fin::Late {
            fin(&mut b);
        }
        if matches!(abort.fin, Fin::Lost | Fin::Late | Fin::Gated) {
            b.target(51, 6, pa(), 50);
        }
        // A RST behind a lost FIN waits for what may lie between.
        let gap = Config::default().gap_timeout;
        let patience = if abort.fin == Fin::Lost { gap + MS } else { MS };
        out.extend(b.wait(patience));
        assert_eq!(b.ended(), Some(End::ClientReset), "{abort:?}: {out:?}");
        assert!(out.iter().all(|segment| !segment.flags.syn()), "{abort:?}: {out:?}");
        assert!(out.last().is_some_and(|segment| segment.flags.rst()), "{abort:?}: {out:?}");
        assert_eq!((missing(&mut b), b.skipped()), (0, 0), "{abort:?}");
    }
}

#[test]
fn an_abort_before_the_handshake_with_the_target_makes_one_connection_at_most() {
    for abort in aborts() {
        let mut b = Bench::new(Config::default());
        b.client(1, 1, pa(), b"GET /");
        let mut out = b.run();
        if !matches!(abort.fin, Fin::Lost | Fin::Late) {
            b.client(6, 101, Flags::FIN | A, b"");
        }
        b.client(6 + abort.reset_at, 101, abort.flags, b"");
        if abort.fin == Fin::Late {
            b.client(6, 101, Flags::FIN | A, b"");
        }
        b.target(0, 1, Flags::SYN | A, 0);
        out.extend(b.run());
        b.target(1, 6, pa(), 100);
        out.extend(b.wait(Config::default().gap_timeout + MS));
        assert_eq!(b.ended(), Some(End::ClientReset), "{abort:?}: {out:?}");
        assert_eq!(out.iter().filter(|segment| segment.flags.syn()).count(), 1, "{abort:?}: {out:?}");
        assert_eq!((missing(&mut b), b.skipped()), (0, 0), "{abort:?}");
    }
}

#[test]
fn a_reset_that_production_ignores_changes_nothing() {
    // Before the end of the stream, and at any distance beyond it.
    for offset in [-5i32, -1, 3, 100, 60_000, 100_000_000, (1 << 30) - 1] {
        for gap in [50 * MS, 2900 * MS] {
            let mut b = Bench::established();
            b.client(1, 1, pa(), b"first");
            b.run();
            b.target(1, 6, pa(), 100);
            b.run();
            b.client(6u32.wrapping_add_signed(offset), 0, Flags::RST, b"");
            b.wait(gap);
            assert_eq!(b.client(6, 101, pa(), b"second"), Taken::Data, "{offset} {gap:?}");
            assert_eq!(b.run().last().map(|segment| segment.data.clone()), Some(b"second".to_vec()));
            b.target(101, 12, pa(), 100);
            b.wait(50 * MS);
            assert_eq!((missing(&mut b), b.skipped(), b.ended()), (0, 0, None), "{offset} {gap:?}");
        }
    }
}

#[test]
fn the_text_in_a_reset_is_no_part_of_the_stream() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"GET /");
    b.run();
    b.target(1, 6, A, 0);
    assert_eq!(b.client(6, 1, Flags::RST | A, b"closed by policy"), Taken::Control);
    let out = b.wait(MS);
    assert!(out.iter().all(|segment| segment.data.is_empty()), "{out:?}");
    assert_eq!(b.ended(), Some(End::ClientReset));
}

#[test]
fn a_reset_before_the_fin_does_not_keep_the_session_open() {
    let mut b = Bench::established();
    b.client(1, 1, pa(), b"one");
    b.client(4, 101, pa(), b"twotwo");
    b.client(10, 101, Flags::FIN | A, b"");
    b.run();
    // Its number is that of an acknowledgment which crossed the FIN: production ignores it.
    assert_eq!(b.client(4, 0, Flags::RST, b""), Taken::Duplicate);
    b.target(1, 4, pa(), 100);
    let out = b.run();
    assert_eq!(out.last().map(|segment| segment.flags.fin()), Some(true), "{out:?}");
    b.target(101, 11, Flags::FIN | A, 0);
    b.wait(Duration::from_secs(2));
    assert_eq!(b.ended(), Some(End::Completed));
}

#[test]
fn a_client_port_that_is_used_again_ends_a_session_with_holes() {
    for fin in [false, true] {
        let mut b = Bench::established();
        b.client(1, 1, pa(), b"first");
        b.run();
        b.target(1, 6, pa(), 100);
        // The capture lost the second request.
        b.client(12, 201, pa(), b"third");
        if fin {
            b.client(30, 301, Flags::FIN | A, b"");
        }
        b.session.client_is_gone(b.now);
        b.wait(Duration::from_secs(20));
        assert!(b.ended().is_some(), "FIN: {fin}");
    }
}
