//! What the routing table says.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use super::netlink::{self, Malformed};
use super::rtnetlink::{
    RTA_DST, RTA_OIF, RTN_UNICAST, Rtnetlink, Which, address as address_of, family_number, number, octets,
};

const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;

const RTA_GATEWAY: u16 = 5;
const RTA_METRICS: u16 = 8;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// `struct rtmsg`, `struct ndmsg`.
const RTMSG_LEN: usize = 12;
const NDMSG_LEN: usize = 12;
/// A neighbour's address is known: `NUD_REACHABLE`, `STALE`, `DELAY`, `PROBE`, `NOARP`, `PERMANENT`.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;

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

/// The first hop on the way to an address over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface's number.
    pub interface: u32,
    /// The interface's address.
    pub source: [u8; 6],
    /// The address of the host or router behind it.
    pub destination: [u8; 6],
    /// The longest IP packet, in bytes.
    pub mtu: u32,
}

/// The way that packets with `mark` take to `address` now. `None` if it does not lead over Ethernet, or if nobody has asked
/// for the neighbour's address yet: a packet sent the usual way does that.
pub fn next_hop(address: IpAddr, mark: u32) -> io::Result<Option<NextHop>> {
    let mut rtnetlink = Rtnetlink::open()?;
    let route = route_toward(&mut rtnetlink, address, mark)?;
    let Some(route) = route else { return Ok(None) };
    let neighbour = route.gateway.unwrap_or(address);
    let destination = rtnetlink.ask(
        RTM_GETNEIGH,
        |writer| {
            let [i0, i1, i2, i3] = route.interface.to_ne_bytes();
            let family = family_number(if neighbour.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 });
            // `struct ndmsg`: family, padding, interface, state, flags, type.
            writer.put(&[family, 0, 0, 0, i0, i1, i2, i3, 0, 0, 0, 0]);
            writer.attribute(NDA_DST, &octets(neighbour));
        },
        parse_neighbour,
    );
    let destination = match destination {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    };
    let Some(destination) = destination else { return Ok(None) };
    let link = rtnetlink.link(Which::Index(route.interface))?;
    Ok(link.and_then(|link| {
        Some(NextHop {
            interface: route.interface,
            source: link.ethernet?,
            destination,
            mtu: route.mtu.map_or(link.mtu, |of_route| of_route.min(link.mtu)),
        })
    }))
}

/// The longest IP packet that packets with `mark` may have on their way to `address`, as far as this host knows: by the
/// interface, the route, or what a router said to packets of the host's own. `None` to this host itself.
pub fn mtu(address: IpAddr, mark: u32) -> io::Result<Option<u32>> {
    let mut rtnetlink = Rtnetlink::open()?;
    let Some(route) = route_toward(&mut rtnetlink, address, mark)? else { return Ok(None) };
    let link = rtnetlink.link(Which::Index(route.interface))?;
    Ok([route.mtu, link.map(|link| link.mtu)].into_iter().flatten().min())
}

fn route_toward(rtnetlink: &mut Rtnetlink, address: IpAddr, mark: u32) -> io::Result<Option<Route>> {
    let family = family_number(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 });
    rtnetlink.ask(
        RTM_GETROUTE,
        |writer| {
            let octets = octets(address);
            let bits = u8::try_from(octets.len() * 8).unwrap_or_default();
            // `struct rtmsg`: family, destination length, and what is not asked about.
            writer.put(&[family, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            writer.attribute(RTA_DST, &octets);
            writer.attribute(RTA_MARK, &mark.to_ne_bytes());
        },
        parse_route,
    )
}

#[derive(Debug, PartialEq, Eq)]
struct Route {
    interface: u32,
    gateway: Option<IpAddr>,
    mtu: Option<u32>,
}

/// The route of an `RTM_NEWROUTE` message, if it leads to another host.
fn parse_route(body: &[u8]) -> Result<Option<Route>, Malformed> {
    let header = body.first_chunk::<RTMSG_LEN>().ok_or(Malformed)?;
    let [_, _, _, _, _, _, _, kind, ..] = *header;
    let (mut interface, mut gateway, mut mtu) = (None, None, None);
    for attribute in netlink::attributes(body.get(RTMSG_LEN..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind {
            RTA_OIF => interface = number(attribute.payload),
            RTA_GATEWAY => gateway = address_of(attribute.payload),
            // `struct rtvia`: the family, and an address of it.
            RTA_VIA => gateway = attribute.payload.get(2..).and_then(address_of),
            RTA_METRICS => {
                for metric in netlink::attributes(attribute.payload) {
                    let metric = metric?;
                    if metric.kind == RTAX_MTU {
                        mtu = number(metric.payload).filter(|mtu| *mtu > 0);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(interface.filter(|_| kind == RTN_UNICAST).map(|interface| Route { interface, gateway, mtu }))
}

/// The Ethernet address of an `RTM_NEWNEIGH` message, if packets may be sent to it.
fn parse_neighbour(body: &[u8]) -> Result<Option<[u8; 6]>, Malformed> {
    let header = body.first_chunk::<NDMSG_LEN>().ok_or(Malformed)?;
    let [_, _, _, _, _, _, _, _, s0, s1, ..] = *header;
    let valid = u16::from_ne_bytes([s0, s1]) & NUD_VALID != 0;
    let mut address = None;
    for attribute in netlink::attributes(body.get(NDMSG_LEN..).unwrap_or_default()) {
        let attribute = attribute?;
        if attribute.kind == NDA_LLADDR {
            address = attribute.payload.try_into().ok();
        }
    }
    Ok(address.filter(|_| valid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::{HEADER_LEN, Writer};

    fn body(header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.begin(0, 0, 0);
        writer.put(header);
        for (kind, payload) in attributes {
            writer.attribute(*kind, payload);
        }
        writer.bytes()[HEADER_LEN..].to_vec()
    }

    fn route(kind: u8, attributes: &[(u16, &[u8])]) -> Result<Option<Route>, Malformed> {
        parse_route(&body(&[2, 32, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0], attributes))
    }

    #[test]
    fn routes_to_other_hosts_are_read() {
        let interface = 7_u32.to_ne_bytes();
        let direct = Route { interface: 7, gateway: None, mtu: None };
        assert_eq!(route(1, &[(RTA_DST, &[10, 0, 0, 1]), (RTA_OIF, &interface)]), Ok(Some(direct)));
        let mtu = body(&[], &[(RTAX_MTU, &1400_u32.to_ne_bytes())]);
        let gateway = Some(IpAddr::from([10, 0, 0, 254]));
        let by_router = Route { interface: 7, gateway, mtu: Some(1400) };
        let attributes: [(u16, &[u8]); 3] =
            [(RTA_OIF, &interface), (RTA_GATEWAY, &[10, 0, 0, 254]), (RTA_METRICS, &mtu)];
        assert_eq!(route(1, &attributes), Ok(Some(by_router)));
        let via = [&[10, 0][..], &Ipv6Addr::LOCALHOST.octets()].concat();
        let read = route(1, &[(RTA_OIF, &interface), (RTA_VIA, &via)]).unwrap().unwrap();
        assert_eq!(read.gateway, Some(IpAddr::from(Ipv6Addr::LOCALHOST)), "an IPv4 route via an IPv6 router");
        assert_eq!(route(2, &[(RTA_OIF, &interface)]), Ok(None), "this host itself");
        assert_eq!(route(1, &[]), Ok(None));
        assert_eq!(parse_route(&[0; 11]), Err(Malformed));
        assert_eq!(parse_route(&[[0; 12], [1; 12]].concat()), Err(Malformed));
    }

    #[test]
    fn only_neighbours_that_can_be_reached_count() {
        let neighbour = |state: u8, attributes: &[(u16, &[u8])]| {
            parse_neighbour(&body(&[2, 0, 0, 0, 7, 0, 0, 0, state, 0, 0, 1], attributes))
        };
        let address: &[(u16, &[u8])] = &[(NDA_DST, &[10, 0, 0, 1]), (NDA_LLADDR, &[1, 2, 3, 4, 5, 6])];
        for (state, known) in [(0x02, true), (0x04, true), (0x80, true), (0x01, false), (0x20, false)] {
            assert_eq!(neighbour(state, address), Ok(known.then_some([1, 2, 3, 4, 5, 6])), "{state:#x}");
        }
        assert_eq!(neighbour(0x02, &[]), Ok(None));
        assert_eq!(neighbour(0x02, &[(NDA_LLADDR, &[1, 2, 3, 4])]), Ok(None), "no Ethernet address");
        assert_eq!(parse_neighbour(&[0; 11]), Err(Malformed));
    }

    #[test]
    fn no_way_to_this_host_itself_takes_trains() {
        assert_eq!(next_hop([127, 0, 0, 1].into(), 0).unwrap(), None);
    }
}
