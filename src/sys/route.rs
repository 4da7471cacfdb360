//! What the routing table says.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// The address this host sends from to reach `address`: that address itself if it is one of this host.
///
/// Nothing is sent: connecting a UDP socket chooses route and source. The error is the kernel's, `ENETUNREACH` without
/// a route.
pub fn source_toward(address: IpAddr) -> io::Result<IpAddr> {
    let any = match address {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // The discard port; any would do.
    socket.connect((address, 9))?;
    Ok(socket.local_addr()?.ip())
}
