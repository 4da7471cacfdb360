//! Socket options and addresses that neither `std` nor `socket2` have.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

/// `SO_MEMINFO` of `include/uapi/asm-generic/socket.h`.
const SO_MEMINFO: i32 = 55;

/// What became of the wish for a large socket buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSize {
    /// Bytes asked for.
    pub asked: usize,
    /// Bytes the kernel granted: twice what was asked when all went well (socket(7)), for its own bookkeeping.
    pub granted: usize,
}

impl BufferSize {
    /// True when less was granted than asked, which deserves a warning: bursts will be lost.
    pub fn is_short(&self) -> bool {
        self.granted < self.asked
    }
}

/// Sets the receive buffer beyond `net.core.rmem_max` (`SO_RCVBUFFORCE`), or up to it where that is not permitted.
pub(super) fn force_receive_buffer(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<BufferSize> {
    let socket = SockRef::from(&fd);
    if set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, saturated(bytes)).is_err() {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(BufferSize { asked: bytes, granted: socket.recv_buffer_size()? })
}

/// Sets the send buffer beyond `net.core.wmem_max` (`SO_SNDBUFFORCE`), or up to it where that is not permitted.
pub(super) fn force_send_buffer(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<BufferSize> {
    let socket = SockRef::from(&fd);
    if set_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, saturated(bytes)).is_err() {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(BufferSize { asked: bytes, granted: socket.send_buffer_size()? })
}

/// Messages the kernel could not put into this socket's receive buffer since it was opened (`SO_MEMINFO`).
pub(super) fn receive_drops(fd: BorrowedFd<'_>) -> io::Result<u32> {
    const WORDS: usize = 9;
    const DROPS: usize = 8;
    let mut info = [0u32; WORDS];
    let mut len = libc::socklen_t::try_from(size_of::<[u32; WORDS]>()).unwrap_or_default();
    // SAFETY: `info` is valid for writes of `len` bytes and `len` for a write of its own, both outlive the call, the
    // kernel writes at most `len` bytes, and any bytes make valid `u32`s. The descriptor is open while borrowed.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info[DROPS])
}

/// Opens a netlink socket (CLOEXEC) with an address of the kernel's choosing, member of the groups in the mask.
pub(super) fn netlink(protocol: i32, groups: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
    socket.bind(&netlink_address(groups)?)?;
    Ok(socket)
}

fn netlink_address(groups: u32) -> io::Result<SockAddr> {
    // SAFETY: `try_init` hands out zeroed storage with room for, and aligned for, any socket address, so the cast
    // pointer is valid for writing a `sockaddr_nl`; all-zero bytes are a valid one. The length set is that type's
    // size and within the storage, and the family says which type it is, as `SockAddr` requires.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let address = storage.cast::<libc::sockaddr_nl>();
            (*address).nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).unwrap_or_default();
            (*address).nl_groups = groups;
            *len = libc::socklen_t::try_from(size_of::<libc::sockaddr_nl>()).unwrap_or_default();
            Ok(())
        })
    }?;
    Ok(address)
}

fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or_default();
    // SAFETY: the pointer is to a live `i32` and `len` is its size; the kernel only reads it, during the call. The
    // descriptor is open while borrowed.
    let result =
        unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn saturated(bytes: usize) -> i32 {
    // Above half of `i32::MAX` the kernel's doubling would overflow.
    i32::try_from(bytes).unwrap_or(i32::MAX).min(i32::MAX / 2)
}
