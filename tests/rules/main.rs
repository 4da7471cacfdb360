//! The nft rules: templates against the printer, and the printer and the batch against a real kernel.
//!
//! Tests that need the kernel run again in a network namespace of their own (`unshare -n`), which ends with them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod claimed;
mod closed;
mod content;
mod errors;
mod nat;
mod routing;
mod selection;
mod support;
mod traffic;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tcpcopy::netfilter::{
    AssistantSpec, Capture, Chain, Change, End, Families, Family, Hook, InstallError, Installed, Match,
    OnlineSpec, Place, Presence, QueueKind, Queues, Rule, RulesWatch, Ruleset, Statement, Table, TableName,
    Unclaimed, assistant, online, present, remove_table,
};
use tcpcopy::wire::flow::SHARES;
use tcpcopy::wire::{self, Prefix};

use support::{embedded_example, in_namespace, make_sink, nft_load, online_example, run};

/// The example that `nftables/assistant.nft` documents.
pub(crate) fn assistant_example() -> AssistantSpec {
    AssistantSpec {
        table: TableName::intercept(),
        targets: vec!["203.0.113.20:80".parse().unwrap(), "[2001:db8::20]:80".parse().unwrap()],
        clients: Vec::new(),
        pass: Vec::new(),
        tunnel_port: 36524,
        queues: Queues::new(36540, 2),
        unclaimed: Unclaimed::Drop,
        accept_mark: 0x7463_7079,
        place: Place::Assistant,
    }
}

/// The example that `nftables/on-target.nft` documents.
fn on_target_example() -> AssistantSpec {
    let clients = ["10.99.0.0/24", "fd00:99::/64"].map(|prefix| prefix.parse().unwrap()).to_vec();
    AssistantSpec { clients, place: Place::Target, ..assistant_example() }
}

#[test]
fn templates_say_what_the_code_installs() {
    let without_comments = |text: &str| -> String {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        lines.flat_map(|line| [line, "\n"]).collect()
    };
    for (template, ruleset) in [
        (include_str!("../../nftables/online.nft"), online(&online_example())),
        (include_str!("../../nftables/embedded.nft"), online(&embedded_example())),
        (include_str!("../../nftables/assistant.nft"), assistant(&assistant_example())),
        (include_str!("../../nftables/on-target.nft"), assistant(&on_target_example())),
    ] {
        assert_eq!(without_comments(template).trim(), ruleset.to_string().trim());
    }
}

#[test]
fn rules_without_the_set_do_the_rest() {
    let spec = online_example();
    let without = OnlineSpec { handshake_acks: false, ..spec.clone() };
    assert_eq!(online(&spec).without_sets(), online(&without));
    assert_eq!(online(&without).without_sets(), online(&without));
}

#[test]
fn families_without_anything_to_match_get_no_table() {
    let families =
        |spec: &OnlineSpec| -> Vec<Family> { online(spec).tables.iter().map(|table| table.family).collect() };
    let mut spec = OnlineSpec { targets: Vec::new(), ..online_example() };
    assert_eq!(families(&spec), Family::ALL);
    spec.clients = vec![Prefix::new([10, 0, 0, 0].into(), 8).unwrap()];
    assert_eq!(families(&spec), [Family::Ip]);
    spec.clients.clear();
    spec.captures.remove(0);
    assert_eq!(families(&spec), [Family::Ip]);
    spec.families.v4 = false;
    assert_eq!(families(&spec), []);
    // ICMP errors about a target are dropped whatever is captured by other means.
    spec = OnlineSpec { captures: Vec::new(), ..online_example() };
    spec.targets.truncate(1);
    assert_eq!(families(&spec), [Family::Ip]);
}

#[test]
fn the_batch_installs_what_the_text_says() {
    in_namespace("the_batch_installs_what_the_text_says", &[], || {
        let sink = make_sink();
        let mut rulesets = Vec::new();
        for workers in [1, 4] {
            for (pure_acks, handshake_acks) in [(false, true), (false, false), (true, true)] {
                for clients in [vec![], client_prefixes()] {
                    let queues = Queues::new(36520, workers).unwrap();
                    let mut spec = online_example();
                    spec.captures.push(Capture { online: Some("2001:db8::10".parse().unwrap()), port: 443 });
                    let (share, rate) =
                        if workers > 1 { (100, NonZeroU32::new(50_000)) } else { (SHARES, None) };
                    rulesets.push(online(&OnlineSpec {
                        share,
                        max_packets_per_second: rate,
                        conntrack: workers > 1,
                        sink: sink.clone(),
                        queues,
                        pure_acks,
                        handshake_acks,
                        clients,
                        ..spec
                    }));
                }
            }
            let embedded = OnlineSpec { sink: sink.clone(), ..embedded_example() };
            let mut responses = embedded.responses.clone().unwrap();
            responses.queues = Queues::new(36530, workers).unwrap();
            rulesets.push(online(&OnlineSpec { responses: Some(responses), ..embedded }));
        }
        rulesets.extend(content::assistant_specs().iter().map(assistant));
        for ruleset in rulesets {
            let installed = Installed::install(&ruleset).unwrap();
            let kind = installed.queue_kind();
            let by_batch = listing(kind);
            assert_eq!(by_batch.contains("flags owner"), ruleset.owner, "{by_batch}");
            installed.remove().unwrap();
            assert_eq!(listing(kind), "");
            // nft resolves the text by itself; where the kernel has no queue expression, a verdict takes its place.
            nft_load(&match kind {
                QueueKind::Native => ruleset.to_string(),
                QueueKind::Compat => replace_queues(&ruleset.to_string()),
            });
            let by_text = listing(kind);
            assert_eq!(by_batch.replace("\tflags owner\n", ""), by_text, "\n{ruleset}");
            // What nft makes of the text is what the batch makes, expression by expression.
            let by_hand = Ruleset { owner: false, ..ruleset.clone() };
            let by_hand = match kind {
                QueueKind::Native => by_hand,
                QueueKind::Compat => without_queues(by_hand),
            };
            nft_load(&by_hand.to_string());
            assert_eq!(present(&by_hand).unwrap(), Presence::Complete, "\n{ruleset}");
            nft_load("flush ruleset");
        }
    });
}

fn client_prefixes() -> Vec<Prefix> {
    let prefixes =
        [("10.0.0.0", 8), ("10.1.0.0", 20), ("192.0.2.7", 32), ("2001:db8::", 45), ("2001:db8:1::", 48)];
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

/// The ruleset with a verdict in the place of each queue, for nft where the kernel has no queue expression.
fn without_queues(mut ruleset: Ruleset) -> Ruleset {
    for chain in ruleset.tables.iter_mut().flat_map(|table| &mut table.chains) {
        for statement in chain.rules.iter_mut().flat_map(|rule| &mut rule.statements) {
            if matches!(statement, Statement::Queue(_)) {
                *statement = Statement::Drop;
            }
        }
    }
    ruleset
}

fn replace_queues(text: &str) -> String {
    let line = |line: &str| match line.find(" queue num ") {
        Some(at) => format!("{} continue\n", &line[..at]),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn owned_rules_are_replaced_and_go_with_their_owner() {
    in_namespace("owned_rules_are_replaced_and_go_with_their_owner", &[], || {
        let spec = OnlineSpec { sink: make_sink(), ..online_example() };
        let ruleset = online(&spec);
        nft_load("table ip tcpcopy { chain leftover { }; }");
        let mut installed = Installed::install(&ruleset).unwrap();
        assert_eq!(installed.check().unwrap(), Presence::Complete);
        assert_eq!(present(&ruleset).unwrap(), Presence::Complete);

        // Nobody else can install, remove or flush them.
        let second = Installed::install(&ruleset).err().unwrap();
        assert!(matches!(second, InstallError::Owned { family: Family::Ip, .. }), "{second}");
        let removed = remove_table(&ruleset.name).err().unwrap();
        assert!(matches!(removed, InstallError::Owned { .. }), "{removed}");
        run("nft", &["flush", "ruleset"]);
        assert_eq!(installed.check().unwrap(), Presence::Complete);

        // The next ruleset has no IPv6, and so no IPv6 table any more.
        installed
            .replace(&online(&OnlineSpec { families: Families { v4: true, v6: false }, ..spec }))
            .unwrap();
        assert_eq!(run("nft", &["list", "tables"]), "table ip tcpcopy\n");
        assert_ne!(present(&ruleset).unwrap(), Presence::Complete);

        // A child that is still running does not keep the socket.
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        drop(installed);
        let left = run("nft", &["list", "tables"]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(left, "");
    });
}

#[test]
fn changes_are_noticed_and_put_right() {
    in_namespace("changes_are_noticed_and_put_right", &[], || {
        let ruleset = assistant(&assistant_example());
        let mut watch = RulesWatch::open(ruleset.name.clone()).unwrap();
        let mut installed = Installed::install(&ruleset).unwrap();
        assert_eq!(watch.drain().unwrap(), Change::Touched);

        run("nft", &["add", "table", "ip", "other"]);
        assert_eq!(watch.drain().unwrap(), Change::None);

        for change in [
            &["flush", "ruleset"][..],
            &["flush", "table", "ip", "intercept"],
            &["delete", "table", "ip6", "intercept"],
            &["insert", "rule", "ip", "intercept", "blackhole", "accept"],
            &["add", "chain", "ip", "intercept", "more"],
            &["add", "set", "ip", "intercept", "more", "{ type inet_service; }"],
            &["add", "table", "ip", "intercept", "{ flags dormant; }"],
        ] {
            run("nft", change);
            assert_eq!(watch.drain().unwrap(), Change::Touched, "{change:?}");
            assert_ne!(installed.check().unwrap(), Presence::Complete, "{change:?}");
            installed.restore().unwrap();
            assert_eq!(installed.check().unwrap(), Presence::Complete, "{change:?}");
            assert_eq!(watch.drain().unwrap(), Change::Touched);
            assert_eq!(watch.drain().unwrap(), Change::None);
        }

        // They outlive the process, and the next one takes their place.
        drop(installed);
        assert_eq!(present(&ruleset).unwrap(), Presence::Complete);
        drop(Installed::install(&ruleset).unwrap());
        assert_eq!(present(&ruleset).unwrap(), Presence::Complete);
        assert_eq!(remove_table(&ruleset.name).unwrap(), Family::ALL);
        assert_eq!(remove_table(&ruleset.name).unwrap(), []);
    });
}

#[test]
fn a_lack_of_permission_is_told() {
    let unprivileged = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"];
    in_namespace("a_lack_of_permission_is_told", &unprivileged, || {
        let ruleset = assistant(&assistant_example());
        let error = Installed::install(&ruleset).err().unwrap();
        assert!(matches!(error, InstallError::Permission), "{error:?}");
        let error = remove_table(&ruleset.name).err().unwrap();
        assert!(matches!(error, InstallError::Permission), "{error:?}");
    });
}

/// For many flows, one at a time, the rule that counts a flow's SYN is the one of the worker that `split` says.
#[test]
fn the_kernel_splits_flows_as_we_do() {
    in_namespace("the_kernel_splits_flows_as_we_do", &[], || {
        const MODULI: [u16; 5] = [2, 3, 4, 7, 64];
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["address", "add", "2001:db8::77:1", "dev", "lo", "nodad"]);
        let closed = 9;
        let by_worker = |(workers, index)| Rule {
            matches: vec![Match::TcpDport(closed), Match::Worker { client: End::Source, index, workers }],
            statements: vec![Statement::Counter],
        };
        let pairs = MODULI.into_iter().flat_map(|workers| (0..workers).map(move |index| (workers, index)));
        let rules: Vec<Rule> = pairs.clone().map(by_worker).collect();
        let tables = Family::ALL.map(|family| {
            let chain = Chain { name: "split", hook: Hook::Output, priority: 0, rules: rules.clone() };
            Table { family, sets: Vec::new(), chains: vec![chain] }
        });
        let ruleset =
            Ruleset { name: TableName::new("split").unwrap(), owner: false, tables: tables.to_vec() };
        let _installed = Installed::install(&ruleset).unwrap();

        let mut expected = vec![0; rules.len()];
        let addresses = ["127.0.0.1", "127.9.200.33", "::1", "2001:db8::77:1"];
        for address in addresses.map(|text| text.parse::<IpAddr>().unwrap()) {
            let family = Family::of(address);
            expected.fill(0);
            let before = rule_packets(family);
            for port in (0..40).map(|step| 20_001 + 977 * step) {
                let client = SocketAddr::new(address, port);
                let socket = Socket::new(Domain::for_address(client), Type::STREAM, None).unwrap();
                socket.bind(&client.into()).unwrap();
                // Refused; the SYN is all that matters.
                socket.connect(&SocketAddr::new(address, closed).into()).unwrap_err();
                for (count, (workers, index)) in expected.iter_mut().zip(pairs.clone()) {
                    *count += u64::from(wire::flow::split(client, workers) == index);
                }
                if port % 5 == 0 {
                    let counted = rule_packets(family);
                    let since: Vec<u64> = counted.iter().zip(&before).map(|(now, then)| now - then).collect();
                    assert_eq!(since, expected, "{client}");
                }
            }
            let used = expected[..6 + 3].iter().filter(|count| **count > 0).count();
            assert_eq!(used, 9, "40 flows reach every one of 2, 3 and 4 workers: {expected:?}");
        }
    });
}

fn rule_packets(family: Family) -> Vec<u64> {
    let listed = run("nft", &["list", "chain", family.name(), "split", "split"]);
    let packets = |line: &str| line.split_once("counter packets ")?.1.split(' ').next()?.parse().ok();
    listed.lines().filter_map(packets).collect()
}

/// The black hole: without a listener nothing passes; with one, only what it accepts with the mark.
#[test]
fn only_marked_responses_pass_the_black_hole() {
    in_namespace("only_marked_responses_pass_the_black_hole", &[], || {
        run("ip", &["link", "set", "lo", "up"]);
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap();
        let mut spec = AssistantSpec { targets: vec![target], ..assistant_example() };
        spec.unclaimed = Unclaimed::Accept;
        spec.queues = Queues::new(36540, 1);
        let installed = Installed::install(&assistant(&spec)).unwrap();
        assert!(!answers(target, None), "without a listener");
        let mut queue = nfq::Queue::open().unwrap();
        queue.bind(36540).unwrap();
        queue.set_nonblocking(true);
        assert!(!answers(target, Some((&mut queue, 0))), "accepted without the mark");
        assert!(answers(target, Some((&mut queue, spec.accept_mark))), "accepted with the mark");
        drop(queue);
        // On the target, what it answers itself is let alone: nobody listens to the queue.
        installed.remove().unwrap();
        Installed::install(&assistant(&AssistantSpec { place: Place::Target, ..spec })).unwrap();
        assert!(answers(target, None), "a health check on the target");
    });
}

/// Whether a SYN is answered, while a listener, if any, accepts all responses with a mark.
fn answers(target: SocketAddr, mut listener: Option<(&mut nfq::Queue, u32)>) -> bool {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    client.set_nonblocking(true).unwrap();
    client.connect(&target.into()).unwrap_err();
    let mut seen = 0;
    // A response passes within the system call of the verdict. Two of them, the second one a retransmission, leave no
    // doubt that the first did not pass.
    let deadline = Instant::now() + Duration::from_secs(if listener.is_some() { 5 } else { 1 });
    while Instant::now() < deadline && seen < 2 {
        if let Some((queue, mark)) = &mut listener
            && let Ok(mut message) = queue.recv()
        {
            seen += 1;
            message.set_nfmark(*mark);
            message.set_verdict(nfq::Verdict::Accept);
            queue.verdict(message).unwrap();
        }
        if client.peer_addr().is_ok() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// More than libnftnl puts in a page, and more acknowledgements than a default receive buffer holds.
#[test]
fn a_large_ruleset_is_one_transaction() {
    in_namespace("a_large_ruleset_is_one_transaction", &[], || {
        let captures = (1..=40).map(|port| Capture { online: None, port }).collect();
        let clients = (0..40).map(|net| Prefix::new([10, net, 0, 0].into(), 16).unwrap()).collect();
        let ruleset = online(&OnlineSpec { captures, clients, sink: make_sink(), ..online_example() });
        let mut installed = Installed::install(&ruleset).unwrap();
        installed.replace(&ruleset).unwrap();
        assert_eq!(installed.check().unwrap(), Presence::Complete);
    });
}
