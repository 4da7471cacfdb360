//! The program `tcpcopy`: replays what clients send to this host.
//!
//! | thread | owns |
//! |---|---|
//! | main, as `control` | signals, the sink and the rules, readiness, statistics ([`control`], [`rules`]) |
//! | `worker-0`… | a queue, its sessions, a raw socket, tunnels to all intercepts ([`worker`], [`tunnels`]) |
//!
//! Workers share nothing. The order at the start: queues, so that rules find them; workers; sink
//! and rules; and `ready` once every intercept has taken the tunnels, because only then a response
//! is sure not to reach a real client. Until then what is captured waits, within the memory limit.

mod control;
mod rules;
mod tunnels;
mod worker;

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::sync::Arc;

use mio::Poll;

use self::control::{Control, INBOX, Parts};
use self::rules::Rules;
use super::clock::Clock;
use super::exit::{self, Code, Failure};
use super::logging;
use super::notify::Notifier;
use super::signals::Signals;
use super::threads;
use crate::capture::{NfQueue, QueueOptions};
use crate::config::Action;
use crate::config::tcpcopy::{Gate, Latency, MidStream, PROGRAM, Settings};
use crate::netfilter::{Capture, Device, Families, OnlineSpec, Queues, TableName};
use crate::replayer::{self, Route};
use crate::sys::links::LinkWatch;
use crate::sys::raw::RawSender;
use crate::{doctor, session};

/// The program `tcpcopy`.
pub fn main() -> ExitCode {
    exit::run(PROGRAM.name, || match Settings::load(std::env::args_os())? {
        Action::Print(text) => exit::print(&text),
        Action::RemoveRules => Err(Failure::new(Code::Usage, "the rules go away when tcpcopy ends")),
        Action::Run(settings) => {
            logging::init(&settings.log).map_err(|error| Failure::new(Code::Software, error))?;
            for warning in &settings.warnings {
                tracing::warn!("{warning}");
            }
            exit::heed(doctor::online(&settings))?;
            run(&settings)
        }
    })
}

fn run(settings: &Settings) -> Result<(), Failure> {
    let clock = Clock::start();
    let signals = Signals::install().map_err(|error| startup("take over signals", &error))?;
    let links = LinkWatch::open().map_err(|error| startup("watch network links", &error))?;
    // Queues are opened before there are threads: see `sys::nfqueue`.
    let queues = open_queues(settings)?;
    let senders = (0..settings.workers)
        .map(|_| RawSender::open(settings.mark))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| startup("open a raw socket", &error))?;

    let poll = Poll::new().map_err(|error| startup("make a poll", &error))?;
    let (reports, inbox) =
        threads::inbox(poll.registry(), INBOX).map_err(|error| startup("make a waker", &error))?;
    // Names this process to the intercepts; std's hasher keys are the randomness it takes.
    let instance = RandomState::new().hash_one(std::process::id());
    let mut workers = Vec::new();
    for ((index, queue), sender) in (0..).zip(queues).zip(senders) {
        let parts = worker::Parts {
            index,
            clock,
            queue,
            sender,
            config: Arc::new(replayer_config(settings, index)),
            intercepts: settings.intercepts.clone(),
            instance,
        };
        let handle =
            worker::spawn(parts, reports.clone()).map_err(|error| startup("start a worker", &error))?;
        workers.push(handle);
    }
    let rules = Rules::install(online_spec(settings)?)?;
    let first_queue = settings.queue;
    let notifier = Notifier::new();
    Control::new(Parts { poll, clock, signals, links, rules, inbox, workers, first_queue })
        .map_err(|error| startup("poll", &error))?
        .run(&notifier)
}

fn startup(what: &str, error: &std::io::Error) -> Failure {
    Failure::system(format_args!("cannot {what}"), error, "look at the limits of this process (ulimit -a)")
}

fn open_queues(settings: &Settings) -> Result<Vec<NfQueue>, Failure> {
    let mut queues = Vec::new();
    for index in 0..settings.workers {
        let number = settings.queue.saturating_add(index);
        let queue = NfQueue::open(number, QueueOptions::packets())?;
        let buffer = queue.receive_buffer();
        if buffer.is_short() {
            tracing::warn!(
                queue = number,
                ?buffer,
                "the queue's receive buffer is smaller than wanted, bursts may be lost: raise net.core.rmem_max \
                 or run with CAP_NET_ADMIN"
            );
        }
        queues.push(queue);
    }
    Ok(queues)
}

fn online_spec(settings: &Settings) -> Result<OnlineSpec, Failure> {
    let queues = Queues::new(settings.queue, settings.workers).ok_or_else(|| {
        Failure::new(Code::Config, "queue: the workers' queues end beyond 65535; choose a lower one")
    })?;
    let targets = || settings.mappings.iter().map(|mapping| mapping.target);
    Ok(OnlineSpec {
        table: TableName::tcpcopy(),
        captures: settings
            .mappings
            .iter()
            .map(|mapping| Capture { online: mapping.online, port: mapping.port })
            .collect(),
        clients: Vec::new(),
        families: Families {
            v4: targets().any(|target| target.is_ipv4()),
            v6: targets().any(|target| target.is_ipv6()),
        },
        sink: Device { name: settings.sink.clone(), index: 0 },
        queues,
        mark: settings.mark,
        pure_acks: settings.pure_acks,
        handshake_acks: settings.handshake_acks,
    })
}

fn replayer_config(settings: &Settings, worker: u16) -> replayer::Config {
    let share = |total: u64| total.div_ceil(u64::from(settings.workers.max(1)));
    let size = |total: u64| usize::try_from(share(total)).unwrap_or(usize::MAX);
    let session = session::Config {
        gate: match settings.gate {
            Gate::Response => session::GateMode::Response,
            Gate::None => session::GateMode::None,
        },
        latency: match settings.latency {
            Latency::Client => session::Latency::Client,
            Latency::None => session::Latency::None,
        },
        mid_stream: match settings.mid_stream {
            MidStream::Join => session::MidStream::Join,
            MidStream::Skip => session::MidStream::Skip,
        },
        response_timeout: settings.response_timeout,
        idle_timeout: settings.idle_timeout,
        // One session may have it all: the limit of all sessions ends the one that holds most.
        buffer_limit: size(settings.memory_limit),
        ..session::Config::default()
    };
    replayer::Config {
        session: Arc::new(session),
        routes: settings
            .mappings
            .iter()
            .map(|mapping| Route { online: mapping.online, port: mapping.port, target: mapping.target })
            .collect(),
        pools: settings.pools.clone(),
        copies: settings.copies,
        percent: settings.percent,
        workers: settings.workers,
        worker,
        mtu: settings.mtu,
        max_sessions: size(u64::from(settings.max_sessions)),
        memory_limit: size(settings.memory_limit),
    }
}
