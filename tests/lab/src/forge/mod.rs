//! Forged packets: of any source, without a connection.
//!
//! `Forger` sends segments over IPv4; `Strays` sends all that a client must never see, as `craft` makes it.

mod craft;
mod random;
mod strays;

use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use craft::checksum;
pub(crate) use strays::{REFUSED_PORTS, Strays, send};

/// Flags of a segment.
pub(crate) const SYN: u8 = 0x02;
/// Flags of a segment.
pub(crate) const ACK: u8 = 0x10;

/// A socket that forged segments leave by.
#[derive(Debug)]
pub(crate) struct Forger(Socket);

impl Forger {
    /// To be opened on the host that sends.
    pub(crate) fn open() -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        socket.set_header_included_v4(true)?;
        Ok(Self(socket))
    }

    /// Sends a segment without data.
    pub(crate) fn send(&self, from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Result<()> {
        // The port is in the packet; raw sockets take none.
        let address = SockAddr::from(SocketAddr::new((*to.ip()).into(), 0));
        self.0.send_to(&segment(from, to, flags), &address).context("cannot send a forged segment")?;
        Ok(())
    }
}

/// A segment without data, with right checksums.
fn segment(from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Vec<u8> {
    let ([f0, f1], [t0, t1]) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    let mut tcp = vec![f0, f1, t0, t1, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    let (source, destination) = (from.ip().octets(), to.ip().octets());
    let pseudo = [&source[..], &destination, &[0, 6, 0, 20], &tcp].concat();
    let [s0, s1] = checksum(&pseudo);
    tcp.splice(16..18, [s0, s1]);
    // The kernel fills the total length and the checksum in.
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend(tcp);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_a_right_checksum() {
        let packet = segment("11.2.3.4:40000".parse().unwrap(), "10.91.1.1:80".parse().unwrap(), SYN);
        let (ip, tcp) = packet.split_at(20);
        let pseudo = [&ip[12..], &[0, 6, 0, 20], tcp].concat();
        assert_eq!(checksum(&pseudo), [0, 0]);
        assert_eq!(tcp[..4], [0x9c, 0x40, 0, 80]);
    }
}
