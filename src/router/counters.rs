//! What a router counts.

use crate::wire::Tally;

/// What became of a response. Every packet ends in exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Its header was sent to its claimer.
    Forwarded,
    /// The same, after it had waited for the claim.
    ForwardedLate,
    /// Its claimer reads too slowly: dropped.
    TunnelFull,
    /// Its claimer is away: dropped.
    Orphaned,
    /// Its claimer had given the flow up: dropped.
    Released,
    /// Nobody claimed it: dropped.
    UnclaimedDropped,
    /// Nobody claimed it: let through.
    UnclaimedAccepted,
    /// Nobody has claimed it, and too many wait: dropped.
    HoldFull,
    /// No TCP packet that can be read: dropped.
    Unreadable,
}

crate::counted!(Outcome {
    Forwarded => "forwarded",
    ForwardedLate => "forwarded_late",
    TunnelFull => "tunnel_full",
    Orphaned => "orphaned",
    Released => "released",
    UnclaimedDropped => "unclaimed_dropped",
    UnclaimedAccepted => "unclaimed_accepted",
    HoldFull => "hold_full",
    Unreadable => "unreadable",
});

/// Counters since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Responses by what became of them, apart from those that wait.
    pub outcomes: Tally<Outcome>,
    /// Claims taken, those made again included.
    pub claims: u64,
    /// Claims refused as another's.
    pub refused_taken: u64,
    /// Claims refused for their target.
    pub refused_target: u64,
    /// Claims refused for their client.
    pub refused_client: u64,
    /// Claims refused because the table is full, and the claimer has its fair share of it.
    pub refused_full: u64,
    /// Claimed flows given up to make room.
    pub evicted: u64,
    /// Of these, the ones that a claimer above its fair share lost to others.
    pub displaced: u64,
    /// Claimed flows given up after a long idle time.
    pub expired: u64,
}

impl Counters {
    /// Adds another router's counters to these.
    pub fn merge(&mut self, other: &Self) {
        self.outcomes.merge(&other.outcomes);
        self.claims += other.claims;
        self.refused_taken += other.refused_taken;
        self.refused_target += other.refused_target;
        self.refused_client += other.refused_client;
        self.refused_full += other.refused_full;
        self.evicted += other.evicted;
        self.displaced += other.displaced;
        self.expired += other.expired;
    }
}
