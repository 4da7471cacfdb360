//! The second layer of the black hole on a real kernel: rules of the routing policy, and the device that swallows.

use std::process::Command;

use tcpcopy::netfilter::{AssistantSpec, Backstop, BackstopError, Place, TableName, Unclaimed};

use crate::assistant_example;
use crate::support::{in_namespace, run};

/// A host between the network of the example's target (west) and that of the clients (east), which forwards.
fn forwarding_host() {
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["link", "add", "west", "type", "veth", "peer", "name", "east"]);
    for (device, address) in [("west", "203.0.113.1/24"), ("east", "198.51.100.1/24")] {
        run("ip", &["link", "set", device, "up"]);
        run("ip", &["address", "add", address, "dev", device]);
    }
    run("ip", &["-6", "address", "add", "2001:db8::1/64", "dev", "west", "nodad"]);
    run("ip", &["-6", "address", "add", "2001:db8:1::1/64", "dev", "east", "nodad"]);
    run("ip", &["route", "add", "default", "via", "198.51.100.2"]);
    run("ip", &["-6", "route", "add", "default", "via", "2001:db8:1::2"]);
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
    }
}

/// The layer for `spec` is put in force, and then complete.
#[track_caller]
fn put(spec: &AssistantSpec) -> Backstop {
    let layer = Backstop::new(spec);
    assert!(!layer.put().unwrap().is_empty(), "it was not there");
    assert_eq!(layer.put().unwrap(), Vec::<String>::new(), "it is there");
    layer.check().unwrap();
    layer
}

/// Whether a packet goes anywhere: one that comes in (`iif`), or one of this host's own.
fn has_route(text: &str) -> bool {
    let family = if text.contains(':') { "-6" } else { "-4" };
    let arguments = [family, "route", "get"].into_iter().chain(text.split_whitespace());
    let output = Command::new("ip").args(arguments).output().unwrap();
    output.status.success() && !String::from_utf8(output.stdout).unwrap().contains("dev intercept-")
}

fn tables_of_rules() -> String {
    run("ip", &["rule"]) + &run("ip", &["-6", "rule"])
}

#[test]
fn whatever_a_target_sends_through_the_assistant_is_dropped_without_a_ruleset_too() {
    const NAME: &str =
        "routing::whatever_a_target_sends_through_the_assistant_is_dropped_without_a_ruleset_too";
    in_namespace(NAME, &[], || {
        forwarding_host();
        let from_target = |rest: &str| has_route(&format!("10.1.2.3 from 203.0.113.20 iif west {rest}"));
        let before = tables_of_rules();
        let kinds =
            ["", "ipproto tcp sport 80", "ipproto tcp sport 81", "ipproto udp dport 53", "ipproto icmp"];
        for kind in kinds {
            assert!(from_target(kind), "{kind}: the control");
        }
        let layer = put(&assistant_example());
        for kind in kinds {
            assert!(!from_target(kind), "{kind}");
        }
        assert!(!has_route("2001:db8:9::9 from 2001:db8::20 iif west"));
        assert!(has_route("10.1.2.3 from 203.0.113.21 iif west"), "another host");
        assert!(has_route("2001:db8:9::9 from 2001:db8::21 iif west"), "another host");
        assert!(has_route("203.0.113.20 from 10.1.2.3 iif east"), "to the target");
        assert!(has_route("203.0.113.1 from 203.0.113.20 iif west"), "to the assistant itself");
        drop(layer);
        assert!(Backstop::remove(&TableName::intercept()).unwrap());
        assert!(!Backstop::remove(&TableName::intercept()).unwrap());
        assert_eq!(tables_of_rules(), before);
    });
}

#[test]
fn marked_packets_pass_and_other_marks_do_not() {
    in_namespace("routing::marked_packets_pass_and_other_marks_do_not", &[], || {
        forwarding_host();
        let mut spec = assistant_example();
        let passes = |mark: u32| has_route(&format!("10.1.2.3 from 203.0.113.20 iif west mark {mark}"));
        put(&spec);
        assert!(!passes(spec.accept_mark), "nothing is passed");
        spec.pass = vec!["udp dport 53".parse().unwrap()];
        put(&spec);
        assert!(passes(spec.accept_mark));
        for mark in [0, 1, spec.accept_mark ^ 1, u32::MAX] {
            assert!(!passes(mark), "{mark:#x}");
        }
    });
}

#[test]
fn a_router_that_accepts_drops_the_services_responses_only() {
    in_namespace("routing::a_router_that_accepts_drops_the_services_responses_only", &[], || {
        forwarding_host();
        let spec = AssistantSpec {
            clients: ["10.0.0.0/8", "::/0"].map(|prefix| prefix.parse().unwrap()).to_vec(),
            unclaimed: Unclaimed::Accept,
            ..assistant_example()
        };
        put(&spec);
        let passes = |to: &str, port: u16, mark: u32| {
            has_route(&format!("{to} from 203.0.113.20 iif west ipproto tcp sport {port} mark {mark}"))
        };
        assert!(!passes("10.1.2.3", 80, 0));
        assert!(passes("10.1.2.3", 80, spec.accept_mark));
        assert!(passes("10.1.2.3", 81, 0), "another service");
        assert!(passes("11.1.2.3", 80, 0), "another client");
        assert!(has_route("10.1.2.3 from 203.0.113.20 iif west ipproto udp sport 80"));
    });
}

/// What others send to a target through the assistant arrives, whatever checks the way back.
#[test]
fn a_reverse_path_filter_that_is_not_strict_lets_packets_to_a_target_through() {
    in_namespace(
        "routing::a_reverse_path_filter_that_is_not_strict_lets_packets_to_a_target_through",
        &[],
        || {
            forwarding_host();
            for unclaimed in [Unclaimed::Drop, Unclaimed::Accept] {
                let spec = AssistantSpec { unclaimed, ..assistant_example() };
                put(&spec);
                let layer = Backstop::new(&spec);
                for (filter, passes) in [("0", true), ("1", false), ("2", true)] {
                    for interface in ["all", "east", "west"] {
                        std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), filter)
                            .unwrap();
                    }
                    let segment = "203.0.113.20 from 10.1.2.3 iif east ipproto tcp sport 4000 dport 80";
                    assert_eq!(has_route(segment), passes, "{unclaimed:?}, rp_filter {filter}");
                    assert_eq!(layer.strict_interfaces().unwrap().is_empty(), passes, "rp_filter {filter}");
                    assert!(has_route("203.0.113.21 from 10.1.2.3 iif east"), "another host");
                }
                assert_eq!(layer.refuses_strict_filters(), unclaimed == Unclaimed::Accept);
            }
        },
    );
}

#[test]
fn each_intercept_of_a_host_has_its_own_rules() {
    in_namespace("routing::each_intercept_of_a_host_has_its_own_rules", &[], || {
        forwarding_host();
        // As version 0.1 made them, and one of another program.
        let old = ["rule", "add", "pref", "74", "from", "203.0.113.20", "ipproto", "tcp", "sport", "80"];
        run("ip", &[&old[..], &["blackhole", "protocol", "kernel"]].concat());
        run("ip", &["rule", "add", "pref", "74", "from", "192.0.2.77", "blackhole"]);
        let first = assistant_example();
        let second = AssistantSpec {
            table: TableName::new("second").unwrap(),
            targets: vec!["203.0.113.30:80".parse().unwrap()],
            ..first.clone()
        };
        put(&second);
        assert!(run("ip", &["rule"]).contains("sport 80"), "the old rule is not of the second one");
        put(&first);
        assert!(!run("ip", &["rule"]).contains("sport 80"), "the new rules are in place of the old one");
        Backstop::new(&second).check().unwrap();
        assert!(Backstop::remove(&second.table).unwrap());
        Backstop::new(&first).check().unwrap();
        assert!(has_route("10.1.2.3 from 203.0.113.30 iif west"));
        assert!(!has_route("10.1.2.3 from 203.0.113.20 iif west"));
        assert!(run("ip", &["rule"]).contains("from 192.0.2.77"), "the rule of others");
    });
}

#[test]
fn every_edit_is_noticed_and_mended() {
    in_namespace("routing::every_edit_is_noticed_and_mended", &[], || {
        forwarding_host();
        let clients = ["10.0.0.0/8", "2001:db8:9::/48"].map(|prefix| prefix.parse().unwrap()).to_vec();
        let assistant = assistant_example();
        let on_target = AssistantSpec { place: Place::Target, ..assistant.clone() };
        let to_clients = AssistantSpec { clients, ..on_target.clone() };
        for spec in [assistant, on_target, to_clients] {
            let layer = put(&spec);
            let sink = sink();
            let table = table();
            let mut edits = vec![
                format!("ip link del {sink}"),
                format!("ip link set {sink} down"),
                format!("ip link set {sink} mtu 1000"),
                format!("ip route flush table {table}"),
                format!("ip -6 route flush table {table}"),
                format!("ip route del default table {table}"),
                format!("ip route replace default dev {sink} table {table} mtu 999"),
                format!("ip rule del table {table}"),
                format!("ip -6 rule del table {table}"),
                format!("ip -6 rule del pref 74 table {table}"),
                format!("ip rule del pref 75 table {table}"),
                format!("ip rule del pref 76 table {table}"),
                format!("ip rule del pref 74 table {table}"),
                "ip rule flush; ip rule add pref 32766 table main".to_owned(),
                "ip -6 rule flush; ip -6 rule add pref 32766 table main".to_owned(),
                format!("while ip rule del table {table} 2>/dev/null; do :; done"),
            ];
            if spec.place == Place::Target {
                edits.push("ip link set east mtu 1400".to_owned());
            }
            for edit in edits {
                run("sh", &["-c", &edit]);
                assert!(layer.check().is_err(), "{edit}: not noticed");
                assert!(!layer.put().unwrap().is_empty(), "{edit}: nothing was restored");
                layer.check().unwrap_or_else(|error| panic!("{edit}: {error}"));
            }
            run("ip", &["link", "set", "east", "mtu", "1500"]);
            Backstop::remove(&spec.table).unwrap();
        }
    });
}

/// The device of the example's intercept.
fn sink() -> String {
    let commands = Backstop::commands_to_remove(&TableName::intercept());
    commands.iter().find_map(|command| command.strip_prefix("ip link del ")).unwrap().to_owned()
}

/// The number that tells its rules.
fn table() -> String {
    let commands = Backstop::commands_to_remove(&TableName::intercept());
    let rest = commands.iter().find_map(|command| command.strip_prefix("while ip rule del table ")).unwrap();
    rest.split(' ').next().unwrap().to_owned()
}

#[test]
fn the_printed_commands_add_and_remove_the_layer_without_our_programs() {
    in_namespace("routing::the_printed_commands_add_and_remove_the_layer_without_our_programs", &[], || {
        forwarding_host();
        let before = tables_of_rules();
        for place in [Place::Assistant, Place::Target] {
            let spec = AssistantSpec { place, ..assistant_example() };
            let layer = Backstop::new(&spec);
            for command in layer.commands_to_add() {
                // This kernel may have no dummy devices.
                run("sh", &["-c", &format!("{command} || {}", command.replace("dummy", "ifb"))]);
            }
            layer.check().unwrap();
            for command in Backstop::commands_to_remove(&spec.table) {
                let _ = Command::new("sh").args(["-c", &command]).output().unwrap();
            }
            assert_eq!(tables_of_rules(), before);
            assert!(!run("ip", &["link"]).contains("intercept-"));
        }
    });
}

#[test]
fn what_comes_before_our_rules_is_named() {
    in_namespace("routing::what_comes_before_our_rules_is_named", &[], || {
        forwarding_host();
        let assistant = assistant_example();
        let on_target = AssistantSpec { place: Place::Target, ..assistant.clone() };
        for (spec, rule, shadows) in [
            (&assistant, "pref 10 table main", true),
            (&assistant, "pref 10 from 203.0.113.0/24 table 99", true),
            (&assistant, "pref 74 from 203.0.113.20 table main", true),
            (&assistant, "pref 10 from 203.0.113.128/25 table main", false),
            (&assistant, "pref 10 iif lo table main", false),
            (&assistant, "pref 10 fwmark 7 table main", false),
            (&assistant, "pref 77 from 203.0.113.20 table main", false),
            (&on_target, "pref 10 iif east table main", false),
            (&on_target, "pref 10 from 203.0.113.20 table main", true),
            (&on_target, "pref 10 from 203.0.113.20 ipproto udp table main", false),
        ] {
            let arguments = |verb| ["rule", verb].into_iter().chain(rule.split(' ')).collect::<Vec<_>>();
            run("ip", &arguments("add"));
            let put = Backstop::new(spec).put();
            assert_eq!(matches!(put, Err(BackstopError::Shadowed(_))), shadows, "{rule}: {put:?}");
            if let Err(error) = put {
                let (_, named) = rule.split_once(' ').unwrap();
                assert!(error.to_string().contains(named.split(' ').next().unwrap()), "{error}");
            }
            run("ip", &arguments("del"));
            Backstop::new(spec).check().unwrap();
            Backstop::remove(&spec.table).unwrap();
        }
    });
}

/// A connection's largest segment comes from the route, so the device must not change it.
#[test]
fn responses_are_swallowed_with_the_real_routes_mtu() {
    in_namespace("routing::responses_are_swallowed_with_the_real_routes_mtu", &[], || {
        forwarding_host();
        run("ip", &["link", "set", "east", "mtu", "9000"]);
        run("ip", &["link", "set", "west", "mtu", "9000"]);
        run("ip", &["address", "add", "203.0.113.20/32", "dev", "west"]);
        run("ip", &["route", "add", "10.7.0.0/16", "via", "198.51.100.2", "mtu", "1300"]);
        put(&AssistantSpec { place: Place::Target, ..assistant_example() });
        let route = |to: &str, port: u16| {
            run(
                "ip",
                &["route", "get", to, "from", "203.0.113.20", "ipproto", "tcp", "sport", &port.to_string()],
            )
        };
        let sink = format!("dev {}", sink());
        for (to, mtu) in [("10.1.2.3", "mtu 9000"), ("10.7.1.1", "mtu 1300"), ("203.0.113.77", "mtu 9000")] {
            let response = route(to, 80);
            assert!(response.contains(&sink) && response.contains(mtu), "{response}");
            assert!(!route(to, 81).contains(&sink), "another service");
        }
        assert!(
            run(
                "ip",
                &["route", "get", "203.0.113.1", "from", "203.0.113.20", "ipproto", "tcp", "sport", "80"]
            )
            .contains("local"),
            "this host itself"
        );
        // Without the device, they are dropped rather than sent.
        run("sh", &["-c", &format!("ip link del {}", sink.trim_start_matches("dev "))]);
        assert!(!has_route("10.1.2.3 from 203.0.113.20 ipproto tcp sport 80"));
        assert!(has_route("10.1.2.3 from 203.0.113.20 ipproto tcp sport 81"));
    });
}

#[test]
fn strict_filters_count_where_they_would_drop_clients() {
    in_namespace("routing::strict_filters_count_where_they_would_drop_clients", &[], || {
        forwarding_host();
        let set = |interface: &str, value: &str| {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), value).unwrap();
        };
        let clients = ["10.0.0.0/8", "2001:db8:9::/48"].map(|prefix| prefix.parse().unwrap()).to_vec();
        let assistant = assistant_example();
        let by_port = AssistantSpec { place: Place::Target, ..assistant.clone() };
        let by_address = AssistantSpec { clients, ..by_port.clone() };
        let strict = |spec: &AssistantSpec| Backstop::new(spec).strict_interfaces().unwrap();
        set("all", "0");
        set("west", "0");
        set("east", "1");
        assert_eq!(strict(&by_address), ["east"]);
        assert_eq!(strict(&by_port), Vec::<String>::new());
        assert_eq!(strict(&assistant), ["east"], "this host forwards");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        set("east", "1");
        assert_eq!(strict(&assistant), Vec::<String>::new());
        // Now the kernel looks at the ports of all packets.
        run("ip", &["rule", "add", "pref", "200", "ipproto", "tcp", "dport", "22", "table", "main"]);
        assert_eq!(strict(&by_port), ["east"]);
        for (all, expected) in [("1", vec!["east", "west"]), ("2", vec![])] {
            set("all", all);
            let mut names = strict(&by_address);
            names.sort();
            assert_eq!(names, expected, "all {all}");
        }
    });
}
