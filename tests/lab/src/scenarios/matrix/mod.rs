//! The leak matrix: while the target, a router before it and the online host make packets that no client may see, of all
//! kinds and both families at once, something happens to the host that keeps them from the clients.
//!
//! | file | contents |
//! |---|---|
//! | `run` | one run: chain, load, strays, and the proof that the same strays leak once the rules are gone |
//! | `events` | what happens to a host on which intercept runs |
//! | `online` | what happens to the online host |
//! | `route` | the target loses its route |
//! | `rules` | editing a ruleset |
//!
//! A run is one deployment and one event. No packet may leak before, during and after the event, nor after the daemons have
//! ended; production loses nothing; the replay goes on. What is random comes from a seed, which a failure names:
//! `lab run matrix/… --seed N` makes the same packets again.

mod events;
mod online;
mod route;
mod rules;
mod run;

use anyhow::Result;

use self::run::Run;
use super::{Context, Offloads, Scenario};
use crate::network::Role;

/// Which host keeps packets about the replay from the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    /// An assistant that forwards packets.
    Forwarding,
    /// An assistant that does not.
    NotForwarding,
    /// The target.
    OnTarget,
    /// The online host, beside an assistant.
    Online,
}

impl Keeper {
    fn name(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::NotForwarding => "not-forwarding",
            Self::OnTarget => "on-target",
            Self::Online => "online",
        }
    }

    /// The host that things happen to.
    fn role(self) -> Role {
        match self {
            Self::Forwarding | Self::NotForwarding => Role::Assistant,
            Self::OnTarget => Role::Target,
            Self::Online => Role::Online,
        }
    }

    /// Through whom a router on the way to the target reaches clients.
    fn router(self) -> Role {
        match self {
            Self::Forwarding | Self::NotForwarding => Role::Assistant,
            Self::OnTarget | Self::Online => Role::Online,
        }
    }
}

/// Something that happens.
#[derive(Clone, Copy)]
struct Event {
    name: &'static str,
    act: fn(&mut Run) -> Result<()>,
    /// Whether it happens to a host with packet sockets, too.
    sockets: bool,
}

impl Event {
    const fn new(name: &'static str, act: fn(&mut Run) -> Result<()>) -> Self {
        Self { name, act, sockets: false }
    }

    /// It also happens where packets are captured by packet sockets: what it does to rules or processes, it may do
    /// otherwise there.
    const fn and_sockets(self) -> Self {
        Self { sockets: true, ..self }
    }
}

/// How packets are captured, by tcpcopy and intercept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// By rules and queues.
    Queues,
    /// By packet sockets.
    Sockets,
}

/// What it is that something happens to.
#[derive(Clone, Copy, Debug)]
struct Deployment {
    keeper: Keeper,
    source: Source,
}

pub(super) fn scenarios() -> Vec<Scenario> {
    let keepers = [
        (Keeper::Forwarding, &events::ALL[..]),
        (Keeper::NotForwarding, &events::ALL),
        (Keeper::OnTarget, &events::ALL),
        (Keeper::Online, &online::ALL),
    ];
    let mut scenarios = vec![Scenario::new("matrix/forwarding/target-route-lost", Offloads::On, route::lost)];
    for (keeper, events) in keepers {
        for &event in events {
            for source in [Source::Queues, Source::Sockets] {
                let socket = match source {
                    Source::Queues => "",
                    // On the target, intercept has queues only.
                    Source::Sockets if keeper.role() == Role::Target || !event.sockets => continue,
                    Source::Sockets if keeper == Keeper::NotForwarding => continue,
                    Source::Sockets => "-sockets",
                };
                let name = format!("matrix/{}{socket}/{}", keeper.name(), event.name);
                let deployment = Deployment { keeper, source };
                scenarios
                    .push(Scenario::new(name, Offloads::On, move |context| run(context, deployment, event)));
            }
        }
    }
    scenarios
}

fn run(context: &Context, deployment: Deployment, event: Event) -> Result<String> {
    let mut run = Run::start(context, deployment)?;
    run.goes_on()?;
    (event.act)(&mut run)?;
    run.goes_on()?;
    run.check_leaks()?;
    run.replays_again()?;
    run.finish()
}
