//! The ruleset as one netlink batch: the kernel takes all of it or nothing.
//!
//! A table that exists is replaced: add without flags (so that the removal that follows cannot miss), remove, add
//! with flags.

use std::ffi::CString;

use nftnl::{Batch, Chain as ChainMessage, ChainType, MsgType, Policy, ProtoFamily, Table as TableReference};

use super::encode::{QueueKind, encode};
use super::ruleset::{Chain, Family, Hook, Match, Rule, Ruleset, Set, SetKey, Statement, Table, TableName};
use crate::sys::nfnl::TableMessage;
use crate::sys::nfset::{SetMessage, Shape};

/// `NFT_TABLE_F_OWNER` of `linux/netfilter/nf_tables.h` (Linux 5.12).
pub(super) const TABLE_OWNER: u32 = 2;

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
    /// A set is added.
    Set(&'static str),
    /// A rule is added: its text, the kernel options it needs, and whether it uses a set.
    Rule { text: String, options: Vec<&'static str>, uses_set: bool },
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

impl Transaction {
    /// What the message with a sequence number is about; `None` if that is the transaction as a whole.
    pub(super) fn object(&self, sequence: u32) -> Option<&(Family, Object)> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.objects.get(index)
    }
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
    writer.table(&Table { family, sets: Vec::new(), chains: vec![chain] }, false, queue);
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
        // A rule can name only sets that are there.
        for set in &table.sets {
            self.set(family, set);
        }
        for chain in &table.chains {
            self.chain(&reference, family, chain, queue);
        }
    }

    fn table_message(&mut self, family: Family, flags: Option<u32>, kind: MsgType, object: Object) {
        let message = TableMessage::new(&self.name.to_c_string(), protocol(family), flags);
        self.batch.add(&message, kind);
        self.objects.push((family, object));
    }

    fn set(&mut self, family: Family, set: &Set) {
        let name = CString::new(set.name).expect("names of sets are literals without NUL");
        let message = SetMessage::new(&self.name.to_c_string(), protocol(family), &name, &shape(family, set));
        self.batch.add(&message, MsgType::Add);
        self.objects.push((family, Object::Set(set.name)));
    }

    fn chain(&mut self, table: &TableReference, family: Family, chain: &Chain, queue: QueueKind) {
        let name = CString::new(chain.name).expect("chain names are literals without NUL");
        let mut message = ChainMessage::new(name, table);
        let hook = match chain.hook {
            Hook::Prerouting => Some(nftnl::Hook::PreRouting),
            Hook::Forward => Some(nftnl::Hook::Forward),
            Hook::Output => Some(nftnl::Hook::Out),
            Hook::None => None,
        };
        if let Some(hook) = hook {
            message.set_hook(hook, chain.priority);
            message.set_type(ChainType::Filter);
            message.set_policy(Policy::Accept);
        }
        self.batch.add(&message, MsgType::Add);
        self.objects.push((family, Object::Chain(chain.name)));
        for rule in &chain.rules {
            self.batch.add(&encode(&message, family, rule, queue), MsgType::Add);
            let text = rule.in_family(family).to_string();
            let options = kernel_options(rule, family, queue);
            self.objects.push((family, Object::Rule { text, options, uses_set: rule.uses_set() }));
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
        Match::DaddrLocal | Match::DaddrBroadcast => Some(by_family("NFT_FIB_IPV4", "NFT_FIB_IPV6")),
        Match::Worker { .. } | Match::OutsideShare { .. } => Some("NFT_HASH"),
        Match::Mark(_)
        | Match::Iif(_)
        | Match::Oif(_)
        | Match::FromSocket
        | Match::Saddr(_)
        | Match::Daddr(_)
        | Match::Tcp
        | Match::TcpSport(_)
        | Match::TcpDport(_)
        | Match::TcpDports(_)
        | Match::Length(_)
        | Match::LengthAtMost(_)
        | Match::DataOffset(_)
        | Match::NoSynFinRst
        | Match::SynAlone
        | Match::IcmpTypes(_)
        | Match::QuotedTcpTo(_)
        | Match::QuotedTcpWithOptionsTo(_)
        | Match::L4Proto(_)
        | Match::Sports(_)
        | Match::Dports(_)
        | Match::Fragment
        | Match::NotFragment
        | Match::HopLimit(_)
        | Match::NotIn { .. } => None,
    };
    let of_statement = |statement: &Statement| match statement {
        Statement::Dup { .. } => Some(by_family("NFT_DUP_IPV4", "NFT_DUP_IPV6")),
        Statement::Notrack => Some("NFT_CT"),
        Statement::Queue(_) => Some(match queue {
            QueueKind::Native => "NFT_QUEUE",
            QueueKind::Compat => "NETFILTER_XT_TARGET_NFQUEUE",
        }),
        Statement::LimitOver(_) => Some("NFT_LIMIT"),
        Statement::Counter
        | Statement::Goto(_)
        | Statement::Jump(_)
        | Statement::SetMark(_)
        | Statement::Count { .. }
        | Statement::Add { .. }
        | Statement::Delete { .. }
        | Statement::Return
        | Statement::Accept
        | Statement::Drop => None,
    };
    let matches = rule.matches.iter().filter_map(of_match);
    matches.chain(rule.statements.iter().filter_map(of_statement)).collect()
}

/// What the kernel has to know about a set, and says when asked.
pub(super) fn shape(family: Family, set: &Set) -> Shape {
    // Types and, in bytes of registers, lengths of the parts.
    let address = match family {
        Family::Ip => (IPV4_ADDRESS, 4),
        Family::Ip6 => (IPV6_ADDRESS, 16),
    };
    let parts = match set.key {
        SetKey::Client => &[address, (PORT, 4)][..],
        SetKey::Ports => &[(PROTOCOL, 4), (PORT, 4), (PORT, 4)],
        SetKey::Protocol => &[(PROTOCOL, 1)],
    };
    Shape {
        flags: (libc::NFT_SET_TIMEOUT | libc::NFT_SET_EVAL).cast_unsigned(),
        key_type: parts.iter().fold(0, |whole, (part, _)| whole << TYPE_BITS | part),
        key_length: parts.iter().map(|(_, length)| length).sum(),
        size: set.size,
        timeout_ms: u64::try_from(set.timeout.as_millis()).unwrap_or(u64::MAX),
    }
}

// nft's numbers of data types (`enum datatypes` of its `include/datatype.h`). The kernel keeps them for those who list
// the set, and a concatenation is one number, six bits a part.
const IPV4_ADDRESS: u32 = 7;
const IPV6_ADDRESS: u32 = 8;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;
const TYPE_BITS: u32 = 6;

fn protocol(family: Family) -> ProtoFamily {
    match family {
        Family::Ip => ProtoFamily::Ipv4,
        Family::Ip6 => ProtoFamily::Ipv6,
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
        let table = Table { family: Family::Ip, sets: Vec::new(), chains: vec![chain] };
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
