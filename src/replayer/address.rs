//! Which address and port a replayed client has.
//!
//! Deterministic: a client's address always maps to the same pool address, and its port is kept
//! where it is free. Without pools, clients keep their addresses. Every flow chosen belongs to the
//! choosing worker by [`split`], so no two workers can choose one flow, and no worker need ask
//! another. Where sessions are replayed from this host's own addresses, only ports kept for that are
//! chosen: a client's own where it is one of them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::config::Config;
use crate::wire::flow::split;

/// Ports given out where the client's own cannot be kept, unless the configuration says which.
const PORTS: RangeInclusive<u16> = 1024..=u16::MAX;
/// Step between ports tried. A prime, so that all are met of any range of which it is no divisor of the size.
const STRIDE: u32 = 25_013;
/// Ports tried of one address, per worker, before the next address.
const TRIES: u32 = 512;
/// Addresses tried.
const ADDRESSES: u128 = 8;

/// The addresses and ports that may stand for `client` in its copy number `copy`, the preferred one
/// first. Empty if no pool has the target's family.
pub(super) fn candidates(
    config: &Config,
    client: SocketAddr,
    target: SocketAddr,
    copy: u16,
) -> impl Iterator<Item = SocketAddr> {
    let (workers, worker) = (config.workers, config.worker);
    let range = config.local.as_ref().map(|local| local.ports.clone());
    addresses(config, client.ip(), target, copy)
        .flat_map(move |address| {
            ports(client, copy, workers, range.clone()).map(move |port| SocketAddr::new(address, port))
        })
        .filter(move |local| split(*local, workers) == worker && *local != target)
}

fn addresses(config: &Config, client: IpAddr, target: SocketAddr, copy: u16) -> impl Iterator<Item = IpAddr> {
    let v4 = target.is_ipv4();
    let keeps = config.local.is_none() && config.pools.is_empty() && client.is_ipv4() == v4;
    let first = u128::from(hash(&client)).wrapping_add(u128::from(copy));
    let pools = config.pools.iter().filter(move |pool| config.local.is_none() && pool.is_ipv4() == v4);
    let size = pools.clone().fold(0u128, |sum, pool| sum.saturating_add(pool.size()));
    let from_pools = (0..ADDRESSES.min(size)).filter_map(move |step| {
        // Copies stand next to each other, so the next address to try is far away.
        let mut index = first.wrapping_add(step.wrapping_mul(size / ADDRESSES.min(size) + 1)) % size;
        pools.clone().find_map(|pool| {
            let address = pool.nth(index);
            index = index.saturating_sub(pool.size());
            address
        })
    });
    let local = config.local.iter().flat_map(|local| &local.addresses);
    let mut local: Vec<_> = local.filter(|(of, _)| *of == target).map(|(_, address)| *address).collect();
    let turn = u128::try_from(local.len()).ok().and_then(|count| first.checked_rem(count));
    local.rotate_left(turn.and_then(|turn| usize::try_from(turn).ok()).unwrap_or(0));
    keeps.then_some(client).into_iter().chain(from_pools).chain(local)
}

fn ports(
    client: SocketAddr,
    copy: u16,
    workers: u16,
    range: Option<RangeInclusive<u16>>,
) -> impl Iterator<Item = u16> {
    let may_keep = copy == 0 && range.as_ref().is_none_or(|range| range.contains(&client.port()));
    let kept = may_keep.then_some(client.port());
    let (first, last) = range.unwrap_or(PORTS).into_inner();
    let count = u32::from(last.saturating_sub(first)) + 1;
    let start = u32::try_from(hash(&(client, copy)) % u64::from(count)).unwrap_or(0);
    let others = (0..TRIES * u32::from(workers)).map(move |i| {
        let port = (start + i.wrapping_mul(STRIDE) % count) % count;
        first + u16::try_from(port).unwrap_or(0)
    });
    kept.into_iter().chain(others)
}

/// A hash that is the same in every run: the mapping of clients to addresses is.
fn hash<T: Hash>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::config::Local;
    use super::*;

    fn config(pools: &[&str], workers: u16, worker: u16) -> Config {
        let pools = pools.iter().map(|pool| pool.parse().expect("prefix")).collect();
        Config { pools, workers, worker, ..Config::new(Vec::new()) }
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    const CLIENT: &str = "10.1.1.1:40000";
    const TARGET: &str = "10.2.2.2:80";

    #[test]
    fn without_pools_the_client_stays_itself() {
        let all: Vec<_> = candidates(&config(&[], 1, 0), addr(CLIENT), addr(TARGET), 0).collect();
        assert_eq!(all[0], addr(CLIENT));
        assert!(all.iter().all(|local| local.ip() == addr(CLIENT).ip()));
        assert!(all.iter().collect::<HashSet<_>>().len() > 500);
    }

    #[test]
    fn pools_map_a_client_to_one_address_and_keep_its_port() {
        let config = config(&["10.99.0.0/24", "fd99::/64"], 1, 0);
        let first = candidates(&config, addr(CLIENT), addr(TARGET), 0).next().expect("some");
        let other = candidates(&config, addr("10.1.1.1:5"), addr(TARGET), 0).next().expect("some");
        assert_eq!((first.port(), other.port()), (40000, 5));
        assert_eq!(first.ip(), other.ip());
        assert!(config.pools[0].contains(first.ip()));
        let v6 = candidates(&config, addr(CLIENT), addr("[fd00::2]:80"), 0).next().expect("some");
        assert!(config.pools[1].contains(v6.ip()));
    }

    #[test]
    fn copies_have_addresses_of_their_own_where_there_are_enough() {
        let config = config(&["10.99.0.0/24"], 1, 0);
        let ips: HashSet<_> = (0..50)
            .map(|copy| candidates(&config, addr(CLIENT), addr(TARGET), copy).next().expect("some").ip())
            .collect();
        assert_eq!(ips.len(), 50);
    }

    #[test]
    fn own_addresses_are_used_with_the_ports_kept_for_them() {
        let other = addr("10.2.2.3:80");
        let own = |text: &str| text.parse().expect("address");
        let local = Local {
            addresses: vec![
                (addr(TARGET), own("10.2.2.1")),
                (other, own("10.3.3.1")),
                (addr(TARGET), own("10.2.2.9")),
            ],
            ports: 20_000..=20_999,
        };
        let config = Config { local: Some(local), ..config(&["10.99.0.0/24"], 2, 1) };
        let of = |client: &str, target| candidates(&config, addr(client), target, 0).collect::<Vec<_>>();
        let all = of(CLIENT, addr(TARGET));
        let ips: HashSet<_> = all.iter().map(SocketAddr::ip).collect();
        assert_eq!(ips, HashSet::from([own("10.2.2.1"), own("10.2.2.9")]));
        assert!(all.iter().all(|local| (20_000..=20_999).contains(&local.port()) && split(*local, 2) == 1));
        let distinct = all.iter().collect::<HashSet<_>>().len();
        assert!((800..=1200).contains(&distinct), "{distinct} of the 1000 a worker has of two addresses");
        let (mine, others): (Vec<u16>, Vec<u16>) =
            (20_000..20_999).partition(|port| split((own("10.3.3.1"), *port).into(), 2) == 1);
        let first = |port: u16| of(&format!("10.1.1.1:{port}"), other).first().map(SocketAddr::port);
        assert_eq!(first(mine[0]), Some(mine[0]), "kept");
        assert_ne!(first(others[0]), Some(others[0]), "another worker's");
    }

    #[test]
    fn every_candidate_belongs_to_the_worker() {
        for worker in 0..4 {
            let config = config(&["10.99.0.0/30"], 4, worker);
            let all: Vec<_> = candidates(&config, addr(CLIENT), addr(TARGET), 1).collect();
            assert!(all.len() > 100);
            assert!(all.iter().all(|local| split(*local, 4) == worker));
        }
    }
}
