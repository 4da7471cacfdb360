//! The settings of `intercept`, the program on the assistant host.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;

use super::common::{self, CaptureSource, RulesBy, Workers};
use super::endpoint::{Bind, Service, Table, UserName};
use super::key::{Key, Kind, Program};
use super::keys::{KeysAt, TunnelKey};
use super::layers::Layers;
use super::units::{Size, Span};
use super::value::{List, Number, Text, choice};
use super::{Action, ConfigError, LogLevel, LogSettings, Surroundings};
use crate::wire::{Pass, Prefix};

/// What `intercept` is to do. Valid as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The services whose responses are taken; at least one, none twice.
    pub targets: Vec<SocketAddr>,
    /// Whether the targets are this host itself: responses are taken as they are sent.
    pub on_target: bool,
    /// Only responses to clients in one of these prefixes are taken; empty for all. If there are any, each target's
    /// family has one.
    pub clients: Vec<Prefix>,
    /// Traffic of the targets that goes on although it is no response to a replayed client.
    pub pass: Vec<Pass>,
    /// The address to listen on; `None` is all, of both families.
    pub bind: Option<IpAddr>,
    /// The port to listen on; never 0.
    pub port: u16,
    /// The number of worker threads and queues: 1 to 256.
    pub workers: u16,
    /// Where responses are captured. With packet sockets, all of them are dropped and none is sent by this host.
    pub source: CaptureSource,
    /// What becomes of responses that nobody claimed.
    pub unclaimed: Unclaimed,
    /// Whether a tunnel without a key may be reached from other hosts.
    pub insecure: bool,
    /// The keys of which a tcpcopy has to have one; without any, none is wanted.
    pub keys: Vec<TunnelKey>,
    /// The hosts that C tcpcopys connect from, which is IPv4. They have no key.
    pub legacy: Vec<Prefix>,
    /// How long a response waits for its claim.
    pub receive_hold: Duration,
    /// The most flows at a time, of all workers together.
    pub max_flows: u32,
    /// The most memory that the buffers of all tunnels take, in bytes.
    pub memory_limit: u64,
    /// The time within which responses are handled together when they come thick. Zero: each is handled at once.
    pub coalesce: Duration,
    /// The number of the first worker's queue; that of the last one fits in 16 bits too.
    pub queue: u16,
    /// The mark on unclaimed packets that are let through; never 0.
    pub accept_mark: u32,
    /// The name of the tables that the rules are in: a letter or `_`, then letters, digits, `_`, `-`, `.`; 63 at most.
    pub table: String,
    /// Who puts the rules in force.
    pub rules: RulesBy,
    /// The user to become if started as root.
    pub user: String,
    /// Logging.
    pub log: LogSettings,
    /// What is odd about the configuration, for the log.
    pub warnings: Vec<String>,
}

/// What becomes of responses that nobody claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unclaimed {
    /// They end here.
    Drop,
    /// They go on: this host routes other traffic of the target too.
    Accept,
}

choice! {
    Unclaimed { Drop = "drop", Accept = "accept", }
    expected "\"drop\" or \"accept\""
}

/// `intercept` and its keys.
pub static PROGRAM: Program = Program {
    name: "intercept",
    about: "Takes a test server's responses to replayed clients and tells tcpcopy of them",
    default_file: "/etc/tcpcopy/intercept.toml",
    env_prefix: "INTERCEPT_",
    keys: KEYS,
    c_options: C_OPTIONS,
    examples: EXAMPLES,
    keeps_rules: true,
};

const EXAMPLES: &str = "\
Examples:
  intercept --target 10.91.2.2:80 --insecure
      Take the responses of one service, for any tcpcopy that connects.
  intercept --target 10.91.2.2:80 --on-target --clients 10.99.0.0/24 --insecure
      On the target itself; tcpcopy replays with -c 10.99.0.0/24, and all other
      clients of the service are served as ever.
  intercept rules remove
      Stop dropping responses. The rules stay when intercept ends, on purpose:
      while they are there, no response can reach a real client.

Each option can also be set in the file (as named by --print-config) or in the
environment (INTERCEPT_UNCLAIMED=accept). The manual is intercept(8).";

const KEYS: &[Key] = &[
    Key {
        name: "target",
        option: "target",
        short: None,
        kind: Kind::List,
        value_name: "ADDR:PORT,…",
        default: "[]",
        help: "Service whose responses are taken; may be repeated",
    },
    Key {
        name: "on-target",
        option: "on-target",
        short: None,
        kind: Kind::Flag,
        value_name: "BOOL",
        default: "false",
        help: "Run on the target itself: responses are taken as they are sent, no route is needed",
    },
    Key {
        name: "clients",
        option: "clients",
        short: None,
        kind: Kind::List,
        value_name: "PREFIX,…",
        default: "[]",
        help: "Take responses to these client addresses only, as 10.99.0.0/24; without, to all",
    },
    Key {
        name: "pass",
        option: "pass",
        short: None,
        kind: Kind::List,
        value_name: "TRAFFIC,…",
        default: "[]",
        help: "Let this other traffic of the targets go on, as \"udp dport 53\"; may be repeated",
    },
    Key {
        name: "bind",
        option: "bind",
        short: Some('b'),
        kind: Kind::Text,
        value_name: "ADDR",
        default: "\"::\"",
        help: "Address to listen on; :: is all, of IPv4 too",
    },
    Key {
        name: "port",
        option: "port",
        short: Some('p'),
        kind: Kind::Number,
        value_name: "PORT",
        default: "36524",
        help: "Port to listen on",
    },
    common::workers("Worker threads; auto is half the processors"),
    Key {
        name: "unclaimed",
        option: "unclaimed",
        short: None,
        kind: Kind::Text,
        value_name: "WHAT",
        default: "\"drop\"",
        help: "Responses that no tcpcopy claimed: drop, or accept if this host is a router",
    },
    common::source("Take responses by rules and queues (nfqueue), or packet sockets (packet): cheaper"),
    common::keys("Keys of the tunnel, a file or directory; auto: credentials, or /etc/tcpcopy/keys"),
    common::insecure("Let other hosts connect without a key: who can connect can read headers"),
    Key {
        name: "legacy",
        option: "legacy",
        short: None,
        kind: Kind::List,
        value_name: "PREFIX,…",
        default: "[]",
        help: "Hosts of C tcpcopys 1.x, as 10.91.1.1: they have no key, and are spoken with in their protocol",
    },
    Key {
        name: "receive-hold",
        option: "receive-hold",
        short: None,
        kind: Kind::Text,
        value_name: "TIME",
        default: "\"200ms\"",
        help: "How long a response waits for its claim",
    },
    Key {
        name: "max-flows",
        option: "max-flows",
        short: None,
        kind: Kind::Number,
        value_name: "N",
        default: "262144",
        help: "Most flows, shared fairly by key; beyond, the idlest gives way",
    },
    common::memory_limit(
        "\"256MiB\"",
        "Memory for flows and tunnels; slow readers above their share are ended",
    ),
    common::coalesce("Handle responses that come thick together, once in this time; 0s: each at once"),
    common::queue("36540"),
    Key {
        name: "accept-mark",
        option: "accept-mark",
        short: None,
        kind: Kind::Hex,
        value_name: "MARK",
        default: "0x74637061",
        help: "Mark on unclaimed packets that are accepted, by which rules know them",
    },
    Key {
        name: "table",
        option: "table",
        short: None,
        kind: Kind::Text,
        value_name: "NAME",
        default: "\"auto\"",
        help: "Netfilter table for the rules; auto: intercept, or intercept-PORT for another port",
    },
    common::rules("Who puts the netfilter rules in force: auto, or manual, which is you"),
    common::user(),
    common::log("What to log: error, warn, info, debug (flows) or trace (packets)"),
];

/// From the `getopt` string of intercept 1.0.
const C_OPTIONS: &[(char, &str)] = &[
    ('d', "it stays in the foreground; run it from a service manager such as systemd"),
    ('P', "it stays in the foreground; the service manager knows its process"),
    ('l', "it logs to the journal or to standard error; redirect that"),
    ('i', "netfilter takes the responses on all interfaces; leave it out"),
    ('F', "name the target's service instead of a filter: --target 10.0.0.9:80"),
    ('x', "responses that no tcpcopy claimed are let through with --unclaimed accept"),
    ('n', "headers are always sent in batches; leave it out"),
    ('t', "a flow lives until its tcpcopy releases it; leave it out"),
    ('s', "the table grows as needed, up to --max-flows"),
    ('q', "the queues are as long as the kernel allows; leave it out"),
    ('D', "name the target's service as its packets show it here: --target ADDR:PORT"),
    ('c', "each tcpcopy owns what it claims; leave it out"),
];

/// The values as they were written, each valid by itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Raw {
    target: List<Service>,
    on_target: bool,
    clients: List<Prefix>,
    pass: List<Pass>,
    bind: Text<Bind>,
    port: Number<1, 65_535>,
    workers: Workers,
    unclaimed: Text<Unclaimed>,
    capture: RawCapture,
    keys: Text<KeysAt>,
    insecure: bool,
    legacy: List<Prefix>,
    receive_hold: Text<Span>,
    max_flows: Number<1, 10_000_000>,
    memory_limit: Text<Size>,
    coalesce: Text<Span>,
    queue: Number<0, 65_535>,
    accept_mark: Number<1, 0xffff_ffff>,
    table: Text<Table>,
    rules: Text<RulesBy>,
    user: Text<UserName>,
    log: Text<LogLevel>,
}

/// The table `capture`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", expecting = "a table with the key source")]
struct RawCapture {
    source: Text<CaptureSource>,
}

/// The port that intercept listens on unless it is told otherwise.
const DEFAULT_PORT: u16 = 36524;

/// The table of an intercept that listens on `port`. Two on one host differ in their ports, so that their tables do
/// unless somebody names them.
pub(super) fn table_name(table: Table, port: u16) -> String {
    match (table.0.as_str(), port) {
        ("auto", DEFAULT_PORT) => PROGRAM.name.to_owned(),
        ("auto", port) => format!("{}-{port}", PROGRAM.name),
        _ => table.0,
    }
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
        common::keep("bind", &mut self.bind, &running.bind, &mut keys);
        // A table that follows the port stays with it.
        let follows = |settings: &Self| settings.table == table_name(Table("auto".to_owned()), settings.port);
        if follows(self) && follows(running) {
            self.table.clone_from(&running.table);
        }
        common::keep("port", &mut self.port, &running.port, &mut keys);
        common::keep("workers", &mut self.workers, &running.workers, &mut keys);
        common::keep("on-target", &mut self.on_target, &running.on_target, &mut keys);
        common::keep("unclaimed", &mut self.unclaimed, &running.unclaimed, &mut keys);
        common::keep("capture.source", &mut self.source, &running.source, &mut keys);
        common::keep("queue", &mut self.queue, &running.queue, &mut keys);
        common::keep("accept-mark", &mut self.accept_mark, &running.accept_mark, &mut keys);
        common::keep("table", &mut self.table, &running.table, &mut keys);
        common::keep("rules", &mut self.rules, &running.rules, &mut keys);
        common::keep("user", &mut self.user, &running.user, &mut keys);
        keys
    }

    /// Checks what only the values together can show.
    pub(super) fn settle(layers: &Layers, raw: Raw) -> Result<Self, ConfigError> {
        let Text(Bind(address)) = raw.bind;
        let keys = layers.keys(&raw.keys.0)?;
        let settings = Self {
            targets: raw.target.0.into_iter().map(|Service(address)| address).collect(),
            on_target: raw.on_target,
            clients: raw.clients.0,
            pass: raw.pass.0,
            // 0.0.0.0 stays: all addresses, but of IPv4 only.
            bind: (address != IpAddr::from([0_u8; 16])).then_some(address),
            port: raw.port.to(),
            workers: raw.workers.or(common::processors() / 2),
            source: raw.capture.source.0,
            unclaimed: raw.unclaimed.0,
            insecure: raw.insecure,
            warnings: layers
                .warnings
                .iter()
                .cloned()
                .chain(common::warn_insecure(raw.insecure, &keys))
                .collect(),
            keys,
            legacy: raw.legacy.0,
            receive_hold: raw.receive_hold.0.0,
            max_flows: raw.max_flows.to(),
            memory_limit: raw.memory_limit.0.0,
            coalesce: raw.coalesce.0.0,
            queue: raw.queue.to(),
            accept_mark: raw.accept_mark.to(),
            table: table_name(raw.table.0, raw.port.to()),
            rules: raw.rules.0,
            user: raw.user.0.0,
            log: LogSettings { program: PROGRAM.name, level: raw.log.0 },
        };
        match settings.refuse(!layers.rules_only) {
            Some((key, message)) => Err(layers.refuse(key, &message)),
            None => Ok(settings),
        }
    }

    /// What is wrong with the values together, if there is to be a `tunnel` or only the rules: the key and the message.
    fn refuse(&self, tunnel: bool) -> Option<(&'static str, String)> {
        if self.targets.is_empty() {
            let message = "none is named; say whose responses to take, as --target 10.0.0.9:8080";
            return Some(("target", message.to_owned()));
        }
        if let Some(message) = common::refuse_twice(&self.targets) {
            return Some(("target", message));
        }
        if let Some(message) = self.refuse_clients() {
            return Some(("clients", message));
        }
        if let Some(message) = self.refuse_pass() {
            return Some(("pass", message));
        }
        if let Some(message) = self.refuse_source() {
            return Some(("capture.source", message.to_owned()));
        }
        if let Some(message) = self.refuse_legacy() {
            return Some(("legacy", message));
        }
        let is_open = self.keys.is_empty() && !self.bind.is_some_and(|address| address.is_loopback());
        if tunnel && is_open && !self.insecure {
            let reach = match self.bind {
                Some(address) if !address.is_unspecified() => format!("{address} is"),
                Some(_) | None => "all addresses are".to_owned(),
            };
            let message = format!(
                "{reach} reachable from other hosts and there is no key: make one (intercept keygen \
                 /etc/tcpcopy/keys/NAME, for tcpcopy too), or bind to 127.0.0.1, or add --insecure (insecure = true) if \
                 the network is trusted"
            );
            return Some(("bind", message));
        }
        if let Some(message) = common::refuse_memory(self.memory_limit, "serve tcpcopys with") {
            return Some(("memory-limit", message));
        }
        let coalesce = common::refuse_coalesce(self.coalesce).map(|message| ("coalesce", message));
        coalesce.or_else(|| {
            common::refuse_queues(self.queue, self.workers, self.workers).map(|message| ("queue", message))
        })
    }

    /// Why packet sockets cannot be the source of responses here.
    fn refuse_source(&self) -> Option<&'static str> {
        match (self.source, self.on_target, self.unclaimed) {
            (CaptureSource::Packet, true, _) => Some(
                "packet sockets see what comes in, and with on-target = true responses go out; use \"nfqueue\", or run \
                 intercept on a host that the target routes them to",
            ),
            (CaptureSource::Packet, false, Unclaimed::Accept) => Some(
                "with \"packet\" all responses are dropped, and unclaimed = \"accept\" lets some go on; use \"nfqueue\", \
                 or unclaimed = \"drop\"",
            ),
            (CaptureSource::Packet, false, Unclaimed::Drop) | (CaptureSource::Nfqueue, ..) => None,
        }
    }

    /// What is wrong with the hosts of C tcpcopys.
    fn refuse_legacy(&self) -> Option<String> {
        let prefix = self.legacy.iter().find(|prefix| !prefix.is_ipv4())?;
        Some(format!("{prefix} is IPv6, which the C tcpcopy does not speak; leave it out"))
    }

    /// What is wrong with the traffic that goes on: it can only be a target's.
    fn refuse_pass(&self) -> Option<String> {
        let is_target = |address| self.targets.iter().any(|target| target.ip() == address);
        self.pass.iter().find_map(|pass| {
            let from = pass.from.filter(|address| !is_target(*address))?;
            let target = self.targets.first()?.ip();
            Some(format!(
                "\"{pass}\": \"from {from}\" is no target's address, and all that others send goes on anyway; leave it \
                 out, or name a target, for example \"from {target} udp dport 53\""
            ))
        })
    }

    /// What is wrong with the clients whose responses are taken.
    fn refuse_clients(&self) -> Option<String> {
        if self.clients.is_empty() {
            return None;
        }
        let covered =
            |target: &&SocketAddr| self.clients.iter().any(|prefix| prefix.is_ipv4() == target.is_ipv4());
        let lacking = self.targets.iter().find(|target| !covered(target))?;
        Some(format!(
            "none is of the family of the target {lacking}, so all its responses would go on; add a prefix of that \
             family"
        ))
    }
}
