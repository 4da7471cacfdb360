//! Sends several segments as one packet that is cut behind this program: by the network card, or by the kernel if the card
//! cannot (TCP segmentation offload), as for the segments of the kernel's own TCP.
//!
//! A packet socket with `PACKET_VNET_HDR` (packet(7), `include/uapi/linux/virtio_net.h`) is the only kind that takes such
//! packets with any source address. It sends past the routing table and netfilter's output hook: who sends says where to.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use socket2::{Domain, Socket, Type};

use super::handover::Kind;
use super::packet::{self, IpVersion};
use super::route::NextHop;
use super::socket;

/// Bytes that may wait in the network stack before a send fails with `WouldBlock`.
const SEND_BUFFER: usize = 16 << 20;

const PACKET_VNET_HDR: i32 = 15;

// Of `struct virtio_net_hdr`.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

const ETHERNET_HEADER: usize = 14;
/// Where a TCP header has its checksum.
const TCP_CHECKSUM: u16 = 16;

/// One packet that holds a train of segments.
#[derive(Clone, Copy, Debug)]
pub struct TrainPacket<'a> {
    /// From the IP header on. In place of TCP's checksum it has the sum of the pseudo header.
    pub bytes: &'a [u8],
    /// The IP version.
    pub version: IpVersion,
    /// Bytes of the IP header, and of the TCP header.
    pub headers: (usize, usize),
    /// Payload bytes of each segment but the last.
    pub segment: u16,
}

/// Sends trains. Non-blocking and CLOEXEC, and receives nothing.
#[derive(Debug)]
pub struct TrainSender {
    socket: Socket,
}

impl TrainSender {
    /// What it is opened from, CAP_NET_RAW being needed for it. Without a protocol it receives nothing.
    pub const KIND: Kind = Kind { domain: Domain::PACKET, r#type: Type::RAW, protocol: None };

    /// Opens it; what it sends carries `mark`. Needs CAP_NET_RAW, and CAP_NET_ADMIN for the mark.
    pub fn open(mark: u32) -> io::Result<Self> {
        let socket = Self::KIND.open()?;
        socket.set_nonblocking(true)?;
        socket.set_mark(mark)?;
        packet::set(&socket, PACKET_VNET_HDR, &1_u32)?;
        socket::force_send_buffer(socket.as_fd(), SEND_BUFFER)?;
        Ok(Self { socket })
    }

    /// Sends one to the next hop.
    ///
    /// An error concerns this packet only: `WouldBlock` and ENOBUFS (queues are full), ENETDOWN, ENXIO (the interface is
    /// gone), EINVAL (the kernel does not cut such packets).
    pub fn send(&self, hop: &NextHop, train: &TrainPacket<'_>) -> io::Result<()> {
        let header = virtio_header(train).ok_or(io::ErrorKind::InvalidInput)?;
        let address = packet::on_interface(train.version, hop.interface)?;
        let ethernet = ethernet_header(hop, train.version);
        let parts = [IoSlice::new(&header), IoSlice::new(&ethernet), IoSlice::new(train.bytes)];
        loop {
            match self.socket.send_to_vectored(&parts, &address) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }
}

/// `struct virtio_net_hdr`, in this machine's byte order. `None` for lengths that no packet has.
fn virtio_header(train: &TrainPacket<'_>) -> Option<[u8; 10]> {
    let (ip, tcp) = train.headers;
    let start = u16::try_from(ETHERNET_HEADER.checked_add(ip)?).ok()?;
    let length = u16::try_from(usize::from(start).checked_add(tcp)?).ok()?;
    let kind = match train.version {
        IpVersion::V4 => GSO_TCPV4,
        IpVersion::V6 => GSO_TCPV6,
    };
    let [l0, l1] = length.to_ne_bytes();
    let [g0, g1] = train.segment.to_ne_bytes();
    let [s0, s1] = start.to_ne_bytes();
    let [o0, o1] = TCP_CHECKSUM.to_ne_bytes();
    Some([NEEDS_CSUM, kind, l0, l1, g0, g1, s0, s1, o0, o1])
}

fn ethernet_header(hop: &NextHop, version: IpVersion) -> [u8; ETHERNET_HEADER] {
    let [d0, d1, d2, d3, d4, d5] = hop.destination;
    let [s0, s1, s2, s3, s4, s5] = hop.source;
    let [t0, t1] = version.ethertype().to_be_bytes();
    [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_in_front_of_a_train() {
        let mut train = TrainPacket { bytes: &[], version: IpVersion::V4, headers: (20, 32), segment: 1448 };
        let words = |header: [u8; 10]| {
            let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            (header[0], header[1], word(2), word(4), word(6), word(8))
        };
        assert_eq!(words(virtio_header(&train).unwrap()), (1, 1, 66, 1448, 34, 16));
        train = TrainPacket { version: IpVersion::V6, headers: (40, 20), ..train };
        assert_eq!(words(virtio_header(&train).unwrap()), (1, 4, 74, 1448, 54, 16));
        assert_eq!(virtio_header(&TrainPacket { headers: (usize::MAX, 0), ..train }), None);
        assert_eq!(virtio_header(&TrainPacket { headers: (20, 65_535), ..train }), None);
        let hop = NextHop { interface: 1, source: [1, 2, 3, 4, 5, 6], destination: [7; 6], mtu: 1500 };
        assert_eq!(ethernet_header(&hop, IpVersion::V6), [7, 7, 7, 7, 7, 7, 1, 2, 3, 4, 5, 6, 0x86, 0xdd]);
    }
}
