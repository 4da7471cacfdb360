//! The client's bytes: reassembled from captured segments, kept until the target has them.
//!
//! Positions are offsets in the client's byte stream, 0 being the first byte taken. A *mark* is
//! where a burst begins: the first byte that the client sent after it had acknowledged more of the
//! response, unless it continues a write (see `writes`). Bursts are what the gate lets pass, and their
//! beginnings are request boundaries. What a server says while it is still being sent a request, such as
//! an HTTP/2 WINDOW_UPDATE, thus begins none.
//!
//! A hole that will not fill is given up ([`Upstream::skip_hole`]). What precedes it is sent as far as
//! it goes, since nobody can tell how many whole requests it holds; what follows is dropped up to the
//! next mark, which is to be sent on a new connection. The first segment behind the hole is no mark:
//! what was lost may have been the beginning of its request. That holds even if the hole has the length
//! of one short segment: a request's head and its body are often written apart, at one gate.

use std::collections::{BTreeMap, VecDeque};

use super::ledger::{Entries, Fate};
use super::writes::Writes;
use crate::wire::{Flags, Seq, Time};

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
    /// The burst before it is one write, and the hole cut it off: there was no whole request in it.
    pub(super) torn: bool,
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

/// What an allocation takes besides what is asked for, at most: one of a single byte takes 32.
const ALLOCATION: usize = 31;
/// What a segment in a map takes, whose nodes are half full if segments come in order.
const AHEAD: usize = (size_of::<u64>() + size_of::<Chunk>()) * 2;
/// Room for segments and marks that a session without any keeps.
const KEPT: usize = 64;

#[derive(Debug)]
struct Chunk {
    offset: u64,
    data: Box<[u8]>,
    /// Its segment ended no write.
    open: bool,
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
    /// The highest gate of a mark, or of what follows a hole.
    last_gate: Option<u64>,
    /// What is known of the client's writes at the end of the contiguous stream.
    writes: Writes,
    /// Where the last write and the last mark begin.
    last_write: u64,
    last_mark: u64,
    /// Where the stream breaks off, while the mark behind a given up hole is looked for.
    broken: Option<u64>,
    /// See [`Mark::torn`].
    torn: bool,
    /// Offset before which everything was released.
    released: u64,
    close: Option<Close>,
    /// The client's FIN was captured: `close` lies where it does.
    fin_seen: bool,
    /// Gate and capture time of `close`, and whether it came without new data.
    close_mark: (u64, Time, bool),
    buffered: usize,
    /// What became of the bytes given to [`Upstream::insert`]; what is missing here is `buffered`.
    pub(super) entries: Entries,
}

impl Upstream {
    /// A stream whose first byte has sequence number `first`.
    pub(super) fn new(first: Seq) -> Self {
        Self::joined(first, Writes::default())
    }

    /// The same for a client whose `writes` were observed before.
    pub(super) fn joined(first: Seq, writes: Writes) -> Self {
        Self {
            end: 0,
            end_seq: first,
            chunks: VecDeque::new(),
            ahead: BTreeMap::new(),
            marks: VecDeque::new(),
            passed: 0,
            last_gate: None,
            writes,
            last_write: 0,
            last_mark: 0,
            broken: None,
            torn: false,
            released: 0,
            close: None,
            fin_seen: false,
            close_mark: (0, Time::ZERO, true),
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

    /// Memory of all that is held, about: the bytes, and what each segment and mark takes besides. A client that writes
    /// byte by byte costs a hundred times what it says.
    pub(super) fn memory(&self) -> usize {
        self.buffered
            + (self.chunks.len() + self.ahead.len()) * ALLOCATION
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.ahead.len() * AHEAD
            + self.marks.capacity() * size_of::<Mark>()
            + self.entries.memory()
    }

    /// Gives back the room that nothing needs now.
    pub(super) fn shrink(&mut self) {
        self.chunks.shrink_to_fit();
        self.marks.shrink_to_fit();
        self.entries.shrink();
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
    pub(super) fn insert(
        &mut self,
        seq: Seq,
        data: &[u8],
        flags: Flags,
        gate: u64,
        captured: Time,
    ) -> Inserted {
        let all = data.len();
        let open = Writes::leaves_open(data.len(), flags);
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
        self.writes.observe(flags);
        let chunk = Chunk { offset, data: data.into(), open, gate, captured };
        let end = chunk.end();
        let Some(chunk) = chunk.trim_to(self.end) else {
            if !open && end == self.end {
                self.writes.advance(false);
            }
            return self.duplicate(all);
        };
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

    /// Whether `end` lies behind the client's FIN, or behind its RST at the end of the stream. A RST beyond that is not
    /// known to be believed.
    fn beyond_close(&self, end: u64) -> bool {
        self.close.is_some_and(|close| end > close.offset() && (self.fin_seen || close.offset() == self.end))
    }

    fn keep_ahead(&mut self, chunk: Chunk) -> Inserted {
        if let Some(other) = self.ahead.get_mut(&chunk.offset)
            && other.data.len() >= chunk.data.len()
        {
            other.open &= chunk.open || other.data.len() > chunk.data.len();
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
            let (gate, captured, alone) = self.close_mark;
            if self.broken.is_some() || (alone && self.begins_burst(gate)) {
                self.mark(self.end, gate, captured);
            }
        }
    }

    fn append(&mut self, chunk: Chunk) {
        self.end_seq = self.end_seq.add(u32::try_from(chunk.data.len()).unwrap_or(u32::MAX));
        self.end = chunk.end();
        if !self.fin_seen && self.close.is_some_and(|close| close.offset() < self.end) {
            self.close = None;
        }
        let continues = self.writes.continues();
        self.writes.advance(chunk.open);
        if !continues {
            self.last_write = chunk.offset;
        }
        if self.begins_burst(chunk.gate) && !continues {
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
        self.last_mark = offset;
        self.marks.push_back(Mark { offset, before, gate, captured, torn: std::mem::take(&mut self.torn) });
    }

    /// Takes in the client's FIN, which comes after the byte before `seq`. One that comes `alone`, without new data, may
    /// be a burst of its own: a close does not continue a write.
    ///
    /// Returns whether it changed anything.
    pub(super) fn set_fin(&mut self, seq: Seq, alone: bool, gate: u64, captured: Time) -> bool {
        let Some(at) = self.offset_of(seq).filter(|at| (self.end..=self.end + MAX_AHEAD).contains(at)) else {
            return false;
        };
        self.close = Some(match self.close {
            Some(Close::Fin(_)) => return false,
            Some(_) if self.close().is_some() => return false,
            // The capture has disordered the two.
            Some(Close::Reset(reset)) if reset == at || reset == at + 1 => Close::Reset(at),
            None | Some(Close::Reset(_)) => Close::Fin(at),
        });
        self.fin_seen = true;
        self.close_at(alone, gate, captured)
    }

    /// Takes in the client's RST with the sequence number `seq`, by the rules of the TCP that received it (RFC 9293,
    /// 3.10.7.4; RFC 5961, 3.2). A RST takes no sequence number and stands for no byte:
    ///
    /// * at the FIN or at FIN+1, it follows the FIN, and nothing lies between;
    /// * at the end of the stream, it closes the stream;
    /// * before the end, production ignores it;
    /// * beyond the end, the capture has lost or disordered what lies between, or production ignores the RST. It counts
    ///   once the stream has come to it, and is dropped when the stream passes it by. See also [`Upstream::skip_hole`].
    ///
    /// Returns whether it changed anything.
    pub(super) fn set_reset(&mut self, seq: Seq, gate: u64, captured: Time) -> bool {
        let Some(at) = self.offset_of(seq).filter(|at| (self.end..=self.end + MAX_AHEAD).contains(at)) else {
            return false;
        };
        self.close = Some(match self.close {
            None => Close::Reset(at),
            Some(Close::Fin(fin)) if at == fin || at == fin + 1 => Close::Reset(fin),
            Some(Close::Reset(before)) if at < before && !self.fin_seen => Close::Reset(at),
            Some(_) => return false,
        });
        self.close_at(true, gate, captured)
    }

    /// Nothing more is captured of the client: holes will not fill, and the stream ends where it is.
    pub(super) fn cut_off(&mut self, captured: Time) {
        while !self.ahead.is_empty() || (self.fin_seen && self.close().is_none()) {
            self.skip_hole();
        }
        if self.close().is_none() {
            self.close = Some(Close::Reset(self.end));
            self.close_at(true, 0, captured);
        }
    }

    fn close_at(&mut self, alone: bool, gate: u64, captured: Time) -> bool {
        self.close_mark = (gate, captured, alone);
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
        if self.chunks.is_empty() && self.chunks.capacity() > KEPT {
            self.chunks = VecDeque::new();
        }
        if self.marks.is_empty() && self.marks.capacity() > KEPT {
            self.marks = VecDeque::new();
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
        self.chunks = VecDeque::new();
        self.marks = VecDeque::new();
        self.passed = 0;
        self.ahead.clear();
        std::mem::take(&mut self.buffered) as u64
    }

    /// Gives the first hole up. See the module. A RST behind a hole, without a FIN or data, proves no lost bytes: the
    /// stream ends where it is.
    pub(super) fn skip_hole(&mut self) {
        let (offset, gate) = match (self.ahead.first_key_value(), self.close) {
            (Some((&offset, first)), _) => (offset, first.gate),
            (None, Some(close)) if close.offset() > self.end && self.fin_seen => {
                (close.offset(), self.close_mark.0)
            }
            (None, Some(_)) => return self.cut_off(self.close_mark.1),
            (None, None) => return,
        };
        self.entries.miss(offset.saturating_sub(self.end));
        if self.broken.is_none() {
            self.broken = Some(self.end);
            self.torn = self.writes.continues() && self.last_write == self.last_mark;
        }
        self.end_seq = self.seq_at(offset);
        self.end = offset;
        self.last_gate = self.last_gate.max(Some(gate));
        self.writes = self.writes.anew();
        self.join_ahead();
    }
}
