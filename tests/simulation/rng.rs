//! The one source of chance: a run is a function of its scenario and seed.

use std::borrow::Borrow;
use std::ops::RangeInclusive;
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded by any number, good enough for tests.
#[derive(Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The generator of run number `seed` of the scenario called `name`.
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        let start = name.bytes().fold(seed, |sum, byte| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
        Self(start)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of `range`, all equally likely.
    pub(crate) fn within(&mut self, range: impl Borrow<RangeInclusive<u64>>) -> u64 {
        let range = range.borrow();
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// A number of `range`, small ones more often: sizes spread over their orders of magnitude.
    pub(crate) fn size(&mut self, range: impl Borrow<RangeInclusive<u64>>) -> u64 {
        let range = range.borrow();
        let shift = self.within(0..=u64::from((range.end() - range.start() + 1).ilog2()));
        range.start() + self.next() % (((range.end() - range.start()) >> shift) + 1)
    }

    /// A time of `range`, which is in microseconds, short ones more often.
    pub(crate) fn time(&mut self, range: &RangeInclusive<u64>) -> Duration {
        Duration::from_micros(self.size(range))
    }

    /// True `permille` times of a thousand.
    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        self.next() % 1000 < permille
    }

    /// One of `items`.
    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::try_from(self.next() % items.len() as u64).expect("small")]
    }
}
