//! Packet sockets (packet(7)): copies of what arrives on any interface, chosen by a classic BPF program.
//!
//! The sockets are of the cooked kind: packets begin with their IP header, whatever the link. A socket is for one
//! protocol, because only such sockets see packets once: after VLAN tags, bridges and bonds are resolved, and on their way
//! in only. One that is for all protocols costs a copy of every packet sent as well.
//!
//! [`PacketSocket`] is for whole packets: `recvmmsg` into buffers of ours, not a mapped ring. A ring of `TPACKET_V3` hands a
//! block over when it is full or when a timer of at least 1 ms (a jiffy before Linux 6.18) runs out, which is longer than a
//! packet may wait here, and the timer runs on when nothing comes; rings of fixed frames hold a few hundred packets of
//! 64 KiB in as much memory as a receive buffer that holds ten thousand small ones. For headers a ring of fixed frames is
//! the right thing: [`ring`](super::ring).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, SockAddr, SockFilter, Socket, Type};

use super::handover::Kind;
use super::mmsg::ReceiveBatch;
use super::socket::{self, BufferSize};

// Of include/uapi/linux/if_packet.h.
const PACKET_STATISTICS: i32 = 6;
const PACKET_AUXDATA: i32 = 8;
const PACKET_FANOUT: i32 = 18;
const PACKET_FANOUT_DATA: i32 = 22;
const FANOUT_CBPF: u32 = 6;
/// The kernel chooses the group's number.
const FANOUT_UNIQUE_ID: u32 = 0x2000;

/// In the status of a packet: its checksum is yet to be filled in, by a network card or because it is a merger.
pub(super) const TP_STATUS_CSUMNOTREADY: u32 = 1 << 3;

/// Statements of classic BPF that return a constant (`BPF_RET | BPF_K`).
const RETURN: u16 = 0x06;

/// One instruction of classic BPF (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// The IP version whose packets a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// Its protocol number on Ethernet (`ETH_P_IP`, `ETH_P_IPV6`).
    pub(super) const fn ethertype(self) -> u16 {
        match self {
            Self::V4 => 0x0800,
            Self::V6 => 0x86dd,
        }
    }
}

/// What went through a socket's filter, as far as the kernel knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// All packets.
    pub packets: u32,
    /// Those of them that were dropped, because the receive buffer was full.
    pub dropped: u32,
}

/// A packet socket, non-blocking and CLOEXEC, for one IP version.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
    /// What became of the receive buffer asked for, if one was.
    buffer: Option<BufferSize>,
}

impl PacketSocket {
    /// What it is opened from, CAP_NET_RAW being needed for it. Without a protocol it is not bound, and receives nothing
    /// before the filter is there.
    pub const KIND: Kind = Kind { domain: Domain::PACKET, r#type: Type::DGRAM, protocol: None };

    /// Opens one that takes nothing yet. Needs CAP_NET_RAW, and CAP_NET_ADMIN for a large buffer.
    pub fn open(version: IpVersion, receive_buffer: usize) -> io::Result<Self> {
        let mut this = Self::unbound()?;
        this.buffer = Some(socket::force_receive_buffer(this.as_fd(), receive_buffer)?);
        this.set(PACKET_AUXDATA, &1_u32)?;
        this.bind(version)?;
        Ok(this)
    }

    /// One to be set up further before it is bound.
    pub(super) fn unbound() -> io::Result<Self> {
        let socket = Self::KIND.open()?;
        socket.set_nonblocking(true)?;
        let this = Self { socket, buffer: None };
        this.close()?;
        Ok(this)
    }

    /// From now on it takes packets of this version, once there is a filter that lets them through.
    pub(super) fn bind(&self, version: IpVersion) -> io::Result<()> {
        self.socket.bind(&any_interface(version)?)
    }

    /// Shares the packets with the other sockets of a group: a packet belongs to the one whose number, in the order of
    /// joining, is what `program` returns for it. Returns the group's number; `None` begins a new group.
    pub fn join(&self, group: Option<u16>, program: &[Instruction]) -> io::Result<u16> {
        let (flags, id) = match group {
            Some(id) => (FANOUT_CBPF, id),
            None => (FANOUT_CBPF | FANOUT_UNIQUE_ID, 0),
        };
        self.set(PACKET_FANOUT, &(u32::from(id) | flags << 16))?;
        if let Some(id) = group {
            return Ok(id);
        }
        let mut instructions: Vec<_> = program.iter().copied().map(plain).collect();
        let len = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
        self.set(PACKET_FANOUT_DATA, &program)?;
        let word: u32 = self.get(PACKET_FANOUT)?;
        Ok(u16::try_from(word & 0xffff).unwrap_or_default())
    }

    /// From now on takes what `program` returns a length for.
    pub fn attach(&self, program: &[Instruction]) -> io::Result<()> {
        let filters: Vec<_> =
            program.iter().map(|each| SockFilter::new(each.code, each.jt, each.jf, each.k)).collect();
        self.socket.attach_filter(&filters)
    }

    /// From now on takes nothing. What was taken can still be received.
    pub fn close(&self) -> io::Result<()> {
        self.attach(&[Instruction { code: RETURN, jt: 0, jf: 0, k: 0 }])
    }

    /// The same socket once more: to open and close it elsewhere than where it is read.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, buffer: self.buffer })
    }

    /// What became of the receive buffer asked for, if one was.
    pub fn receive_buffer(&self) -> Option<BufferSize> {
        self.buffer
    }

    /// Takes the packets that wait, see [`ReceiveBatch::receive`].
    pub fn receive(&self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        batch.receive(self.socket.as_fd())
    }

    /// What has passed the filter since this was asked last, by whichever copy of the socket.
    pub fn passed(&self) -> io::Result<Passed> {
        // `struct tpacket_stats`.
        let [packets, dropped]: [u32; 2] = self.get(PACKET_STATISTICS)?;
        Ok(Passed { packets, dropped })
    }

    pub(super) fn set<T: Copy>(&self, option: i32, value: &T) -> io::Result<()> {
        set(&self.socket, option, value)
    }

    fn get<T: Plain>(&self, option: i32) -> io::Result<T> {
        let mut value = T::ZERO;
        let mut len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
        // SAFETY: `value` is valid for writes of `len` bytes and `len` for a write of its own, both outlive the call, the
        // kernel writes at most `len` bytes, and any bytes make a valid `T` (see `Plain`). The descriptor is open while
        // borrowed.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw mut value).cast(),
                &raw mut len,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
    }
}

impl AsRef<PacketSocket> for PacketSocket {
    fn as_ref(&self) -> &PacketSocket {
        self
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether a packet's TCP checksum is its sender's, by the control messages that came with it; `false` if they do not say.
pub fn has_checksum(control: &[u8]) -> bool {
    // One message: a `cmsghdr`, then a `tpacket_auxdata`, which begins with the status.
    let status = control.get(size_of::<libc::cmsghdr>()..).and_then(<[u8]>::first_chunk);
    status.is_some_and(|status| u32::from_ne_bytes(*status) & TP_STATUS_CSUMNOTREADY == 0)
}

/// Sets an option of a packet socket.
pub(super) fn set<T: Copy>(socket: &Socket, option: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: `value` is a live reference and `len` the size of its type; the kernel reads no more, during the call. Where
    // it is a `sock_fprog`, its caller holds the instructions it points to, as many as its `len` says, until after the call.
    // The descriptor is open while borrowed.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, std::ptr::from_ref(value).cast(), len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Integers and arrays of them, for which any bytes are valid.
trait Plain: Copy {
    /// One value.
    const ZERO: Self;
}

impl Plain for u32 {
    const ZERO: Self = 0;
}

impl Plain for [u32; 2] {
    const ZERO: Self = [0; 2];
}

fn plain(instruction: Instruction) -> libc::sock_filter {
    let Instruction { code, jt, jf, k } = instruction;
    libc::sock_filter { code, jt, jf, k }
}

/// Packets of one IP version on all interfaces, those to come included.
fn any_interface(version: IpVersion) -> io::Result<SockAddr> {
    on_interface(version, 0)
}

/// Packets of one IP version on an interface, by its number.
pub(super) fn on_interface(version: IpVersion, interface: u32) -> io::Result<SockAddr> {
    let interface = i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `try_init` hands out zeroed storage with room for, and aligned for, any socket address, so the cast pointer
    // is valid for writing a `sockaddr_ll`; all-zero bytes are a valid one. The length set is that type's size and within
    // the storage, and the family says which type it is, as `SockAddr` requires.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or_default();
            (*address).sll_protocol = version.ethertype().to_be();
            (*address).sll_ifindex = interface;
            *len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
            Ok(())
        })
    }?;
    Ok(address)
}
