//! What passes between a client and its online server: requests that can be told apart and checked, and the
//! packets that a capture on the online host would see of the client.

use std::ops::Range;
use std::time::Duration;

use tcpcopy::wire::Time;

use crate::scenario::Close;

/// First bytes of every request.
const MAGIC: [u8; 4] = *b"\xabREQ";
/// Magic, dialogue, index, length.
pub(crate) const FRAMING: usize = 16;

/// One request and what the servers answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// Where it begins in the client's stream.
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Downstream bytes the client had acknowledged when it sent it.
    pub(crate) gate: u64,
    /// Lengths of the responses.
    pub(crate) online: u64,
    pub(crate) target: u64,
    /// What each server says unasked some time later, and when the target does.
    pub(crate) unasked: u64,
    pub(crate) unasked_after: Duration,
    /// How long the target takes.
    pub(crate) delay: Duration,
    /// How long it pauses after the first half of its response.
    pub(crate) pause: Option<Duration>,
    /// Index of the first request sent with the same acknowledgment.
    pub(crate) burst: usize,
}

impl Request {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len as u64
    }
}

/// A captured packet.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) at: Time,
    pub(crate) bytes: Vec<u8>,
    /// It is a merger of several, whose checksum is not filled in.
    pub(crate) merged: bool,
    /// Its part of the client's stream.
    pub(crate) range: Range<u64>,
    pub(crate) is_syn: bool,
}

/// One client connection from its first packet to its last.
#[derive(Clone, Debug)]
pub(crate) struct Dialogue {
    pub(crate) id: usize,
    pub(crate) requests: Vec<Request>,
    /// All that the client says.
    pub(crate) stream: Vec<u8>,
    pub(crate) close: Close,
    pub(crate) packets: Vec<Captured>,
}

/// The bytes of a request.
pub(crate) fn request_bytes(id: usize, index: usize, len: usize) -> Vec<u8> {
    let number = |n: usize| u32::try_from(n).expect("small").to_be_bytes();
    let mut bytes = [MAGIC, number(id), number(index), number(len)].concat();
    let salt = id * 31 + index * 7;
    bytes.extend((FRAMING..len).map(|at| (salt + at * 3 + (at >> 8)).to_le_bytes()[0]));
    bytes
}

/// The dialogue, index and length that a request's first bytes name.
pub(crate) fn parse_framing(bytes: &[u8]) -> Option<(usize, usize, usize)> {
    let number = |at: usize| {
        let word = bytes.get(at..at + 4)?;
        usize::try_from(u32::from_be_bytes(word.try_into().ok()?)).ok()
    };
    if bytes.get(..4)? != MAGIC {
        return None;
    }
    Some((number(4)?, number(8)?, number(12)?))
}
