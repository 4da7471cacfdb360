//! Both layers of a running intercept are restored within a second of any edit, and the journal names the edit.

use std::process::Command;
use std::time::{Duration, Instant};

use super::namespace::{run, sh};
use super::systemd::{Journal, Manager, Service};
use super::{INTERCEPT, assert_has, configure, site};
use tcpcopy::daemon::message_id;

/// What the issue of safety allows.
const RESTORED_WITHIN: Duration = Duration::from_secs(1);

/// The intercept's routing: the number that tells its rules, and its device.
fn routing() -> (String, String) {
    let commands =
        tcpcopy::netfilter::Backstop::commands_to_remove(&tcpcopy::netfilter::TableName::intercept());
    let find = |prefix: &str| {
        let rest = commands.iter().find_map(|command| command.strip_prefix(prefix)).expect("a command");
        rest.split(' ').next().expect("a word").to_owned()
    };
    (find("while ip rule del table "), find("ip link del "))
}

/// All that keeps the host closed, as the tools print it. The order of rules of equal priority does not matter.
fn state() -> Vec<String> {
    let (table, device) = routing();
    let mut lines = Vec::new();
    for arguments in [
        "nft -s list ruleset".to_owned(),
        "ip rule".to_owned(),
        "ip -6 rule".to_owned(),
        format!("ip route show table {table}"),
        format!("ip -6 route show table {table}"),
    ] {
        let output = Command::new("sh").args(["-c", &arguments]).output().expect("a shell");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        lines.extend(text.lines().map(|line| format!("{arguments}: {}", line.trim())));
    }
    let link = Command::new("ip").args(["-o", "link", "show", &device]).output().expect("ip");
    let link = String::from_utf8_lossy(&link.stdout).into_owned();
    // Its index and address change when it is made anew.
    lines.push(format!("up: {}, mtu: {}", link.contains(",UP"), link.contains("mtu 65535")));
    lines.sort();
    lines
}

fn edits() -> Vec<String> {
    let (table, device) = routing();
    let mut edits = vec![
        "nft flush ruleset".to_owned(),
        "nft delete table ip intercept".to_owned(),
        "nft flush chain ip intercept blackhole".to_owned(),
        format!("ip rule del table {table}"),
        format!("ip -6 rule del table {table}"),
        "ip rule flush; ip rule add pref 32766 table main; ip rule add pref 32767 table default".to_owned(),
        format!("ip link del {device}"),
        format!("ip link set {device} down"),
        format!("ip link set {device} mtu 1400"),
        format!("ip route flush table {table}"),
        format!("ip -6 route flush table {table}"),
        format!("ip route del default table {table}"),
        format!("ip route replace default dev nowhere table {table}"),
        format!("nft flush ruleset; sleep 0.2; while ip rule del table {table} 2>/dev/null; do :; done"),
    ];
    edits.extend([74, 75, 76].map(|priority| format!("ip rule del pref {priority} table {table}")));
    edits
}

fn restores_every_edit(journal: &Journal, manager: &Manager, configuration: &str) {
    sh("ip -6 address add fd00:9::1/64 dev nowhere nodad");
    configure("intercept", configuration);
    let intercept = Service::start(INTERCEPT, &["--config", "/run/intercept.toml"], &[]);
    journal.wait_for(message_id::READY);
    let before = state();
    for edit in edits() {
        run("sh", &["-c", &edit]);
        let edited = Instant::now();
        loop {
            let looked = edited.elapsed();
            let now = state();
            if now == before {
                break;
            }
            let lost: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
            let new: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
            assert!(looked < RESTORED_WITHIN, "{edit}: lost {lost:#?}, new {new:#?}");
        }
        let back = journal.wait_for(message_id::RULES_BACK);
        journal.discard();
        manager.discard();
        assert!(back.value("WHAT").is_some_and(|what| !what.is_empty()), "{edit}: {back:?}");
    }
    assert_eq!(intercept.stop(), Some(0));
    assert_eq!(state(), before, "it stays closed");
}

const TARGETS: &str = "target = ['10.9.0.9:80', '[fd00:9::9]:80']\nbind = '127.0.0.1'\nworkers = 1\n";

#[test]
fn edits_on_an_assistant_are_undone_within_a_second() {
    site("edits::edits_on_an_assistant_are_undone_within_a_second", |journal, manager| {
        restores_every_edit(journal, manager, TARGETS);
    });
}

#[test]
fn edits_on_the_target_are_undone_within_a_second() {
    site("edits::edits_on_the_target_are_undone_within_a_second", |journal, manager| {
        sh("ip address add 10.9.0.9/32 dev nowhere");
        sh("ip -6 address add fd00:9::9/64 dev nowhere nodad");
        restores_every_edit(journal, manager, &format!("{TARGETS}on-target = true\n"));
    });
}

/// While a layer cannot be restored, the host counts as open, and the log says why and what to do.
#[test]
fn what_cannot_be_restored_is_named_until_it_is() {
    site("edits::what_cannot_be_restored_is_named_until_it_is", |journal, manager| {
        configure("intercept", TARGETS);
        let environment = [("WATCHDOG_USEC", "2000000")];
        let intercept = Service::start(INTERCEPT, &["--config", "/run/intercept.toml"], &environment);
        journal.wait_for(message_id::READY);
        sh("ip rule add pref 10 from 10.9.0.0/24 table main");
        let missing = journal.wait_for(message_id::RULES_MISSING);
        assert_has(&missing, &[("PRIORITY", "3")]);
        let reason = missing.value("REASON").expect("a reason").to_owned();
        assert!(reason.contains("pref 10 from 10.9.0.0/24") && reason.contains("priority above"), "{reason}");
        assert!(manager.wait_for("STATUS=0 tunnels, 0 flows, 0 responses/s; OPEN").contains("pref 10"));
        sh("ip rule del pref 10");
        journal.wait_for(message_id::RULES_BACK);
        manager.wait_for("STATUS=0 tunnels, 0 flows, 0 responses/s; rules closed");

        // Another device has the name.
        let (_, device) = routing();
        let swap =
            format!("until ip link set other name {device}; do ip link del {device}; done 2>/dev/null");
        run("sh", &["-c", &format!("ip link add other type veth peer name another; {swap}")]);
        let missing = journal.wait_for(message_id::RULES_MISSING);
        let reason = missing.value("REASON").expect("a reason").to_owned();
        assert!(reason.contains(&format!("ip link del {device}")), "{reason}");
        sh(&format!("ip link del {device}"));
        journal.wait_for(message_id::RULES_BACK);
        assert_eq!(intercept.stop(), Some(0));
    });
}

/// A reload that leaves out a target or clients opens nothing; one that is wrong changes nothing.
#[test]
fn a_reload_opens_nothing() {
    site("edits::a_reload_opens_nothing", |journal, manager| {
        let with = |targets: &str, clients: &str| {
            configure(
                "intercept",
                &format!("target = [{targets}]\nclients = [{clients}]\nbind = '127.0.0.1'\n"),
            );
        };
        with("'10.9.0.9:80', '10.9.0.8:80'", "'10.99.0.0/24'");
        let intercept = Service::start(INTERCEPT, &["--config", "/run/intercept.toml"], &[]);
        journal.wait_for(message_id::READY);
        let before = state();
        with("", "");
        let reload = || {
            intercept.reload();
            manager.wait_for("RELOADING=1");
            manager.wait_for("READY=1");
        };
        reload();
        journal.wait_for(message_id::CONFIG_REJECTED);
        assert_eq!(state(), before);
        for (targets, clients, keys) in [
            ("'10.9.0.8:80'", "'10.99.0.0/24'", "target"),
            ("'10.9.0.9:80', '10.9.0.8:80'", "'10.98.0.0/24'", "clients"),
            ("'10.9.0.7:80'", "'10.99.0.0/25'", "target clients"),
        ] {
            eprintln!("DBG {targets} {clients}");
            with(targets, clients);
            reload();
            assert_has(&journal.wait_for(message_id::RESTART_NEEDED), &[("KEYS", keys)]);
            journal.wait_for(message_id::CONFIG_RELOADED);
            let now = state();
            for line in before.iter().filter(|line| line.contains("drop") || line.contains("ip rule")) {
                assert!(now.contains(line), "after {targets} and {clients}: {line} is missing");
            }
        }
        assert!(state().iter().any(|line| line.contains("10.9.0.7")), "what is new is closed as well");
        assert_eq!(intercept.stop(), Some(0));
        let intercept = Service::start(INTERCEPT, &["--config", "/run/intercept.toml"], &[]);
        journal.wait_for(message_id::READY);
        let now = state();
        assert!(!now.iter().any(|line| line.contains("10.9.0.9")), "{now:#?}");
        assert_eq!(intercept.stop(), Some(0));
    });
}

/// What `rules show` prints is what `rules load` does, and an intercept with manual rules takes it for complete.
#[test]
fn shown_rules_are_those_that_are_loaded() {
    site("edits::shown_rules_are_those_that_are_loaded", |journal, manager| {
        configure("intercept", TARGETS);
        run(INTERCEPT, &["rules", "load", "--config", "/run/intercept.toml"]);
        let loaded = state();
        let shown = run(INTERCEPT, &["rules", "show", "--config", "/run/intercept.toml"]);
        let (rules, commands) = shown.split_once("# The second layer.").expect("two layers");
        assert!(rules.contains("table ip intercept") && rules.contains("table ip6 intercept"), "{rules}");
        let (to_add, to_remove) = commands.split_once("# What removes both.").expect("commands that remove");
        let commands = |text: &str| -> Vec<String> {
            text.lines().filter_map(|line| line.strip_prefix("# ")).map(str::to_owned).collect()
        };
        for command in commands(to_remove).iter().filter(|command| !command.starts_with("nft ")) {
            let _ = Command::new("sh").args(["-c", command]).output().expect("a shell");
        }
        let routing_is_gone = |lines: &[String]| !lines.iter().any(|line| line.contains("ip rule: 7"));
        assert!(routing_is_gone(&state()) && !routing_is_gone(&loaded));
        for command in commands(to_add) {
            // This kernel may have no dummy devices.
            run("sh", &["-c", &format!("{command} || {}", command.replace("dummy", "ifb"))]);
        }
        assert_eq!(state(), loaded);
        configure("intercept", &format!("{TARGETS}rules = 'manual'\n"));
        let environment = [("WATCHDOG_USEC", "2000000")];
        let intercept = Service::start(INTERCEPT, &["--config", "/run/intercept.toml"], &environment);
        journal.wait_for(message_id::READY);
        manager.wait_for("STATUS=0 tunnels, 0 flows, 0 responses/s; rules closed");
        assert_eq!(intercept.stop(), Some(0));
        assert_eq!(state(), loaded, "manual: nothing is changed");
    });
}

/// The port of the tunnel can be held by the service manager.
#[test]
fn the_port_is_taken_over_from_the_service_manager() {
    site("edits::the_port_is_taken_over_from_the_service_manager", |journal, _| {
        let activate = "/usr/bin/systemd-socket-activate";
        if !std::path::Path::new(activate).exists() {
            eprintln!("skipped: {activate} is missing");
            return;
        }
        for (listen, bind, address) in [
            ("[::]:36524", "127.0.0.1", "127.0.0.1:36524"),
            ("127.0.0.1:36524", "127.0.0.1", "127.0.0.1:36524"),
            ("[::]:36525", "127.0.0.1", "127.0.0.1:36524"),
        ] {
            configure("intercept", &format!("target = ['10.9.0.9:80']\nbind = '{bind}'\nworkers = 1\n"));
            let passed = ["-E", "NOTIFY_SOCKET", "-E", "JOURNAL_STREAM"];
            let arguments =
                [&passed[..], &["--listen", listen, INTERCEPT, "--config", "/run/intercept.toml"]].concat();
            let environment = [("PATH", "/usr/bin:/bin")];
            let intercept = Service::start(activate, &arguments, &environment);
            // The first connection starts it.
            let port = listen.rsplit(':').next().expect("a port");
            // A connection to a port that is not open yet could meet itself.
            let deadline = Instant::now() + Duration::from_secs(10);
            while !run("ss", &["-Hltn"]).contains(&format!(":{port} ")) {
                assert!(Instant::now() < deadline, "{activate} does not listen");
            }
            let first = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).expect("it listens");
            assert_has(&journal.wait_for(message_id::READY), &[("LISTEN", address)]);
            drop(first);
            std::net::TcpStream::connect(address).expect("it listens");
            if listen == "[::]:36524" {
                // Not the address of the configuration: closed unread.
                let mut other = std::net::TcpStream::connect("10.9.0.1:36524").expect("the socket takes all");
                other.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
                assert_eq!(std::io::Read::read(&mut other, &mut [0]).expect("the end"), 0);
            }
            assert_eq!(intercept.stop(), Some(0));
        }
    });
}
