//! What the settings of both programs have in common: keys, their bounds, and checks.

use std::net::SocketAddr;
use std::time::Duration;

use super::key::{Key, Kind};
use super::keys::TunnelKey;
use super::units::Size;
use super::value::{AutoOr, choice};

/// The most worker threads; far beyond any machine, and the queue numbers still fit.
const MAX_WORKERS: u64 = 256;

/// The least limit of memory, in bytes.
const LEAST_MEMORY: u64 = 16 << 20;

/// The longest time to coalesce.
const MAX_COALESCE: Duration = Duration::from_millis(10);

/// The key `workers`.
pub(super) const fn workers(help: &'static str) -> Key {
    Key {
        name: "workers",
        option: "workers",
        short: None,
        kind: Kind::Number,
        value_name: "N",
        default: "\"auto\"",
        help,
    }
}

/// The key `insecure`.
pub(super) const fn insecure(help: &'static str) -> Key {
    Key {
        name: "insecure",
        option: "insecure",
        short: None,
        kind: Kind::Flag,
        value_name: "BOOL",
        default: "false",
        help,
    }
}

/// The key `keys`.
pub(super) const fn keys(help: &'static str) -> Key {
    Key {
        name: "keys",
        option: "keys",
        short: None,
        kind: Kind::Text,
        value_name: "PATH",
        default: "\"auto\"",
        help,
    }
}

/// The key `queue`.
pub(super) const fn queue(default: &'static str) -> Key {
    Key {
        name: "queue",
        option: "queue",
        short: None,
        kind: Kind::Number,
        value_name: "N",
        default,
        help: "Netfilter queue of the first worker; the others follow",
    }
}

/// Where packets are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureSource {
    /// Rules lead them, or duplicates of them, into netfilter queues.
    Nfqueue,
    /// Packet sockets copy them as they come in: no rules lead them anywhere, and the kernel has less to do.
    Packet,
}

choice! {
    CaptureSource { Nfqueue = "nfqueue", Packet = "packet", }
    expected "\"nfqueue\" or \"packet\""
}

/// The key `capture.source`.
pub(super) const fn source(help: &'static str) -> Key {
    Key {
        name: "capture.source",
        option: "capture-source",
        short: None,
        kind: Kind::Text,
        value_name: "SOURCE",
        default: "\"nfqueue\"",
        help,
    }
}

/// Who puts the netfilter rules in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RulesBy {
    /// The program, which watches them too.
    Program,
    /// The operator, by hand or by a firewall's configuration.
    Operator,
}

choice! {
    RulesBy { Program = "auto", Operator = "manual", }
    expected "\"auto\" or \"manual\""
}

/// The key `rules`.
pub(super) const fn rules(help: &'static str) -> Key {
    Key {
        name: "rules",
        option: "rules",
        short: None,
        kind: Kind::Text,
        value_name: "BY",
        default: "\"auto\"",
        help,
    }
}

/// The key `memory-limit`.
pub(super) const fn memory_limit(default: &'static str, help: &'static str) -> Key {
    Key {
        name: "memory-limit",
        option: "memory-limit",
        short: None,
        kind: Kind::Text,
        value_name: "SIZE",
        default,
        help,
    }
}

/// The key `coalesce`.
pub(super) const fn coalesce(help: &'static str) -> Key {
    Key {
        name: "coalesce",
        option: "coalesce",
        short: None,
        kind: Kind::Text,
        value_name: "TIME",
        default: "\"800us\"",
        help,
    }
}

/// The user that root becomes by default.
pub const DEFAULT_USER: &str = "tcpcopy";

/// The key `user`.
pub(super) const fn user() -> Key {
    Key {
        name: "user",
        option: "user",
        short: None,
        kind: Kind::Text,
        value_name: "NAME",
        default: "\"tcpcopy\"",
        help: "User to become if started as root; root stays root",
    }
}

/// The key `log`.
pub(super) const fn log(help: &'static str) -> Key {
    Key {
        name: "log",
        option: "log",
        short: None,
        kind: Kind::Text,
        value_name: "LEVEL",
        default: "\"info\"",
        help,
    }
}

/// The value of the key `workers`.
pub(super) type Workers = AutoOr<1, MAX_WORKERS>;

/// Keeps the running value of a key that cannot change while the program runs; notes the key if it would have.
pub(super) fn keep<T: Clone + PartialEq>(
    key: &'static str,
    new: &mut T,
    running: &T,
    keys: &mut Vec<&'static str>,
) {
    if new != running {
        new.clone_from(running);
        keys.push(key);
    }
}

/// The number of processors this process may use.
pub(super) fn processors() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| u64::try_from(count.get()).unwrap_or(u64::MAX))
}

/// What is wrong with addresses of which one is named twice.
pub(super) fn refuse_twice(addresses: &[SocketAddr]) -> Option<String> {
    let twice = addresses
        .iter()
        .enumerate()
        .find(|(index, address)| addresses.iter().take(*index).any(|other| other == *address));
    twice.map(|(_, address)| format!("{address} is named twice; leave one out"))
}

/// What is odd about `insecure` beside keys.
pub(super) fn warn_insecure(insecure: bool, keys: &[TunnelKey]) -> Option<String> {
    (insecure && !keys.is_empty()).then(|| {
        format!(
            "insecure = true changes nothing: there are keys ({} of them), and no tunnel is without one",
            keys.len()
        )
    })
}

/// What is wrong with a limit of memory, in bytes, to do that.
pub(super) fn refuse_memory(limit: u64, what: &str) -> Option<String> {
    (limit < LEAST_MEMORY)
        .then(|| format!("{} is too little to {what}; give at least {}", Size(limit), Size(LEAST_MEMORY)))
}

/// What is wrong with a time to coalesce.
pub(super) fn refuse_coalesce(time: Duration) -> Option<String> {
    (time > MAX_COALESCE)
        .then(|| "longer than 10ms: sessions would fall behind their clients; 0s turns it off".to_owned())
}

/// What is wrong with a first queue from which the workers' queues, so many in all, do not fit.
pub(super) fn refuse_queues(first: u16, workers: u16, queues: u16) -> Option<String> {
    (u32::from(first) + u32::from(queues) > 65_536)
        .then(|| format!("{workers} workers from queue {first} on go beyond 65535; choose a lower one"))
}
