//! The rules of an intercept: the target's responses are queued, and whatever the queue does not take is dropped.
//!
//! - `responses` queues what the targets send, without bypass. There is no such chain where packet sockets have seen the
//!   responses before.
//! - `blackhole` (same hook, one priority later) drops it: a verdict `accept` ends the first chain only, so a response
//!   gets no further even if somebody puts a rule with `accept` or bypass before ours. With `unclaimed = accept`,
//!   intercept sets a mark with its verdict and that mark alone passes.
//!
//! On the target itself the responses are met as they are sent, after connection tracking, so that a stateful firewall
//! there knows the replayed connections. What does not leave the host is let alone: health checks on it go on.
//!
//! The tables have no owner: they stay, closed, when intercept is down. `intercept rules remove` takes them away.

use std::net::SocketAddr;

use super::online::queue_rules;
use super::ruleset::{
    Chain, Device, End, Family, Hook, Match, Queues, Rule, Ruleset, Statement, Table, TableName,
};
use crate::wire::{Pass, Prefix};

/// On an assistant: raw priority, before connection tracking, which knows only half of these connections.
const RAW: i32 = -300;
/// On the target: mangle priority, after connection tracking. It would take the clients' packets for invalid if it had
/// not seen the responses.
const MANGLE: i32 = -150;

/// The loopback device has this index in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// What intercept captures, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssistantSpec {
    /// The tables' name.
    pub table: TableName,
    /// The addresses that target software answers from; none, no rules.
    pub targets: Vec<SocketAddr>,
    /// Only responses to clients in one of these are taken; none means all. A target whose family has none gets no
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
    /// The mark that comes with intercept's verdict `accept`.
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

/// The rules for `spec`: at most one table per family, and none for a family without targets.
pub fn assistant(spec: &AssistantSpec) -> Ruleset {
    let tables = Family::ALL.into_iter().filter_map(|family| table(spec, family)).collect();
    Ruleset { name: spec.table.clone(), owner: false, tables }
}

fn table(spec: &AssistantSpec, family: Family) -> Option<Table> {
    let responses = responses(spec, family);
    if responses.is_empty() {
        return None;
    }
    let (hook, priority) = match spec.place {
        Place::Assistant => (Hook::Prerouting, RAW),
        Place::Target => (Hook::Output, MANGLE),
    };
    let alone = stays_here(spec.place);
    let queued = spec.queues.map(|queues| {
        let rules = responses.iter().flat_map(|response| queue_rules(response, End::Destination, queues));
        Chain { name: "responses", hook, priority, rules: alone.iter().cloned().chain(rules).collect() }
    });
    let dropped = alone.into_iter().chain(blackhole_rules(spec, &responses)).collect();
    let blackhole = Chain { name: "blackhole", hook, priority: priority + 1, rules: dropped };
    let chains = queued.into_iter().chain([blackhole]).collect();
    Some(Table { family, sets: Vec::new(), chains })
}

/// What responses of the family's targets look like, each once.
fn responses(spec: &AssistantSpec, family: Family) -> Vec<Vec<Match>> {
    let mut responses: Vec<Vec<Match>> = Vec::new();
    for target in spec.targets.iter().filter(|target| Family::of(target.ip()) == family) {
        let source = vec![Match::Saddr(Prefix::single(target.ip())), Match::TcpSport(target.port())];
        let to = |prefix: &Prefix| [source.clone(), vec![Match::Daddr(*prefix)]].concat();
        let restricted = spec.clients.iter().filter(|prefix| Family::of(prefix.address()) == family).map(to);
        let all = if spec.clients.is_empty() { vec![source.clone()] } else { restricted.collect() };
        for response in all {
            if !responses.contains(&response) {
                responses.push(response);
            }
        }
    }
    responses
}

/// On the target, the rule that lets alone what does not leave it.
fn stays_here(place: Place) -> Option<Rule> {
    let lo = Device { name: "lo".to_owned(), index: LOOPBACK };
    match place {
        Place::Assistant => None,
        Place::Target => Some(Rule { matches: vec![Match::Oif(lo)], statements: vec![Statement::Return] }),
    }
}

fn blackhole_rules(spec: &AssistantSpec, responses: &[Vec<Match>]) -> Vec<Rule> {
    let accepted = match spec.unclaimed {
        Unclaimed::Drop => None,
        Unclaimed::Accept => {
            Some(Rule { matches: vec![Match::Mark(spec.accept_mark)], statements: vec![Statement::Accept] })
        }
    };
    let dropped = responses
        .iter()
        .map(|response| Rule { matches: response.clone(), statements: vec![Statement::Drop] });
    accepted.into_iter().chain(dropped).collect()
}
