//! Turns at reading: which tunnels are read in a turn of their worker, and how much of each.
//!
//! What a turn reads is bounded, so that a flood of claims delays responses, and the claims of others, by a bounded time.
//! Tenants have equal parts of it, and the tunnels of a tenant are read in turn.

use std::collections::{HashMap, VecDeque};

use crate::router::Tenant;

/// Bytes read in a turn, of all tunnels: about 3 ms of claims.
const TURN: usize = 128 << 10;
/// Bytes read of each tenant in a turn at least: one read.
const LEAST: usize = 16 << 10;

/// Tunnels that have something to read.
#[derive(Debug, Default)]
pub(super) struct Turns {
    tenants: HashMap<Tenant, VecDeque<usize>>,
    /// Tenants with a tunnel to read, the next one first.
    order: VecDeque<Tenant>,
}

/// The turn of one tenant: so many bytes of its tunnels, by their keys.
#[derive(Debug)]
pub(super) struct Turn {
    tenant: Tenant,
    keys: VecDeque<usize>,
    left: usize,
}

impl Turns {
    /// Whether none has anything to read.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// A tunnel, which is not here, has something to read.
    pub(super) fn add(&mut self, tenant: Tenant, key: usize) {
        let keys = self.tenants.entry(tenant).or_default();
        if keys.is_empty() {
            self.order.push_back(tenant);
        }
        keys.push_back(key);
    }

    /// What is to be read in this turn. Each [`Turn`] is to be given back.
    pub(super) fn begin(&mut self) -> Vec<Turn> {
        let part = (TURN / self.order.len().max(1)).max(LEAST);
        // Tenants are trusted by their keys, or few: those beyond wait for the next turn.
        let order: Vec<_> = self.order.drain(..self.order.len().min(TURN / LEAST)).collect();
        let turn =
            |tenant| Turn { tenant, keys: self.tenants.remove(&tenant).unwrap_or_default(), left: part };
        order.into_iter().map(turn).collect()
    }

    /// A tenant's turn is over: what it could not read waits for the next one.
    pub(super) fn end(&mut self, turn: Turn) {
        if turn.keys.is_empty() {
            return;
        }
        let keys = self.tenants.entry(turn.tenant).or_default();
        if keys.is_empty() {
            self.order.push_back(turn.tenant);
        }
        // Tunnels that have been added meanwhile come last.
        let added = std::mem::replace(keys, turn.keys);
        keys.extend(added);
    }
}

impl Turn {
    /// The next tunnel to read once; `None` if all are read, or the tenant has read its part.
    pub(super) fn next(&mut self) -> Option<usize> {
        if self.left == 0 { None } else { self.keys.pop_front() }
    }

    /// So many bytes were read of the tunnel.
    pub(super) fn read(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// The tunnel has more to read.
    pub(super) fn again(&mut self, key: usize) {
        self.keys.push_back(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Tenant = Tenant::Key([1; 4]);
    const MANY: Tenant = Tenant::Key([2; 4]);

    /// Reads full reads of `READ` bytes from tunnels that always have more; returns what was read of each tenant.
    fn turn(turns: &mut Turns) -> HashMap<Tenant, Vec<usize>> {
        let mut read: HashMap<_, Vec<_>> = HashMap::new();
        for mut turn in turns.begin() {
            while let Some(key) = turn.next() {
                turn.read(LEAST);
                turn.again(key);
                read.entry(turn.tenant).or_default().push(key);
            }
            turns.end(turn);
        }
        read
    }

    #[test]
    fn a_tenant_with_many_tunnels_is_read_no_more_than_one_with_one() {
        let mut turns = Turns::default();
        for key in 100..110 {
            turns.add(MANY, key);
        }
        turns.add(ONE, 1);
        let first = turn(&mut turns);
        assert_eq!((first[&ONE].len(), first[&MANY].len()), (4, 4));
        assert_eq!(first[&MANY], [100, 101, 102, 103]);
        assert_eq!(turn(&mut turns)[&MANY], [104, 105, 106, 107], "its tunnels are read in turn");
        assert!(!turns.is_empty());
    }

    #[test]
    fn a_turn_is_bounded_however_many_tenants_there_are() {
        let mut turns = Turns::default();
        let tenant = |number: u8| Tenant::Host([10, 0, 0, number].into());
        for number in 0..100 {
            turns.add(tenant(number), usize::from(number));
        }
        let mut read = Vec::new();
        for _ in 0..13 {
            let keys: Vec<_> = turn(&mut turns).into_values().flatten().collect();
            assert!(keys.len() * LEAST <= TURN, "{}", keys.len());
            read.extend(keys);
        }
        read.sort_unstable();
        read.dedup();
        assert_eq!(read.len(), 100, "all had their turn");
    }

    #[test]
    fn who_has_nothing_more_to_read_is_forgotten() {
        let mut turns = Turns::default();
        turns.add(ONE, 1);
        let mut all = turns.begin();
        let mut first = all.pop().expect("one tenant");
        assert_eq!((first.next(), first.next()), (Some(1), None));
        turns.end(first);
        assert!(turns.is_empty() && turns.tenants.is_empty());
    }
}
