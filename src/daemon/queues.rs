//! The workers' sources: queues opened, and what comes out of any source counted.

use std::io;

use super::exit::{Code, Failure};
use crate::capture::{KernelCounters, NfQueue, QueueOptions, Received, Source};
use crate::netfilter::{QueueKind, Queues};

/// A worker's source, of whatever kind.
pub(super) type AnySource = Box<dyn Source + Send>;

/// Batches received from a source in one turn of a worker's loop.
pub(super) const BATCHES: usize = 16;

/// Packets that are received at most once the rules are out: as many as a queue holds.
const LAST: u64 = 65_536;

/// One queue for each of `workers`, from number `first` on.
pub(super) fn number(first: u16, workers: u16) -> Result<Queues, Failure> {
    Queues::new(first, workers).ok_or_else(|| {
        Failure::new(Code::Config, "queue: the workers' queues end beyond 65535; choose a lower one")
    })
}

/// Opens them, in the order of the workers. To be called before there are threads: see
/// [`sys::nfqueue`](crate::sys::nfqueue).
pub(super) fn open(queues: Queues, options: QueueOptions) -> Result<Vec<NfQueue>, Failure> {
    let mut opened = Vec::new();
    for number in queues.numbers() {
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
        opened.push(queue);
    }
    Ok(opened)
}

/// Receives what is left once the rules are out. Rules that are the operator's, or could not be taken out, go on leading
/// packets to the queue: then there would be no end of it.
pub(super) fn drain(mut receive: impl FnMut() -> io::Result<Received>) -> io::Result<()> {
    let mut left = LAST;
    while left > 0 {
        let received = receive()?;
        if received.packets == 0 && !received.full {
            break;
        }
        left = left.saturating_sub(u64::from(received.packets.max(1)));
    }
    Ok(())
}

/// What the kernel dropped of the workers' queues, because they were full or because we did not read.
#[derive(Debug)]
pub(super) struct KernelDrops {
    queues: Queues,
    /// `None` where we may not read it.
    counters: Option<KernelCounters>,
}

impl KernelDrops {
    /// Of these queues. To be called while the process may still open the kernel's file.
    pub(super) fn of(queues: Queues) -> Self {
        let counters = KernelCounters::open();
        if let Err(error) = &counters {
            tracing::debug!(%error, "the kernel does not tell this user what its queues drop");
        }
        Self { queues, counters: counters.ok() }
    }

    /// The drops of each queue since it was opened, in the order of the workers; `None` where the kernel does not say.
    pub(super) fn read(&mut self) -> Option<Vec<u64>> {
        let counters = self.counters.as_mut()?.read().ok()?;
        let dropped = |number| {
            let own = counters.iter().find(|counters| counters.queue == number);
            own.map_or(0, |own| u64::from(own.queue_dropped) + u64::from(own.user_dropped))
        };
        Some(self.queues.numbers().map(dropped).collect())
    }
}

/// How rules put packets into them, as it is logged.
pub(super) fn kind_name(kind: QueueKind) -> &'static str {
    match kind {
        QueueKind::Native => "native",
        QueueKind::Compat => "compat",
    }
}

/// What a worker received from its source, and what it could not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Intake {
    /// Packets received.
    pub(super) packets: u64,
    /// Packets received that nobody needs, see [`Received::left_out`].
    pub(super) left_out: u64,
    /// Packets lost because the queue's socket had no room in its receive buffer.
    pub(super) overruns: u64,
    /// Messages that could not be understood.
    pub(super) malformed: u64,
    /// Verdicts that the kernel refused.
    pub(super) refused: u64,
}

impl Intake {
    /// Adds one batch.
    pub(super) fn add(&mut self, received: &Received) {
        self.packets += u64::from(received.packets);
        self.left_out += u64::from(received.left_out);
        self.overruns += u64::from(received.overruns);
        self.malformed += u64::from(received.malformed);
        self.refused += u64::from(received.refused);
    }

    /// Adds another worker's counters to these.
    pub(super) fn merge(&mut self, other: &Self) {
        self.packets += other.packets;
        self.left_out += other.left_out;
        self.overruns += other.overruns;
        self.malformed += other.malformed;
        self.refused += other.refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_received_to_its_end_if_it_has_one() {
        let batches = |batch: &dyn Fn(u32) -> Received| {
            let mut count = 0;
            drain(|| {
                count += 1;
                Ok(batch(count))
            })
            .expect("no error");
            count
        };
        let of = |packets, full| Received { packets, full, ..Received::default() };
        assert_eq!(batches(&|count| of(if count <= 3 { 30 } else { 0 }, false)), 4);
        assert_eq!(batches(&|count| of(0, count == 1)), 2, "an overrun is not the end");
        assert_eq!(batches(&|_| of(64, true)), 1024, "more comes than a queue holds");
        assert_eq!(batches(&|_| of(0, true)), 65_536);
    }
}
