//! The rules of an intercept: responses are queued, and no other packet of a target goes on either.
//!
//! | chain | hook | what it does |
//! |---|---|---|
//! | `responses` | base | queues what the targets' services send, without bypass; absent with packet sockets |
//! | `blackhole` | base, one priority later | drops what the queue did not take, and sends the rest through the two below |
//! | `errors` | from `blackhole` | drops ICMP errors about packets that tcpcopy sent, whoever sends the error |
//! | `closed` | from `blackhole` | lets this host's own traffic and `pass` go, counts and drops everything else |
//!
//! A verdict `accept` ends one base chain only, so a response gets no further even if a rule before ours accepts it or
//! queues it with bypass. For the same reason the chains of several intercepts do not disturb each other: all `responses`
//! chains come before all `blackhole` chains, and a queue's verdict ends the packet before any of the latter.
//!
//! On an assistant the rules are in prerouting, before connection tracking, and closed to every packet of a target that is
//! not for this host itself, whatever its destination. Fragments of TCP segments are dropped before any `pass` entry is
//! tried: they can be parts of responses.
//!
//! On the target the rules are in output, after connection tracking, so that a stateful firewall there knows the replayed
//! connections. With `clients`, everything that this host sends to those prefixes is closed, except the tunnel and `pass`.
//! Without, only responses, fragments and ICMP errors about replayed packets are dropped: the host has other peers. What
//! does not leave the host goes on, health checks among it.
//!
//! With `unclaimed = accept` the host is a router. Then only responses without the mark, fragments of TCP segments and
//! ICMP errors are dropped.
//!
//! The tables have no owner: they stay, closed, when intercept is down. `intercept rules remove` takes them away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::encode::TCP;
use super::online::{queue_rules, unique};
use super::ruleset::{
    Chain, Device, End, Family, Hook, Match, Queues, Rule, Ruleset, Set, SetKey, Statement, Table, TableName,
};
use crate::wire::{Pass, Prefix};

/// On an assistant: raw priority, before connection tracking, which knows only half of these connections.
const RAW: i32 = -300;
/// On the target: mangle priority, after connection tracking. It would take the clients' packets for invalid if it had
/// not seen the responses.
const MANGLE: i32 = -150;

const RESPONSES: &str = "responses";
/// Its counters count dropped fragments.
pub(super) const BLACKHOLE: &str = "blackhole";
/// Its counters count dropped ICMP errors.
pub(super) const ERRORS: &str = "errors";
/// The counter of its last rule counts what no other rule took: strays.
pub(super) const CLOSED: &str = "closed";

/// The set that counts strays of protocols with ports.
pub(super) const STRAYS: &str = "strays";
/// The set that counts strays by protocol alone.
pub(super) const STRAY_PROTOCOLS: &str = "stray_protocols";
/// Counters that have not changed for so long are forgotten. They are read several times before.
const STRAY_TIMEOUT: Duration = Duration::from_secs(120);
/// Different strays that are counted one by one. Beyond that only their total is known.
const STRAYS_SIZE: u32 = 4096;
const STRAY_PROTOCOLS_SIZE: u32 = 256;
/// The protocols whose header begins with ports: TCP, UDP, SCTP.
const WITH_PORTS: [u8; 3] = [TCP, 17, 132];

/// What intercept captures, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssistantSpec {
    /// The tables' name.
    pub table: TableName,
    /// The addresses that target software answers from; none, no rules.
    pub targets: Vec<SocketAddr>,
    /// Only responses to clients in one of these are taken; none means all. On the target, a family without any gets no
    /// rules: its responses would go on.
    pub clients: Vec<Prefix>,
    /// Other traffic of the targets that goes on. Never a response: those are queued and dropped first.
    pub pass: Vec<Pass>,
    /// The port of this host's tunnel, which traffic to replayed clients may come from.
    pub tunnel_port: u16,
    /// One queue for each worker, or `None` if the rules are to drop only.
    pub queues: Option<Queues>,
    /// What becomes of responses that nobody claimed.
    pub unclaimed: Unclaimed,
    /// The mark of packets that go on although they are a target's: by intercept's verdict `accept`, or by `pass`.
    pub accept_mark: u32,
    /// Where responses are met.
    pub place: Place,
}

/// What becomes of responses that nobody claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unclaimed {
    /// They are dropped.
    Drop,
    /// They flow on if intercept says so, and are dropped if it says nothing.
    Accept,
}

/// Where intercept meets the responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On an assistant that the target routes them to.
    Assistant,
    /// On the target itself, as they are sent.
    Target,
}

impl AssistantSpec {
    /// The prefixes of one family that responses are restricted to; none if they are not.
    pub(super) fn restriction(&self, family: Family) -> Vec<Prefix> {
        let of_family = self.clients.iter().filter(|prefix| Family::of(prefix.address()) == family);
        if of_family.clone().any(Prefix::is_everything) { Vec::new() } else { of_family.copied().collect() }
    }

    /// Whether the host is closed to everything of a family that targets send, and not only to responses.
    pub fn is_closed(&self, family: Family) -> bool {
        match (self.unclaimed, self.place) {
            (Unclaimed::Accept, _) => false,
            (Unclaimed::Drop, Place::Assistant) => true,
            (Unclaimed::Drop, Place::Target) => !self.restriction(family).is_empty(),
        }
    }

    /// The family's targets, each once.
    fn services(&self, family: Family) -> Vec<SocketAddr> {
        unique(self.targets.iter().copied().filter(|target| Family::of(target.ip()) == family))
    }
}

/// The rules for `spec`: at most one table per family, and none for a family without targets.
pub fn assistant(spec: &AssistantSpec) -> Ruleset {
    let tables = Family::ALL.into_iter().filter_map(|family| table(spec, family)).collect();
    Ruleset { name: spec.table.clone(), owner: false, tables }
}

fn table(spec: &AssistantSpec, family: Family) -> Option<Table> {
    let services = spec.services(family);
    let untaken =
        !spec.clients.is_empty() && spec.clients.iter().all(|prefix| Family::of(prefix.address()) != family);
    if services.is_empty() || untaken && spec.place == Place::Target {
        return None;
    }
    let responses = if untaken { Vec::new() } else { responses(spec, family, &services) };
    let closed = closed_chain(spec, family);
    let sets = if spec.is_closed(family) { stray_sets() } else { Vec::new() };
    let errors = errors_chain(spec, family, &services);
    let queued = spec.queues.map(|queues| responses_chain(spec.place, &responses, queues));
    let blackhole = blackhole_chain(spec, family, &services, &responses);
    let chains = [errors].into_iter().chain(closed).chain(queued).chain([blackhole]).collect();
    Some(Table { family, sets, chains })
}

/// What responses look like, each once.
fn responses(spec: &AssistantSpec, family: Family, services: &[SocketAddr]) -> Vec<Vec<Match>> {
    let from = |service: &SocketAddr| {
        let source = vec![Match::Saddr(Prefix::single(service.ip())), Match::TcpSport(service.port())];
        to_clients(spec, family).map(move |to| [source.clone(), to].concat())
    };
    unique(services.iter().flat_map(from))
}

/// The condition that a packet is for one of the clients: one for each prefix, or one that always holds.
fn to_clients(spec: &AssistantSpec, family: Family) -> impl Iterator<Item = Vec<Match>> + use<> {
    let prefixes = spec.restriction(family);
    let always = prefixes.is_empty().then(Vec::new);
    always.into_iter().chain(prefixes.into_iter().map(|prefix| vec![Match::Daddr(prefix)]))
}

fn responses_chain(place: Place, responses: &[Vec<Match>], queues: Queues) -> Chain {
    let rules = responses.iter().flat_map(|response| queue_rules(response, End::Destination, queues));
    base(place, RESPONSES, 0, stays_here(place).into_iter().chain(rules).collect())
}

fn blackhole_chain(
    spec: &AssistantSpec,
    family: Family,
    services: &[SocketAddr],
    responses: &[Vec<Match>],
) -> Chain {
    let mut rules: Vec<Rule> = stays_here(spec.place).into_iter().collect();
    if spec.unclaimed == Unclaimed::Accept {
        rules.push(rule([Match::Mark(spec.accept_mark)], [Statement::Accept]));
    }
    rules.extend(responses.iter().map(|response| rule(response.clone(), [Statement::Drop])));
    let errors = icmp_errors(family).iter().map(|types| Match::IcmpTypes(types.clone()));
    rules.extend(errors.map(|types| rule([types], [Statement::Jump(ERRORS)])));
    let sources = unique(services.iter().map(|service| Match::Saddr(Prefix::single(service.ip()))));
    match spec.place {
        Place::Assistant => {
            rules.extend(sources.into_iter().map(|source| rule([source], [Statement::Goto(CLOSED)])));
        }
        Place::Target if spec.is_closed(family) => {
            rules.extend(to_clients(spec, family).map(|to| rule(to, [Statement::Goto(CLOSED)])));
        }
        Place::Target => {
            let fragments = fragments(spec, family);
            let of = |source: Match| {
                fragments.iter().map(move |fragment| {
                    let matches = [source.clone()].into_iter().chain(fragment.matches.clone());
                    rule(matches, fragment.statements.clone())
                })
            };
            rules.extend(sources.into_iter().flat_map(of));
        }
    }
    base(spec.place, BLACKHOLE, 1, rules)
}

/// Where everything of a target comes that is no response; `None` where that is not looked at.
fn closed_chain(spec: &AssistantSpec, family: Family) -> Option<Chain> {
    let mut rules = fragments(spec, family);
    match spec.place {
        Place::Assistant => rules.insert(0, rule([Match::DaddrLocal], [Statement::Return])),
        Place::Target if spec.is_closed(family) => {
            rules.push(rule([Match::TcpSport(spec.tunnel_port)], [Statement::Return]));
        }
        Place::Target => return None,
    }
    if !spec.is_closed(family) {
        return Some(regular(CLOSED, rules));
    }
    rules.extend(never_forwarded(spec.place, family));
    rules.extend(spec.pass.iter().filter_map(|pass| pass_rule(spec, family, pass)));
    let by_ports = Statement::Count { set: STRAYS, key: SetKey::Ports };
    rules.extend(
        WITH_PORTS.map(|protocol| rule([Match::L4Proto(protocol), Match::NotFragment], [by_ports.clone()])),
    );
    rules.push(rule([], [Statement::Count { set: STRAY_PROTOCOLS, key: SetKey::Protocol }]));
    rules.push(rule([], [Statement::Counter, Statement::Drop]));
    Some(regular(CLOSED, rules))
}

/// Traffic of the link, which no host forwards. Neighbour discovery is part of it.
fn never_forwarded(place: Place, family: Family) -> Vec<Rule> {
    /// Router and neighbour solicitations and advertisements (RFC 4861).
    const NEIGHBOUR_DISCOVERY: RangeInclusive<u8> = 133..=136;
    let link = |address, length| Match::Daddr(Prefix::new(address, length).expect("a length of the family"));
    let matches = match (place, family) {
        (Place::Assistant, Family::Ip) => vec![
            vec![Match::DaddrBroadcast],
            // RFC 5771, section 4.
            vec![link(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 24)],
        ],
        // RFC 4291, section 2.7.
        (Place::Assistant, Family::Ip6) => {
            vec![vec![link(IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0)), 16)]]
        }
        (Place::Target, Family::Ip) => Vec::new(),
        (Place::Target, Family::Ip6) => {
            vec![vec![Match::IcmpTypes(NEIGHBOUR_DISCOVERY), Match::HopLimit(255)]]
        }
    };
    matches.into_iter().map(|matches| rule(matches, [Statement::Return])).collect()
}

/// Drops fragments that can be parts of responses. Which service a later fragment is of cannot be seen.
fn fragments(spec: &AssistantSpec, family: Family) -> Vec<Rule> {
    let fragment = |to: Vec<Match>| {
        let matches = to.into_iter().chain([Match::L4Proto(TCP), Match::Fragment]);
        rule(matches, [Statement::Counter, Statement::Drop])
    };
    to_clients(spec, family).map(fragment).collect()
}

/// Lets traffic go on, with the mark by which the routing policy knows it.
fn pass_rule(spec: &AssistantSpec, family: Family, pass: &Pass) -> Option<Rule> {
    if !pass.covers_family(family == Family::Ip) {
        return None;
    }
    let from = pass.from.map(|from| Match::Saddr(Prefix::single(from)));
    let to = pass.to.filter(|prefix| !prefix.is_everything()).map(Match::Daddr);
    let protocol = pass.protocol.map(Match::L4Proto);
    let sport = pass.sport.clone().map(Match::Sports);
    let dport = pass.dport.clone().map(Match::Dports);
    let whole = (pass.sport.is_some() || pass.dport.is_some()).then_some(Match::NotFragment);
    let matches = [from, to, protocol, whole, sport, dport].into_iter().flatten();
    Some(rule(matches, [Statement::SetMark(spec.accept_mark), Statement::Accept]))
}

/// Drops ICMP errors that quote a packet to one of the services, unless this host itself is to know.
fn errors_chain(spec: &AssistantSpec, family: Family, services: &[SocketAddr]) -> Chain {
    let local = match spec.place {
        Place::Assistant => Some(rule([Match::DaddrLocal], [Statement::Return])),
        Place::Target => None,
    };
    let with_options = unique(services.iter().map(SocketAddr::ip)).into_iter().filter_map(|ip| match ip {
        IpAddr::V4(ip) => Some(Match::QuotedTcpWithOptionsTo(ip)),
        IpAddr::V6(_) => None,
    });
    let quoted: Vec<Match> =
        services.iter().map(|service| Match::QuotedTcpTo(*service)).chain(with_options).collect();
    let drop = |to: Vec<Match>| {
        let about = |quoted: &Match| {
            rule([to.clone(), vec![quoted.clone()]].concat(), [Statement::Counter, Statement::Drop])
        };
        quoted.iter().map(about).collect::<Vec<_>>()
    };
    regular(ERRORS, local.into_iter().chain(to_clients(spec, family).flat_map(drop)).collect())
}

/// The types of ICMP messages that quote a packet (RFC 792; RFC 4443, section 2.1; RFC 4861, section 4.5).
fn icmp_errors(family: Family) -> &'static [RangeInclusive<u8>] {
    match family {
        // Destination unreachable, source quench, redirect; time exceeded, parameter problem.
        Family::Ip => &[3..=5, 11..=12],
        // The four errors; redirect.
        Family::Ip6 => &[1..=4, 137..=137],
    }
}

/// On the target, the rule that lets alone what does not leave it.
fn stays_here(place: Place) -> Option<Rule> {
    match place {
        Place::Assistant => None,
        Place::Target => Some(rule([Match::Oif(Device::loopback())], [Statement::Return])),
    }
}

fn stray_sets() -> Vec<Set> {
    [(STRAYS, SetKey::Ports, STRAYS_SIZE), (STRAY_PROTOCOLS, SetKey::Protocol, STRAY_PROTOCOLS_SIZE)]
        .map(|(name, key, size)| Set { name, key, timeout: STRAY_TIMEOUT, size })
        .to_vec()
}

/// A base chain, so many priorities after the first one at its place.
fn base(place: Place, name: &'static str, after: i32, rules: Vec<Rule>) -> Chain {
    let (hook, first) = match place {
        Place::Assistant => (Hook::Prerouting, RAW),
        Place::Target => (Hook::Output, MANGLE),
    };
    Chain { name, hook, priority: first + after, rules }
}

fn regular(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain { name, hook: Hook::None, priority: 0, rules }
}

fn rule(matches: impl IntoIterator<Item = Match>, statements: impl IntoIterator<Item = Statement>) -> Rule {
    Rule { matches: matches.into_iter().collect(), statements: statements.into_iter().collect() }
}
