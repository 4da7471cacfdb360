//! What gets through the rules of intercept and what does not, by real packets of every kind.
//!
//! This process is on the target. An assistant forwards to a client, which counts by destination: each kind of packet
//! goes to an address of its own. Packets that must arrive are sent last and so tell that the others did not.

#![expect(clippy::indexing_slicing, reason = "packets are built here, and every kind is counted")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tcpcopy::netfilter::{AssistantSpec, Family, Installed, Place, Strays, Unclaimed, assistant};

use crate::assistant_example;
use crate::support::{Host, in_namespace, ip, sysctl, wait_for};

/// The port of the target's service, and one of another service.
const SERVICE: u16 = 80;
const OTHER: u16 = 81;
/// So many packets of each kind are sent.
const EACH: u64 = 3;

const TCP: u8 = 6;
const UDP: u8 = 17;
const GRE: u8 = 47;
const SCTP: u8 = 132;

/// A kind of packet. Its number is part of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Response,
    OtherTcp,
    Dns,
    Echo,
    Gre,
    Sctp,
    FirstFragment,
    LaterFragment,
    UdpFragment,
    ErrorOfTarget,
    OtherErrorOfTarget,
    ErrorOfRouter,
    ExceededOfRouter,
    RedirectOfRouter,
    ErrorQuotingOptions,
    OtherErrorOfRouter,
    OtherHost,
    /// To an address that is no replayed client's.
    Elsewhere,
}

const KINDS: [Kind; 18] = [
    Kind::Response,
    Kind::OtherTcp,
    Kind::Dns,
    Kind::Echo,
    Kind::Gre,
    Kind::Sctp,
    Kind::FirstFragment,
    Kind::LaterFragment,
    Kind::UdpFragment,
    Kind::ErrorOfTarget,
    Kind::OtherErrorOfTarget,
    Kind::ErrorOfRouter,
    Kind::ExceededOfRouter,
    Kind::RedirectOfRouter,
    Kind::ErrorQuotingOptions,
    Kind::OtherErrorOfRouter,
    Kind::OtherHost,
    Kind::Elsewhere,
];

impl Kind {
    /// Whether it passes the rules of this specification.
    fn passes(self, spec: &AssistantSpec) -> bool {
        let closed_to_clients = spec.place == Place::Target && !spec.clients.is_empty();
        let open_to_target = spec.unclaimed == Unclaimed::Accept || spec.place == Place::Target;
        match self {
            Self::Response
            | Self::FirstFragment
            | Self::LaterFragment
            | Self::ErrorOfTarget
            | Self::ErrorOfRouter
            | Self::ExceededOfRouter
            | Self::RedirectOfRouter
            | Self::ErrorQuotingOptions => false,
            Self::Elsewhere => true,
            Self::Dns | Self::OtherHost if !spec.pass.is_empty() => true,
            Self::OtherErrorOfRouter | Self::OtherHost => !closed_to_clients,
            Self::OtherTcp
            | Self::Dns
            | Self::Echo
            | Self::Gre
            | Self::Sctp
            | Self::UdpFragment
            | Self::OtherErrorOfTarget => open_to_target && !closed_to_clients,
        }
    }

    /// The destination, in the prefix of the replayed clients or, of one kind, beside it.
    fn destination(self, ipv4: bool) -> IpAddr {
        let network = if self == Self::Elsewhere { 101 } else { 100 };
        let number = self as u8 + 1;
        if ipv4 {
            Ipv4Addr::new(10, 9, network, number).into()
        } else {
            Ipv6Addr::new(0xfd09, network.into(), 0, 0, 0, 0, 0, number.into()).into()
        }
    }

    /// The packet, from the IP header on; `None` in a family that does not have it.
    fn packet(self, ipv4: bool) -> Option<Vec<u8>> {
        let [target, router] = addresses(ipv4);
        let to = self.destination(ipv4);
        let from_target = |protocol, payload| build(target, to, protocol, payload);
        let error = |from, kind: [u8; 2], port| {
            // ICMP: unreachable, exceeded and redirect; by the family's own numbers.
            let kind = if ipv4 { kind[0] } else { kind[1] };
            let quoted = build(to, target, TCP, &ports(40_000, port));
            build(from, to, icmp(ipv4), &[&[kind, 1, 0, 0, 0, 0, 0, 0][..], &quoted].concat())
        };
        Some(match self {
            Self::Response => from_target(TCP, &segment(SERVICE)),
            Self::Elsewhere => build(router, to, UDP, &datagram(40_000)),
            Self::OtherTcp => from_target(TCP, &segment(OTHER)),
            Self::Dns => from_target(UDP, &datagram(53)),
            Self::Echo => from_target(icmp(ipv4), &[if ipv4 { 8 } else { 128 }, 0, 0, 0, 0, 0, 0, 0]),
            Self::Gre => from_target(GRE, &[0; 8]),
            Self::Sctp => from_target(SCTP, &segment(9)),
            Self::FirstFragment => fragment(target, to, TCP, true),
            Self::LaterFragment => fragment(target, to, TCP, false),
            Self::UdpFragment => fragment(target, to, UDP, false),
            Self::ErrorOfTarget => error(target, [3, 1], SERVICE),
            Self::OtherErrorOfTarget => error(target, [3, 1], OTHER),
            Self::ErrorOfRouter => error(router, [3, 1], SERVICE),
            Self::ExceededOfRouter => error(router, [11, 3], SERVICE),
            Self::RedirectOfRouter => error(router, [5, 2], SERVICE),
            Self::OtherErrorOfRouter => error(router, [3, 1], OTHER),
            Self::ErrorQuotingOptions if !ipv4 => return None,
            Self::ErrorQuotingOptions => {
                let mut quoted = build(to, target, TCP, &[&[1; 4][..], &ports(40_000, SERVICE)].concat());
                quoted[0] = 0x46;
                build(router, to, 1, &[&[3, 1, 0, 0, 0, 0, 0, 0][..], &quoted].concat())
            }
            Self::OtherHost => build(router, to, UDP, &datagram(53)),
        })
    }
}

/// The target, and another host of its network.
fn addresses(ipv4: bool) -> [IpAddr; 2] {
    if ipv4 { ["10.9.5.1", "10.9.5.9"] } else { ["fd09:5::1", "fd09:5::9"] }.map(|text| text.parse().unwrap())
}

fn icmp(ipv4: bool) -> u8 {
    if ipv4 { 1 } else { 58 }
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0; 12]].concat()
}

fn segment(source: u16) -> Vec<u8> {
    [ports(source, 40_000), vec![0; 16]].concat()
}

fn datagram(destination: u16) -> Vec<u8> {
    [&40_001_u16.to_be_bytes()[..], &destination.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

/// A packet. Nothing on its way looks at checksums but IPv4's own, which the kernel fills in.
fn build(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = (length + 20).to_be_bytes();
            let start = [0x45, 0, high, low, 0, 7, 0, 0, 64, protocol, 0, 0];
            [&start[..], &from.octets(), &to.octets(), payload].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [high, low] = length.to_be_bytes();
            let start = [0x60, 0, 0, 0, high, low, protocol, 64];
            [&start[..], &from.octets(), &to.octets(), payload].concat()
        }
        _ => panic!("two families"),
    }
}

/// The first or a later fragment of a packet from the service's port.
fn fragment(from: IpAddr, to: IpAddr, protocol: u8, first: bool) -> Vec<u8> {
    const FRAGMENT_HEADER: u8 = 44;
    let part = if first { segment(SERVICE) } else { vec![0; 32] };
    if from.is_ipv4() {
        let mut packet = build(from, to, protocol, &part);
        // More fragments follow, or the offset is eight bytes.
        [packet[6], packet[7]] = if first { [0x20, 0] } else { [0, 1] };
        packet
    } else {
        let header = [protocol, 0, 0, if first { 1 } else { 8 }, 0, 0, 0, 7];
        build(from, to, FRAGMENT_HEADER, &[&header[..], &part].concat())
    }
}

/// The network: this process, the target, behind network 5 of the assistant; the client behind its network 1.
struct Network {
    assistant: Host,
    client: Host,
    raw: [Socket; 2],
}

impl Network {
    fn new() -> Self {
        let (assistant, client) = (Host::new(), Host::new());
        assistant.connect("target", 5);
        ip("link set lo up");
        let (from, to) = (assistant.pid(), client.pid());
        ip(&format!("link add east netns {from} type veth peer name east netns {to}"));
        for (host, end) in [(&assistant, 1), (&client, 2)] {
            host.run("ip link set east up");
            host.run(&format!("ip address add 10.9.1.{end}/24 dev east"));
            host.run(&format!("ip address add fd09:1::{end}/64 dev east nodad"));
        }
        for setting in
            ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0"]
        {
            assistant.run(&format!("sysctl -q {setting}"));
        }
        assistant.run("sysctl -q net.ipv4.conf.target.rp_filter=0");
        sysctl("net.ipv4.conf.all.rp_filter=0");
        for network in [100, 101] {
            assistant.run(&format!("ip route add 10.9.{network}.0/24 via 10.9.1.2"));
            assistant.run(&format!("ip -6 route add fd09:{network:x}::/64 via fd09:1::2"));
        }
        ip("route add default via 10.9.5.2");
        ip("-6 route add default via fd09:5::2");
        client.run("nft add table inet witness");
        client.run("nft add chain inet witness in { type filter hook prerouting priority -400 ; }");
        for kind in KINDS {
            for (family, ipv4) in [("ip", true), ("ip6", false)] {
                let to = kind.destination(ipv4);
                client.run(&format!("nft add rule inet witness in {family} daddr {to} counter"));
            }
        }
        let raw = [Domain::IPV4, Domain::IPV6]
            .map(|domain| Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap());
        Self { assistant, client, raw }
    }

    /// Packets that have reached the client, by family and kind.
    fn arrived(&self) -> BTreeMap<(bool, Kind), u64> {
        let listed = self.client.run("nft list chain inet witness in");
        let packets = |line: &str| line.split_once("counter packets ")?.1.split(' ').next()?.parse().ok();
        let counts: Vec<u64> = listed.lines().filter_map(packets).collect();
        let keys = KINDS.iter().flat_map(|kind| [(true, *kind), (false, *kind)]);
        assert_eq!(counts.len(), KINDS.len() * 2, "{listed}");
        keys.zip(counts).collect()
    }

    /// Sends packets of all kinds and waits for those that tell that the others are through or dropped.
    fn send_all(&self) -> BTreeMap<(bool, Kind), u64> {
        let before = self.arrived();
        for kind in KINDS {
            for (ipv4, socket) in [true, false].into_iter().zip(&self.raw) {
                let Some(packet) = kind.packet(ipv4) else { continue };
                let to = SocketAddr::new(kind.destination(ipv4), 0);
                for _ in 0..EACH {
                    // On the target the rules refuse it to the sender.
                    let _ = socket.send_to(&packet, &to.into());
                }
            }
        }
        let told = |ipv4| self.arrived()[&(ipv4, Kind::Elsewhere)] >= before[&(ipv4, Kind::Elsewhere)] + EACH;
        wait_for(|| told(true) && told(false));
        let after = self.arrived();
        after.into_iter().map(|(key, count)| (key, count - before[&key])).collect()
    }

    /// Has both ends of the first link find each other's addresses again.
    fn forget_neighbours(&self) {
        ip("neigh flush dev target");
        ip("-6 neigh flush dev target");
        for family in ["", "-6 "] {
            self.assistant.run(&format!("ip {family}neigh flush dev target"));
        }
    }
}

/// Whether a host answers that it has no such service, which takes both directions.
fn is_refused(address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect((address, 9)).unwrap();
    socket.send(&[0]).unwrap();
    socket.recv(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn specs() -> Vec<AssistantSpec> {
    let targets = [true, false].map(|ipv4| SocketAddr::new(addresses(ipv4)[0], SERVICE)).to_vec();
    let clients = ["10.9.100.0/24", "fd09:64::/64"].map(|prefix| prefix.parse().unwrap()).to_vec();
    let dns = vec!["udp dport 53".parse().unwrap()];
    let closed = AssistantSpec { targets, queues: None, ..assistant_example() };
    let with_pass = AssistantSpec { pass: dns.clone(), ..closed.clone() };
    let router = AssistantSpec { unclaimed: Unclaimed::Accept, ..closed.clone() };
    let on_target = AssistantSpec { place: Place::Target, ..closed.clone() };
    let to_clients = AssistantSpec { clients, ..on_target.clone() };
    let to_clients_with_pass = AssistantSpec { pass: dns, ..to_clients.clone() };
    vec![closed, with_pass, router, on_target, to_clients, to_clients_with_pass]
}

/// What was sent once was counted by what it is.
fn expect_counted(spec: &AssistantSpec, counters: &[(Family, Strays)]) {
    assert_eq!(counters.iter().map(|(family, _)| *family).collect::<Vec<_>>(), Family::ALL);
    for (family, strays) in counters {
        let icmp = icmp(*family == Family::Ip);
        // DNS of the target and of the other host, and the part of a datagram that has no ports.
        let dns = if spec.pass.is_empty() { 2 * EACH } else { 0 };
        let by_ports = [((TCP, OTHER, 40_000), EACH), ((SCTP, 9, 40_000), EACH), ((UDP, 40_001, 53), dns)];
        for (key, count) in by_ports {
            assert_eq!(strays.by_ports.get(&key).copied().unwrap_or(0), count, "{key:?} of {strays:?}");
        }
        // A ping, and an error about another service of the target and one of a router.
        let by_protocol = [(icmp, 3 * EACH), (GRE, EACH), (UDP, dns + EACH), (TCP, EACH), (SCTP, EACH)];
        for (protocol, count) in by_protocol {
            assert_eq!(strays.by_protocol.get(&protocol).copied(), Some(count), "{protocol} of {strays:?}");
        }
        assert_eq!(strays.total, by_protocol.iter().map(|(_, count)| count).sum::<u64>(), "{strays:?}");
        // A first fragment of a response looks like one, and is dropped as one.
        assert_eq!(strays.fragments, EACH, "{strays:?}");
        let quoting_options = if *family == Family::Ip { EACH } else { 0 };
        assert_eq!(strays.icmp_errors, 4 * EACH + quoting_options, "{strays:?}");
    }
}

#[test]
fn each_kind_of_packet_passes_or_does_not() {
    in_namespace("closed::each_kind_of_packet_passes_or_does_not", &[], || {
        let network = Network::new();
        for spec in specs() {
            // The control: without rules everything arrives.
            for ((ipv4, kind), count) in network.send_all() {
                let exists = kind.packet(ipv4).is_some();
                assert_eq!(count, if exists { EACH } else { 0 }, "{kind:?}, IPv4 {ipv4}, without rules");
            }
            let ruleset = assistant(&spec);
            let mut installed = match spec.place {
                Place::Assistant => {
                    // What has no room in a set is dropped all the same, as it is without sets.
                    let ruleset = if spec.pass.is_empty() { ruleset.clone() } else { ruleset.without_sets() };
                    network.assistant.load(&ruleset.to_string());
                    None
                }
                Place::Target => Some(Installed::install(&ruleset).unwrap()),
            };
            network.forget_neighbours();
            for ((ipv4, kind), count) in network.send_all() {
                let passes = kind.passes(&spec) && kind.packet(ipv4).is_some();
                assert_eq!(count, if passes { EACH } else { 0 }, "{kind:?}, IPv4 {ipv4}, with\n{ruleset}");
            }
            if let Some(installed) = installed.as_mut().filter(|_| !spec.clients.is_empty()) {
                expect_counted(&spec, &installed.strays().unwrap());
            }
            // What is for the assistant itself arrives.
            for gateway in ["10.9.5.2", "fd09:5::2"] {
                assert!(is_refused(gateway), "{gateway}, with\n{ruleset}");
            }
            match installed {
                Some(installed) => installed.remove().unwrap(),
                None => drop(network.assistant.run("nft flush ruleset")),
            }
        }
    });
}
