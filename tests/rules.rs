//! The nft rules: templates against the printer, and the printer and the batch against a real kernel.
//!
//! Tests that need the kernel run again in a network namespace of their own (`unshare -n`), which ends with them.


use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tcpcopy::netfilter::{
    AssistantSpec, Capture, Chain, Change, Device, End, Families, Family, Hook, InstallError, Installed, Match,
    OnlineSpec, Place, Prefix, Presence, QueueKind, Queues, Rule, Ruleset, RulesWatch, Statement, Table, TableName,
    Unclaimed, assistant, online, present, remove_table,
};
use tcpcopy::wire;

/// The example that `nftables/online.nft` documents.
fn online_example() -> OnlineSpec {
    OnlineSpec {
        table: TableName::tcpcopy(),
        captures: vec![
            Capture { online: None, port: 80 },
            Capture { online: Some([198, 51, 100, 10].into()), port: 443 },
        ],
        clients: Vec::new(),
        families: Families::BOTH,
        sink: Device { name: "tcpcopy0".to_owned(), index: 7 },
        queues: Queues::new(36520, 2).unwrap(),
        mark: 0x7463_7079,
        pure_acks: false,
    }
}

/// The example that `nftables/assistant.nft` documents.
fn assistant_example() -> AssistantSpec {
    AssistantSpec {
        table: TableName::intercept(),
        targets: vec![
            "203.0.113.20:80".parse().unwrap(),
            "[2001:db8::20]:80".parse().unwrap(),
        ],
        queues: Queues::new(36540, 2).unwrap(),
        unclaimed: Unclaimed::Drop,
        accept_mark: 0x7463_7079,
        place: Place::Assistant,
    }
}

#[test]
fn templates_say_what_the_code_installs() {
    let without_comments = |text: &str| -> String {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        lines.map(|line| format!("{line}\n")).collect()
    };
    for (template, ruleset) in [
        (include_str!("../nftables/online.nft"), online(&online_example())),
        (include_str!("../nftables/assistant.nft"), assistant(&assistant_example())),
    ] {
        assert_eq!(without_comments(template).trim(), ruleset.to_string().trim());
    }
}

#[test]
fn families_without_anything_to_match_get_no_table() {
    let families = |spec: &OnlineSpec| -> Vec<Family> {
        online(spec).tables.iter().map(|table| table.family).collect()
    };
    let mut spec = online_example();
    assert_eq!(families(&spec), Family::ALL);
    spec.clients = vec![Prefix::new([10, 0, 0, 0].into(), 8).unwrap()];
    assert_eq!(families(&spec), [Family::Ip]);
    spec.clients.clear();
    spec.captures.remove(0);
    assert_eq!(families(&spec), [Family::Ip]);
    spec.families.v4 = false;
    assert_eq!(families(&spec), []);
}

#[test]
fn the_batch_installs_what_the_text_says() {
    in_namespace("the_batch_installs_what_the_text_says", &[], || {
        let sink = make_sink();
        let mut rulesets = Vec::new();
        for workers in [1, 4] {
            for pure_acks in [false, true] {
                for clients in [vec![], client_prefixes()] {
                    let queues = Queues::new(36520, workers).unwrap();
                    let mut spec = online_example();
                    spec.captures.push(Capture { online: Some("2001:db8::10".parse().unwrap()), port: 443 });
                    rulesets.push(online(&OnlineSpec { sink: sink.clone(), queues, pure_acks, clients, ..spec }));
                }
            }
            for unclaimed in [Unclaimed::Drop, Unclaimed::Accept] {
                for place in [Place::Assistant, Place::Target] {
                    let queues = Queues::new(36540, workers).unwrap();
                    rulesets.push(assistant(&AssistantSpec { queues, unclaimed, place, ..assistant_example() }));
                }
            }
        }
        for ruleset in rulesets {
            let installed = Installed::install(&ruleset).unwrap();
            let kind = installed.queue_kind();
            let by_batch = listing(kind);
            assert_eq!(by_batch.contains("flags owner"), ruleset.owner, "{by_batch}");
            installed.remove().unwrap();
            assert_eq!(listing(kind), "");
            // nft resolves the text by itself; where the kernel has no queue expression, a verdict takes its place.
            let text = ruleset.to_string();
            nft_load(&match kind {
                QueueKind::Native => text,
                QueueKind::Compat => replace_queues(&text),
            });
            let by_text = listing(kind);
            assert_eq!(by_batch.replace("\tflags owner\n", ""), by_text, "\n{ruleset}");
            nft_load("flush ruleset");
        }
    });
}

fn client_prefixes() -> Vec<Prefix> {
    let prefixes = [("10.0.0.0", 8), ("10.1.0.0", 20), ("192.0.2.7", 32), ("2001:db8::", 45), ("2001:db8:1::", 48)];
    prefixes.map(|(address, length)| Prefix::new(address.parse().unwrap(), length).unwrap()).to_vec()
}

/// The ruleset as nft lists it, without counters and the owner's name. A compat queue is listed as a target without
/// its number (or as nft's translation of it): both become the verdict that `replace_queues` puts in the text.
fn listing(kind: QueueKind) -> String {
    let listed = run("nft", &["-s", "list", "ruleset"]);
    let line = |line: &str| match (line.split_once(" # "), kind) {
        (Some((line, _comment)), _) => format!("{line}\n"),
        (None, QueueKind::Native) => format!("{line}\n"),
        (None, QueueKind::Compat) => {
            let queue = line.find(" xt target \"NFQUEUE\"").or_else(|| line.find(" queue "));
            queue.map_or(format!("{line}\n"), |at| format!("{} continue\n", &line[..at]))
        }
    };
    listed.lines().filter(|line| !line.is_empty()).map(line).collect()
}

fn replace_queues(text: &str) -> String {
    let line = |line: &str| match line.find(" queue num ") {
        Some(at) => format!("{} continue\n", &line[..at]),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Runs `body` in a network namespace of its own: runs this very test again, alone, there.
/// `wrap` is a command in front, for less privilege.
fn in_namespace(test: &str, wrap: &[&str], body: impl FnOnce()) {
    const INSIDE: &str = "TCPCOPY_TEST_IN_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return body();
    }
    let possible = Command::new("unshare").args(["-n", "nft", "list", "ruleset"]).stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {test} needs root, network namespaces (unshare) and nft");
        return;
    }
    let mut command = Command::new("unshare");
    command.arg("-n").args(wrap).arg(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "in the namespace:\n{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{test} is not the name of this test");
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn nft_load(text: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft refuses:\n{text}");
}

/// A sink for copies, as good as the daemon's.
fn make_sink() -> Device {
    let name = "tcpcopy0";
    let made = ["dummy", "ifb"].iter().any(|kind| {
        let arguments = ["link", "add", name, "type", kind];
        Command::new("ip").args(arguments).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    assert!(made, "the kernel has neither dummy nor ifb interfaces");
    run("ip", &["link", "set", name, "up"]);
    let listed = run("ip", &["-o", "link", "show", name]);
    let index = listed.split(':').next().unwrap().trim().parse().unwrap();
    Device { name: name.to_owned(), index }
}
