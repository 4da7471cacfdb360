//! Editing the rules of intercept as somebody with root's power does.

use std::fmt::Write;

use anyhow::Result;

use crate::namespace::{Namespace, run};

/// Tables of intercept have this in their names.
const TABLE: &str = "intercept";

/// What is done to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// Each rule becomes one that accepts, in its place.
    AcceptInstead,
    /// A rule that accepts is put before all others of each chain.
    AcceptFirst,
    /// The chains lose their rules.
    FlushChains,
    /// The tables go.
    DeleteTables,
}

/// A chain or a rule as nft names it.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// Family and table.
    table: String,
    chain: String,
    /// The rule; of a chain itself, none.
    handle: Option<u64>,
}

/// Edits all tables of intercept, at once if nft lets it.
pub(super) fn edit(host: &Namespace, edit: Edit) -> Result<()> {
    let places = places(&host.output("nft", &["-a", "list", "ruleset"])?);
    let mut lines = String::new();
    let mut tables: Vec<&str> = Vec::new();
    for Place { table, chain, handle } in &places {
        match (edit, handle) {
            (Edit::AcceptInstead, Some(handle)) => {
                writeln!(lines, "replace rule {table} {chain} handle {handle} counter accept")?;
            }
            (Edit::AcceptFirst, None) => writeln!(lines, "insert rule {table} {chain} accept")?,
            (Edit::FlushChains, None) => writeln!(lines, "flush chain {table} {chain}")?,
            (Edit::DeleteTables, None) if !tables.contains(&table.as_str()) => {
                writeln!(lines, "delete table {table}")?;
                tables.push(table);
            }
            _ => {}
        }
    }
    run(host.command("nft").args(["-f", "-"]), Some(&lines)).map(drop)
}

/// The rules of intercept without what changes by itself.
pub(super) fn of(host: &Namespace) -> Result<String> {
    let mut all = String::new();
    for line in host.output("nft", &["list", "tables"])?.lines() {
        if let Some(table) = line.strip_prefix("table ").filter(|table| table.contains(TABLE)) {
            // Terse: packets add elements to sets.
            let mut arguments = vec!["--terse", "list", "table"];
            arguments.extend(table.split(' '));
            all.push_str(&crate::namespace::without_counts(&host.output("nft", &arguments)?));
        }
    }
    Ok(all)
}

/// Chains and rules of intercept's tables in a listing with handles.
fn places(listing: &str) -> Vec<Place> {
    let (mut table, mut chain, mut places) = (None, None, Vec::new());
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let handle = words.iter().rposition(|word| *word == "handle").and_then(|at| words.get(at + 1));
        match words.as_slice() {
            ["table", family, name, ..] => {
                table = name.contains(TABLE).then(|| format!("{family} {name}"));
                chain = None;
            }
            ["chain", name, ..] => {
                chain = Some((*name).to_owned());
                if let (Some(table), Some(chain)) = (&table, &chain) {
                    places.push(Place { table: table.clone(), chain: chain.clone(), handle: None });
                }
            }
            ["set" | "map", ..] => chain = None,
            ["type", ..] => {}
            _ => {
                let handle = handle.and_then(|handle| handle.parse().ok());
                if let (Some(table), Some(chain), Some(_)) = (&table, &chain, handle) {
                    places.push(Place { table: table.clone(), chain: chain.clone(), handle });
                }
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_and_rules_are_found() {
        let listing = "table ip intercept { # handle 3\n\tchain responses { # handle 1\n\
                       \t\ttype filter hook prerouting priority raw; policy accept;\n\
                       \t\tip saddr 10.91.2.2 tcp sport 80 drop # handle 4\n\t}\n}\n\
                       table ip other { # handle 1\n\tchain x { # handle 2\n\t\tdrop # handle 3\n\t}\n}\n";
        let place =
            |handle| Place { table: "ip intercept".to_owned(), chain: "responses".to_owned(), handle };
        assert_eq!(places(listing), [place(None), place(Some(4))]);
    }
}
