//! Framing: a byte stream to frames and back, without a look into their bodies.
//!
//! A frame is a length (u32, of what follows it), a kind (u8) and a body. Numbers are in network
//! byte order. Batches are frames whose body is a sequence of records.

use super::frame::{Kind, Reader, Record};

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
    buffer: Vec<u8>,
    /// What is not yet consumed: `start..end` of the buffer.
    start: usize,
    end: usize,
    /// The frame being read, with where it ends.
    frame: Option<(Kind, usize)>,
    max_frame: usize,
    unknown: u64,
}

impl Decoder {
    /// A decoder that takes small frames only, until [`Decoder::open_up`].
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, frame: None, max_frame: MAX_HELLO, unknown: 0 }
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
        self.buffer.capacity()
    }

    /// Bytes that wait to be decoded.
    pub(super) fn buffered(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn space(&mut self) -> &mut [u8] {
        self.room(if self.max_frame == MAX_HELLO { READ_HELLO } else { READ })
    }

    /// Room for `want` bytes or more.
    pub(super) fn room(&mut self, want: usize) -> &mut [u8] {
        if self.start == self.end && self.frame.is_none() {
            self.start = 0;
            self.end = 0;
        } else if self.start >= want {
            // Past frames make at least as much room as is wanted.
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            if let Some((_, frame_end)) = &mut self.frame {
                *frame_end -= self.start;
            }
            self.start = 0;
        }
        if self.buffer.len() < self.end + want {
            self.buffer.resize(self.end + want, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    pub(super) fn filled(&mut self, n: usize) {
        self.end = self.buffer.len().min(self.end + n);
    }

    /// The kind of the frame that records are read from: the current one, else the next one if it
    /// is there as a whole.
    pub(super) fn frame(&mut self) -> Result<Option<Kind>, FrameError> {
        loop {
            if let Some((kind, frame_end)) = self.frame {
                if self.start < frame_end || !kind.is_batch() {
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
            let frame_end = self.start + LENGTH_BYTES + frame_len;
            if let Some(kind) = Kind::from_code(code) {
                self.start += LENGTH_BYTES + 1;
                self.frame = Some((kind, frame_end));
            } else {
                self.unknown += 1;
                self.start = frame_end;
            }
        }
    }

    /// The next record of the current frame. A frame that is no batch holds one; what follows it in
    /// the body belongs to later minor versions and is passed over.
    pub(super) fn record<R: Record>(&mut self) -> Result<R, FrameError> {
        let Some((kind, frame_end)) = self.frame else {
            return Err(FrameError::Body(Kind::Hello));
        };
        let body = self.buffer.get(self.start..frame_end).unwrap_or_default();
        let mut reader = Reader(body);
        let record = R::read(&mut reader).ok_or(FrameError::Body(kind))?;
        if kind.is_batch() {
            self.start += body.len() - reader.0.len();
        } else {
            self.start = frame_end;
            self.frame = None;
        }
        Ok(record)
    }

    /// What is not yet consumed.
    pub(super) fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }
}

/// A frame by itself.
pub(super) fn frame(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    let mut output = Output::new(MAX_HELLO);
    let fits = output.record(kind, bytes);
    debug_assert!(fits, "{kind:?} is no frame of the handshake");
    output.buffer
}

/// Frames to bytes, bounded.
#[derive(Debug)]
pub(super) struct Output {
    buffer: Vec<u8>,
    start: usize,
    /// The last frame, while records can join it: its kind and where its length field is.
    open: Option<(Kind, usize)>,
    limit: usize,
}

impl Output {
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, open: None, limit }
    }

    /// Appends a record: to the last frame if it is of the same batch kind, has room and none of it
    /// has been sent, else as a new frame. `false` if the limit forbids it. Headers, which can be
    /// lost, leave a quarter of the room (at most [`RESERVE`]) to what cannot.
    #[must_use]
    pub(super) fn record(&mut self, kind: Kind, bytes: &[u8]) -> bool {
        let reserve = if kind == Kind::Headers { RESERVE.min(self.limit / 4) } else { 0 };
        if self.pending().len() + bytes.len() + LENGTH_BYTES + 1 > self.limit - reserve {
            return false;
        }
        let at = match self.open {
            Some((open, at)) if open == kind && self.buffer.len() - at + bytes.len() <= BATCH => at,
            Some(_) | None => {
                let at = self.buffer.len();
                self.buffer.extend_from_slice(&[0; LENGTH_BYTES]);
                self.buffer.push(kind.code());
                self.open = kind.is_batch().then_some((kind, at));
                at
            }
        };
        self.buffer.extend_from_slice(bytes);
        let length = u32::try_from(self.buffer.len() - at - LENGTH_BYTES).unwrap_or(u32::MAX);
        if let Some(field) = self.buffer.get_mut(at..at + LENGTH_BYTES) {
            field.copy_from_slice(&length.to_be_bytes());
        }
        true
    }

    /// Puts a record in the place of the last one of a batch, which is of the same kind and length. `false` if that one
    /// can be on its way.
    pub(super) fn replace_last(&mut self, kind: Kind, bytes: &[u8]) -> bool {
        let Some((_, at)) = self.open.filter(|(open, _)| *open == kind) else { return false };
        let records = self.buffer.get_mut(at + LENGTH_BYTES + 1..).unwrap_or_default();
        let Some(place) = records.len().checked_sub(bytes.len()).and_then(|start| records.get_mut(start..))
        else {
            return false;
        };
        place.copy_from_slice(bytes);
        true
    }

    pub(super) fn pending(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.buffer.capacity()
    }

    pub(super) fn sent(&mut self, n: usize) {
        self.start = self.buffer.len().min(self.start + n);
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
            self.open = None;
            // What a peer's slowness, or many claims at once, took is given back.
            if self.buffer.capacity() > KEPT {
                self.buffer = Vec::new();
            }
            return;
        }
        if self.open.is_some_and(|(_, at)| self.start > at) {
            self.open = None;
        }
        if self.start > self.limit / 2 {
            self.buffer.drain(..self.start);
            if let Some((_, at)) = &mut self.open {
                *at -= self.start;
            }
            self.start = 0;
        }
    }
}
