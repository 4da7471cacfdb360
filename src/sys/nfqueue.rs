//! A netfilter queue's socket: set up by the `nfq` crate, then taken over.
//!
//! `nfq` 0.2.5 binds and configures a queue well, but shows no descriptor, reads one message a call into a buffer of
//! its own and leaves its socket inheritable. [`open`] therefore has it do the set-up, finds the one netfilter
//! netlink socket that this opened, duplicates it (CLOEXEC, owned by [`QueueSocket`]) and lets `nfq` close its own.
//! The kernel ties the queue to the socket, not to a descriptor, so the queue stays bound until the duplicate closes,
//! and is unbound then; packets it still held are dropped by the kernel.
//!
//! `NETLINK_NO_ENOBUFS` stays on, as `nfq` sets it. Without it an overrun puts the socket into the congested state, in
//! which the kernel discards every further packet until the receive buffer has been read empty: one lost packet
//! becomes thousands. What was lost is known all the same, and by number: [`QueueSocket::new_drops`].
//!
//! Finding the descriptor compares `/proc/self/fd` before and after. Call [`open`] at start-up, before other threads
//! open netfilter sockets; calls of this function itself may overlap. Should another one appear in between, the
//! result is an error and never the wrong socket.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, Protocol, SockRef, Socket};

use super::mmsg::ReceiveBatch;
use super::socket::{self, BufferSize};

/// How a queue is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Queue number.
    pub queue: u16,
    /// Bytes of each packet to be copied to us.
    pub copy_range: u16,
    /// Packets the kernel holds before it drops.
    pub max_len: u32,
    /// Take packets as large as GSO made them, with checksums not filled in (`NFQA_CFG_F_GSO`).
    pub gso: bool,
    /// Socket receive buffer in bytes.
    pub receive_buffer: usize,
}

/// The step of setting up a queue that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Opening a `NETLINK_NETFILTER` socket.
    Open,
    /// Binding to the queue number.
    Bind,
    /// Setting the copy range, the length or the flags.
    Configure,
    /// Finding and taking over the socket.
    Adopt,
}

/// A bound queue's socket, non-blocking.
#[derive(Debug)]
pub struct QueueSocket {
    socket: Socket,
    buffer: BufferSize,
    drops_seen: u32,
}

/// Sets up a queue; an error names the step it happened in.
pub fn open(setup: &QueueSetup) -> Result<QueueSocket, (Step, io::Error)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    let before = netfilter_sockets().map_err(|e| (Step::Adopt, e))?;
    let mut nfq = nfq::Queue::open().map_err(|e| (Step::Open, e))?;
    let socket = Socket::from(adopt(&before).map_err(|e| (Step::Adopt, e))?);
    // Before anything can arrive.
    let buffer = socket::force_receive_buffer(socket.as_fd(), setup.receive_buffer)
        .map_err(|e| (Step::Configure, e))?;
    nfq.bind(setup.queue).map_err(|e| (Step::Bind, e))?;
    configure(&mut nfq, setup).map_err(|e| (Step::Configure, e))?;
    // Only now: `nfq` waits for the acknowledgements of its requests.
    socket.set_nonblocking(true).map_err(|e| (Step::Configure, e))?;
    Ok(QueueSocket { socket, buffer, drops_seen: 0 })
}

impl QueueSocket {
    /// What became of the receive buffer asked for.
    pub fn receive_buffer(&self) -> BufferSize {
        self.buffer
    }

    /// Takes the messages that wait, see [`ReceiveBatch::receive`].
    pub fn receive(&self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        batch.receive(self.socket.as_fd())
    }

    /// Packets the kernel discarded because the receive buffer was full, since the last call.
    pub fn new_drops(&mut self) -> io::Result<u32> {
        let drops = socket::receive_drops(self.socket.as_fd())?;
        let new = drops.wrapping_sub(self.drops_seen);
        self.drops_seen = drops;
        Ok(new)
    }

    /// Sends whole netlink messages to the kernel, which handles them before this returns.
    pub fn send(&self, messages: &[u8]) -> io::Result<()> {
        loop {
            match (&self.socket).write(messages) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }
}

impl AsFd for QueueSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn configure(nfq: &mut nfq::Queue, setup: &QueueSetup) -> io::Result<()> {
    nfq.set_copy_range(setup.queue, setup.copy_range)?;
    nfq.set_queue_max_len(setup.queue, setup.max_len)?;
    nfq.set_recv_gso(setup.queue, setup.gso)
}

/// Duplicates the one netfilter netlink socket that is not in `before`.
fn adopt(before: &BTreeSet<RawFd>) -> io::Result<OwnedFd> {
    let now = netfilter_sockets()?;
    let mut new = now.difference(before);
    match (new.next(), new.next()) {
        (Some(raw), None) => borrow(*raw).try_clone_to_owned(),
        (None, _) => Err(io::Error::other("the queue's socket is not in /proc/self/fd")),
        (Some(_), Some(_)) => {
            Err(io::Error::other("another thread opened a netfilter socket at the same time"))
        }
    }
}

/// The descriptors of this process that are netfilter netlink sockets.
fn netfilter_sockets() -> io::Result<BTreeSet<RawFd>> {
    // All names first: the listing has a descriptor of its own, whose number the next socket gets.
    let all = std::fs::read_dir("/proc/self/fd")?
        .map(|entry| entry?.file_name().to_str().and_then(|name| name.parse().ok()).ok_or_else(not_a_number))
        .collect::<io::Result<Vec<RawFd>>>()?;
    Ok(all.into_iter().filter(|raw| is_netfilter(borrow(*raw))).collect())
}

fn borrow<'a>(raw: RawFd) -> BorrowedFd<'a> {
    // SAFETY: `raw` is a number of /proc/self/fd, so it is not -1, the one value that is not allowed. Callers only ask
    // it for socket options or duplicate it, within the call that listed it. Should another thread have closed it
    // meanwhile, which this module's documentation rules out, those calls fail with EBADF or meet another descriptor:
    // nothing is closed or written here, and no memory depends on it.
    unsafe { BorrowedFd::borrow_raw(raw) }
}

fn is_netfilter(fd: BorrowedFd<'_>) -> bool {
    let socket = SockRef::from(&fd);
    socket.domain().is_ok_and(|domain| domain == Domain::from(libc::AF_NETLINK))
        && socket.protocol().is_ok_and(|p| p == Some(Protocol::from(libc::NETLINK_NETFILTER)))
}

fn not_a_number() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an entry of /proc/self/fd is not a number")
}
