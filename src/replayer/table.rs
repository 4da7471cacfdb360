//! The session table: entries by slot, found by client connection, by replayed flow and by deadline.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;

use slab::Slab;

use super::budget::Budget;
use super::reconnect::Waits;
use crate::session::{Ledger, Session};
use crate::wire::index::{Index, narrow, wide};
use crate::wire::{FlowId, FlowKey, Time};

/// One session and what the replayer knows of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) session: Session,
    /// The connections it may open.
    pub(super) budget: Budget,
    /// What it waits for, if it wants a connection.
    pub(super) waits: Waits,
    /// The captured connection.
    pub(super) connection: FlowKey,
    /// Which copy of it this is.
    pub(super) copy: u16,
    /// The next copy of the same connection.
    sibling: Option<u32>,
    pub(super) target: SocketAddr,
    /// The replayed flow, while it has one.
    pub(super) flow: Option<(FlowId, SocketAddr)>,
    /// How many of the flows it could have were refused: somebody else has them.
    pub(super) refused: u16,
    /// Intercepts that have not confirmed the claim of its flow, one bit each.
    pub(super) awaited: u64,
    /// Bytes and memory of the session that are in [`Table::buffered`] and [`Table::memory`], the entry itself apart.
    accounted: Accounted,
    /// The deadline that stands in the heap.
    armed: Option<Time>,
    /// It stands in the queue of sessions to be polled.
    queued: bool,
    /// Distinguishes it from earlier entries of the same slot in the heap.
    serial: u32,
}

/// What a session takes.
#[derive(Clone, Copy, Debug, Default)]
struct Accounted {
    buffered: usize,
    memory: usize,
}

/// What a place in the slab takes at most.
const ENTRY: usize = size_of::<Entry>() + size_of::<usize>();

/// A deadline in the heap: when, slot, serial.
type Deadline = Reverse<(Time, u32, u32)>;

/// Deadlines of no session that may stand in the heap, beside two for each session.
const STALE: usize = 1024;

/// Tables of so many places or fewer do not shrink.
const SMALL: usize = 1 << 10;

/// Of so many sessions, one is remembered as one of the largest.
const COMPARED: usize = 32;

/// The sessions of one worker.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Slab<Entry>,
    /// Captured connection to its first copy.
    by_connection: Index,
    /// Replayed flows in use.
    by_flow: Index,
    deadlines: BinaryHeap<Deadline>,
    queue: VecDeque<usize>,
    serial: u32,
    buffered: usize,
    /// What the sessions take besides their entries.
    held: usize,
    /// Places of the slab below this one have been used since the table was last shrunk.
    high: usize,
    /// The sessions that took most when they were last compared, the largest last: memory, slot, serial.
    largest: Vec<(usize, usize, u32)>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Upstream bytes held by all sessions, as of their last [`Table::account`].
    pub(super) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Memory that the table takes: what the sessions hold as of the same, and its own tables, used or not.
    pub(super) fn memory(&self) -> usize {
        let tables = self.high * ENTRY + self.by_connection.memory() + self.by_flow.memory();
        let queues = self.deadlines.capacity() * size_of::<Deadline>()
            + self.queue.capacity() * size_of::<usize>()
            + self.largest.capacity() * size_of::<(usize, usize, u32)>();
        self.held + tables + queues
    }

    /// Whether there is a place for so many more sessions without more memory.
    pub(super) fn has_places(&self, sessions: usize) -> bool {
        self.entries.len() + sessions <= self.high
    }

    /// Gives memory back that sessions took which have ended. To be called every few seconds.
    pub(super) fn shrink(&mut self) {
        if self.high > SMALL && self.entries.len() < self.high / 2 {
            // Places are numbered: only those behind the last one in use can go.
            self.entries.shrink_to_fit();
            self.high = self.entries.capacity();
        }
        self.by_connection.shrink(|slot| connection_of(&self.entries, slot));
        self.by_flow.shrink(|slot| flow_of(&self.entries, slot));
        if self.deadlines.capacity() > SMALL && self.entries.len() < self.deadlines.capacity() / 8 {
            self.sweep_deadlines();
            self.deadlines.shrink_to(2 * self.deadlines.len());
        }
        if self.queue.len() < self.queue.capacity() / 4 {
            self.queue.shrink_to(2 * self.queue.len());
        }
        self.largest.shrink_to_fit();
    }

    pub(super) fn entry(&mut self, slot: usize) -> Option<&mut Entry> {
        self.entries.get_mut(slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.entries.iter()
    }

    /// Slots in use lie below this.
    pub(super) fn slots(&self) -> usize {
        self.entries.capacity()
    }

    /// Since when a request of the session in `slot` has waited to leave.
    pub(super) fn waiting_since(&self, slot: usize) -> Option<Time> {
        self.entries.get(slot)?.session.waiting_since()
    }

    /// The first copy's slot of a captured connection.
    pub(super) fn of_connection(&self, connection: &FlowKey) -> Option<usize> {
        self.by_connection.find(connection, |slot| connection_of(&self.entries, slot))
    }

    /// The slot after `slot` among the copies of one connection.
    pub(super) fn sibling(&self, slot: usize) -> Option<usize> {
        self.entries.get(slot)?.sibling.map(wide)
    }

    /// The entry that a header from the target is for.
    pub(super) fn of_flow(&mut self, id: FlowId) -> Option<(usize, &mut Entry)> {
        let slot = usize::try_from(id.0 >> 32).ok()?;
        let entry = self.entries.get_mut(slot)?;
        entry.flow.is_some_and(|(own, _)| own == id).then_some((slot, entry))
    }

    /// The name of a replayed flow in use.
    pub(super) fn id_of(&self, flow: &FlowKey) -> Option<FlowId> {
        let slot = self.by_flow.find(flow, |slot| flow_of(&self.entries, slot))?;
        self.entries.get(slot)?.flow.map(|(id, _)| id)
    }

    pub(super) fn is_free(&self, flow: &FlowKey) -> bool {
        self.by_flow.find(flow, |slot| flow_of(&self.entries, slot)).is_none()
    }

    /// Adds a session as one more copy of its connection.
    pub(super) fn insert(
        &mut self,
        session: Session,
        budget: Budget,
        connection: FlowKey,
        copy: u16,
        target: SocketAddr,
    ) -> usize {
        let serial = self.next_serial();
        let slot = self.entries.insert(Entry {
            session,
            budget,
            waits: Waits::No,
            connection,
            copy,
            sibling: None,
            target,
            flow: None,
            refused: 0,
            awaited: 0,
            accounted: Accounted::default(),
            armed: None,
            queued: false,
            serial,
        });
        self.high = self.high.max(slot + 1);
        let first = self.by_connection.insert(&connection, slot, |slot| connection_of(&self.entries, slot));
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.sibling = first.and_then(narrow);
        }
        slot
    }

    /// The sessions of a connection go on, but its packets no longer find them.
    pub(super) fn detach(&mut self, connection: &FlowKey) {
        self.by_connection.remove(connection, |slot| connection_of(&self.entries, slot));
    }

    /// Gives a session a replayed flow, which must be free, and returns its new name.
    pub(super) fn assign(&mut self, slot: usize, local: SocketAddr) -> Option<FlowId> {
        let serial = self.next_serial();
        let entry = self.entries.get_mut(slot)?;
        let id = FlowId(u64::try_from(slot).ok()? << 32 | u64::from(serial));
        entry.flow = Some((id, local));
        entry.awaited = 0;
        let flow = FlowKey { client: local, server: entry.target };
        self.by_flow.insert(&flow, slot, |slot| flow_of(&self.entries, slot));
        Some(id)
    }

    /// Takes the replayed flow from a session, and returns it.
    pub(super) fn unassign(&mut self, slot: usize) -> Option<(FlowId, FlowKey)> {
        let flow = flow_of(&self.entries, slot)?;
        self.by_flow.remove(&flow, |slot| flow_of(&self.entries, slot));
        let (id, _) = self.entries.get_mut(slot)?.flow.take()?;
        Some((id, flow))
    }

    /// Removes a session, which has no flow any more.
    pub(super) fn remove(&mut self, slot: usize) {
        let Some(connection) = connection_of(&self.entries, slot) else { return };
        let first = self.of_connection(&connection);
        if first == Some(slot) {
            self.detach(&connection);
        }
        let Some(entry) = self.entries.try_remove(slot) else { return };
        self.buffered -= entry.accounted.buffered;
        self.held -= entry.accounted.memory;
        if first == Some(slot) {
            if let Some(next) = entry.sibling.map(wide) {
                self.by_connection.insert(&connection, next, |slot| connection_of(&self.entries, slot));
            }
            return;
        }
        let mut at = first;
        while let Some(previous) = at.and_then(|at| self.entries.get_mut(at)) {
            if previous.sibling.map(wide) == Some(slot) {
                previous.sibling = entry.sibling;
                return;
            }
            at = previous.sibling.map(wide);
        }
    }

    /// Queues a session for polling.
    pub(super) fn wake(&mut self, slot: usize) {
        if let Some(entry) = self.entries.get_mut(slot)
            && !std::mem::replace(&mut entry.queued, true)
        {
            self.queue.push_back(slot);
        }
    }

    /// The session to be polled next; it stays in front until [`Table::settle`].
    pub(super) fn awake(&self) -> Option<usize> {
        self.queue.front().copied()
    }

    /// The session in front of the queue has been polled empty: takes it from the queue, accounts
    /// its memory, enters what became of its bytes, and notes its deadline.
    pub(super) fn settle(&mut self, ledger: &mut Ledger) {
        let Some(slot) = self.queue.pop_front() else { return };
        self.account(slot, ledger);
        let Some(entry) = self.entries.get_mut(slot) else { return };
        entry.queued = false;
        let permit = match entry.waits {
            Waits::Until(due) => Some(due),
            Waits::No | Waits::Turn | Waits::Request => None,
        };
        if let Some(deadline) = [entry.session.poll_timeout(), permit].into_iter().flatten().min()
            && let Some(slot) = narrow(slot)
            && entry.armed.is_none_or(|armed| deadline < armed)
        {
            entry.armed = Some(deadline);
            self.deadlines.push(Reverse((deadline, slot, entry.serial)));
            if self.deadlines.len() > 2 * self.entries.len() + STALE {
                self.sweep_deadlines();
            }
        }
    }

    /// Removes the deadlines of sessions that have ended, and those that were brought forward.
    fn sweep_deadlines(&mut self) {
        let Self { deadlines, entries, .. } = self;
        deadlines.retain(|Reverse((due, slot, serial))| {
            entries.get(wide(*slot)).is_some_and(|entry| entry.serial == *serial && entry.armed == Some(*due))
        });
    }

    /// Accounts a session's memory, and enters what became of its bytes.
    pub(super) fn account(&mut self, slot: usize, ledger: &mut Ledger) {
        let Some(entry) = self.entries.get_mut(slot) else { return };
        entry.session.settle(ledger);
        let Accounted { buffered, memory } = entry.accounted;
        let now = Accounted { buffered: entry.session.buffered(), memory: entry.session.memory() };
        self.buffered = self.buffered - buffered + now.buffered;
        self.held = self.held - memory + now.memory;
        entry.accounted = now;
    }

    /// A session that takes as much as any, or did so when they were last compared: at the limit one after the other
    /// ends, and to look at all of them each time would take longer than what they wait for.
    pub(super) fn furthest_behind(&mut self) -> Option<usize> {
        let Self { entries, largest, .. } = self;
        for round in 0..2 {
            while let Some((memory, slot, serial)) = largest.pop() {
                let unchanged = entries.get(slot).is_some_and(|entry| {
                    entry.serial == serial && entry.accounted.memory >= memory && !entry.session.is_over()
                });
                if unchanged {
                    return Some(slot);
                }
            }
            if round == 0 {
                let live = entries.iter().filter(|(_, entry)| !entry.session.is_over());
                largest.extend(live.map(|(slot, entry)| (entry.accounted.memory, slot, entry.serial)));
                largest.sort_unstable();
                // What is compared once serves for some per cent of them.
                let kept = largest.len().div_ceil(COMPARED);
                largest.drain(..largest.len() - kept);
                largest.shrink_to_fit();
            }
        }
        None
    }

    /// When the next deadline in the heap is. A session's real one may be later.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.peek().map(|Reverse((due, ..))| *due)
    }

    /// The next session whose deadline in the heap has passed.
    pub(super) fn expired(&mut self, now: Time) -> Option<(usize, &mut Entry)> {
        loop {
            let &Reverse((due, slot, serial)) = self.deadlines.peek()?;
            if due > now {
                return None;
            }
            self.deadlines.pop();
            let slot = wide(slot);
            let current = self.entries.get_mut(slot).filter(|entry| entry.serial == serial);
            if let Some(entry) = current
                && entry.armed == Some(due)
            {
                entry.armed = None;
                break self.entries.get_mut(slot).map(|entry| (slot, entry));
            }
        }
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }
}

/// The captured connection of the session in a slot.
fn connection_of(entries: &Slab<Entry>, slot: usize) -> Option<FlowKey> {
    entries.get(slot).map(|entry| entry.connection)
}

/// The replayed flow of the session in a slot.
fn flow_of(entries: &Slab<Entry>, slot: usize) -> Option<FlowKey> {
    let entry = entries.get(slot)?;
    entry.flow.map(|(_, client)| FlowKey { client, server: entry.target })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::session::End;
    use crate::wire::{Flags, Seq, TcpHeader};

    #[test]
    fn sessions_that_have_ended_leave_no_deadlines_behind() {
        let mut table = Table::default();
        let connection = FlowKey { client: ([10, 0, 0, 1], 1).into(), server: ([10, 0, 0, 2], 80).into() };
        let syn = TcpHeader::bare(Seq(1), Seq(0), Flags::SYN, 1);
        for _ in 0..10 * STALE {
            let session = Session::open(Time::ZERO, Arc::default(), Arc::default(), &syn);
            let budget = Budget::new(syn.seq.add(1));
            let slot = table.insert(session, budget, connection, 0, connection.server);
            table.wake(slot);
            table.settle(&mut Ledger::default());
            table.entry(slot).expect("there").session.end(Time::ZERO, End::Shed);
            table.remove(slot);
        }
        assert!((1..=STALE).contains(&table.deadlines.len()), "{}", table.deadlines.len());
        assert_eq!((table.buffered(), table.held), (0, 0));
    }
}
