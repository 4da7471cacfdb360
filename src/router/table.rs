//! A map of flows that knows which one has been idle for longest.

use std::collections::HashMap;

use slab::Slab;

use crate::wire::{FlowKey, Time};

/// A flow's place in a [`Table`], as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(usize);

/// Flows by key, and in a list by the time of their last use.
#[derive(Debug)]
pub(super) struct Table<T> {
    slots: HashMap<FlowKey, Slot>,
    entries: Slab<Entry<T>>,
    newest: Option<Slot>,
    idlest: Option<Slot>,
}

#[derive(Debug)]
struct Entry<T> {
    key: FlowKey,
    value: T,
    last: Time,
    newer: Option<Slot>,
    older: Option<Slot>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: HashMap::new(), entries: Slab::new(), newest: None, idlest: None }
    }
}

impl<T> Table<T> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn find(&self, key: &FlowKey) -> Option<Slot> {
        self.slots.get(key).copied()
    }

    pub(super) fn value(&self, slot: Slot) -> Option<&T> {
        self.entries.get(slot.0).map(|entry| &entry.value)
    }

    /// When the flow was last used.
    pub(super) fn last(&self, slot: Slot) -> Time {
        self.entries.get(slot.0).map_or(Time::ZERO, |entry| entry.last)
    }

    /// The flow that has been idle for longest.
    pub(super) fn idlest(&self) -> Option<Slot> {
        self.idlest
    }

    /// Adds a flow that is not there yet.
    pub(super) fn insert(&mut self, now: Time, key: FlowKey, value: T) -> Slot {
        let slot = Slot(self.entries.insert(Entry { key, value, last: now, newer: None, older: None }));
        self.slots.insert(key, slot);
        self.link(slot);
        slot
    }

    /// The flow is used.
    pub(super) fn touch(&mut self, slot: Slot, now: Time) {
        if let Some(entry) = self.entries.get_mut(slot.0) {
            entry.last = now;
        }
        if self.newest != Some(slot) {
            self.unlink(slot);
            self.link(slot);
        }
    }

    pub(super) fn take(&mut self, slot: Slot) -> Option<(FlowKey, T)> {
        self.unlink(slot);
        let entry = self.entries.try_remove(slot.0)?;
        self.slots.remove(&entry.key);
        Some((entry.key, entry.value))
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        self.take(slot);
    }

    /// Puts an entry that is in no list at the newest end.
    fn link(&mut self, slot: Slot) {
        let older = self.newest.replace(slot);
        if let Some(entry) = self.entries.get_mut(slot.0) {
            (entry.newer, entry.older) = (None, older);
        }
        match older.and_then(|older| self.entries.get_mut(older.0)) {
            Some(entry) => entry.newer = Some(slot),
            None => self.idlest = Some(slot),
        }
    }

    fn unlink(&mut self, slot: Slot) {
        let Some((newer, older)) = self.entries.get(slot.0).map(|entry| (entry.newer, entry.older)) else {
            return;
        };
        match newer.and_then(|newer| self.entries.get_mut(newer.0)) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match older.and_then(|older| self.entries.get_mut(older.0)) {
            Some(entry) => entry.newer = newer,
            None => self.idlest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(port: u16) -> FlowKey {
        FlowKey { client: ([10, 0, 0, 1], port).into(), server: ([10, 0, 0, 2], 80).into() }
    }

    proptest! {
        #[test]
        fn behaves_like_a_list(steps in proptest::collection::vec((0u8..3, 1u16..20), 0..300)) {
            let mut table = Table::default();
            let mut model: Vec<u16> = Vec::new();
            for (at, (step, port)) in steps.into_iter().enumerate() {
                let now = Time::from_micros(at as u64);
                let found = table.find(&key(port));
                prop_assert_eq!(found.is_some(), model.contains(&port));
                match (step, found) {
                    (0, None) => {
                        table.insert(now, key(port), port);
                        model.push(port);
                    }
                    (1, Some(slot)) => {
                        table.touch(slot, now);
                        prop_assert_eq!(table.last(slot), now);
                        model.retain(|p| *p != port);
                        model.push(port);
                    }
                    (2, Some(slot)) => {
                        prop_assert_eq!(table.take(slot), Some((key(port), port)));
                        model.retain(|p| *p != port);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
                let idlest = table.idlest().and_then(|slot| table.value(slot)).copied();
                prop_assert_eq!(idlest, model.first().copied());
            }
        }
    }
}
