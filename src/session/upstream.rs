//! The client's bytes: reassembled from captured segments, kept until the target has them.
//!
//! Positions are offsets in the client's byte stream, 0 being the first byte taken. A *mark* is
//! where a burst begins: the first byte that the client sent after it had acknowledged more of the
//! response. Bursts are what the gate lets pass, and their beginnings are request boundaries.
//!
//! A hole that will not fill is given up ([`Upstream::skip_hole`]). What precedes it is sent as far as
//! it goes, since nobody can tell how many whole requests it holds; what follows is dropped up to the
//! next mark, which is to be sent on a new connection. The first segment behind the hole is no mark:
//! what was lost may have been the beginning of its request.

use std::collections::{BTreeMap, VecDeque};

use super::ledger::{Entries, Fate};
use crate::wire::{Seq, Time};

/// The beginning of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Offset of the burst's first byte, or of FIN or RST.
    pub(super) offset: u64,
    /// Where the stream before it ends: at `offset`, or at the hole that lies between.
    pub(super) before: u64,
    /// The downstream offset the client had acknowledged when it sent it.
    pub(super) gate: u64,
    /// When it was captured.
    pub(super) captured: Time,
}

impl Mark {
    /// Whether bytes before it are missing, so that a new connection must begin with it.
    pub(super) fn follows_gap(&self) -> bool {
        self.before < self.offset
    }
}

/// How the client ended its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// FIN at this offset.
    Fin(u64),
    /// RST after the bytes before this offset.
    Reset(u64),
}

impl Close {
    fn offset(self) -> u64 {
        match self {
            Self::Fin(at) | Self::Reset(at) => at,
        }
    }
}

/// What became of a captured segment's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// It continued the stream.
    InOrder,
    /// It is kept until the hole before it is filled.
    OutOfOrder,
    /// All of it was there already.
    Duplicate,
    /// It lies too far from the stream to belong to it.
    OutOfWindow,
}

/// Farthest a segment may lie beyond the contiguous stream: the largest window RFC 7323 allows.
const MAX_AHEAD: u64 = 1 << 30;

#[derive(Debug)]
struct Chunk {
    offset: u64,
    data: Box<[u8]>,
    gate: u64,
    captured: Time,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    /// How many of its bytes lie before `offset`.
    fn before(&self, offset: u64) -> usize {
        let before = offset.saturating_sub(self.offset);
        usize::try_from(before).map_or(self.data.len(), |before| before.min(self.data.len()))
    }

    /// Leaves out what lies before `offset`; `None` if nothing is left.
    fn trim_to(mut self, offset: u64) -> Option<Self> {
        let cut = usize::try_from(offset.saturating_sub(self.offset)).ok()?;
        if cut >= self.data.len() {
            return None;
        }
        if cut > 0 {
            self.data = self.data.get(cut..)?.into();
            self.offset = offset;
        }
        Some(self)
    }
}

/// Reassembly and retransmission buffer in one.
#[derive(Debug)]
pub(super) struct Upstream {
    /// Offset and sequence number of the end of the contiguous stream.
    end: u64,
    end_seq: Seq,
    chunks: VecDeque<Chunk>,
    ahead: BTreeMap<u64, Chunk>,
    marks: VecDeque<Mark>,
    /// How many of `marks`, from the front, the gate has passed.
    passed: usize,
    last_gate: Option<u64>,
    /// Where the stream breaks off, while the mark behind a given up hole is looked for.
    broken: Option<u64>,
    /// Offset before which everything was released.
    released: u64,
    close: Option<Close>,
    /// Gate and capture time of `close`.
    close_mark: (u64, Time),
    buffered: usize,
    /// What became of the bytes given to [`Upstream::insert`]; what is missing here is `buffered`.
    pub(super) entries: Entries,
}

impl Upstream {
    /// A stream whose first byte has sequence number `first`.
    pub(super) fn new(first: Seq) -> Self {
        Self {
            end: 0,
            end_seq: first,
            chunks: VecDeque::new(),
            ahead: BTreeMap::new(),
            marks: VecDeque::new(),
            passed: 0,
            last_gate: None,
            broken: None,
            released: 0,
            close: None,
            close_mark: (0, Time::ZERO),
            buffered: 0,
            entries: Entries::default(),
        }
    }

    /// Offset of the first byte that was neither acknowledged nor skipped.
    pub(super) fn start(&self) -> u64 {
        self.released
    }

    /// Offset after the last contiguous byte.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// How the client ended its stream, once everything before that is here.
    pub(super) fn close(&self) -> Option<Close> {
        self.close.filter(|close| close.offset() == self.end)
    }

    /// Bytes held.
    pub(super) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Since when a hole keeps segments, or the close, waiting.
    pub(super) fn hole_since(&self) -> Option<Time> {
        let close = self.close.filter(|close| close.offset() > self.end).map(|_| self.close_mark.1);
        self.ahead.first_key_value().map(|(_, chunk)| chunk.captured).or(close)
    }

    /// The sequence number the client gave the byte at `offset`.
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are offsets modulo 2^32")]
    pub(super) fn seq_at(&self, offset: u64) -> Seq {
        self.end_seq.sub(self.end.wrapping_sub(offset) as u32)
    }

    /// The offset of the byte with sequence number `seq`; `None` before the stream's start.
    pub(super) fn offset_of(&self, seq: Seq) -> Option<u64> {
        seq.unwrap_near(self.end, self.end_seq)
    }

    /// Takes in a segment that begins with `seq`, sent after `gate` downstream bytes were
    /// acknowledged.
    pub(super) fn insert(&mut self, seq: Seq, data: &[u8], gate: u64, captured: Time) -> Inserted {
        let all = data.len();
        let (data, offset) = match self.offset_of(seq) {
            Some(offset) => (data, offset),
            None => match self.cut_before_start(seq, data) {
                Some(rest) => (rest, 0),
                None => return self.duplicate(all),
            },
        };
        if offset > self.end + MAX_AHEAD || self.beyond_close(offset + data.len() as u64) {
            self.entries.add(Fate::OutOfWindow, all as u64);
            return Inserted::OutOfWindow;
        }
        let chunk = Chunk { offset, data: data.into(), gate, captured };
        let Some(chunk) = chunk.trim_to(self.end) else { return self.duplicate(all) };
        self.duplicate(all - chunk.data.len());
        self.buffered += chunk.data.len();
        if chunk.offset > self.end {
            return self.keep_ahead(chunk);
        }
        self.append(chunk);
        self.join_ahead();
        Inserted::InOrder
    }

    fn duplicate(&mut self, bytes: usize) -> Inserted {
        self.entries.add(Fate::Duplicate, bytes as u64);
        Inserted::Duplicate
    }

    /// Bytes that were held are held no more.
    fn let_go(&mut self, fate: Fate, bytes: usize) {
        self.buffered -= bytes;
        self.entries.add(fate, bytes as u64);
    }

    /// What of a segment that begins before offset 0 lies behind it.
    fn cut_before_start<'a>(&self, seq: Seq, data: &'a [u8]) -> Option<&'a [u8]> {
        let start = self.seq_at(0);
        let before = usize::try_from(start.offset_from(seq)).ok()?;
        data.get(before..).filter(|rest| !rest.is_empty())
    }

    fn beyond_close(&self, end: u64) -> bool {
        self.close.is_some_and(|close| end > close.offset())
    }

    fn keep_ahead(&mut self, chunk: Chunk) -> Inserted {
        let longer_is_here =
            self.ahead.get(&chunk.offset).is_some_and(|other| other.data.len() >= chunk.data.len());
        if longer_is_here {
            self.let_go(Fate::Duplicate, chunk.data.len());
            return Inserted::Duplicate;
        }
        if let Some(shorter) = self.ahead.insert(chunk.offset, chunk) {
            self.let_go(Fate::Duplicate, shorter.data.len());
        }
        Inserted::OutOfOrder
    }

    /// Moves what has become contiguous over to the stream.
    fn join_ahead(&mut self) {
        while let Some(entry) = self.ahead.first_entry() {
            if *entry.key() > self.end {
                break;
            }
            let chunk = entry.remove();
            let held = chunk.data.len();
            let Some(chunk) = chunk.trim_to(self.end) else {
                self.let_go(Fate::Duplicate, held);
                continue;
            };
            self.let_go(Fate::Duplicate, held - chunk.data.len());
            self.append(chunk);
        }
        if self.close().is_some() {
            let (gate, captured) = self.close_mark;
            if self.broken.is_some() || self.begins_burst(gate) {
                self.mark(self.end, gate, captured);
            }
        }
    }

    fn append(&mut self, chunk: Chunk) {
        self.end_seq = self.end_seq.add(u32::try_from(chunk.data.len()).unwrap_or(u32::MAX));
        self.end = chunk.end();
        if self.begins_burst(chunk.gate) {
            self.mark(chunk.offset, chunk.gate, chunk.captured);
        } else if self.broken.is_some() {
            self.let_go(Fate::Torn, chunk.data.len());
            return;
        }
        self.chunks.push_back(chunk);
    }

    /// Whether what the client sent at `gate` was sent after more of the response than all before.
    fn begins_burst(&self, gate: u64) -> bool {
        self.last_gate.is_none_or(|last| gate > last)
    }

    fn mark(&mut self, offset: u64, gate: u64, captured: Time) {
        let before = self.broken.take().unwrap_or(offset);
        self.last_gate = self.last_gate.max(Some(gate));
        self.marks.push_back(Mark { offset, before, gate, captured });
    }

    /// Takes in the client's FIN or RST, which comes after the byte before `seq`.
    ///
    /// Returns whether it was news.
    pub(super) fn set_close(&mut self, seq: Seq, reset: bool, gate: u64, captured: Time) -> bool {
        let Some(offset) = self.offset_of(seq) else { return false };
        let close = if reset { Close::Reset(offset) } else { Close::Fin(offset) };
        let news = match self.close {
            None => true,
            Some(Close::Fin(_)) => reset,
            Some(Close::Reset(_)) => false,
        };
        if !news || offset > self.end + MAX_AHEAD {
            return false;
        }
        self.close = Some(close);
        self.close_mark = (gate, captured);
        self.join_ahead();
        true
    }

    /// The burst the gate has not passed yet.
    pub(super) fn waiting(&self) -> Option<Mark> {
        self.marks.get(self.passed).copied()
    }

    /// Lets the waiting burst pass.
    pub(super) fn pass(&mut self) {
        if self.passed < self.marks.len() {
            self.passed += 1;
        }
    }

    /// Offset up to which bytes may leave, and whether the close may follow them.
    pub(super) fn limit(&self) -> (u64, bool) {
        match self.waiting() {
            Some(mark) => (mark.before, false),
            None => (self.broken.unwrap_or(self.end), self.close().is_some()),
        }
    }

    /// Appends the bytes `from..to` to `out`. They must be held.
    pub(super) fn copy(&self, from: u64, to: u64, out: &mut Vec<u8>) {
        let first = self.chunks.partition_point(|chunk| chunk.end() <= from);
        for chunk in self.chunks.range(first..) {
            if chunk.offset >= to {
                break;
            }
            let start = usize::try_from(from.saturating_sub(chunk.offset)).unwrap_or(usize::MAX);
            let end = usize::try_from(to - chunk.offset).unwrap_or(usize::MAX).min(chunk.data.len());
            out.extend_from_slice(chunk.data.get(start..end).unwrap_or_default());
        }
    }

    /// Forgets what lies before `offset`: the target has it.
    pub(super) fn release(&mut self, offset: u64) {
        self.released = self.released.max(offset.min(self.end));
        self.forget(offset);
    }

    /// Forgets what lies before `offset`: it will not be sent.
    pub(super) fn skip(&mut self, offset: u64) {
        self.forget(offset);
        self.released = self.released.max(offset.min(self.end));
    }

    /// Of what is forgotten, what was released before is delivered, and the rest skipped.
    fn forget(&mut self, offset: u64) {
        while let Some(chunk) = self.chunks.front().filter(|chunk| chunk.end() <= offset) {
            let (held, delivered) = (chunk.data.len(), chunk.before(self.released));
            self.chunks.pop_front();
            self.let_go(Fate::Delivered, delivered);
            self.let_go(Fate::Skipped, held - delivered);
        }
        while self.passed > 0 && self.marks.front().is_some_and(|mark| mark.offset < offset) {
            self.marks.pop_front();
            self.passed -= 1;
        }
    }

    /// The first request boundary at or after `offset`; all bytes before it are released, and the
    /// gate has passed nothing from there on. `None` if there is no boundary yet.
    pub(super) fn restart_at_boundary(&mut self, offset: u64) -> Option<Mark> {
        let index = self.marks.iter().position(|mark| mark.offset >= offset)?;
        self.marks.drain(..index);
        self.passed = 0;
        let mark = self.marks.front_mut()?;
        mark.before = mark.offset;
        let mark = *mark;
        self.skip(mark.offset);
        Some(mark)
    }

    /// Forgets all that is held. Returns how much of it the target had not acknowledged.
    pub(super) fn discard(&mut self) -> u64 {
        let delivered = self.chunks.front().map_or(0, |chunk| chunk.before(self.released));
        self.let_go(Fate::Delivered, delivered);
        self.chunks.clear();
        self.ahead.clear();
        std::mem::take(&mut self.buffered) as u64
    }

    /// Gives the first hole up. See the module.
    pub(super) fn skip_hole(&mut self) {
        let (offset, gate) = match (self.ahead.first_key_value(), self.close) {
            (Some((&offset, first)), _) => (offset, first.gate),
            (None, Some(close)) if close.offset() > self.end => (close.offset(), self.close_mark.0),
            (None, Some(_) | None) => return,
        };
        self.broken.get_or_insert(self.end);
        self.entries.miss(offset.saturating_sub(self.end));
        self.end_seq = self.seq_at(offset);
        self.end = offset;
        self.last_gate = self.last_gate.max(Some(gate));
        self.join_ahead();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::ledger::Ledger;

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
        assert_eq!(up.insert(seq(4), b"efgh", 0, NOW), Inserted::OutOfOrder);
        assert!(up.hole_since().is_some());
        assert_eq!(up.insert(seq(0), b"abcde", 0, NOW), Inserted::InOrder);
        assert_eq!(up.insert(seq(2), b"cd", 0, NOW), Inserted::Duplicate);
        assert_eq!((up.end(), up.buffered(), up.hole_since()), (8, 8, None));
        assert_eq!(bytes(&up, 1, 7), b"bcdefg");
        assert_eq!(up.seq_at(8), seq(8));
    }

    #[test]
    fn marks_begin_where_the_gate_advances() {
        let mut up = stream();
        up.insert(seq(0), b"one", 0, NOW);
        up.insert(seq(3), b"more", 0, NOW);
        up.insert(seq(7), b"two", 100, NOW);
        assert_eq!(up.waiting().map(|m| (m.offset, m.gate)), Some((0, 0)));
        assert_eq!(up.limit(), (0, false));
        up.pass();
        assert_eq!(up.limit(), (7, false));
        up.pass();
        assert_eq!(up.limit(), (10, false));
        assert!(up.set_close(seq(10), false, 200, NOW));
        assert_eq!(up.limit(), (10, false));
        up.pass();
        assert_eq!(up.limit(), (10, true));
    }

    #[test]
    fn released_bytes_are_gone_and_counted() {
        let mut up = stream();
        up.insert(seq(0), b"abc", 0, NOW);
        up.insert(seq(3), b"def", 9, NOW);
        up.pass();
        up.release(3);
        assert_eq!(up.buffered(), 3);
        assert_eq!(up.waiting().map(|m| m.offset), Some(3));
        assert_eq!(up.insert(seq(0), b"abc", 9, NOW), Inserted::Duplicate);
    }

    #[test]
    fn restart_goes_on_at_the_next_boundary() {
        let mut up = stream();
        up.insert(seq(0), b"abc", 0, NOW);
        up.insert(seq(3), b"def", 9, NOW);
        up.pass();
        up.pass();
        assert_eq!(up.restart_at_boundary(1).map(|m| m.offset), Some(3));
        assert_eq!((up.limit(), up.buffered()), ((3, false), 3));
        assert_eq!(up.restart_at_boundary(4), None);
    }

    #[test]
    fn a_hole_given_up_loses_the_torn_request_only() {
        let mut up = stream();
        up.insert(seq(0), b"abc", 0, NOW);
        up.pass();
        up.insert(seq(3), b"def", 5, NOW);
        up.insert(seq(8), b"i", 9, NOW);
        up.insert(seq(9), b"jkl", 9, NOW);
        up.insert(seq(12), b"mno", 14, NOW);
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
    fn fates_tell_what_arrived_from_what_did_not() {
        let mut up = stream();
        up.insert(seq(0), b"abcdef", 0, NOW);
        up.insert(seq(4), b"efgh", 0, NOW);
        up.release(5);
        assert_eq!(up.buffered(), 8, "a packet is held as a whole");
        up.insert(seq(8), b"next", 5, NOW);
        up.restart_at_boundary(5);
        up.insert(seq(15), b"torn", 5, NOW);
        up.skip_hole();
        up.insert(seq(13), b"xx", 5, NOW);
        let held = up.discard();
        let mut ledger = Ledger::default();
        up.entries.enter(&mut ledger);
        let fates: Vec<_> = ledger.fates.nonzero().collect();
        assert_eq!(fates, [("delivered", 5), ("duplicate", 4), ("torn", 4), ("skipped", 3)]);
        assert_eq!((held, ledger.missing), (4, 3));
    }

    #[test]
    fn a_hole_before_the_close_is_one_too() {
        let mut up = stream();
        up.insert(seq(0), b"abc", 0, NOW);
        up.pass();
        up.set_close(seq(6), false, 5, NOW);
        assert_eq!((up.hole_since(), up.close()), (Some(NOW), None));
        up.skip_hole();
        assert_eq!((up.hole_since(), up.close()), (None, Some(Close::Fin(6))));
        assert_eq!(up.waiting().map(|mark| (mark.offset, mark.before)), Some((6, 3)));
    }

    #[test]
    fn a_close_waits_for_what_comes_before_it() {
        let mut up = stream();
        assert!(up.set_close(seq(3), false, 0, NOW));
        assert_eq!(up.close(), None);
        up.insert(seq(0), b"abc", 0, NOW);
        assert_eq!(up.close(), Some(Close::Fin(3)));
        assert_eq!(up.insert(seq(3), b"late", 0, NOW), Inserted::OutOfWindow);
        assert!(!up.set_close(seq(3), false, 0, NOW));
        assert!(up.set_close(seq(3), true, 0, NOW));
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
                        up.insert(seq(near).sub(20), &[0; 30][..len], gate, NOW);
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
                up.insert(Seq(u32::MAX - 100).add(at), &stream[from..from + len], 0, NOW);
            }
            let end = usize::try_from(up.end()).expect("short");
            proptest::prop_assert!(end >= 240 && up.hole_since().is_none());
            proptest::prop_assert_eq!(bytes(&up, 0, up.end()), &stream[..end]);
            proptest::prop_assert_eq!(up.buffered(), end);
        }
    }
}
