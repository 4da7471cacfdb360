//! Where rules of others lead connections, as the kernel has them.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use tcpcopy::netfilter::{NewAddress, redirections};

use crate::support::{in_namespace, nft_load, run};

/// Where connections to a destination are led, and by the rule of which chain.
fn led(address: &str, port: u16) -> Vec<(NewAddress, u16, String)> {
    let address: IpAddr = address.parse().unwrap();
    let rules = redirections().unwrap();
    let found = rules.iter().filter_map(|rule| {
        let (to, port) = rule.of(Some(address), port)?;
        Some((to, port, rule.place.clone()))
    });
    found.collect()
}

fn to(address: &str) -> NewAddress {
    NewAddress::Address(address.parse().unwrap())
}

#[test]
fn nat_rules_of_nft_are_read() {
    in_namespace("nat::nat_rules_of_nft_are_read", &[], || {
        assert_eq!(redirections().unwrap(), []);
        nft_load(
            "table ip n {
                chain called { tcp dport 70 dnat to 172.17.0.7; }
                chain p {
                    type nat hook prerouting priority -100;
                    ip daddr 10.1.0.0/16 tcp dport 80 dnat to 172.17.0.2:8080
                    ip daddr 10.2.0.0/20 tcp dport 80 dnat to 172.17.0.3
                    tcp dport 90-95 redirect to :8090
                    udp dport 96 redirect to :8096
                    tcp dport { 100, 101 } dnat to :8100
                    dnat to tcp dport map { 120 : 1.2.3.4, 121: 1.2.3.5 }
                    tcp dport 70 jump called
                }
                chain s { type nat hook postrouting priority 100; tcp dport 80 snat to 10.0.0.1; }
            }
            table ip6 n {
                chain o {
                    type nat hook output priority -100;
                    ip6 daddr fd00::9 tcp dport 80 dnat to [fd00::2]:8080
                }
            }
            table inet n {
                chain p { type nat hook prerouting priority -90; tcp dport 130 redirect; }
            }",
        );
        let p = || "table n, chain p".to_owned();
        let all = |address, port| {
            led(address, port).into_iter().map(|(to, port, _)| (to, port)).collect::<Vec<_>>()
        };
        // What has a set for its ports may be about any.
        let doubt = |port: u16| (port == 0).then_some((NewAddress::Same, 8100));
        assert_eq!(doubt(80), None);
        assert_eq!(led("10.1.2.3", 80), [(to("172.17.0.2"), 8080, p()), (NewAddress::Same, 8100, p())]);
        assert_eq!(all("10.2.15.1", 80), [(to("172.17.0.3"), 80), (NewAddress::Same, 8100)]);
        assert_eq!(all("10.2.16.1", 80), [(NewAddress::Same, 8100)]);
        assert_eq!(all("10.9.0.1", 95), [(NewAddress::ThisHost, 8090), (NewAddress::Same, 8100)]);
        assert_eq!(all("10.9.0.1", 96), [(NewAddress::Same, 8100)]);
        assert_eq!(
            led("10.9.0.1", 70).first(),
            Some(&(to("172.17.0.7"), 70, "table n, chain called".to_owned()))
        );
        assert_eq!(all("10.9.0.1", 130), [(NewAddress::Same, 8100), (NewAddress::ThisHost, 130)]);
        assert_eq!(all("fd00::9", 80).first(), Some(&(NewAddress::Same, 8100)));
        assert!(all("fd00::9", 80).contains(&(to("fd00::2"), 8080)));
        assert!(!all("fd00::8", 80).contains(&(to("fd00::2"), 8080)));
    });
}

#[test]
fn nat_rules_of_iptables_are_read() {
    in_namespace("nat::nat_rules_of_iptables_are_read", &[], || {
        let iptables = |line: &str| {
            let arguments = ["-t", "nat"].into_iter().chain(line.split(' '));
            let status = Command::new("iptables-nft").args(arguments).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        if !iptables("-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080") {
            eprintln!("skipped: there is no iptables-nft, or the kernel has no xt target DNAT");
            return;
        }
        assert!(iptables("-N DOCKER"));
        assert!(iptables(
            "-A DOCKER ! -i lo -p tcp -m tcp --dport 81:83 -j DNAT --to-destination 172.17.0.3"
        ));
        assert!(iptables("-A OUTPUT -d 10.7.0.0/16 -p tcp --dport 84 -j REDIRECT --to-ports 8084"));
        assert!(iptables("-A PREROUTING -p udp --dport 85 -j REDIRECT --to-ports 8085"));
        let listed = run("nft", &["list", "table", "ip", "nat"]);
        assert_eq!(
            led("10.9.0.1", 80),
            [(to("172.17.0.2"), 8080, "table nat, chain PREROUTING".to_owned())],
            "{listed}"
        );
        assert_eq!(
            led("10.9.0.1", 83),
            [(to("172.17.0.3"), 83, "table nat, chain DOCKER".to_owned())],
            "{listed}"
        );
        assert_eq!(
            led("10.7.0.1", 84),
            [(NewAddress::ThisHost, 8084, "table nat, chain OUTPUT".to_owned())],
            "{listed}"
        );
        assert_eq!(led("10.8.0.1", 84), [], "{listed}");
        assert_eq!(led("10.9.0.1", 85), [], "{listed}");
    });
}
