//! Between frames and the socket's bytes: nothing, or the records of a shared key.
//!
//! Sealing is left to the moment at which bytes are asked for, so that a record holds all that has
//! gathered until then.

use std::sync::Arc;

use super::Closed;
use super::bytes::Bytes;
use super::codec::{Decoder, MAX_HELLO, Output, frame};
use super::frame::{Kind, Refuse, VERSION};
use super::going::Going;
use super::legacy;
use super::noise::{self, ANSWER, Initiator, MAX_PLAIN, OPENING, Opening, Records};
use super::secret::{Ephemeral, KeyId, Secret};

/// Room offered to one read.
const READ: usize = 16 << 10;
/// The same before the peer is known.
const READ_OPENING: usize = 512;
/// What is sealed at once, for one write.
const SEALED: usize = 64 << 10;

#[derive(Debug)]
enum Layer {
    /// Frames are the socket's bytes: there is no key.
    Plain,
    /// A server with keys: the client's opening is awaited.
    Listening { keys: Arc<[Secret]>, ephemeral: Ephemeral },
    /// A client with a key: the server's answer is awaited.
    Opening { initiator: Box<Initiator>, key: KeyId },
    /// There was no handshake. What the peer says is not to be believed, apart from a refusal.
    Refused,
    /// Frames are in records.
    Sealed { records: Box<Records>, key: KeyId },
}

/// A connection's two byte streams, with frames on one side.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) decoder: Decoder,
    pub(super) output: Output,
    layer: Layer,
    /// What came and cannot be opened yet.
    came: Bytes,
    /// What is to be written: the handshake, then records. One write's worth is sealed at a time, so there is no other limit.
    going: Going,
    /// Records may have their full size.
    opened_up: bool,
}

impl Channel {
    /// A channel of either end without a key.
    pub(super) fn plain(limit: usize) -> Self {
        Self {
            decoder: Decoder::new(),
            output: Output::new(limit),
            layer: Layer::Plain,
            came: Bytes::default(),
            going: Going::new(usize::MAX, usize::MAX),
            opened_up: false,
        }
    }

    /// A client's, with its key.
    pub(super) fn client(limit: usize, secret: &Secret, ephemeral: Ephemeral) -> Self {
        let (initiator, opening) = Initiator::new(secret, ephemeral);
        let layer = Layer::Opening { initiator: Box::new(initiator), key: secret.id() };
        let mut channel = Self { layer, ..Self::plain(limit) };
        channel.going.push(&opening);
        channel
    }

    /// A server's, for clients with one of these keys.
    pub(super) fn server(limit: usize, keys: Arc<[Secret]>, ephemeral: Ephemeral) -> Self {
        Self { layer: Layer::Listening { keys, ephemeral }, ..Self::plain(limit) }
    }

    /// Whether what the decoder has is the peer's: it has proved that it has the key, or none is wanted.
    pub(super) fn is_trusted(&self) -> bool {
        matches!(self.layer, Layer::Plain | Layer::Sealed { .. })
    }

    /// The key that the peer has proved to have.
    pub(super) fn key(&self) -> Option<KeyId> {
        match self.layer {
            Layer::Sealed { key, .. } => Some(key),
            Layer::Plain | Layer::Listening { .. } | Layer::Opening { .. } | Layer::Refused => None,
        }
    }

    /// The handshake is over: frames and records may have their full size.
    pub(super) fn open_up(&mut self) {
        self.opened_up = true;
        self.decoder.open_up();
    }

    /// Memory that the buffers take, in bytes.
    pub(super) fn memory(&self) -> usize {
        let own = self.came.memory() + self.going.memory();
        own + self.decoder.memory() + self.output.memory()
    }

    /// Room to read into; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        match self.layer {
            Layer::Plain | Layer::Refused => self.decoder.space(),
            Layer::Listening { .. } | Layer::Opening { .. } | Layer::Sealed { .. } => {
                self.came.space(if self.opened_up { READ } else { READ_OPENING })
            }
        }
    }

    /// Takes what was read.
    pub(super) fn filled(&mut self, n: usize) -> Result<(), Closed> {
        match self.layer {
            Layer::Plain | Layer::Refused => {
                self.decoder.filled(n);
                return Ok(());
            }
            Layer::Listening { .. } | Layer::Opening { .. } | Layer::Sealed { .. } => self.came.filled(n),
        }
        loop {
            let went_on = match std::mem::replace(&mut self.layer, Layer::Refused) {
                Layer::Listening { keys, ephemeral } => self.listen(keys, ephemeral)?,
                Layer::Opening { initiator, key } => self.finish(initiator, key)?,
                Layer::Sealed { mut records, key } => {
                    let opened = self.open(&mut records);
                    self.layer = Layer::Sealed { records, key };
                    opened?
                }
                layer @ (Layer::Plain | Layer::Refused) => {
                    self.layer = layer;
                    false
                }
            };
            if !went_on {
                return Ok(());
            }
        }
    }

    /// A server's turn of the handshake. A refusal is in the clear, as there is nothing else yet.
    fn listen(&mut self, keys: Arc<[Secret]>, ephemeral: Ephemeral) -> Result<bool, Closed> {
        let bytes = self.came.unread();
        let (refuse, why) = match noise::read_opening(bytes) {
            Opening::Incomplete => {
                self.layer = Layer::Listening { keys, ephemeral };
                return Ok(false);
            }
            Opening::Foreign if legacy::is_opening(bytes) => (None, Closed::CTool),
            // A hello begins with its length, which is small.
            Opening::Foreign if bytes.first() == Some(&0) => (Some(Refuse::KeyWanted), Closed::NoKey),
            Opening::Foreign => (None, Closed::Magic),
            Opening::Version(version) => (Some(Refuse::Version(VERSION)), Closed::Version(version)),
            Opening::Key(id) => {
                let opening = bytes.get(..OPENING).unwrap_or_default();
                let secret = keys.iter().find(|secret| secret.id() == id);
                match secret.and_then(|secret| noise::answer(opening, secret, ephemeral)) {
                    Some((records, answer)) => {
                        self.came.consume(OPENING);
                        self.going.push(&answer);
                        self.layer = Layer::Sealed { records: Box::new(records), key: id };
                        return Ok(true);
                    }
                    None => (Some(Refuse::UnknownKey), Closed::UnknownKey(id)),
                }
            }
        };
        if let Some(refuse) = refuse {
            self.going.push(&frame(Kind::Refuse, &refuse.bytes()));
        }
        Err(why)
    }

    /// A client's turn of the handshake.
    fn finish(&mut self, initiator: Box<Initiator>, key: KeyId) -> Result<bool, Closed> {
        let bytes = self.came.unread();
        let Some(magic) = bytes.first_chunk() else {
            self.layer = Layer::Opening { initiator, key };
            return Ok(false);
        };
        if u32::from_be_bytes(*magic) != noise::MAGIC {
            let clear = bytes.len().min(MAX_HELLO);
            if let (Some(room), Some(bytes)) = (self.decoder.room(clear).get_mut(..clear), bytes.get(..clear))
            {
                room.copy_from_slice(bytes);
            }
            self.decoder.filled(clear);
            return Ok(false);
        }
        let Some(answer) = bytes.get(..ANSWER) else {
            self.layer = Layer::Opening { initiator, key };
            return Ok(false);
        };
        let records = initiator.finish(answer).ok_or(Closed::NotProven(key))?;
        self.came.consume(ANSWER);
        // The answer proves the key. One record may hold the welcome and all that follows it.
        self.opened_up = true;
        self.layer = Layer::Sealed { records: Box::new(records), key };
        Ok(true)
    }

    /// Opens one record, if it is there.
    fn open(&mut self, records: &mut Records) -> Result<bool, Closed> {
        let most = if self.opened_up { MAX_PLAIN } else { MAX_HELLO };
        let forged = |_| Closed::Forged;
        let bytes = self.came.unread();
        let Some(length) = Records::ready(bytes, most).map_err(forged)? else { return Ok(false) };
        let (plain, taken) = records.open(bytes, length, self.decoder.room(length)).map_err(forged)?;
        self.decoder.filled(plain);
        self.came.consume(taken);
        Ok(true)
    }

    /// Whether there is something to write.
    pub(super) fn has_pending(&self) -> bool {
        match self.layer {
            Layer::Plain => !self.output.pending().is_empty(),
            Layer::Listening { .. } | Layer::Opening { .. } | Layer::Refused => !self.going.is_empty(),
            Layer::Sealed { .. } => !self.going.is_empty() || !self.output.pending().is_empty(),
        }
    }

    /// The bytes to write.
    pub(super) fn pending(&mut self) -> &[u8] {
        match &mut self.layer {
            Layer::Plain => return self.output.pending(),
            Layer::Listening { .. } | Layer::Opening { .. } | Layer::Refused => {}
            Layer::Sealed { records, .. } => {
                if self.going.is_empty() {
                    seal(records, &mut self.output, self.going.tail());
                }
            }
        }
        self.going.pending()
    }

    /// `n` of them were written.
    pub(super) fn sent(&mut self, n: usize) {
        match self.layer {
            Layer::Plain => self.output.sent(n),
            Layer::Listening { .. } | Layer::Opening { .. } | Layer::Refused | Layer::Sealed { .. } => {
                let _ = self.going.sent(n);
            }
        }
    }

    /// Gives the memory of empty buffers back. To be called now and then: a tunnel in use has it again at once.
    pub(super) fn release(&mut self) {
        self.output.release();
        self.going.release();
    }
}

/// Seals what is to be written, as far as one write goes.
fn seal(records: &mut Records, output: &mut Output, into: &mut Vec<u8>) {
    while into.len() < SEALED {
        let plain = output.pending();
        let plain = plain.get(..MAX_PLAIN).unwrap_or(plain);
        // It cannot fail before 2^64 records; one that did would leave the stream as it is.
        if plain.is_empty() || records.seal(plain, into).is_err() {
            return;
        }
        let sealed = plain.len();
        output.sent(sealed);
    }
}
