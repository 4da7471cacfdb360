//! A netfilter netlink socket over `mnl`, and the table message the `nftnl` crate cannot make (it sets no flags).
//!
//! Requests are answered synchronously: when [`Socket::send`] returns, every answer is in the receive queue. The time
//! limit of [`Socket::wait`] is for a kernel that breaks that promise.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "constants of C headers, small and positive, in the widths that libnftnl and libc take"
)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::time::Duration;
use std::{fmt, io};

use nftnl::nftnl_sys as sys;
use nftnl::{Batch, MsgType, NlMsg, ProtoFamily};
use socket2::SockRef;

use super::netlink;

/// Room for the answers to a large batch, and for the events of somebody else's.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;
/// The kernel chooses the port id.
const AUTOMATIC: libc::pid_t = 0;
/// Room for one batch, which must go out in one message.
const SEND_BUFFER: libc::c_int = 4 << 20;

/// A netfilter netlink socket: non-blocking, close-on-exec. Tables it owns go away when it is closed.
pub struct Socket(mnl::Socket);

// SAFETY: the pointer inside is a heap object of libmnl (a descriptor and an address) without ties to a thread;
// `Socket` is not Sync, so only one thread at a time uses it.
unsafe impl Send for Socket {}

impl Socket {
    /// Opens the socket and joins the multicast `groups`, numbered as `NFNLGRP_*` (up to 31).
    pub fn open(groups: &[u32]) -> io::Result<Self> {
        let socket = Self(mnl::Socket::open(mnl::Bus::Netfilter)?);
        let options = SockRef::from(&socket);
        // libmnl does not ask for it, and a child that inherited the socket would keep our tables alive.
        options.set_cloexec(true)?;
        options.set_nonblocking(true)?;
        socket.set_buffer(libc::SO_RCVBUFFORCE, RECEIVE_BUFFER);
        socket.set_buffer(libc::SO_SNDBUFFORCE, SEND_BUFFER);
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        socket.0.bind(mask, AUTOMATIC)?;
        Ok(socket)
    }

    /// Sends `bytes` as one message: a batch is one transaction only if it is not split.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.0.send(bytes)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The messages of one datagram, or `None` if none is waiting. `ENOBUFS` means some were lost.
    pub fn receive<'a>(&self, buffer: &'a mut Buffer) -> io::Result<Option<mnl::NlMessages<'a>>> {
        match self.0.recv(&mut buffer.0.0) {
            Ok(messages) => Ok(Some(messages)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until something can be received, or a signal comes; false if `limit` passes first.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let mut descriptor = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the pointer is to one pollfd that lives through the call.
        match unsafe { libc::poll(&raw mut descriptor, 1, milliseconds) } {
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(true),
                error => Err(error),
            },
            ready => Ok(ready > 0),
        }
    }

    /// Sets a buffer size past the sysctl limits. Without CAP_NET_ADMIN nothing changes: the kernel then refuses the
    /// request that follows anyway, and says so better.
    fn set_buffer(&self, option: libc::c_int, bytes: libc::c_int) {
        // SAFETY: the descriptor is open, the value is a c_int that lives through the call and its size is given.
        unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast::<c_void>(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the `mnl::Socket`, which the borrow keeps alive.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Where a datagram is received: aligned for netlink. The kernel fits dumps to it, and an event to a page.
pub struct Buffer(Box<Aligned>);

#[repr(align(8))]
struct Aligned([u8; 16 << 10]);

impl Default for Buffer {
    fn default() -> Self {
        Self(Box::new(Aligned([0; 16 << 10])))
    }
}

/// An empty table of family `ip` that only this process can change or remove, and that goes with it (table flag `owner`,
/// Linux 5.12): a lock among those who have CAP_NET_ADMIN in a network namespace.
pub struct OwnedTable {
    _socket: Socket,
}

impl OwnedTable {
    /// Makes it. `EPERM` if another process has it, or without CAP_NET_ADMIN.
    pub fn create(name: &str) -> io::Result<Self> {
        const NFT_TABLE_F_OWNER: u32 = 2;
        let name = CString::new(name)?;
        let mut batch = Batch::new();
        batch.add(&TableMessage::new(&name, ProtoFamily::Ipv4, Some(NFT_TABLE_F_OWNER)), MsgType::Add);
        let batch = batch.finalize();
        let socket = Socket::open(&[])?;
        socket.send(&batch.iter().flatten().copied().collect::<Vec<u8>>())?;
        let mut buffer = Buffer::default();
        let mut answered = false;
        while let Some(messages) = socket.receive(&mut buffer)? {
            for bytes in messages {
                let bytes = bytes?;
                for message in netlink::messages(bytes) {
                    match message.ok().and_then(|message| message.error()).and_then(Result::ok) {
                        Some(0) => answered = true,
                        Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                        None => {}
                    }
                }
            }
        }
        if answered { Ok(Self { _socket: socket }) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

impl fmt::Debug for OwnedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedTable").finish_non_exhaustive()
    }
}

/// A message about a table as a whole.
///
/// Without flags it carries no flags attribute, which the kernel takes for "as it is" when the table exists, whatever
/// its flags are. `nftnl::Table` always writes flags 0, which an owned table refuses.
pub struct TableMessage {
    table: NonNull<sys::nftnl_table>,
    family: ProtoFamily,
}

impl TableMessage {
    /// A message about table `name` of `family`.
    pub fn new(name: &CStr, family: ProtoFamily, flags: Option<u32>) -> Self {
        // SAFETY: no preconditions; the result is checked.
        let allocated = unsafe { sys::nftnl_table_alloc() };
        let table = NonNull::new(allocated).unwrap_or_else(|| std::process::abort());
        // SAFETY: the table was just allocated; the attributes get the types that libnftnl/table.h gives them, and
        // the name is copied.
        unsafe {
            sys::nftnl_table_set_u32(table.as_ptr(), sys::NFTNL_TABLE_FAMILY as u16, family as u32);
            sys::nftnl_table_set_str(table.as_ptr(), sys::NFTNL_TABLE_NAME as u16, name.as_ptr());
            if let Some(flags) = flags {
                sys::nftnl_table_set_u32(table.as_ptr(), sys::NFTNL_TABLE_FLAGS as u16, flags);
            }
        }
        Self { table, family }
    }
}

impl Drop for TableMessage {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed only here.
        unsafe { sys::nftnl_table_free(self.table.as_ptr()) };
    }
}

// SAFETY: a table message holds a header, a name of at most 255 bytes and one number, far below the limit.
unsafe impl NlMsg for TableMessage {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, kind: MsgType) {
        let (kind, flags) = match kind {
            MsgType::Add => (libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE | libc::NLM_F_ACK),
            MsgType::Del => (libc::NFT_MSG_DELTABLE, libc::NLM_F_ACK),
        };
        // SAFETY: the caller gives a buffer of the size NlMsg demands, and the table lives as long as `self`.
        unsafe {
            let header = sys::nftnl_nlmsg_build_hdr(
                buffer.cast::<c_char>(),
                kind as u16,
                self.family as u16,
                flags as u16,
                sequence,
            );
            sys::nftnl_table_nlmsg_build_payload(header, self.table.as_ptr());
        }
    }
}
