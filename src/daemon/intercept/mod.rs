//! The program `intercept`: takes the target's responses and tells their claimers.
//!
//! | thread | file | owns |
//! |---|---|---|
//! | main, as `control` | `control`, `rules`, `routing`, `statistics` | signals, both layers and their watches, the statistics |
//! | `acceptor` | `acceptor`, `strangers`, `door` | the listener, and connections until their hello |
//! | `bridge` | `bridge` | connections of C tcpcopys; it waits where there are none, as a reload may name the first |
//! | `worker-0`… | `worker`, `connections` | a queue or a packet socket, its router, and the tunnels of those who claim its flows |
//!
//! Workers share nothing. The others speak to them through a channel and a waker, and they answer
//! the same way.
//!
//! The order at the start lets nothing slip: the listener is bound before anything is changed, the
//! queues are there before rules send packets to them, packet sockets take nothing before the rules drop it, and
//! `ready` comes last. At the stop the
//! rules stay, closed: a response must not reach a real client because intercept is away.

mod acceptor;
mod bridge;
mod budget;
mod closures;
mod connections;
mod control;
mod door;
mod feed;
mod listener;
mod lockout;
mod readiness;
mod routing;
mod rules;
mod statistics;
mod strangers;
mod strays;
mod turns;
mod worker;

use std::process::ExitCode;

use mio::{Poll, Token};

use super::clock::Clock;
use super::descriptors;
use super::exit::{self, Code, Failure};
use super::keygen;
use super::logging::Level;
use super::message_id;
use super::notify;
use super::privileges;
use super::signals::Signals;
use super::start::{self, cannot};
use super::threads;
use crate::config::intercept::{PROGRAM, Settings, Unclaimed};
use crate::config::{Action, RulesBy};
use crate::doctor;
use crate::netfilter::{self, AssistantSpec, Backstop, ClaimedFlows, Installed, Place, Queues, TableName};
use crate::router::FLOW_MEMORY;
use crate::sys::capabilities::Capability;
use acceptor::Acceptor;
use closures::Keeper;
use connections::Shared;
use control::{Control, Parts};
use listener::Listener;
use rules::Rules;
use statistics::Statistics;
use strangers::Room;
use strays::Strays;
use worker::Worker;

/// The token of each thread's waker.
const WAKER: Token = Token(0);

/// Connections that have not said hello, and the tunnels of each worker, at most.
const STRANGERS: usize = 1024;
const TUNNELS: usize = 1024;
/// Fewer than so many of either are of no use, whatever the limit of descriptors.
const FEWEST: usize = 16;
/// Descriptors that the process itself needs, and each of its workers.
const OWN: u64 = 32;
const OWN_OF_WORKER: u64 = 8;

/// The program `intercept`.
pub fn main() -> ExitCode {
    exit::run(PROGRAM.name, || match Settings::load(std::env::args_os())? {
        Action::Print(text) => exit::print(&text),
        Action::LoadRules(settings) => load_rules(&settings),
        Action::ShowRules(settings) => show_rules(&settings),
        Action::RemoveRules(table) => remove_rules(&table),
        Action::MakeKey(file) => keygen::make(file.as_deref()),
        Action::Run(settings) => {
            let level = start::begin(&settings.log, &settings.warnings, || doctor::assistant(&settings))?;
            run(settings, level)
        }
    })
}

/// The rules of a running intercept, without one: at boot, nothing passes before it runs.
///
/// Whether this host has the addresses that the settings suppose is not asked: there may be no network yet.
fn load_rules(settings: &Settings) -> Result<(), Failure> {
    if settings.rules == RulesBy::Operator {
        return exit::print("rules = \"manual\": nothing loaded\n");
    }
    let spec = spec(settings, feed::queues(settings)?);
    let ruleset = netfilter::assistant(&spec);
    let names: Vec<_> =
        ruleset.tables.iter().map(|table| format!("{} {}", table.family, ruleset.name)).collect();
    lockout::refuse_first_lockout(&spec)?;
    let routing = Backstop::new(&spec).put();
    Installed::install(&ruleset)?;
    routing.map_err(|error| {
        Failure::new(
            Code::System,
            format!("the rules are loaded, but there is no routing behind them: {error}"),
        )
    })?;
    exit::print(&format!(
        "loaded table {} and the routing behind it: this host is closed to the targets, whether intercept runs or not\n",
        names.join(" and ")
    ))
}

/// Both layers as text, for those who manage them by hand, and the commands that open the host.
fn show_rules(settings: &Settings) -> Result<(), Failure> {
    let spec = spec(settings, feed::queues(settings)?);
    let lines = |commands: Vec<String>| format!("# {}\n", commands.join("\n# "));
    exit::print(&format!(
        "# The first layer, for nft -f:\n\n{}\n\
         # The second layer. On the target itself, the MTU is that of the real route to the clients:\n{}\n\
         # What removes both. First delete the targets' route for replayed clients that leads here:\n{}",
        netfilter::assistant(&spec),
        lines(Backstop::new(&spec).commands_to_add()),
        lines(Backstop::commands_to_remove(&spec.table)),
    ))
}

fn remove_rules(table: &str) -> Result<(), Failure> {
    let table = table_name(table);
    let families = netfilter::remove_table(&table)?;
    ClaimedFlows::remove(&table)?;
    let routing = Backstop::remove(&table).map_err(|error| {
        Failure::system(
            "cannot remove the rules of the routing policy",
            &error,
            "look at `ip rule` and `ip -6 rule`",
        )
    })?;
    if families.is_empty() && !routing {
        return exit::print(&format!(
            "there is no table {table} and no routing behind it: nothing to remove\n"
        ));
    }
    let names: Vec<_> = families.iter().map(|family| format!("{family} {table}")).collect();
    let tables = (!names.is_empty()).then(|| format!("table {}", names.join(" and ")));
    let routing = routing.then(|| "the routing behind the rules".to_owned());
    let removed: Vec<_> = tables.into_iter().chain(routing).collect();
    exit::print(&format!(
        "removed {}: nothing keeps the target's responses from real clients now. The target's route for replayed clients \
         should be gone before; a running intercept puts all of this back.\n",
        removed.join(", and ")
    ))
}

fn run(settings: Settings, level: Level) -> Result<(), Failure> {
    let clock = Clock::start();
    let descriptors = descriptors::raise();
    let signals = Signals::install().map_err(cannot("take over signals"))?;
    let listener = Listener::bind(&settings)?;
    let address = listener.address();
    let (inlets, feed) = feed::open(&settings)?;
    let (rules, closures) = close(&settings, feed.queues())?;
    feed.start()?;

    // Rules and verdicts go on needing this one.
    privileges::give_up(&settings.user, &[Capability::NetAdmin])?;

    let poll = Poll::new().map_err(cannot("make a poll"))?;
    let (reports, inbox) = threads::inbox(poll.registry(), WAKER).map_err(cannot("make a waker"))?;
    let mut workers = Vec::new();
    let (room, most) = room(descriptors, settings.workers);
    let shared = Shared::new(&settings, most, rules.open());
    for (index, inlet) in (0..).zip(inlets) {
        let worker =
            Worker::new(index, inlet, &settings, clock, shared.clone()).map_err(cannot("set a worker up"))?;
        workers.push(worker::spawn(worker, reports.clone()).map_err(cannot("start a worker"))?);
    }
    let orders: Vec<_> = workers.iter().map(|handle| handle.orders.clone()).collect();
    let parts = bridge::Parts {
        clock,
        shared: shared.clone(),
        workers: orders.clone(),
        max_flows: worker::max_flows(&settings),
    };
    let bridge = bridge::spawn(parts, reports.clone()).map_err(cannot("start the bridge to C tcpcopys"))?;
    let others = (orders, bridge.thread.orders.clone());
    let acceptor = Acceptor::new(listener, others, clock, (room, shared.door.clone()))
        .and_then(|acceptor| acceptor::spawn(acceptor, reports))
        .map_err(cannot("start accepting"))?;

    warn_of_few_flows(&settings);
    tracing::info!(
        workers = settings.workers,
        source = feed.queues().is_none().then_some("packet"),
        queue = feed.queues().and_then(|queues| queues.numbers().next()),
        listen = %address,
        rules = rules.kind(),
        MESSAGE_ID = message_id::READY,
        "ready"
    );
    notify::ready();
    let parts = Parts {
        poll,
        clock,
        signals,
        rules,
        closures,
        inbox,
        workers,
        feed,
        statistics: Statistics::new(clock.now()),
        strays: Strays::default(),
        shared,
        acceptor,
        bridge,
        settings,
        level,
    };
    Control::new(parts).map_err(cannot("poll"))?.run()
}

/// Puts in force what keeps this host closed. The queues must be there.
fn close(settings: &Settings, queues: Option<Queues>) -> Result<(Rules, Option<Keeper>), Failure> {
    let spec = spec(settings, queues);
    let rules = Rules::install(&spec, settings.rules)?;
    Ok((rules, Keeper::install(settings, &spec)?))
}

/// `memory-limit` has room for fewer flows than `max-flows` says.
fn warn_of_few_flows(settings: &Settings) {
    let (flows, wanted) = (worker::max_flows(settings), settings.max_flows);
    if flows < wanted {
        let (bytes, limit) = (FLOW_MEMORY, settings.memory_limit);
        tracing::warn!(
            flows,
            wanted,
            limit,
            "At most {flows} flows can be claimed, not {wanted} (max-flows): each takes up to {bytes} bytes, and flows may \
             take half of memory-limit ({limit} bytes). Raise memory-limit, or lower max-flows."
        );
    }
}

/// How many connections there may be: those that have not said hello, and the tunnels of each worker. Of C tcpcopys, and
/// pipes for them, there may be as many descriptors as one worker has tunnels.
fn room(descriptors: Option<u64>, workers: u16) -> (Room, usize) {
    let own = OWN + OWN_OF_WORKER * u64::from(workers);
    let free =
        descriptors.map_or(usize::MAX, |all| usize::try_from(all.saturating_sub(own)).unwrap_or(usize::MAX));
    // Each worker has its part, and strangers and the bridge have one each.
    let part = free / (usize::from(workers) + 2);
    let (strangers, tunnels) = (STRANGERS.min(part).max(FEWEST), TUNNELS.min(part).max(FEWEST));
    if part < STRANGERS.max(TUNNELS) {
        tracing::warn!(
            descriptors,
            tunnels_of_each_worker = tunnels,
            "there are fewer descriptors than tcpcopys may connect with: raise the limit (LimitNOFILE=, ulimit -Hn)"
        );
    }
    (Room { all: strangers, one_address: strangers.div_ceil(4) }, tunnels)
}

fn table_name(name: &str) -> TableName {
    TableName::new(name).expect("the configuration allows only names that the rules allow")
}

fn spec(settings: &Settings, queues: Option<Queues>) -> AssistantSpec {
    AssistantSpec {
        table: table_name(&settings.table),
        targets: settings.targets.clone(),
        clients: settings.clients.clone(),
        pass: settings.pass.clone(),
        tunnel_port: settings.port,
        queues,
        unclaimed: match settings.unclaimed {
            Unclaimed::Drop => netfilter::Unclaimed::Drop,
            Unclaimed::Accept => netfilter::Unclaimed::Accept,
        },
        accept_mark: settings.accept_mark,
        place: if settings.on_target { Place::Target } else { Place::Assistant },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_as_many_as_descriptors_allow() {
        let counts = |descriptors, workers| {
            let (Room { all, one_address }, tunnels) = room(descriptors, workers);
            (all, one_address, tunnels)
        };
        assert_eq!(counts(None, 256), (1024, 256, 1024));
        assert_eq!(counts(Some(66_048), 61), (1024, 256, 1024));
        assert_eq!(counts(Some(1024), 2), (244, 61, 244));
        assert_eq!(counts(Some(40), 2), (16, 4, 16), "some, and those that are too many wait");
    }
}
