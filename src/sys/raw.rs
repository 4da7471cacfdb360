//! Raw sockets that send whole IP packets, headers included, with any source address.
//!
//! Each packet leaves by a call of its own. Measured between two network namespaces, 52 bytes, a send takes 3.3 µs. With
//! sendmmsg(2) it takes 3.0 if three leave together, 2.8 of eight: at most 3 % of tcpcopy's time at any load. A connected
//! socket saves 0.1 µs. A packet socket saves 1.0 µs, but goes past the routing table, netfilter's output hook and the
//! neighbours; see [`trains`](super::trains).

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::handover::Kind;
use super::socket::{self, BufferSize};

/// Bytes that may wait in the network stack for each family before a send fails with `WouldBlock`.
const SEND_BUFFER: usize = 16 << 20;

/// Sends IPv4 and IPv6 packets that are complete from the IP header on.
///
/// The kernel routes each packet by its destination and the mark, and leaves it as it is, but for two fields of IPv4:
/// the header's checksum and total length are always filled in, and so is an identification of 0. It does not
/// fragment. Sockets are non-blocking and CLOEXEC, and receive nothing.
#[derive(Debug)]
pub struct RawSender {
    v4: Socket,
    /// Absent on a host without IPv6.
    v6: Option<Socket>,
    buffer: BufferSize,
}

impl RawSender {
    /// What it is opened from, CAP_NET_RAW being needed for it.
    pub fn kinds() -> [Kind; 2] {
        [Domain::IPV4, Domain::IPV6].map(kind)
    }

    /// Opens both families' sockets, whose packets carry `mark` (`SO_MARK`). A host without IPv6 is no error.
    ///
    /// Needs CAP_NET_RAW, and CAP_NET_ADMIN for the mark.
    pub fn open(mark: u32) -> io::Result<Self> {
        let v4 = open_family(Domain::IPV4, mark)?;
        v4.set_header_included_v4(true)?;
        let v6 = match open_family(Domain::IPV6, mark) {
            Ok(socket) => {
                socket.set_header_included_v6(true)?;
                Some(socket)
            }
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        let buffer = socket::force_send_buffer(v4.as_fd(), SEND_BUFFER)?;
        if let Some(v6) = &v6 {
            socket::force_send_buffer(v6.as_fd(), SEND_BUFFER)?;
        }
        Ok(Self { v4, v6, buffer })
    }

    /// Sends one whole IP packet to `dst`, whose family must be the packet's; its port is ignored.
    ///
    /// An error concerns this packet only and the next may well succeed: `WouldBlock` and ENOBUFS (queues are full),
    /// EMSGSIZE (above the route's MTU), EPERM (a firewall), EHOSTUNREACH and ENETUNREACH, EINVAL (not an IP packet),
    /// `Unsupported` (IPv6 on a host without).
    pub fn send(&self, packet: &[u8], dst: SocketAddr) -> io::Result<()> {
        let (socket, address) = match dst {
            SocketAddr::V4(v4) => (&self.v4, SockAddr::from(v4)),
            SocketAddr::V6(v6) => (self.v6.as_ref().ok_or_else(no_ipv6)?, SockAddr::from(without_port(v6))),
        };
        loop {
            match socket.send_to(packet, &address) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    /// Whether IPv6 packets can be sent.
    pub fn has_ipv6(&self) -> bool {
        self.v6.is_some()
    }

    /// The IPv4 socket's send buffer, asked for and granted.
    pub fn send_buffer(&self) -> BufferSize {
        self.buffer
    }
}

fn open_family(domain: Domain, mark: u32) -> io::Result<Socket> {
    let socket = kind(domain).open()?;
    socket.set_nonblocking(true)?;
    socket.set_mark(mark)?;
    // Should somebody send 255 after all, it finds no room to pile up.
    socket.set_recv_buffer_size(0)?;
    Ok(socket)
}

fn kind(domain: Domain) -> Kind {
    // IPPROTO_RAW is send-only: a raw socket receives packets of its own protocol number, and nobody sends 255.
    Kind { domain, r#type: Type::RAW, protocol: Some(Protocol::from(libc::IPPROTO_RAW)) }
}

/// The kernel reads a raw IPv6 address's port as a protocol number and refuses any but its own and 0.
fn without_port(address: SocketAddrV6) -> SocketAddrV6 {
    let ip: Ipv6Addr = *address.ip();
    SocketAddrV6::new(ip, 0, 0, address.scope_id())
}

fn no_ipv6() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this host has no IPv6, so no IPv6 packet can be sent")
}
