//! Counts what a closed host has dropped beside responses, and says how each kind could be let through.
//!
//! The kernel counts by protocol and both ports. One of the ports is a client's and changes with every connection: kinds
//! are told apart by the lower one, which is the service's. The kernel's counters begin again when rules are put in force
//! again and when an element has been forgotten, so only their growth is added up here.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;

use crate::daemon::message_id;
use crate::netfilter::{Family, Strays as Counted};
use crate::wire::pass::protocol_name;

/// Different kinds are counted one by one. Beyond that, and where the kernel could not tell, they are `other`.
const MOST_KINDS: usize = 64;

/// What was dropped, since the start.
#[derive(Debug, Default)]
pub(super) struct Strays {
    kinds: BTreeMap<Kind, u64>,
    total: u64,
    fragments: u64,
    icmp_errors: u64,
    before: HashMap<Family, Counted>,
}

/// Traffic that one `pass` entry would let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    protocol: u8,
    port: Option<Port>,
}

/// The port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    /// The target is the service.
    Source(u16),
    /// The target uses the service.
    Destination(u16),
}

impl Kind {
    fn of((protocol, sport, dport): (u8, u16, u16)) -> Self {
        let port = if dport <= sport { Port::Destination(dport) } else { Port::Source(sport) };
        Self { protocol, port: Some(port) }
    }

    /// The entry of `pass` that lets this kind through.
    fn entry(self) -> String {
        self.words(" ")
    }

    fn words(self, between: &str) -> String {
        let protocol = protocol_name(self.protocol);
        match self.port {
            None => protocol,
            Some(Port::Source(port)) => [&protocol, "sport", &port.to_string()].join(between),
            Some(Port::Destination(port)) => [&protocol, "dport", &port.to_string()].join(between),
        }
    }
}

impl Strays {
    /// Adds what has been dropped since the counters were read before, and logs each kind that is new.
    pub(super) fn take(&mut self, counters: Vec<(Family, Counted)>) {
        for (family, counted) in counters {
            let before = self.before.remove(&family).unwrap_or_default();
            for kind in self.add(&before, &counted) {
                warn(kind);
            }
            self.before.insert(family, counted);
        }
    }

    /// Adds the growth of a table's counters and returns the kinds that are new.
    fn add(&mut self, before: &Counted, now: &Counted) -> Vec<Kind> {
        self.total += growth(before.total, now.total);
        self.fragments += growth(before.fragments, now.fragments);
        self.icmp_errors += growth(before.icmp_errors, now.icmp_errors);
        let mut with_ports: HashMap<u8, u64> = HashMap::new();
        let mut grown: BTreeMap<Kind, u64> = BTreeMap::new();
        for (key, count) in increases(&before.by_ports, &now.by_ports) {
            *with_ports.entry(key.0).or_default() += count;
            *grown.entry(Kind::of(key)).or_default() += count;
        }
        for (protocol, count) in increases(&before.by_protocol, &now.by_protocol) {
            let rest = count.saturating_sub(with_ports.get(&protocol).copied().unwrap_or(0));
            *grown.entry(Kind { protocol, port: None }).or_default() += rest;
        }
        grown.retain(|_, count| *count > 0);
        let mut new = Vec::new();
        for (kind, count) in grown {
            if let Some(sum) = self.kinds.get_mut(&kind) {
                *sum += count;
            } else if self.kinds.len() < MOST_KINDS {
                self.kinds.insert(kind, count);
                new.push(kind);
            }
        }
        new
    }
}

/// The kinds with their counts, for the statistics.
impl fmt::Display for Strays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: u64 = self.kinds.values().sum();
        let kinds = self.kinds.iter().map(|(kind, count)| (kind.words(":"), *count));
        let others = [
            ("other", self.total.saturating_sub(known)),
            ("fragments", self.fragments),
            ("icmp_errors", self.icmp_errors),
        ];
        let others = others.into_iter().map(|(name, count)| (name.to_owned(), count));
        let parts = kinds.chain(others).filter(|(_, count)| *count > 0);
        let parts: Vec<_> = parts.map(|(name, count)| format!("{name}={count}")).collect();
        f.write_str(&parts.join(" "))
    }
}

fn warn(kind: Kind) {
    let entry = kind.entry();
    tracing::warn!(
        MESSAGE_ID = message_id::STRAY_DROPPED,
        pass = entry,
        "a target sent traffic that is no response to a replayed client, and this host dropped it; to let it through, add \
         pass = [\"{entry}\"]"
    );
}

/// How much a counter has grown; all of it, if it has begun again.
fn growth(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

fn increases<K: Copy + Eq + Hash>(before: &HashMap<K, u64>, now: &HashMap<K, u64>) -> Vec<(K, u64)> {
    let increase = |(key, count): (&K, &u64)| (*key, growth(before.get(key).copied().unwrap_or(0), *count));
    now.iter().map(increase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(by_ports: &[((u8, u16, u16), u64)], by_protocol: &[(u8, u64)], total: u64) -> Counted {
        Counted {
            total,
            by_ports: by_ports.iter().copied().collect(),
            by_protocol: by_protocol.iter().copied().collect(),
            ..Counted::default()
        }
    }

    #[test]
    fn kinds_are_told_apart_by_the_service_and_entries_are_valid() {
        for (key, text, entry) in [
            ((17, 40_000, 53), "udp:dport:53", "udp dport 53"),
            ((6, 22, 40_000), "tcp:sport:22", "tcp sport 22"),
            ((6, 8080, 40_000), "tcp:sport:8080", "tcp sport 8080"),
            ((132, 9, 9), "sctp:dport:9", "sctp dport 9"),
        ] {
            let kind = Kind::of(key);
            assert_eq!((kind.words(":"), kind.entry()), (text.to_owned(), entry.to_owned()));
            entry.parse::<crate::wire::Pass>().expect(entry);
        }
        for protocol in 0..=255 {
            let entry = Kind { protocol, port: None }.entry();
            assert_eq!(entry.parse::<crate::wire::Pass>().expect(&entry).protocol, Some(protocol));
        }
    }

    #[test]
    fn growth_is_added_up_across_new_rules_and_forgotten_elements() {
        let mut strays = Strays::default();
        let first = counted(&[((17, 40_000, 53), 2), ((17, 40_001, 53), 1)], &[(17, 4), (1, 2)], 6);
        let new = strays.add(&Counted::default(), &first);
        assert_eq!(new.len(), 3, "DNS, UDP fragments, ICMP: {new:?}");
        assert_eq!(strays.to_string(), "icmp=2 udp=1 udp:dport:53=3");
        // One element is forgotten, another has grown.
        let second = counted(&[((17, 40_001, 53), 4)], &[(17, 7), (1, 2)], 9);
        assert_eq!(strays.add(&first, &second), []);
        assert_eq!(strays.to_string(), "icmp=2 udp=1 udp:dport:53=6");
        // The rules were put in force again.
        let third = counted(&[((17, 40_001, 53), 1)], &[(17, 1)], 3);
        assert_eq!(strays.add(&second, &third), []);
        assert_eq!(strays.to_string(), "icmp=2 udp=1 udp:dport:53=7 other=2");
    }

    #[test]
    fn kinds_are_bounded() {
        let mut strays = Strays::default();
        let ports: Vec<_> = (1..=500).map(|port| ((6, port, 40_000), 1)).collect();
        let new = strays.add(&Counted::default(), &counted(&ports, &[(6, 500)], 500));
        assert_eq!(new.len(), MOST_KINDS);
        assert!(strays.to_string().ends_with(&format!(" other={}", 500 - MOST_KINDS)), "{strays}");
    }
}
