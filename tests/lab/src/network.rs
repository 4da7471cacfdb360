//! The laboratory's network: hosts as namespaces, joined by two bridges in the laboratory's own namespace.
//!
//! ```text
//!   client .10…          online .1            assistant .3
//!      │                  │     │                │     │
//!   ═══╧═══ front 10.91.1.0/24 ═╪════════════════╧═    │
//!                               │                      │
//!                 ═══ back 10.91.2.0/24 ═╤═════════════╧═══
//!                                        │
//!                                     target .2  (route to the clients and to the pools: via .3)
//! ```
//!
//! IPv6 is the same with `fd91:1::/64` and `fd91:2::/64` and the same last numbers in hexadecimal. The assistant has a
//! real path to the clients: without intercept's rules and with forwarding on, responses do leak. Without an assistant
//! the same holds for the online host.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result};

use crate::namespace::{Namespace, Snapshot, run};

/// The port of the servers on online hosts and targets.
pub(crate) const PORT: u16 = 80;
/// Address pools the targets send back through the assistant as well.
const POOLS: [&str; 2] = ["10.99.0.0/16", "fd99::/64"];
/// The most addresses one client host can have.
const MOST_ADDRESSES: u8 = 100;

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// `v4` or `v6`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }
}

/// A network of the laboratory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Clients, online hosts, assistants.
    Front,
    /// Online hosts, targets, assistants.
    Back,
}

impl Segment {
    const ALL: [Self; 2] = [Self::Front, Self::Back];

    fn name(self) -> &'static str {
        match self {
            Self::Front => "front",
            Self::Back => "back",
        }
    }

    /// The bridge that its hosts are on.
    pub(crate) fn switch(self) -> String {
        format!("sw-{}", self.name())
    }

    fn number(self) -> u8 {
        match self {
            Self::Front => 1,
            Self::Back => 2,
        }
    }

    /// Whether an address is of this network.
    pub(crate) fn contains(self, family: Family, address: IpAddr) -> bool {
        match (address, self.address(family, 0)) {
            (IpAddr::V4(address), IpAddr::V4(network)) => address.octets()[..3] == network.octets()[..3],
            (IpAddr::V6(address), IpAddr::V6(network)) => address.octets()[..8] == network.octets()[..8],
            _ => false,
        }
    }

    fn address(self, family: Family, host: u8) -> IpAddr {
        let segment = self.number();
        match family {
            Family::V4 => Ipv4Addr::new(10, 91, segment, host).into(),
            Family::V6 => Ipv6Addr::new(0xfd91, u16::from(segment), 0, 0, 0, 0, 0, u16::from(host)).into(),
        }
    }
}

/// What a host is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Makes the load.
    Client,
    /// The production server; `tcpcopy` runs here.
    Online,
    /// The server under test; nothing of ours runs here.
    Target,
    /// `intercept` runs here.
    Assistant,
    /// On the way to the target, in what it says: errors about packets to the target come from here.
    Router,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Online => "online",
            Self::Target => "target",
            Self::Assistant => "assistant",
            Self::Router => "router",
        }
    }

    /// The byte that tells the role in a MAC address; see [`crate::leak`].
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Client => 1,
            Self::Online => 2,
            Self::Target => 3,
            Self::Assistant => 4,
            Self::Router => 5,
        }
    }

    fn segments(self) -> &'static [Segment] {
        match self {
            Self::Client => &[Segment::Front],
            Self::Online | Self::Assistant => &Segment::ALL,
            Self::Target | Self::Router => &[Segment::Back],
        }
    }

    /// The last number of the first address of the `index`-th host of this role.
    fn host(self, index: u8) -> u8 {
        match (self, index) {
            (Self::Client, _) => 10 + index * MOST_ADDRESSES,
            (Self::Online, 0) => 1,
            (Self::Target, 0) => 2,
            (Self::Assistant, 0) => 3,
            (Self::Online, 1) => 4,
            (Self::Assistant, 1) => 5,
            (Self::Target, _) => 5 + index,
            (Self::Assistant, _) => 214 + index,
            (Self::Online, _) => 220 + index,
            (Self::Router, _) => 9,
        }
    }
}

/// What to build.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Client hosts, at most 2.
    pub(crate) clients: u8,
    /// Addresses of each client host, at most 100.
    pub(crate) addresses: u8,
    /// Online hosts, at most 34.
    pub(crate) onlines: u8,
    /// Targets, at most 4.
    pub(crate) targets: u8,
    /// Assistants, at most 5; with several, the targets' routes are equal-cost over all of them. With none, they go over
    /// the online hosts.
    pub(crate) assistants: u8,
    /// Whether there is a router, and through whom it sends errors to clients: assistants, or online hosts.
    pub(crate) router: Option<Role>,
    /// Whether veth does segmentation, receive and checksum offload.
    pub(crate) offloads: bool,
    /// Whether the assistants, or the online hosts if there are none, forward: then only our rules keep responses from
    /// the clients.
    pub(crate) forwarding: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            clients: 1,
            addresses: 1,
            onlines: 1,
            targets: 1,
            assistants: 1,
            router: None,
            offloads: false,
            forwarding: false,
        }
    }
}

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    role: Role,
    number: u8,
    addresses: u8,
    namespace: Namespace,
}

impl Host {
    /// Its namespace.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its name: the role, and a number from the second on.
    pub(crate) fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its first address on the front network (clients, online hosts, assistants).
    pub(crate) fn front(&self, family: Family) -> IpAddr {
        Segment::Front.address(family, self.number)
    }

    /// Its address on the back network (online hosts, targets, assistants).
    pub(crate) fn back(&self, family: Family) -> IpAddr {
        Segment::Back.address(family, self.number)
    }

    /// Every address on the front network.
    pub(crate) fn sources(&self, family: Family) -> Vec<IpAddr> {
        (self.number..self.number + self.addresses)
            .map(|number| Segment::Front.address(family, number))
            .collect()
    }

    /// Takes its link down at the switch's end: the host keeps its routes, but loses its carrier. Or brings it up again.
    pub(crate) fn set_link(&self, segment: Segment, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        run(Command::new("ip").args(["link", "set", &port_name(self, segment), state]), None).map(drop)
    }

    fn forward(&self) -> Result<()> {
        self.namespace.set(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])
    }

    fn mac(&self, segment: Segment) -> String {
        format!("02:91:{:02x}:{:02x}:00:{:02x}", segment.number(), self.role.number(), self.number)
    }
}

/// The whole network. Dropping it removes the namespaces; the links go with them.
#[derive(Debug)]
pub(crate) struct Network {
    hosts: Vec<Host>,
    offloads: bool,
}

impl Network {
    /// Builds the network of `plan`.
    pub(crate) fn build(plan: &Plan) -> Result<Self> {
        let mut network = Self { hosts: Vec::new(), offloads: plan.offloads };
        let roles = [
            (Role::Client, plan.clients, plan.addresses.clamp(1, MOST_ADDRESSES)),
            (Role::Online, plan.onlines, 1),
            (Role::Target, plan.targets, 1),
            (Role::Assistant, plan.assistants, 1),
            (Role::Router, u8::from(plan.router.is_some()), 1),
        ];
        for (role, count, addresses) in roles {
            for index in 0..count {
                let name =
                    if index == 0 { role.name().to_owned() } else { format!("{}{}", role.name(), index + 1) };
                let namespace = Namespace::create(&name)?;
                network.hosts.push(Host { role, number: role.host(index), addresses, namespace });
            }
        }
        network.prepare_kernel()?;
        network.connect().context("building the network")?;
        network.set_offloads()?;
        network.add_neighbours()?;
        network.add_routes()?;
        if let Some(through) = plan.router {
            route(network.host(Role::Router, 0)?, &network.all(through))?;
        }
        if plan.forwarding {
            network
                .gateways()
                .chain(plan.router.into_iter().flat_map(|role| network.all(role)))
                .try_for_each(Host::forward)?;
        }
        Ok(network)
    }

    /// The `index`-th host of a role.
    pub(crate) fn host(&self, role: Role, index: usize) -> Result<&Host> {
        self.all(role).nth(index).with_context(|| format!("no {} number {index}", role.name()))
    }

    /// The hosts of a role.
    pub(crate) fn all(&self, role: Role) -> impl Iterator<Item = &Host> + Clone {
        self.hosts.iter().filter(move |host| host.role == role)
    }

    /// The service address of an online host as the clients know it.
    pub(crate) fn service(&self, online: usize, family: Family) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.host(Role::Online, online)?.front(family), PORT))
    }

    /// The service address of a target.
    pub(crate) fn target(&self, index: usize, family: Family) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.host(Role::Target, index)?.back(family), PORT))
    }

    /// The state of every host.
    pub(crate) fn snapshot(&self) -> Result<Vec<Snapshot>> {
        self.hosts.iter().map(|host| host.namespace.snapshot()).collect()
    }

    /// Kernel parameters, before the first link is there.
    fn prepare_kernel(&self) -> Result<()> {
        for host in &self.hosts {
            host.namespace.set(&[
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
                ("ipv6/conf/default/router_solicitations", "0"),
                ("core/somaxconn", "65535"),
                ("ipv4/tcp_max_syn_backlog", "65535"),
                ("ipv4/tcp_tw_reuse", "1"),
                ("ipv4/ip_local_port_range", "1024 65535"),
                ("ipv4/fib_multipath_hash_policy", "1"),
                ("ipv6/fib_multipath_hash_policy", "1"),
            ])?;
        }
        Ok(())
    }

    fn connect(&self) -> Result<()> {
        let mut switch = String::from("link set lo up\n");
        for segment in Segment::ALL {
            let name = segment.name();
            writeln!(switch, "link add sw-{name} type bridge mcast_snooping 0\nlink set sw-{name} up")?;
        }
        for host in &self.hosts {
            let mut inside = String::new();
            for &segment in host.role.segments() {
                let (host_name, name, mac) = (host.name(), segment.name(), host.mac(segment));
                let port = port_name(host, segment);
                writeln!(
                    switch,
                    "link add {port} type veth peer name {name} address {mac} netns {host_name}\n\
                     link set {port} master sw-{name} up"
                )?;
                writeln!(inside, "link set {name} up")?;
                for number in host.number..host.number + host.addresses {
                    let (v4, v6) = (segment.address(Family::V4, number), segment.address(Family::V6, number));
                    writeln!(inside, "addr add {v4}/24 dev {name}\naddr add {v6}/64 dev {name} nodad")?;
                }
            }
            run(Command::new("ip").args(["-batch", "-"]), Some(&switch))?;
            switch.clear();
            host.namespace.ip(&inside)?;
        }
        Ok(())
    }

    fn set_offloads(&self) -> Result<()> {
        let state = if self.offloads { "on" } else { "off" };
        let features = ["tso", "gso", "gro", "tx"].iter().flat_map(|&feature| [feature, state]);
        for host in &self.hosts {
            for &segment in host.role.segments() {
                let arguments: Vec<&str> =
                    ["-K", segment.name()].into_iter().chain(features.clone()).collect();
                host.namespace.output("ethtool", &arguments)?;
                run(
                    Command::new("ethtool").args(["-K", &port_name(host, segment)]).args(features.clone()),
                    None,
                )?;
            }
        }
        Ok(())
    }

    /// Every host knows its neighbours for good: no ARP or ND in the way of a measurement.
    pub(crate) fn add_neighbours(&self) -> Result<()> {
        for host in &self.hosts {
            let mut lines = String::new();
            for &segment in host.role.segments() {
                let others = self
                    .hosts
                    .iter()
                    .filter(|other| other.name() != host.name() && other.role.segments().contains(&segment));
                for other in others {
                    for number in other.number..other.number + other.addresses {
                        for family in [Family::V4, Family::V6] {
                            let (address, mac) = (segment.address(family, number), other.mac(segment));
                            let name = segment.name();
                            writeln!(lines, "neigh replace {address} lladdr {mac} dev {name} nud permanent")?;
                        }
                    }
                }
            }
            host.namespace.ip(&lines)?;
        }
        Ok(())
    }

    /// Through whom the targets answer clients and pools.
    fn gateways(&self) -> impl Iterator<Item = &Host> + Clone {
        let role = if self.all(Role::Assistant).next().is_some() { Role::Assistant } else { Role::Online };
        self.all(role)
    }

    /// The targets answer clients and pools through the assistants: all there is to configure on a target.
    pub(crate) fn add_routes(&self) -> Result<()> {
        self.all(Role::Target).try_for_each(|target| route(target, &self.gateways()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // A namespace ends some time after its deletion; its links must be gone now, for the next network's.
        let ports = self.hosts.iter().flat_map(|host| {
            host.role
                .segments()
                .iter()
                .map(move |&segment| format!("link delete {}\n", port_name(host, segment)))
        });
        let bridges = Segment::ALL.iter().map(|segment| format!("link delete sw-{}\n", segment.name()));
        let lines: String = ports.chain(bridges).collect();
        let _ = run(Command::new("ip").args(["-force", "-batch", "-"]), Some(&lines));
        self.hosts.clear();
    }
}

/// Routes of a host to clients and pools, over all of these hosts.
fn route<'a>(from: &Host, through: &(impl Iterator<Item = &'a Host> + Clone)) -> Result<()> {
    let hops = |family: Family| {
        through.clone().fold(String::new(), |mut hops, gateway| {
            // Writing to a string cannot fail.
            let _ = write!(hops, " nexthop via {} dev back", gateway.back(family));
            hops
        })
    };
    let (hops4, hops6) = (hops(Family::V4), hops(Family::V6));
    if hops4.is_empty() {
        return Ok(());
    }
    let [pool4, pool6] = POOLS;
    from.namespace.ip(&format!(
        "route replace 10.91.1.0/24{hops4}\nroute replace {pool4}{hops4}\n\
         route replace fd91:1::/64{hops6}\nroute replace {pool6}{hops6}\n"
    ))
}

/// The bridge's end of a host's link.
pub(crate) fn port_name(host: &Host, segment: Segment) -> String {
    format!("{}{}-{}", host.role.name(), host.number, segment.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_readme() {
        assert_eq!(Segment::Back.address(Family::V4, Role::Target.host(0)).to_string(), "10.91.2.2");
        assert_eq!(Segment::Back.address(Family::V4, Role::Assistant.host(0)).to_string(), "10.91.2.3");
        assert_eq!(Segment::Back.address(Family::V4, Role::Online.host(0)).to_string(), "10.91.2.1");
        assert_eq!(Segment::Front.address(Family::V6, Role::Client.host(0)).to_string(), "fd91:1::a");
    }

    #[test]
    fn no_two_hosts_share_a_number() {
        let mut taken = std::collections::HashSet::new();
        for (role, count) in [(Role::Online, 34), (Role::Target, 4), (Role::Assistant, 5), (Role::Router, 1)]
        {
            assert!((0..count).all(|index| taken.insert(role.host(index))), "{role:?}");
        }
        for index in 0..2 {
            let first = Role::Client.host(index);
            assert!((first..first + MOST_ADDRESSES).all(|number| taken.insert(number)), "client {index}");
        }
    }
}
