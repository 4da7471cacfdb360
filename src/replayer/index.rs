//! An index into the session table that holds no keys: each entry knows its own.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::wire::FlowKey;

/// Finds entries by a flow that they hold. An entry's flow must not change while the index holds the entry.
///
/// A map with the keys in it would take ten times the memory, and looking into the entry that was found costs nothing: it is
/// wanted anyway.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Clients choose the keys, so it is seeded.
    hasher: RandomState,
    slots: HashTable<u32>,
}

impl Index {
    /// The entry that holds `key`; `key_of` tells each entry's.
    pub(super) fn find(&self, key: &FlowKey, key_of: impl Fn(usize) -> Option<FlowKey>) -> Option<usize> {
        let found = self.slots.find(self.hasher.hash_one(key), |slot| key_of(wide(*slot)) == Some(*key));
        found.copied().map(wide)
    }

    /// Adds an entry, which holds `key`; one that holds the same makes place for it, and is returned.
    pub(super) fn insert(
        &mut self,
        key: &FlowKey,
        slot: usize,
        key_of: impl Fn(usize) -> Option<FlowKey>,
    ) -> Option<usize> {
        let slot = narrow(slot)?;
        let Self { hasher, slots } = self;
        // An entry without a key is in nobody's way wherever it is; there is none.
        let hash_of = |slot: &u32| key_of(wide(*slot)).map_or(0, |key| hasher.hash_one(key));
        match slots.entry(hasher.hash_one(key), |slot| key_of(wide(*slot)) == Some(*key), hash_of) {
            Entry::Occupied(mut entry) => Some(wide(std::mem::replace(entry.get_mut(), slot))),
            Entry::Vacant(entry) => {
                entry.insert(slot);
                None
            }
        }
    }

    /// Forgets the entry that holds `key`.
    pub(super) fn remove(&mut self, key: &FlowKey, key_of: impl Fn(usize) -> Option<FlowKey>) {
        let hash = self.hasher.hash_one(key);
        if let Ok(entry) = self.slots.find_entry(hash, |slot| key_of(wide(*slot)) == Some(*key)) {
            entry.remove();
        }
    }
}

/// Slots are below `max_sessions`, so that half the width does.
pub(super) fn narrow(slot: usize) -> Option<u32> {
    u32::try_from(slot).ok()
}

pub(super) fn wide(slot: u32) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}
