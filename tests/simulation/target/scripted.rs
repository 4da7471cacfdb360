//! The scripted host: a TCP written for the tests, which does what smoltcp cannot.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tcpcopy::wire::Time;

use super::tcb::{State, Tcb, Verdict};
use super::{Conn, PORT, Quirks, Socket, Target};
use crate::packet::{ACK, FIN, PSH, RST, SYN, Segment, URG};
use crate::rng::Rng;
use crate::scenario::Setup;
use crate::server::Ledger;

/// Farther than any response of a run reaches.
const FAR: u32 = 1 << 23;

/// A connection and its application, once the handshake is over.
struct Talk {
    tcb: Tcb,
    conn: Option<Conn>,
}

/// The target host.
pub(super) struct Host {
    quirks: Quirks,
    rng: Rng,
    talks: BTreeMap<SocketAddr, Talk>,
    sent: Vec<Vec<u8>>,
}

impl Host {
    pub(super) fn new(quirks: Quirks, rng: Rng) -> Self {
        Self { quirks, rng, talks: BTreeMap::new(), sent: Vec::new() }
    }

    fn arrive(&mut self, now: u64, segment: &Segment, setup: &Setup, ledger: &mut Ledger) {
        if let Some(talk) = self.talks.get_mut(&segment.src) {
            if talk.tcb.arrive(now, segment) == Verdict::Done {
                return;
            }
            self.forget(segment.src, ledger);
        }
        if segment.has(SYN) && !segment.has(ACK | RST) && segment.dst.port() == PORT {
            let iss = u32::try_from(self.rng.within(0..=u64::from(u32::MAX))).expect("a word");
            let tcb = Tcb::open(now, segment, iss, setup.receive_buffer, &self.quirks, &mut self.rng);
            self.talks.insert(segment.src, Talk { tcb, conn: None });
        } else if !segment.has(RST) {
            self.refuse(segment);
        }
    }

    /// RFC 9293, 3.10.7.1: there is no such connection.
    fn refuse(&mut self, segment: &Segment) {
        let reset = if segment.has(ACK) {
            Segment::bare(segment.dst, segment.src, segment.ack, 0, RST)
        } else {
            let ack = segment.seq.wrapping_add(segment.space());
            Segment::bare(segment.dst, segment.src, 0, ack, RST | ACK)
        };
        self.sent.push(reset.write());
    }

    /// A connection is gone, with all that was not read.
    fn forget(&mut self, peer: SocketAddr, ledger: &mut Ledger) {
        if let Some(Talk { tcb, conn: Some(conn) }) = self.talks.remove(&peer) {
            ledger.wasted += conn.server.unparsed() + tcb.unread() as u64;
        }
    }

    fn work(&mut self, now: Time, setup: &Setup, ledger: &mut Ledger) {
        let Self { talks, rng, sent, .. } = self;
        let mut over = Vec::new();
        for (peer, talk) in talks.iter_mut() {
            let Talk { tcb, conn } = talk;
            if tcb.state == State::Synchronized && conn.is_none() {
                *conn = Some(Conn::accept(now, setup));
            }
            if let Some(conn) = conn {
                conn.serve(now, setup, tcb, ledger);
            }
            tcb.run(now.micros(), rng);
            for segment in tcb.take_sent() {
                embellish(now.micros(), tcb, segment, rng, sent);
            }
            ledger.faults.append(&mut tcb.faults);
            let unread = tcb.unread() > 0 && conn.as_ref().is_some_and(|conn| !conn.closed);
            if tcb.state == State::Closed && !unread {
                over.push(*peer);
            }
        }
        for peer in over {
            self.forget(peer, ledger);
        }
    }
}

/// Sends a segment, and what else comes to the host's mind.
fn embellish(now: u64, tcb: &Tcb, mut segment: Segment, rng: &mut Rng, sent: &mut Vec<Vec<u8>>) {
    let quirks = tcb.quirks();
    if rng.chance(quirks.unknown_options) {
        segment.unknown =
            rng.pick(&[&[254u8, 4, 1, 2][..], &[1, 1, 34, 2], &[77, 200], &[5, 0], &[3]]).to_vec();
    }
    if rng.chance(quirks.stray_resets) && !segment.has(SYN) {
        let seq = tcb.snd_nxt().wrapping_add(1 + u32::try_from(rng.within(0..=20_000)).expect("short"));
        sent.push(Segment { seq, flags: RST, payload: Vec::new(), ..segment.clone() }.write());
    }
    if rng.chance(quirks.nonsense) && tcb.state == State::Synchronized {
        sent.push(nonsense(now, tcb, &segment, rng).write());
    }
    sent.push(segment.write());
}

/// A segment that nobody who follows the rules would send on this connection, at this time.
fn nonsense(now: u64, tcb: &Tcb, after: &Segment, rng: &mut Rng) -> Segment {
    let mut odd = Segment::bare(after.src, after.dst, tcb.snd_nxt(), tcb.rcv_nxt(), ACK);
    odd.stamps = tcb.stamp(now);
    odd.window = after.window;
    let far = FAR + u32::try_from(rng.within(0..=1 << 29)).expect("a word");
    match rng.within(0..=8) {
        // An ACK of what was never sent.
        0 => odd.ack = odd.ack.wrapping_add(far),
        // Far behind, with data.
        1 => (odd.seq, odd.payload) = (odd.seq.wrapping_sub(far), vec![b'?'; 100]),
        // Out of the widest window.
        2 => (odd.seq, odd.payload) = (odd.seq.wrapping_add(1 << 31 | 5), vec![b'?'; 100]),
        // Data, urgent ones even, without ACK.
        3 => (odd.flags, odd.payload) = (PSH | URG, vec![b'?'; 10]),
        4 => odd.flags = FIN | PSH | URG,
        5 => odd.flags = 0,
        // SYN, and SYN-ACK, on a connection that exists.
        6 => odd.flags = SYN,
        7 => odd.flags = SYN | ACK | FIN,
        // A reset out of the past.
        _ => (odd.seq, odd.flags) = (odd.seq.wrapping_sub(far), RST),
    }
    odd
}

impl Target for Host {
    fn deliver(&mut self, now: Time, bytes: Vec<u8>, sound: bool, setup: &Setup, ledger: &mut Ledger) {
        match Segment::read(&bytes) {
            Some(segment) => {
                if !sound {
                    ledger.fault(now, "a damaged packet has a right checksum");
                }
                self.arrive(now.micros(), &segment, setup, ledger);
            }
            None if sound => ledger.fault(now, "a packet that cannot be read"),
            None => {}
        }
        self.work(now, setup, ledger);
    }

    fn run(&mut self, now: Time, setup: &Setup, ledger: &mut Ledger) {
        self.work(now, setup, ledger);
    }

    fn take_sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sent)
    }

    fn wakes_at(&mut self, now: Time) -> Option<Time> {
        let wakes = |talk: &Talk| {
            let app = talk.conn.as_ref().and_then(|conn| conn.wakes_at(talk.tcb.unread() > 0));
            [app, talk.tcb.wakes_at().map(Time::from_micros)].into_iter().flatten().min()
        };
        self.talks.values().filter_map(wakes).min().map(|at| at.max(now))
    }

    fn has_read_all(&self) -> bool {
        let closed = |talk: &Talk| talk.conn.as_ref().is_none_or(|conn| conn.closed);
        self.talks.values().all(|talk| closed(talk) || talk.tcb.unread() == 0)
    }

    fn restart(&mut self, ledger: &mut Ledger) {
        let peers: Vec<_> = self.talks.keys().copied().collect();
        for peer in peers {
            self.forget(peer, ledger);
        }
    }
}
