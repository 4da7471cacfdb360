//! TCP sequence numbers (RFC 9293, section 3.4).

use std::fmt;

/// A sequence number: arithmetic is modulo 2^32, order is that of the nearer half.
///
/// There is no `Ord`: two numbers half the space apart have none. Comparisons are by
/// [`Seq::distance_from`] or the predicates built on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seq(pub u32);

impl Seq {
    /// The number `n` further on.
    #[must_use]
    pub const fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// The number `n` before.
    #[must_use]
    pub const fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }

    /// How far `self` lies ahead of `other`: negative if behind.
    #[expect(clippy::cast_possible_wrap, reason = "the signed half of the circle is the meaning")]
    pub const fn distance_from(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }

    /// How far `self` lies ahead of `other` on the circle, `0..2^32`.
    pub const fn offset_from(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }

    /// Whether `self` comes before `other`.
    pub const fn is_before(self, other: Self) -> bool {
        self.distance_from(other) < 0
    }

    /// Whether `self` comes after `other`.
    pub const fn is_after(self, other: Self) -> bool {
        self.distance_from(other) > 0
    }

    /// The position in a 64-bit stream of the byte that has this sequence number, given that
    /// position `near` has sequence number `near_seq`: the candidate nearest to `near`.
    /// `None` if it would lie before position 0.
    pub fn unwrap_near(self, near: u64, near_seq: Self) -> Option<u64> {
        near.checked_add_signed(i64::from(self.distance_from(near_seq)))
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_wraps() {
        let near_end = Seq(u32::MAX - 1);
        assert_eq!(near_end.add(4), Seq(2));
        assert_eq!(Seq(2).sub(4), near_end);
        assert_eq!(Seq(2).distance_from(near_end), 4);
        assert_eq!(near_end.distance_from(Seq(2)), -4);
        assert!(near_end.is_before(Seq(2)));
        assert!(Seq(2).is_after(near_end));
    }

    #[test]
    fn unwraps_to_the_nearest_position() {
        assert_eq!(Seq(2).unwrap_near(10, Seq(u32::MAX)), Some(13));
        assert_eq!(Seq(u32::MAX).unwrap_near(10, Seq(2)), Some(7));
        assert_eq!(Seq(u32::MAX).unwrap_near(1, Seq(2)), None);
    }
}
