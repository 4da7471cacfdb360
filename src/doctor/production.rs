//! Whether a target is production itself: what is replayed to it would be done twice there.
//!
//! Production is where captured connections go: to the address and port of the mapping, or to where this host's NAT leads
//! them. A target is where the replay goes: to the address and port named, or to where NAT leads what this host sends.
//! Wherever these meet, the mapping is refused.

use std::net::IpAddr;

use super::{Check, Finding};
use crate::config::tcpcopy::Settings;
use crate::netfilter::{Direction, NewAddress, Redirection};
use crate::wire::Mapping;

/// A place where connections end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// `None`: any address of this host.
    address: Option<IpAddr>,
    port: u16,
    /// The NAT rule that leads there.
    by: Option<String>,
}

/// A mapping that replays to production.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// The mapping.
    pub mapping: Mapping,
    /// Why its target is production.
    pub why: String,
}

impl Loop {
    /// What to do about it.
    pub const REMEDY: &str = "name the test server, at an address and port that production does not have";

    pub(super) fn finding(&self) -> Finding {
        Finding::error(
            Check::Target,
            format!("mapping '{}' would replay to production: {}", self.mapping, self.why),
            Self::REMEDY,
        )
    }
}

/// The mappings that replay to production, with the NAT rules as they are.
pub(super) fn loops(
    is_local: impl Fn(IpAddr) -> bool,
    redirections: &[Redirection],
    settings: &Settings,
) -> Vec<Loop> {
    let production = |mapping: &Mapping| places(redirections, Direction::In, mapping.online, mapping.port);
    let captured: Vec<_> = settings.mappings.iter().map(|mapping| (mapping, production(mapping))).collect();
    let local = |place: &Place| place.address.is_none_or(&is_local);
    let meet = |one: &Place, other: &Place| {
        one.port == other.port && (one.address == other.address || (local(one) && local(other)))
    };
    let looped = |mapping: &Mapping| {
        let target = mapping.target;
        let ends = places(redirections, Direction::Out, Some(target.ip()), target.port());
        captured.iter().find_map(|(online, production)| {
            let pairs = production.iter().flat_map(|place| ends.iter().map(move |end| (place, end)));
            let (place, end) = pairs.into_iter().find(|(place, end)| meet(place, end))?;
            Some(Loop { mapping: *mapping, why: why(mapping, online, place, end) })
        })
    };
    settings.mappings.iter().filter_map(looped).collect()
}

/// Where connections to this destination end: there, or where a rule leads them. Each is led once at most.
fn places(
    redirections: &[Redirection],
    direction: Direction,
    address: Option<IpAddr>,
    port: u16,
) -> Vec<Place> {
    let concerned =
        redirections.iter().filter(|rule| rule.direction == direction || rule.direction == Direction::Both);
    let led = concerned.filter_map(|rule| {
        let (to, port) = rule.of(address, port)?;
        let address = match to {
            NewAddress::Same => address,
            NewAddress::ThisHost => None,
            NewAddress::Address(address) => Some(address),
        };
        Some(Place { address, port, by: Some(rule.place.clone()) })
    });
    [Place { address, port, by: None }].into_iter().chain(led).collect()
}

fn why(mapping: &Mapping, online: &Mapping, place: &Place, end: &Place) -> String {
    let target = match &end.by {
        Some(rule) => format!("NAT ({rule}) leads what is sent to {} to", mapping.target),
        None => format!("its target {} is", mapping.target),
    };
    let captured = if mapping == online { "it captures".to_owned() } else { format!("'{online}' captures") };
    match &place.by {
        Some(rule) => format!("{target} where NAT ({rule}) leads what {captured}"),
        None if place.address.is_none() => {
            format!("{target} port {} of this host, which {captured}", place.port)
        }
        None => format!("{target} what {captured}, or another address of this host with the same port"),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::*;
    use crate::config::Action;

    fn found(redirections: &[Redirection], maps: &str) -> Vec<String> {
        let arguments = format!("tcpcopy --config /dev/null --embedded -x {maps}");
        let action = Settings::load(arguments.split(' ').map(Into::into));
        let Ok(Action::Run(settings)) = action else { panic!("{maps}: {action:?}") };
        let is_local = |address: IpAddr| {
            address.is_loopback()
                || ["10.0.0.1", "10.0.0.2", "fd00::1"].contains(&address.to_string().as_str())
        };
        loops(is_local, redirections, &settings).iter().map(|each| each.mapping.to_string()).collect()
    }

    fn rule(
        direction: Direction,
        ports: RangeInclusive<u16>,
        to: NewAddress,
        to_port: Option<u16>,
    ) -> Redirection {
        Redirection { direction, daddr: None, ports, to, to_port, place: "table nat, chain X".to_owned() }
    }

    fn to(address: &str) -> NewAddress {
        NewAddress::Address(address.parse().expect("address"))
    }

    #[test]
    fn this_hosts_captured_ports_are_production_on_all_its_addresses() {
        for loops in
            ["80-127.0.0.1:80", "80-10.0.0.1:80", "80-[::1]:80", "80-[fd00::1]:80", "10.0.0.1:80-10.0.0.2:80"]
        {
            assert_eq!(found(&[], loops), [loops]);
        }
        for sound in
            ["80-127.0.0.1:8080", "80-10.0.0.9:80", "10.9.0.1:80-10.0.0.1:80", "10.0.0.1:80-10.0.0.9:80"]
        {
            assert_eq!(found(&[], sound), [""; 0], "{sound}");
        }
        // Whichever mapping captures it.
        assert_eq!(found(&[], "80-10.0.0.1:8080,8080-10.0.0.9:80"), ["80-10.0.0.1:8080"]);
    }

    #[test]
    fn where_nat_leads_captured_connections_is_production() {
        let docker = [rule(Direction::In, 80..=80, to("172.17.0.2"), Some(8080))];
        assert_eq!(found(&docker, "80-172.17.0.2:8080"), ["80-172.17.0.2:8080"]);
        for sound in ["80-172.17.0.2:8081", "80-172.17.0.3:8080", "81-172.17.0.2:8080"] {
            assert_eq!(found(&docker, sound), [""; 0], "{sound}");
        }
        let everything = [rule(Direction::Both, 0..=65535, to("172.17.0.2"), None)];
        assert_eq!(found(&everything, "80-172.17.0.2:80"), ["80-172.17.0.2:80"]);
        let redirect = [rule(Direction::In, 80..=90, NewAddress::ThisHost, Some(8080))];
        assert_eq!(found(&redirect, "85-127.0.0.1:8080"), ["85-127.0.0.1:8080"]);
        assert_eq!(found(&redirect, "91-127.0.0.1:8080"), [""; 0]);
    }

    #[test]
    fn a_target_that_nat_leads_to_production_is_production() {
        let out = [rule(Direction::Out, 8080..=8080, to("10.0.0.1"), Some(80))];
        assert_eq!(found(&out, "80-10.0.0.9:8080"), ["80-10.0.0.9:8080"]);
        assert_eq!(found(&out, "81-10.0.0.9:8080"), [""; 0]);
        // What comes in is not led by rules for what goes out, nor the other way round.
        let other = [rule(Direction::In, 8080..=8080, to("10.0.0.1"), Some(80))];
        assert_eq!(found(&other, "80-10.0.0.9:8080"), [""; 0]);
        // Both end in the same container.
        let both = [
            rule(Direction::In, 80..=80, to("172.17.0.2"), Some(5000)),
            rule(Direction::Out, 8080..=8080, to("172.17.0.2"), Some(5000)),
        ];
        assert_eq!(found(&both, "80-10.0.0.9:8080"), ["80-10.0.0.9:8080"]);
    }
}
