//! A leg of a packet's way: loses, delays, reorders, repeats, corrupts.

use std::ops::RangeInclusive;

use tcpcopy::wire::Time;

use crate::rng::Rng;

/// How a leg treats packets. Chances are in permille, times in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    pub(crate) delay: RangeInclusive<u64>,
    pub(crate) loss: u64,
    pub(crate) duplicate: u64,
    /// Chance of being held back by up to `held` more than others.
    pub(crate) reorder: u64,
    pub(crate) held: u64,
    /// Chance of one flipped bit.
    pub(crate) corrupt: u64,
}

impl Leg {
    /// A leg that keeps the order and loses nothing.
    pub(crate) fn perfect(delay: u64) -> Self {
        Self { delay: delay..=delay, loss: 0, duplicate: 0, reorder: 0, held: 0, corrupt: 0 }
    }

    /// When, and how damaged, a packet that enters now comes out: once, twice or never.
    pub(crate) fn pass(&self, now: Time, rng: &mut Rng) -> Vec<Passage> {
        let mut out = Vec::new();
        let copies = 1 + u64::from(rng.chance(self.duplicate));
        for _ in 0..copies {
            if rng.chance(self.loss) {
                continue;
            }
            let held = if rng.chance(self.reorder) { rng.within(0..=self.held) } else { 0 };
            let micros = now.micros() + rng.within(&self.delay) + held;
            let flipped = rng.chance(self.corrupt).then(|| rng.next());
            out.push(Passage { at: Time::from_micros(micros), flipped });
        }
        out
    }
}

/// One arrival of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    pub(crate) at: Time,
    /// Which bit, modulo the packet's length, is wrong.
    flipped: Option<u64>,
}

impl Passage {
    /// Whether the packet arrives undamaged.
    pub(crate) fn is_sound(&self) -> bool {
        self.flipped.is_none()
    }

    /// The packet as it arrives.
    pub(crate) fn apply(&self, mut packet: Vec<u8>) -> Vec<u8> {
        if let Some(bit) = self.flipped {
            // Not within the IP header: IPv6 has no checksum of its own.
            let ip = if packet[0] >> 4 == 4 { 20 } else { 40 };
            let at = ip + usize::try_from(bit / 8).expect("64-bit") % (packet.len() - ip);
            packet[at] ^= 1 << (bit % 8);
        }
        packet
    }
}
