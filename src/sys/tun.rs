//! A tun device that nobody reads: tun(4) as the last resort for a sink.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

const TUN: &str = "/dev/net/tun";
/// `IFNAMSIZ`.
const NAME_LEN: usize = 16;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
/// `sizeof(struct ifreq)` on 64-bit kernels, and more than it is on 32-bit ones.
const REQUEST_LEN: usize = 40;

/// Makes the device, which exists until the file is closed. It is made for the calling thread's network namespace.
pub(super) fn create(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(TUN)?;
    let mut request = Request { bytes: [0; REQUEST_LEN] };
    let (name_field, rest) = request.bytes.split_at_mut(NAME_LEN);
    // The last byte stays 0.
    for (to, from) in name_field.iter_mut().take(NAME_LEN - 1).zip(name.bytes()) {
        *to = from;
    }
    for (to, from) in rest.iter_mut().zip((IFF_TUN | IFF_NO_PI).to_ne_bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq` at the pointer. `request` is at least as large, aligned as
    // that struct at most needs, writable and outlives the call; it holds a terminated name and the flags at the
    // union's beginning, and any bytes the kernel writes are valid `u8`s. The descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

/// Makes a device that stays when the file is closed. Until it is opened again it frees all packets.
pub(super) fn create_persistent(name: &str) -> io::Result<()> {
    let file = create(name)?;
    let persistent: libc::c_int = 1;
    // SAFETY: TUNSETPERSIST takes an integer by value and touches no memory of this process. The descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, persistent) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[repr(C, align(8))]
struct Request {
    bytes: [u8; REQUEST_LEN],
}
