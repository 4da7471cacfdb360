//! Traffic of a target that is let through although the host is closed to it, as the setting `pass` lists it.
//!
//! Owns nothing; imports nothing of this crate but [`Prefix`].

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::prefix::Prefix;

/// `IPPROTO_ICMP`.
const ICMP: u8 = 1;
/// `IPPROTO_ICMPV6`.
const ICMPV6: u8 = 58;

/// Names of IP protocols. Numbers are accepted too.
const PROTOCOLS: [(&str, u8); 12] = [
    ("icmp", ICMP),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", ICMPV6),
    ("ospf", 89),
    ("vrrp", 112),
    ("sctp", 132),
];

/// The protocols whose header begins with a source and a destination port: TCP, UDP, SCTP.
const WITH_PORTS: [u8; 3] = [6, 17, 132];

/// Traffic that a target may send through a closed host.
///
/// Parses from words in any order, each at most once: a protocol by name or number, `sport N[-M]`, `dport N[-M]`,
/// `to PREFIX`, `from ADDRESS`. What is left out is not restricted; at least one restriction is needed. [`Display`]
/// prints the same form.
///
/// [`Display`]: fmt::Display
///
/// ```
/// use tcpcopy::wire::Pass;
///
/// let pass: Pass = "dport 53 udp to 10.9.0.0/16".parse().unwrap();
/// assert_eq!(pass.to_string(), "udp dport 53 to 10.9.0.0/16");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pass {
    /// The IP protocol; `None` for all.
    pub protocol: Option<u8>,
    /// The source ports. Only with a protocol that has ports.
    pub sport: Option<RangeInclusive<u16>>,
    /// The destination ports. Only with a protocol that has ports.
    pub dport: Option<RangeInclusive<u16>>,
    /// The destinations; `None` for all.
    pub to: Option<Prefix>,
    /// The target that sends it; `None` for all targets.
    pub from: Option<IpAddr>,
}

/// Why a text is no [`Pass`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// The text restricts nothing.
    #[error("an empty entry would pass everything; write for example \"udp dport 53\" or \"to 10.9.0.0/16\"")]
    Empty,
    /// A word is neither a keyword nor a protocol.
    #[error(
        "{entry:?}: \"{word}\" is neither a protocol nor one of sport, dport, to and from; write for example \
         \"udp dport 53\""
    )]
    Word {
        /// The whole text.
        entry: String,
        /// The word.
        word: String,
    },
    /// A word comes twice.
    #[error("{entry:?}: \"{word}\" is a second {what}; write an entry for each, for example {example:?}")]
    Twice {
        /// The whole text.
        entry: String,
        /// The word.
        word: String,
        /// What it repeats.
        what: &'static str,
        /// A valid text.
        example: &'static str,
    },
    /// A keyword has no value, or one that cannot be.
    #[error("{entry:?}: \"{keyword}\" is followed by {found}; write {expected}, for example {example:?}")]
    Value {
        /// The whole text.
        entry: String,
        /// The keyword.
        keyword: &'static str,
        /// What follows it.
        found: String,
        /// What should.
        expected: String,
        /// A valid text.
        example: &'static str,
    },
    /// Ports without a protocol that has them.
    #[error(
        "{entry:?}: \"{keyword}\" needs a protocol with ports, which is tcp, udp or sctp; write for example \
         \"udp {keyword} 53\""
    )]
    NoPorts {
        /// The whole text.
        entry: String,
        /// The keyword.
        keyword: &'static str,
    },
    /// Parts of both address families.
    #[error(
        "{entry:?}: \"{word}\" is of another address family than the rest; write an entry for each family, for example \
         \"icmp to 10.9.0.0/16\" and \"icmpv6 to fd00:9::/64\""
    )]
    Families {
        /// The whole text.
        entry: String,
        /// The word that does not fit.
        word: String,
    },
}

impl Pass {
    /// Whether the entry can match IPv4 packets (`true`) or IPv6 packets (`false`).
    pub fn covers_family(&self, ipv4: bool) -> bool {
        self.families().all(|(of_ipv4, _)| of_ipv4 == ipv4)
    }

    /// Whether a packet of a protocol with ports is let through.
    pub fn covers(&self, protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> bool {
        let within = |ports: &Option<RangeInclusive<u16>>, port| {
            ports.as_ref().is_none_or(|ports| ports.contains(&port))
        };
        self.covers_family(from.0.is_ipv4())
            && self.protocol.is_none_or(|known| known == protocol)
            && within(&self.sport, from.1)
            && within(&self.dport, to.1)
            && self.to.is_none_or(|prefix| prefix.contains(to.0))
            && self.from.is_none_or(|address| address == from.0)
    }

    /// The parts that belong to one address family: whether it is IPv4, and the part as text.
    fn families(&self) -> impl Iterator<Item = (bool, String)> {
        let protocol = match self.protocol {
            Some(ICMP) => Some((true, "icmp".to_owned())),
            Some(ICMPV6) => Some((false, "icmpv6".to_owned())),
            Some(_) | None => None,
        };
        let to = self.to.map(|prefix| (prefix.is_ipv4(), prefix.to_string()));
        let from = self.from.map(|address| (address.is_ipv4(), address.to_string()));
        protocol.into_iter().chain(to).chain(from)
    }

    /// What only the parts together can show.
    fn check(self, entry: &str) -> Result<Self, PassError> {
        let entry = entry.to_owned();
        let keyword = [("sport", &self.sport), ("dport", &self.dport)]
            .into_iter()
            .find_map(|(keyword, ports)| ports.is_some().then_some(keyword));
        let has_ports = self.protocol.is_some_and(|protocol| WITH_PORTS.contains(&protocol));
        if let Some(keyword) = keyword.filter(|_| !has_ports) {
            return Err(PassError::NoPorts { entry, keyword });
        }
        let mut families = self.families();
        if let Some((ipv4, _)) = families.next()
            && let Some((_, word)) = families.find(|(other, _)| *other != ipv4)
        {
            return Err(PassError::Families { entry, word });
        }
        drop(families);
        Ok(self)
    }
}

impl FromStr for Pass {
    type Err = PassError;

    fn from_str(text: &str) -> Result<Self, PassError> {
        let entry = text.trim();
        let mut pass = Self { protocol: None, sport: None, dport: None, to: None, from: None };
        let mut words = entry.split_whitespace();
        if entry.is_empty() {
            return Err(PassError::Empty);
        }
        while let Some(word) = words.next() {
            match word {
                "sport" => {
                    let (part, example) = (&mut pass.sport, "tcp sport 22");
                    take(part, Keyword { entry, word: "sport", example }, words.next(), ports)?;
                }
                "dport" => {
                    let (part, example) = (&mut pass.dport, "udp dport 53");
                    take(part, Keyword { entry, word: "dport", example }, words.next(), ports)?;
                }
                "to" => {
                    let (part, example) = (&mut pass.to, "to 10.9.0.0/16");
                    take(part, Keyword { entry, word: "to", example }, words.next(), prefix)?;
                }
                "from" => {
                    let (part, example) = (&mut pass.from, "from 10.91.2.2 udp dport 123");
                    take(part, Keyword { entry, word: "from", example }, words.next(), address)?;
                }
                other => {
                    let (entry, word) = (entry.to_owned(), other.to_owned());
                    let Some(number) = protocol_number(other) else {
                        return Err(PassError::Word { entry, word });
                    };
                    if pass.protocol.replace(number).is_some() {
                        let (what, example) = ("protocol", "udp dport 53");
                        return Err(PassError::Twice { entry, word, what, example });
                    }
                }
            }
        }
        pass.check(entry)
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = |ports: &RangeInclusive<u16>| match (ports.start(), ports.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let words = [
            self.protocol.map(protocol_name),
            self.sport.as_ref().map(|sport| format!("sport {}", ports(sport))),
            self.dport.as_ref().map(|dport| format!("dport {}", ports(dport))),
            self.to.map(|prefix| format!("to {prefix}")),
            self.from.map(|address| format!("from {address}")),
        ];
        f.write_str(&words.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}

/// The name of a protocol, or its number if it has none here.
pub fn protocol_name(number: u8) -> String {
    let known = PROTOCOLS.iter().find(|(_, known)| *known == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

fn protocol_number(word: &str) -> Option<u8> {
    let known = PROTOCOLS.iter().find(|(name, _)| *name == word);
    known.map(|(_, number)| *number).or_else(|| word.parse().ok())
}

/// A keyword, where it is, and an entry in which it is right.
#[derive(Clone, Copy)]
struct Keyword<'a> {
    entry: &'a str,
    word: &'static str,
    example: &'static str,
}

/// Reads the value of a keyword into its part of a [`Pass`].
fn take<T>(
    part: &mut Option<T>,
    keyword: Keyword<'_>,
    value: Option<&str>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<(), PassError> {
    let Keyword { entry, word, example } = keyword;
    let entry = entry.to_owned();
    let wrong = |found: String, expected: String| PassError::Value {
        entry: entry.clone(),
        keyword: word,
        found,
        expected,
        example,
    };
    let Some(value) = value else {
        return Err(wrong("nothing".to_owned(), format!("a value after \"{word}\"")));
    };
    let value = read(value).map_err(|expected| wrong(format!("\"{value}\""), expected))?;
    if part.replace(value).is_some() {
        return Err(PassError::Twice { entry, word: word.to_owned(), what: word, example });
    }
    Ok(())
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.parse::<u16>().and_then(|first| Ok(first..=last.parse::<u16>()?));
    let range = range.ok().filter(|range| !range.is_empty());
    range.ok_or_else(|| "a port from 0 to 65535, or the first and last of a range with a \"-\"".to_owned())
}

fn prefix(text: &str) -> Result<Prefix, String> {
    text.parse().map_err(|_| "an address or a prefix".to_owned())
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "the address of a target".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(text: &str) -> Pass {
        text.parse().expect(text)
    }

    fn error(text: &str) -> String {
        text.parse::<Pass>().expect_err(text).to_string()
    }

    #[test]
    fn words_are_read_in_any_order_and_printed_in_one() {
        for (written, canonical) in [
            ("udp dport 53", "udp dport 53"),
            ("  dport   53 udp ", "udp dport 53"),
            ("17 sport 1000-1999", "udp sport 1000-1999"),
            ("tcp sport 22-22", "tcp sport 22"),
            ("icmp", "icmp"),
            ("from 10.91.2.2 udp dport 123", "udp dport 123 from 10.91.2.2"),
            ("to 10.9.0.0/16 dport 443 tcp", "tcp dport 443 to 10.9.0.0/16"),
            ("to 10.9.0.x", "to 10.9.0.0/24"),
            ("to fd00::9 icmpv6", "icmpv6 to fd00::9/128"),
            ("to 0.0.0.0/0", "to 0.0.0.0/0"),
            ("99", "99"),
            ("gre", "gre"),
            ("sctp sport 1 dport 2", "sctp sport 1 dport 2"),
        ] {
            assert_eq!(pass(written).to_string(), canonical, "{written}");
            assert_eq!(pass(canonical), pass(written), "{written}");
        }
    }

    #[test]
    fn an_error_names_the_entry_the_word_and_an_example() {
        for (text, words) in [
            ("", &["empty", "udp dport 53"][..]),
            ("upd dport 53", &["\"upd dport 53\"", "\"upd\"", "udp dport 53"]),
            ("tcp udp", &["\"udp\"", "second protocol"]),
            ("udp dport", &["\"dport\"", "nothing", "udp dport 53"]),
            ("udp dport dns", &["\"dport\"", "\"dns\"", "udp dport 53"]),
            ("udp dport 9-5", &["\"9-5\""]),
            ("udp dport 70000", &["\"70000\""]),
            ("udp dport 5 dport 6", &["second dport"]),
            ("dport 53", &["\"dport\"", "tcp, udp or sctp", "udp dport 53"]),
            ("icmp sport 1", &["\"sport\"", "tcp, udp or sctp"]),
            ("to nowhere", &["\"to\"", "\"nowhere\"", "to 10.9.0.0/16"]),
            ("to 10.9.0.0/33", &["\"10.9.0.0/33\""]),
            ("from 10.9.0.0/16", &["\"from\"", "from 10.91.2.2"]),
            ("icmp to fd00::/64", &["fd00::/64", "family"]),
            ("to 10.9.0.0/16 from fd00::1", &["fd00::1", "family"]),
            ("256", &["\"256\""]),
        ] {
            let message = error(text);
            for word in words {
                assert!(message.contains(word), "{text}: {message}");
            }
        }
    }

    #[test]
    fn an_entry_covers_its_own_traffic_only() {
        let from = |text: &str| -> (IpAddr, u16) {
            let address: std::net::SocketAddr = text.parse().expect(text);
            (address.ip(), address.port())
        };
        let (server, client) = (from("10.91.2.2:22"), from("10.99.0.1:40000"));
        for (text, covered) in [
            ("tcp sport 22", true),
            ("tcp", true),
            ("to 10.99.0.0/24", true),
            ("from 10.91.2.2 tcp", true),
            ("tcp dport 40000-50000", true),
            ("udp sport 22", false),
            ("tcp sport 23", false),
            ("tcp dport 22", false),
            ("to 10.98.0.0/24", false),
            ("from 10.91.2.3", false),
            ("icmpv6", false),
        ] {
            assert_eq!(pass(text).covers(6, server, client), covered, "{text}");
        }
        assert!(pass("icmp").covers_family(true) && !pass("icmp").covers_family(false));
        assert!(pass("udp").covers_family(true) && pass("udp").covers_family(false));
    }
}
