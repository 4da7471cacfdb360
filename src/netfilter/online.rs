//! The rules of the online host: clients' packets are duplicated, and only the duplicates are queued.
//!
//! - `capture` (prerouting, before connection tracking and DNAT) finds what is to be replayed, and `duplicate` duplicates
//!   it into the sink interface. They give no verdict other than `return`, so no production packet is touched by them.
//!   Each packet is duplicated once at most, however many captures it matches. A connection outside the percentage is left
//!   out first, by one hash a packet; then follow pure acknowledgements, the clients' prefixes (`clients`), and the
//!   greatest rate. What is left out never gets to `dup`, which is the expensive part.
//! - `copies` (output) queues what leaves through the sink, and keeps our own packets out of connection tracking, where
//!   there is one.
//! - `sink` (output, one priority later) drops what the queue did not take: a verdict `accept` on a copy ends here.
//!
//! Where replayed packets carry the clients' addresses, ICMP errors about them go to real clients, and name the target:
//! this host's own ("host unreachable", if the target's neighbour does not resolve), and those of routers behind it that
//! it forwards. `errors` (output) and `forwarded_errors` (forward) drop them, by the destination of the quoted packet.
//! Errors to this host's own addresses are left alone: none of its sockets takes one about a connection that it does not
//! have, and one about a connection that it has is production's.
//!
//! Where tcpcopy takes the target's responses itself, two more chains see to that:
//!
//! - `responses` (prerouting, before connection tracking) queues what the targets send to our own addresses and the
//!   ports kept for replaying, without bypass.
//! - `blackhole` (one priority later) drops what the queue did not take. Without it, this host's own TCP, which knows
//!   nothing of these connections, would reset them. When tcpcopy dies it does, which is a clean end for the target.
//!
//! Segments that only acknowledge are most packets and left out, but for one of each connection: the ACK that ends the
//! client's handshake says how far away the client is, and where the online server's sequence numbers begin. The set
//! `handshakes` holds the clients (address and port) whose SYN has come; the first segment without payload since then
//! takes the client out of the set and is duplicated. When the set is full, handshakes' ACKs are left out like others,
//! and nothing else changes. Deleting from a set takes Linux 5.4 (`NFT_DYNSET_OP_DELETE`, commit d0a8d877da97), which
//! the owner flag (5.12) implies. Until commit c92db3030492 (Linux 6.5, and stable releases of autumn 2023) the kernel
//! neither freed deleted elements nor stopped counting them: such a kernel loses a few megabytes at most, until the set
//! is full after 65536 connections.
//!
//! Clients on the online host itself come in through `lo`, pass prerouting there and are captured like others. A copy
//! cannot be captured again: it leaves through the sink, which delivers nothing, and what carries our mark or comes in
//! from the sink is left alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::ruleset::{
    Chain, Device, End, Families, Family, Hook, Match, Queues, Rule, Ruleset, Set, SetKey, Statement, Table,
    TableName,
};
use crate::wire::Prefix;
use crate::wire::flow::SHARES;

/// What IPv4 copies are routed to: TEST-NET-1 (RFC 5737). Copies keep their own destination; the address only makes a
/// route, and with the interface given none has to exist.
pub const DUP_TO_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What IPv6 copies are routed to. Link-local, because IPv6 needs a route through the sink and every interface with an
/// IPv6 address has this one (`fe80::/64`). Without it, `dup` makes no copies and says nothing.
pub const DUP_TO_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x7463, 0x7079);

/// Raw priority: before connection tracking.
const RAW: i32 = -300;

/// The chain that duplicates what comes there.
const DUPLICATE: &str = "duplicate";
/// The chain that goes on with packets of the clients that are replayed.
const CLIENTS: &str = "clients";
/// The set of clients whose handshake has begun.
const HANDSHAKES: &str = "handshakes";
/// A client that has not ended its handshake by then is forgotten until it repeats its SYN.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at a time. Those that are over count too until the kernel clears up, which it does once a second.
const HANDSHAKES_SIZE: u32 = 65536;

/// What tcpcopy captures on the online host, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineSpec {
    /// The tables' name.
    pub table: TableName,
    /// What is captured by rules; none, if only responses are to be taken.
    pub captures: Vec<Capture>,
    /// Only clients in one of these are captured; none means all.
    pub clients: Vec<Prefix>,
    /// Only these of [`SHARES`] connections are captured.
    pub share: u16,
    /// The most packets that are duplicated in a second, of each address family; none means all.
    pub max_packets_per_second: Option<NonZeroU32>,
    /// Targets that are sent packets with clients' addresses. ICMP errors about those are dropped.
    pub targets: Vec<SocketAddr>,
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
    /// If they are not, whether those that end clients' handshakes are captured all the same.
    pub handshake_acks: bool,
    /// Whether connections are tracked on this host. What tcpcopy sends is kept out of that then; otherwise the rule that
    /// does so would load the module that tracks them.
    pub conntrack: bool,
    /// The responses that tcpcopy takes itself, if it does.
    pub responses: Option<OwnResponses>,
}

/// Responses to sessions that are replayed from this host's own addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnResponses {
    /// Each target with the addresses of this host that replay to it.
    pub flows: Vec<(SocketAddr, IpAddr)>,
    /// The ports kept for replaying.
    pub ports: RangeInclusive<u16>,
    /// One queue for each worker.
    pub queues: Queues,
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
    let mut table = Table { family, sets: Vec::new(), chains: Vec::new() };
    if !captures.is_empty() && !no_client_matches {
        table.sets.extend(handshakes(spec));
        let everybody = clients.is_empty() || clients.iter().any(Prefix::is_everything);
        table.chains.push(duplicate_chain(spec, family));
        table.chains.extend((!everybody).then(|| clients_chain(&clients)));
        let then = if everybody { DUPLICATE } else { CLIENTS };
        table.chains.extend([
            capture_chain(spec, family, &captures, then),
            copies_chain(spec),
            sink_chain(spec),
        ]);
    }
    let targets = unique(spec.targets.iter().copied().filter(|target| Family::of(target.ip()) == family));
    if !targets.is_empty() {
        table.chains.extend(error_chains(family, &targets));
    }
    table.chains.extend(spec.responses.iter().flat_map(|responses| response_chains(responses, family)));
    (!table.chains.is_empty()).then_some(table)
}

/// The set that the rules for handshakes need, if there are any.
fn handshakes(spec: &OnlineSpec) -> Option<Set> {
    let wanted = spec.handshake_acks && !spec.pure_acks;
    wanted.then_some(Set {
        name: HANDSHAKES,
        key: SetKey::Client,
        timeout: HANDSHAKE_TIMEOUT,
        size: HANDSHAKES_SIZE,
    })
}

/// Finds what is captured, and goes to `chain` with it.
fn capture_chain(spec: &OnlineSpec, family: Family, captures: &[Capture], chain: &'static str) -> Chain {
    let mut rules = vec![
        Rule { matches: vec![Match::Mark(spec.mark)], statements: vec![Statement::Return] },
        Rule { matches: vec![Match::Iif(spec.sink.clone())], statements: vec![Statement::Return] },
    ];
    if spec.share < SHARES {
        let ports = unique(captures.iter().map(|capture| capture.port));
        rules.extend(ports.into_iter().map(|port| not_selected(port, spec.share)));
    }
    if !spec.pure_acks {
        let awaited = handshakes(spec).is_some();
        rules.extend(captures.iter().flat_map(|capture| pure_acks(family, *capture, awaited)));
    }
    let then =
        |capture: &Capture| Rule { matches: to(*capture, []), statements: vec![Statement::Goto(chain)] };
    rules.extend(captures.iter().map(then));
    Chain { name: "capture", hook: Hook::Prerouting, priority: RAW, rules }
}

/// Leaves out the connections that are not selected. It heeds no addresses: what is captured by none is not either.
fn not_selected(port: u16, share: u16) -> Rule {
    let outside = Match::OutsideShare { client: End::Source, share };
    Rule { matches: vec![Match::TcpDport(port), outside], statements: vec![Statement::Return] }
}

/// Goes on with packets of clients in one of the prefixes.
fn clients_chain(clients: &[Prefix]) -> Chain {
    let from = |prefix: &Prefix| Rule {
        matches: vec![Match::Saddr(*prefix)],
        statements: vec![Statement::Goto(DUPLICATE)],
    };
    let rules = clients.iter().map(from).collect();
    Chain { name: CLIENTS, hook: Hook::None, priority: RAW, rules }
}

/// Duplicates what comes here, up to the greatest rate. What is beyond it costs neither a copy nor a place in the set.
fn duplicate_chain(spec: &OnlineSpec, family: Family) -> Chain {
    let limit = |rate| Rule {
        matches: Vec::new(),
        statements: vec![Statement::LimitOver(rate), Statement::Counter, Statement::Return],
    };
    let mut rules: Vec<Rule> = spec.max_packets_per_second.map(limit).into_iter().collect();
    if handshakes(spec).is_some() {
        rules.extend([handshake_over(family), handshake_begins()]);
    }
    rules.push(dup(spec, family));
    Chain { name: DUPLICATE, hook: Hook::None, priority: RAW, rules }
}

/// Drops ICMP errors about packets to the targets. An error to this host itself leaves through `lo`.
fn error_chains(family: Family, targets: &[SocketAddr]) -> [Chain; 2] {
    let of = |(types, target): (&RangeInclusive<u8>, &SocketAddr)| Rule {
        matches: vec![Match::IcmpTypes(types.clone()), Match::QuotedTcpTo(*target)],
        statements: vec![Statement::Drop],
    };
    let errors = icmp_errors(family);
    let drops = targets.iter().flat_map(|target| errors.iter().map(move |types| (types, target)));
    let drops: Vec<Rule> = drops.map(of).collect();
    let to_this_host =
        Rule { matches: vec![Match::Oif(Device::loopback())], statements: vec![Statement::Return] };
    let sent = [to_this_host].into_iter().chain(drops.clone()).collect();
    [
        Chain { name: "errors", hook: Hook::Output, priority: RAW, rules: sent },
        Chain { name: "forwarded_errors", hook: Hook::Forward, priority: RAW, rules: drops },
    ]
}

/// The types of ICMP messages that quote a packet (RFC 792; RFC 4443, section 2.1).
fn icmp_errors(family: Family) -> &'static [RangeInclusive<u8>] {
    match family {
        // Destination unreachable, source quench, redirect; time exceeded, parameter problem.
        Family::Ip => &[3..=5, 11..=12],
        Family::Ip6 => &[1..=4],
    }
}

fn copies_chain(spec: &OnlineSpec) -> Chain {
    let untracked = || Rule { matches: vec![Match::Mark(spec.mark)], statements: vec![Statement::Notrack] };
    let mut rules: Vec<Rule> = spec.conntrack.then(untracked).into_iter().collect();
    // Any user may bind a socket to the sink (SO_BINDTODEVICE). What it sends is no copy, and could fill the queues.
    rules.push(Rule {
        matches: vec![Match::Oif(spec.sink.clone()), Match::FromSocket],
        statements: vec![Statement::Counter, Statement::Drop],
    });
    rules.extend(queue_rules(&[Match::Oif(spec.sink.clone()), Match::Tcp], End::Source, spec.queues));
    Chain { name: "copies", hook: Hook::Output, priority: RAW, rules }
}

fn sink_chain(spec: &OnlineSpec) -> Chain {
    let drop = Rule { matches: vec![Match::Oif(spec.sink.clone())], statements: vec![Statement::Drop] };
    Chain { name: "sink", hook: Hook::Output, priority: RAW + 1, rules: vec![drop] }
}

fn response_chains(responses: &OwnResponses, family: Family) -> [Chain; 2] {
    let flows = responses.flows.iter().filter(|(target, _)| Family::of(target.ip()) == family);
    let matches: Vec<Vec<Match>> = unique(flows.map(|(target, own)| {
        vec![
            Match::Saddr(Prefix::single(target.ip())),
            Match::TcpSport(target.port()),
            Match::Daddr(Prefix::single(*own)),
            Match::TcpDports(responses.ports.clone()),
        ]
    }));
    let queued =
        matches.iter().flat_map(|response| queue_rules(response, End::Destination, responses.queues));
    let queued = queued.collect();
    let drop = |matches| Rule { matches, statements: vec![Statement::Drop] };
    let dropped = matches.into_iter().map(drop).collect();
    [
        Chain { name: "responses", hook: Hook::Prerouting, priority: RAW, rules: queued },
        Chain { name: "blackhole", hook: Hook::Prerouting, priority: RAW + 1, rules: dropped },
    ]
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

/// Segments without payload end the chain here, unless they are the first since their client's SYN. Most packets are
/// such segments, so this is one rule for each: the set is searched here only.
fn pure_acks(family: Family, capture: Capture, awaited: bool) -> impl Iterator<Item = Rule> {
    PURE_ACK_WORDS.into_iter().map(move |words| {
        let length = Match::Length(pure_ack_length(family, words));
        let segment = [length, Match::DataOffset(words), Match::NoSynFinRst];
        let not_awaited = awaited.then_some(Match::NotIn { set: HANDSHAKES, client: End::Source });
        let matches = to(capture, segment.into_iter().chain(not_awaited));
        Rule { matches, statements: vec![Statement::Return] }
    })
}

/// The segments without payload that come this far are in the set. Data as short as that may come along, and says
/// as much about the handshake.
fn handshake_over(family: Family) -> Rule {
    let [.., most_words] = PURE_ACK_WORDS;
    let length = Match::LengthAtMost(pure_ack_length(family, most_words));
    let delete = Statement::Delete { set: HANDSHAKES, client: End::Source };
    Rule { matches: vec![length, Match::NoSynFinRst], statements: vec![delete] }
}

/// A rule of its own: if the set is full, the SYN is duplicated all the same.
fn handshake_begins() -> Rule {
    let add = Statement::Add { set: HANDSHAKES, client: End::Source };
    Rule { matches: vec![Match::SynAlone], statements: vec![add] }
}

/// Packets to where clients write that `more` hold for. An address of this host comes last: it costs a lookup.
fn to(capture: Capture, more: impl IntoIterator<Item = Match>) -> Vec<Match> {
    let daddr = capture.online.map(|address| Match::Daddr(Prefix::single(address)));
    let local = capture.online.is_none().then_some(Match::DaddrLocal);
    let port = Match::TcpDport(capture.port);
    daddr.into_iter().chain([port]).chain(more).chain(local).collect()
}

fn dup(spec: &OnlineSpec, family: Family) -> Rule {
    let neighbour = match family {
        Family::Ip => DUP_TO_V4.into(),
        Family::Ip6 => DUP_TO_V6.into(),
    };
    let dup = Statement::Dup { to: neighbour, device: spec.sink.clone() };
    Rule { matches: Vec::new(), statements: vec![Statement::Counter, dup] }
}

/// 32-bit words of TCP header in segments without payload: without options, and with timestamps.
const PURE_ACK_WORDS: [u8; 2] = [5, 8];

/// The length field of segments without payload that have so many words of TCP header.
fn pure_ack_length(family: Family, words: u8) -> u16 {
    let ip_header = match family {
        Family::Ip => 20,
        Family::Ip6 => 0,
    };
    ip_header + u16::from(words) * 4
}

pub(super) fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.fold(Vec::new(), |mut kept, item| {
        if !kept.contains(&item) {
            kept.push(item);
        }
        kept
    })
}
