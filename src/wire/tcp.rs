//! The TCP header as the rest of the crate sees it.

use std::fmt;
use std::ops::BitOr;

use super::{Seq, TcpOptions};

/// The control bits of a TCP header (RFC 9293, section 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u8);

impl Flags {
    /// No bit set.
    pub const NONE: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer is significant.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// The bits as they are in the header.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From the bits of a header.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether every bit of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether SYN is set.
    pub const fn syn(self) -> bool {
        self.contains(Self::SYN)
    }

    /// Whether ACK is set.
    pub const fn ack(self) -> bool {
        self.contains(Self::ACK)
    }

    /// Whether FIN is set.
    pub const fn fin(self) -> bool {
        self.contains(Self::FIN)
    }

    /// These without those of `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether RST is set.
    pub const fn rst(self) -> bool {
        self.contains(Self::RST)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LETTERS: [(Flags, char); 8] = [
            (Flags::FIN, 'F'),
            (Flags::SYN, 'S'),
            (Flags::RST, 'R'),
            (Flags::PSH, 'P'),
            (Flags::ACK, '.'),
            (Flags::URG, 'U'),
            (Flags::ECE, 'E'),
            (Flags::CWR, 'W'),
        ];
        LETTERS.iter().filter(|(flag, _)| self.contains(*flag)).try_for_each(|(_, c)| write!(f, "{c}"))
    }
}

/// A TCP header without its ports: what a session needs to know of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    /// Sequence number of the first byte, or of SYN.
    pub seq: Seq,
    /// Acknowledgment number; meaningless unless [`Flags::ACK`] is set.
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// Window as in the header, not scaled.
    pub window: u16,
    /// The options that matter to a peer.
    pub options: TcpOptions,
    /// Payload bytes by the IP header's length, whether they are at hand or were cut.
    pub payload_len: u32,
}

impl TcpHeader {
    /// The most bytes that [`TcpHeader::joined`] makes one segment of: with the longest headers there are, an IP packet
    /// can carry them, as it could what a network card has merged.
    const JOINED: u32 = 65_535 - 120;

    /// A header without options, of a segment without payload. The order is that of the fields.
    pub fn bare(seq: Seq, ack: Seq, flags: Flags, window: u16) -> Self {
        Self { seq, ack, flags, window, options: TcpOptions::default(), payload_len: 0 }
    }

    /// This segment and `next` as one, if `next` continues it and says nothing else: both carry data, and differ in PSH
    /// alone, which ends a row. It is what receive offload makes of them.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let payload_len = self.payload_len.saturating_add(next.payload_len);
        let plain = self.flags == Flags::ACK && next.flags.without(Flags::PSH) == Flags::ACK;
        let continues = self.payload_len > 0 && next.payload_len > 0 && next.seq == self.end();
        let alike = (self.ack, self.window, self.options) == (next.ack, next.window, next.options);
        let joins = plain && continues && alike && payload_len <= Self::JOINED;
        joins.then_some(Self { flags: next.flags, payload_len, ..*self })
    }

    /// The sequence space taken: payload, SYN and FIN (RFC 9293: SEG.LEN).
    pub fn segment_len(&self) -> u32 {
        self.payload_len
            .saturating_add(u32::from(self.flags.syn()))
            .saturating_add(u32::from(self.flags.fin()))
    }

    /// The sequence number after this segment.
    pub fn end(&self) -> Seq {
        self.seq.add(self.segment_len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Timestamps;

    #[test]
    fn flags_print_like_tcpdump() {
        assert_eq!(format!("{:?}", Flags::SYN | Flags::ACK), "S.");
    }

    #[test]
    fn segments_of_a_row_are_joined_and_no_others() {
        let first =
            TcpHeader { payload_len: 1_000, ..TcpHeader::bare(Seq(u32::MAX - 999), Seq(7), Flags::ACK, 3) };
        let next = TcpHeader { seq: Seq(0), payload_len: 500, ..first };
        assert_eq!(first.joined(&next), Some(TcpHeader { payload_len: 1_500, ..first }));
        let most = TcpHeader { payload_len: TcpHeader::JOINED - 1_000, ..next };
        assert_eq!(first.joined(&most).map(|joined| joined.payload_len), Some(TcpHeader::JOINED));
        let last = TcpHeader { flags: Flags::ACK | Flags::PSH, ..next };
        let joined = TcpHeader { payload_len: 1_500, flags: last.flags, ..first };
        assert_eq!(first.joined(&last), Some(joined));
        assert_eq!(joined.joined(&TcpHeader { seq: Seq(500), ..next }), None, "it was pushed");

        let timestamps = Some(Timestamps { value: 1, echo: 2 });
        for other in [
            TcpHeader { seq: Seq(1), ..next },
            TcpHeader { seq: first.seq, ..next },
            TcpHeader { payload_len: 0, ..next },
            TcpHeader { payload_len: TcpHeader::JOINED - 999, ..next },
            TcpHeader { ack: Seq(8), ..next },
            TcpHeader { window: 4, ..next },
            TcpHeader { options: TcpOptions { timestamps, ..first.options }, ..next },
            TcpHeader { flags: Flags::ACK | Flags::FIN, ..next },
            TcpHeader { flags: Flags::ACK | Flags::CWR, ..next },
            TcpHeader { flags: Flags::RST, ..next },
        ] {
            assert_eq!(first.joined(&other), None, "{other:?}");
        }
        for flags in [Flags::ACK | Flags::SYN, Flags::ACK | Flags::URG] {
            assert_eq!(TcpHeader { flags, ..first }.joined(&next), None, "{flags:?}");
        }
    }

    #[test]
    fn segment_length_counts_syn_and_fin() {
        let header = TcpHeader {
            payload_len: 5,
            ..TcpHeader::bare(Seq(u32::MAX), Seq(0), Flags::SYN | Flags::FIN, 0)
        };
        assert_eq!(header.segment_len(), 7);
        assert_eq!(header.end(), Seq(6));
    }
}
