//! Which of the segments without payload end a client's handshake.

use std::hash::{BuildHasher, RandomState};

const FIN_SYN_RST: u8 = 0x07;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Handshakes remembered at a time, a power of two. A newer one may take an older one's place, whose ACK is then left out
/// like others.
const PLACES: usize = 1 << 14;

/// Clients whose SYN has come and whose handshake has not ended.
#[derive(Debug)]
pub(super) struct Handshakes {
    hasher: RandomState,
    /// The hashes of the clients' addresses and ports; 0 is none.
    places: Box<[u64]>,
}

/// What a packet means to a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// SYN without ACK.
    Begins,
    /// A segment with neither SYN, FIN, RST nor payload.
    MayEnd,
    /// Anything else, or nothing that can be read.
    None,
}

impl Handshakes {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), places: vec![0; PLACES].into() }
    }

    /// Whether a packet is worth capturing: all are, but for segments without payload that end no handshake.
    pub(super) fn wants(&mut self, packet: &[u8]) -> bool {
        let Some((part, client)) = read(packet) else { return true };
        if part == Part::None {
            return true;
        }
        let hash = self.hasher.hash_one(client) | 1;
        let at = usize::try_from(hash >> 32).unwrap_or_default() % PLACES;
        let Some(place) = self.places.get_mut(at) else { return true };
        match part {
            Part::Begins => {
                *place = hash;
                true
            }
            Part::MayEnd if *place == hash => {
                *place = 0;
                true
            }
            Part::MayEnd => false,
            Part::None => true,
        }
    }
}

/// A client's address and port as they are in a packet.
type Client<'a> = (&'a [u8], &'a [u8]);

fn read(packet: &[u8]) -> Option<(Part, Client<'_>)> {
    let (headers, length, address) = if packet.first()? >> 4 == 4 {
        let headers = usize::from(packet.first()? & 0x0f) * 4;
        (headers, half(packet, 2)?, packet.get(12..16)?)
    } else {
        (40, 40 + half(packet, 4)?, packet.get(8..24)?)
    };
    let tcp = packet.get(headers..)?;
    let flags = tcp.get(13)?;
    let part = if flags & (FIN_SYN_RST | ACK) == SYN {
        Part::Begins
    } else if flags & FIN_SYN_RST == 0 && length == headers + usize::from(tcp.get(12)? >> 4) * 4 {
        Part::MayEnd
    } else {
        Part::None
    };
    Some((part, (address, tcp.get(..2)?)))
}

fn half(packet: &[u8], at: usize) -> Option<usize> {
    packet.get(at..)?.first_chunk().map(|bytes| usize::from(u16::from_be_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Flags, Outgoing, Seq, TcpHeader};

    fn packet(client: &str, flags: Flags, payload: &[u8]) -> Vec<u8> {
        let client: std::net::SocketAddr = client.parse().expect("address");
        let server = if client.is_ipv4() { "10.0.0.2:80" } else { "[fd00::2]:80" };
        let header = TcpHeader {
            payload_len: u32::try_from(payload.len()).expect("short"),
            ..TcpHeader::bare(Seq(1), Seq(2), flags, 3)
        };
        let mut out = Outgoing::default();
        out.payload().extend_from_slice(payload);
        out.finish(client, server.parse().expect("address"), &header).expect("one family").to_vec()
    }

    #[test]
    fn of_the_acks_only_the_first_after_a_syn_is_wanted() {
        for client in ["10.0.0.1:1000", "[fd00::1]:1000"] {
            let mut handshakes = Handshakes::new();
            let mut wants = |flags, payload: &[u8]| handshakes.wants(&packet(client, flags, payload));
            assert!(!wants(Flags::ACK, b""));
            assert!(wants(Flags::SYN, b""));
            assert!(wants(Flags::ACK | Flags::PSH, b"data"));
            assert!(wants(Flags::ACK, b""));
            assert!(!wants(Flags::ACK, b""));
            assert!(wants(Flags::ACK | Flags::FIN, b""));
            assert!(wants(Flags::RST, b""));
        }
    }

    #[test]
    fn another_clients_handshake_is_its_own() {
        let mut handshakes = Handshakes::new();
        assert!(handshakes.wants(&packet("10.0.0.1:1000", Flags::SYN, b"")));
        assert!(!handshakes.wants(&packet("10.0.0.1:1001", Flags::ACK, b"")));
        assert!(handshakes.wants(&packet("10.0.0.1:1000", Flags::ACK, b"")));
    }

    #[test]
    fn what_cannot_be_read_is_left_to_those_who_count_it() {
        let whole = packet("10.0.0.1:1000", Flags::ACK, b"");
        for len in 0..whole.len() - 7 {
            let _ = Handshakes::new().wants(&whole[..len]);
        }
        assert!(Handshakes::new().wants(&[]));
        assert!(Handshakes::new().wants(&whole[..25]));
    }
}
