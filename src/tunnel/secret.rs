//! Shared keys, and the randomness that each handshake needs.

use std::fmt;

use snow::params::HashChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};

/// Bytes of a key.
pub const SECRET_BYTES: usize = 32;

/// What the id of a key is the keyed hash of.
const ID_LABEL: &[u8] = b"tcpcopy tunnel key id";

/// A key that both ends of a tunnel have. [`fmt::Debug`] shows its id only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    bytes: [u8; SECRET_BYTES],
    id: KeyId,
}

impl Secret {
    /// A key of these bytes, which are to be random.
    #[expect(clippy::missing_panics_doc, reason = "there is no input that it panics for")]
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        let mut hash = DefaultResolver
            .resolve_hash(&HashChoice::Blake2s)
            .expect("snow is built with BLAKE2s, which the handshake uses too");
        let mut digest = [0; 32];
        hash.hmac(&bytes, ID_LABEL, &mut digest);
        let [a, b, c, d, ..] = digest;
        Self { bytes, id: KeyId([a, b, c, d]) }
    }

    /// The name of the key: it tells nothing of the key itself.
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(super) fn bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.bytes
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.id)
    }
}

/// The name of a key: part of a keyed hash, sent in the clear so that both ends can say which key is
/// meant. It is written as eight hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// The private key of one end for one handshake. It is made of fresh random bytes of the operating
/// system's and can be used once.
pub struct Ephemeral(pub(super) [u8; SECRET_BYTES]);

impl Ephemeral {
    /// From random bytes, which nothing else is made of.
    pub fn new(random: [u8; SECRET_BYTES]) -> Self {
        Self(random)
    }
}

impl fmt::Debug for Ephemeral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ephemeral")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_id_and_never_shows_itself() {
        let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        assert_eq!(one.id(), Secret::new([1; 32]).id());
        assert_ne!(one.id(), other.id());
        assert_eq!(format!("{one:?}"), format!("Secret({})", one.id()));
        assert_eq!(one.id().to_string().len(), 8);
        assert_eq!(format!("{:?}", Ephemeral::new([7; 32])), "Ephemeral");
    }
}
