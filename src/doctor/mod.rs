//! Checks made before start: what on this host would keep the replay from working, and what to do.
//!
//! Most reports about tools of this kind are about deployments where nothing arrives. What can be seen from
//! one host without sending a packet is looked at here; each [`Finding`] carries its remedy. Nothing here
//! changes the host, and no state is kept. Imports [`config`](crate::config) and [`sys`](crate::sys).

mod host;
mod kernel;
mod production;

use std::fmt;

use crate::config::{CaptureSource, intercept, tcpcopy};
use crate::netfilter;
use crate::sys::capabilities::{Capability, has_capability};
use crate::sys::handover;
use host::Host;
pub use production::Loop;

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    /// The process's effective capabilities.
    Capabilities,
    /// The kernel's netfilter netlink.
    Nfnetlink,
    /// The kernel's `nfnetlink_queue`.
    NfnetlinkQueue,
    /// The kernel's `nf_tables`.
    NfTables,
    /// The addresses that `-x` captures.
    OnlineAddress,
    /// The way to the targets.
    Target,
    /// The pools of client addresses.
    Pool,
    /// The ports that are replayed from, without an intercept.
    Ports,
    /// The address that `intercept` listens on.
    ListenAddress,
    /// What a host that forwards tells its neighbours.
    Redirects,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It may be as intended; the program runs.
    Warning,
    /// The program could not do its work.
    Error,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, on what.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    fn error(check: Check, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, severity: Severity::Error, what: what.into(), remedy: remedy.into() }
    }

    fn warning(check: Check, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(check, what, remedy) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// What is wrong on the online host, for `tcpcopy` with these settings.
pub fn online(settings: &tcpcopy::Settings) -> Vec<Finding> {
    let netfilter = match settings.source {
        CaptureSource::Nfqueue => Netfilter::Queues,
        CaptureSource::Packet if settings.embedded.is_some() => Netfilter::Queues,
        // For the rules that drop ICMP errors.
        CaptureSource::Packet => Netfilter::Rules,
    };
    let mut needed = vec![Capability::NetAdmin];
    // The sockets that take it may be open already.
    if !handover::has_sockets() {
        needed.push(Capability::NetRaw);
    }
    let mut findings = privileges("tcpcopy", &needed, netfilter);
    findings.extend(online_host(settings));
    findings
}

/// Of those, what has to do with the host and not with the process: for one that is set up already.
pub fn online_host(settings: &tcpcopy::Settings) -> Vec<Finding> {
    let looped = production_loops(settings).into_iter().map(|looped| looped.finding());
    host::online(&Host::this(), settings).into_iter().chain(looped).collect()
}

/// The mappings of these settings that, as this host is now, replay to production.
pub fn production_loops(settings: &tcpcopy::Settings) -> Vec<Loop> {
    let redirections = netfilter::redirections().unwrap_or_else(|error| {
        // Without nf_tables there are none; and without leave to look, nothing works.
        tracing::debug!(%error, "cannot read NAT rules");
        Vec::new()
    });
    let host = Host::this();
    production::loops(|address| host.is_local(address), &redirections, settings)
}

/// What is wrong on the assistant host, for `intercept` with these settings.
pub fn assistant(settings: &intercept::Settings) -> Vec<Finding> {
    let mut findings = match settings.source {
        CaptureSource::Nfqueue => privileges("intercept", &[Capability::NetAdmin], Netfilter::Queues),
        CaptureSource::Packet => {
            privileges("intercept", &[Capability::NetAdmin, Capability::NetRaw], Netfilter::Rules)
        }
    };
    findings.extend(assistant_host(settings));
    findings
}

/// Of those, what has to do with the host and not with the process: for one that is set up already.
pub fn assistant_host(settings: &intercept::Settings) -> Vec<Finding> {
    host::assistant(&Host::this(), settings)
}

/// What of netfilter is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Netfilter {
    /// Rules that drop.
    Rules,
    /// Rules, and queues that they lead to.
    Queues,
}

/// Checks the capabilities, and with them what the kernel can do: without them it does not say.
fn privileges(program: &str, needed: &[Capability], netfilter: Netfilter) -> Vec<Finding> {
    // Where /proc does not tell, what lacks shows in the first call that needs it.
    let lacks = |capability: &&Capability| has_capability(**capability).is_ok_and(|has| !has);
    let names: Vec<_> = needed.iter().filter(lacks).map(|capability| capability.name()).collect();
    if names.is_empty() {
        return kernel::check(netfilter);
    }
    let list: Vec<_> = needed.iter().map(|capability| capability.name().to_ascii_lowercase()).collect();
    vec![Finding::error(
        Check::Capabilities,
        format!("no permission: this process lacks {}", names.join(" and ")),
        format!(
            "run {program} as root, or give the file the capabilities: setcap {}+ep {program}",
            list.join(",")
        ),
    )]
}
