//! Rules are compared by content: whatever is changed about them is noticed.

#![expect(clippy::indexing_slicing, reason = "a mutation is at a place that was just counted")]
#![expect(clippy::wildcard_enum_match_arm, reason = "what has no mutation of its own is deleted and moved")]

use std::time::Duration;

use tcpcopy::netfilter::{
    AssistantSpec, Chain, Hook, Installed, Match, OnlineSpec, Place, Presence, Queues, Rule, Ruleset,
    Statement, Unclaimed, assistant, online, present, remove_table,
};
use tcpcopy::wire::{Pass, Prefix};

use crate::assistant_example;
use crate::support::{embedded_example, in_namespace, make_sink, online_example, run};

/// Intercept's rules in all their forms.
pub(crate) fn assistant_specs() -> Vec<AssistantSpec> {
    let passes: Vec<Pass> = [
        "udp dport 53",
        "tcp sport 22 dport 1000-1999 to 10.9.0.0/20",
        "sctp sport 5 dport 6",
        "to 10.9.0.0/16",
        "icmp",
        "icmpv6 from 2001:db8::20 to fd00:9::/45",
        "gre from 203.0.113.20",
        "to 0.0.0.0/0 udp sport 7",
    ]
    .map(|text| text.parse().unwrap())
    .to_vec();
    let clients = ["10.99.0.0/20", "198.51.100.7", "fd00:99::/61"].map(|text| text.parse().unwrap()).to_vec();
    let everybody = ["0.0.0.0/0", "::/0"].map(|text| text.parse().unwrap()).to_vec();
    let targets = vec![
        "203.0.113.20:80".parse().unwrap(),
        "203.0.113.20:443".parse().unwrap(),
        "203.0.113.21:80".parse().unwrap(),
        "[2001:db8::20]:80".parse().unwrap(),
    ];
    let mut specs = Vec::new();
    for place in [Place::Assistant, Place::Target] {
        for unclaimed in [Unclaimed::Drop, Unclaimed::Accept] {
            for (clients, pass) in [
                (Vec::new(), Vec::new()),
                (Vec::new(), passes.clone()),
                (clients.clone(), passes.clone()),
                (everybody.clone(), Vec::new()),
            ] {
                for queues in [Queues::new(36540, 1), Queues::new(36540, 3), None] {
                    let (targets, clients, pass) = (targets.clone(), clients.clone(), pass.clone());
                    let example = assistant_example();
                    specs.push(AssistantSpec { targets, clients, pass, queues, unclaimed, place, ..example });
                }
            }
        }
    }
    specs
}

/// So many changes of a ruleset are tried.
const MOST_CHANGES: usize = 25;

/// Everything that can be changed about a ruleset in one step, with what it is.
fn mutations(ruleset: &Ruleset) -> Vec<(String, Ruleset)> {
    let mut mutations = Vec::new();
    for (t, table) in ruleset.tables.iter().enumerate() {
        let mut change = |what: String, edit: &dyn Fn(&mut tcpcopy::netfilter::Table)| {
            let mut mutated = ruleset.clone();
            edit(&mut mutated.tables[t]);
            if mutated != *ruleset {
                mutations.push((format!("{} {what}", table.family), mutated));
            }
        };
        for s in 0..table.sets.len() {
            change(format!("set {s} larger"), &|table| table.sets[s].size += 1);
            change(format!("set {s} longer"), &|table| table.sets[s].timeout += Duration::from_secs(1));
        }
        for (c, chain) in table.chains.iter().enumerate() {
            let name = chain.name;
            if chain.hook != Hook::None {
                change(format!("{name} later"), &|table| table.chains[c].priority += 1);
                change(format!("{name} elsewhere"), &|table| table.chains[c].hook = other_hook(chain.hook));
            }
            for (r, rule) in chain.rules.iter().enumerate() {
                let at = |what: &str| format!("{name} rule {r}: {what}");
                change(at("deleted"), &|table| drop(table.chains[c].rules.remove(r)));
                change(at("accept before"), &|table| table.chains[c].rules.insert(r, accept()));
                change(at("doubled"), &|table| table.chains[c].rules.insert(r, rule.clone()));
                change(at("moved"), &|table| {
                    let rule = table.chains[c].rules.remove(r);
                    table.chains[c].rules.insert(0, rule);
                });
                for m in 0..rule.matches.len() {
                    if !is_needed(rule, m) {
                        change(at("match removed"), &|table| {
                            drop(table.chains[c].rules[r].matches.remove(m));
                        });
                    }
                    for other in other_matches(&rule.matches[m]) {
                        change(at(&format!("match is {other:?}")), &|table| {
                            table.chains[c].rules[r].matches[m] = other.clone();
                        });
                    }
                }
                for s in 0..rule.statements.len() {
                    for other in other_statements(&rule.statements[s]) {
                        change(at(&format!("statement is {other:?}")), &|table| {
                            table.chains[c].rules[r].statements[s] = other.clone();
                        });
                    }
                }
            }
        }
    }
    mutations
}

fn accept() -> Rule {
    Rule { matches: Vec::new(), statements: vec![Statement::Accept] }
}

fn other_hook(hook: Hook) -> Hook {
    if hook == Hook::Prerouting { Hook::Output } else { Hook::Prerouting }
}

/// Without the check of the protocol, nft's text for what follows is not the batch's; and ports alone say nothing.
fn is_needed(rule: &Rule, at: usize) -> bool {
    matches!(rule.matches[at], Match::Tcp | Match::L4Proto(_) | Match::IcmpTypes(_))
        && rule.matches.len() > at + 1
}

fn other_matches(condition: &Match) -> Vec<Match> {
    let narrower = |prefix: &Prefix| Prefix::new(prefix.address(), prefix.length() - 1).unwrap();
    let port = |port: u16| port.wrapping_add(256);
    match condition {
        Match::Mark(mark) => vec![Match::Mark(mark ^ 0x100)],
        Match::Saddr(prefix) => vec![Match::Saddr(narrower(prefix)), Match::Daddr(*prefix)],
        Match::Daddr(prefix) => vec![Match::Daddr(narrower(prefix)), Match::Saddr(*prefix)],
        Match::DaddrLocal => vec![Match::DaddrBroadcast],
        Match::L4Proto(protocol) => vec![Match::L4Proto(protocol ^ 1)],
        Match::TcpSport(p) => vec![Match::TcpSport(port(*p)), Match::TcpDport(*p)],
        Match::TcpDport(p) => vec![Match::TcpDport(port(*p))],
        Match::Sports(ports) => vec![Match::Sports(*ports.start()..=port(*ports.end()))],
        Match::Dports(ports) => vec![Match::Dports(*ports.start()..=port(*ports.end()))],
        Match::IcmpTypes(types) => vec![Match::IcmpTypes(*types.start()..=types.end() + 1)],
        Match::QuotedTcpTo(to) => {
            let mut other = *to;
            other.set_port(port(to.port()));
            vec![Match::QuotedTcpTo(other)]
        }
        Match::QuotedTcpWithOptionsTo(to) => vec![Match::QuotedTcpWithOptionsTo((to.to_bits() ^ 1).into())],
        Match::Worker { client, index, workers } => {
            vec![Match::Worker { client: *client, index: *index, workers: workers + 1 }]
        }
        Match::HopLimit(hops) => vec![Match::HopLimit(hops - 1)],
        Match::Length(bytes) => vec![Match::Length(bytes + 1), Match::LengthAtMost(*bytes)],
        _ => Vec::new(),
    }
}

fn other_statements(statement: &Statement) -> Vec<Statement> {
    match statement {
        Statement::Queue(number) => vec![Statement::Queue(number + 1), Statement::Accept],
        Statement::Drop | Statement::Goto(_) | Statement::Jump(_) => {
            vec![Statement::Accept, Statement::Return]
        }
        Statement::Return => vec![Statement::Accept, Statement::Drop],
        Statement::Accept => vec![Statement::Return],
        Statement::SetMark(mark) => vec![Statement::SetMark(mark + 1)],
        Statement::Counter => vec![Statement::Notrack],
        _ => Vec::new(),
    }
}

#[test]
fn every_change_of_a_rule_is_noticed() {
    in_namespace("content::every_change_of_a_rule_is_noticed", &[], || {
        let sink = make_sink();
        let mut rulesets: Vec<Ruleset> = assistant_specs()
            .iter()
            .filter(|spec| spec.queues.is_some_and(|queues| queues.count() == 3))
            .map(assistant)
            .collect();
        for example in [online_example(), embedded_example()] {
            let example = OnlineSpec { sink: sink.clone(), ..example };
            rulesets.push(Ruleset { owner: false, ..online(&example) });
        }
        for ruleset in rulesets {
            let mutations = mutations(&ruleset);
            assert!(mutations.len() > 50, "only {} changes", mutations.len());
            // The kernel takes a while for each; a stride without common factors meets every kind of change.
            let stride = mutations.len().div_ceil(MOST_CHANGES) | 1;
            for (what, mutated) in mutations.iter().step_by(stride) {
                // What the kernel refuses, such as a loop, cannot be put in force.
                let Ok(installed) = Installed::install(mutated) else { continue };
                assert_ne!(present(&ruleset).unwrap(), Presence::Complete, "{what} in\n{ruleset}");
                drop(installed);
            }
            drop(Installed::install(&ruleset).unwrap());
            assert_eq!(present(&ruleset).unwrap(), Presence::Complete, "\n{ruleset}");
            remove_table(&ruleset.name).unwrap();
        }
    });
}

/// What is changed in place, by the means that people have.
#[test]
fn edits_by_nft_are_noticed_and_undone() {
    in_namespace("content::edits_by_nft_are_noticed_and_undone", &[], || {
        let ruleset = assistant(&assistant_example());
        let mut installed = Installed::install(&ruleset).unwrap();
        let chains: Vec<&Chain> = ruleset.tables[0].chains.iter().collect();
        for chain in chains {
            for position in 0..chain.rules.len() {
                for edit in ["replace", "delete", "insert"] {
                    let listed = run("nft", &["-a", "list", "chain", "ip", "intercept", chain.name]);
                    let handles: Vec<&str> = listed
                        .lines()
                        .skip(2)
                        .filter_map(|line| line.rsplit_once(" # handle "))
                        .map(|(_, handle)| handle)
                        .collect();
                    let handle = handles[position];
                    let mut command = vec![edit, "rule", "ip", "intercept", chain.name, "handle", handle];
                    command.extend((edit != "delete").then_some("accept"));
                    run("nft", &command);
                    let found = installed.check().unwrap();
                    let named = matches!(&found, Presence::Altered(what) if what.contains(chain.name));
                    assert!(named, "{command:?}: {found:?}");
                    installed.restore().unwrap();
                    assert_eq!(installed.check().unwrap(), Presence::Complete);
                }
            }
        }
        run("nft", &["chain", "ip", "intercept", "blackhole", "{ policy drop; }"]);
        assert_ne!(installed.check().unwrap(), Presence::Complete, "the policy");
    });
}
