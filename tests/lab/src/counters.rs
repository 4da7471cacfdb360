//! What `tcpcopy` counted, as the last `stats` line of its log says.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};

/// Counters by name; one of a group (`ended="completed=5 shed=1"`) is `ended.shed`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Adds those of the last `stats` line of a log; `None` if there is none.
    pub(crate) fn add_last(&mut self, log: &str) -> Option<()> {
        let (_, line) = log.lines().rev().find_map(|line| line.split_once(" stats "))?;
        for (name, value) in fields(line) {
            if let Ok(count) = value.parse::<u64>() {
                *self.0.entry(name.to_owned()).or_default() += count;
                continue;
            }
            for (member, count) in value.split(' ').filter_map(|part| part.split_once('=')) {
                *self.0.entry(format!("{name}.{member}")).or_default() += count.parse().unwrap_or(0);
            }
        }
        Some(())
    }

    /// One of them; 0 if it is not there.
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// The sum of a group, but for the members in `except`.
    pub(crate) fn group(&self, group: &str, except: &[&str]) -> u64 {
        let member = |name: &str| {
            let member = name.strip_prefix(group)?.strip_prefix('.')?;
            Some(!except.contains(&member))
        };
        self.0.iter().filter(|(name, _)| member(name) == Some(true)).map(|(_, count)| count).sum()
    }
}

/// Those that are not zero.
impl Display for Counters {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for (name, count) in self.0.iter().filter(|(_, count)| **count > 0) {
            write!(f, "{separator}{name}={count}")?;
            separator = " ";
        }
        Ok(())
    }
}

/// The fields of a log line: `name=value` or `name="some words"`.
fn fields(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let (name, after) = rest.trim_start().split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        rest = after;
        Some((name, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts() {
        let log = "x INFO stats captured=1\n\
                   x INFO stats captured=20 unused=\"\" ended=\"completed=5 shed=2 idle=1\" buffered=0\n\
                   x INFO stopped";
        let mut counters = Counters::default();
        counters.add_last(log).unwrap();
        assert_eq!((counters.of("captured"), counters.of("ended.shed"), counters.of("odd")), (20, 2, 0));
        assert_eq!((counters.group("ended", &["completed"]), counters.group("unused", &[])), (3, 0));
        assert_eq!(counters.to_string(), "captured=20 ended.completed=5 ended.idle=1 ended.shed=2");
        assert!(counters.add_last("nothing here").is_none());
    }
}
