//! The flows whose responses an intercept takes.

use std::net::{IpAddr, SocketAddr};

use super::Prefix;

/// The flows whose responses an intercept takes: from these targets, to these clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The targets.
    pub targets: Vec<SocketAddr>,
    /// The clients; `None` means all.
    pub clients: Option<Vec<Prefix>>,
}

impl Scope {
    /// Whether responses of `target` are taken at all.
    pub fn serves(&self, target: SocketAddr) -> bool {
        self.targets.contains(&target)
    }

    /// Whether responses to `client` are taken.
    pub fn takes(&self, client: IpAddr) -> bool {
        self.clients.as_ref().is_none_or(|clients| clients.iter().any(|prefix| prefix.contains(client)))
    }

    /// The same targets, and of the clients those that are also in one of `prefixes`.
    #[must_use]
    pub fn limited_to(&self, prefixes: &[Prefix]) -> Self {
        let clients = match &self.clients {
            None => prefixes.to_vec(),
            Some(clients) => {
                let pairs = clients.iter().flat_map(|ours| prefixes.iter().map(move |theirs| (ours, theirs)));
                let common = pairs.filter(|(ours, theirs)| ours.overlaps(theirs));
                // Of two prefixes that overlap, one contains the other.
                common
                    .map(|(ours, theirs)| if ours.length() < theirs.length() { *theirs } else { *ours })
                    .collect()
            }
        };
        Self { targets: self.targets.clone(), clients: Some(clients) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix() -> impl Strategy<Value = Prefix> {
        (any::<u8>(), 24u8..=32).prop_map(|(host, length)| {
            Prefix::new(IpAddr::from([10, 0, 0, host]), length).expect("a length of IPv4")
        })
    }

    proptest! {
        #[test]
        fn a_limited_scope_takes_what_both_take(
            ours in proptest::option::of(proptest::collection::vec(prefix(), 0..4)),
            theirs in proptest::collection::vec(prefix(), 0..4),
            host in any::<u8>(),
        ) {
            let scope = Scope { targets: Vec::new(), clients: ours };
            let client = IpAddr::from([10, 0, 0, host]);
            let both = scope.takes(client) && theirs.iter().any(|prefix| prefix.contains(client));
            prop_assert_eq!(scope.limited_to(&theirs).takes(client), both);
        }
    }

    #[test]
    fn a_scope_without_clients_takes_none_and_one_without_restriction_takes_all() {
        let target: SocketAddr = ([10, 0, 0, 2], 80).into();
        let client = IpAddr::from([10, 9, 0, 1]);
        let all = Scope { targets: vec![target], clients: None };
        assert!(all.serves(target) && all.takes(client));
        assert!(!all.serves(([10, 0, 0, 2], 81).into()));
        assert!(!Scope { clients: Some(Vec::new()), ..all }.takes(client));
    }
}
