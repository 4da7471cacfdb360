//! The ruleset as text for `nft -f`.
//!
//! The text replaces tables of the same name, like the batch. It does not say `flags owner`: the owner would be nft,
//! and the kernel would remove the table as nft ends.

use std::fmt::{self, Display, Formatter};

use super::ruleset::{Chain, End, Family, Match, Rule, Ruleset, Statement};
use crate::wire::flow::SPLIT_SEED;

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

fn write_chain(f: &mut Formatter<'_>, family: Family, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {} {{", chain.name)?;
    let (hook, priority) = (chain.hook.name(), chain.priority);
    writeln!(f, "\t\ttype filter hook {hook} priority {priority}; policy accept;")?;
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
            write_statement(f, statement)?;
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
        Match::Saddr(prefix) => {
            write!(f, "{family} saddr {}", prefix.address())?;
            if prefix.is_one_address() { Ok(()) } else { write!(f, "/{}", prefix.length()) }
        }
        Match::Daddr(address) => write!(f, "{family} daddr {address}"),
        Match::DaddrLocal => f.write_str("fib daddr type local"),
        Match::Tcp => f.write_str("meta l4proto tcp"),
        Match::TcpSport(port) => write!(f, "tcp sport {port}"),
        Match::TcpDport(port) => write!(f, "tcp dport {port}"),
        Match::Length(bytes) => write!(f, "{family} length {bytes}"),
        Match::DataOffset(words) => write!(f, "tcp doff {words}"),
        Match::NoSynFinRst => f.write_str("tcp flags & (fin | syn | rst) == 0x0"),
        Match::Worker { client, index, workers } => {
            let (address, port) = match client {
                End::Source => ("saddr", "sport"),
                End::Destination => ("daddr", "dport"),
            };
            write!(
                f,
                "jhash {family} {address} . tcp {port} mod {workers} seed {SPLIT_SEED:#010x} == {index}"
            )
        }
    }
}

fn write_statement(f: &mut Formatter<'_>, statement: &Statement) -> fmt::Result {
    match statement {
        Statement::Counter => f.write_str("counter"),
        Statement::Dup { to, device } => write!(f, "dup to {to} device \"{}\"", device.name),
        Statement::Notrack => f.write_str("notrack"),
        Statement::Queue(number) => write!(f, "queue num {number}"),
        Statement::Return => f.write_str("return"),
        Statement::Accept => f.write_str("accept"),
        Statement::Drop => f.write_str("drop"),
    }
}
