//! Responses taken on this host itself: from a queue of the worker's own to its replayer.
//!
//! The replayed clients are addresses of this host and ports kept for them. The rules queue what the targets send there,
//! so that neither this host's TCP nor anybody else sees it; the header is all that is needed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use mio::{Registry, Token};

use crate::capture::{Checksums, NfQueue, QueueOptions, Received, Source};
use crate::config::tcpcopy::Settings;
use crate::daemon::exit::{Code, Failure};
use crate::daemon::intake;
use crate::daemon::queues::{self, BATCHES, Intake};
use crate::daemon::wait::watch;
use crate::netfilter::{OwnResponses, Queues};
use crate::replayer::{Local, Replayer};
use crate::sys::route::source_toward;
use crate::wire::{FlowKey, Reject, Tally, Time};

/// One worker's queue of responses.
pub(super) struct Embedded {
    queue: NfQueue,
    checksums: Checksums,
    /// The queue has packets, or may have.
    ready: bool,
    /// When it gave some.
    gave: Time,
    intake: Intake,
    rejects: Tally<Reject>,
}

impl Embedded {
    /// Takes responses from `queue`, and has the worker woken with `token`.
    pub(super) fn new(queue: NfQueue, registry: &Registry, token: Token) -> io::Result<Self> {
        for fd in queue.fds() {
            watch(registry, fd, token)?;
        }
        Ok(Self {
            queue,
            checksums: Checksums::default(),
            ready: true,
            gave: Time::ZERO,
            intake: Intake::default(),
            rejects: Tally::default(),
        })
    }

    /// The queue has become readable.
    pub(super) fn ready(&mut self) {
        self.ready = true;
    }

    /// Whether it gave packets at `now` or later.
    pub(super) fn flows(&self, now: Time) -> bool {
        self.gave >= now
    }

    /// Whether there is more to receive than the last turn had time for.
    pub(super) fn wants_turn(&self) -> bool {
        self.ready
    }

    /// Packets received, and those that are no response that can be read.
    pub(super) fn counters(&self) -> (Intake, &Tally<Reject>) {
        (self.intake, &self.rejects)
    }

    /// Receives, up to a budget, and hands the responses to the replayer.
    pub(super) fn receive(&mut self, now: Time, replayer: &mut Replayer) -> io::Result<()> {
        for _ in 0..BATCHES {
            if !self.ready {
                break;
            }
            self.ready = self.receive_batch(now, replayer)?.full;
        }
        Ok(())
    }

    /// Receives what is left, the rules being out.
    pub(super) fn drain(&mut self, now: Time, replayer: &mut Replayer) -> io::Result<()> {
        queues::drain(|| self.receive_batch(now, replayer))
    }

    fn receive_batch(&mut self, now: Time, replayer: &mut Replayer) -> io::Result<Received> {
        let Self { queue, checksums, rejects, gave, .. } = self;
        let received = queue.receive(&mut |captured| match intake::read(&captured, checksums) {
            Ok(packet) => {
                let flow = FlowKey { client: packet.dst, server: packet.src };
                tracing::trace!(client = %flow.client, header = ?packet.header, "response");
                replayer.handle_response(now, &flow, &packet.header);
            }
            Err(reject) => {
                tracing::trace!(%reject, "response");
                rejects.count(reject);
            }
        })?;
        if received.packets > 0 {
            *gave = now;
        }
        self.intake.add(&received);
        Ok(received)
    }
}

/// The addresses, ports and queues of this host that the replay goes by.
pub(super) struct Own {
    local: Local,
    /// What the rules take: also what sessions that live longer than a setting go by.
    flows: Vec<(SocketAddr, IpAddr)>,
    queues: Queues,
}

impl Own {
    /// Finds the addresses and opens the queues, one for each worker. To be called before there are threads.
    pub(super) fn open(
        settings: &Settings,
        ports: &RangeInclusive<u16>,
    ) -> Result<(Self, Vec<NfQueue>), Failure> {
        let local = Local { addresses: addresses(settings)?, ports: ports.clone() };
        let queues = queues::number(settings.queue.saturating_add(settings.workers), settings.workers)?;
        let opened = queues::open(queues, QueueOptions::headers())?;
        Ok((Self { flows: local.addresses.clone(), local, queues }, opened))
    }

    /// The same with the addresses that other settings, and the routing table as it is now, lead to.
    pub(super) fn renewed(&self, settings: &Settings) -> Result<Self, Failure> {
        let local = Local { addresses: addresses(settings)?, ports: self.local.ports.clone() };
        let mut flows = self.flows.clone();
        flows.extend(local.addresses.iter().filter(|flow| !self.flows.contains(flow)));
        Ok(Self { local, flows, queues: self.queues })
    }

    /// What sessions that begin are replayed from.
    pub(super) fn local(&self) -> &Local {
        &self.local
    }

    /// The queues of responses, in the order of the workers.
    pub(super) fn queues(&self) -> Queues {
        self.queues
    }

    /// What the rules are to take.
    pub(super) fn rules(&self) -> OwnResponses {
        OwnResponses { flows: self.flows.clone(), ports: self.local.ports.clone(), queues: self.queues }
    }
}

/// Each target with the addresses that are replayed from: those of the settings, or the one that the routing table
/// chooses.
fn addresses(settings: &Settings) -> Result<Vec<(SocketAddr, IpAddr)>, Failure> {
    let mut addresses: Vec<(SocketAddr, IpAddr)> = Vec::new();
    for target in settings.mappings.iter().map(|mapping| mapping.target) {
        if addresses.iter().any(|(known, _)| *known == target) {
            continue;
        }
        if settings.pools.is_empty() {
            let source = source_toward(target.ip()).map_err(|error| {
                Failure::new(
                    Code::Unavailable,
                    format!(
                        "no route to the target {target}: {error}; set one, or name the address to replay from with -c"
                    ),
                )
            })?;
            addresses.push((target, source));
        } else {
            let pools = settings.pools.iter().filter(|pool| pool.is_ipv4() == target.is_ipv4());
            addresses.extend(pools.map(|pool| (target, pool.address())));
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;

    fn settings(options: &str) -> Settings {
        let arguments = format!("tcpcopy --config /dev/null --embedded {options}");
        let action = Settings::load(arguments.split(' ').map(Into::into));
        let Ok(Action::Run(settings)) = action else { panic!("{options}: {action:?}") };
        settings
    }

    fn flow(target: &str, own: &str) -> (SocketAddr, IpAddr) {
        (target.parse().expect("address"), own.parse().expect("address"))
    }

    #[test]
    fn each_target_is_replayed_to_from_the_routes_address_or_from_those_of_the_settings() {
        let two = "-x 80-127.0.0.1:81,90-127.0.0.1:81,443-127.0.0.9:81";
        let routed = addresses(&settings(two)).expect("local routes");
        assert_eq!(routed, [flow("127.0.0.1:81", "127.0.0.1"), flow("127.0.0.9:81", "127.0.0.1")]);
        let set =
            addresses(&settings("-x 80-10.0.0.9:81 -c 10.0.0.1,10.0.0.2")).expect("no route is asked for");
        assert_eq!(set, [flow("10.0.0.9:81", "10.0.0.1"), flow("10.0.0.9:81", "10.0.0.2")]);
    }

    #[test]
    fn rules_keep_what_sessions_of_before_go_by() {
        let before = addresses(&settings("-x 80-127.0.0.1:81")).expect("local route");
        let own = Own {
            local: Local { addresses: before.clone(), ports: 10_000..=29_999 },
            flows: before,
            queues: Queues::new(1, 1).expect("one queue"),
        };
        let own = own.renewed(&settings("-x 80-127.0.0.9:81")).expect("local route");
        assert_eq!(own.local().addresses, [flow("127.0.0.9:81", "127.0.0.1")]);
        let both = [flow("127.0.0.1:81", "127.0.0.1"), flow("127.0.0.9:81", "127.0.0.1")];
        assert_eq!(own.rules().flows, both);
        assert_eq!(own.renewed(&settings("-x 80-127.0.0.1:81")).expect("local route").rules().flows, both);
    }
}
