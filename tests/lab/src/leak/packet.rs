//! IP packets as the leak detector and the generator of strays see them: what kind one is, and what an error quotes.

use std::fmt::{Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::network::{Family, PORT};

/// Protocol numbers (IANA).
pub(crate) const ICMP: u8 = 1;
/// Protocol numbers (IANA).
pub(crate) const TCP: u8 = 6;
/// Protocol numbers (IANA).
pub(crate) const UDP: u8 = 17;
/// Protocol numbers (IANA).
pub(crate) const ICMPV6: u8 = 58;

/// IPv6 extension headers (RFC 8200): hop-by-hop options, routing, fragment, destination options.
pub(crate) const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub(crate) const ROUTING: u8 = 43;
/// Fragment header.
pub(crate) const FRAGMENT: u8 = 44;
/// Destination options.
pub(crate) const DESTINATION: u8 = 60;

/// The kinds of packets that must not reach a client. Each is proven to be seen, in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// TCP from the mapped port.
    Response,
    /// TCP from any other port.
    OtherTcp,
    /// UDP.
    Udp,
    /// ICMP errors.
    IcmpError,
    /// All other ICMP.
    IcmpOther,
    /// First fragments of anything.
    FirstFragment,
    /// Later fragments of anything: they have no ports.
    LaterFragment,
    /// Other protocols.
    OtherProtocol,
    /// IPv4 options or IPv6 extension headers before anything.
    Extended,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Response,
        Self::OtherTcp,
        Self::Udp,
        Self::IcmpError,
        Self::IcmpOther,
        Self::FirstFragment,
        Self::LaterFragment,
        Self::OtherProtocol,
        Self::Extended,
    ];

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Response => "response",
            Self::OtherTcp => "other TCP",
            Self::Udp => "UDP",
            Self::IcmpError => "ICMP error",
            Self::IcmpOther => "other ICMP",
            Self::FirstFragment => "first fragment",
            Self::LaterFragment => "later fragment",
            Self::OtherProtocol => "other protocol",
            Self::Extended => "extended header",
        }
    }
}

/// The headers of an IP packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The protocol after all extension headers that are there.
    pub(crate) protocol: u8,
    /// Offset in bytes, and whether more fragments follow.
    fragment: Option<(u16, bool)>,
    extended: bool,
    pub(crate) payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads the headers; the packet may be cut short after them.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let (header, _) = bytes.split_first_chunk::<20>()?;
        let length = usize::from(header[0] & 0x0f) * 4;
        let flags = u16::from_be_bytes([header[6], header[7]]);
        let (offset, more) = ((flags & 0x1fff) * 8, flags & 0x2000 != 0);
        let address = |at: usize| -> Option<IpAddr> {
            let octets: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        };
        Some(Self {
            source: address(12)?,
            destination: address(16)?,
            protocol: header[9],
            fragment: (offset > 0 || more).then_some((offset, more)),
            extended: length > 20,
            payload: bytes.get(length..).unwrap_or_default(),
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let (header, mut payload) = bytes.split_first_chunk::<40>()?;
        let address = |at: usize| -> Option<IpAddr> {
            let octets: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        };
        let (mut protocol, mut fragment, mut extended) = (header[6], None, false);
        loop {
            let length = match protocol {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    extended = true;
                    payload.get(1).map_or(8, |&units| usize::from(units) * 8 + 8)
                }
                FRAGMENT => {
                    let Some([_, _, high, low]) = payload.first_chunk::<4>() else { break };
                    let bits = u16::from_be_bytes([*high, *low]);
                    fragment = Some((bits & 0xfff8, bits & 1 != 0));
                    8
                }
                _ => break,
            };
            let Some(&next) = payload.first() else { break };
            payload = payload.get(length..).unwrap_or_default();
            protocol = next;
            if fragment.is_some_and(|(offset, _)| offset > 0) {
                break;
            }
        }
        let (source, destination) = (address(8)?, address(24)?);
        Some(Self { source, destination, protocol, fragment, extended, payload })
    }

    /// The IP version.
    pub(crate) fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Source and destination port, where a packet of this protocol has them.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        let first = self.fragment.is_none_or(|(offset, _)| offset == 0);
        let [s0, s1, d0, d1] = *self.payload.first_chunk::<4>()?;
        let has = first && matches!(self.protocol, TCP | UDP);
        has.then(|| (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
    }

    /// What kind it is: a fragment first of all, then one with further headers, then by its protocol.
    pub(crate) fn kind(&self) -> Kind {
        match (self.fragment, self.extended, self.protocol) {
            (Some((0, _)), _, _) => Kind::FirstFragment,
            (Some(_), _, _) => Kind::LaterFragment,
            (None, true, _) => Kind::Extended,
            (None, false, TCP) => match self.ports() {
                Some((PORT, _)) => Kind::Response,
                _ => Kind::OtherTcp,
            },
            (None, false, UDP) => Kind::Udp,
            (None, false, ICMP | ICMPV6) if self.is_icmp_error() => Kind::IcmpError,
            (None, false, ICMP | ICMPV6) => Kind::IcmpOther,
            (None, false, _) => Kind::OtherProtocol,
        }
    }

    /// Whether it is neighbour discovery (RFC 4861), which hosts of one link need.
    pub(crate) fn is_neighbour_discovery(&self) -> bool {
        self.protocol == ICMPV6 && matches!(self.payload.first(), Some(133..=137))
    }

    fn is_icmp_error(&self) -> bool {
        match (self.protocol, self.payload.first()) {
            (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            (ICMPV6, Some(kind)) => *kind < 128,
            _ => false,
        }
    }

    /// The packet that an ICMP error is about.
    pub(crate) fn quoted(&self) -> Option<Packet<'a>> {
        let first = self.fragment.is_none_or(|(offset, _)| offset == 0);
        (first && self.is_icmp_error()).then(|| Self::parse(self.payload.get(8..)?)).flatten()
    }
}

impl Display for Packet<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} > {} proto {}", self.family().name(), self.source, self.destination, self.protocol)?;
        if let Some((source, destination)) = self.ports() {
            write!(f, " ports {source} > {destination}")?;
        }
        if let (TCP, Some(flags)) = (self.protocol, self.payload.get(13)) {
            write!(f, " flags {flags:#04x}")?;
        }
        if let Some((offset, more)) = self.fragment {
            write!(f, " fragment at {offset}{}", if more { ", more follow" } else { "" })?;
        }
        if let (ICMP | ICMPV6, Some([kind, code, ..])) = (self.protocol, self.payload.get(..2)) {
            write!(f, " type {kind} code {code}")?;
        }
        match self.quoted() {
            Some(quoted) => write!(f, " about [{quoted}]"),
            None => Ok(()),
        }
    }
}
