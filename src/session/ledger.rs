//! The byte ledger: every captured upstream byte that a session was given ends in exactly one fate, or
//! is held. Bytes given = those with a fate + those discarded at the end + those held, at any time.
//!
//! The unit is the payload byte of a captured packet, in each session it was for: a byte that the
//! client sent twice counts twice, one of them as a duplicate. Captured bytes only: what the capture
//! lost has no fate, but where the stream shows that it is missing, it is counted apart.

use super::event::End;
use crate::wire::Tally;

/// What became of a captured upstream byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// The target's TCP acknowledged it.
    Delivered,
    /// It was known already, or belongs into a hole that was given up before it came.
    Duplicate,
    /// It followed a hole that was given up, and the next request boundary comes after it.
    Torn,
    /// The target had left the connection in the middle of its burst, so that the rest was not sent.
    Skipped,
    /// Its packet has sequence numbers that cannot belong to the connection, or comes after its end.
    OutOfWindow,
    /// The capture cut its packet, which counts as lost.
    Cut,
    /// It came before the first request boundary of a connection captured mid-stream.
    BeforeJoin,
    /// The session had ended already.
    Late,
}

crate::counted!(Fate {
    Delivered => "delivered",
    Duplicate => "duplicate",
    Torn => "torn",
    Skipped => "skipped",
    OutOfWindow => "out_of_window",
    Cut => "cut",
    BeforeJoin => "before_join",
    Late => "late",
});

/// Bytes of many sessions, by what became of them.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// While the sessions lived.
    pub fates: Tally<Fate>,
    /// Held by sessions when they ended, by the reason of that: captured, and not acknowledged.
    pub discarded: Tally<End>,
    /// Bytes that were never captured: holes in the streams that were given up.
    pub missing: u64,
}

impl Ledger {
    /// Adds another ledger to this one.
    pub fn merge(&mut self, other: &Self) {
        self.fates.merge(&other.fates);
        self.discarded.merge(&other.discarded);
        self.missing += other.missing;
    }

    /// Captured bytes that are held no more.
    pub fn settled(&self) -> u64 {
        self.fates.total() + self.discarded.total()
    }
}

/// What one session has not entered into a [`Ledger`] yet: little at a time, and nothing between turns.
#[derive(Debug, Default)]
pub(super) struct Entries(Vec<(Entry, u64)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Fate(Fate),
    Discarded(End),
    Missing,
}

impl Entries {
    pub(super) fn add(&mut self, fate: Fate, bytes: u64) {
        self.put(Entry::Fate(fate), bytes);
    }

    pub(super) fn discard(&mut self, why: End, bytes: u64) {
        self.put(Entry::Discarded(why), bytes);
    }

    pub(super) fn miss(&mut self, bytes: u64) {
        self.put(Entry::Missing, bytes);
    }

    fn put(&mut self, entry: Entry, bytes: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == entry) {
            Some((_, sum)) => *sum += bytes,
            None if bytes == 0 => {}
            None => self.0.push((entry, bytes)),
        }
    }

    /// Moves everything over.
    pub(super) fn enter(&mut self, ledger: &mut Ledger) {
        for (entry, bytes) in self.0.drain(..) {
            match entry {
                Entry::Fate(fate) => ledger.fates.add(fate, bytes),
                Entry::Discarded(why) => ledger.discarded.add(why, bytes),
                Entry::Missing => ledger.missing += bytes,
            }
        }
    }

    /// Memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.0.capacity() * size_of::<(Entry, u64)>()
    }

    /// Gives back the room that nothing needs now.
    pub(super) fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }
}
