//! Asking the kernel what is there: whether our rules are complete, and what they counted.

use std::collections::{BTreeMap, HashMap};
use std::io;

use super::batch::{self, TABLE_OWNER};
use super::content;
use super::encode::QueueKind;
use super::link::{Link, undisturbed};
use super::message::{self, Captured};
use super::ruleset::{Ruleset, Table, TableName};

/// Whether a ruleset is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// All its tables, sets, chains and rules are there.
    Complete,
    /// Something is missing or has been changed; what was noticed first.
    Altered(String),
}

/// Compares what the kernel has with `ruleset`: tables and their flags, sets but not what is in them, chains, and rules
/// by their content, in order.
pub fn present(ruleset: &Ruleset) -> io::Result<Presence> {
    presence(&mut Link::open()?, ruleset)
}

pub(super) fn presence(link: &mut Link, ruleset: &Ruleset) -> io::Result<Presence> {
    for table in &ruleset.tables {
        if let Some(alteration) = undisturbed(|| alteration(link, ruleset, table))? {
            return Ok(Presence::Altered(alteration));
        }
    }
    Ok(Presence::Complete)
}

fn alteration(link: &mut Link, ruleset: &Ruleset, table: &Table) -> io::Result<Option<String>> {
    let (family, name) = (table.family, &ruleset.name);
    let expected_flags = if ruleset.owner { TABLE_OWNER } else { 0 };
    match link.table_flags(family, name)? {
        None => return Ok(Some(format!("table {family} {name} is gone"))),
        Some(flags) if flags != expected_flags => {
            return Ok(Some(format!("table {family} {name} has flags {flags:#x}, not {expected_flags:#x}")));
        }
        Some(_) => {}
    }
    if let Some(alteration) = altered_set(link, name, table)? {
        return Ok(Some(alteration));
    }
    altered_chain(link, ruleset, table)
}

fn altered_set(link: &mut Link, name: &TableName, table: &Table) -> io::Result<Option<String>> {
    let family = table.family;
    let mut found = HashMap::new();
    link.dump(libc::NFT_MSG_GETSET, family, name, &mut |set| {
        if let Some(set_name) = set.string(message::SET_NAME) {
            found.insert(set_name.to_vec(), message::set_shape(&set));
        }
    })?;
    for set in &table.sets {
        match found.remove(set.name.as_bytes()) {
            None => return Ok(Some(format!("set {family} {name} {} is gone", set.name))),
            Some(shape) if shape != batch::shape(family, set) => {
                return Ok(Some(format!("set {family} {name} {} is another one", set.name)));
            }
            Some(_) => {}
        }
    }
    let stranger = found.into_keys().next();
    Ok(stranger.map(|set| {
        format!("table {family} {name} has a set that is not ours: {}", String::from_utf8_lossy(&set))
    }))
}

fn altered_chain(link: &mut Link, ruleset: &Ruleset, table: &Table) -> io::Result<Option<String>> {
    let (family, name) = (table.family, &ruleset.name);
    let mut found = BTreeMap::new();
    for (kind, answer) in
        [(libc::NFT_MSG_GETCHAIN, libc::NFT_MSG_NEWCHAIN), (libc::NFT_MSG_GETRULE, libc::NFT_MSG_NEWRULE)]
    {
        link.dump(kind, family, name, &mut |object| content::add(&mut found, answer, &object))?;
    }
    let mut expected = content::sent(&batch::install(ruleset, QueueKind::Native), family);
    for chain in &table.chains {
        let whole_name = format!("chain {family} {name} {}", chain.name);
        let wanted = expected.remove(chain.name.as_bytes()).unwrap_or_default();
        let Some(there) = found.remove(chain.name.as_bytes()) else {
            return Ok(Some(format!("{whole_name} is gone")));
        };
        if there.chain != wanted.chain {
            return Ok(Some(format!("{whole_name} has another type, hook, priority or policy")));
        }
        if there.rules.len() != wanted.rules.len() {
            let (count, expected) = (there.rules.len(), wanted.rules.len());
            return Ok(Some(format!("{whole_name} has {count} rules, not {expected}")));
        }
        let pairs = there.rules.iter().zip(&wanted.rules);
        if let Some(position) =
            pairs.enumerate().find_map(|(at, (there, wanted))| (there != wanted).then_some(at))
        {
            let text = chain.rules.get(position).map(|rule| rule.in_family(family).to_string());
            let text = text.unwrap_or_default();
            return Ok(Some(format!("rule {} of {whole_name} is not \"{text}\"", position + 1)));
        }
    }
    let stranger = found.into_keys().next();
    Ok(stranger.map(|chain| {
        format!("table {family} {name} has a chain that is not ours: {}", String::from_utf8_lossy(&chain))
    }))
}

/// What the rules that duplicate, and those that leave out what is beyond a rate, have counted.
pub(super) fn counted(link: &mut Link, ruleset: &Ruleset) -> io::Result<Captured> {
    undisturbed(|| {
        let mut captured = Captured::default();
        for table in &ruleset.tables {
            link.dump(libc::NFT_MSG_GETRULE, table.family, &ruleset.name, &mut |rule| {
                let Some(counted) = message::rule_counter(&rule) else { return };
                if message::has_expression(&rule, b"dup") {
                    captured.duplicated.add(counted);
                } else if message::has_expression(&rule, b"limit") {
                    captured.over_limit.add(counted);
                }
            })?;
        }
        Ok(captured)
    })
}
