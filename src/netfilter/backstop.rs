//! The second layer of the black hole: routing, which no change of the ruleset reaches.
//!
//! Tables without an owner go with `nft flush ruleset`, and with `nftables.service` when it stops at shutdown, while
//! the network is still up. Rules of the routing policy (ip-rule(8)) are untouched by nft.
//!
//! Packets are routed into a device that swallows them. Should the device or its routes be missing, the next rule drops.
//!
//! - On an assistant this concerns all that would be forwarded from a target. Packets meet these rules after all
//!   netfilter rules of prerouting: while those are in force, no packet does. Packets with the mark of intercept's
//!   verdict `accept`, or of an entry of `pass`, go on.
//! - On the target it concerns responses. The hooks of output stay in the path, so that intercept sees them first.
//!
//! The rules of one intercept bear a table number of their own, made of the name of its nft tables: the kernel keeps it
//! with every rule, whatever it does. The rules of version 0.1 have none and belong to the table `intercept`.
//!
//! The reverse path filter (`rp_filter`) looks up the way back to the sender of a packet that comes in, and finds it to
//! lead into the device. A loose filter (2) is content with that; a strict one (1) drops packets to the targets. A filter
//! of either kind would drop them if the way back were a black hole: hence the device, on the assistant too. On the
//! target the lookup is without ports, unless some rule about forwarded packets needs them, and rules with ports are then
//! not considered.

use std::io;
use std::net::IpAddr;

use super::assistant::{AssistantSpec, Place, Unclaimed};
use super::ruleset::TableName;
use super::sink_table::{SinkTable, TAG_MASK, TAGS};
use crate::sys::policy::{Action, LOOPBACK, PolicyRule, Selector, TABLE_LOCAL};
use crate::sys::reverse_path;
use crate::sys::routes::Device;
use crate::wire::Prefix;

/// Before all rules that look a table up, except the one about local addresses. No other program uses these by custom.
const EXCEPT: u32 = 73;
const DROP: u32 = 74;
/// Behind the lookup of the table that leads into the device.
const DROP_UNROUTED: u32 = 75;
/// The rule that exceptions continue with.
const AFTER: u32 = 76;

const IPPROTO_TCP: u8 = 6;

/// Why the second layer is not in force.
#[derive(Debug, thiserror::Error)]
pub enum BackstopError {
    /// The kernel does not have rules of the routing policy.
    #[error(
        "the kernel has no rules of the routing policy (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES): use a \
         kernel that has them"
    )]
    Unsupported(#[source] io::Error),
    /// A rule could not be changed or listed.
    #[error("the rules of the routing policy cannot be changed ({0}): run as root or with CAP_NET_ADMIN")]
    Policy(#[source] io::Error),
    /// Another device has the name.
    #[error("network device {0} exists and is not of this intercept: delete it (ip link del {0})")]
    ForeignDevice(String),
    /// The device or its routes could not be made.
    #[error(
        "the device {device} that swallows responses, or its routes, cannot be made ({source}): load the module dummy, \
         and see ip link and ip route show table {table}"
    )]
    Sink {
        /// The device.
        device: String,
        /// The routing table that leads into it.
        table: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A rule of others comes before ours.
    #[error(
        "a rule of the routing policy comes before those of intercept ({0}): delete it, or give it a priority above \
         {AFTER}"
    )]
    Shadowed(PolicyRule),
    /// Something is missing, and it is not for intercept to change it.
    #[error("missing in the routing policy: {0} (intercept rules show prints the commands that add it)")]
    Missing(String),
}

/// The rules of the routing policy for one intercept, and what they need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backstop {
    tag: u32,
    /// Whether rules without an owner are this intercept's.
    is_default: bool,
    rules: Vec<PolicyRule>,
    sink: Option<SinkTable>,
    filter: Filter,
}

/// What a strict reverse path filter drops because of these rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    /// The clients' packets on the target; if the rules have ports, only where the kernel looks at them.
    Clients { ports: bool },
    /// What an assistant forwards to the targets. That is not replayed traffic alone if others are served.
    Forwarding { others: bool },
}

impl Backstop {
    /// The second layer for `spec`.
    pub fn new(spec: &AssistantSpec) -> Self {
        let tag = tag(&spec.table);
        let families = [true, false].map(|ipv4| (ipv4, dropped(spec, ipv4)));
        let families: Vec<_> = families.into_iter().filter(|(_, dropped)| !dropped.is_empty()).collect();
        let mut rules: Vec<PolicyRule> = Vec::new();
        for (ipv4, dropped) in &families {
            let rule = |priority, action, selector| PolicyRule::new(*ipv4, priority, tag, action, selector);
            rules.push(rule(AFTER, Action::Nop, Selector::default()));
            rules.extend(passed(spec, *ipv4).into_iter().map(|each| rule(EXCEPT, Action::Goto(AFTER), each)));
            for each in dropped {
                rules.push(rule(DROP_UNROUTED, Action::BlackHole, each.clone()));
                rules.push(rule(DROP, Action::Lookup, each.clone()));
            }
        }
        let sink = (!families.is_empty()).then(|| SinkTable {
            families: families.iter().map(|(ipv4, _)| *ipv4).collect(),
            has_connections: spec.place == Place::Target,
            ..sink(&spec.table)
        });
        let is_by_address = !spec.clients.is_empty() && spec.unclaimed == Unclaimed::Drop;
        Self {
            tag,
            is_default: spec.table == TableName::intercept(),
            rules: without_duplicates(rules),
            sink,
            filter: match (spec.place, spec.unclaimed) {
                (Place::Assistant, Unclaimed::Drop) => Filter::Forwarding { others: false },
                (Place::Assistant, Unclaimed::Accept) => Filter::Forwarding { others: true },
                (Place::Target, _) => Filter::Clients { ports: !is_by_address },
            },
        }
    }

    /// Puts these in force, and no others of this intercept; says what was missing. What replaces something is there
    /// before that goes.
    pub fn put(&self) -> Result<Vec<String>, BackstopError> {
        let (mut restored, sink) = match self.sink.as_ref().map(SinkTable::put) {
            None => (Vec::new(), Ok(())),
            Some(Ok(restored)) => (restored, Ok(())),
            // The rules drop without it.
            Some(Err(error)) => (Vec::new(), Err(self.sink_error(error))),
        };
        let found = PolicyRule::all().map_err(policy)?;
        for rule in &self.rules {
            // A later kernel may say more of a rule than is understood here; it knows which ones exist.
            if !found.iter().any(|other| other.is_equivalent(rule)) && rule.add().map_err(policy)? {
                restored.push(format!("rule {rule}"));
            }
        }
        let is_wanted = |other: &PolicyRule| self.rules.iter().any(|rule| rule.is_equivalent(other));
        let mut obsolete = found.iter().filter(|other| self.owns(other) && !is_wanted(other));
        obsolete.try_for_each(PolicyRule::delete).map_err(policy)?;
        if self.sink.is_none() {
            sink_of(self.tag).remove().map_err(policy)?;
        }
        sink?;
        self.shadowed(&found).map_or(Ok(restored), |rule| Err(BackstopError::Shadowed(rule.clone())))
    }

    /// Whether they are in force, without a change.
    pub fn check(&self) -> Result<(), BackstopError> {
        let found = PolicyRule::all().map_err(policy)?;
        if let Some(rule) =
            self.rules.iter().find(|rule| !found.iter().any(|other| other.is_equivalent(rule)))
        {
            return Err(BackstopError::Missing(format!("rule {rule}")));
        }
        if let Some(sink) = &self.sink
            && let Some(missing) = sink.missing().map_err(policy)?
        {
            return Err(BackstopError::Missing(missing));
        }
        self.shadowed(&found).map_or(Ok(()), |rule| Err(BackstopError::Shadowed(rule.clone())))
    }

    /// Interfaces whose reverse path filter drops what comes in for the targets.
    pub fn strict_interfaces(&self) -> io::Result<Vec<String>> {
        let Some(sink) = self.sink.as_ref().filter(|sink| sink.families.contains(&true)) else {
            return Ok(Vec::new());
        };
        let drops = match self.filter {
            Filter::Clients { ports: true } => {
                PolicyRule::all()?.iter().any(|rule| rule.ipv4 && rule.needs_ports())
            }
            Filter::Clients { ports: false } => true,
            Filter::Forwarding { .. } => reverse_path::is_forwarding(),
        };
        if !drops {
            return Ok(Vec::new());
        }
        let concerned = Device::all()?
            .into_iter()
            .filter(|device| device.up && device.name != LOOPBACK && device.name != sink.device);
        Ok(concerned.map(|device| device.name).filter(|name| reverse_path::is_strict(name)).collect())
    }

    /// Whether a strict filter breaks more than this host's forwarding of replayed traffic, which may take another way.
    pub fn refuses_strict_filters(&self) -> bool {
        self.filter != Filter::Forwarding { others: false }
    }

    /// Removes all of the intercept with these tables; false if there was nothing.
    pub fn remove(table: &TableName) -> io::Result<bool> {
        let spec = Self {
            tag: tag(table),
            is_default: *table == TableName::intercept(),
            rules: Vec::new(),
            sink: None,
            filter: Filter::Clients { ports: true },
        };
        let found = PolicyRule::all()?;
        let own: Vec<_> = found.iter().filter(|rule| spec.owns(rule)).collect();
        own.iter().try_for_each(|rule| rule.delete())?;
        Ok(sink(table).remove()? || !own.is_empty())
    }

    /// Shell commands that remove it, in the order in which they are to be run. They need none of our programs.
    pub fn commands_to_remove(table: &TableName) -> Vec<String> {
        let SinkTable { table: tag, device, .. } = sink(table);
        vec![
            format!("nft delete table ip {table}"),
            format!("nft delete table ip6 {table}"),
            format!("while ip rule del table {tag} 2>/dev/null; do :; done"),
            format!("while ip -6 rule del table {tag} 2>/dev/null; do :; done"),
            format!("ip link del {device}"),
        ]
    }

    /// Shell commands that add it, for `rules = "manual"`.
    pub fn commands_to_add(&self) -> Vec<String> {
        let device = self.sink.iter().flat_map(|sink| {
            let SinkTable { table, device, alias, .. } = sink;
            // On the target, that of the real route to the clients.
            let mtu = if sink.has_connections { " mtu 1500" } else { "" };
            [
                format!("ip link add {device} type dummy && ip link set {device} alias \"{alias}\" mtu 65535 arp off up"),
                format!("ip route add default dev {device} table {table}{mtu} protocol kernel"),
                format!("ip -6 route add default dev {device} table {table}{mtu} protocol kernel"),
            ]
        });
        let rules =
            self.rules.iter().map(|rule| format!("ip {}rule add {rule}", if rule.ipv4 { "" } else { "-6 " }));
        device.chain(rules).collect()
    }

    fn owns(&self, rule: &PolicyRule) -> bool {
        let untagged = rule.table == 0
            && rule.kernel
            && rule.priority == DROP
            && rule.action == Action::BlackHole
            && rule.selector.protocol == Some(IPPROTO_TCP)
            && rule.selector.sport.is_some();
        rule.table == self.tag || self.is_default && untagged
    }

    /// A rule of others that has a say before ours about packets that ours drop.
    fn shadowed<'a>(&self, found: &'a [PolicyRule]) -> Option<&'a PolicyRule> {
        let ours = self.rules.iter().filter(|rule| rule.priority == DROP);
        let before = |other: &PolicyRule| match other.action {
            Action::Lookup => other.table != TABLE_LOCAL && other.table & TAG_MASK != TAGS,
            Action::Goto(priority) => priority > DROP && other.table & TAG_MASK != TAGS,
            Action::Nop | Action::BlackHole | Action::Other(_) => false,
        };
        let takes = |other: &PolicyRule| {
            // At the same priority, the order is that of their making, which is the listed one.
            let ours_first = |ours: &PolicyRule| {
                let place = |rule: &PolicyRule| found.iter().position(|each| each.is_equivalent(rule));
                place(ours).is_some_and(|ours| place(other).is_some_and(|other| ours < other))
            };
            other.priority <= DROP
                && before(other)
                && ours.clone().any(|ours| {
                    ours.ipv4 == other.ipv4
                        && may_overlap(&ours.selector, &other.selector)
                        && !(other.priority == DROP && ours_first(ours))
                })
        };
        found.iter().find(|other| takes(other))
    }

    fn sink_error(&self, source: io::Error) -> BackstopError {
        let device = self.sink.as_ref().map_or_else(String::new, |sink| sink.device.clone());
        if source.kind() == io::ErrorKind::AlreadyExists {
            BackstopError::ForeignDevice(device)
        } else {
            BackstopError::Sink { device, table: self.tag, source }
        }
    }
}

fn policy(error: io::Error) -> BackstopError {
    if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) {
        BackstopError::Unsupported(error)
    } else {
        BackstopError::Policy(error)
    }
}

/// The table number that tells the owner of a rule: the name's hash (FNV-1a), folded to 16 bits.
fn tag(table: &TableName) -> u32 {
    let hash = table
        .as_str()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    TAGS | (hash >> 16 ^ hash & 0xffff)
}

fn sink(table: &TableName) -> SinkTable {
    sink_of(tag(table))
}

fn sink_of(tag: u32) -> SinkTable {
    let id = tag & !TAG_MASK;
    SinkTable {
        table: tag,
        device: format!("intercept-{id:04x}"),
        alias: format!("intercept sink {id:04x}"),
        families: Vec::new(),
        has_connections: false,
    }
}

/// What the second layer drops of a family.
fn dropped(spec: &AssistantSpec, ipv4: bool) -> Vec<Selector> {
    let iif = (spec.place == Place::Target).then(|| LOOPBACK.to_owned());
    let targets = spec.targets.iter().filter(|target| target.is_ipv4() == ipv4);
    let everything = Selector { iif, ..Selector::default() };
    let from = |address: IpAddr| Some((address, width(address)));
    let selectors: Vec<_> = match (spec.place, spec.unclaimed) {
        (Place::Assistant, Unclaimed::Drop) => {
            targets.map(|target| Selector { from: from(target.ip()), ..everything.clone() }).collect()
        }
        (Place::Target, Unclaimed::Drop) if !spec.clients.is_empty() && targets.clone().next().is_some() => {
            destinations(&spec.clients, ipv4)
                .into_iter()
                .map(|to| Selector { to, ..everything.clone() })
                .collect()
        }
        (Place::Assistant | Place::Target, Unclaimed::Drop | Unclaimed::Accept) => targets
            .flat_map(|target| {
                let response = Selector {
                    from: from(target.ip()),
                    protocol: Some(IPPROTO_TCP),
                    sport: Some(target.port()..=target.port()),
                    ..everything.clone()
                };
                destinations(&spec.clients, ipv4)
                    .into_iter()
                    .map(move |to| Selector { to, ..response.clone() })
            })
            .collect(),
    };
    selectors
}

/// What of that goes on.
fn passed(spec: &AssistantSpec, ipv4: bool) -> Vec<Selector> {
    let local = Selector { iif: Some(LOOPBACK.to_owned()), ..Selector::default() };
    let targets = spec.targets.iter().filter(|target| target.is_ipv4() == ipv4);
    let marked = targets.map(|target| Selector {
        iif: (spec.place == Place::Target).then(|| LOOPBACK.to_owned()),
        from: Some((target.ip(), width(target.ip()))),
        mark: Some((spec.accept_mark, u32::MAX)),
        ..Selector::default()
    });
    let is_marking = spec.unclaimed == Unclaimed::Accept || !spec.pass.is_empty();
    match (spec.place, spec.unclaimed) {
        (Place::Assistant, Unclaimed::Drop | Unclaimed::Accept) => marked.filter(|_| is_marking).collect(),
        (Place::Target, Unclaimed::Accept) => marked.collect(),
        (Place::Target, Unclaimed::Drop) if spec.clients.is_empty() => Vec::new(),
        (Place::Target, Unclaimed::Drop) => on_target_exceptions(spec, ipv4, &local),
    }
}

/// What this host may send to replayed clients. Marks do not help: routes are chosen before the rules see a packet.
fn on_target_exceptions(spec: &AssistantSpec, ipv4: bool, local: &Selector) -> Vec<Selector> {
    let clients = destinations(&spec.clients, ipv4);
    let to_clients = |exception: &Selector| -> Vec<Selector> {
        clients.iter().map(|to| Selector { to: *to, ..exception.clone() }).collect()
    };
    let tunnel = Selector {
        protocol: Some(IPPROTO_TCP),
        sport: Some(spec.tunnel_port..=spec.tunnel_port),
        ..local.clone()
    };
    let mut exceptions = to_clients(&tunnel);
    for pass in &spec.pass {
        let families = [pass.from.map(|from| from.is_ipv4()), pass.to.map(|to| to.is_ipv4())];
        if families.into_iter().flatten().any(|family| family != ipv4) {
            continue;
        }
        let exception = Selector {
            from: pass.from.map(|from| (from, width(from))),
            to: pass.to.and_then(destination),
            protocol: pass.protocol,
            sport: pass.sport.clone(),
            dport: pass.dport.clone(),
            ..local.clone()
        };
        if exception.to.is_some() {
            exceptions.push(exception);
        } else {
            exceptions.extend(to_clients(&exception));
        }
    }
    exceptions
}

/// Whether there may be packets that both select. Packets with a mark are not considered.
fn may_overlap(a: &Selector, b: &Selector) -> bool {
    let prefixes = |a: Option<(IpAddr, u8)>, b: Option<(IpAddr, u8)>| match (a, b) {
        (Some((a, a_length)), Some((b, b_length))) => {
            let prefix = |address, length| Prefix::new(address, length);
            prefix(a, a_length).zip(prefix(b, b_length)).is_none_or(|(a, b)| a.overlaps(&b))
        }
        (None, _) | (_, None) => true,
    };
    let protocols = |a: Option<u8>, b: Option<u8>| a.zip(b).is_none_or(|(a, b)| a == b);
    let is_local = |selector: &Selector| selector.iif.as_deref() == Some(LOOPBACK);
    let interfaces = match (&a.iif, &b.iif) {
        (Some(a), Some(b)) => a == b,
        (None | Some(_), None) => true,
        // Forwarded packets come in through any interface but this one.
        (None, Some(_)) => !is_local(b),
    };
    let unmarked = b.mark.is_none_or(|(mark, _)| mark == 0);
    interfaces
        && unmarked
        && prefixes(a.from, b.from)
        && prefixes(a.to, b.to)
        && protocols(a.protocol, b.protocol)
}

fn without_duplicates(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut unique: Vec<PolicyRule> = Vec::new();
    for rule in rules {
        if !unique.contains(&rule) {
            unique.push(rule);
        }
    }
    unique
}

/// The clients' prefixes of one family; `None` is all.
fn destinations(clients: &[Prefix], ipv4: bool) -> Vec<Option<(IpAddr, u8)>> {
    if clients.is_empty() {
        return vec![None];
    }
    clients.iter().filter(|prefix| prefix.is_ipv4() == ipv4).map(|prefix| destination(*prefix)).collect()
}

fn destination(prefix: Prefix) -> Option<(IpAddr, u8)> {
    (!prefix.is_everything()).then(|| (prefix.address(), prefix.length()))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
