//! A netfilter queue as a [`Source`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::error::CaptureError;
use super::message::{self, Event};
use super::verdicts::{Verdict, Verdicts};
use super::{Captured, Received, Source};
use crate::sys::BufferSize;
use crate::sys::mmsg::ReceiveBatch;
use crate::sys::nfqueue::{self, QueueSetup, QueueSocket};

/// Room in a receive buffer for all that comes with a packet's bytes; what the kernel sends is about 200 bytes.
const METADATA: usize = 1024;
const MIB: usize = 1 << 20;

/// How a queue is to be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Bytes of each packet that are copied to us, at least 1; the kernel caps them at 65,531.
    pub copy_range: u16,
    /// Packets the kernel holds for us before it drops.
    pub max_len: u32,
    /// Take packets as GSO and checksum offload left them: up to 64 KiB, TCP checksum not filled in. Without it the
    /// kernel segments in the time of whoever sent the packet, which quarters a bulk stream's speed.
    pub gso: bool,
    /// The socket's receive buffer in bytes. The kernel's default loses half of a burst.
    pub receive_buffer: usize,
}

impl QueueOptions {
    /// Whole packets, for duplicates of a client's packets.
    pub fn packets() -> Self {
        Self { copy_range: u16::MAX, max_len: 65_536, gso: true, receive_buffer: 32 * MIB }
    }

    /// IP and TCP headers only, with room for IPv6 extension headers.
    pub fn headers() -> Self {
        Self { copy_range: 160, ..Self::packets() }
    }
}

/// One netfilter queue, bound for as long as this lives.
///
/// Use it in one of two ways. [`Source::receive`] drops every packet once it has been handed out.
/// [`receive_deferred`](Self::receive_deferred) leaves the packets with the kernel; each then needs one
/// [`verdict`](Self::verdict), in any order, and each turn ends with [`flush`](Self::flush). `receive` after
/// `receive_deferred` drops also what is still undecided.
///
/// Dropping the value unbinds the queue, and the kernel drops what it still holds. The order at a stop is in the
/// [module](super)'s documentation.
#[derive(Debug)]
pub struct NfQueue {
    socket: QueueSocket,
    batch: ReceiveBatch,
    verdicts: Verdicts,
}

impl NfQueue {
    /// Binds to `queue` and configures it. Call at start-up, before the rules that feed the queue are installed and
    /// before other threads open netfilter sockets (see [`nfqueue`]).
    pub fn open(queue: u16, options: QueueOptions) -> Result<Self, CaptureError> {
        let setup = QueueSetup {
            queue,
            copy_range: options.copy_range.max(1),
            max_len: options.max_len,
            gso: options.gso,
            receive_buffer: options.receive_buffer,
        };
        let socket = nfqueue::open(&setup).map_err(|(step, e)| CaptureError::explain(queue, step, e))?;
        let batch = ReceiveBatch::new(usize::from(options.copy_range) + METADATA);
        Ok(Self { socket, batch, verdicts: Verdicts::new(queue) })
    }

    /// The receive buffer asked for and granted; a short one deserves a warning.
    pub fn receive_buffer(&self) -> BufferSize {
        self.socket.receive_buffer()
    }

    /// Hands out one batch without blocking and leaves its packets with the kernel until their verdicts.
    ///
    /// The kernel holds at most [`QueueOptions::max_len`] packets, so whoever defers must decide in bounded time.
    pub fn receive_deferred(&mut self, each: &mut dyn FnMut(Captured<'_>)) -> io::Result<Received> {
        let mut received = self.take_batch(&mut |captured, verdicts| {
            verdicts.owe();
            each(captured);
        })?;
        received.refused += u32::from(self.flush().is_err());
        Ok(received)
    }

    /// Decides about a packet of [`receive_deferred`](Self::receive_deferred). Takes effect with the next
    /// [`flush`](Self::flush) or receive, or at once when many have gathered.
    pub fn verdict(&mut self, id: u32, verdict: Verdict) -> io::Result<()> {
        if self.verdicts.decide(id, verdict) { self.flush() } else { Ok(()) }
    }

    /// Sends the verdicts that have gathered. On an error the kernel keeps those packets and they are dropped with
    /// the next verdicts that leave nothing undecided.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(messages) = self.verdicts.flush() else { return Ok(()) };
        let sent = self.socket.send(messages);
        if sent.is_err() {
            self.verdicts.sweep();
        }
        sent
    }

    /// Packets handed out by [`receive_deferred`](Self::receive_deferred) whose verdicts have not been sent.
    pub fn undecided(&self) -> usize {
        self.verdicts.owed()
    }

    fn take_batch(&mut self, each: &mut Each<'_>) -> io::Result<Received> {
        let mut received = Received::default();
        match self.socket.receive(&mut self.batch) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(received),
            // The socket itself is well: something could not be delivered, which `new_drops` counts.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => received.full = true,
            Err(error) => return Err(error),
        }
        for datagram in self.batch.datagrams() {
            take(datagram.bytes, datagram.truncated, &mut received, &mut self.verdicts, each);
        }
        received.full |= self.batch.is_full();
        if received.full {
            // A receive buffer that overran is larger than a batch, so only full batches follow an overrun.
            received.overruns = self.socket.new_drops()?;
        }
        Ok(received)
    }
}

type Each<'a> = dyn FnMut(Captured<'_>, &mut Verdicts) + 'a;

impl Source for NfQueue {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.socket.as_fd()]
    }

    fn receive(&mut self, each: &mut dyn FnMut(Captured<'_>)) -> io::Result<Received> {
        let mut received = self.take_batch(&mut |captured, _| each(captured))?;
        if let Some(message) = self.verdicts.drop_all()
            && self.socket.send(message).is_err()
        {
            // The next batch's verdict covers these packets too.
            received.refused += 1;
        }
        Ok(received)
    }
}

/// Hands out the packets of one datagram; a `truncated` one has none that can be believed.
fn take(
    datagram: &[u8],
    truncated: bool,
    received: &mut Received,
    verdicts: &mut Verdicts,
    each: &mut Each<'_>,
) {
    if truncated {
        return malformed(received, verdicts, message::id_of_truncated(datagram));
    }
    for event in message::events(datagram) {
        match event {
            Event::Packet(captured) => {
                received.packets += 1;
                verdicts.saw(captured.id);
                each(captured, verdicts);
            }
            Event::Refused(_) => received.refused += 1,
            Event::Nothing => {}
            Event::Malformed { id } => malformed(received, verdicts, id),
        }
    }
}

/// What [`Source::receive`] does with a datagram of the kernel's, without a queue: also returns the verdicts that it
/// would be answered with. For tests/fuzz.
#[doc(hidden)]
pub fn take_datagram(
    datagram: &[u8],
    truncated: bool,
    each: &mut dyn FnMut(Captured<'_>),
) -> (Received, Vec<u8>) {
    let (mut received, mut verdicts) = (Received::default(), Verdicts::new(0));
    take(datagram, truncated, &mut received, &mut verdicts, &mut |captured, _| each(captured));
    (received, verdicts.drop_all().unwrap_or_default().to_vec())
}

/// Counts a message that made no sense and sees to it that its packet is dropped.
fn malformed(received: &mut Received, verdicts: &mut Verdicts, id: Option<u32>) {
    received.malformed += 1;
    verdicts.sweep();
    if let Some(id) = id {
        verdicts.saw(id);
    }
}
