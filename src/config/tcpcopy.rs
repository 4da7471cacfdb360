//! The settings of `tcpcopy`, the program on the online host.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::common::{self, Workers};
use super::endpoint::{InterfaceName, Peer};
use super::key::{Key, Kind, Program};
use super::layers::Layers;
use super::units::{Size, Span};
use super::value::{List, Number, Text, choice};
use super::{Action, ConfigError, LogLevel, LogSettings, Surroundings};
use crate::session::{GateMode, Latency, MidStream};
use crate::wire::{Mapping, Prefix};

/// What `tcpcopy` is to do. Valid as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is captured and where it is replayed; at least one, no two capture the same connection.
    pub mappings: Vec<Mapping>,
    /// The tunnel addresses of the `intercept` programs; at least one.
    pub intercepts: Vec<SocketAddr>,
    /// The addresses that replayed clients have; empty to keep the clients' own.
    /// If there are any, each target's family has one.
    pub pools: Vec<Prefix>,
    /// How many replayed sessions each captured one becomes: 1 to 1023.
    pub copies: u16,
    /// How many of a hundred connections are replayed: 1 to 100.
    pub percent: u8,
    /// The number of worker threads and queues: 1 to 256.
    pub workers: u16,
    /// Whether a tunnel without a key may leave this host.
    pub insecure: bool,
    /// The number of the first worker's queue; that of the last one fits in 16 bits too.
    pub queue: u16,
    /// The time within which captured packets and responses are handled together when they come thick. It costs
    /// a request at most this much delay, and saves most wake-ups. Zero: each is handled at once.
    pub coalesce: Duration,
    /// The mark on packets this program sends; never 0.
    pub mark: u32,
    /// The largest packet sent to a target, in bytes with IP header: 576 (IPv6: 1280) to 65535.
    pub mtu: u16,
    /// The name of the sink device.
    pub sink: String,
    /// Where packets are captured.
    pub source: CaptureSource,
    /// Whether acknowledgements without data are captured as well.
    pub pure_acks: bool,
    /// Whether the acknowledgement that ends a client's handshake is captured, if others are not.
    ///
    /// It tells the client's round-trip time and the online server's initial sequence number. Whoever captures
    /// mostly short connections and has no copy to spare may turn it off: it is a third more with three a connection.
    /// [`Latency::Client`] has nothing to go by then.
    pub handshake_acks: bool,
    /// What upstream bytes wait for.
    pub gate: GateMode,
    /// Whose network latency the target feels.
    pub latency: Latency,
    /// How long upstream bytes wait for a response before they go without.
    ///
    /// The default, 30 s, is about where real clients give up. A shorter time would let a target that is slow
    /// under load be overtaken just when that is what one wants to see; a longer one keeps the memory
    /// of sessions whose response never comes.
    pub response_timeout: Duration,
    /// What becomes of connections that are older than the capture.
    pub mid_stream: MidStream,
    /// What all sessions together may hold, in bytes.
    pub memory_limit: u64,
    /// The most sessions at a time, of all workers together.
    pub max_sessions: u32,
    /// How long a session lives without a packet from either side.
    ///
    /// The default, 1 h, keeps idle connections open on the target as production has them open; those of clients
    /// that vanished end when the target closes them.
    pub idle_timeout: Duration,
    /// Logging.
    pub log: LogSettings,
    /// What is odd about the configuration, for the log.
    pub warnings: Vec<String>,
}

/// Where clients' packets are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureSource {
    /// Rules duplicate them into netfilter queues.
    Nfqueue,
    /// Packet sockets copy them as they come in: no rules, and less work for the kernel, but an address that is not named
    /// is any, not only this host's.
    Packet,
}

choice! {
    CaptureSource { Nfqueue = "nfqueue", Packet = "packet", }
    expected "\"nfqueue\" or \"packet\""
}

choice! {
    GateMode { Response = "response", None = "none", }
    expected "\"response\" or \"none\""
}

choice! {
    Latency { Client = "client", None = "none", }
    expected "\"client\" or \"none\""
}

choice! {
    MidStream { Join = "join", Skip = "skip", }
    expected "\"join\" or \"skip\""
}

/// `tcpcopy` and its keys.
pub static PROGRAM: Program = Program {
    name: "tcpcopy",
    about: "Replays the TCP sessions of this server's clients on a test server",
    default_file: "/etc/tcpcopy/tcpcopy.toml",
    env_prefix: "TCPCOPY_",
    keys: KEYS,
    c_options: C_OPTIONS,
    examples: EXAMPLES,
    keeps_rules: false,
};

const EXAMPLES: &str = "\
Examples:
  tcpcopy -x 80-10.91.2.2:80 -s 10.91.2.3 -c 10.99.0.x --insecure
      Replay what comes to port 80 on 10.91.2.2, with client addresses from
      10.99.0.0/24; intercept runs on 10.91.2.3.
  tcpcopy -x '10.0.0.1:80-10.91.2.2:8080,[fd00::1]:80-[fd00:91::2]:8080' -s 10.91.2.3 -r 20
      Two services, a fifth of their connections.

Each option can also be set in the file (as named by --print-config) or in the
environment (TCPCOPY_PERCENT=20). The manual is tcpcopy(8).";

const KEYS: &[Key] = &[
    Key {
        name: "map",
        option: "map",
        short: Some('x'),
        kind: Kind::List,
        value_name: "[ADDR:]PORT-TARGET:PORT,…",
        default: "[]",
        help: "What to replay, and where to; without ADDR, any local address",
    },
    Key {
        name: "intercept",
        option: "intercept",
        short: Some('s'),
        kind: Kind::List,
        value_name: "ADDR[:PORT],…",
        default: "[]",
        help: "Where intercept listens [default port: 36524]",
    },
    Key {
        name: "pool",
        option: "pool",
        short: Some('c'),
        kind: Kind::List,
        value_name: "PREFIX,…",
        default: "[]",
        help: "Client addresses on the target, as 10.99.0.x or 10.99.0.0/24; without, clients keep their own",
    },
    Key {
        name: "copies",
        option: "copies",
        short: Some('n'),
        kind: Kind::Number,
        value_name: "COPIES",
        default: "1",
        help: "Replay each session this many times at once",
    },
    Key {
        name: "percent",
        option: "percent",
        short: Some('r'),
        kind: Kind::Number,
        value_name: "PERCENT",
        default: "100",
        help: "Replay this part of the connections",
    },
    common::workers("Worker threads; auto is half the processors"),
    common::insecure(
        "Allow a tunnel without a key to another host: who can reach it can read and forge headers",
    ),
    Key {
        name: "gate",
        option: "gate",
        short: None,
        kind: Kind::Text,
        value_name: "MODE",
        default: "\"response\"",
        help: "What a request waits for: response (of the one before) or none",
    },
    Key {
        name: "response-timeout",
        option: "response-timeout",
        short: None,
        kind: Kind::Text,
        value_name: "TIME",
        default: "\"30s\"",
        help: "Longest wait for a response before the next request goes",
    },
    Key {
        name: "latency",
        option: "latency",
        short: None,
        kind: Kind::Text,
        value_name: "MODE",
        default: "\"client\"",
        help: "Network latency the target feels: client or none",
    },
    Key {
        name: "mid-stream",
        option: "mid-stream",
        short: None,
        kind: Kind::Text,
        value_name: "MODE",
        default: "\"join\"",
        help: "Connections older than the capture: join at the next request, or skip",
    },
    Key {
        name: "capture.source",
        option: "capture-source",
        short: None,
        kind: Kind::Text,
        value_name: "SOURCE",
        default: "\"nfqueue\"",
        help: "Capture by rules and queues (nfqueue), or packet sockets: cheaper, without rules (packet)",
    },
    Key {
        name: "capture.pure-acks",
        option: "pure-acks",
        short: None,
        kind: Kind::Flag,
        value_name: "BOOL",
        default: "false",
        help: "Capture acknowledgements without data too: exact online latency, twice the copies",
    },
    Key {
        name: "capture.handshake-acks",
        option: "handshake-acks",
        short: None,
        kind: Kind::Flag,
        value_name: "BOOL",
        default: "true",
        help: "Capture the acknowledgement that ends a client's handshake (default): exact round-trip times",
    },
    Key {
        name: "memory-limit",
        option: "memory-limit",
        short: None,
        kind: Kind::Text,
        value_name: "SIZE",
        default: "\"512MiB\"",
        help: "Memory for all sessions; at the limit, sessions are shed",
    },
    Key {
        name: "max-sessions",
        option: "max-sessions",
        short: None,
        kind: Kind::Number,
        value_name: "N",
        default: "100000",
        help: "Most sessions at a time; more are refused and counted",
    },
    Key {
        name: "idle-timeout",
        option: "idle-timeout",
        short: None,
        kind: Kind::Text,
        value_name: "TIME",
        default: "\"1h\"",
        help: "End a session after this long without a packet",
    },
    Key {
        name: "mtu",
        option: "mtu",
        short: Some('M'),
        kind: Kind::Number,
        value_name: "BYTES",
        default: "1500",
        help: "Largest packet that reaches the target",
    },
    common::coalesce("Handle packets that come thick together, once in this time; 0s: each at once"),
    common::queue("36520"),
    Key {
        name: "mark",
        option: "mark",
        short: None,
        kind: Kind::Hex,
        value_name: "MARK",
        default: "0x74637079",
        help: "Mark on the packets sent, by which rules know them",
    },
    Key {
        name: "sink",
        option: "sink",
        short: None,
        kind: Kind::Text,
        value_name: "NAME",
        default: "\"tcpcopy0\"",
        help: "Interface to make for the copies",
    },
    common::log("What to log: error, warn, info, debug (sessions) or trace (packets)"),
];

/// From the `getopt` string of tcpcopy 1.3.
const C_OPTIONS: &[(char, &str)] = &[
    ('d', "it stays in the foreground; run it from a service manager such as systemd"),
    ('P', "it stays in the foreground; the service manager knows its process"),
    ('l', "it logs to the journal or to standard error; redirect that"),
    ('i', "netfilter captures on all interfaces and pcap files cannot be replayed yet; leave it out"),
    ('o', "packets leave by the routing table; leave it out and set a route"),
    ('F', "-x says what is captured, as -x 10.0.0.1:80-10.0.0.9:80; leave it out"),
    ('B', "the queues' buffers are large enough by themselves; leave it out"),
    ('S', "whole packets are captured; leave it out"),
    ('C', "each worker has its own connection to each intercept; set --workers"),
    ('L', "it never exits because an intercept is gone; leave it out"),
    ('m', "write the limit with a unit: --memory-limit 512MiB"),
    ('D', "the target's own MSS is used, bounded by --mtu; leave it out"),
    ('R', "the round-trip time is measured; leave it out"),
    ('U', "sessions take the memory they need; set --memory-limit"),
    ('p', "write the port with the address: -s ADDR:PORT"),
    ('t', "write the time with a unit: --response-timeout 30s or --idle-timeout 1h"),
    ('k', "write the time with a unit: --idle-timeout 1h"),
    ('f', "several tcpcopy share a target when each has its own pool: -c PREFIX"),
    ('H', "name the clients' addresses with -c PREFIX"),
    ('O', "leave out connections older than the capture with --mid-stream skip"),
    ('g', "a ramp is not there yet; start with a small -r PERCENT"),
    ('a', "pcap files cannot be replayed yet"),
    ('I', "pcap files cannot be replayed yet"),
];

/// The values as they were written, each valid by itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Raw {
    map: List<Mapping>,
    intercept: List<Peer>,
    pool: List<Prefix>,
    copies: Number<1, 1023>,
    percent: Number<1, 100>,
    workers: Workers,
    insecure: bool,
    gate: Text<GateMode>,
    response_timeout: Text<Span>,
    latency: Text<Latency>,
    mid_stream: Text<MidStream>,
    capture: RawCapture,
    memory_limit: Text<Size>,
    max_sessions: Number<1, 10_000_000>,
    idle_timeout: Text<Span>,
    mtu: Number<576, 65_535>,
    coalesce: Text<Span>,
    queue: Number<0, 65_535>,
    mark: Number<1, 0xffff_ffff>,
    sink: Text<InterfaceName>,
    log: Text<LogLevel>,
}

/// The table `capture`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", expecting = "a table with the keys source, pure-acks and handshake-acks")]
struct RawCapture {
    source: Text<CaptureSource>,
    pure_acks: bool,
    handshake_acks: bool,
}

impl Settings {
    /// Reads the command line (which begins with the program's name), the environment and the file.
    pub fn load(arguments: impl IntoIterator<Item = OsString>) -> Result<Action<Self>, ConfigError> {
        super::load(&PROGRAM, arguments, Surroundings::of_process(&PROGRAM), Self::settle)
    }

    /// Takes from the settings that are in force what cannot change while the program runs, and returns the keys in
    /// which it would have.
    pub fn keep_fixed(&mut self, running: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        common::keep("workers", &mut self.workers, &running.workers, &mut keys);
        common::keep("queue", &mut self.queue, &running.queue, &mut keys);
        common::keep("mark", &mut self.mark, &running.mark, &mut keys);
        common::keep("sink", &mut self.sink, &running.sink, &mut keys);
        common::keep("capture.source", &mut self.source, &running.source, &mut keys);
        if self.source == CaptureSource::Packet {
            common::keep("capture.pure-acks", &mut self.pure_acks, &running.pure_acks, &mut keys);
            common::keep(
                "capture.handshake-acks",
                &mut self.handshake_acks,
                &running.handshake_acks,
                &mut keys,
            );
        }
        keys
    }

    /// Checks what only the values together can show.
    pub(super) fn settle(layers: &Layers, raw: Raw) -> Result<Self, ConfigError> {
        let settings = Self {
            mappings: raw.map.0,
            intercepts: raw.intercept.0.into_iter().map(|Peer(address)| address).collect(),
            pools: raw.pool.0,
            copies: raw.copies.to(),
            percent: raw.percent.to(),
            workers: raw.workers.or(common::processors() / 2),
            insecure: raw.insecure,
            coalesce: raw.coalesce.0.0,
            queue: raw.queue.to(),
            mark: raw.mark.to(),
            mtu: raw.mtu.to(),
            sink: raw.sink.0.0,
            source: raw.capture.source.0,
            pure_acks: raw.capture.pure_acks,
            handshake_acks: raw.capture.handshake_acks,
            gate: raw.gate.0,
            latency: raw.latency.0,
            response_timeout: raw.response_timeout.0.0,
            mid_stream: raw.mid_stream.0,
            memory_limit: raw.memory_limit.0.0,
            max_sessions: raw.max_sessions.to(),
            idle_timeout: raw.idle_timeout.0.0,
            log: LogSettings { program: PROGRAM.name, level: raw.log.0 },
            warnings: layers.warnings.clone(),
        };
        let refusals = settings.refuse_mappings().or_else(|| settings.refuse_intercepts());
        match refusals.or_else(|| settings.refuse_pools()).or_else(|| settings.refuse_amounts()) {
            Some((key, message)) => Err(layers.refuse(key, &message)),
            None => Ok(settings),
        }
    }

    /// What is wrong with the mappings together: the key and the message.
    fn refuse_mappings(&self) -> Option<(&'static str, String)> {
        if self.mappings.is_empty() {
            return Some((
                "map",
                "nothing to replay; say what and where to, as -x 80-10.0.0.9:8080".to_owned(),
            ));
        }
        for (index, mapping) in self.mappings.iter().enumerate() {
            if let Some(other) = self.mappings.iter().skip(index + 1).find(|other| mapping.overlaps(other)) {
                let message =
                    format!("'{mapping}' and '{other}' capture the same connections; leave one out");
                return Some(("map", message));
            }
            if let Some(online) = self.mappings.iter().find(|online| captures(online, mapping.target)) {
                let message = format!(
                    "the target of '{mapping}' is what '{online}' captures, so it would be replayed on itself; name the test server"
                );
                return Some(("map", message));
            }
        }
        None
    }

    fn refuse_intercepts(&self) -> Option<(&'static str, String)> {
        if self.intercepts.is_empty() {
            return Some(("intercept", "none is named; say where intercept runs, as -s 10.0.0.8".to_owned()));
        }
        if let Some(message) = common::refuse_twice(&self.intercepts) {
            return Some(("intercept", message));
        }
        let remote = self.intercepts.iter().find(|address| !self.insecure && !address.ip().is_loopback())?;
        let message = format!(
            "{remote} is on another host and the tunnel has no key yet (keys come with a later version); \
             add --insecure (insecure = true) if the network between is trusted"
        );
        Some(("intercept", message))
    }

    fn refuse_pools(&self) -> Option<(&'static str, String)> {
        for (index, pool) in self.pools.iter().enumerate() {
            if let Some(other) = self.pools.iter().skip(index + 1).find(|other| pool.overlaps(other)) {
                return Some(("pool", format!("{pool} and {other} share addresses; leave one out")));
            }
            if !self.mappings.iter().any(|mapping| mapping.target.is_ipv4() == pool.is_ipv4()) {
                let family = family(pool.is_ipv4());
                return Some((
                    "pool",
                    format!("{pool} is {family} and no target in -x is; name one of the targets' family"),
                ));
            }
            let targets = self.mappings.iter().map(|mapping| mapping.target);
            let taken = targets.chain(self.intercepts.iter().copied()).find(|host| pool.contains(host.ip()));
            if let Some(host) = taken {
                let message = format!(
                    "{pool} contains {}, a target or intercept; name addresses that no host has",
                    host.ip()
                );
                return Some(("pool", message));
            }
        }
        let lacking = self.mappings.iter().find(|mapping| {
            !self.pools.is_empty()
                && !self.pools.iter().any(|pool| pool.is_ipv4() == mapping.target.is_ipv4())
        })?;
        let message = format!(
            "none is {} and the target {} is, so its sessions would keep the clients' own addresses; add a prefix of that family",
            family(lacking.target.is_ipv4()),
            lacking.target
        );
        Some(("pool", message))
    }

    fn refuse_amounts(&self) -> Option<(&'static str, String)> {
        if self.mtu < 1280 && self.mappings.iter().any(|mapping| mapping.target.is_ipv6()) {
            return Some((
                "mtu",
                format!("{} is below 1280, the least that IPv6 allows (RFC 8200)", self.mtu),
            ));
        }
        if let Some(message) = common::refuse_queues(self.queue, self.workers) {
            return Some(("queue", message));
        }
        if let Some(message) = common::refuse_coalesce(self.coalesce) {
            return Some(("coalesce", message));
        }
        let least = 16 << 20;
        if self.memory_limit < least {
            return Some((
                "memory-limit",
                format!(
                    "{} is too little to replay with; give at least {}",
                    Size(self.memory_limit),
                    Size(least)
                ),
            ));
        }
        for (key, span) in [("response-timeout", self.response_timeout), ("idle-timeout", self.idle_timeout)]
        {
            if span < Duration::from_millis(1) {
                return Some((key, "is no time at all; give at least \"1ms\"".to_owned()));
            }
        }
        None
    }
}

fn captures(mapping: &Mapping, target: SocketAddr) -> bool {
    mapping.online == Some(target.ip()) && mapping.port == target.port()
}

fn family(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "IPv4" } else { "IPv6" }
}
