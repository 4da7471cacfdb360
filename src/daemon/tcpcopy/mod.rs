//! The program `tcpcopy`: replays what clients send to this host.
//!
//! | thread | file | owns |
//! |---|---|---|
//! | main, as `control` | `control`, `feed`, `rules`, `guard`, `paths`, `peers`, `statistics` | signals, what leads packets to the workers, readiness, statistics |
//! | `worker-0`… | `worker`, `responses`, `departures` | a source of packets, its sessions, the sockets that segments leave by, and the responses: by tunnels to all intercepts (`tunnels`) or from a queue of its own (`embedded`) |
//!
//! Workers share nothing. The order at the start: queues, so that rules find them; workers; sink
//! and rules; and `ready` once every intercept has taken the tunnels, because only then a response
//! is sure not to reach a real client. Until then what is captured waits, within the memory limit.
//! Where this process takes the responses itself, it is ready at once.

mod control;
mod departures;
mod embedded;
mod feed;
mod guard;
mod paths;
mod peers;
mod responses;
mod rules;
mod statistics;
mod tunnels;
mod worker;

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::sync::Arc;

use mio::Poll;

use self::control::{Control, INBOX, Parts};
use self::departures::Departures;
use self::embedded::Own;
use self::guard::Guard;
use self::paths::Paths;
use self::peers::Peers;
use self::responses::Origin;
use self::statistics::Statistics;
use self::worker::Configuration;
use super::clock::Clock;
use super::descriptors;
use super::exit::{self, Code, Failure};
use super::keygen;
use super::link::Protocol;
use super::logging::Level;
use super::privileges;
use super::signals::Signals;
use super::start::{self, cannot};
use super::threads;
use crate::config::Action;
use crate::config::tcpcopy::{PROGRAM, Segmentation, Settings};
use crate::replayer::{self, TargetHealth};
use crate::sys::handover::Kind;
use crate::sys::links::LinkWatch;
use crate::tunnel::Limits;
use crate::wire::MAX_TRAIN;
use crate::{doctor, session};

/// The program `tcpcopy`.
pub fn main() -> ExitCode {
    exit::run(PROGRAM.name, || match Settings::load(std::env::args_os())? {
        Action::Print(text) => exit::print(&text),
        Action::MakeKey(file) => keygen::make(file.as_deref()),
        Action::LoadRules(_) | Action::ShowRules(_) | Action::RemoveRules(_) => {
            Err(Failure::new(Code::Usage, "the rules come and go with tcpcopy"))
        }
        Action::Run(settings) => {
            let executed = privileges::execute_without_net_raw(sockets(&settings));
            let level = start::begin(&settings.log, &settings.warnings, || doctor::online(&settings))?;
            if let Err(error) = executed {
                tracing::warn!(%error, "cannot execute itself again: keeps CAP_NET_RAW, which it does not need");
            }
            run(settings, level)
        }
    })
}

/// The sockets that are opened once and take CAP_NET_RAW.
fn sockets(settings: &Settings) -> impl Iterator<Item = Kind> {
    (0..settings.workers)
        .flat_map(|_| feed::kinds(settings.source).chain(Departures::kinds(settings.segmentation)))
}

fn run(settings: Settings, level: Level) -> Result<(), Failure> {
    let clock = Clock::start();
    // Every worker has a tunnel to every worker of every intercept.
    descriptors::raise();
    let signals = Signals::install().map_err(cannot("take over signals"))?;
    let links = LinkWatch::open().map_err(cannot("watch network links"))?;
    let (sources, origins, prepared) = feed::prepare(&settings)?;
    let departures = (0..settings.workers)
        .map(|_| Departures::open(settings.mark, settings.segmentation, settings.embedded.is_some()))
        .collect::<Result<Vec<_>, _>>()?;

    // All that takes the others is open.
    privileges::give_up(&settings.user, feed::NEEDS)?;

    let targets = TargetHealth::of(&settings.mappings, &[]);
    let poll = Poll::new().map_err(cannot("make a poll"))?;
    let (reports, inbox) = threads::inbox(poll.registry(), INBOX).map_err(cannot("make a waker"))?;
    // None are forbidden yet: the start would have been refused.
    let (guard, mut paths) = (Guard::default(), Paths::default());
    paths.look(&settings);
    let mut workers = Vec::new();
    for (((index, source), departures), origin) in (0..).zip(sources).zip(departures).zip(origins) {
        let parts = worker::Parts {
            index,
            clock,
            source,
            departures,
            configuration: configuration(
                &settings,
                &targets,
                prepared.own(),
                HostNow { guard: &guard, paths: &paths },
                index,
            ),
            origin,
        };
        let handle = worker::spawn(parts, reports.clone()).map_err(cannot("start a worker"))?;
        workers.push(handle);
    }
    let feed = prepared.start(settings.rules)?;
    let peers = Peers::new(&settings.intercepts, workers.len());
    let statistics = Statistics::new(clock.now(), &settings);
    let parts = Parts {
        poll,
        clock,
        signals,
        links,
        feed,
        inbox,
        workers,
        targets,
        peers,
        statistics,
        settings,
        level,
    };
    Control::new(parts, paths).map_err(cannot("poll"))?.run()
}

/// Where each worker's responses come from, and by what of this host if they are met here.
fn origins(settings: &Settings) -> Result<(Option<Own>, Vec<Origin>), Failure> {
    if let Some(ports) = &settings.embedded {
        let (own, queues) = Own::open(settings, ports)?;
        return Ok((Some(own), queues.into_iter().map(Box::new).map(Origin::Queue).collect()));
    }
    // Names this process to the intercepts; std's hasher keys are the randomness it takes.
    let instance = RandomState::new().hash_one(std::process::id());
    let limits = tunnel_limits(settings.max_sessions);
    Ok((None, (0..settings.workers).map(|_| Origin::Intercepts { instance, limits }).collect()))
}

/// Bounds of one tunnel of one worker. The claims of all its sessions, made again at once, take a third of what may wait
/// at most, so that `max-sessions` can be raised while the program runs.
fn tunnel_limits(sessions: u32) -> Limits {
    let claims = 128 * usize::try_from(sessions).unwrap_or(usize::MAX >> 7);
    Limits { output: claims.saturating_add(1 << 20), ..Limits::default() }
}

/// What this host is like at the moment, as far as it bears on the replay.
#[derive(Clone, Copy)]
struct HostNow<'a> {
    guard: &'a Guard,
    paths: &'a Paths,
}

/// What worker `index` goes by. `targets`: shared by all workers.
fn configuration(
    settings: &Settings,
    targets: &[Arc<TargetHealth>],
    own: Option<&Own>,
    host: HostNow<'_>,
    index: u16,
) -> Configuration {
    let HostNow { guard, paths } = host;
    let replay = replayer::Config {
        forbidden: guard.forbidden(),
        path_mtus: paths.mtus(),
        ..replayer_config(settings, targets, own, index)
    };
    Configuration {
        replay: Arc::new(replay),
        intercepts: settings.intercepts.clone(),
        protocol: protocol(settings),
        coalesce: settings.coalesce,
    }
}

/// How the intercepts are spoken with.
fn protocol(settings: &Settings) -> Protocol {
    match settings.keys.last() {
        _ if settings.legacy => Protocol::Legacy,
        Some(key) => Protocol::Keyed(key.secret.clone()),
        None => Protocol::Open,
    }
}

fn replayer_config(
    settings: &Settings,
    targets: &[Arc<TargetHealth>],
    own: Option<&Own>,
    worker: u16,
) -> replayer::Config {
    let share = |total: u64| total.div_ceil(u64::from(settings.workers.max(1)));
    let size = |total: u64| usize::try_from(share(total)).unwrap_or(usize::MAX);
    let session = session::Config {
        gate: settings.gate,
        latency: settings.latency,
        mid_stream: settings.mid_stream,
        response_timeout: settings.response_timeout,
        idle_timeout: settings.idle_timeout,
        // One session may have it all: the limit of all sessions ends the one that holds most.
        buffer_limit: size(settings.memory_limit),
        max_train: match settings.segmentation {
            Segmentation::Own => 0,
            Segmentation::Offload => MAX_TRAIN,
        },
        ..session::Config::default()
    };
    replayer::Config {
        session: Arc::new(session),
        mappings: settings.mappings.clone(),
        forbidden: Vec::new(),
        targets: targets.to_vec(),
        reconnects_per_second: settings.max_reconnects_per_second,
        pools: settings.pools.clone(),
        local: own.map(|own| own.local().clone()),
        copies: settings.copies,
        share: settings.share(),
        clients: settings.clients.clone(),
        workers: settings.workers,
        worker,
        mtu: settings.mtu,
        path_mtus: Vec::new(),
        max_sessions: size(u64::from(settings.max_sessions)),
        memory_limit: size(settings.memory_limit),
    }
}
