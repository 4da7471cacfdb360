//! With `unclaimed = accept`: the kernel's sets of claimed flows, kept equal to what the routers know.
//!
//! Each worker changes the flows that are its own: one transaction a turn adds what was claimed, before it is confirmed,
//! and one moves away what was given up. The control thread sees to it that the sets are there.

use std::io;
use std::time::Duration;

use super::connections::Connections;
use super::worker;
use crate::config::intercept::{Settings, Unclaimed};
use crate::daemon::exit::Failure;
use crate::daemon::threads::Handle;
use crate::netfilter::{AssistantSpec, ClaimedFlows};
use crate::router::Router;
use crate::tunnel::ClaimRefusal;
use crate::wire::flow::split;
use crate::wire::{FlowKey, Time};

/// How long a flow stays closed whose connections may be open on the target: their claimer is gone without a word.
const ABANDONED: Duration = Duration::from_secs(3600);
/// The control thread looks after the sets this often.
const CHECK: Duration = Duration::from_secs(1);
/// Flows moved in one transaction.
const BATCH: usize = 1000;

/// A worker's part.
pub(super) struct Closures {
    kernel: ClaimedFlows,
    /// Flows that could not be moved, to be tried again.
    left: Vec<FlowKey>,
}

impl Closures {
    /// The part of worker `index`, if flows are to be kept. What was claimed before it began is closed in its router.
    pub(super) fn new(
        now: Time,
        settings: &Settings,
        spec: &AssistantSpec,
        index: u16,
        router: &mut Router,
    ) -> io::Result<Option<Self>> {
        if settings.unclaimed == Unclaimed::Drop {
            return Ok(None);
        }
        let mut kernel = ClaimedFlows::open(spec)?;
        let flows = kernel.flows()?;
        let own = flows.into_iter().filter(|flow| split(flow.client, settings.workers) == index);
        own.for_each(|flow| router.close(now, flow));
        Ok(Some(Self { kernel, left: Vec::new() }))
    }

    /// Adds what was claimed and confirms it, and moves away what was given up.
    pub(super) fn turn(&mut self, now: Time, router: &mut Router, connections: &mut Connections) {
        let claims = connections.take_unconfirmed();
        for claims in claims.chunks(BATCH) {
            let flows: Vec<_> = claims.iter().map(|claim| claim.key).collect();
            let added = self.kernel.add(&flows);
            if let Err(error) = &added {
                tracing::debug!(%error, flows = flows.len(), "claimed flows cannot be kept in the kernel");
            }
            for claim in claims {
                if added.is_err() {
                    router.release(now, claim.conn, claim.flow);
                }
                // It is asked for again, for another port.
                connections.answer(claim, added.as_ref().map(drop).map_err(|_| ClaimRefusal::HostOpen));
            }
        }
        self.left.extend(std::iter::from_fn(|| router.poll_retired(now)));
        while !self.left.is_empty() {
            let from = self.left.len().saturating_sub(BATCH);
            let batch = self.left.get(from..).unwrap_or_default();
            // An orphan's connection may be open on the target for long.
            if let Err(error) = self.kernel.retire(batch, ABANDONED) {
                tracing::debug!(%error, flows = self.left.len(), "flows cannot be moved, trying again");
                return;
            }
            self.left.truncate(from);
        }
    }

    /// The sets were made anew: puts back what the router knows.
    pub(super) fn refill(&mut self, router: &Router) {
        let claimed: Vec<_> = router.claimed_flows().collect();
        let closed: Vec<_> = router.closed_flows().collect();
        let added = claimed.chunks(BATCH).try_for_each(|flows| self.kernel.add(flows));
        let closing = closed.chunks(BATCH).try_for_each(|flows| self.kernel.close(flows, ABANDONED));
        if let Err(error) = added.and(closing) {
            tracing::error!(
                %error,
                "The kernel's sets of claimed flows cannot be filled again: {error}. Restart intercept."
            );
        }
    }
}

/// The control thread's part.
pub(super) struct Keeper {
    kernel: ClaimedFlows,
    next: Time,
    /// Why the sets are not in force.
    missing: Option<String>,
}

impl Keeper {
    /// Puts the sets in force, if flows are to be kept. What an intercept before this one has left claimed is closed.
    pub(super) fn install(settings: &Settings, spec: &AssistantSpec) -> Result<Option<Self>, Failure> {
        if settings.unclaimed == Unclaimed::Drop {
            return Ok(None);
        }
        let put = || {
            let mut kernel = ClaimedFlows::open(spec)?;
            kernel.put()?;
            kernel.retire_all(ABANDONED)?;
            Ok(kernel)
        };
        let kernel = put().map_err(|error: io::Error| {
            Failure::system(
                "cannot keep claimed flows in the kernel, which unclaimed = \"accept\" needs",
                &error,
                "look at `nft list ruleset`",
            )
        })?;
        Ok(Some(Self { kernel, next: Time::ZERO, missing: None }))
    }

    /// The rules are for another specification now: there may be targets of another family.
    pub(super) fn replace(&mut self, spec: &AssistantSpec) {
        let put = || {
            let mut kernel = ClaimedFlows::open(spec)?;
            kernel.put().map(|_| kernel)
        };
        match put() {
            Ok(kernel) => self.kernel = kernel,
            Err(error) => self.missing = Some(format!("they cannot be put in force ({error})")),
        }
    }

    /// Puts the sets and rules back if somebody has changed them.
    pub(super) fn keep(&mut self, now: Time, workers: &[Handle<worker::Order>]) {
        if now < self.next {
            return;
        }
        self.next = now + CHECK;
        match self.kernel.missing() {
            Ok(None) => self.missing = None,
            Ok(Some(what)) => self.restore(&what, workers),
            Err(error) => self.missing = Some(format!("they cannot be looked at ({error})")),
        }
    }

    fn restore(&mut self, what: &str, workers: &[Handle<worker::Order>]) {
        match self.kernel.put() {
            Ok(refill) => {
                self.missing = None;
                tracing::warn!(
                    what,
                    "Somebody changed the table of claimed flows ({what}). It is back, with the flows that intercept knows."
                );
                if refill {
                    for worker in workers {
                        worker.orders.send(worker::Order::RefillClosures);
                    }
                }
            }
            Err(error) => self.missing = Some(format!("{what}, and it cannot be put back ({error})")),
        }
    }

    /// Why the host is open; `None` if it is closed.
    pub(super) fn open(&self) -> Option<String> {
        let what = self.missing.as_ref()?;
        Some(format!("the sets of claimed flows are not in force: {what}; look at `nft list ruleset`"))
    }
}
