//! Whether a wrong checksum means a damaged packet.
//!
//! Packets are captured before the host's TCP has looked at them, so a damaged one is among them now and then, and its
//! sender sends it again: taken in, it would be replayed in place of the sound one. But there may be drivers that
//! verify a packet, tell the kernel so, and leave something else in the field. So a wrong checksum counts only where
//! nearly all are right.

/// More wrong ones than one in this many, and none is believed: TCP hardly works on a network that damages as much.
const RARE: u64 = 20;
/// As many wrong ones are believed before any right one was seen.
const CREDIT: u64 = 16;

/// The checksums of one queue's packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksums {
    right: u64,
    wrong: u64,
}

impl Checksums {
    /// Takes in whether the checksum of a packet that has one is right. Returns whether the packet is damaged.
    pub fn is_damaged(&mut self, right: bool) -> bool {
        if right {
            self.right += 1;
            return false;
        }
        self.wrong += 1;
        self.wrong.saturating_sub(CREDIT).saturating_mul(RARE) <= self.right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_ones_among_many_right_ones_are_damaged() {
        let mut checksums = Checksums::default();
        assert!(checksums.is_damaged(false), "the very first packet");
        for packet in 0..100_000_u32 {
            assert_eq!(checksums.is_damaged(packet % 50 != 0), packet % 50 == 0);
        }
    }

    #[test]
    fn where_hardly_one_is_right_none_is_damaged() {
        let mut checksums = Checksums::default();
        let damaged = (0..200_000_u32).filter(|chance| {
            // Noise is right once in 65,536 times.
            checksums.is_damaged(chance % 65_536 == 0)
        });
        assert_eq!(damaged.count(), 16);
    }
}
