//! An index into a table whose entries hold their own keys.

use std::hash::{BuildHasher as _, Hash, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Finds entries of a table by a key that each entry holds. The key of an entry must not change while the index holds it.
///
/// A map that stores the keys would take ten times the memory. The entry that is found is wanted anyway, so that the
/// comparison with its key costs nothing.
#[derive(Debug, Default)]
pub struct Index {
    /// Peers choose the keys, so it is seeded.
    hasher: RandomState,
    slots: HashTable<u32>,
}

/// Bytes of one bucket: the slot and its control byte.
const BUCKET: usize = size_of::<u32>() + 1;
/// A table of so many buckets or fewer does not shrink.
const SMALL: usize = 1 << 10;

impl Index {
    /// The entry that holds `key`; `key_of` returns the key of an entry.
    pub fn find<K: Hash + Eq>(&self, key: &K, key_of: impl Fn(usize) -> Option<K>) -> Option<usize> {
        let is_it = |slot: &u32| key_of(wide(*slot)).as_ref() == Some(key);
        self.slots.find(self.hasher.hash_one(key), is_it).copied().map(wide)
    }

    /// Adds an entry, which holds `key`. An entry that holds the same key is replaced and returned.
    pub fn insert<K: Hash + Eq>(
        &mut self,
        key: &K,
        slot: usize,
        key_of: impl Fn(usize) -> Option<K>,
    ) -> Option<usize> {
        let slot = narrow(slot)?;
        let Self { hasher, slots } = self;
        // Every entry has a key; one without could be anywhere.
        let hash_of = |slot: &u32| key_of(wide(*slot)).map_or(0, |key| hasher.hash_one(key));
        let is_it = |slot: &u32| key_of(wide(*slot)).as_ref() == Some(key);
        match slots.entry(hasher.hash_one(key), is_it, hash_of) {
            Entry::Occupied(mut entry) => Some(wide(std::mem::replace(entry.get_mut(), slot))),
            Entry::Vacant(entry) => {
                entry.insert(slot);
                None
            }
        }
    }

    /// Forgets the entry that holds `key`.
    pub fn remove<K: Hash + Eq>(&mut self, key: &K, key_of: impl Fn(usize) -> Option<K>) {
        let hash = self.hasher.hash_one(key);
        if let Ok(entry) = self.slots.find_entry(hash, |slot| key_of(wide(*slot)).as_ref() == Some(key)) {
            entry.remove();
        }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Memory that the index takes, in bytes.
    pub fn memory(&self) -> usize {
        // An empty table has a bucket that all such tables share.
        if self.slots.capacity() == 0 { 0 } else { self.slots.num_buckets() * BUCKET }
    }

    /// Gives memory back if less than a quarter of it is in use. To be called now and then.
    pub fn shrink<K: Hash>(&mut self, key_of: impl Fn(usize) -> Option<K>) {
        let Self { hasher, slots } = self;
        if slots.num_buckets() > SMALL && slots.len() < slots.num_buckets() / 4 {
            slots
                .shrink_to(slots.len() * 2, |slot| key_of(wide(*slot)).map_or(0, |key| hasher.hash_one(key)));
        }
    }
}

/// Slots are below four billion, so that half the width does.
pub fn narrow(slot: usize) -> Option<u32> {
    u32::try_from(slot).ok()
}

/// The reverse of [`narrow`].
pub fn wide(slot: u32) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_mostly_empty_gives_memory_back_and_finds_the_rest() {
        let keys: Vec<u64> = (0..100_000).map(|n| n * 7).collect();
        let key_of = |slot: usize| keys.get(slot).copied();
        let mut index = Index::default();
        for (slot, key) in keys.iter().enumerate() {
            assert_eq!(index.insert(key, slot, key_of), None);
        }
        let full = index.memory();
        for key in keys.iter().skip(100) {
            index.remove(key, key_of);
        }
        index.shrink(key_of);
        assert!(index.memory() < full / 50, "{} of {full}", index.memory());
        assert!((0..100).all(|slot| index.find(&keys[slot], key_of) == Some(slot)));
        assert_eq!((index.len(), index.find(&keys[100], key_of)), (100, None));
    }
}
