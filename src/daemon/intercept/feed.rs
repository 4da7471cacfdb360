//! What leads responses to the workers: rules and queues, or packet sockets, which have seen them when the rules drop them.

use crate::capture::{self, HeaderSource, NfQueue, PacketTap, QueueOptions, ResponseOptions};
use crate::config::CaptureSource;
use crate::config::intercept::{Settings, Unclaimed};
use crate::daemon::exit::Failure;
use crate::daemon::queues::{self, AnySource, KernelDrops};
use crate::daemon::start::cannot;
use crate::netfilter::Queues;

/// Where one worker's responses come from.
pub(super) enum Inlet {
    /// What is received ends there.
    Ending(AnySource),
    /// Each response has a verdict of its own: some go on.
    Deciding(Box<NfQueue>),
}

/// What is common to the workers' inlets.
pub(super) enum Feed {
    /// Rules lead responses into these.
    Queues { numbers: Queues, drops: KernelDrops },
    /// These take what comes in.
    Sockets(PacketTap),
}

/// The queues that rules are to lead to, if they are.
pub(super) fn queues(settings: &Settings) -> Result<Option<Queues>, Failure> {
    match settings.source {
        CaptureSource::Nfqueue => queues::number(settings.queue, settings.workers).map(Some),
        CaptureSource::Packet => Ok(None),
    }
}

/// Opens an inlet for each worker. To be called before privileges are given up, and before there are threads, see
/// [`sys::nfqueue`](crate::sys::nfqueue).
pub(super) fn open(settings: &Settings) -> Result<(Vec<Inlet>, Feed), Failure> {
    let Some(numbers) = queues(settings)? else {
        let (sources, tap) = capture::open_header_sources(options(settings), settings.workers)?;
        let ending = |source: HeaderSource| Inlet::Ending(Box::new(source));
        return Ok((sources.into_iter().map(ending).collect(), Feed::Sockets(tap)));
    };
    let opened = queues::open(numbers, QueueOptions::headers())?;
    let inlet = |queue| match settings.unclaimed {
        Unclaimed::Drop => Inlet::Ending(Box::new(queue)),
        Unclaimed::Accept => Inlet::Deciding(Box::new(queue)),
    };
    let feed = Feed::Queues { numbers, drops: KernelDrops::of(numbers) };
    Ok((opened.into_iter().map(inlet).collect(), feed))
}

impl Feed {
    /// The queues that rules are to lead to, if they are.
    pub(super) fn queues(&self) -> Option<Queues> {
        match self {
            Self::Queues { numbers, .. } => Some(*numbers),
            Self::Sockets(_) => None,
        }
    }

    /// From now on responses come, if they are not the rules' to send.
    pub(super) fn start(&self) -> Result<(), Failure> {
        match self {
            Self::Queues { .. } => Ok(()),
            Self::Sockets(tap) => tap.open().map_err(cannot("set the packet sockets' filters")),
        }
    }

    /// Takes the responses that these settings say, if they are not the rules' to choose. If that fails, those of before.
    pub(super) fn replace(&mut self, settings: &Settings) -> Result<(), Failure> {
        match self {
            Self::Queues { .. } => Ok(()),
            Self::Sockets(tap) => Ok(tap.replace(&options(settings))?),
        }
    }

    /// What the kernel has dropped of each worker's responses; `None` where it does not say.
    pub(super) fn kernel_dropped(&mut self) -> Option<Vec<u64>> {
        match self {
            Self::Queues { drops, .. } => drops.read(),
            Self::Sockets(tap) => {
                let counters = tap.counters_of_workers().ok()?;
                Some(counters.iter().map(|counters| counters.dropped).collect())
            }
        }
    }
}

fn options(settings: &Settings) -> ResponseOptions<'_> {
    ResponseOptions { targets: &settings.targets, clients: &settings.clients }
}
