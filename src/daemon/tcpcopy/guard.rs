//! Keeps production from becoming a target while the program runs: an address that this host is given, or a NAT rule, may
//! lead a mapping to what is captured. Such a mapping is not replayed as long as that is so.

use std::net::SocketAddr;

use crate::config::tcpcopy::Settings;
use crate::daemon::message_id;
use crate::doctor::{self, Loop};

/// The mappings that are not replayed, because their targets are production.
#[derive(Debug, Default)]
pub(super) struct Guard {
    stopped: Vec<Loop>,
}

impl Guard {
    /// Looks at this host again; true if other targets are forbidden than before.
    pub(super) fn look(&mut self, settings: &Settings) -> bool {
        self.take(doctor::production_loops(settings))
    }

    /// The targets that nothing may be sent to.
    pub(super) fn forbidden(&self) -> Vec<SocketAddr> {
        self.stopped.iter().map(|looped| looped.mapping.target).collect()
    }

    fn take(&mut self, loops: Vec<Loop>) -> bool {
        let before = self.forbidden();
        let is_new = |looped: &&Loop| !before.contains(&looped.mapping.target);
        for Loop { mapping, why } in loops.iter().filter(is_new) {
            tracing::error!(
                MESSAGE_ID = message_id::TARGET_IS_PRODUCTION,
                mapping = %mapping,
                target = %mapping.target,
                why,
                "the replay of '{mapping}' has stopped, because it would go to production: {why}; {}",
                Loop::REMEDY
            );
        }
        let ends =
            |stopped: &&Loop| loops.iter().all(|looped| looped.mapping.target != stopped.mapping.target);
        for Loop { mapping, .. } in self.stopped.iter().filter(ends) {
            tracing::info!(
                MESSAGE_ID = message_id::TARGET_IS_APART,
                mapping = %mapping,
                target = %mapping.target,
                "the replay of '{mapping}' goes on: its target is apart from production again"
            );
        }
        self.stopped = loops;
        self.forbidden() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mapping;

    #[test]
    fn targets_are_forbidden_while_they_are_production() {
        let looped = |port| {
            let target = SocketAddr::from(([127, 0, 0, 1], port));
            Loop { mapping: Mapping { online: None, port: 80, target }, why: String::new() }
        };
        let mut guard = Guard::default();
        assert!(!guard.take(Vec::new()));
        assert!(guard.take(vec![looped(1)]) && guard.forbidden() == [looped(1).mapping.target]);
        assert!(!guard.take(vec![looped(1)]));
        assert!(guard.take(vec![looped(1), looped(2)]) && guard.forbidden().len() == 2);
        assert!(guard.take(vec![looped(2)]) && guard.forbidden() == [looped(2).mapping.target]);
        assert!(guard.take(Vec::new()) && guard.forbidden().is_empty());
    }
}
