//! The memory of all tunnels' buffers and of the flows, against their limit.
//!
//! All workers share it, since which of them has the tunnels that are read slowly is chance. Each accounts its own
//! tunnels once a turn; what a turn can add meanwhile is bounded.
//!
//! Flows come first: the tunnels have what the flows leave of the limit. Tenants (keys, or hosts where there are no keys)
//! have equal parts of that, within a tenant its instances (tcpcopys), and within an instance its tunnels. What gives way,
//! in this order, and only of tenants that take more than their part: from fifteen sixteenths on new tunnels are refused;
//! at the limit headers are dropped, which the target sends again; and of the tunnels above their part, the one that takes
//! most is ended by its worker. If the limit is exceeded, there is such a tunnel: at each level, all cannot be below an
//! equal part.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::router::Tenant;

/// The tcpcopy that a tunnel belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Instance {
    pub(super) tenant: Tenant,
    pub(super) number: u64,
}

/// Shared by all who have tunnels. The numbers depend on nothing else, so no order is needed between them.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: AtomicUsize,
    /// What is not a tunnel's.
    flows: AtomicUsize,
    total: Node,
    nodes: Mutex<Nodes>,
}

/// What is used together, and by how many.
#[derive(Debug, Default)]
struct Node {
    used: AtomicUsize,
    /// Tenants of the total, instances of a tenant, tunnels of an instance.
    members: AtomicUsize,
}

#[derive(Debug, Default)]
struct Nodes {
    tenants: HashMap<Tenant, Arc<Node>>,
    instances: HashMap<Instance, Arc<Node>>,
}

impl Node {
    fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// An equal part of so much.
    fn part_of(&self, whole: usize) -> usize {
        whole / self.members.load(Ordering::Relaxed).max(1)
    }

    fn join(&self) {
        self.members.fetch_add(1, Ordering::Relaxed);
    }

    /// `true` if it was the last member.
    fn leave(&self) -> bool {
        self.members.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl Budget {
    /// `limit` is in bytes.
    pub(super) fn new(limit: u64) -> Self {
        let budget = Self(Arc::new(Shared {
            limit: AtomicUsize::new(0),
            flows: AtomicUsize::new(0),
            total: Node::default(),
            nodes: Mutex::default(),
        }));
        budget.set_limit(limit);
        budget
    }

    /// From now on.
    pub(super) fn set_limit(&self, limit: u64) {
        self.0.limit.store(usize::try_from(limit).unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// What all tunnels take, in bytes.
    pub(super) fn used(&self) -> usize {
        self.0.total.used()
    }

    /// What the flows take, in bytes.
    pub(super) fn flows(&self) -> usize {
        self.0.flows.load(Ordering::Relaxed)
    }

    /// Whether a new tunnel of a tenant may be taken.
    pub(super) fn has_room(&self, tenant: Tenant) -> bool {
        if self.used() <= self.limit() / 16 * 15 {
            return true;
        }
        let nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let members = self.0.total.members.load(Ordering::Relaxed);
        match nodes.tenants.get(&tenant) {
            Some(node) => node.used() < self.0.total.part_of(self.limit()),
            None => members > 0,
        }
    }

    /// Whether there is more than there may be.
    pub(super) fn is_exceeded(&self) -> bool {
        self.used() > self.limit()
    }

    /// The account of one more tunnel.
    pub(super) fn open(&self, instance: Instance) -> Account {
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = Arc::clone(nodes.tenants.entry(instance.tenant).or_insert_with(|| {
            self.0.total.join();
            Arc::default()
        }));
        let of_instance = Arc::clone(nodes.instances.entry(instance).or_insert_with(|| {
            of_tenant.join();
            Arc::default()
        }));
        of_instance.join();
        drop(nodes);
        Account { budget: self.clone(), instance, of_tenant, of_instance, taken: 0 }
    }

    /// The account of one worker's flows.
    pub(super) fn open_flows(&self) -> Flows {
        Flows { budget: self.clone(), taken: 0 }
    }

    /// What the tunnels may take.
    fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Relaxed).saturating_sub(self.flows())
    }
}

/// What one tunnel takes. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Account {
    budget: Budget,
    instance: Instance,
    of_tenant: Arc<Node>,
    of_instance: Arc<Node>,
    taken: usize,
}

impl Account {
    /// The tunnel takes so much now.
    pub(super) fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.taken, bytes);
        for node in [&self.budget.0.total, &self.of_tenant, &self.of_instance] {
            change(&node.used, before, bytes);
        }
    }

    /// What it takes.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// The tcpcopy that it belongs to.
    pub(super) fn instance(&self) -> Instance {
        self.instance
    }

    /// Whether its tenant takes more than its part while there is more than there may be.
    pub(super) fn is_to_drop(&self) -> bool {
        self.budget.is_exceeded() && self.of_tenant.used() > self.budget.0.total.part_of(self.budget.limit())
    }

    /// Whether it takes more than its part, and so do its instance and its tenant.
    pub(super) fn is_above_part(&self) -> bool {
        let of_tenant = self.budget.0.total.part_of(self.budget.limit());
        let of_instance = self.of_tenant.part_of(of_tenant);
        let own = self.of_instance.part_of(of_instance);
        self.of_tenant.used() > of_tenant && self.of_instance.used() > of_instance && self.taken > own
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.set(0);
        let mut nodes = self.budget.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.of_instance.leave() {
            nodes.instances.remove(&self.instance);
            if self.of_tenant.leave()
                && let Entry::Occupied(tenant) = nodes.tenants.entry(self.instance.tenant)
            {
                tenant.remove();
                self.budget.0.total.leave();
            }
        }
    }
}

/// What the flows of one worker take. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Flows {
    budget: Budget,
    taken: usize,
}

impl Flows {
    /// The flows take so much now.
    pub(super) fn set(&mut self, bytes: usize) {
        change(&self.budget.0.flows, std::mem::replace(&mut self.taken, bytes), bytes);
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn change(sum: &AtomicUsize, before: usize, after: usize) {
    if after > before {
        sum.fetch_add(after - before, Ordering::Relaxed);
    } else if after < before {
        sum.fetch_sub(before - after, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn instance(key: u8, number: u64) -> Instance {
        Instance { tenant: Tenant::Key([key; 4]), number }
    }

    #[test]
    fn tunnels_share_what_the_flows_leave() {
        let budget = Budget::new(2000);
        let mut flows = budget.open_flows();
        flows.set(400);
        let mut accounts: Vec<_> = (0..4).map(|key| budget.open(instance(key, 0))).collect();
        for account in &mut accounts {
            account.set(375);
        }
        assert_eq!((budget.used(), budget.flows()), (1500, 400));
        let [all, new] = [0, 9].map(|key| Tenant::Key([key; 4]));
        assert!(budget.has_room(all) && !budget.is_exceeded());
        accounts[0].set(475);
        assert!(
            !budget.has_room(all) && !budget.is_exceeded(),
            "new ones of who has its part are refused first"
        );
        assert!(budget.has_room(new), "who has none displaces others");
        accounts[0].set(476);
        assert!(budget.is_exceeded());
        let above: Vec<_> = accounts.iter().map(Account::is_above_part).collect();
        assert_eq!(above, [true, false, false, false]);
        assert!(accounts[0].is_to_drop() && !accounts[1].is_to_drop());
        flows.set(0);
        assert!(!budget.is_exceeded());
        drop(accounts.swap_remove(0));
        budget.set_limit(1000);
        assert!(budget.is_exceeded());
        accounts.clear();
        assert_eq!(budget.used(), 0);
        assert!(budget.0.nodes.lock().expect("no panic").tenants.is_empty());
    }

    #[test]
    fn many_tunnels_of_one_key_have_no_more_than_one_of_another() {
        let budget = Budget::new(1000);
        let mut many: Vec<_> = (0..50).map(|number| budget.open(instance(1, number))).collect();
        let mut one = budget.open(instance(2, 0));
        one.set(500);
        for account in &mut many {
            account.set(11);
        }
        assert!(budget.is_exceeded());
        assert!(!one.is_above_part() && !one.is_to_drop());
        assert!(many.iter().all(|account| account.is_above_part() && account.is_to_drop()));
    }

    proptest! {
        /// Whatever they take: beyond the limit a tunnel is above its part, and to end those tunnels is enough.
        #[test]
        fn what_is_above_its_part_is_enough(
            limit in 1u64..5_000,
            taken in proptest::collection::vec((0u8..4, 0u64..3, 0usize..1_000), 0..40),
        ) {
            let budget = Budget::new(limit);
            let mut accounts: Vec<_> = taken.iter().map(|(key, number, bytes)| {
                let mut account = budget.open(instance(*key, *number));
                account.set(*bytes);
                account
            }).collect();
            while budget.is_exceeded() {
                let above = accounts.iter().position(Account::is_above_part);
                prop_assert!(above.is_some());
                let tenant = accounts[above.expect("checked")].instance().tenant;
                let used: usize = accounts.iter().filter(|each| each.instance().tenant == tenant).map(Account::taken).sum();
                let tenants: std::collections::HashSet<_> = accounts.iter().map(|each| each.instance().tenant).collect();
                prop_assert!(used > usize::try_from(limit).expect("64 bits") / tenants.len());
                accounts.swap_remove(above.expect("checked"));
            }
        }
    }
}
