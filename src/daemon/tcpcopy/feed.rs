//! What leads clients' packets to the workers' sources: rules and a sink, or the packet sockets' filters.

use crate::capture::{self, PacketOptions, PacketTap, QueueOptions, Source};
use crate::config::tcpcopy::{CaptureSource, Settings};
use crate::daemon::exit::Failure;
use crate::daemon::message_id;
use crate::daemon::queues;
use crate::daemon::start::cannot;
use crate::netfilter::{Capture, Device, Families, OnlineSpec, Queues, TableName};
use crate::sys::links::LinkWatch;
use crate::wire::Time;

use super::rules::Rules;

/// A worker's source.
pub(super) type AnySource = Box<dyn Source + Send>;

/// Opens a source for each worker. Packets come once [`Prepared::start`] is called. To be called before there are threads,
/// see [`sys::nfqueue`](crate::sys::nfqueue).
pub(super) fn prepare(settings: &Settings) -> Result<(Vec<AnySource>, Prepared), Failure> {
    match settings.source {
        CaptureSource::Nfqueue => {
            let numbers = queues::number(settings.queue, settings.workers)?;
            let sources = queues::open(numbers, QueueOptions::packets())?;
            let prepared = Prepared::Rules(Box::new(online_spec(settings, numbers)));
            Ok((sources.into_iter().map(|source| Box::new(source) as AnySource).collect(), prepared))
        }
        CaptureSource::Packet => {
            let (sources, tap) = capture::open_packet_sources(packet_options(settings), settings.workers)?;
            if let Some(buffer) = tap.short_buffer() {
                tracing::warn!(
                    ?buffer,
                    "the packet sockets' receive buffers are smaller than wanted, bursts may be lost: raise \
                     net.core.rmem_max or run with CAP_NET_ADMIN"
                );
            }
            let sources = sources.into_iter().map(|source| Box::new(source) as AnySource).collect();
            Ok((sources, Prepared::Packets(tap)))
        }
    }
}

/// What is ready to lead packets to the sources.
pub(super) enum Prepared {
    /// These rules are to be installed.
    Rules(Box<OnlineSpec>),
    /// These sockets are to be opened.
    Packets(PacketTap),
}

impl Prepared {
    /// From here on packets come.
    pub(super) fn start(self) -> Result<Feed, Failure> {
        match self {
            Self::Rules(spec) => {
                let queues = spec.queues;
                Ok(Feed::Rules(Box::new(Rules::install(*spec)?), queues))
            }
            Self::Packets(tap) => {
                tap.open().map_err(cannot("set the packet sockets' filters"))?;
                Ok(Feed::Packets(tap))
            }
        }
    }
}

/// What leads packets to the sources.
pub(super) enum Feed {
    /// Rules that duplicate packets into queues.
    Rules(Box<Rules>, Queues),
    /// Packet sockets.
    Packets(PacketTap),
}

impl Feed {
    /// Logs that it works.
    pub(super) fn tell_ready(&self, workers: usize) {
        match self {
            Self::Rules(rules, queues) => tracing::info!(
                workers,
                queue = queues.numbers().next(),
                sink = rules.sink(),
                rules = rules.kind(),
                MESSAGE_ID = message_id::READY,
                "ready"
            ),
            Self::Packets(_) => {
                tracing::info!(workers, source = "packet", MESSAGE_ID = message_id::READY, "ready");
            }
        }
    }

    /// Captures what these settings say. If that fails, what was captured before still is.
    pub(super) fn replace(&mut self, settings: &Settings) -> Result<(), Failure> {
        match self {
            Self::Rules(rules, queues) => rules.replace(online_spec(settings, *queues)),
            Self::Packets(tap) => Ok(tap.replace(packet_options(settings))?),
        }
    }

    /// Packets that were duplicated for us.
    pub(super) fn duplicated(&mut self) -> Option<u64> {
        match self {
            Self::Rules(rules, _) => rules.duplicated(),
            Self::Packets(tap) => tap.counters().ok().map(|counters| counters.packets),
        }
    }

    /// Of those, what the kernel dropped before anybody here could see it.
    pub(super) fn kernel_dropped(&mut self) -> u64 {
        match self {
            Self::Rules(_, queues) => queues::kernel_dropped(*queues).iter().sum(),
            Self::Packets(tap) => tap.counters().map(|counters| counters.dropped).unwrap_or_default(),
        }
    }

    /// When [`Feed::watch`] has something to do without news.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        match self {
            Self::Rules(rules, _) => rules.poll_timeout(),
            Self::Packets(_) => None,
        }
    }

    /// Takes news about links in. Packet sockets are for all, whichever come and go.
    pub(super) fn watch(&mut self, now: Time, links: &mut LinkWatch) {
        match self {
            Self::Rules(rules, _) => rules.watch(now, links),
            Self::Packets(_) => drop(links.drain(|_| ())),
        }
    }

    /// Looks whether somebody changed it, and puts it back.
    pub(super) fn check(&mut self, now: Time) {
        match self {
            Self::Rules(rules, _) => rules.check(now),
            Self::Packets(_) => {}
        }
    }

    /// From here on nothing is duplicated. Returns what was.
    pub(super) fn take_out(&mut self) -> Option<u64> {
        match self {
            Self::Rules(rules, _) => {
                // The rules' counter goes with them.
                let duplicated = rules.duplicated();
                rules.take_out();
                duplicated
            }
            Self::Packets(tap) => {
                if let Err(error) = tap.close() {
                    tracing::warn!(%error, "packets are captured until the process ends");
                }
                self.duplicated()
            }
        }
    }
}

fn packet_options(settings: &Settings) -> PacketOptions<'_> {
    PacketOptions {
        mappings: &settings.mappings,
        mark: settings.mark,
        pure_acks: settings.pure_acks,
        handshake_acks: settings.handshake_acks,
    }
}

fn online_spec(settings: &Settings, queues: Queues) -> OnlineSpec {
    let targets = || settings.mappings.iter().map(|mapping| mapping.target);
    OnlineSpec {
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
    }
}
