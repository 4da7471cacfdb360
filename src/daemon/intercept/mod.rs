//! The program `intercept`: takes the target's responses and tells their claimers.
//!
//! | thread | owns |
//! |---|---|
//! | main, as `control` | signals, the rules and their watch, the statistics ([`control`]) |
//! | `acceptor` | the listener, and connections until their hello ([`acceptor`]) |
//! | `worker-0`… | a queue, its router, and the tunnels of those who claim its flows ([`worker`]) |
//!
//! Workers share nothing. The others speak to them through a channel and a waker, and they answer
//! the same way.
//!
//! The order at the start lets nothing slip: the listener is bound before anything is changed, the
//! queues are there before rules send packets to them, and `ready` comes last. At the stop the
//! rules stay, closed: a response must not reach a real client because intercept is away.

mod acceptor;
mod connections;
mod control;
mod listener;
mod worker;

use std::process::ExitCode;

use mio::{Poll, Token};

use super::clock::Clock;
use super::exit::{self, Code, Failure};
use super::logging;
use super::notify::Notifier;
use super::signals::Signals;
use super::threads;
use crate::capture::{NfQueue, QueueOptions};
use crate::config::Action;
use crate::config::intercept::{PROGRAM, Settings, Unclaimed};
use crate::doctor;
use crate::netfilter::{
    self, AssistantSpec, Installed, Place, QueueKind, Queues, RulesWatch, Ruleset, TableName,
};
use acceptor::Acceptor;
use control::{Control, Parts};
use worker::Worker;

/// The token of each thread's waker.
const WAKER: Token = Token(0);

/// The program `intercept`.
pub fn main() -> ExitCode {
    exit::run(PROGRAM.name, || match Settings::load(std::env::args_os())? {
        Action::Print(text) => exit::print(&text),
        Action::RemoveRules => remove_rules(),
        Action::Run(settings) => {
            logging::init(&settings.log).map_err(|error| Failure::new(Code::Software, error))?;
            for warning in &settings.warnings {
                tracing::warn!("{warning}");
            }
            exit::heed(doctor::assistant(&settings))?;
            run(&settings)
        }
    })
}

fn remove_rules() -> Result<(), Failure> {
    let table = TableName::intercept();
    let families = netfilter::remove_table(&table)?;
    if families.is_empty() {
        return exit::print(&format!("there is no table {table}: nothing to remove\n"));
    }
    let names: Vec<_> = families.iter().map(|family| format!("{family} {table}")).collect();
    exit::print(&format!(
        "removed table {}: nothing keeps the target's responses from real clients now, but a running intercept \
         puts the rules back\n",
        names.join(" and ")
    ))
}

fn run(settings: &Settings) -> Result<(), Failure> {
    let clock = Clock::start();
    let signals = Signals::install().map_err(|error| startup("take over signals", &error))?;
    let (listener, address) = listener::bind(settings)?;
    // Queues are opened before there are threads: see `sys::nfqueue`.
    let queues = open_queues(settings)?;
    let ruleset = ruleset(settings)?;
    let watch = RulesWatch::open(ruleset.name.clone()).map_err(|error| startup("watch the rules", &error))?;
    let rules = Installed::install(&ruleset)?;
    let kind = match rules.queue_kind() {
        QueueKind::Native => "native",
        QueueKind::Compat => "compat",
    };

    let poll = Poll::new().map_err(|error| startup("make a poll", &error))?;
    let (reports, inbox) =
        threads::inbox(poll.registry(), WAKER).map_err(|error| startup("make a waker", &error))?;
    let mut workers = Vec::new();
    for (index, queue) in (0..).zip(queues) {
        let worker =
            Worker::new(index, queue, settings, clock).map_err(|error| startup("set a worker up", &error))?;
        workers
            .push(worker::spawn(worker, reports.clone()).map_err(|error| startup("start a worker", &error))?);
    }
    let orders: Vec<_> = workers.iter().map(|handle| handle.orders.clone()).collect();
    let acceptor = Acceptor::new(listener, orders, clock)
        .and_then(acceptor::spawn)
        .map_err(|error| startup("start accepting", &error))?;

    let notifier = Notifier::new();
    let first_queue = settings.queue;
    tracing::info!(workers = settings.workers, queue = first_queue, listen = %address, rules = %kind, "ready");
    notifier.ready();
    let control = Control::new(Parts { poll, clock, signals, watch, rules, inbox, workers, first_queue })
        .map_err(|error| startup("poll", &error))?;
    let outcome = control.run(&notifier);
    acceptor.stop();
    outcome
}

fn startup(what: &str, error: &std::io::Error) -> Failure {
    Failure::system(format_args!("cannot {what}"), error, "look at the limits of this process (ulimit -a)")
}

fn open_queues(settings: &Settings) -> Result<Vec<NfQueue>, Failure> {
    let options = QueueOptions::headers();
    let mut queues = Vec::new();
    for index in 0..settings.workers {
        let number = settings.queue.saturating_add(index);
        let queue = NfQueue::open(number, options)?;
        let buffer = queue.receive_buffer();
        if buffer.is_short() {
            tracing::warn!(
                queue = number,
                ?buffer,
                "the queue's receive buffer is smaller than wanted, bursts may be lost: raise net.core.rmem_max or \
                 run with CAP_NET_ADMIN"
            );
        }
        queues.push(queue);
    }
    Ok(queues)
}

fn ruleset(settings: &Settings) -> Result<Ruleset, Failure> {
    let queues = Queues::new(settings.queue, settings.workers).ok_or_else(|| {
        Failure::new(Code::Config, "queue: the workers' queues end beyond 65535; choose a lower one")
    })?;
    Ok(netfilter::assistant(&AssistantSpec {
        table: TableName::intercept(),
        targets: settings.targets.clone(),
        queues,
        unclaimed: match settings.unclaimed {
            Unclaimed::Drop => netfilter::Unclaimed::Drop,
            Unclaimed::Accept => netfilter::Unclaimed::Accept,
        },
        accept_mark: settings.accept_mark,
        place: Place::Assistant,
    }))
}
