//! Counters by outcome: one number for every value of an enum.

use std::marker::PhantomData;

/// An enum whose values are counted. Implemented by [`counted!`](crate::counted).
pub trait Counted: Copy + 'static {
    /// Every value with its name in logs and metrics, in the order of [`Counted::index`].
    const ALL: &'static [(Self, &'static str)];

    /// Position in [`Counted::ALL`].
    fn index(self) -> usize;

    /// Its name in logs and metrics.
    fn name(self) -> &'static str {
        Self::ALL.get(self.index()).map_or("unknown", |(_, name)| *name)
    }
}

/// How often each value of `K` occurred.
#[derive(Clone, Debug)]
pub struct Tally<K> {
    counts: Vec<u64>,
    kind: PhantomData<K>,
}

impl<K: Counted> Default for Tally<K> {
    fn default() -> Self {
        Self { counts: vec![0; K::ALL.len()], kind: PhantomData }
    }
}

impl<K: Counted> Tally<K> {
    /// Counts one.
    pub fn count(&mut self, key: K) {
        self.add(key, 1);
    }

    /// Counts `n`.
    pub fn add(&mut self, key: K, n: u64) {
        if let Some(count) = self.counts.get_mut(key.index()) {
            *count += n;
        }
    }

    /// How often `key` occurred.
    pub fn of(&self, key: K) -> u64 {
        self.counts.get(key.index()).copied().unwrap_or(0)
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds another tally to this one.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// The values that occurred, with their names.
    pub fn nonzero(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        K::ALL.iter().zip(&self.counts).filter(|(_, n)| **n > 0).map(|((_, name), n)| (*name, *n))
    }
}

/// Implements [`Counted`](crate::wire::Counted) for a field-less enum: `counted!(Enum { Variant => "name", … })`.
/// The match that this makes has no wildcard, so a forgotten variant does not compile.
#[macro_export]
macro_rules! counted {
    ($kind:ty { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $crate::wire::Counted for $kind {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $name)),+];

            fn index(self) -> usize {
                match self { $(Self::$variant => Self::$variant as usize),+ }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fruit {
        Apple,
        Pear,
    }
    counted!(Fruit { Apple => "apple", Pear => "pear" });

    #[test]
    fn counts_by_name() {
        let mut tally = Tally::default();
        tally.count(Fruit::Pear);
        tally.add(Fruit::Pear, 2);
        let mut sum = Tally::default();
        sum.merge(&tally);
        assert_eq!((sum.of(Fruit::Pear), sum.of(Fruit::Apple), sum.total()), (3, 0, 3));
        assert_eq!(sum.nonzero().collect::<Vec<_>>(), [("pear", 3)]);
    }
}
