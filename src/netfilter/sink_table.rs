//! The routing table that leads packets into a device that swallows them.
//!
//! A connection of this host takes its maximum segment size from its route. For connections, the table therefore repeats
//! the destinations of the real routes as far as their MTU differs, each into the device, with the MTU of the real route.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use crate::sys::drain::Drain;
use crate::sys::policy::TABLE_LOCAL;
use crate::sys::routes::{Device, Route};
use crate::wire::Prefix;

/// Where no device is up yet: what Ethernet has.
const MTU: u32 = 1500;
/// The kernel takes no more for a route.
const MAX_MTU: u32 = 65_520;
/// With more destinations than these, which a full routing table has, the smallest MTU applies to all.
const MOST: usize = 256;
/// Tables whose number begins so belong to intercepts.
pub(super) const TAGS: u32 = 0x7463_0000;
pub(super) const TAG_MASK: u32 = 0xffff_0000;

/// The device and its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SinkTable {
    /// The table's number.
    pub(super) table: u32,
    /// The device's name, and the alias that tells whose it is.
    pub(super) device: String,
    pub(super) alias: String,
    /// For which families, IPv4 if true.
    pub(super) families: Vec<bool>,
    /// Whether connections of this host take their maximum segment size from it.
    pub(super) has_connections: bool,
}

/// The limits on packets to a destination. The smaller ones of several are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    mtu: u32,
    advmss: Option<u32>,
}

impl SinkTable {
    /// Puts device and routes in place; says what was missing.
    pub(super) fn put(&self) -> io::Result<Vec<String>> {
        let mut restored = Vec::new();
        let drain = Drain::ensure(&self.device, &self.alias)?;
        if drain.restored {
            restored.push(format!("device {}", self.device));
        }
        let devices = Device::all()?;
        for ipv4 in self.families.iter().copied() {
            let all = Route::all(ipv4)?;
            let wanted = self.routes(&all, &devices, drain.index, ipv4);
            let found: Vec<_> = all.iter().filter(|route| route.table == self.table).collect();
            for route in wanted.iter().filter(|route| !found.contains(route)) {
                route.put()?;
                let (address, length) = route.prefix;
                restored.push(format!("route {address}/{length} in table {}", self.table));
            }
            // One to the same destination has been replaced.
            let is_wanted = |prefix| wanted.iter().any(|route| route.prefix == prefix);
            found.iter().filter(|route| !is_wanted(route.prefix)).try_for_each(|route| route.delete())?;
        }
        Ok(restored)
    }

    /// What of it is not in place.
    pub(super) fn missing(&self) -> io::Result<Option<String>> {
        let devices = Device::all()?;
        let Some(device) = devices.iter().find(|device| device.name == self.device && device.up) else {
            return Ok(Some(format!("device {}", self.device)));
        };
        for ipv4 in self.families.iter().copied() {
            let all = Route::all(ipv4)?;
            for wanted in self.routes(&all, &devices, device.index, ipv4) {
                if !all.contains(&wanted) {
                    let (address, length) = wanted.prefix;
                    return Ok(Some(format!("route {address}/{length} in table {}", self.table)));
                }
            }
        }
        Ok(None)
    }

    /// Removes the device, and with it the routes.
    pub(super) fn remove(&self) -> io::Result<bool> {
        Drain::remove(&self.device, &self.alias)
    }

    /// The routes that the table has to have.
    fn routes(&self, all: &[Route], devices: &[Device], sink: u32, ipv4: bool) -> Vec<Route> {
        let route = |prefix: Prefix, limits: Option<Limits>| Route {
            table: self.table,
            prefix: (prefix.address(), prefix.length()),
            devices: vec![sink],
            mtu: limits.map(|limits| limits.mtu),
            advmss: limits.and_then(|limits| limits.advmss),
        };
        if !self.has_connections {
            return everything(ipv4).into_iter().map(|prefix| route(prefix, None)).collect();
        }
        let kept = kept(limits(all, devices, sink, ipv4), ipv4);
        kept.into_iter().map(|(prefix, limits)| route(prefix, Some(limits))).collect()
    }
}

/// The limits of each destination, by the length of its prefix, the shortest first; that of all destinations among them.
fn limits(all: &[Route], devices: &[Device], sink: u32, ipv4: bool) -> BTreeMap<(u8, IpAddr), Limits> {
    let usable = |device: &&Device| device.up && device.index != sink && device.name != "lo";
    let mtu_of = |device: &Device| if ipv4 { device.mtu } else { device.ipv6_mtu() };
    let mtus: BTreeMap<u32, u32> =
        devices.iter().filter(usable).map(|device| (device.index, mtu_of(device).min(MAX_MTU))).collect();
    let mut limits = BTreeMap::new();
    for route in all.iter().filter(|route| is_real(route)) {
        let of_devices = route.devices.iter().filter_map(|device| mtus.get(device)).min();
        let Some(of_devices) = of_devices else { continue };
        let mtu = route.mtu.map_or(*of_devices, |mtu| mtu.min(*of_devices));
        merge(&mut limits, route.prefix, Limits { mtu, advmss: route.advmss });
    }
    if let Some(all) = everything(ipv4).filter(|all| !limits.contains_key(&(0, all.address()))) {
        let mtu = mtus.values().copied().min().unwrap_or(MTU);
        merge(&mut limits, (all.address(), 0), Limits { mtu, advmss: None });
    }
    limits
}

/// Not a table of ours, nor that of this host's own addresses; not among neighbours only.
fn is_real(route: &Route) -> bool {
    let neighbours = match route.prefix.0 {
        IpAddr::V4(address) => address.is_multicast(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    };
    route.table & TAG_MASK != TAGS && route.table != TABLE_LOCAL && !neighbours
}

fn merge(limits: &mut BTreeMap<(u8, IpAddr), Limits>, (address, length): (IpAddr, u8), new: Limits) {
    let of_prefix = limits.entry((length, address)).or_insert(new);
    of_prefix.mtu = of_prefix.mtu.min(new.mtu);
    of_prefix.advmss = [of_prefix.advmss, new.advmss].into_iter().flatten().min();
}

/// The destinations whose limits differ from those of the prefix around them.
fn kept(limits: BTreeMap<(u8, IpAddr), Limits>, ipv4: bool) -> Vec<(Prefix, Limits)> {
    let smallest = limits.values().copied().reduce(|a, b| Limits {
        mtu: a.mtu.min(b.mtu),
        advmss: [a.advmss, b.advmss].into_iter().flatten().min(),
    });
    let mut kept: Vec<(Prefix, Limits)> = Vec::new();
    for ((length, address), limits) in limits {
        let Some(prefix) = Prefix::new(address, length) else { continue };
        let around = kept.iter().rev().find(|(outer, _)| outer.contains(address));
        if around.is_none_or(|(_, of_outer)| *of_outer != limits) {
            kept.push((prefix, limits));
        }
    }
    if kept.len() <= MOST {
        return kept;
    }
    everything(ipv4).zip(smallest).into_iter().collect()
}

/// All destinations of a family.
fn everything(ipv4: bool) -> Option<Prefix> {
    Prefix::new(if ipv4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) }, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINK: u32 = 9;

    fn device(index: u32, mtu: u32, up: bool) -> Device {
        // Names that no host has: there is no setting of IPv6 for them.
        Device { index, name: format!("no-such-{index}"), mtu, up }
    }

    fn devices() -> Vec<Device> {
        let lo = Device { index: 1, name: "lo".to_owned(), mtu: 65_536, up: true };
        vec![
            lo,
            device(2, 1500, true),
            device(3, 9000, true),
            device(4, 600, false),
            device(SINK, 65_535, true),
        ]
    }

    fn route(prefix: &str, device: u32, mtu: Option<u32>) -> Route {
        let prefix: Prefix = prefix.parse().unwrap();
        Route {
            table: 254,
            prefix: (prefix.address(), prefix.length()),
            devices: vec![device],
            mtu,
            advmss: None,
        }
    }

    fn planned(all: &[Route]) -> Vec<(String, u32)> {
        let table = SinkTable {
            table: TAGS | 1,
            device: "sink".to_owned(),
            alias: String::new(),
            families: vec![true],
            has_connections: true,
        };
        let routes =
            table.routes(all, &devices(), SINK, all.first().is_none_or(|one| one.prefix.0.is_ipv4()));
        assert!(routes.iter().all(|route| route.devices == [SINK] && route.table == TAGS | 1));
        let text = |route: &Route| format!("{}/{}", route.prefix.0, route.prefix.1);
        routes.iter().map(|route| (text(route), route.mtu.unwrap())).collect()
    }

    fn lines<const N: usize>(expected: [(&str, u32); N]) -> Vec<(String, u32)> {
        expected.map(|(prefix, mtu)| (prefix.to_owned(), mtu)).to_vec()
    }

    #[test]
    fn destinations_are_repeated_where_their_mtu_differs() {
        let all = [
            route("0.0.0.0/0", 2, None),
            route("10.0.0.0/8", 3, None),
            route("10.1.0.0/16", 3, None),
            route("10.2.0.0/16", 2, Some(1400)),
            route("192.0.2.0/24", 2, None),
        ];
        let expected = [("0.0.0.0/0", 1500), ("10.0.0.0/8", 9000), ("10.2.0.0/16", 1400)];
        assert_eq!(planned(&all), lines(expected));
    }

    #[test]
    fn the_smallest_of_several_routes_counts() {
        let mut paths = route("0.0.0.0/0", 2, None);
        paths.devices.push(3);
        assert_eq!(planned(&[route("0.0.0.0/0", 3, None), paths]), lines([("0.0.0.0/0", 1500)]));
        let above = route("0.0.0.0/0", 2, Some(9000));
        assert_eq!(planned(&[above]), lines([("0.0.0.0/0", 1500)]), "a device's limit holds anyway");
    }

    #[test]
    fn without_a_default_route_the_smallest_device_counts() {
        let expected = [("0.0.0.0/0", 1500), ("10.0.0.0/8", 9000)];
        assert_eq!(planned(&[route("10.0.0.0/8", 3, None)]), lines(expected));
        assert_eq!(planned(&[]), lines([("0.0.0.0/0", 1500)]));
        assert!(limits(&[], &[], SINK, true).values().all(|limits| limits.mtu == MTU), "before the network");
    }

    #[test]
    fn what_leads_to_no_real_destination_is_left_out() {
        let mut of_another_intercept = route("10.0.0.0/8", 3, None);
        of_another_intercept.table = TAGS | 0x77;
        let mut local = route("10.3.0.0/16", 3, None);
        local.table = TABLE_LOCAL;
        let all = [of_another_intercept, local, route("10.4.0.0/16", 1, None), route("10.5.0.0/16", 4, None)];
        assert_eq!(planned(&all), lines([("0.0.0.0/0", 1500)]));
        let all = [route("::/0", 3, None), route("fe80::/64", 2, None), route("ff00::/8", 2, None)];
        assert_eq!(planned(&all), lines([("::/0", 9000)]));
    }

    #[test]
    fn a_full_routing_table_becomes_one_route() {
        let many = (0..=255).flat_map(|net| {
            let mtu = if net == 77 { 1300 } else { 1400 };
            [
                route(&format!("10.{net}.0.0/16"), 2, Some(mtu)),
                route(&format!("11.{net}.0.0/16"), 2, Some(1450)),
            ]
        });
        assert_eq!(planned(&many.collect::<Vec<_>>()), lines([("0.0.0.0/0", 1300)]));
    }
}
