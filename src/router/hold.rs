//! Responses that wait for their claim, all for the same time.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::Held;
use crate::wire::{FlowKey, Time};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) key: FlowKey,
    pub(super) packet: u32,
    pub(super) held: Held,
}

/// Memory of a flow's place in the map, whose capacity is seven eighths of its buckets, and of its numbers.
const BY_FLOW: usize = (size_of::<(FlowKey, Vec<u64>)>() + 1) * 8 / 7;
const NUMBERS: usize = 4 * size_of::<u64>() + 16;

#[derive(Debug)]
pub(super) struct Hold {
    /// In order of arrival; `None` where one was claimed. The first one is never `None`.
    queue: VecDeque<Option<Waiting>>,
    /// The number of the first one: each has the next number.
    first: u64,
    /// The numbers of a flow's.
    by_flow: HashMap<FlowKey, Vec<u64>>,
    len: usize,
    time: Duration,
    limit: usize,
}

impl Hold {
    pub(super) fn new(time: Duration, limit: usize) -> Self {
        Self { queue: VecDeque::new(), first: 0, by_flow: HashMap::new(), len: 0, time, limit }
    }

    /// Also of those that wait already.
    pub(super) fn configure(&mut self, time: Duration, limit: usize) {
        self.time = time;
        self.limit = limit;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// `false` if too many wait.
    pub(super) fn put(&mut self, waiting: Waiting) -> bool {
        // Those claimed take room too, until those before them are gone.
        if self.queue.len() >= self.limit {
            return false;
        }
        let number = self.first + self.queue.len() as u64;
        self.by_flow.entry(waiting.key).or_default().push(number);
        self.queue.push_back(Some(waiting));
        self.len += 1;
        true
    }

    /// Takes all of a flow's, in order of arrival.
    pub(super) fn take(&mut self, key: &FlowKey) -> Vec<Waiting> {
        let Some(numbers) = self.by_flow.remove(key) else { return Vec::new() };
        let first = self.first;
        let taken: Vec<_> = numbers
            .into_iter()
            .filter_map(|number| usize::try_from(number.checked_sub(first)?).ok())
            .filter_map(|index| self.queue.get_mut(index)?.take())
            .collect();
        self.len -= taken.len();
        self.trim();
        taken
    }

    /// When the first one has waited long enough.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.queue.front()?.map(|waiting| waiting.held.arrived + self.time)
    }

    /// Takes the first one if it has waited long enough.
    pub(super) fn expired(&mut self, now: Time) -> Option<Waiting> {
        if self.deadline()? > now {
            return None;
        }
        let waiting = self.queue.pop_front()??;
        self.len -= 1;
        if let Some(numbers) = self.by_flow.get_mut(&waiting.key) {
            let first = self.first;
            numbers.retain(|number| *number != first);
            if numbers.is_empty() {
                self.by_flow.remove(&waiting.key);
            }
        }
        self.first += 1;
        self.trim();
        Some(waiting)
    }

    /// Memory that those take that wait, in bytes.
    pub(super) fn memory(&self) -> usize {
        let flows = self.by_flow.capacity() * BY_FLOW + self.by_flow.len() * NUMBERS;
        self.queue.capacity() * size_of::<Option<Waiting>>() + flows
    }

    /// Gives memory back if none or few wait.
    pub(super) fn shrink(&mut self) {
        if self.queue.len() < self.queue.capacity() / 4 {
            self.queue.shrink_to(self.queue.len() * 2);
        }
        if self.by_flow.len() < self.by_flow.capacity() / 4 {
            self.by_flow.shrink_to(self.by_flow.len() * 2);
        }
    }

    fn trim(&mut self) {
        while let Some(None) = self.queue.front() {
            self.queue.pop_front();
            self.first += 1;
        }
    }
}
