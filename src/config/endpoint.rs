//! Addresses, ports and names of interfaces as they are written in the configuration.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::value::{FromText, Invalid};
use crate::wire::Mapping;
use crate::wire::pass::{Pass, PassError};
use crate::wire::prefix::{Prefix, PrefixError};

/// The port of the tunnel between `tcpcopy` and `intercept`, the C tools' too.
const TUNNEL_PORT: u16 = 36524;

impl FromText for Mapping {
    const EXPECTED: &'static str =
        "ONLINE-TARGET such as 80-10.0.0.9:8080, 10.0.0.1:80-10.0.0.9:8080 or [::1]:80-[fd00::9]:80";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        let Some((online_text, target_text)) = text.split_once('-') else {
            return Err(match text.parse::<u16>() {
                Ok(port) => Invalid(format!(
                    "{text:?} names no target; write where port {port} is replayed to, as {port}-10.0.0.9:{port}"
                )),
                Err(_) => Self::unlike(text),
            });
        };
        if text.contains('@') {
            return Err(Invalid(format!(
                "{text:?} names a MAC address; the kernel finds it, leave out the '@' part"
            )));
        }
        let target = parse_target(target_text.trim(), text)?;
        let online_text = online_text.trim();
        let (online, port) = if let Ok(port) = online_text.parse::<u16>() {
            (None, port)
        } else {
            let address: SocketAddr = online_text.parse().map_err(|_| Self::unlike(text))?;
            (Some(address.ip()), address.port())
        };
        if port == 0 {
            return Err(Invalid(format!(
                "{text:?} has port 0, to which no client connects; write the service's port"
            )));
        }
        if let Some(address) = online {
            check_host(address, text)?;
            if address.is_ipv4() != target.is_ipv4() {
                return Err(Invalid(format!(
                    "{text:?} mixes IPv4 and IPv6; a session is replayed in the family it came in, name a target of that family"
                )));
            }
        }
        Ok(Self { online, port, target })
    }
}

fn parse_target(target_text: &str, whole: &str) -> Result<SocketAddr, Invalid> {
    let target: SocketAddr = target_text.parse().map_err(|_| {
        if target_text.parse::<u16>().is_ok() {
            Invalid(format!(
                "{whole:?} has no target address; write it before the port, as 10.0.0.9:{target_text}"
            ))
        } else if target_text.parse::<IpAddr>().is_ok() {
            Invalid(format!("{whole:?} has no target port; write ADDRESS:PORT, or [ADDRESS]:PORT for IPv6"))
        } else {
            Mapping::unlike(whole)
        }
    })?;
    check_service(target, whole)?;
    Ok(target)
}

/// A service of the target host that `intercept` takes the responses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Service(pub SocketAddr);

impl FromText for Service {
    const EXPECTED: &'static str = "ADDRESS:PORT such as 10.0.0.9:8080 or [fd00::9]:8080";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        let address: SocketAddr = text.parse().map_err(|_| Self::unlike(text))?;
        check_service(address, text)?;
        Ok(Self(address))
    }
}

/// Where an `intercept` listens; the port may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer(pub SocketAddr);

impl FromText for Peer {
    const EXPECTED: &'static str = "ADDRESS or ADDRESS:PORT such as 10.0.0.8, 10.0.0.8:36524, fd00::8 or [fd00::8]:36524 (names are not resolved)";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        let unbracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = match unbracketed.unwrap_or(text).parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, TUNNEL_PORT),
            Err(_) => text.parse().map_err(|_| Self::unlike(text))?,
        };
        check_service(address, text)?;
        Ok(Self(address))
    }
}

/// An address to listen on. The unspecified address means all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bind(pub IpAddr);

impl FromText for Bind {
    const EXPECTED: &'static str =
        "an address of this host such as 10.0.0.8 or fd00::8, or 0.0.0.0 or :: for all";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        let address: IpAddr = text.parse().map_err(|_| Self::unlike(text))?;
        if address.is_multicast() {
            return Err(Self::unlike(text));
        }
        Ok(Self(address))
    }
}

impl FromText for Prefix {
    const EXPECTED: &'static str = "a prefix of addresses such as 10.99.0.0/24, 10.99.0.x or fd00:99::/64";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        let prefix: Self = text.parse().map_err(|error: PrefixError| Invalid(error.to_string()))?;
        if prefix.nth(0).is_none_or(|host| host.is_loopback() || !is_host(host)) {
            return Err(Invalid(format!(
                "{text:?} holds no addresses that a client could have; name a prefix of hosts"
            )));
        }
        Ok(prefix)
    }
}

impl FromText for Pass {
    const EXPECTED: &'static str = "traffic of a target such as \"udp dport 53\" or \"to 10.9.0.0/16\"";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        text.parse().map_err(|error: PassError| Invalid(error.to_string()))
    }
}

/// Ports kept for replaying, written `FIRST-LAST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortRange(pub RangeInclusive<u16>);

impl FromText for PortRange {
    const EXPECTED: &'static str = "a range of at least 256 ports from 1024 on, such as 20000-29999";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        let (first, last) = text.split_once('-').ok_or_else(|| Self::unlike(text))?;
        let port = |part: &str| part.trim().parse::<u16>().map_err(|_| Self::unlike(text));
        let (first, last) = (port(first)?, port(last)?);
        if first < 1024 || last < first || last - first < 255 {
            return Err(Self::unlike(text));
        }
        Ok(Self(first..=last))
    }
}

/// The name of a network interface, as the kernel allows it (`dev_valid_name`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterfaceName(pub String);

impl FromText for InterfaceName {
    const EXPECTED: &'static str =
        "the name of an interface: 1 to 15 letters, digits and signs, no blanks, '/' or ':'";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        let allowed = |c: char| c.is_ascii_graphic() && c != '/' && c != ':' && c != '%';
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || !text.chars().all(allowed) {
            return Err(Self::unlike(text));
        }
        if text == "lo" {
            return Err(Invalid(
                "\"lo\" cannot be the sink: copies sent there are captured again without end; choose a name no interface has"
                    .to_owned(),
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a netfilter table, as nft can read it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table(pub String);

impl FromText for Table {
    const EXPECTED: &'static str =
        "the name of a table: a letter or '_', then letters, digits, '_', '-' and '.', at most 63 in all";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !begins || text.len() > 63 || !text.chars().all(allowed) {
            return Err(Self::unlike(text));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UserName(pub String);

impl FromText for UserName {
    const EXPECTED: &'static str = "the name of a user: letters, digits, '_', '-' and '.'";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if text.is_empty() || text.starts_with('-') || !text.chars().all(allowed) {
            return Err(Self::unlike(text));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Refuses a service address that nobody can have.
fn check_service(address: SocketAddr, text: &str) -> Result<(), Invalid> {
    if address.port() == 0 {
        return Err(Invalid(format!(
            "{text:?} has port 0, on which nothing listens; write the service's port"
        )));
    }
    check_host(address.ip(), text)
}

/// Refuses an address that is not one host's.
fn check_host(address: IpAddr, text: &str) -> Result<(), Invalid> {
    if is_host(address) {
        return Ok(());
    }
    Err(Invalid(format!(
        "{text:?} names {address}, which is not the address of one host; write the host's own address"
    )))
}

fn is_host(address: IpAddr) -> bool {
    let broadcast = match address {
        IpAddr::V4(address) => address.is_broadcast() || address.octets()[0] == 0,
        // An IPv4-mapped address never is on the wire.
        IpAddr::V6(address) => address.to_ipv4_mapped().is_some(),
    };
    !(address.is_unspecified() || address.is_multicast() || broadcast)
}
