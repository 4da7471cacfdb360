//! The flows that were ever claimed, kept in the kernel: with `unclaimed = accept`, none of them is let through.
//!
//! A table of its own, beside that of the rules, so that neither a restart of intercept nor a replacement of its rules
//! touches what the sets hold:
//!
//! | object | what it is |
//! |---|---|
//! | set `claimed` | flows that a claimer holds, until they are retired |
//! | set `closing` | flows that nobody holds any more, until the target has been silent on them for a while |
//! | chain `keep`, before the rules | a packet of a flow in `closing` keeps it there |
//! | chain `closed`, after the rules | drops what is left of flows in either |
//!
//! An element is the client's address and port, and the target's. Where the host lets other traffic of the target go on,
//! this holds even if intercept is killed and knows nothing when it starts again.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::assistant::{AssistantSpec, Place};
use super::batch::Transaction;
use super::link::{Failure, Link, undisturbed};
use super::message::{self, Attributes};
use super::ruleset::{Family, TableName};
use crate::wire::FlowKey;

/// How long a flow in `closing` stays there after the last packet: longer than TCP's longest retransmission interval.
const SILENCE: Duration = Duration::from_secs(190);
/// Flows in `closing`, at most; while it is full, flows stay in `claimed`.
const CLOSING_SIZE: u32 = 1 << 20;
/// Elements of one message.
const ELEMENTS: usize = 500;

const CLAIMED: &str = "claimed";
const CLOSING: &str = "closing";
const KEEP: &str = "keep";
const CLOSED: &str = "closed";
const RULES: [(&str, usize); 2] = [(KEEP, 1), (CLOSED, 2)];

/// The sets of claimed flows, and a way to change them.
pub struct ClaimedFlows {
    link: Link,
    table: TableName,
    families: Vec<Family>,
    place: Place,
}

impl ClaimedFlows {
    /// Those of the intercept that `spec` is for. Nothing is changed.
    pub fn open(spec: &AssistantSpec) -> io::Result<Self> {
        let of_target = |target: &SocketAddr| Family::of(target.ip());
        let targets: Vec<_> = spec.targets.iter().map(of_target).collect();
        Ok(Self {
            link: Link::open()?,
            table: table_name(&spec.table)?,
            families: Family::ALL.into_iter().filter(|family| targets.contains(family)).collect(),
            place: spec.place,
        })
    }

    /// Sees to it that tables, sets and rules are there; what the sets hold stays. Returns whether something was missing.
    pub fn put(&mut self) -> io::Result<bool> {
        let missing = self.missing()?.is_some();
        let mut batch = Batch::new();
        for family in &self.families {
            batch.install(*family, &self.table, self.place);
        }
        self.commit(batch)?;
        Ok(missing)
    }

    /// What is missing of them; `None` if all are there.
    pub fn missing(&mut self) -> io::Result<Option<String>> {
        let Self { link, table, families, .. } = self;
        for family in families.iter().copied() {
            if link.table_flags(family, table)?.is_none() {
                return Ok(Some(format!("table {family} {table} is gone")));
            }
            let mut sets = Vec::new();
            let mut rules = Vec::new();
            undisturbed(|| {
                sets.clear();
                rules.clear();
                link.dump(libc::NFT_MSG_GETSET, family, table, &mut |set| {
                    sets.extend(set.string(message::SET_NAME).map(<[u8]>::to_vec));
                })?;
                link.dump(libc::NFT_MSG_GETRULE, family, table, &mut |rule| {
                    rules.extend(rule.string(message::RULE_CHAIN).map(<[u8]>::to_vec));
                })
            })?;
            for name in [CLAIMED, CLOSING] {
                if !sets.iter().any(|set| set == name.as_bytes()) {
                    return Ok(Some(format!("set {family} {table} {name} is gone")));
                }
            }
            for (chain, expected) in RULES {
                let found = rules.iter().filter(|rule| *rule == chain.as_bytes()).count();
                if found != expected {
                    return Ok(Some(format!(
                        "chain {family} {table} {chain} has {found} rules, not {expected}"
                    )));
                }
            }
        }
        Ok(None)
    }

    /// Adds flows that are claimed, in one transaction.
    pub fn add(&mut self, flows: &[FlowKey]) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.elements(libc::NFT_MSG_NEWSETELEM, &self.table, CLAIMED, flows, None);
        self.commit(batch)
    }

    /// Moves flows that nobody holds any more to `closing`, in one transaction. They leave it after `grace` without a
    /// packet, or what a packet makes of that.
    pub fn retire(&mut self, flows: &[FlowKey], grace: Duration) -> io::Result<()> {
        // The kernel leaves the time of an element as it is when it is added again; before Linux 6.12, always.
        let mut stale = Vec::new();
        for flow in flows {
            if self.is_closing(flow)? {
                stale.push(*flow);
            }
        }
        match self.commit(self.retirement(flows, &stale, grace)) {
            // Some are not where they were: their time is over, or somebody has taken them away.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                flows.iter().try_for_each(|flow| self.retire_one(*flow, grace))
            }
            done => done,
        }
    }

    fn retire_one(&mut self, flow: FlowKey, grace: Duration) -> io::Result<()> {
        self.take_away(CLOSING, flow)?;
        self.close(&[flow], grace)?;
        self.take_away(CLAIMED, flow)
    }

    /// Deletes an element, if it is there.
    fn take_away(&mut self, set: &str, flow: FlowKey) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.elements(libc::NFT_MSG_DELSETELEM, &self.table, set, &[flow], None);
        match self.commit(batch) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn retirement(&self, flows: &[FlowKey], stale: &[FlowKey], grace: Duration) -> Batch {
        let mut batch = Batch::new();
        batch.elements(libc::NFT_MSG_DELSETELEM, &self.table, CLOSING, stale, None);
        batch.elements(libc::NFT_MSG_NEWSETELEM, &self.table, CLOSING, flows, Some(grace.max(SILENCE)));
        batch.elements(libc::NFT_MSG_DELSETELEM, &self.table, CLAIMED, flows, None);
        batch
    }

    fn is_closing(&mut self, flow: &FlowKey) -> io::Result<bool> {
        let number = self.link.next_sequence();
        let mut request = Batch { bytes: Vec::new(), messages: number.wrapping_sub(1), last: 0 };
        let family = Family::of(flow.client.ip());
        request.message(libc::NFT_MSG_GETSETELEM, libc::NLM_F_ACK, family, |message| {
            message.text(1, self.table.as_str()).text(2, CLOSING).nest(3, |list| {
                list.nest(1, |element| {
                    element.nest(1, |key| {
                        key.bytes(1, &key_bytes(flow));
                    });
                });
            });
        });
        match self.link.converse(&request.bytes, number, &mut |_, _| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds flows to `closing`, in one transaction.
    pub fn close(&mut self, flows: &[FlowKey], grace: Duration) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.elements(libc::NFT_MSG_NEWSETELEM, &self.table, CLOSING, flows, Some(grace.max(SILENCE)));
        self.commit(batch)
    }

    /// The flows in either set.
    pub fn flows(&mut self) -> io::Result<Vec<FlowKey>> {
        let mut flows = self.elements(CLAIMED)?;
        flows.extend(self.elements(CLOSING)?);
        Ok(flows)
    }

    /// Retires all flows that an intercept before this one has left claimed.
    pub fn retire_all(&mut self, grace: Duration) -> io::Result<()> {
        let left = self.elements(CLAIMED)?;
        left.chunks(ELEMENTS).try_for_each(|flows| self.retire(flows, grace))
    }

    /// Takes the tables of an intercept's claimed flows away.
    pub fn remove(table: &TableName) -> Result<(), super::InstallError> {
        let name = table_name(table).map_err(super::InstallError::Socket)?;
        super::remove_table(&name).map(drop)
    }

    fn elements(&mut self, set: &str) -> io::Result<Vec<FlowKey>> {
        let Self { link, table, families, .. } = self;
        let mut flows = Vec::new();
        for family in families.iter().copied() {
            undisturbed(|| {
                flows.retain(|flow: &FlowKey| Family::of(flow.client.ip()) != family);
                link.dump_set(family, table, set, &mut |element| {
                    flows.extend(read_element(family, &element));
                })
            })?;
        }
        Ok(flows)
    }

    fn commit(&mut self, batch: Batch) -> io::Result<()> {
        let Some(transaction) = batch.finish() else { return Ok(()) };
        self.link.commit(&transaction).map_err(|failure| match failure {
            Failure::Send(error) | Failure::Receive(error) | Failure::Refused { error, .. } => error,
            Failure::Unanswered { .. } => io::ErrorKind::TimedOut.into(),
        })
    }
}

fn table_name(table: &TableName) -> io::Result<TableName> {
    TableName::new(&format!("{:.56}-claims", table.as_str())).map_err(io::Error::other)
}

/// The flow of an element.
fn read_element(family: Family, element: &Attributes<'_>) -> Option<FlowKey> {
    const KEY: u16 = 1;
    const VALUE: u16 = 1;
    read_key(family, element.nested(KEY)?.find(VALUE)?)
}

fn read_key(family: Family, bytes: &[u8]) -> Option<FlowKey> {
    fn ends<const N: usize>(bytes: &[u8]) -> Option<FlowKey>
    where
        IpAddr: From<[u8; N]>,
    {
        let (client, rest) = bytes.split_first_chunk::<N>()?;
        let ([high, low, ..], rest) = rest.split_first_chunk::<4>()?;
        let (server, rest) = rest.split_first_chunk::<N>()?;
        let ([high_server, low_server, ..], _) = rest.split_first_chunk::<4>()?;
        Some(FlowKey {
            client: SocketAddr::new(IpAddr::from(*client), u16::from_be_bytes([*high, *low])),
            server: SocketAddr::new(IpAddr::from(*server), u16::from_be_bytes([*high_server, *low_server])),
        })
    }
    match family {
        Family::Ip => ends::<4>(bytes),
        Family::Ip6 => ends::<16>(bytes),
    }
}

fn key_bytes(flow: &FlowKey) -> Vec<u8> {
    let mut key = Vec::with_capacity(40);
    for end in [flow.client, flow.server] {
        match end.ip() {
            IpAddr::V4(address) => key.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => key.extend_from_slice(&address.octets()),
        }
        let [high, low] = end.port().to_be_bytes();
        key.extend_from_slice(&[high, low, 0, 0]);
    }
    key
}

/// Netlink attributes that are being written.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.bytes(kind, &[text.as_bytes(), &[0]].concat())
    }

    fn number(&mut self, kind: u16, number: u32) -> &mut Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        const NESTED: u16 = 1 << 15;
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(NESTED | kind, &inner.0)
    }

    /// One expression of a rule.
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest(1, |element| {
            element.text(1, name).nest(2, fill);
        })
    }
}

/// The register that the first part of a flow's key is loaded to: `NFT_REG32_00`.
const KEY_REGISTER: u32 = 8;
const SCRATCH_REGISTER: u32 = 1;

/// Loads the key of the flow that a response is of; other packets end the rule.
fn load_key(rule: &mut Writer, family: Family) {
    let (client, server, length) = match family {
        Family::Ip => (16, 12, 4),
        Family::Ip6 => (24, 8, 16),
    };
    rule.expression("meta", |meta| {
        const L4PROTO: u32 = 16;
        meta.number(1, SCRATCH_REGISTER).number(2, L4PROTO);
    });
    rule.expression("cmp", |cmp| {
        cmp.number(1, SCRATCH_REGISTER).number(2, 0).nest(3, |data| {
            data.bytes(1, &[6]);
        });
    });
    let (network, transport) = (1, 2);
    let parts = [(network, client, length), (transport, 2, 2), (network, server, length), (transport, 0, 2)];
    let mut register = KEY_REGISTER;
    for (base, offset, length) in parts {
        rule.expression("payload", |payload| {
            payload.number(1, register).number(2, base).number(3, offset).number(4, length);
        });
        register += length.div_ceil(4);
    }
}

fn lookup(rule: &mut Writer, set: &str) {
    rule.expression("lookup", |lookup| {
        lookup.text(1, set).number(2, KEY_REGISTER);
    });
}

/// Messages of one transaction.
struct Batch {
    bytes: Vec<u8>,
    messages: u32,
    /// Where the last message begins.
    last: usize,
}

const BEGIN: i32 = 0x10;
const END: i32 = 0x11;

impl Batch {
    fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), messages: 0, last: 0 };
        batch.control(BEGIN);
        batch
    }

    /// The transaction; `None` if there is nothing to do. Its last message is acknowledged.
    fn finish(mut self) -> Option<Transaction> {
        const FLAGS: usize = 6;
        if self.messages < 2 {
            return None;
        }
        let ack = u16::try_from(libc::NLM_F_ACK).unwrap_or_default();
        if let Some(flags) = self.bytes.get_mut(self.last + FLAGS..).and_then(<[u8]>::first_chunk_mut) {
            *flags = (u16::from_ne_bytes(*flags) | ack).to_ne_bytes();
        }
        self.control(END);
        Some(Transaction { bytes: self.bytes, objects: Vec::new(), first: 1, acknowledgements: 1 })
    }

    fn control(&mut self, kind: i32) {
        let [_, subsystem] = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default().to_be_bytes();
        self.header(kind, 0, [0, 0, 0, subsystem], &[]);
    }

    fn message(&mut self, kind: i32, flags: i32, family: Family, fill: impl FnOnce(&mut Writer)) {
        let mut body = Writer::default();
        fill(&mut body);
        let kind = libc::NFNL_SUBSYS_NFTABLES << 8 | kind;
        self.header(kind, flags, [family.protocol(), 0, 0, 0], &body.0);
    }

    fn header(&mut self, kind: i32, flags: i32, generic: [u8; 4], body: &[u8]) {
        const HEADERS: usize = 20;
        self.last = self.bytes.len();
        self.messages += 1;
        let narrow = |number: i32| u16::try_from(number).unwrap_or_default().to_ne_bytes();
        self.bytes.extend(u32::try_from(HEADERS + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
        self.bytes.extend(narrow(kind));
        self.bytes.extend(narrow(libc::NLM_F_REQUEST | flags));
        self.bytes.extend(self.messages.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(generic);
        self.bytes.extend_from_slice(body);
    }

    /// Adds or deletes the elements of a set.
    fn elements(
        &mut self,
        kind: i32,
        table: &TableName,
        set: &str,
        flows: &[FlowKey],
        timeout: Option<Duration>,
    ) {
        let flags = if kind == libc::NFT_MSG_NEWSETELEM { libc::NLM_F_CREATE } else { 0 };
        let timeout = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        for family in Family::ALL {
            let flows: Vec<_> = flows.iter().filter(|flow| Family::of(flow.client.ip()) == family).collect();
            for flows in flows.chunks(ELEMENTS) {
                self.message(kind, flags, family, |message| {
                    message.text(1, table.as_str()).text(2, set).nest(3, |list| {
                        for flow in flows {
                            list.nest(1, |element| {
                                element.nest(1, |key| {
                                    key.bytes(1, &key_bytes(flow));
                                });
                                if let Some(timeout) = timeout {
                                    element.bytes(4, &timeout.to_be_bytes());
                                }
                            });
                        }
                    });
                });
            }
        }
    }

    /// Makes what is missing of a family's table, and its rules anew.
    fn install(&mut self, family: Family, table: &TableName, place: Place) {
        let name = table.as_str();
        self.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, family, |message| {
            message.text(1, name);
        });
        self.set(family, name, CLAIMED, 1);
        self.set(family, name, CLOSING, 2);
        let (before, after, hook) = match place {
            Place::Assistant => (-301, -298, 0),
            Place::Target => (-151, -148, 3),
        };
        for (chain, priority) in [(KEEP, before), (CLOSED, after)] {
            self.message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, family, |message| {
                message.text(1, name).text(3, chain).nest(4, |at| {
                    at.number(1, hook).number(2, i32::cast_unsigned(priority));
                });
                message.text(7, "filter");
            });
            self.message(libc::NFT_MSG_DELRULE, 0, family, |message| {
                message.text(1, name).text(2, chain);
            });
        }
        self.rule(family, name, KEEP, |rule| {
            lookup(rule, CLOSING);
            rule.expression("dynset", |dynset| {
                const UPDATE: u32 = 1;
                dynset.text(1, CLOSING).number(3, UPDATE).number(4, KEY_REGISTER);
                dynset.bytes(6, &u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX).to_be_bytes());
            });
        });
        for set in [CLAIMED, CLOSING] {
            self.rule(family, name, CLOSED, |rule| {
                lookup(rule, set);
                rule.expression("counter", |_| {});
                rule.expression("immediate", |immediate| {
                    const DROP: u32 = 0;
                    immediate.number(1, 0).nest(2, |data| {
                        data.nest(2, |verdict| {
                            verdict.number(1, DROP);
                        });
                    });
                });
            });
        }
    }

    fn set(&mut self, family: Family, table: &str, set: &str, id: u32) {
        // nft's numbers of the types ipv4_addr, ipv6_addr and inet_service, six bits each in a concatenation.
        const PORT: u32 = 13;
        const TIMEOUT: u32 = 0x10;
        const EVAL: u32 = 0x20;
        let (address, length) = match family {
            Family::Ip => (7, 16),
            Family::Ip6 => (8, 40),
        };
        let kind = [address, PORT, address, PORT].iter().fold(0, |kind, part| kind << 6 | part);
        self.message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, family, |message| {
            let flags = if set == CLOSING { TIMEOUT | EVAL } else { 0 };
            message.text(1, table).text(2, set).number(3, flags).number(4, kind).number(5, length);
            message.number(10, id);
            if set == CLOSING {
                message.nest(9, |description| {
                    description.number(1, CLOSING_SIZE);
                });
            }
        });
    }

    fn rule(&mut self, family: Family, table: &str, chain: &str, fill: impl FnOnce(&mut Writer)) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.message(libc::NFT_MSG_NEWRULE, flags, family, |message| {
            message.text(1, table).text(2, chain).nest(4, |rule| {
                load_key(rule, family);
                fill(rule);
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_flows_read_back() {
        for (family, client, server) in
            [(Family::Ip, "10.9.0.1:40000", "10.2.0.2:80"), (Family::Ip6, "[fd00::9]:1", "[fd00::2]:65535")]
        {
            let end = |text: &str| text.parse().expect("address");
            let flow = FlowKey { client: end(client), server: end(server) };
            assert_eq!(read_key(family, &key_bytes(&flow)), Some(flow));
        }
    }

    #[test]
    fn nothing_to_do_is_no_transaction() {
        assert!(Batch::new().finish().is_none());
        let mut batch = Batch::new();
        batch.elements(libc::NFT_MSG_NEWSETELEM, &TableName::intercept(), CLAIMED, &[], None);
        assert!(batch.finish().is_none());
    }
}
