//! An address prefix, as the pools of replayed client addresses are written.
//!
//! Owns nothing; imports nothing of this crate.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A block of IPv4 or IPv6 addresses with a common beginning.
///
/// Parses from `10.99.0.0/24`, `fd00:99::/64`, a single address, and the form the C tools use,
/// `10.99.0.x` (each trailing `x` stands for a whole byte).
///
/// The *usable hosts* are the addresses a client may have. In IPv4 prefixes shorter than /31 the
/// network and broadcast addresses are not (RFC 3021 lifts this for /31); in IPv6 prefixes shorter than
/// /127 the first one is not, which RFC 4291 section 2.6.1 gives to the subnet's routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Why a text is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The part before the slash is not an address.
    #[error("'{0}' is not an address or prefix; write 10.99.0.0/24, 10.99.0.x or fd00:99::/64")]
    Address(String),
    /// The part after the slash is not a length this family has.
    #[error("'{text}' has no valid length; write a number from 0 to {longest} after the slash")]
    Length {
        /// The whole text.
        text: String,
        /// The longest prefix of the family.
        longest: u8,
    },
    /// Bits after the prefix are set.
    #[error("'{text}' has bits set beyond its length; did you mean '{meant}'?")]
    HostBits {
        /// The whole text.
        text: String,
        /// The prefix that contains the address.
        meant: Prefix,
    },
}

impl Prefix {
    /// The prefix of `length` bits that `address` lies in; `None` if the family has no such length.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let width = width(address);
        if length > width {
            return None;
        }
        let bits = to_bits(address) & !host_mask(width, length);
        Some(Self { address: from_bits(bits, address), length })
    }

    /// The prefix that holds one address only.
    pub fn single(address: IpAddr) -> Self {
        Self { address, length: width(address) }
    }

    /// Whether one address only lies in it.
    pub fn is_one_address(&self) -> bool {
        self.length == width(self.address)
    }

    /// Whether every address of the family lies in it.
    pub fn is_everything(&self) -> bool {
        self.length == 0
    }

    /// The first address, with all host bits zero.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of leading bits that all addresses share.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the prefix is of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether `address` lies in the prefix. An address of the other family never does.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && Self::new(address, self.length) == Some(*self)
    }

    /// Whether some address lies in both prefixes.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The number of usable hosts; at least 1.
    pub fn size(&self) -> u128 {
        let (first, last) = self.host_range();
        // A range of all 2^128 values would overflow, but IPv6 prefixes that short leave one out.
        last - first + 1
    }

    /// The usable host number `index`, counted from 0; `None` from [`size`](Self::size) on.
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        let (first, last) = self.host_range();
        let offset = first.checked_add(index).filter(|offset| *offset <= last)?;
        Some(from_bits(to_bits(self.address) | offset, self.address))
    }

    /// The first and the last usable host, as offsets from [`address`](Self::address).
    fn host_range(&self) -> (u128, u128) {
        let width = width(self.address);
        let mask = host_mask(width, self.length);
        match (self.address, width - self.length) {
            (_, 0 | 1) => (0, mask),
            (IpAddr::V4(_), _) => (1, mask - 1),
            (IpAddr::V6(_), _) => (1, mask),
        }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let text = text.trim();
        if let Some(prefix) = parse_wildcard(text) {
            return Ok(prefix);
        }
        let (address_text, length_text) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr =
            address_text.trim().parse().map_err(|_| PrefixError::Address(text.to_owned()))?;
        let longest = width(address);
        let length = match length_text {
            None => longest,
            Some(digits) => digits
                .trim()
                .parse()
                .ok()
                .filter(|length| *length <= longest)
                .ok_or_else(|| PrefixError::Length { text: text.to_owned(), longest })?,
        };
        match Self::new(address, length) {
            Some(prefix) if prefix.address == address => Ok(prefix),
            Some(meant) => Err(PrefixError::HostBits { text: text.to_owned(), meant }),
            None => Err(PrefixError::Length { text: text.to_owned(), longest }),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Reads `10.99.0.x`, `10.99.x.x` and the like; `None` for anything else.
fn parse_wildcard(text: &str) -> Option<Prefix> {
    let mut fixed = text;
    let mut wild_bytes = 0;
    while let Some(rest) = fixed.strip_suffix(".x") {
        fixed = rest;
        wild_bytes += 1;
    }
    if !(1..=3).contains(&wild_bytes) {
        return None;
    }
    let address: Ipv4Addr = format!("{fixed}{}", ".0".repeat(wild_bytes.into())).parse().ok()?;
    Prefix::new(IpAddr::V4(address), 32 - 8 * wild_bytes)
}

fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Ones where the host part of a prefix is.
fn host_mask(width: u8, length: u8) -> u128 {
    let host_bits = u32::from(width - length);
    1_u128.checked_shl(host_bits).map_or(u128::MAX, |bit| bit - 1)
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The inverse of [`to_bits`], in the family of `like`.
fn from_bits(bits: u128, like: IpAddr) -> IpAddr {
    match like {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the bits came from an IPv4 address and its host mask"
        )]
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect(text)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn reads_every_written_form() {
        for (written, canonical) in [
            ("10.99.0.0/24", "10.99.0.0/24"),
            ("10.99.0.x", "10.99.0.0/24"),
            ("10.99.x.x", "10.99.0.0/16"),
            (" 10.99.0.7 ", "10.99.0.7/32"),
            ("fd00:99::/64", "fd00:99::/64"),
            ("::1", "::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(prefix(written).to_string(), canonical, "{written}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_prefix() {
        for text in [
            "",
            "10.99.0",
            "10.x.0.x",
            "10.99.0.x.x",
            "x",
            "10.99.0.0/33",
            "10.99.0.0/",
            "::/129",
            "host/8",
            "10.99.0.256",
            "10.99.0.x/24",
            "10.99.0.0/-1",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_the_prefix_that_was_meant() {
        let error = "10.99.0.5/24".parse::<Prefix>().expect_err("host bits");
        assert_eq!(
            error.to_string(),
            "'10.99.0.5/24' has bits set beyond its length; did you mean '10.99.0.0/24'?"
        );
    }

    #[test]
    fn counts_and_numbers_usable_hosts() {
        for (text, size, first, last) in [
            ("10.99.0.0/24", 254, "10.99.0.1", "10.99.0.254"),
            ("10.99.0.0/30", 2, "10.99.0.1", "10.99.0.2"),
            ("10.99.0.0/31", 2, "10.99.0.0", "10.99.0.1"),
            ("10.99.0.9", 1, "10.99.0.9", "10.99.0.9"),
            ("fd00::/126", 3, "fd00::1", "fd00::3"),
            ("fd00::/127", 2, "fd00::", "fd00::1"),
            ("::/0", u128::MAX, "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("0.0.0.0/0", (1 << 32) - 2, "0.0.0.1", "255.255.255.254"),
        ] {
            let prefix = prefix(text);
            assert_eq!(prefix.size(), size, "{text}");
            assert_eq!(prefix.nth(0), Some(ip(first)), "{text}");
            assert_eq!(prefix.nth(size - 1), Some(ip(last)), "{text}");
            assert_eq!(prefix.nth(size), None, "{text}");
        }
    }

    #[test]
    fn contains_its_own_family_only() {
        assert!(prefix("10.99.0.0/24").contains(ip("10.99.0.255")));
        assert!(!prefix("10.99.0.0/24").contains(ip("10.99.1.0")));
        assert!(!prefix("0.0.0.0/0").contains(ip("::1")));
        assert!(!prefix("::/0").contains(ip("10.0.0.1")));
        assert!(prefix("10.99.0.0/16").overlaps(&prefix("10.99.3.0/24")));
        assert!(!prefix("10.99.0.0/24").overlaps(&prefix("10.99.1.0/24")));
    }
}
