//! Rules of the routing policy (ip-rule(8)) that end packets where they would be forwarded.
//!
//! Layouts are those of `include/uapi/linux/fib_rules.h`. Addresses are in network byte order, all else in the host's.

use std::io;
use std::net::IpAddr;

use super::netlink::{self, CREATE, EXCL, Malformed, Writer};
use super::rtnetlink::{Rtnetlink, address, family_number, number, octets};

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;

const FR_ACT_BLACKHOLE: u8 = 6;
/// `struct fib_rule_hdr`.
const HEADER_LEN: usize = 12;

/// Before all rules that look a table up, but for the one about local addresses. No other program's rule is found at it
/// by custom; ours are known by it, their kind and [`PROTOCOL`].
const PRIORITY: u32 = 74;
/// `RTPROT_KERNEL`: systemd-networkd deletes what others have made when it starts, but for the kernel's.
const PROTOCOL: u8 = 2;
const IPPROTO_TCP: u8 = 6;

/// A rule that drops, without a word, TCP segments from a service that would be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlackHole {
    /// The service.
    pub source: (IpAddr, u16),
    /// Only segments to this prefix, of the service's family; `None` means all.
    pub destination: Option<(IpAddr, u8)>,
    /// Segments with one of these bits in their mark pass.
    pub pass: Option<u32>,
}

impl BlackHole {
    /// Puts the rule in force. That it is already is no error. Needs `CAP_NET_ADMIN`; `EOPNOTSUPP` or `EAFNOSUPPORT` is
    /// from a kernel without such rules (`CONFIG_IP_MULTIPLE_TABLES`, `CONFIG_IPV6_MULTIPLE_TABLES`).
    pub fn add(&self) -> io::Result<()> {
        match self.change(RTM_NEWRULE, CREATE | EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Takes the rule away. That it is not there is no error.
    pub fn delete(&self) -> io::Result<()> {
        match self.change(RTM_DELRULE, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// All rules of this kind that are in force; none in a kernel that has no such rules.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let header = [family_number(family), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let listed = Rtnetlink::open()?.dump(RTM_GETRULE, &header, &mut |message| {
                if message.kind == RTM_NEWRULE {
                    found.extend(parse(message.body)?);
                }
                Ok(())
            });
            match listed.map_err(|error| (error.raw_os_error(), error)) {
                Ok(()) | Err((Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT), _)) => {}
                Err((_, error)) => return Err(error),
            }
        }
        Ok(found)
    }

    fn change(&self, kind: u16, flags: u16) -> io::Result<()> {
        Rtnetlink::open()?.request(kind, flags, |writer| self.write(writer))
    }

    fn write(&self, writer: &mut Writer) {
        let (address, port) = self.source;
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let source = octets(address);
        let to = self.destination.map_or(0, |(_, length)| length);
        // Family, lengths, tos, table, reserved, reserved, action, flags.
        writer.put(&[family_number(family), to, width(address), 0, 0, 0, 0, FR_ACT_BLACKHOLE, 0, 0, 0, 0]);
        writer.attribute(FRA_SRC, &source);
        if let Some((destination, _)) = self.destination {
            writer.attribute(FRA_DST, &octets(destination));
        }
        writer.attribute(FRA_PRIORITY, &PRIORITY.to_ne_bytes());
        writer.attribute(FRA_PROTOCOL, &[PROTOCOL]);
        writer.attribute(FRA_IP_PROTO, &[IPPROTO_TCP]);
        let port = port.to_ne_bytes();
        writer.attribute(FRA_SPORT_RANGE, &[port, port].concat());
        if let Some(pass) = self.pass {
            writer.attribute(FRA_FWMARK, &0u32.to_ne_bytes());
            writer.attribute(FRA_FWMASK, &pass.to_ne_bytes());
        }
    }
}

/// The rule that a `RTM_NEWRULE` message is about, if it is one of ours.
fn parse(body: &[u8]) -> Result<Option<BlackHole>, Malformed> {
    let header = body.first_chunk::<HEADER_LEN>().ok_or(Malformed)?;
    let [_, to, _, _, _, _, _, action, ..] = *header;
    let (mut source, mut port, mut destination, mut pass) = (None, None, None, None);
    let (mut priority, mut protocol) = (None, None);
    for attribute in netlink::attributes(body.get(HEADER_LEN..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind {
            FRA_SRC => source = address(attribute.payload),
            FRA_DST => destination = address(attribute.payload).map(|prefix| (prefix, to)),
            FRA_PRIORITY => priority = number(attribute.payload),
            FRA_FWMASK => pass = number(attribute.payload),
            FRA_PROTOCOL => protocol = attribute.payload.first().copied(),
            FRA_SPORT_RANGE => port = attribute.payload.first_chunk().map(|port| u16::from_ne_bytes(*port)),
            _ => {}
        }
    }
    let ours = action == FR_ACT_BLACKHOLE && priority == Some(PRIORITY) && protocol == Some(PROTOCOL);
    let source = source.zip(port).filter(|_| ours);
    Ok(source.map(|source| BlackHole { source, destination, pass }))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(hole: &BlackHole) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.begin(RTM_NEWRULE, 0, 0);
        hole.write(&mut writer);
        writer.bytes()[netlink::HEADER_LEN..].to_vec()
    }

    fn holes() -> [BlackHole; 3] {
        let source = ("192.0.2.1".parse().unwrap(), 80);
        let plain = BlackHole { source, destination: None, pass: None };
        let destination = Some(("10.0.0.0".parse().unwrap(), 8));
        let source = ("2001:db8::1".parse().unwrap(), 443);
        [
            plain,
            BlackHole { destination, ..plain },
            BlackHole { source, destination: None, pass: Some(0x7463) },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        for hole in holes() {
            assert_eq!(parse(&body(&hole)), Ok(Some(hole)));
        }
    }

    #[test]
    fn the_rules_of_others_are_not_ours() {
        let whole = body(&holes()[0]);
        let mut of_another_kind = whole.clone();
        of_another_kind[7] = 1;
        assert_eq!(parse(&of_another_kind), Ok(None));
        let priority = PRIORITY.to_ne_bytes();
        let at = whole.windows(4).position(|window| window == priority).unwrap();
        let mut of_another_priority = whole.clone();
        of_another_priority[at] = 75;
        assert_eq!(parse(&of_another_priority), Ok(None));
    }

    #[test]
    fn short_and_lying_rules_are_malformed_or_not_ours() {
        for hole in holes() {
            let whole = body(&hole);
            for len in 0..whole.len() - 3 {
                let cut = parse(&whole[..len]);
                assert!(cut != Ok(Some(hole)), "cut to {len}");
            }
        }
    }

    #[test]
    fn the_rules_in_force_can_be_listed() {
        BlackHole::all().unwrap();
    }
}
