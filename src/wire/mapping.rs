//! Which connections are replayed, and where to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// One service whose connections are replayed: what its clients connect to, and where they are replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// The address that clients connect to, as they write it; `None` is every local address of the
    /// target's family.
    pub online: Option<IpAddr>,
    /// The port that clients connect to.
    pub port: u16,
    /// Where the replayed connections go. Of the family of `online`.
    pub target: SocketAddr,
}

impl Mapping {
    /// Whether a connection exists that both mappings capture.
    pub fn overlaps(&self, other: &Self) -> bool {
        let family = self.target.is_ipv4() == other.target.is_ipv4();
        let address = match (self.online, other.online) {
            (Some(mine), Some(theirs)) => mine == theirs,
            (None, _) | (_, None) => true,
        };
        family && address && self.port == other.port
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.online {
            Some(address) => write!(f, "{}-{}", SocketAddr::new(address, self.port), self.target),
            None => write!(f, "{}-{}", self.port, self.target),
        }
    }
}
