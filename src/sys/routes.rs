//! Routing tables: listing their routes, and keeping one whose routes all lead into a device.
//!
//! Layouts are those of `include/uapi/linux/rtnetlink.h`.

use std::io;
use std::net::IpAddr;

use super::netlink::{self, CREATE, Malformed, REPLACE, Writer};
use super::rtnetlink::{
    IFINFOMSG_LEN, RTA_DST, RTA_OIF, RTM_GETLINK, RTM_NEWLINK, RTM_NEWROUTE, RTN_UNICAST, Rtnetlink, address,
    family_number, is_unsupported, number, octets, parse_link,
};

const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// `struct rtmsg`, `struct rtnexthop`.
const HEADER_LEN: usize = 12;
const NEXTHOP_LEN: usize = 8;
/// `RTPROT_KERNEL`: systemd-networkd deletes foreign routes when it starts, except those of this protocol.
const PROTOCOL: u8 = 2;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
/// `RTM_F_CLONED`: learned about one destination, not configured.
const CLONED: u32 = 0x200;

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The table it is in.
    pub table: u32,
    /// The destination.
    pub prefix: (IpAddr, u8),
    /// The indexes of the devices it leads through: one, or several with multiple paths.
    pub devices: Vec<u32>,
    /// Its own limit on the length of a packet; `None` if the device's applies.
    pub mtu: Option<u32>,
    /// The most that connections over it offer as their maximum segment size; `None` if the MTU decides.
    pub advmss: Option<u32>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The longest packet, in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
}

impl Route {
    /// All unicast routes of a family, of all tables; none if the kernel does not have the family.
    pub fn all(ipv4: bool) -> io::Result<Vec<Self>> {
        let mut header = [0; HEADER_LEN];
        header[0] = family(ipv4);
        let mut found = Vec::new();
        let listed = Rtnetlink::open()?.dump(RTM_GETROUTE, &header, &mut |message| {
            if message.kind == RTM_NEWROUTE {
                found.extend(parse(message.body, ipv4)?);
            }
            Ok(())
        });
        match listed {
            Err(error) if !is_unsupported(&error) => Err(error),
            Ok(()) | Err(_) => Ok(found),
        }
    }

    /// Adds the route, in place of one to the same destination in the same table.
    pub fn put(&self) -> io::Result<()> {
        Rtnetlink::open()?.request(RTM_NEWROUTE, CREATE | REPLACE, |writer| self.write(writer))
    }

    /// Deletes the route; no error if it does not exist.
    pub fn delete(&self) -> io::Result<()> {
        match Rtnetlink::open()?.request(RTM_DELROUTE, 0, |writer| self.write(writer)) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    fn write(&self, writer: &mut Writer) {
        let (destination, length) = self.prefix;
        let ipv4 = destination.is_ipv4();
        let scope = if ipv4 { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
        // Family, destination length, source length, tos, table, protocol, scope, type, flags.
        writer.put(&[family(ipv4), length, 0, 0, 0, PROTOCOL, scope, RTN_UNICAST, 0, 0, 0, 0]);
        writer.attribute(RTA_TABLE, &self.table.to_ne_bytes());
        if length > 0 {
            writer.attribute(RTA_DST, &octets(destination));
        }
        for device in &self.devices {
            writer.attribute(RTA_OIF, &device.to_ne_bytes());
        }
        let metrics = writer.nest(RTA_METRICS);
        for (kind, value) in [(RTAX_MTU, self.mtu), (RTAX_ADVMSS, self.advmss)] {
            if let Some(value) = value {
                writer.attribute(kind, &value.to_ne_bytes());
            }
        }
        writer.end(metrics);
    }
}

impl Device {
    /// The longest IPv6 packet: a router may have announced less than the device takes.
    pub fn ipv6_mtu(&self) -> u32 {
        let setting = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{}/mtu", self.name));
        let mtu = setting.ok().and_then(|text| text.trim().parse().ok());
        mtu.map_or(self.mtu, |mtu: u32| mtu.min(self.mtu))
    }

    /// All devices of the network namespace.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        Rtnetlink::open()?.dump(RTM_GETLINK, &[0; IFINFOMSG_LEN], &mut |message| {
            if message.kind == RTM_NEWLINK
                && let Some(link) = parse_link(message.body)?
            {
                let up = link.is_up();
                found.push(Self { index: link.index, name: link.name, mtu: link.mtu, up });
            }
            Ok(())
        })?;
        Ok(found)
    }
}

fn family(ipv4: bool) -> u8 {
    family_number(if ipv4 { libc::AF_INET } else { libc::AF_INET6 })
}

/// The route that an `RTM_NEWROUTE` message is about, if it is a unicast one.
fn parse(body: &[u8], ipv4: bool) -> Result<Option<Route>, Malformed> {
    let header = body.first_chunk::<HEADER_LEN>().ok_or(Malformed)?;
    let [_, length, _, _, table, _, _, kind, f0, f1, f2, f3] = *header;
    if kind != RTN_UNICAST || u32::from_ne_bytes([f0, f1, f2, f3]) & CLONED != 0 {
        return Ok(None);
    }
    let all = if ipv4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let mut route =
        Route { table: table.into(), prefix: (all, length), devices: Vec::new(), mtu: None, advmss: None };
    for attribute in netlink::attributes(body.get(HEADER_LEN..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind {
            RTA_DST => route.prefix.0 = address(attribute.payload).unwrap_or(all),
            RTA_OIF => route.devices.extend(number(attribute.payload)),
            RTA_TABLE => route.table = number(attribute.payload).unwrap_or(route.table),
            RTA_MULTIPATH => route.devices.extend(paths(attribute.payload)),
            RTA_METRICS => {
                for metric in netlink::attributes(attribute.payload) {
                    let metric = metric?;
                    let value = number(metric.payload).filter(|value| *value > 0);
                    match metric.kind {
                        RTAX_MTU => route.mtu = value,
                        RTAX_ADVMSS => route.advmss = value,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some(route))
}

/// The devices of a route with several paths: a list of `struct rtnexthop`, each with attributes.
fn paths(mut rest: &[u8]) -> Vec<u32> {
    let mut devices = Vec::new();
    while let Some(&[l0, l1, _, _, i0, i1, i2, i3]) = rest.first_chunk::<NEXTHOP_LEN>() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if length < NEXTHOP_LEN {
            break;
        }
        devices.push(u32::from_ne_bytes([i0, i1, i2, i3]));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(route: &Route) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.begin(RTM_NEWROUTE, 0, 0);
        route.write(&mut writer);
        writer.bytes()[netlink::HEADER_LEN..].to_vec()
    }

    fn routes() -> [Route; 3] {
        let prefix = |text: &str, length| (text.parse().unwrap(), length);
        let default = Route {
            table: 0x7463_1234,
            prefix: prefix("0.0.0.0", 0),
            devices: vec![7],
            mtu: Some(1500),
            advmss: None,
        };
        [
            default.clone(),
            Route { prefix: prefix("10.0.0.0", 8), mtu: None, advmss: Some(1400), ..default.clone() },
            Route { prefix: prefix("2001:db8::", 32), ..default },
        ]
    }

    #[test]
    fn a_written_route_is_read_as_it_was() {
        for route in routes() {
            assert_eq!(parse(&body(&route), route.prefix.0.is_ipv4()), Ok(Some(route)));
        }
    }

    #[test]
    fn a_shortened_route_is_malformed_or_another_one() {
        for route in routes() {
            let (whole, ipv4) = (body(&route), route.prefix.0.is_ipv4());
            for len in 0..whole.len() - 3 {
                assert_ne!(parse(&whole[..len], ipv4), Ok(Some(route.clone())), "cut to {len}");
            }
        }
    }

    #[test]
    fn paths_are_read_and_lying_lengths_end_the_list() {
        let path = |length: u16, device: u32| {
            [&length.to_ne_bytes()[..], &[0, 0], &device.to_ne_bytes(), &[0; 4]].concat()
        };
        assert_eq!(paths(&[path(12, 3), path(12, 4)].concat()), [3, 4]);
        assert_eq!(paths(&path(7, 3)), Vec::<u32>::new());
        assert_eq!(paths(&[path(400, 3), path(12, 4)].concat()), [3]);
    }

    #[test]
    fn the_routes_and_devices_of_this_host_are_listed() {
        Route::all(true).unwrap();
        Route::all(false).unwrap();
        assert!(Device::all().unwrap().iter().any(|device| device.name == "lo"));
    }
}
