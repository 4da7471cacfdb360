//! Headers of packets from a ring that a packet socket shares with the kernel (`TPACKET_V2`): no system call takes them.
//!
//! The kernel copies the beginning of each packet into the next frame and hands the frame over; we hand it back when we
//! have looked. Frames are of one size, which suits headers, and each is handed over at once, unlike the blocks of
//! `TPACKET_V3` (see [`packet`](super::packet)). A packet that finds no free frame is dropped and counted by the kernel
//! ([`PacketSocket::passed`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::packet::{IpVersion, PacketSocket, TP_STATUS_CSUMNOTREADY};

/// The most bytes of a packet that a frame has room for: both headers with all options, without IPv6 extension headers.
pub const HEADERS: u32 = 128;

// Of include/uapi/linux/if_packet.h.
const PACKET_RX_RING: i32 = 5;
const PACKET_VERSION: i32 = 10;
const TPACKET_V2: u32 = 1;
/// The frame is the kernel's, to be filled. Any other status: it is ours.
const TP_STATUS_KERNEL: u32 = 0;

/// A frame is a [`Header`], an address and a pad, 80 bytes in all on Linux 2.6.27 and since, and the packet's beginning.
const FRAME: usize = 256;
/// The kernel allocates the ring in blocks; a multiple of any page size, as large as it finds without effort.
const BLOCK: usize = 64 << 10;
/// 4 MiB, for 16,384 packets: what comes in a tenth of a second at 160,000 a second.
const BLOCKS: usize = 64;
const FRAMES: usize = BLOCKS * (BLOCK / FRAME);

/// `struct tpacket_req`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Request {
    block_size: u32,
    blocks: u32,
    frame_size: u32,
    frames: u32,
}

/// The beginning of `struct tpacket2_hdr`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    status: u32,
    /// Of the packet from its network header on.
    len: u32,
    /// Of what the frame holds of it.
    snaplen: u32,
    mac: u16,
    /// Where in the frame the network header is.
    net: u16,
}

/// A packet socket and its ring.
#[derive(Debug)]
pub struct Ring {
    memory: Memory,
    /// The frame that the kernel fills next, or has filled.
    next: usize,
    socket: PacketSocket,
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its beginning, from the IP header on; `None` if the kernel's description of the frame makes no sense.
    pub bytes: Option<&'a [u8]>,
    /// The packet's length.
    pub original_len: usize,
    /// Its checksum is its sender's: the packet is no merger, and no network card is to fill it in.
    pub has_checksum: bool,
}

impl Ring {
    /// Opens a socket that takes nothing yet, with its ring. Needs CAP_NET_RAW.
    pub fn open(version: IpVersion) -> io::Result<Self> {
        let socket = PacketSocket::unbound()?;
        socket.set(PACKET_VERSION, &TPACKET_V2)?;
        let number = |size: usize| u32::try_from(size).unwrap_or_default();
        let request = Request {
            block_size: number(BLOCK),
            blocks: number(BLOCKS),
            frame_size: number(FRAME),
            frames: number(FRAMES),
        };
        socket.set(PACKET_RX_RING, &request)?;
        let memory = Memory::map(socket.as_fd())?;
        socket.bind(version)?;
        Ok(Self { memory, next: 0, socket })
    }

    /// Hands out at most `most` packets that wait, oldest first, and gives their frames back. Returns how many.
    pub fn receive(&mut self, most: usize, each: &mut dyn FnMut(Frame<'_>)) -> usize {
        for count in 0..most {
            let Some(frame) = self.memory.frame(self.next) else { return count };
            each(frame);
            self.memory.give_back(self.next);
            self.next = (self.next + 1) % FRAMES;
        }
        most
    }
}

impl AsRef<PacketSocket> for Ring {
    fn as_ref(&self) -> &PacketSocket {
        &self.socket
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The mapping of a ring.
#[derive(Debug)]
struct Memory(NonNull<u8>);

// SAFETY: the memory belongs to the value alone on this side, whichever thread has it; what the kernel does to it does not
// depend on threads.
unsafe impl Send for Memory {}

impl Memory {
    /// Maps the ring that this socket has been given, of [`FRAMES`] frames.
    fn map(socket: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: with a null address the kernel chooses where, among what is free, so nothing of ours is mapped over. The
        // descriptor is open while borrowed.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                FRAMES * FRAME,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The packet in the frame of this number, if the kernel has handed it over.
    fn frame(&self, number: usize) -> Option<Frame<'_>> {
        let status = self.status(number).load(Ordering::Acquire);
        if status == TP_STATUS_KERNEL {
            return None;
        }
        // SAFETY: a frame is aligned beyond what the header needs and longer than it is, any bytes make a valid one, and
        // the kernel writes nothing there before the frame is given back: the status, read with `Acquire`, says so.
        let header = unsafe { self.at(number).cast::<Header>().read() };
        let (start, len) = (usize::from(header.net), usize::try_from(header.snaplen).unwrap_or(usize::MAX));
        let inside = start.checked_add(len).is_some_and(|end| end <= FRAME);
        // SAFETY: the bytes are inside the frame, as has just been checked, and initialised: the kernel allocates zeroed
        // pages. They do not change before the frame is given back, which takes `&mut self` in `Ring::receive`, so that
        // nothing of this lifetime is left by then.
        let bytes =
            inside.then(|| unsafe { std::slice::from_raw_parts(self.at(number).as_ptr().add(start), len) });
        Some(Frame {
            bytes,
            original_len: usize::try_from(header.len).unwrap_or(usize::MAX),
            has_checksum: status & TP_STATUS_CSUMNOTREADY == 0,
        })
    }

    /// From now on the frame is the kernel's.
    fn give_back(&mut self, number: usize) {
        self.status(number).store(TP_STATUS_KERNEL, Ordering::Release);
    }

    fn status(&self, number: usize) -> &AtomicU32 {
        // SAFETY: a frame begins with its status, an aligned `u32` that both sides access atomically only, but for the read
        // of the whole header while the frame is ours, when nobody writes; it lives as long as the mapping, which `self` is.
        unsafe { AtomicU32::from_ptr(self.at(number).cast().as_ptr()) }
    }

    /// Where the frame of this number begins.
    fn at(&self, number: usize) -> NonNull<u8> {
        assert!(number < FRAMES, "a ring has {FRAMES} frames");
        // SAFETY: the offset is inside the mapping, as the number is below that of the frames.
        unsafe { self.0.add(number * FRAME) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address and length are those of the mapping, of which nothing is borrowed any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), FRAMES * FRAME) };
    }
}
