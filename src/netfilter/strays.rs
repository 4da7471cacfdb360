//! What intercept's rules have dropped although it was no response, by the kernel's own counters.

use std::collections::HashMap;
use std::io;

use super::assistant::{BLACKHOLE, CLOSED, ERRORS, STRAY_PROTOCOLS, STRAYS};
use super::link::{Link, undisturbed};
use super::message::{self, Attributes};
use super::ruleset::{Chain, Family, Ruleset, Table};

/// Counters of a table, as they are now. They begin again when the rules are put in force again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strays {
    /// All packets that were dropped because nothing let them pass.
    pub total: u64,
    /// Of these, those of protocols with ports: protocol, source port and destination port. Those that have not come for
    /// a while are forgotten, and those for which the set had no room are missing.
    pub by_ports: HashMap<(u8, u16, u16), u64>,
    /// The same for all protocols.
    pub by_protocol: HashMap<u8, u64>,
    /// Fragments of TCP segments that were dropped.
    pub fragments: u64,
    /// ICMP errors about replayed packets that were dropped.
    pub icmp_errors: u64,
}

/// Reads the counters of each table of a ruleset in force, whoever put it there.
pub fn strays(ruleset: &Ruleset) -> io::Result<Vec<(Family, Strays)>> {
    read(&mut Link::open()?, ruleset)
}

pub(super) fn read(link: &mut Link, ruleset: &Ruleset) -> io::Result<Vec<(Family, Strays)>> {
    let mut of = |table: &Table| {
        let strays = undisturbed(|| of_table(link, ruleset, table))?;
        Ok((table.family, strays))
    };
    ruleset.tables.iter().map(&mut of).collect()
}

fn of_table(link: &mut Link, ruleset: &Ruleset, table: &Table) -> io::Result<Strays> {
    let (family, name) = (table.family, &ruleset.name);
    let mut strays = Strays::default();
    let has_strays = table.sets.iter().any(|set| set.name == STRAYS);
    let closed = table.chains.iter().any(|chain| chain.name == CLOSED && ends_with_drop(chain));
    link.dump(libc::NFT_MSG_GETRULE, family, name, &mut |rule| {
        let Some(counted) = message::rule_counter(&rule) else { return };
        match rule.string(message::RULE_CHAIN) {
            Some(chain) if chain == ERRORS.as_bytes() => strays.icmp_errors += counted.packets,
            // Every rule of the chain that counts drops fragments, but for the last one.
            Some(chain) if chain == CLOSED.as_bytes() && closed => {
                strays.fragments += std::mem::replace(&mut strays.total, counted.packets);
            }
            Some(chain) if chain == CLOSED.as_bytes() || chain == BLACKHOLE.as_bytes() => {
                strays.fragments += counted.packets;
            }
            Some(_) | None => {}
        }
    })?;
    if has_strays {
        link.dump_set(family, name, STRAYS, &mut |element| {
            if let (Some(&[protocol, _, _, _, s0, s1, _, _, d0, d1, _, _]), Some(count)) =
                (key(&element), message::element_counter(&element))
            {
                let ports = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
                strays.by_ports.insert((protocol, ports.0, ports.1), count.packets);
            }
        })?;
        link.dump_set(family, name, STRAY_PROTOCOLS, &mut |element| {
            if let (Some([protocol, ..]), Some(count)) = (key(&element), message::element_counter(&element)) {
                strays.by_protocol.insert(*protocol, count.packets);
            }
        })?;
    }
    Ok(strays)
}

/// Whether the last rule drops what comes to it without a condition.
fn ends_with_drop(chain: &Chain) -> bool {
    chain.rules.last().is_some_and(|rule| rule.matches.is_empty())
}

/// The bytes of an element's key.
fn key<'a>(element: &Attributes<'a>) -> Option<&'a [u8]> {
    const ELEMENT_KEY: u16 = 1;
    const DATA_VALUE: u16 = 1;
    element.nested(ELEMENT_KEY)?.find(DATA_VALUE)
}
