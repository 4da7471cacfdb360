//! The memory of all tunnels' buffers, against their limit.
//!
//! All workers share it, since which of them has the tunnels that are read slowly is chance. Each accounts its own
//! tunnels once a turn; what a turn can add meanwhile is bounded.
//!
//! What gives way, in this order: from fifteen sixteenths on new tunnels are refused; at the limit headers are dropped,
//! which the target sends again; and of the tunnels that take more than an equal part, those that take most are ended,
//! each by its own worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Shared by all who have tunnels. The numbers depend on nothing else, so no order is needed between them.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: AtomicUsize,
    used: AtomicUsize,
    tunnels: AtomicUsize,
}

impl Budget {
    /// `limit` is in bytes.
    pub(super) fn new(limit: u64) -> Self {
        let budget = Self(Arc::new(Shared {
            limit: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
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
        self.0.used.load(Ordering::Relaxed)
    }

    /// Whether a new tunnel may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.used() <= self.limit() / 16 * 15
    }

    /// Whether there is more than there may be.
    pub(super) fn is_exceeded(&self) -> bool {
        self.used() > self.limit()
    }

    /// What each tunnel could take if all took the same. If the limit is exceeded, there is one that takes more.
    pub(super) fn equal_part(&self) -> usize {
        self.limit() / self.0.tunnels.load(Ordering::Relaxed).max(1)
    }

    /// The account of one more tunnel.
    pub(super) fn open(&self) -> Account {
        self.0.tunnels.fetch_add(1, Ordering::Relaxed);
        Account { budget: self.clone(), taken: 0 }
    }

    fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Relaxed)
    }
}

/// What one tunnel takes. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Account {
    budget: Budget,
    taken: usize,
}

impl Account {
    /// The tunnel takes so much now.
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes >= self.taken {
            self.budget.0.used.fetch_add(bytes - self.taken, Ordering::Relaxed);
        } else {
            self.budget.0.used.fetch_sub(self.taken - bytes, Ordering::Relaxed);
        }
        self.taken = bytes;
    }

    /// What it takes.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.set(0);
        self.budget.0.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_share_what_there_is() {
        let budget = Budget::new(1600);
        let mut accounts: Vec<_> = (0..4).map(|_| budget.open()).collect();
        for account in &mut accounts {
            account.set(375);
        }
        assert_eq!((budget.used(), budget.equal_part()), (1500, 400));
        assert!(budget.has_room() && !budget.is_exceeded());
        accounts[0].set(475);
        assert!(!budget.has_room() && !budget.is_exceeded(), "new ones are refused first");
        accounts[0].set(476);
        assert!(budget.is_exceeded());
        let most = accounts.iter().map(Account::taken).max();
        assert!(most > Some(budget.equal_part()), "somebody takes more than an equal part");
        drop(accounts.swap_remove(0));
        assert_eq!((budget.used(), budget.equal_part()), (1125, 533));
        budget.set_limit(1000);
        assert!(budget.is_exceeded());
        accounts.clear();
        assert_eq!((budget.used(), budget.equal_part()), (0, 1000));
    }
}
