//! Bad networks: packets that are lost. For those that overtake each other see [`crate::middlebox`].

use anyhow::Result;

use crate::chain::{Chain, Deployment};
use crate::namespace::{Namespace, run};
use crate::network::Role;

/// The part of the replay's traffic that a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leg {
    /// From tcpcopy to the target.
    Requests,
    /// From the target to whoever takes them.
    Responses,
    /// The tunnel, both ways.
    Tunnel,
}

impl Leg {
    /// Its name in scenarios.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requests => "to-target",
            Self::Responses => "of-responses",
            Self::Tunnel => "of-tunnel",
        }
    }

    /// Where its packets arrive, and what they look like there.
    fn arrivals(self, deployment: Deployment) -> Vec<(Role, &'static str)> {
        let taker = deployment.responses();
        match self {
            Self::Requests => vec![(Role::Target, "tcp dport 80")],
            Self::Responses => vec![(taker, "tcp sport 80")],
            Self::Tunnel => vec![(taker, "tcp dport 36524"), (Role::Online, "tcp sport 36524")],
        }
    }
}

/// The table that loses packets.
const TABLE: &str = "netdev lab-loss";

/// Has `percent` of a leg's packets get lost, by chance. They arrive, so that no sender notices, and go no further.
pub(crate) fn lose(chain: &Chain, leg: Leg, percent: u8) -> Result<()> {
    for (role, packets) in leg.arrivals(chain.deployment()) {
        let chance = if percent < 100 { format!("numgen random mod 100 < {percent}") } else { String::new() };
        // Before rules and packet sockets see them.
        let rules = format!(
            "table {TABLE} {{ chain lose {{ type filter hook ingress device \"back\" priority 0; \
             {packets} {chance} counter drop; }}; }}"
        );
        run(chain.network().host(role, 0)?.namespace().command("nft").args(["-f", "-"]), Some(&rules))?;
    }
    Ok(())
}

/// Takes [`lose`] back. Returns how many packets were lost.
pub(crate) fn stop_losing(chain: &Chain, leg: Leg) -> Result<u64> {
    let mut lost = 0;
    for (role, _) in leg.arrivals(chain.deployment()) {
        let host = chain.network().host(role, 0)?.namespace();
        lost += counted(host)?;
        host.output("nft", &["delete", "table", "netdev", "lab-loss"])?;
    }
    Ok(lost)
}

fn counted(host: &Namespace) -> Result<u64> {
    let rules = host.output("nft", &["list", "table", "netdev", "lab-loss"])?;
    let mut words = rules.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    Ok(words.next().map_or(Ok(0), str::parse)?)
}
