//! Rules as data: what the text printer, the batch printer and the read-back check all work from.
//!
//! Terms are nftables' own. Only what our rules need can be said.

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::wire::Prefix;

/// The name of a table, checked to be one that nft can read back: a letter or `_`, then letters, digits, `_`, `-`, `.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName(String);

/// A table name nft would not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a table name: use a letter or _ and then letters, digits, _, - or ., at most {max} in all",
    max = TableName::MAX
)]
pub struct BadTableName(String);

impl TableName {
    const MAX: usize = 63;

    /// Checks `name`.
    pub fn new(name: &str) -> Result<Self, BadTableName> {
        let mut bytes = name.bytes();
        let starts = bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
        let goes_on = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if starts && goes_on && name.len() <= Self::MAX {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadTableName(name.to_owned()))
        }
    }

    /// The table of a tcpcopy on the online host: `tcpcopy`.
    pub fn tcpcopy() -> Self {
        Self("tcpcopy".to_owned())
    }

    /// The table of an intercept: `intercept`.
    pub fn intercept() -> Self {
        Self("intercept".to_owned())
    }

    /// A table that nobody else has, for trying out what the kernel offers.
    pub(super) fn probe() -> Self {
        Self(format!("tcpcopy-probe-{}", std::process::id()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn to_c_string(&self) -> CString {
        CString::new(self.as_str()).expect("a checked table name has no NUL")
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Queue numbers, one for each worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queues {
    first: u16,
    count: NonZeroU16,
}

impl Queues {
    /// `count` queues from number `first` on, or `None` if there are none or they end beyond 65535.
    pub fn new(first: u16, count: u16) -> Option<Self> {
        let count = NonZeroU16::new(count)?;
        first.checked_add(count.get() - 1)?;
        Some(Self { first, count })
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.count.get()
    }

    /// The numbers, in the order of the workers.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        self.first..=self.first + (self.count.get() - 1)
    }
}

/// An interface, by the name people know and the index rules match on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index. Rules keep it when the interface goes away: a new interface needs new rules.
    pub index: u32,
}

impl Device {
    /// The loopback device, the first one of every network namespace.
    pub fn loopback() -> Self {
        Self { name: "lo".to_owned(), index: 1 }
    }
}

/// The address family of a table. `dup` exists in these two only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ip, Self::Ip6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ip,
            IpAddr::V6(_) => Self::Ip6,
        }
    }

    /// Its number in netlink messages (`NFPROTO_*`).
    pub(super) fn protocol(self) -> u8 {
        const NFPROTO_IPV4: u8 = 2;
        const NFPROTO_IPV6: u8 = 10;
        match self {
            Self::Ip => NFPROTO_IPV4,
            Self::Ip6 => NFPROTO_IPV6,
        }
    }

    /// nft's name for it: `ip`, `ip6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Which address families rules are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// IPv4 and IPv6.
    pub const BOTH: Self = Self { v4: true, v6: true };

    pub(super) fn iter(self) -> impl Iterator<Item = Family> {
        let v4 = self.v4.then_some(Family::Ip);
        let v6 = self.v6.then_some(Family::Ip6);
        v4.into_iter().chain(v6)
    }
}

/// Tables of one name, one for each address family that has rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// The name of all of them.
    pub name: TableName,
    /// Whether the kernel removes them when the process that installed them ends (table flag `owner`).
    pub owner: bool,
    /// The tables; none if there is nothing to match.
    pub tables: Vec<Table>,
}

/// The table of one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its address family.
    pub family: Family,
    /// Its sets.
    pub sets: Vec<Set>,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A set whose elements rules add and delete (flag `dynamic`), and the kernel forgets after a while (flag `timeout`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name, an nft identifier.
    pub name: &'static str,
    /// What an element is.
    pub key: SetKey,
    /// How long an element stays.
    pub timeout: Duration,
    /// The most elements; when it is full, nothing is added.
    pub size: u32,
}

/// What the elements of a set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKey {
    /// An address of the table's family and a port.
    Client,
    /// A transport protocol, a source port and a destination port.
    Ports,
    /// A transport protocol.
    Protocol,
}

/// A chain: a base chain of type `filter` with policy `accept`, or one that rules of other chains go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name, an nft identifier.
    pub name: &'static str,
    /// Where it is called.
    pub hook: Hook,
    /// When, among the chains of that hook: -300 is before connection tracking. Without meaning for [`Hook::None`].
    pub priority: i32,
    /// Its rules, tried in order.
    pub rules: Vec<Rule>,
}

/// A hook of the IP stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in, before routing.
    Prerouting,
    /// Packets that this host forwards.
    Forward,
    /// Packets that this host sends, after routing.
    Output,
    /// None: a regular chain, evaluated where a rule goes to it ([`Statement::Goto`], [`Statement::Jump`]). It precedes
    /// that rule's chain in its table.
    None,
}

impl Hook {
    /// nft's name for it; `None` for a regular chain.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Prerouting => Some("prerouting"),
            Self::Forward => Some("forward"),
            Self::Output => Some("output"),
            Self::None => None,
        }
    }
}

/// What is done with packets that all matches hold for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The conditions, in the order of evaluation.
    pub matches: Vec<Match>,
    /// What is done, in order.
    pub statements: Vec<Statement>,
}

/// One condition. Those on TCP fields hold for TCP packets only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The packet mark.
    Mark(u32),
    /// The interface the packet came in through.
    Iif(Device),
    /// The interface the packet goes out through.
    Oif(Device),
    /// A socket of a process of this host sent the packet. A copy made by `dup` has none.
    FromSocket,
    /// The source address is in a prefix of the table's family.
    Saddr(Prefix),
    /// The destination address is in a prefix of the table's family.
    Daddr(Prefix),
    /// The destination is an address of this host.
    DaddrLocal,
    /// The destination is a broadcast address. IPv4 only.
    DaddrBroadcast,
    /// The transport protocol, of a fragment that of the whole packet.
    L4Proto(u8),
    /// The source port, of a protocol whose header begins with ports. To be preceded by [`Match::L4Proto`].
    Sports(RangeInclusive<u16>),
    /// The destination port, likewise.
    Dports(RangeInclusive<u16>),
    /// The packet is a fragment of a larger one; the first fragment counts.
    Fragment,
    /// The packet is no fragment. To be set before ports are compared for a packet to pass: Linux up to 6.18 at least
    /// takes the first bytes of a later fragment for ports.
    NotFragment,
    /// The hop limit of IPv6.
    HopLimit(u8),
    /// TCP.
    Tcp,
    /// The source port.
    TcpSport(u16),
    /// The destination port.
    TcpDport(u16),
    /// The destination port is in a range.
    TcpDports(RangeInclusive<u16>),
    /// The IP header's length field: the total length for IPv4, that of the payload for IPv6.
    Length(u16),
    /// The same field is no larger.
    LengthAtMost(u16),
    /// The data offset: 32-bit words in the TCP header.
    DataOffset(u8),
    /// None of SYN, FIN and RST.
    NoSynFinRst,
    /// SYN, and none of ACK, FIN and RST: a client opens a connection.
    SynAlone,
    /// The flow belongs to a worker: `jhash` of address and port of one end, scaled to the number of workers.
    /// Equal to [`crate::wire::flow::split`].
    Worker {
        /// Where the client's address and port are.
        client: End,
        /// The worker.
        index: u16,
        /// Of how many.
        workers: u16,
    },
    /// The connection is outside a share of all connections: `jhash` of address and port of one end, scaled to
    /// [`crate::wire::flow::SHARES`], is at least `share`. Equal to [`crate::wire::flow::share_of`].
    OutsideShare {
        /// Where the client's address and port are.
        client: End,
        /// How many of [`crate::wire::flow::SHARES`] are inside.
        share: u16,
    },
    /// The packet is an ICMP message of a range of types (ICMPv6 in tables of that family).
    IcmpTypes(RangeInclusive<u8>),
    /// The packet quoted in an ICMP error is a TCP segment to this address and port. To be preceded by
    /// [`Match::IcmpTypes`]. Our segments have no IP options and no extension headers, so the places are fixed.
    QuotedTcpTo(SocketAddr),
    /// The same for a segment behind IPv4 options: its ports are somewhere else, so the address alone counts.
    QuotedTcpWithOptionsTo(Ipv4Addr),
    /// The address and port of one end are not in a set of the table.
    NotIn {
        /// The set's name.
        set: &'static str,
        /// Where the client's address and port are.
        client: End,
    },
}

/// One end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who sent it.
    Source,
    /// Whom it is for.
    Destination,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// Counts packets and bytes.
    Counter,
    /// Sends a copy out through an interface.
    Dup {
        /// What the copy is routed to; its own destination address stays.
        to: IpAddr,
        /// The interface.
        device: Device,
    },
    /// Keeps connection tracking from seeing the packet.
    Notrack,
    /// Hands the packet to a queue, or drops it if nobody listens there.
    Queue(u16),
    /// Adds the address and port of one end to a set of the table. If that fails, because the set is full or memory is
    /// short, the rule ends here and the next one is tried.
    Add {
        /// The set's name.
        set: &'static str,
        /// Where the client's address and port are.
        client: End,
    },
    /// Deletes the same from a set, if it is there (Linux 5.4).
    Delete {
        /// The set's name.
        set: &'static str,
        /// Where the client's address and port are.
        client: End,
    },
    /// Goes on if more packets than this come in a second, and ends the rule otherwise. One second's packets may come
    /// at once.
    LimitOver(NonZeroU32),
    /// Goes on in a regular chain of the table, and does not come back to this one.
    Goto(&'static str),
    /// Goes on in a regular chain of the table, and comes back where that ends without a verdict.
    Jump(&'static str),
    /// Sets the packet mark.
    SetMark(u32),
    /// Counts packets by what they are: adds an element with a counter to a set of the table, or finds it there. If the
    /// set is full, the rule ends here.
    Count {
        /// The set's name.
        set: &'static str,
        /// The set's key.
        key: SetKey,
    },
    /// Ends this chain.
    Return,
    /// Ends this chain; later chains still see the packet.
    Accept,
    /// Drops the packet.
    Drop,
}

impl Ruleset {
    /// True if any rule queues packets.
    pub fn uses_queues(&self) -> bool {
        let mut rules = self.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
        rules.any(|rule| rule.statements.iter().any(|statement| matches!(statement, Statement::Queue(_))))
    }

    /// True if any table has a set.
    pub fn has_sets(&self) -> bool {
        self.tables.iter().any(|table| !table.sets.is_empty())
    }

    /// The rules that do the same as these would if nothing could ever be added to a set.
    #[must_use]
    pub fn without_sets(&self) -> Self {
        let mut ruleset = self.clone();
        for table in &mut ruleset.tables {
            table.sets.clear();
            for chain in &mut table.chains {
                chain.rules.retain(|rule| !rule.changes_set());
                for rule in &mut chain.rules {
                    rule.matches.retain(|condition| !matches!(condition, Match::NotIn { .. }));
                }
            }
        }
        ruleset
    }
}

impl Rule {
    /// True if the rule looks into a set or changes one.
    pub(super) fn uses_set(&self) -> bool {
        let looks = self.matches.iter().any(|condition| matches!(condition, Match::NotIn { .. }));
        looks || self.changes_set()
    }

    /// True if the rule adds to a set, deletes from one or counts in one; it does nothing else then.
    fn changes_set(&self) -> bool {
        let changes = |statement: &Statement| {
            matches!(statement, Statement::Add { .. } | Statement::Delete { .. } | Statement::Count { .. })
        };
        self.statements.iter().any(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_are_nft_identifiers() {
        for good in ["tcpcopy", "_x", "copy-2.test"] {
            assert!(TableName::new(good).is_ok(), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", "1st", "two words", "semi;colon", "nul\0", "naïve", &long] {
            assert!(TableName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_lose_their_host_bits() {
        let of = |text: &str, length| Prefix::new(text.parse().unwrap(), length);
        assert_eq!(of("10.1.2.3", 20).unwrap().address(), "10.1.0.0".parse::<IpAddr>().unwrap());
        assert_eq!(of("10.1.2.3", 32).unwrap().address(), "10.1.2.3".parse::<IpAddr>().unwrap());
        assert!(of("10.1.2.3", 0).unwrap().is_everything());
        assert_eq!(of("2001:db8::ff", 120).unwrap().address(), "2001:db8::".parse::<IpAddr>().unwrap());
        assert_eq!(of("::", 0).unwrap().address(), "::".parse::<IpAddr>().unwrap());
        assert_eq!(of("10.0.0.1", 33), None);
        assert_eq!(of("::1", 129), None);
    }

    #[test]
    fn queues_fit_in_sixteen_bits() {
        assert_eq!(Queues::new(65535, 1).unwrap().numbers().collect::<Vec<_>>(), [65535]);
        assert_eq!(Queues::new(65535, 2), None);
        assert_eq!(Queues::new(1, 0), None);
    }
}
