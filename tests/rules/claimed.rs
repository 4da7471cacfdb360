//! The sets of claimed flows in a real kernel.

use std::net::UdpSocket;

use tcpcopy::netfilter::ClaimedFlows;
use tcpcopy::wire::FlowKey;

use super::*;

fn flow(client: &str, server: &str) -> FlowKey {
    FlowKey { client: client.parse().unwrap(), server: server.parse().unwrap() }
}

const GRACE: Duration = Duration::from_secs(3600);

#[test]
fn flows_are_added_and_retired_and_survive_what_puts_the_table_back() {
    in_namespace("claimed::flows_are_added_and_retired_and_survive_what_puts_the_table_back", &[], || {
        let mut claimed = ClaimedFlows::open(&assistant_example()).unwrap();
        assert!(claimed.missing().unwrap().is_some());
        assert!(claimed.put().unwrap(), "they were not there");
        assert_eq!(claimed.missing().unwrap(), None);
        let flows: Vec<_> = (1..=1200)
            .map(|port| flow(&format!("10.9.0.1:{port}"), "203.0.113.20:80"))
            .chain([flow("[2001:db8::9]:5", "[2001:db8::20]:80")])
            .collect();
        claimed.add(&flows).unwrap();
        let held = |claimed: &mut ClaimedFlows| {
            let mut held = claimed.flows().unwrap();
            held.sort_unstable_by_key(|flow| (flow.client, flow.server));
            held
        };
        assert_eq!(held(&mut claimed), flows);
        claimed.add(&flows[..3]).unwrap();
        assert!(!claimed.put().unwrap(), "nothing was missing");
        assert_eq!(held(&mut claimed), flows, "and nothing was lost");

        claimed.retire(&flows[..2], GRACE).unwrap();
        assert_eq!(held(&mut claimed), flows, "they stay closed");
        let listed = run("nft", &["list", "ruleset"]);
        assert!(listed.contains("10.9.0.1 . 1 . 203.0.113.20 . 80 timeout 1h"), "{listed}");
        // Claimed again and retired again, its time begins anew.
        claimed.add(&flows[..1]).unwrap();
        claimed.retire(&flows[..1], 2 * GRACE).unwrap();
        let listed = run("nft", &["list", "ruleset"]);
        assert!(listed.contains("10.9.0.1 . 1 . 203.0.113.20 . 80 timeout 2h"), "{listed}");
        // One that somebody has taken away is retired all the same.
        run("nft", &["delete element ip intercept-claims claimed { 10.9.0.1 . 3 . 203.0.113.20 . 80 }"]);
        claimed.retire(&flows[2..5], GRACE).unwrap();
        assert_eq!(held(&mut claimed), flows);

        // Another process starts.
        let mut next = ClaimedFlows::open(&assistant_example()).unwrap();
        next.put().unwrap();
        next.retire_all(GRACE).unwrap();
        assert_eq!(held(&mut next), flows);

        // Somebody edits the rules, or takes everything away.
        run("nft", &["flush chain ip intercept-claims closed"]);
        assert!(next.missing().unwrap().is_some_and(|what| what.contains("closed has 0 rules")));
        assert!(next.put().unwrap());
        assert_eq!(held(&mut next), flows, "the sets were not touched");
        run("nft", &["flush ruleset"]);
        assert!(next.put().unwrap());
        assert_eq!(next.flows().unwrap(), []);
        ClaimedFlows::remove(&TableName::intercept()).unwrap();
        assert!(!run("nft", &["list ruleset"]).contains("claims"));
    });
}

#[test]
fn packets_of_flows_in_either_set_are_dropped_and_others_are_not() {
    in_namespace("claimed::packets_of_flows_in_either_set_are_dropped_and_others_are_not", &[], || {
        // On the target: what this host sends from the service's port.
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["addr", "add", "203.0.113.20/32", "dev", "lo"]);
        run("ip", &["addr", "add", "10.9.0.1/32", "dev", "lo"]);
        let spec = AssistantSpec { place: Place::Target, ..assistant_example() };
        let mut claimed = ClaimedFlows::open(&spec).unwrap();
        claimed.put().unwrap();
        let service = TcpListener::bind("203.0.113.20:80").unwrap();
        let connects = |port: u16| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&SocketAddr::from(([10, 9, 0, 1], port)).into()).unwrap();
            let to = service.local_addr().unwrap();
            socket.connect_timeout(&to.into(), Duration::from_millis(300)).is_ok()
        };
        assert!(connects(1001));
        claimed.add(&[flow("10.9.0.1:1002", "203.0.113.20:80")]).unwrap();
        assert!(!connects(1002), "claimed");
        claimed.add(&[flow("10.9.0.1:1003", "203.0.113.20:80")]).unwrap();
        claimed.retire(&[flow("10.9.0.1:1003", "203.0.113.20:80")], GRACE).unwrap();
        assert!(!connects(1003), "retired");
        let listed = run("nft", &["list set ip intercept-claims closing"]);
        assert!(listed.contains("expires 3m"), "the packet keeps it, for the usual time: {listed}");
        assert!(connects(1004), "never claimed");
        // Not of TCP.
        let sender = UdpSocket::bind("203.0.113.20:80").unwrap();
        let receiver = UdpSocket::bind("10.9.0.1:1002").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        sender.send_to(b"x", "10.9.0.1:1002").unwrap();
        receiver.recv(&mut [0; 4]).unwrap();
    });
}
