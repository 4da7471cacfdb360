//! When the process gives freed memory back to the system.

use crate::sys::memory;

/// A fall of so many bytes is worth the time.
const WORTHWHILE: usize = 1 << 20;

/// Watches what is accounted, and has the allocator give memory back after it has fallen.
#[derive(Debug, Default)]
pub(super) struct Trimmer {
    /// The most that was accounted since memory was last given back.
    highest: usize,
}

impl Trimmer {
    /// So many bytes are accounted now. To be called every few seconds.
    pub(super) fn look(&mut self, accounted: usize) {
        if self.is_worthwhile(accounted) {
            memory::trim();
        }
    }

    fn is_worthwhile(&mut self, accounted: usize) -> bool {
        self.highest = self.highest.max(accounted);
        // Of much, a small part comes and goes all the time.
        let fallen = self.highest - accounted >= WORTHWHILE.max(self.highest / 16);
        if fallen {
            self.highest = accounted;
        }
        fallen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fall_that_is_worthwhile_counts_once() {
        let mut trimmer = Trimmer::default();
        let falls = [10, 9, 40, 39, 38, 36, 36, 35, 0].map(|mib| trimmer.is_worthwhile(mib << 20));
        assert_eq!(falls, [false, true, false, false, false, true, false, false, true]);
    }
}
