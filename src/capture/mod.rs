//! Where packets come from: netfilter queues or packet sockets, behind the small trait [`Source`].
//!
//! A worker owns one source and is woken by its descriptors. [`Source::receive`] hands out one batch and has the kernel
//! drop it: what tcpcopy captures are duplicates, and what intercept captures must never reach a real client. Only
//! intercept's `unclaimed = "accept"` decides packet by packet, with [`NfQueue::receive_deferred`]. What comes from packet
//! sockets is a copy in any case: intercept's rules drop the responses themselves.
//!
//! Order at start: open the queue, then install the rules that feed it. Order at stop: take the rules out, receive
//! until nothing comes, drop the queue; what the kernel still holds at that moment is dropped by the kernel. Packet sockets
//! are fed by no rules: [`PacketTap`] opens and closes them.
//!
//! Imports `sys` and `wire`.

mod bpf;
mod checksums;
mod counters;
mod error;
mod filter;
mod handshakes;
mod headers;
mod message;
mod nfqueue;
mod packet;
mod tap;
mod verdicts;

use std::io;
use std::os::fd::BorrowedFd;

pub use checksums::Checksums;
pub use counters::{KernelCounters, QueueCounters, kernel_counters};
pub use error::CaptureError;
pub use headers::{HeaderSource, ResponseOptions, open_header_sources};
#[doc(hidden)]
pub use nfqueue::take_datagram;
pub use nfqueue::{NfQueue, QueueOptions};
pub use packet::{PacketOptions, PacketSource, open_packet_sources};
pub use tap::{PacketCounters, PacketTap, Selection};
pub use verdicts::Verdict;

/// One captured packet, valid during the callback that gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// The queue's number for this packet; names it in [`NfQueue::verdict`].
    pub id: u32,
    /// The packet from its IP header on, cut by a queue's copy range.
    pub bytes: &'a [u8],
    /// The packet's length before it was cut.
    pub original_len: usize,
    /// Its checksum is its sender's: the packet is no merger, and no network card is to fill it in.
    pub has_checksum: bool,
}

/// What one call of [`Source::receive`] did. Counts are of this call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "lost packets are to be counted, and a full batch means that more may wait"]
pub struct Received {
    /// Packets handed out.
    pub packets: u32,
    /// Packets received and not handed out: acknowledgements that end no handshake.
    pub left_out: u32,
    /// Packets lost before they reached us, because the socket's receive buffer was full.
    pub overruns: u32,
    /// Messages that could not be understood. Their packets, where there were any, are dropped.
    pub malformed: u32,
    /// Requests of ours (verdicts) that the kernel refused. `ENOENT` among them is a packet that was already gone.
    pub refused: u32,
    /// The batch was full: call again before waiting for the descriptor, which may not be reported a second time.
    pub full: bool,
}

/// A place packets come from.
pub trait Source {
    /// The descriptors that become readable when packets wait.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// Hands out one batch without blocking, then drops its packets.
    ///
    /// Nothing waiting is no error: all counts are 0. Errors are of the descriptor itself; a single packet or
    /// verdict that goes wrong is counted, never an error.
    fn receive(&mut self, each: &mut dyn FnMut(Captured<'_>)) -> io::Result<Received>;
}
