//! The settings of `tcpcopy`, the program on the online host.

mod program;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

pub use self::program::PROGRAM;

use super::common::{self, CaptureSource, RulesBy, Workers};
use super::endpoint::{InterfaceName, Peer, PortRange, Table, UserName};
use super::keys::{KeysAt, TunnelKey};
use super::layers::Layers;
use super::units::{Size, Span};
use super::value::{List, Number, Text, choice};
use super::{Action, ConfigError, LogLevel, LogSettings, Surroundings};
use crate::session::{GateMode, Latency, MidStream};
use crate::wire::flow::SHARES;
use crate::wire::{Mapping, Prefix};

/// What `tcpcopy` is to do. Valid as it is.
#[expect(clippy::struct_excessive_bools, reason = "each is a setting by itself")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is captured and where it is replayed; at least one, no two capture the same connection.
    pub mappings: Vec<Mapping>,
    /// The tunnel addresses of the `intercept` programs; at least one, or none if embedded.
    pub intercepts: Vec<SocketAddr>,
    /// The ports that are replayed from, if this host takes the responses itself and replays from addresses of its own.
    /// None of them is captured.
    pub embedded: Option<RangeInclusive<u16>>,
    /// The addresses that replayed clients have; empty to keep the clients' own.
    /// If there are any, each target's family has one. Embedded, each is one address of this host, and none means the
    /// one that the routing table chooses for each target.
    pub pools: Vec<Prefix>,
    /// How many replayed sessions each captured one becomes: 1 to 1023.
    pub copies: u16,
    /// How many of a hundred connections are replayed: 1 to 100.
    pub percent: u8,
    /// Only connections of clients in one of these are replayed; empty for all.
    pub clients: Vec<Prefix>,
    /// The number of worker threads and queues: 1 to 256.
    pub workers: u16,
    /// Whether a tunnel without a key may leave this host.
    pub insecure: bool,
    /// The keys of the tunnel, of which the last one is used; without any, there is no tunnel with a key.
    pub keys: Vec<TunnelKey>,
    /// Whether the intercepts are C ones. Then all addresses are IPv4, and there are no keys.
    pub legacy: bool,
    /// The number of the first worker's queue; that of the last one fits in 16 bits too.
    pub queue: u16,
    /// The time within which captured packets and responses are handled together when they come thick. It costs
    /// a request at most this much delay, and saves most wake-ups. Zero: each is handled at once.
    pub coalesce: Duration,
    /// The mark on packets this program sends; never 0.
    pub mark: u32,
    /// The largest packet sent to a target, in bytes with IP header: 576 (IPv6: 1280) to 65535.
    pub mtu: u16,
    /// Who cuts what is sent into segments.
    pub segmentation: Segmentation,
    /// The name of the sink device.
    pub sink: String,
    /// The name of the tables that the rules are in: a letter or `_`, then letters, digits, `_`, `-`, `.`; 63 at most.
    pub table: String,
    /// Who makes the sink and puts the rules in force.
    pub rules: RulesBy,
    /// Where clients' packets are captured. With packet sockets, an address that is not named is any, not only this
    /// host's.
    pub source: CaptureSource,
    /// The most packets that are duplicated in a second, of each address family; only where rules capture.
    pub max_packets_per_second: Option<NonZeroU32>,
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
    /// The most connections a second that replace others of their session, or resume after an outage; of all workers
    /// together.
    ///
    /// The default, 1000, resumes a typical load within seconds and does not overload a target that has just started.
    pub max_reconnects_per_second: u32,
    /// How long a session lives without a packet from either side.
    ///
    /// The default, 1 h, keeps idle connections open on the target as production has them open; those of clients
    /// that vanished end when the target closes them.
    pub idle_timeout: Duration,
    /// The user to become if started as root.
    pub user: String,
    /// Logging.
    pub log: LogSettings,
    /// What is odd about the configuration, for the log.
    pub warnings: Vec<String>,
}

/// Who cuts what is sent into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// This program: each leaves by itself.
    Own,
    /// The network card, or the kernel in its place: several of a session leave as one packet.
    Offload,
}

choice! {
    Segmentation { Own = "own", Offload = "offload", }
    expected "\"own\" or \"offload\""
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

/// The values as they were written, each valid by itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Raw {
    map: List<Mapping>,
    intercept: List<Peer>,
    embedded: bool,
    ports: Text<PortRange>,
    pool: List<Prefix>,
    copies: Number<1, 1023>,
    percent: Number<1, 100>,
    clients: List<Prefix>,
    workers: Workers,
    keys: Text<KeysAt>,
    insecure: bool,
    legacy: bool,
    gate: Text<GateMode>,
    response_timeout: Text<Span>,
    latency: Text<Latency>,
    mid_stream: Text<MidStream>,
    capture: RawCapture,
    memory_limit: Text<Size>,
    max_sessions: Number<1, 10_000_000>,
    max_reconnects_per_second: Number<1, 1_000_000>,
    idle_timeout: Text<Span>,
    mtu: Number<576, 65_535>,
    segmentation: Text<Segmentation>,
    coalesce: Text<Span>,
    queue: Number<0, 65_535>,
    mark: Number<1, 0xffff_ffff>,
    sink: Text<InterfaceName>,
    table: Text<Table>,
    rules: Text<RulesBy>,
    user: Text<UserName>,
    log: Text<LogLevel>,
}

/// The table `capture`.
#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    expecting = "a table with the keys source, max-packets-per-second, pure-acks and handshake-acks"
)]
struct RawCapture {
    source: Text<CaptureSource>,
    max_packets_per_second: Number<0, 100_000_000>,
    pure_acks: bool,
    handshake_acks: bool,
}

impl Settings {
    /// Reads the command line (which begins with the program's name), the environment and the file.
    pub fn load(arguments: impl IntoIterator<Item = OsString>) -> Result<Action<Self>, ConfigError> {
        super::load(&PROGRAM, arguments, Surroundings::of_process(&PROGRAM), Self::settle)
    }

    /// How many of [`SHARES`] connections are replayed.
    pub fn share(&self) -> u16 {
        u16::from(self.percent) * (SHARES / 100)
    }

    /// Takes from the settings that are in force what cannot change while the program runs, and returns the keys in
    /// which it would have.
    pub fn keep_fixed(&mut self, running: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        common::keep("workers", &mut self.workers, &running.workers, &mut keys);
        common::keep("queue", &mut self.queue, &running.queue, &mut keys);
        common::keep("mark", &mut self.mark, &running.mark, &mut keys);
        let same_kind = self.embedded.is_some() == running.embedded.is_some();
        if !same_kind {
            // These are of the other kind of replay.
            self.intercepts.clone_from(&running.intercepts);
            self.pools.clone_from(&running.pools);
        }
        let key = if same_kind { "ports" } else { "embedded" };
        common::keep(key, &mut self.embedded, &running.embedded, &mut keys);
        common::keep("legacy", &mut self.legacy, &running.legacy, &mut keys);
        common::keep("sink", &mut self.sink, &running.sink, &mut keys);
        common::keep("table", &mut self.table, &running.table, &mut keys);
        common::keep("rules", &mut self.rules, &running.rules, &mut keys);
        common::keep("user", &mut self.user, &running.user, &mut keys);
        common::keep("segmentation", &mut self.segmentation, &running.segmentation, &mut keys);
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
        let keys = layers.keys(&raw.keys.0)?;
        let settings = Self {
            mappings: raw.map.0,
            intercepts: raw.intercept.0.into_iter().map(|Peer(address)| address).collect(),
            embedded: raw.embedded.then_some(raw.ports.0.0),
            pools: raw.pool.0,
            copies: raw.copies.to(),
            percent: raw.percent.to(),
            clients: raw.clients.0,
            workers: raw.workers.or(common::processors() / 2),
            insecure: raw.insecure,
            warnings: layers
                .warnings
                .iter()
                .cloned()
                .chain(common::warn_insecure(raw.insecure, &keys))
                .collect(),
            keys,
            legacy: raw.legacy,
            coalesce: raw.coalesce.0.0,
            queue: raw.queue.to(),
            mark: raw.mark.to(),
            mtu: raw.mtu.to(),
            segmentation: raw.segmentation.0,
            sink: raw.sink.0.0,
            table: raw.table.0.0,
            rules: raw.rules.0,
            source: raw.capture.source.0,
            max_packets_per_second: NonZeroU32::new(raw.capture.max_packets_per_second.to()),
            pure_acks: raw.capture.pure_acks,
            handshake_acks: raw.capture.handshake_acks,
            gate: raw.gate.0,
            latency: raw.latency.0,
            response_timeout: raw.response_timeout.0.0,
            mid_stream: raw.mid_stream.0,
            memory_limit: raw.memory_limit.0.0,
            max_sessions: raw.max_sessions.to(),
            max_reconnects_per_second: raw.max_reconnects_per_second.to(),
            idle_timeout: raw.idle_timeout.0.0,
            user: raw.user.0.0,
            log: LogSettings { program: PROGRAM.name, level: raw.log.0 },
        };
        let refusals = settings.refuse_mappings();
        let refusals = refusals.or_else(|| settings.refuse_legacy()).or_else(|| settings.refuse_intercepts());
        let refusals = refusals.or_else(|| settings.refuse_selection());
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
        if let Some(ports) = &self.embedded {
            return self.refuse_embedded(ports);
        }
        if self.intercepts.is_empty() {
            let message =
                "none is named; say where intercept runs, as -s 10.0.0.8, or do without (--embedded)";
            return Some(("intercept", message.to_owned()));
        }
        if let Some(message) = common::refuse_twice(&self.intercepts) {
            return Some(("intercept", message));
        }
        if self.insecure || !self.keys.is_empty() {
            return None;
        }
        let remote = self.intercepts.iter().find(|address| !address.ip().is_loopback())?;
        let key = if self.legacy {
            "a C one has no key:"
        } else {
            "there is no key: copy one of the intercept's to /etc/tcpcopy/keys, or"
        };
        let message = format!(
            "{remote} is on another host and {key} add --insecure (insecure = true) if the network between is trusted"
        );
        Some(("intercept", message))
    }

    /// What a C intercept cannot do.
    fn refuse_legacy(&self) -> Option<(&'static str, String)> {
        if !self.legacy {
            return None;
        }
        let targets = self.mappings.iter().map(|mapping| mapping.target);
        let message = if self.embedded.is_some() {
            "there is no intercept with --embedded (embedded = true); leave one of them out".to_owned()
        } else if !self.keys.is_empty() {
            format!(
                "a C intercept has no key, and there are keys here ({} of them), without which nothing is to be said; \
                 take them away, or have intercepts of ours",
                self.keys.len()
            )
        } else {
            let address = targets.chain(self.intercepts.iter().copied()).find(SocketAddr::is_ipv6)?;
            format!("{address} is IPv6, which the C intercept does not speak; leave it out")
        };
        Some(("legacy", message))
    }

    /// What is wrong with taking the responses on this host.
    fn refuse_embedded(&self, ports: &RangeInclusive<u16>) -> Option<(&'static str, String)> {
        if !self.intercepts.is_empty() {
            let message = "there is none with --embedded (embedded = true); leave one of them out";
            return Some(("intercept", message.to_owned()));
        }
        if let Some(mapping) = self.mappings.iter().find(|mapping| ports.contains(&mapping.port)) {
            let (first, last) = (ports.start(), ports.end());
            let message = format!(
                "{first}-{last} holds {}, which '{mapping}' captures; name ports that are used for nothing else",
                mapping.port
            );
            return Some(("ports", message));
        }
        let prefix = self.pools.iter().find(|pool| !pool.is_one_address())?;
        let message = format!("{prefix} is no single address; with --embedded, name addresses of this host");
        Some(("pool", message))
    }

    /// What is wrong with which connections are replayed.
    fn refuse_selection(&self) -> Option<(&'static str, String)> {
        if self.source == CaptureSource::Packet && self.max_packets_per_second.is_some() {
            let message = "packet sockets have no such limit; capture by rules (capture.source = \"nfqueue\"), or leave it out";
            return Some(("capture.max-packets-per-second", message.to_owned()));
        }
        let of = |v4| self.clients.iter().any(|prefix| prefix.is_ipv4() == v4);
        let nobody =
            self.mappings.iter().find(|mapping| !self.clients.is_empty() && !of(mapping.target.is_ipv4()))?;
        let message = format!(
            "none is {} and '{nobody}' is, so nothing would be replayed by it; add a prefix of that family",
            family(nobody.target.is_ipv4())
        );
        Some(("clients", message))
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
            if let Some(host) = taken.filter(|_| self.embedded.is_none()) {
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
        // Embedded, each worker has a second one, for responses.
        let queues = if self.embedded.is_some() { self.workers * 2 } else { self.workers };
        if let Some(message) = common::refuse_queues(self.queue, self.workers, queues) {
            return Some(("queue", message));
        }
        if let Some(message) = common::refuse_coalesce(self.coalesce) {
            return Some(("coalesce", message));
        }
        if let Some(message) = common::refuse_memory(self.memory_limit, "replay with") {
            return Some(("memory-limit", message));
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
