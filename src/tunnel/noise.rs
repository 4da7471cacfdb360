//! The handshake and the records of a tunnel with a key: `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`
//! (noiseprotocol.org, revision 34), by the crate `snow`.
//!
//! ```text
//! client   magic u32 | version u16 | key id 4 | Noise message 1 (48)     the first ten bytes are the prologue
//! server   magic u32 | version u16 | Noise message 2 (48)
//! both     length u16 | ciphertext with its tag                          records
//! ```
//!
//! The prologue is part of what both messages authenticate: who changes a version or an id on the way
//! ends the handshake. A recorded first message is answered, but what follows it does not decrypt,
//! since the server's ephemeral key is another one. Records are numbered: none can be repeated, left out or moved.

use std::cell::Cell;
use std::fmt;

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState, TransportState};

use super::frame::VERSION;
use super::secret::{Ephemeral, KeyId, Secret};

/// "tcpk": the first bytes of either end of a tunnel with a key. As a frame's length it is none.
pub(super) const MAGIC: u32 = 0x7463_706b;
/// Bytes of the client's opening.
pub(super) const OPENING: usize = PROLOGUE + MESSAGE;
/// Bytes of the server's answer.
pub(super) const ANSWER: usize = HEAD + MESSAGE;
/// What one record carries at most.
pub(super) const MAX_PLAIN: usize = 16 << 10;
/// What sealing adds to a record: its length and its tag.
pub(super) const OVERHEAD: usize = LENGTH + TAG;

/// Magic and version.
const HEAD: usize = 6;
const PROLOGUE: usize = HEAD + 4;
/// An ephemeral public key, and the tag of an empty payload.
const MESSAGE: usize = 32 + TAG;
const TAG: usize = 16;
const LENGTH: usize = 2;
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

/// A direction gets its next key after so many records, or so many bytes.
pub(super) const REKEY_RECORDS: u32 = 4096;
const REKEY_BYTES: usize = 64 << 20;

/// What an opening says in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// More bytes are needed.
    Incomplete,
    /// No opening.
    Foreign,
    /// One of another version.
    Version(u16),
    /// One that can be answered if the key is there.
    Key(KeyId),
}

/// Reads the clear part of an opening, from its first bytes on.
pub(super) fn read_opening(bytes: &[u8]) -> Opening {
    let Some((magic, rest)) = bytes.split_first_chunk() else { return Opening::Incomplete };
    if u32::from_be_bytes(*magic) != MAGIC {
        return Opening::Foreign;
    }
    let Some((version, rest)) = rest.split_first_chunk() else { return Opening::Incomplete };
    let version = u16::from_be_bytes(*version);
    if version != VERSION {
        return Opening::Version(version);
    }
    match rest.first_chunk() {
        Some(id) if bytes.len() >= OPENING => Opening::Key(KeyId(*id)),
        Some(_) | None => Opening::Incomplete,
    }
}

/// A client's handshake, from its opening to the answer.
pub(super) struct Initiator(HandshakeState);

impl Initiator {
    /// The handshake, and the opening to send.
    pub(super) fn new(secret: &Secret, ephemeral: Ephemeral) -> (Self, Vec<u8>) {
        let mut opening = head().to_vec();
        opening.extend_from_slice(&secret.id().0);
        let mut state = builder(ephemeral)
            .psk(0, secret.bytes())
            .and_then(|builder| builder.prologue(&opening))
            .and_then(Builder::build_initiator)
            .expect("the pattern has one key at 0 and no static keys");
        opening.resize(OPENING, 0);
        let written = opening.get_mut(PROLOGUE..).map(|message| state.write_message(&[], message));
        assert_eq!(written, Some(Ok(MESSAGE)), "the first message depends on nothing that can fail");
        (Self(state), opening)
    }

    /// Takes the first [`ANSWER`] bytes of the answer; `None` if it is not that of a server with the key.
    pub(super) fn finish(mut self, answer: &[u8]) -> Option<Records> {
        let message = answer.strip_prefix(&head())?;
        self.0.read_message(message, &mut []).ok()?;
        self.0.into_transport_mode().ok().map(Records::new)
    }
}

/// Answers an opening with its key; `None` if the client does not have the key.
pub(super) fn answer(opening: &[u8], secret: &Secret, ephemeral: Ephemeral) -> Option<(Records, Vec<u8>)> {
    let (prologue, message) = opening.split_at_checked(PROLOGUE)?;
    let mut state = builder(ephemeral)
        .psk(0, secret.bytes())
        .and_then(|builder| builder.prologue(prologue))
        .and_then(Builder::build_responder)
        .expect("the pattern has one key at 0 and no static keys");
    state.read_message(message, &mut []).ok()?;
    let mut answer = head().to_vec();
    answer.resize(ANSWER, 0);
    state.write_message(&[], answer.get_mut(HEAD..)?).ok()?;
    Some((Records::new(state.into_transport_mode().ok()?), answer))
}

fn head() -> [u8; HEAD] {
    let [a, b, c, d] = MAGIC.to_be_bytes();
    let [e, f] = VERSION.to_be_bytes();
    [a, b, c, d, e, f]
}

fn builder<'a>(ephemeral: Ephemeral) -> Builder<'a> {
    let resolver = Resolver(Cell::new(Some(ephemeral)));
    Builder::with_resolver(PATTERN.parse().expect("a pattern of snow's"), Box::new(resolver))
}

/// The default primitives, and as randomness the one ephemeral key.
struct Resolver(Cell<Option<Ephemeral>>);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(self.0.take())))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// Gives the ephemeral key once, and nothing ever after.
struct Once(Option<Ephemeral>);

impl Random for Once {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let Ephemeral(bytes) = self.0.take().ok_or(snow::Error::Rng)?;
        if dest.len() != bytes.len() {
            return Err(snow::Error::Rng);
        }
        dest.copy_from_slice(&bytes);
        Ok(())
    }
}

/// Seals and opens records, after the handshake.
pub(super) struct Records {
    state: TransportState,
    sealed: Usage,
    opened: Usage,
}

/// How much was done with the current key of a direction.
#[derive(Debug, Default)]
struct Usage {
    records: u32,
    bytes: usize,
}

impl Usage {
    /// Counts a record. `true` if the next one is for another key.
    fn is_up(&mut self, bytes: usize) -> bool {
        self.records += 1;
        self.bytes += bytes;
        let up = self.records >= REKEY_RECORDS || self.bytes >= REKEY_BYTES;
        if up {
            *self = Self::default();
        }
        up
    }
}

/// A record that is none of the peer's, or not the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forged;

impl Records {
    fn new(state: TransportState) -> Self {
        Self { state, sealed: Usage::default(), opened: Usage::default() }
    }

    /// Appends `plain` (at most [`MAX_PLAIN`]) to `out` as a record.
    pub(super) fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Forged> {
        let at = out.len();
        let length = u16::try_from(plain.len() + TAG).map_err(|_| Forged)?;
        out.resize(at + plain.len() + OVERHEAD, 0);
        let (field, body) =
            out.get_mut(at..).and_then(<[u8]>::split_first_chunk_mut::<LENGTH>).ok_or(Forged)?;
        *field = length.to_be_bytes();
        self.state.write_message(plain, body).map_err(|_| Forged)?;
        if self.sealed.is_up(plain.len()) {
            self.state.rekey_outgoing();
        }
        Ok(())
    }

    /// The length of the first record's ciphertext, if it is there as a whole; at most `most` bytes
    /// may be in it.
    pub(super) fn ready(bytes: &[u8], most: usize) -> Result<Option<usize>, Forged> {
        let Some((field, rest)) = bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*field));
        if length <= TAG || length > most + TAG {
            return Err(Forged);
        }
        Ok((rest.len() >= length).then_some(length))
    }

    /// Opens the first record, whose ciphertext has that length, into `out`, which has room for it.
    /// Returns how many bytes it held, and how many it took.
    pub(super) fn open(
        &mut self,
        bytes: &[u8],
        length: usize,
        out: &mut [u8],
    ) -> Result<(usize, usize), Forged> {
        let record = bytes.get(LENGTH..LENGTH + length).ok_or(Forged)?;
        let plain = self.state.read_message(record, out).map_err(|_| Forged)?;
        if self.opened.is_up(plain) {
            self.state.rekey_incoming();
        }
        Ok((plain, LENGTH + length))
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("sealed", &self.sealed)
            .field("opened", &self.opened)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator")
    }
}
