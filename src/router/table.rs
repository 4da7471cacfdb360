//! A map of flows, each of which stands in one of several lists by the time of its last use.

use std::num::NonZeroU32;

use slab::Slab;

use crate::wire::index::{Index, narrow, wide};
use crate::wire::{FlowKey, Time};

/// A flow's place in a [`Table`], as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(
    /// Its number and one, so that an `Option` of it takes no more.
    NonZeroU32,
);

impl Slot {
    /// The slot's number.
    pub(super) fn index(self) -> usize {
        wide(self.0.get()) - 1
    }

    /// The slot of that number.
    pub(super) fn at(index: usize) -> Option<Self> {
        narrow(index)?.checked_add(1).and_then(NonZeroU32::new).map(Self)
    }
}

/// Flows in the order of their last use. A list belongs to one [`Table`], which must be the one it is passed to.
#[derive(Debug, Default)]
pub(super) struct List {
    newest: Option<Slot>,
    idlest: Option<Slot>,
    len: usize,
}

impl List {
    /// The flow that has been idle for longest.
    pub(super) fn idlest(&self) -> Option<Slot> {
        self.idlest
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// Flows by key.
#[derive(Debug)]
pub(super) struct Table<T> {
    index: Index,
    entries: Slab<Entry<T>>,
    /// Slots below this one have been used since the table was last shrunk.
    high: usize,
}

#[derive(Debug)]
struct Entry<T> {
    key: FlowKey,
    value: T,
    last: Time,
    newer: Option<Slot>,
    older: Option<Slot>,
}

/// What a slot of the slab takes besides its entry at most.
const SLOT: usize = size_of::<usize>();
/// Slots that stay, however few of them are in use.
const SMALL: usize = 1 << 10;

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { index: Index::default(), entries: Slab::new(), high: 0 }
    }
}

impl<T> Table<T> {
    /// Memory of an entry, in bytes.
    pub(super) const ENTRY: usize = size_of::<Entry<T>>() + SLOT;

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn find(&self, key: &FlowKey) -> Option<Slot> {
        self.index.find(key, |slot| key_of(&self.entries, slot)).and_then(Slot::at)
    }

    pub(super) fn value(&self, slot: Slot) -> Option<&T> {
        self.entries.get(slot.index()).map(|entry| &entry.value)
    }

    /// All flows, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&FlowKey, &T)> {
        self.entries.iter().map(|(_, entry)| (&entry.key, &entry.value))
    }

    /// When the flow was last used.
    pub(super) fn last(&self, slot: Slot) -> Time {
        self.entries.get(slot.index()).map_or(Time::ZERO, |entry| entry.last)
    }

    /// Adds a flow that is not there yet. `None` if there are four billion flows.
    pub(super) fn insert(&mut self, list: &mut List, now: Time, key: FlowKey, value: T) -> Option<Slot> {
        let slot = Slot::at(self.entries.vacant_key())?;
        self.entries.insert(Entry { key, value, last: now, newer: None, older: None });
        self.high = self.high.max(slot.index() + 1);
        self.index.insert(&key, slot.index(), |slot| key_of(&self.entries, slot));
        self.link(list, slot);
        Some(slot)
    }

    /// The flow, which stands in that list, is used.
    pub(super) fn touch(&mut self, list: &mut List, slot: Slot, now: Time) {
        if let Some(entry) = self.entries.get_mut(slot.index()) {
            entry.last = now;
        }
        if list.newest != Some(slot) {
            self.unlink(list, slot);
            self.link(list, slot);
        }
    }

    /// Removes a flow from that list, in which it stands, and from the table.
    pub(super) fn remove(&mut self, list: &mut List, slot: Slot) -> Option<(FlowKey, T)> {
        let key = key_of(&self.entries, slot.index())?;
        self.unlink(list, slot);
        self.index.remove(&key, |slot| key_of(&self.entries, slot));
        self.entries.try_remove(slot.index()).map(|entry| (entry.key, entry.value))
    }

    /// Memory that the table takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.high * Self::ENTRY + self.index.memory()
    }

    /// Gives memory back that has not been in use for long. To be called now and then.
    pub(super) fn shrink(&mut self) {
        self.index.shrink(|slot| key_of(&self.entries, slot));
        if self.high > SMALL && self.entries.len() < self.high / 2 {
            self.entries.shrink_to_fit();
            self.high = self.entries.capacity();
        }
    }

    /// Puts an entry that is in no list at the newest end.
    fn link(&mut self, list: &mut List, slot: Slot) {
        let older = list.newest.replace(slot);
        list.len += 1;
        if let Some(entry) = self.entries.get_mut(slot.index()) {
            (entry.newer, entry.older) = (None, older);
        }
        match older.and_then(|older| self.entries.get_mut(older.index())) {
            Some(entry) => entry.newer = Some(slot),
            None => list.idlest = Some(slot),
        }
    }

    fn unlink(&mut self, list: &mut List, slot: Slot) {
        let Some((newer, older)) = self.entries.get(slot.index()).map(|entry| (entry.newer, entry.older))
        else {
            return;
        };
        list.len -= 1;
        match newer.and_then(|newer| self.entries.get_mut(newer.index())) {
            Some(entry) => entry.older = older,
            None => list.newest = older,
        }
        match older.and_then(|older| self.entries.get_mut(older.index())) {
            Some(entry) => entry.newer = newer,
            None => list.idlest = newer,
        }
    }
}

fn key_of<T>(entries: &Slab<Entry<T>>, slot: usize) -> Option<FlowKey> {
    entries.get(slot).map(|entry| entry.key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(port: u16) -> FlowKey {
        FlowKey { client: ([10, 0, 0, 1], port).into(), server: ([10, 0, 0, 2], 80).into() }
    }

    proptest! {
        /// Flows with even ports stand in the first list, those with odd ports in the second.
        #[test]
        fn behaves_like_lists(steps in proptest::collection::vec((0u8..3, 1u16..20), 0..300)) {
            let mut table = Table::default();
            let mut lists = [List::default(), List::default()];
            let mut models: [Vec<u16>; 2] = Default::default();
            for (at, (step, port)) in steps.into_iter().enumerate() {
                let now = Time::from_micros(at as u64);
                let (list, model) = (&mut lists[usize::from(port % 2)], &mut models[usize::from(port % 2)]);
                let found = table.find(&key(port));
                prop_assert_eq!(found.is_some(), model.contains(&port));
                match (step, found) {
                    (0, None) => {
                        table.insert(list, now, key(port), port);
                        model.push(port);
                    }
                    (1, Some(slot)) => {
                        table.touch(list, slot, now);
                        prop_assert_eq!(table.last(slot), now);
                        model.retain(|p| *p != port);
                        model.push(port);
                    }
                    (2, Some(slot)) => {
                        prop_assert_eq!(table.remove(list, slot), Some((key(port), port)));
                        model.retain(|p| *p != port);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), models.iter().map(Vec::len).sum::<usize>());
                for (list, model) in lists.iter().zip(&models) {
                    let idlest = list.idlest().and_then(|slot| table.value(slot)).copied();
                    prop_assert_eq!((idlest, list.len()), (model.first().copied(), model.len()));
                }
            }
        }
    }

    #[test]
    fn a_table_that_has_emptied_gives_its_memory_back() {
        let (mut table, mut list) = (Table::default(), List::default());
        for port in 1..=50_000 {
            table.insert(&mut list, Time::ZERO, key(port), ());
        }
        let full = table.memory();
        while table.len() > 10
            && let Some(slot) = list.newest
        {
            table.remove(&mut list, slot);
        }
        table.shrink();
        assert!(table.memory() < full / 20, "{} of {full}", table.memory());
        assert!((1..=10).all(|port| table.find(&key(port)).is_some()));
    }
}
