//! The ruleset as text for `nft -f`.
//!
//! The text replaces tables of the same name, like the batch. It does not say `flags owner`: the owner would be nft,
//! and the kernel would remove the table as nft ends.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::encode::{NOBODY, PLAIN_IPV4, Quoted, TCP};
use super::ruleset::{Chain, End, Family, Match, Rule, Ruleset, Set, SetKey, Statement};
use crate::wire::Prefix;
use crate::wire::flow::{SHARE_SEED, SHARES, SPLIT_SEED};

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (position, table) in self.tables.iter().enumerate() {
            let (family, name) = (table.family, &self.name);
            if position > 0 {
                writeln!(f)?;
            }
            writeln!(f, "table {family} {name}")?;
            writeln!(f, "delete table {family} {name}")?;
            writeln!(f, "table {family} {name} {{")?;
            for set in &table.sets {
                write_set(f, family, set)?;
                writeln!(f)?;
            }
            for (position, chain) in table.chains.iter().enumerate() {
                if position > 0 {
                    writeln!(f)?;
                }
                write_chain(f, family, chain)?;
            }
            writeln!(f, "}}")?;
        }
        Ok(())
    }
}

fn write_set(f: &mut Formatter<'_>, family: Family, set: &Set) -> fmt::Result {
    let key = match (set.key, family) {
        (SetKey::Client, Family::Ip) => "ipv4_addr . inet_service",
        (SetKey::Client, Family::Ip6) => "ipv6_addr . inet_service",
        (SetKey::Ports, _) => "inet_proto . inet_service . inet_service",
        (SetKey::Protocol, _) => "inet_proto",
    };
    writeln!(f, "\tset {} {{", set.name)?;
    writeln!(f, "\t\ttype {key}")?;
    writeln!(f, "\t\tsize {}", set.size)?;
    writeln!(f, "\t\tflags dynamic,timeout")?;
    write!(f, "\t\ttimeout {}s", set.timeout.as_secs())?;
    match set.timeout.subsec_millis() {
        0 => writeln!(f)?,
        more => writeln!(f, "{more}ms")?,
    }
    writeln!(f, "\t}}")
}

fn write_chain(f: &mut Formatter<'_>, family: Family, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {} {{", chain.name)?;
    if let Some(hook) = chain.hook.name() {
        writeln!(f, "\t\ttype filter hook {hook} priority {}; policy accept;", chain.priority)?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{}", rule.in_family(family))?;
    }
    writeln!(f, "\t}}")
}

impl Rule {
    /// The rule as text, as condition of a table of `family`.
    pub(super) fn in_family(&self, family: Family) -> RuleText<'_> {
        RuleText { rule: self, family }
    }
}

/// See [`Rule::in_family`].
pub(super) struct RuleText<'a> {
    rule: &'a Rule,
    family: Family,
}

impl Display for RuleText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for condition in &self.rule.matches {
            f.write_str(separator)?;
            write_match(f, self.family, condition)?;
            separator = " ";
        }
        for statement in &self.rule.statements {
            f.write_str(separator)?;
            write_statement(f, self.family, statement)?;
            separator = " ";
        }
        Ok(())
    }
}

fn write_match(f: &mut Formatter<'_>, family: Family, condition: &Match) -> fmt::Result {
    match condition {
        Match::Mark(mark) => write!(f, "meta mark {mark:#010x}"),
        Match::Iif(device) => write!(f, "iif \"{}\"", device.name),
        Match::Oif(device) => write!(f, "oif \"{}\"", device.name),
        Match::FromSocket => write!(f, "meta skuid != {NOBODY}"),
        Match::Saddr(prefix) => write_address(f, family, "saddr", prefix),
        Match::Daddr(prefix) => write_address(f, family, "daddr", prefix),
        Match::DaddrLocal => f.write_str("fib daddr type local"),
        Match::DaddrBroadcast => f.write_str("fib daddr type broadcast"),
        Match::L4Proto(protocol) => write!(f, "meta l4proto {protocol}"),
        Match::Sports(ports) => write!(f, "th sport {}", Range(ports)),
        Match::Dports(ports) => write!(f, "th dport {}", Range(ports)),
        Match::Fragment => f.write_str(match family {
            Family::Ip => "ip frag-off & 0x3fff != 0",
            Family::Ip6 => "exthdr frag exists",
        }),
        Match::NotFragment => f.write_str(match family {
            Family::Ip => "ip frag-off & 0x3fff == 0",
            Family::Ip6 => "exthdr frag missing",
        }),
        Match::HopLimit(hops) => write!(f, "ip6 hoplimit {hops}"),
        Match::Tcp => f.write_str("meta l4proto tcp"),
        Match::TcpSport(port) => write!(f, "tcp sport {port}"),
        Match::TcpDport(port) => write!(f, "tcp dport {port}"),
        Match::TcpDports(ports) => write!(f, "tcp dport {}-{}", ports.start(), ports.end()),
        Match::Length(bytes) => write!(f, "{family} length {bytes}"),
        Match::LengthAtMost(bytes) => write!(f, "{family} length <= {bytes}"),
        Match::DataOffset(words) => write!(f, "tcp doff {words}"),
        Match::NoSynFinRst => f.write_str("tcp flags & (fin | syn | rst) == 0x0"),
        Match::SynAlone => f.write_str("tcp flags & (fin | syn | rst | ack) == syn"),
        Match::Worker { client, index, workers } => {
            let flow = Flow { family, end: *client };
            write!(f, "jhash {flow} mod {workers} seed {SPLIT_SEED:#010x} == {index}")
        }
        Match::OutsideShare { client, share } => {
            let flow = Flow { family, end: *client };
            write!(f, "jhash {flow} mod {SHARES} seed {SHARE_SEED:#010x} >= {share}")
        }
        Match::IcmpTypes(types) => {
            let icmp = match family {
                Family::Ip => "icmp",
                Family::Ip6 => "icmpv6",
            };
            write!(f, "{icmp} type {}", Range(types))
        }
        Match::QuotedTcpTo(to) => write_quoted(f, *to),
        Match::QuotedTcpWithOptionsTo(to) => {
            let Quoted { protocol, destination, .. } = Quoted::of(Family::Ip);
            write!(f, "@th,{},8 != {PLAIN_IPV4:#x} ", Quoted::BEGIN * 8)?;
            write!(f, "@th,{},8 {TCP} @th,{},32 {:#010x}", protocol * 8, destination * 8, to.to_bits())
        }
        Match::NotIn { set, client } => write!(f, "{} != @{set}", Flow { family, end: *client }),
    }
}

/// The quoted packet's fields, by their bits from the beginning of the ICMP header.
fn write_quoted(f: &mut Formatter<'_>, to: SocketAddr) -> fmt::Result {
    let Quoted { protocol, destination, port } = Quoted::of(Family::of(to.ip()));
    let (protocol, destination, port) = (protocol * 8, destination * 8, port * 8);
    write!(f, "@th,{protocol},8 {TCP} ")?;
    match to.ip() {
        IpAddr::V4(ip) => write!(f, "@th,{destination},32 {:#010x} ", ip.to_bits())?,
        IpAddr::V6(ip) => write!(f, "@th,{destination},128 {:#034x} ", ip.to_bits())?,
    }
    write!(f, "@th,{port},16 {}", to.port())
}

/// The first and last of a range, or the only one.
struct Range<'a, T>(&'a RangeInclusive<T>);

impl<T: Display + PartialEq> Display for Range<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

fn write_address(f: &mut Formatter<'_>, family: Family, field: &str, prefix: &Prefix) -> fmt::Result {
    write!(f, "{family} {field} {}", prefix.address())?;
    if prefix.is_one_address() { Ok(()) } else { write!(f, "/{}", prefix.length()) }
}

/// Address and port of one end.
struct Flow {
    family: Family,
    end: End,
}

impl Display for Flow {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let family = self.family;
        match self.end {
            End::Source => write!(f, "{family} saddr . tcp sport"),
            End::Destination => write!(f, "{family} daddr . tcp dport"),
        }
    }
}

fn write_statement(f: &mut Formatter<'_>, family: Family, statement: &Statement) -> fmt::Result {
    match statement {
        Statement::Counter => f.write_str("counter"),
        Statement::Dup { to, device } => write!(f, "dup to {to} device \"{}\"", device.name),
        Statement::Notrack => f.write_str("notrack"),
        Statement::Queue(number) => write!(f, "queue num {number}"),
        Statement::Add { set, client } => write!(f, "add @{set} {{ {} }}", Flow { family, end: *client }),
        Statement::Delete { set, client } => {
            write!(f, "delete @{set} {{ {} }}", Flow { family, end: *client })
        }
        Statement::LimitOver(rate) => write!(f, "limit rate over {rate}/second burst {rate} packets"),
        Statement::Goto(chain) => write!(f, "goto {chain}"),
        Statement::Jump(chain) => write!(f, "jump {chain}"),
        Statement::SetMark(mark) => write!(f, "meta mark set {mark:#010x}"),
        Statement::Count { set, key } => {
            let key = match key {
                SetKey::Client => Flow { family, end: End::Source }.to_string(),
                SetKey::Ports => "meta l4proto . th sport . th dport".to_owned(),
                SetKey::Protocol => "meta l4proto".to_owned(),
            };
            write!(f, "update @{set} {{ {key} counter }}")
        }
        Statement::Return => f.write_str("return"),
        Statement::Accept => f.write_str("accept"),
        Statement::Drop => f.write_str("drop"),
    }
}
