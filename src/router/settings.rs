//! How a router is to work.

use std::net::SocketAddr;
use std::time::Duration;

use crate::wire::Prefix;

/// How a [`Router`](super::Router) is to work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The services whose flows may be claimed.
    pub targets: Vec<SocketAddr>,
    /// The clients whose flows may be claimed; none means all.
    pub clients: Vec<Prefix>,
    /// What becomes of responses that nobody claims.
    pub unclaimed: Unclaimed,
    /// How long a response waits for its claim.
    pub hold: Duration,
    /// How many responses may wait; more are dropped.
    pub max_held: usize,
    /// How many flows may be claimed, and how many be remembered besides.
    pub max_flows: usize,
    /// A claimed flow without a response for this long is given up.
    pub max_idle: Duration,
    /// In a full table, a claimer that has its fair share is refused rather than lose a flow that had a response this
    /// recently.
    pub busy: Duration,
    /// How long the target must be silent on an unowned flow until it is forgotten.
    pub linger: Duration,
    /// How long after the start nothing is let through.
    pub settle: Duration,
}

/// Memory that a claimed flow and a remembered one take at most, with the indexes while they grow.
pub const FLOW_MEMORY: usize = super::CLAIMED_MEMORY + super::REMEMBERED_MEMORY + 3 * INDEXED;
/// Memory of an entry in an index at most: in a table that is less than half full, beside the one that it grows from.
const INDEXED: usize = 3 * 5;

impl Settings {
    /// The usual ones.
    pub fn new(targets: Vec<SocketAddr>, unclaimed: Unclaimed) -> Self {
        Self {
            targets,
            clients: Vec::new(),
            unclaimed,
            hold: Duration::from_millis(200),
            max_held: 16 << 10,
            max_flows: 256 << 10,
            max_idle: Duration::from_secs(3600),
            busy: Duration::from_secs(10),
            linger: Duration::from_secs(180),
            settle: Duration::from_secs(10),
        }
    }
}

/// What becomes of responses that nobody claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclaimed {
    /// They end here, when they come.
    Drop,
    /// They go on, once nobody claimed them in time.
    Accept,
}
