//! What is behind the rules of an assistant: the same responses, dropped by the routing policy.
//!
//! Tables without an owner go with `nft flush ruleset`, and with `nftables.service` when it stops at shutdown, while
//! the network is still there. A host that forwards would let responses through from then on, and tell the target by an
//! ICMP redirect to leave it out altogether, which the target heeds for minutes. Rules of the routing policy
//! (ip-rule(8)) are untouched by nft. A packet meets them after all netfilter rules of prerouting: while those are in
//! force, none does.
//!
//! On the target itself there are none: what it sends is not forwarded.

use std::io;
use std::net::IpAddr;

use super::assistant::{AssistantSpec, Place, Unclaimed};
use crate::sys::policy::BlackHole;
use crate::wire::Prefix;

/// Rules of the routing policy that drop responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backstop {
    holes: Vec<BlackHole>,
}

impl Backstop {
    /// The rules for `spec`.
    pub fn new(spec: &AssistantSpec) -> Self {
        let pass = match spec.unclaimed {
            Unclaimed::Drop => None,
            Unclaimed::Accept => Some(spec.accept_mark),
        };
        let targets = match spec.place {
            Place::Assistant => spec.targets.as_slice(),
            Place::Target => &[],
        };
        let mut holes = Vec::new();
        for target in targets {
            for destination in destinations(&spec.clients, target.is_ipv4()) {
                let hole = BlackHole { source: (target.ip(), target.port()), destination, pass };
                if !holes.contains(&hole) {
                    holes.push(hole);
                }
            }
        }
        Self { holes }
    }

    /// Sees to it that these rules are in force, and no others of their kind; says whether one was missing.
    pub fn put(&self) -> io::Result<bool> {
        let found = BlackHole::all()?;
        let missing: Vec<_> = self.holes.iter().filter(|hole| !found.contains(hole)).collect();
        missing.iter().try_for_each(|hole| hole.add())?;
        found.iter().filter(|hole| !self.holes.contains(hole)).try_for_each(BlackHole::delete)?;
        Ok(!missing.is_empty())
    }

    /// Takes away all rules of this kind, whoever made them.
    pub fn remove() -> io::Result<()> {
        BlackHole::all()?.iter().try_for_each(BlackHole::delete)
    }
}

/// The prefixes of one family that responses are dropped on the way to; `None` is all.
fn destinations(clients: &[Prefix], ipv4: bool) -> Vec<Option<(IpAddr, u8)>> {
    if clients.is_empty() {
        return vec![None];
    }
    let of_family = clients.iter().filter(|prefix| prefix.is_ipv4() == ipv4);
    of_family.map(|prefix| (!prefix.is_everything()).then(|| (prefix.address(), prefix.length()))).collect()
}
