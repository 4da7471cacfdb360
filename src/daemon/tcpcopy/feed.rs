//! What leads packets to the workers' sources: the packet sockets' filters, or rules and a sink; and, where the responses
//! are taken on this host, rules for those.

use std::iter;
use std::path::Path;

use super::embedded::Own;
use super::responses::Origin;
use super::rules::Rules;
use crate::capture::{self, PacketOptions, PacketTap, QueueOptions};
use crate::config::tcpcopy::Settings;
use crate::config::{CaptureSource, RulesBy};
use crate::daemon::exit::Failure;
use crate::daemon::message_id;
use crate::daemon::queues::{self, AnySource, KernelDrops};
use crate::daemon::start::cannot;
use crate::netfilter::{Capture, Device, Families, OnlineSpec, Queues, TableName};
use crate::sys::capabilities::Capability;
use crate::sys::handover::Kind;
use crate::sys::links::LinkWatch;
use crate::sys::packet::PacketSocket;
use crate::wire::Time;

/// What opens the way from clients to the workers, and from targets if responses are taken on this host.
pub(super) struct Feed {
    queues: Queues,
    /// Clients' packets come through these sockets; `None`, through the queues.
    tap: Option<PacketTap>,
    /// What the responses are taken by, if they are.
    own: Option<Own>,
    /// `None` until they are installed.
    rules: Option<Rules>,
    drops: KernelDrops,
    /// The same of the queues of responses.
    response_drops: Option<KernelDrops>,
}

/// The sockets that one worker's source is opened from, as far as they take CAP_NET_RAW.
pub(super) fn kinds(source: CaptureSource) -> impl Iterator<Item = Kind> {
    let sockets = match source {
        CaptureSource::Nfqueue => 0,
        // One of each IP version.
        CaptureSource::Packet => 2,
    };
    iter::repeat_n(PacketSocket::KIND, sockets)
}

/// Opens a source for each worker, and a queue of responses if they are taken here. Packets come once [`Prepared::start`]
/// is called. To be called before privileges are given up, and before there are threads, see
/// [`sys::nfqueue`](crate::sys::nfqueue).
pub(super) fn prepare(settings: &Settings) -> Result<(Vec<AnySource>, Vec<Origin>, Prepared), Failure> {
    let queues = queues::number(settings.queue, settings.workers)?;
    let (sources, tap) = match settings.source {
        CaptureSource::Nfqueue => {
            let sources = queues::open(queues, QueueOptions::packets())?;
            (sources.into_iter().map(|source| Box::new(source) as AnySource).collect(), None)
        }
        CaptureSource::Packet => {
            let (sources, tap) = capture::open_packet_sources(packet_options(settings), settings.workers)?;
            warn_of_short_buffers(&tap);
            (sources.into_iter().map(|source| Box::new(source) as AnySource).collect(), Some(tap))
        }
    };
    let (own, origins) = super::origins(settings)?;
    let drops = KernelDrops::of(queues);
    let response_drops = own.as_ref().map(|own| KernelDrops::of(own.queues()));
    let feed = Feed { queues, tap, own, rules: None, drops, response_drops };
    let spec = feed.spec(settings, feed.own.as_ref());
    Ok((sources, origins, Prepared { feed, spec }))
}

/// What of the capabilities is needed once all is prepared: for rules, the sink and verdicts.
pub(super) const NEEDS: &[Capability] = &[Capability::NetAdmin];

/// A [`Feed`] that is closed yet, and the rules to open it with.
pub(super) struct Prepared {
    feed: Feed,
    spec: OnlineSpec,
}

impl Prepared {
    /// What the responses are taken by on this host, if they are.
    pub(super) fn own(&self) -> Option<&Own> {
        self.feed.own()
    }

    /// From here on packets come. The rules, which take responses, are there before the first request.
    pub(super) fn start(self, by: RulesBy) -> Result<Feed, Failure> {
        let Self { mut feed, spec } = self;
        feed.rules = Some(Rules::install(spec, by)?);
        if let Some(tap) = &feed.tap {
            tap.open().map_err(cannot("set the packet sockets' filters"))?;
        }
        Ok(feed)
    }
}

impl Feed {
    /// Logs that it works.
    pub(super) fn tell_ready(&self, workers: usize) {
        let rules = self.rules.as_ref();
        tracing::info!(
            workers,
            source = self.tap.as_ref().map(|_| "packet"),
            queue = self.tap.is_none().then(|| self.queues.numbers().next()).flatten(),
            sink = rules.and_then(Rules::sink),
            rules = rules.map(Rules::kind),
            MESSAGE_ID = message_id::READY,
            "ready"
        );
    }

    /// What the responses are taken by on this host, if they are.
    pub(super) fn own(&self) -> Option<&Own> {
        self.own.as_ref()
    }

    /// Captures what these settings say. If that fails, what was captured before still is.
    pub(super) fn replace(&mut self, settings: &Settings) -> Result<(), Failure> {
        let own = self.own.as_ref().map(|own| own.renewed(settings)).transpose()?;
        let spec = self.spec(settings, own.as_ref());
        if let Some(rules) = &mut self.rules {
            rules.replace(spec)?;
        }
        self.own = own;
        match &mut self.tap {
            Some(tap) => Ok(tap.replace(&packet_options(settings))?),
            None => Ok(()),
        }
    }

    /// Packets that were duplicated for us.
    pub(super) fn duplicated(&mut self) -> Option<u64> {
        match &mut self.tap {
            Some(tap) => tap.counters().ok().map(|counters| counters.packets),
            None => self.rules.as_mut().and_then(Rules::duplicated),
        }
    }

    /// Packets that were not, because they came faster than the greatest rate.
    pub(super) fn over_limit(&mut self) -> Option<u64> {
        self.rules.as_mut().and_then(Rules::over_limit)
    }

    /// Of those, what the kernel dropped before anybody here could see it, as far as it says.
    pub(super) fn kernel_dropped(&mut self) -> Option<u64> {
        match &mut self.tap {
            Some(tap) => tap.counters().ok().map(|counters| counters.dropped),
            None => self.drops.read().map(|each| each.iter().sum()),
        }
    }

    /// The same of responses, if they are taken here.
    pub(super) fn responses_dropped(&mut self) -> Option<u64> {
        self.response_drops.as_mut().and_then(KernelDrops::read).map(|each| each.iter().sum())
    }

    /// When [`Feed::watch`] has something to do without news.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.rules.as_ref().and_then(Rules::poll_timeout)
    }

    /// Takes news about links in. Packet sockets are for all, whichever come and go.
    pub(super) fn watch(&mut self, now: Time, links: &mut LinkWatch) {
        match &mut self.rules {
            Some(rules) => rules.watch(now, links),
            None => drop(links.drain(|_| ())),
        }
    }

    /// Looks whether somebody changed the rules, and puts them back.
    pub(super) fn check(&mut self, now: Time) {
        if let Some(rules) = &mut self.rules {
            rules.check(now);
        }
    }

    /// From here on nothing is duplicated. Returns how many packets were, and what is to be said of it at the end.
    pub(super) fn take_out(&mut self) -> (Option<u64>, &'static str) {
        if let Some(tap) = &self.tap
            && let Err(error) = tap.close()
        {
            tracing::warn!(%error, "packets are captured until the process ends");
        }
        // The rules' counter goes with them.
        let duplicated = self.duplicated();
        let farewell = self.rules.as_mut().map_or("stopped; the packet sockets are closed", Rules::take_out);
        (duplicated, farewell)
    }

    /// The rules that are needed: those that capture, unless packet sockets do, and those that take responses, or that
    /// drop ICMP errors.
    fn spec(&self, settings: &Settings, own: Option<&Own>) -> OnlineSpec {
        online_spec(settings, own, self.queues, self.tap.is_none())
    }
}

fn warn_of_short_buffers(tap: &PacketTap) {
    if let Some(buffer) = tap.short_buffer() {
        tracing::warn!(
            ?buffer,
            "the packet sockets' receive buffers are smaller than wanted, bursts may be lost: raise \
             net.core.rmem_max or run with CAP_NET_ADMIN"
        );
    }
}

fn packet_options(settings: &Settings) -> PacketOptions<'_> {
    PacketOptions {
        mappings: &settings.mappings,
        share: settings.share(),
        clients: &settings.clients,
        mark: settings.mark,
        pure_acks: settings.pure_acks,
        handshake_acks: settings.handshake_acks,
    }
}

/// Whether the kernel has connection tracking loaded. Whoever loads it later is noticed when the rules are checked.
pub(super) fn tracks_connections() -> bool {
    Path::new("/proc/sys/net/netfilter/nf_conntrack_count").exists()
}

/// The rules, with those that capture if clients' packets come by them.
fn online_spec(settings: &Settings, own: Option<&Own>, queues: Queues, capture: bool) -> OnlineSpec {
    let targets = || settings.mappings.iter().map(|mapping| mapping.target);
    let captured = settings.mappings.iter().filter(|_| capture);
    OnlineSpec {
        table: TableName::new(&settings.table).expect("the settings have checked the name alike"),
        captures: captured.map(|mapping| Capture { online: mapping.online, port: mapping.port }).collect(),
        clients: settings.clients.clone(),
        share: settings.share(),
        max_packets_per_second: settings.max_packets_per_second,
        // Embedded, what is sent has an address of this host.
        targets: targets().filter(|_| own.is_none()).collect(),
        families: Families {
            v4: targets().any(|target| target.is_ipv4()),
            v6: targets().any(|target| target.is_ipv6()),
        },
        sink: Device { name: settings.sink.clone(), index: 0 },
        queues,
        mark: settings.mark,
        pure_acks: settings.pure_acks,
        handshake_acks: settings.handshake_acks,
        conntrack: tracks_connections(),
        responses: own.map(Own::rules),
    }
}
