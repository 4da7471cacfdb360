//! The checksum of IPv4 and TCP headers (RFC 1071).
//!
//! Sums are of words in this machine's byte order, four bytes at a time: the one's complement sum is the same but for
//! the order of its bytes, which [`checksum`] writes as they are (RFC 1071, 2).

/// The sum of `bytes`, filled up with zeros. Sums of parts add up where each part begins at an even position, and none
/// overflows before 2^32 words.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let whole: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    whole + u64::from(u32::from_ne_bytes(last))
}

/// The checksum for what was summed, as it is in a header.
pub(super) fn checksum(sum: u64) -> [u8; 2] {
    let mut folded = sum;
    while folded > u64::from(u16::MAX) {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    u16::try_from(folded).map_or([0, 0], |folded| (!folded).to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(sum(&bytes)), (!0xddf2_u16).to_be_bytes());
        let (head, tail) = bytes.split_at(2);
        assert_eq!(checksum(sum(head) + sum(tail)), (!0xddf2_u16).to_be_bytes());
        assert_eq!(checksum(sum(&[0x12])), (!0x1200_u16).to_be_bytes());
        assert_eq!(checksum(u64::MAX), [0, 0]);
    }
}
