//! The rules of an intercept: the target's responses are queued, and whatever the queue does not take is dropped.
//!
//! - `responses` queues what the targets send, without bypass.
//! - `blackhole` (same hook, one priority later) drops it: a verdict `accept` ends the first chain only, so a response
//!   gets no further even if somebody puts a rule with `accept` or bypass before ours. With `unclaimed = accept`,
//!   intercept sets a mark with its verdict and that mark alone passes.
//!
//! The tables have no owner: they stay, closed, when intercept is down. `intercept rules remove` takes them away.

use std::net::SocketAddr;

use super::online::queue_rules;
use super::ruleset::{Chain, End, Family, Hook, Match, Queues, Rule, Ruleset, Statement, Table, TableName};
use crate::wire::Prefix;

const RAW: i32 = -300;

/// What intercept captures, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssistantSpec {
    /// The tables' name.
    pub table: TableName,
    /// The addresses that target software answers from; none, no rules.
    pub targets: Vec<SocketAddr>,
    /// One queue for each worker.
    pub queues: Queues,
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
    let mut responses: Vec<[Match; 2]> = Vec::new();
    for target in spec.targets.iter().filter(|target| Family::of(target.ip()) == family) {
        let response = [Match::Saddr(Prefix::single(target.ip())), Match::TcpSport(target.port())];
        if !responses.contains(&response) {
            responses.push(response);
        }
    }
    if responses.is_empty() {
        return None;
    }
    let hook = match spec.place {
        Place::Assistant => Hook::Prerouting,
        Place::Target => Hook::Output,
    };
    let queued = responses.iter().flat_map(|response| queue_rules(response, End::Destination, spec.queues));
    let responses_chain = Chain { name: "responses", hook, priority: RAW, rules: queued.collect() };
    let blackhole =
        Chain { name: "blackhole", hook, priority: RAW + 1, rules: blackhole_rules(spec, &responses) };
    Some(Table { family, sets: Vec::new(), chains: vec![responses_chain, blackhole] })
}

fn blackhole_rules(spec: &AssistantSpec, responses: &[[Match; 2]]) -> Vec<Rule> {
    let accepted = match spec.unclaimed {
        Unclaimed::Drop => None,
        Unclaimed::Accept => {
            Some(Rule { matches: vec![Match::Mark(spec.accept_mark)], statements: vec![Statement::Accept] })
        }
    };
    let dropped = responses
        .iter()
        .map(|response| Rule { matches: response.to_vec(), statements: vec![Statement::Drop] });
    accepted.into_iter().chain(dropped).collect()
}
