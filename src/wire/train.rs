//! Trains: payload of several segments under one TCP header.

use super::{Flags, TcpHeader};

/// Most payload of a train, in bytes: with headers and options it is a packet that an IP header's length can tell.
pub const MAX_TRAIN: u32 = 65_000;

/// Cuts a train, as a network card does, into segments of `size` bytes each but the last: the header and the payload of
/// each. What is no longer than that is one segment.
pub fn cut<'a>(
    header: &TcpHeader,
    payload: &'a [u8],
    size: u32,
) -> impl Iterator<Item = (TcpHeader, &'a [u8])> + use<'a> {
    let header = *header;
    let size = usize::try_from(size).unwrap_or(usize::MAX).max(1);
    let count = payload.len().div_ceil(size).max(1);
    (0..count).map(move |index| {
        let from = index * size;
        let body = payload.get(from..(from + size).min(payload.len())).unwrap_or_default();
        let mut header = TcpHeader { payload_len: length(body.len()), ..header };
        header.seq = header.seq.add(length(from));
        if index + 1 < count {
            header.flags = header.flags.without(Flags::PSH | Flags::FIN);
        }
        (header, body)
    })
}

/// Lengths here are of one packet at most.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Seq;

    #[test]
    fn a_train_is_cut_into_whole_segments_and_the_rest() {
        let header = TcpHeader {
            payload_len: 10,
            ..TcpHeader::bare(Seq(u32::MAX - 3), Seq(7), Flags::ACK | Flags::PSH | Flags::FIN, 9)
        };
        let cuts = |payload: &'static [u8], size| {
            cut(&header, payload, size)
                .map(|(header, body)| (header.seq.0, header.flags, header.payload_len, body))
                .collect::<Vec<_>>()
        };
        let last = header.flags;
        let expected: [(u32, Flags, u32, &[u8]); 3] =
            [(u32::MAX - 3, Flags::ACK, 4, b"0123"), (0, Flags::ACK, 4, b"4567"), (4, last, 2, b"89")];
        assert_eq!(cuts(b"0123456789", 4), expected);
        assert_eq!(cuts(b"01234567", 4).len(), 2);
        assert_eq!(cuts(b"0123", 4), [(u32::MAX - 3, last, 4, b"0123".as_slice())]);
        assert_eq!(cuts(b"", 4), [(u32::MAX - 3, last, 0, b"".as_slice())]);
        assert_eq!(cuts(b"0123", u32::MAX).len(), 1);
        assert_eq!(cuts(b"01", 0).len(), 2, "no size is the least");
    }
}
