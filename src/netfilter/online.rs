//! The rules of the online host: clients' packets are duplicated, and only the duplicates are queued.
//!
//! - `capture` (prerouting, before connection tracking and DNAT) duplicates into the sink interface. It gives no
//!   verdict other than `return`, so no production packet is touched by it. Each packet is duplicated once at most,
//!   however many captures it matches.
//! - `copies` (output) queues what leaves through the sink, and keeps our own packets out of connection tracking.
//! - `sink` (output, one priority later) drops what the queue did not take: a verdict `accept` on a copy ends here.
//!
//! Clients on the online host itself come in through `lo`, pass prerouting there and are captured like others. A copy
//! cannot be captured again: it leaves through the sink, which delivers nothing, and what carries our mark or comes in
//! from the sink is left alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ruleset::{
    Chain, Device, End, Families, Family, Hook, Match, Prefix, Queues, Rule, Ruleset, Statement, Table,
    TableName,
};

/// What IPv4 copies are routed to: TEST-NET-1 (RFC 5737). Copies keep their own destination; the address only makes a
/// route, and with the interface given none has to exist.
pub const DUP_TO_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What IPv6 copies are routed to. Link-local, because IPv6 needs a route through the sink and every interface with an
/// IPv6 address has this one (`fe80::/64`). Without it, `dup` makes no copies and says nothing.
pub const DUP_TO_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x7463, 0x7079);

/// Raw priority: before connection tracking.
const RAW: i32 = -300;

/// What tcpcopy captures on the online host, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineSpec {
    /// The tables' name.
    pub table: TableName,
    /// What is captured; none, no rules.
    pub captures: Vec<Capture>,
    /// Only clients in one of these are captured; none means all.
    pub clients: Vec<Prefix>,
    /// The address families to capture.
    pub families: Families,
    /// The interface that the copies leave through. Never `lo`.
    pub sink: Device,
    /// One queue for each worker.
    pub queues: Queues,
    /// The mark (`SO_MARK`) of packets that tcpcopy sends itself.
    pub mark: u32,
    /// Whether segments that carry nothing but an acknowledgement are captured too.
    pub pure_acks: bool,
}

/// Traffic to capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capture {
    /// The address clients write to, or any address of this host.
    pub online: Option<IpAddr>,
    /// The port clients write to.
    pub port: u16,
}

/// The rules for `spec`: at most one table per family, and none for a family in which nothing can match.
pub fn online(spec: &OnlineSpec) -> Ruleset {
    let tables = spec.families.iter().filter_map(|family| table(spec, family)).collect();
    Ruleset { name: spec.table.clone(), owner: true, tables }
}

fn table(spec: &OnlineSpec, family: Family) -> Option<Table> {
    let captures: Vec<Capture> = unique(spec.captures.iter().copied().filter(|capture| {
        let any_local = capture.online.is_none();
        any_local || capture.online.map(Family::of) == Some(family)
    }));
    let clients: Vec<Prefix> =
        unique(spec.clients.iter().copied().filter(|prefix| Family::of(prefix.address()) == family));
    let no_client_matches = !spec.clients.is_empty() && clients.is_empty();
    if captures.is_empty() || no_client_matches {
        return None;
    }
    let chains = vec![capture_chain(spec, family, &captures, &clients), copies_chain(spec), sink_chain(spec)];
    Some(Table { family, chains })
}

fn capture_chain(spec: &OnlineSpec, family: Family, captures: &[Capture], clients: &[Prefix]) -> Chain {
    let mut rules = vec![
        Rule { matches: vec![Match::Mark(spec.mark)], statements: vec![Statement::Return] },
        Rule { matches: vec![Match::Iif(spec.sink.clone())], statements: vec![Statement::Return] },
    ];
    if !spec.pure_acks {
        for capture in captures {
            rules.extend(pure_ack_sizes(family).map(|(length, data_offset)| {
                let mut matches = destination(*capture);
                matches.extend([Match::Length(length), Match::DataOffset(data_offset), Match::NoSynFinRst]);
                Rule { matches, statements: vec![Statement::Return] }
            }));
        }
    }
    for capture in captures {
        let everybody = clients.is_empty() || clients.iter().any(Prefix::is_everything);
        if everybody {
            rules.push(dup(spec, family, destination(*capture)));
        } else {
            rules.extend(clients.iter().map(|prefix| {
                let mut matches = destination(*capture);
                matches.push(Match::Saddr(*prefix));
                dup(spec, family, matches)
            }));
        }
    }
    Chain { name: "capture", hook: Hook::Prerouting, priority: RAW, rules }
}

fn copies_chain(spec: &OnlineSpec) -> Chain {
    let mut rules =
        vec![Rule { matches: vec![Match::Mark(spec.mark)], statements: vec![Statement::Notrack] }];
    rules.extend(queue_rules(&[Match::Oif(spec.sink.clone()), Match::Tcp], End::Source, spec.queues));
    Chain { name: "copies", hook: Hook::Output, priority: RAW, rules }
}

fn sink_chain(spec: &OnlineSpec) -> Chain {
    let drop = Rule { matches: vec![Match::Oif(spec.sink.clone())], statements: vec![Statement::Drop] };
    Chain { name: "sink", hook: Hook::Output, priority: RAW + 1, rules: vec![drop] }
}

/// One rule for each queue, for those of the packets `matches` hold for that belong to its worker. A single queue needs no hash.
pub(super) fn queue_rules(matches: &[Match], client: End, queues: Queues) -> Vec<Rule> {
    let workers = queues.count();
    let rule = |(index, number)| {
        let mut matches = matches.to_vec();
        if workers > 1 {
            matches.push(Match::Worker { client, index, workers });
        }
        Rule { matches, statements: vec![Statement::Queue(number)] }
    };
    (0..workers).zip(queues.numbers()).map(rule).collect()
}

/// The port comes first where the address costs a lookup.
fn destination(capture: Capture) -> Vec<Match> {
    match capture.online {
        Some(address) => vec![Match::Daddr(address), Match::TcpDport(capture.port)],
        None => vec![Match::TcpDport(capture.port), Match::DaddrLocal],
    }
}

/// Ends the chain for the packet: captures and client prefixes may overlap, and `dup` alone would go on to the next.
fn dup(spec: &OnlineSpec, family: Family, matches: Vec<Match>) -> Rule {
    let to = match family {
        Family::Ip => DUP_TO_V4.into(),
        Family::Ip6 => DUP_TO_V6.into(),
    };
    let dup = Statement::Dup { to, device: spec.sink.clone() };
    Rule { matches, statements: vec![Statement::Counter, dup, Statement::Return] }
}

/// Length field and data offset of segments without payload: without options, and with timestamps.
fn pure_ack_sizes(family: Family) -> impl Iterator<Item = (u16, u8)> {
    let ip_header = match family {
        Family::Ip => 20,
        Family::Ip6 => 0,
    };
    [5_u8, 8].into_iter().map(move |words| (ip_header + u16::from(words) * 4, words))
}

fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.fold(Vec::new(), |mut kept, item| {
        if !kept.contains(&item) {
            kept.push(item);
        }
        kept
    })
}
