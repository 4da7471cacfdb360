//! The ruleset as one netlink batch: the kernel takes all of it or nothing.
//!
//! A table that exists is replaced: add without flags (so that the removal that follows cannot miss), remove, add
//! with flags.

use std::net::IpAddr;

use nftnl::expr::{Bitwise, Cmp, CmpOp, Counter, Immediate, Meta, Register as CrateRegister, Verdict};
use nftnl::{Batch, Chain as ChainMessage, ChainType, MsgType, Policy, ProtoFamily};
use nftnl::{Rule as RuleMessage, Table as TableReference};

use super::ruleset::{
    Chain, Device, End, Family, Hook, Match, Prefix, Rule, Ruleset, Statement, Table, TableName,
};
use crate::sys::expr::{Base, Expr, Register};
use crate::sys::nfnl::TableMessage;
use crate::wire::flow::SPLIT_SEED;

/// `NFT_TABLE_F_OWNER` of `linux/netfilter/nf_tables.h` (Linux 5.12).
pub(super) const TABLE_OWNER: u32 = 2;

/// How a rule hands packets to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    /// The kernel's own `queue` expression.
    Native,
    /// The xtables target `NFQUEUE` through `nft_compat`.
    Compat,
}

/// What one message of a batch is about, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Object {
    /// A table is added before it is removed.
    Reserve,
    /// A table is removed.
    Removal,
    /// A table is added, with its flags.
    Table,
    /// A chain is added.
    Chain(&'static str),
    /// A rule is added: its text, and the kernel options it needs.
    Rule { text: String, options: Vec<&'static str> },
}

/// A transaction, ready to be sent.
pub(super) struct Transaction {
    /// The whole of it; it must be sent as one message.
    pub(super) bytes: Vec<u8>,
    /// What the messages are about, with the family, in order.
    pub(super) objects: Vec<(Family, Object)>,
    /// The sequence number of the first of `objects`.
    pub(super) first: u32,
    /// How many acknowledgements a success brings.
    pub(super) acknowledgements: usize,
}

/// Installs or replaces `ruleset`. A table of that name is removed in families that have none now.
pub(super) fn install(ruleset: &Ruleset, queue: QueueKind) -> Transaction {
    let mut writer = Writer::new(&ruleset.name);
    for family in Family::ALL {
        writer.clear(family);
    }
    for table in &ruleset.tables {
        writer.table(table, ruleset.owner, queue);
    }
    writer.finish()
}

/// Removes the tables of that name, which must exist, of `families`.
pub(super) fn remove(name: &TableName, families: &[Family]) -> Transaction {
    let mut writer = Writer::new(name);
    for family in families {
        writer.table_message(*family, None, MsgType::Del, Object::Removal);
    }
    writer.finish()
}

/// Makes a rule that queues, and removes it in the same transaction: succeeds only where `queue` is offered.
pub(super) fn probe(name: &TableName, family: Family, queue: QueueKind) -> Transaction {
    let rule = Rule { matches: Vec::new(), statements: vec![Statement::Queue(0)] };
    let chain = Chain { name: "probe", hook: Hook::Output, priority: 0, rules: vec![rule] };
    let mut writer = Writer::new(name);
    writer.clear(family);
    writer.table(&Table { family, chains: vec![chain] }, false, queue);
    writer.table_message(family, None, MsgType::Del, Object::Removal);
    writer.finish()
}

struct Writer<'a> {
    name: &'a TableName,
    batch: Batch,
    objects: Vec<(Family, Object)>,
}

impl<'a> Writer<'a> {
    fn new(name: &'a TableName) -> Self {
        Self { name, batch: Batch::new(), objects: Vec::new() }
    }

    fn clear(&mut self, family: Family) {
        self.table_message(family, None, MsgType::Add, Object::Reserve);
        self.table_message(family, None, MsgType::Del, Object::Removal);
    }

    fn table(&mut self, table: &Table, owner: bool, queue: QueueKind) {
        let family = table.family;
        let flags = if owner { TABLE_OWNER } else { 0 };
        self.table_message(family, Some(flags), MsgType::Add, Object::Table);
        let reference = TableReference::new(self.name.to_c_string(), protocol(family));
        for chain in &table.chains {
            self.chain(&reference, family, chain, queue);
        }
    }

    fn table_message(&mut self, family: Family, flags: Option<u32>, kind: MsgType, object: Object) {
        let message = TableMessage::new(&self.name.to_c_string(), protocol(family), flags);
        self.batch.add(&message, kind);
        self.objects.push((family, object));
    }

    fn chain(&mut self, table: &TableReference, family: Family, chain: &Chain, queue: QueueKind) {
        let name = std::ffi::CString::new(chain.name).expect("chain names are literals without NUL");
        let mut message = ChainMessage::new(name, table);
        let hook = match chain.hook {
            Hook::Prerouting => nftnl::Hook::PreRouting,
            Hook::Output => nftnl::Hook::Out,
        };
        message.set_hook(hook, chain.priority);
        message.set_type(ChainType::Filter);
        message.set_policy(Policy::Accept);
        self.batch.add(&message, MsgType::Add);
        self.objects.push((family, Object::Chain(chain.name)));
        for rule in &chain.rules {
            self.batch.add(&encode(&message, family, rule, queue), MsgType::Add);
            let text = rule.in_family(family).to_string();
            let options = kernel_options(rule, family, queue);
            self.objects.push((family, Object::Rule { text, options }));
        }
    }

    fn finish(self) -> Transaction {
        let batch = self.batch.finalize();
        let bytes = batch.iter().flatten().copied().collect();
        let numbers = batch.sequence_numbers();
        let acknowledgements = numbers.len();
        // From Linux 6.10 on, the crate has begin and end acknowledged as well, and numbers them.
        let begin = u32::from(acknowledgements > self.objects.len());
        Transaction { bytes, objects: self.objects, first: numbers.start + begin, acknowledgements }
    }
}

/// The kernel options whose absence makes the kernel answer ENOENT to a rule.
fn kernel_options(rule: &Rule, family: Family, queue: QueueKind) -> Vec<&'static str> {
    let by_family = |ip, ip6| match family {
        Family::Ip => ip,
        Family::Ip6 => ip6,
    };
    let of_match = |condition: &Match| match condition {
        Match::DaddrLocal => Some(by_family("NFT_FIB_IPV4", "NFT_FIB_IPV6")),
        Match::Worker { .. } => Some("NFT_HASH"),
        Match::Mark(_)
        | Match::Iif(_)
        | Match::Oif(_)
        | Match::Saddr(_)
        | Match::Daddr(_)
        | Match::Tcp
        | Match::TcpSport(_)
        | Match::TcpDport(_)
        | Match::Length(_)
        | Match::DataOffset(_)
        | Match::NoSynFinRst => None,
    };
    let of_statement = |statement: &Statement| match statement {
        Statement::Dup { .. } => Some(by_family("NFT_DUP_IPV4", "NFT_DUP_IPV6")),
        Statement::Notrack => Some("NFT_CT"),
        Statement::Queue(_) => Some(match queue {
            QueueKind::Native => "NFT_QUEUE",
            QueueKind::Compat => "NETFILTER_XT_TARGET_NFQUEUE",
        }),
        Statement::Counter | Statement::Return | Statement::Accept | Statement::Drop => None,
    };
    let matches = rule.matches.iter().filter_map(of_match);
    matches.chain(rule.statements.iter().filter_map(of_statement)).collect()
}

/// `IPPROTO_TCP`, in the one byte that `meta l4proto` loads.
const TCP: u8 = 6;

fn protocol(family: Family) -> ProtoFamily {
    match family {
        Family::Ip => ProtoFamily::Ipv4,
        Family::Ip6 => ProtoFamily::Ipv6,
    }
}

fn encode<'a>(chain: &'a ChainMessage<'a>, family: Family, rule: &Rule, queue: QueueKind) -> RuleMessage<'a> {
    let mut message = RuleMessage::new(chain);
    let mut tcp_checked = false;
    for condition in &rule.matches {
        if needs_tcp(condition) && !tcp_checked {
            equal(&mut message, &Meta::L4Proto, &[TCP]);
            tcp_checked = true;
        }
        add_match(&mut message, family, condition);
    }
    for statement in &rule.statements {
        add_statement(&mut message, statement, queue);
    }
    message
}

/// Whether a match reads the TCP header. nft adds the check of the protocol by itself; a batch has to say it.
fn needs_tcp(condition: &Match) -> bool {
    match condition {
        Match::Tcp
        | Match::TcpSport(_)
        | Match::TcpDport(_)
        | Match::DataOffset(_)
        | Match::NoSynFinRst
        | Match::Worker { .. } => true,
        Match::Mark(_)
        | Match::Iif(_)
        | Match::Oif(_)
        | Match::Saddr(_)
        | Match::Daddr(_)
        | Match::DaddrLocal
        | Match::Length(_) => false,
    }
}

fn add_match(rule: &mut RuleMessage<'_>, family: Family, condition: &Match) {
    let header = Header::of(family);
    let network = |offset, length| Expr::payload(Base::Network, offset, length, Register::R1);
    let transport = |offset, length| Expr::payload(Base::Transport, offset, length, Register::R1);
    match condition {
        Match::Mark(mark) => equal(rule, &Meta::Mark { set: false }, &mark.to_ne_bytes()),
        Match::Iif(Device { index, .. }) => equal(rule, &Meta::Iif, &index.to_ne_bytes()),
        Match::Oif(Device { index, .. }) => equal(rule, &Meta::Oif, &index.to_ne_bytes()),
        Match::Saddr(prefix) => in_prefix(rule, header.source, *prefix),
        Match::Daddr(address) => equal(rule, &network(header.destination, header.address), &octets(*address)),
        Match::DaddrLocal => equal(rule, &Expr::fib_daddr_type(), &u32::from(libc::RTN_LOCAL).to_ne_bytes()),
        // The check of the protocol itself, which the caller has added.
        Match::Tcp => {}
        Match::TcpSport(port) => equal(rule, &transport(0, 2), &port.to_be_bytes()),
        Match::TcpDport(port) => equal(rule, &transport(2, 2), &port.to_be_bytes()),
        Match::Length(bytes) => equal(rule, &network(header.length, 2), &bytes.to_be_bytes()),
        Match::DataOffset(words) => masked_equal(rule, &transport(12, 1), &[0xf0], &[words << 4]),
        Match::NoSynFinRst => {
            const FIN_SYN_RST: u8 = 0x07;
            masked_equal(rule, &transport(13, 1), &[FIN_SYN_RST], &[0]);
        }
        Match::Worker { client, index, workers } => add_worker(rule, header, *client, *index, *workers),
    }
}

fn add_statement(rule: &mut RuleMessage<'_>, statement: &Statement, queue: QueueKind) {
    match statement {
        Statement::Counter => rule.add_expr(&Counter),
        Statement::Dup { to, device } => {
            match to {
                IpAddr::V4(to) => rule.add_expr(&Immediate::new(to.octets(), CrateRegister::Reg1)),
                IpAddr::V6(to) => rule.add_expr(&Immediate::new(to.octets(), CrateRegister::Reg1)),
            }
            rule.add_expr(&Immediate::new(device.index.to_ne_bytes(), CrateRegister::Reg2));
            rule.add_expr(&Expr::dup());
        }
        Statement::Notrack => rule.add_expr(&Expr::notrack()),
        Statement::Queue(number) => rule.add_expr(&match queue {
            QueueKind::Native => Expr::queue(*number),
            QueueKind::Compat => Expr::nfqueue_target(*number),
        }),
        Statement::Return => rule.add_expr(&Verdict::Return),
        Statement::Accept => rule.add_expr(&Verdict::Accept),
        Statement::Drop => rule.add_expr(&Verdict::Drop),
    }
}

/// The client's address and, right behind it, its port padded to four bytes are hashed.
fn add_worker(rule: &mut RuleMessage<'_>, header: Header, client: End, index: u16, workers: u16) {
    let (address_offset, port_offset) = match client {
        End::Source => (header.source, 0),
        End::Destination => (header.destination, 2),
    };
    let behind_address = if header.address == 4 { Register::R2_SECOND_WORD } else { Register::R3 };
    rule.add_expr(&Expr::payload(Base::Network, address_offset, header.address, Register::R2));
    rule.add_expr(&Expr::payload(Base::Transport, port_offset, 2, behind_address));
    let hash = Expr::jhash(Register::R2, header.address + 4, workers.into(), SPLIT_SEED);
    equal(rule, &hash, &u32::from(index).to_ne_bytes());
}

fn in_prefix(rule: &mut RuleMessage<'_>, offset: u32, prefix: Prefix) {
    let address = octets(prefix.address());
    let whole_bytes = usize::from(prefix.length() / 8);
    let more_bits = prefix.length() % 8;
    if more_bits > 0 {
        let mut mask = vec![0xff; whole_bytes];
        mask.push(0xff << (8 - more_bits));
        mask.resize(address.len(), 0);
        let load = Expr::payload(Base::Network, offset, length(&address), Register::R1);
        masked_equal(rule, &load, &mask, &address);
    } else if let Some(shared) = address.get(..whole_bytes).filter(|shared| !shared.is_empty()) {
        equal(rule, &Expr::payload(Base::Network, offset, length(shared), Register::R1), shared);
    }
}

fn equal(rule: &mut RuleMessage<'_>, load: &impl nftnl::expr::Expression, value: &[u8]) {
    rule.add_expr(load);
    rule.add_expr(&Cmp::new(CmpOp::Eq, value));
}

fn masked_equal(rule: &mut RuleMessage<'_>, load: &Expr, mask: &[u8], value: &[u8]) {
    let no_flips = vec![0_u8; mask.len()];
    rule.add_expr(load);
    rule.add_expr(&Bitwise::new(mask, no_flips.as_slice()));
    rule.add_expr(&Cmp::new(CmpOp::Eq, value));
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn length(address: &[u8]) -> u32 {
    u32::try_from(address.len()).expect("an address has 16 bytes at most")
}

/// Where an IP header has what (RFC 791, RFC 8200).
#[derive(Clone, Copy)]
struct Header {
    length: u32,
    source: u32,
    destination: u32,
    /// Bytes in an address.
    address: u32,
}

impl Header {
    fn of(family: Family) -> Self {
        match family {
            Family::Ip => Self { length: 2, source: 12, destination: 16, address: 4 },
            Family::Ip6 => Self { length: 4, source: 8, destination: 24, address: 16 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Attributes, Content, Message};
    use super::*;

    /// An expression's name and attributes.
    type Parts = (String, Vec<(u16, Vec<u8>)>);

    /// The expressions of the only rule in a transaction.
    fn expressions(transaction: &Transaction) -> Vec<Parts> {
        const RULE_EXPRESSIONS: u16 = 4;
        let mut rest = transaction.bytes.as_slice();
        let mut found = Vec::new();
        while let Some((length, _)) = rest.split_first_chunk() {
            let (message, more) = rest.split_at(u32::from_ne_bytes(*length) as usize);
            rest = more;
            let content = Message::parse(message).and_then(|message| message.content());
            let Some(Content::Nftables { kind: libc::NFT_MSG_NEWRULE, attributes, .. }) = content else {
                continue;
            };
            for (_, expression) in attributes.nested(RULE_EXPRESSIONS).unwrap() {
                let expression = Attributes::new(expression);
                let name = String::from_utf8(expression.string(1).unwrap().to_vec()).unwrap();
                let data = expression.nested(2).unwrap().map(|(kind, value)| (kind, value.to_vec()));
                found.push((name, data.collect()));
            }
        }
        found
    }

    /// What nft 1.0.6 sends for `queue num 36520`, and the target its xtables cousin sends.
    #[test]
    fn both_ways_to_queue_name_the_queue() {
        let rule = Rule { matches: Vec::new(), statements: vec![Statement::Queue(36520)] };
        let chain = Chain { name: "c", hook: Hook::Output, priority: 0, rules: vec![rule] };
        let table = Table { family: Family::Ip, chains: vec![chain] };
        let ruleset = Ruleset { name: TableName::tcpcopy(), owner: true, tables: vec![table] };

        let native = expressions(&install(&ruleset, QueueKind::Native));
        let number = 36520_u16.to_be_bytes().to_vec();
        assert_eq!(native, [("queue".to_owned(), vec![(1, number), (2, vec![0, 1])])]);

        let compat = expressions(&install(&ruleset, QueueKind::Compat));
        let [low, high] = 36520_u16.to_ne_bytes();
        let [one, zero] = 1_u16.to_ne_bytes();
        let info = vec![low, high, one, zero, 0, 0, 0, 0];
        let attributes = vec![(1, b"NFQUEUE\0".to_vec()), (2, vec![0, 0, 0, 3]), (3, info)];
        assert_eq!(compat, [("target".to_owned(), attributes)]);
    }
}
