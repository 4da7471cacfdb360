//! Framing: a byte stream to frames and back, without a look into their bodies.
//!
//! A frame is a length (u32, of what follows it), a kind (u8) and a body. Numbers are in network
//! byte order. Batches are frames whose body is a sequence of records.

use super::bytes::Bytes;
use super::frame::{Kind, Reader, Record};
use super::going::Going;

/// The largest frame after the handshake, its length field not counted.
pub(super) const MAX_FRAME: usize = 1 << 16;
/// The largest frame of the handshake.
pub(super) const MAX_HELLO: usize = 64;
/// A batch takes no more records once it is this long.
const BATCH: usize = 32 << 10;
/// Room offered to one read.
const READ: usize = 16 << 10;
/// Room offered to one read before the handshake is over.
const READ_HELLO: usize = 512;
const LENGTH_BYTES: usize = 4;
/// Room that an empty output keeps.
const KEPT: usize = 1 << 20;
/// Room that headers leave to other frames.
const RESERVE: usize = 64 << 10;

/// A frame that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length of zero or beyond the maximum.
    #[error("its length is {0}")]
    Length(u32),
    /// The body ends within a record, or holds a value it cannot.
    #[error("its body is malformed: {0:?}")]
    Body(Kind),
}

/// Bytes to frames, in place.
#[derive(Debug)]
pub(super) struct Decoder {
    came: Bytes,
    /// The frame being read, with what is left of it.
    frame: Option<(Kind, usize)>,
    max_frame: usize,
    unknown: u64,
}

impl Decoder {
    /// A decoder that takes small frames only, until [`Decoder::open_up`].
    pub(super) fn new() -> Self {
        Self { came: Bytes::default(), frame: None, max_frame: MAX_HELLO, unknown: 0 }
    }

    /// The handshake is over: frames may have their full size.
    pub(super) fn open_up(&mut self) {
        self.max_frame = MAX_FRAME;
    }

    /// Frames of unknown kinds that were passed over.
    pub(super) fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.came.memory()
    }

    /// Bytes that wait to be decoded.
    pub(super) fn buffered(&self) -> usize {
        self.unread().len()
    }

    pub(super) fn space(&mut self) -> &mut [u8] {
        self.room(if self.max_frame == MAX_HELLO { READ_HELLO } else { READ })
    }

    /// Room for `want` bytes or more.
    pub(super) fn room(&mut self, want: usize) -> &mut [u8] {
        self.came.space(want)
    }

    pub(super) fn filled(&mut self, n: usize) {
        self.came.filled(n);
    }

    /// The kind of the frame that records are read from: the current one, else the next one if it
    /// is there as a whole.
    pub(super) fn frame(&mut self) -> Result<Option<Kind>, FrameError> {
        loop {
            if let Some((kind, left)) = self.frame {
                if left > 0 || !kind.is_batch() {
                    return Ok(Some(kind));
                }
                self.frame = None;
            }
            let Some(length) = self.unread().first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
                return Ok(None);
            };
            let frame_len = usize::try_from(length).unwrap_or(usize::MAX);
            if frame_len == 0 || frame_len > self.max_frame {
                return Err(FrameError::Length(length));
            }
            let Some((code, _)) = self
                .unread()
                .get(LENGTH_BYTES..LENGTH_BYTES + frame_len)
                .and_then(<[u8]>::split_first)
                .map(|(code, body)| (*code, body))
            else {
                return Ok(None);
            };
            if let Some(kind) = Kind::from_code(code) {
                self.came.consume(LENGTH_BYTES + 1);
                self.frame = Some((kind, frame_len - 1));
            } else {
                self.unknown += 1;
                self.came.consume(LENGTH_BYTES + frame_len);
            }
        }
    }

    /// The next record of the current frame. A frame that is no batch holds one; what follows it in
    /// the body belongs to later minor versions and is passed over.
    pub(super) fn record<R: Record>(&mut self) -> Result<R, FrameError> {
        let Some((kind, left)) = self.frame else {
            return Err(FrameError::Body(Kind::Hello));
        };
        let body = self.came.unread().get(..left).unwrap_or_default();
        let mut reader = Reader(body);
        let record = R::read(&mut reader).ok_or(FrameError::Body(kind))?;
        if kind.is_batch() {
            let taken = left - reader.0.len();
            self.frame = Some((kind, reader.0.len()));
            self.came.consume(taken);
        } else {
            self.frame = None;
            self.came.consume(left);
        }
        Ok(record)
    }

    /// What is not yet consumed.
    pub(super) fn unread(&self) -> &[u8] {
        self.came.unread()
    }
}

/// A frame by itself.
pub(super) fn frame(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    let mut output = Output::new(MAX_HELLO);
    let fits = output.record(kind, bytes);
    debug_assert!(fits, "{kind:?} is no frame of the handshake");
    output.pending().to_vec()
}

/// Frames to bytes, bounded.
#[derive(Debug)]
pub(super) struct Output {
    going: Going,
    /// The last frame, while records can join it: its kind and where its length field is.
    open: Option<(Kind, usize)>,
}

impl Output {
    pub(super) fn new(limit: usize) -> Self {
        Self { going: Going::new(limit, KEPT), open: None }
    }

    /// Appends a record: to the last frame if it is of the same batch kind, has room and none of it
    /// has been sent, else as a new frame. `false` if the limit forbids it. Headers, which can be
    /// lost, leave a quarter of the room (at most [`RESERVE`]) to what cannot.
    #[must_use]
    pub(super) fn record(&mut self, kind: Kind, bytes: &[u8]) -> bool {
        let reserve = if kind == Kind::Headers { RESERVE.min(self.going.limit() / 4) } else { 0 };
        if !self.going.has_room(bytes.len() + LENGTH_BYTES + 1 + reserve) {
            return false;
        }
        let at = match self.open {
            Some((open, at)) if open == kind && self.going.end() - at + bytes.len() <= BATCH => at,
            Some(_) | None => {
                let at = self.going.end();
                self.going.push(&[0; LENGTH_BYTES]);
                self.going.push(&[kind.code()]);
                self.open = kind.is_batch().then_some((kind, at));
                at
            }
        };
        self.going.push(bytes);
        if let Some((field, rest)) = self.going.since(at).and_then(<[u8]>::split_first_chunk_mut) {
            *field = u32::try_from(rest.len()).unwrap_or(u32::MAX).to_be_bytes();
        }
        true
    }

    /// Puts a record in the place of the last one of a batch, which is of the same kind and length. `false` if that one
    /// can be on its way.
    pub(super) fn replace_last(&mut self, kind: Kind, bytes: &[u8]) -> bool {
        let Some((_, at)) = self.open.filter(|(open, _)| *open == kind) else { return false };
        let records = self.going.since(at + LENGTH_BYTES + 1).unwrap_or_default();
        let Some(place) = records.len().checked_sub(bytes.len()).and_then(|start| records.get_mut(start..))
        else {
            return false;
        };
        place.copy_from_slice(bytes);
        true
    }

    pub(super) fn pending(&self) -> &[u8] {
        self.going.pending()
    }

    /// Memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.going.memory()
    }

    /// Gives its memory back if nothing waits to be written.
    pub(super) fn release(&mut self) {
        self.going.release();
    }

    pub(super) fn sent(&mut self, n: usize) {
        let moved = self.going.sent(n);
        // A frame of which something is written takes no more records.
        self.open = self.open.and_then(|(kind, at)| Some((kind, at.checked_sub(moved)?)));
        if self.open.is_some_and(|(_, at)| self.going.since(at).is_none()) {
            self.open = None;
        }
    }
}
