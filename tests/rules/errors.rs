//! ICMP errors about replayed packets, which carry clients' addresses, do not reach clients.

use std::net::{IpAddr, SocketAddr};

use tcpcopy::netfilter::{Installed, OnlineSpec, online};
use tcpcopy::sys::raw::RawSender;
use tcpcopy::wire::{Flags, Outgoing, Seq, TcpHeader};

use crate::support::{Host, in_namespace, ip, online_example, sysctl, wait_for};

/// The ports of packets that are sent: the mapping's target, and another one.
const TARGET: u16 = 80;
const OTHER: u16 = 81;

/// The network: a client behind network 1; network 2, on which no target answers; and behind network 4 a router that
/// refuses to forward to network 3. The client counts ICMP errors by the port that they quote.
fn network() -> (Host, Host, Host) {
    let (client, silent, router) = (Host::new(), Host::new(), Host::new());
    client.connect("client", 1);
    silent.connect("silent", 2);
    router.connect("router", 4);
    ip("link set lo up");
    for family in ["ipv4", "ipv6"] {
        sysctl(&format!("net.{family}.neigh.silent.retrans_time_ms=20"));
    }
    for (family, network) in [("", "10.9"), ("-6 ", "fd09")] {
        let (subnet, gateway) = match family {
            "" => (format!("{network}.3.0/24"), format!("{network}.4.2")),
            _ => (format!("{network}:3::/64"), format!("{network}:4::2")),
        };
        ip(&format!("{family}route add {subnet} via {gateway}"));
        let back = gateway.strip_suffix('2').unwrap();
        router.run(&format!("ip {family}route add default via {back}1"));
        router.run(&format!("ip {family}route add unreachable {subnet}"));
        let back = back.replacen('4', "1", 1);
        client.run(&format!("ip {family}route add default via {back}1"));
    }
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.icmp_ratelimit=0"] {
        sysctl(setting);
        router.run(&format!("sysctl -q {setting}"));
    }
    for setting in ["net.ipv6.icmp.ratelimit=0", "net.ipv4.conf.all.rp_filter=0"] {
        sysctl(setting);
        router.run(&format!("sysctl -q {setting}"));
    }
    client.run("nft add table inet witness");
    client.run("nft add chain inet witness in { type filter hook input priority 0 ; }");
    for port in [TARGET, OTHER] {
        client.run(&format!("nft add rule inet witness in icmp type 3 @th,240,16 {port} counter"));
        client.run(&format!("nft add rule inet witness in icmpv6 type 1 @th,400,16 {port} counter"));
    }
    (client, silent, router)
}

/// Errors that have reached the client, by the port that they quote, of both families.
fn errors(client: &Host, port: u16) -> u64 {
    let listed = client.run("nft list chain inet witness in");
    let of_port =
        |line: &&str| line.contains(&format!("16 {port:#x} ")) || line.contains(&format!("16 {port} "));
    let packets = |line: &str| line.split_once("counter packets ")?.1.split(' ').next()?.parse::<u64>().ok();
    listed.lines().filter(of_port).filter_map(packets).sum()
}

/// Sends a SYN with the client's address to each target of a network, of both families and to both ports.
fn replay(sender: &RawSender, network: u8) {
    for port in [TARGET, OTHER] {
        for (client, target) in [
            ("10.9.1.2".to_owned(), format!("10.9.{network}.9")),
            ("fd09:1::2".to_owned(), format!("fd09:{network}::9")),
        ] {
            let [client, target] = [client, target].map(|text| text.parse::<IpAddr>().unwrap());
            let header = TcpHeader::bare(Seq(1), Seq(0), Flags::SYN, 1_000);
            let mut out = Outgoing::default();
            out.payload();
            let (src, dst) = (SocketAddr::new(client, 40_000), SocketAddr::new(target, port));
            sender.send(out.finish(src, dst, &header).unwrap(), dst).unwrap();
        }
    }
}

#[test]
fn errors_about_replayed_packets_do_not_reach_clients() {
    in_namespace("errors::errors_about_replayed_packets_do_not_reach_clients", &[], || {
        let (client, _silent, router) = network();
        let sender = RawSender::open(1).unwrap();
        // Network 2: this host says that the target cannot be reached. Network 3: a router does, through this host.
        for network in [2, 3] {
            let before = errors(&client, TARGET);
            replay(&sender, network);
            wait_for(|| errors(&client, TARGET) >= before + 2);
        }
        let targets = ["10.9.2.9:80", "[fd09:2::9]:80", "10.9.3.9:80", "[fd09:3::9]:80"];
        let targets = targets.map(|target| target.parse().unwrap()).to_vec();
        // Alone, as with packet sockets.
        let spec = OnlineSpec { captures: Vec::new(), targets, ..online_example() };
        let installed = Installed::install(&online(&spec)).unwrap();
        for network in [2, 3] {
            let (leaked, others) = (errors(&client, TARGET), errors(&client, OTHER));
            replay(&sender, network);
            // Errors about other packets do arrive, and left after those.
            wait_for(|| errors(&client, OTHER) >= others + 2);
            assert_eq!(errors(&client, TARGET), leaked, "network {network}");
        }
        let (leaked, others) = (errors(&client, TARGET), errors(&client, OTHER));
        installed.remove().unwrap();
        replay(&sender, 3);
        wait_for(|| errors(&client, TARGET) >= leaked + 2 && errors(&client, OTHER) >= others + 2);
        drop(router);
    });
}
