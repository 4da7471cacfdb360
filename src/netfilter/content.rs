//! What chains and rules consist of, in one form for what a batch says and for what the kernel reports.
//!
//! Two rules have the same content if they treat every packet alike as far as can be seen from their expressions.
//! Differences of encoding that mean the same are removed:
//!
//! - An attribute of zeros equals one that is absent: the kernel reports defaults that were not sent, and leaves out some
//!   that were. An unknown attribute that is not zero is a difference.
//! - Comparisons of header bytes with constants are kept by byte, so that it does not matter how loads are merged and in
//!   which order neighbouring ones come.
//! - A queue is the same by the native expression and by the xtables target.
//! - The values of counters, and the numbers by which a batch refers to its own sets, do not count.

use std::collections::BTreeMap;

use super::batch::Transaction;
use super::message::{self, Attributes, Content, Message};
use super::ruleset::Family;

/// The content of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RuleContent(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Bytes of headers, by base and offset: of each a mask, and the value that the masked byte must have.
    Header(BTreeMap<(u32, u32), (u8, u8)>),
    /// Packets are queued, without bypass.
    Queue(u16),
    /// Any other expression.
    Expression(Expression),
}

/// An expression: its name, and its attributes by the numbers of those they are nested in and their own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expression {
    name: Vec<u8>,
    attributes: BTreeMap<Vec<u16>, Vec<u8>>,
}

/// Type, hook, priority, policy and flags of a chain; empty for a regular one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ChainContent(BTreeMap<Vec<u16>, Vec<u8>>);

/// A chain with its rules in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ChainRules {
    pub(super) chain: ChainContent,
    pub(super) rules: Vec<RuleContent>,
}

/// The chains of a family in a transaction, by name.
pub(super) fn sent(transaction: &Transaction, of: Family) -> BTreeMap<Vec<u8>, ChainRules> {
    let mut chains: BTreeMap<Vec<u8>, ChainRules> = BTreeMap::new();
    let mut rest = transaction.bytes.as_slice();
    while let Some((length, _)) = rest.split_first_chunk() {
        let length = u32::from_ne_bytes(*length) as usize;
        let (Some(bytes), Some(more)) = (rest.get(..length), rest.get(length.max(1)..)) else { break };
        rest = more;
        let content = Message::parse(bytes).and_then(|message| message.content());
        let Some(Content::Nftables { kind, family, attributes }) = content else { continue };
        if family == of.protocol() {
            add(&mut chains, kind, &attributes);
        }
    }
    chains
}

/// Adds what a message says about a chain (`NFT_MSG_NEWCHAIN`) or a rule (`NFT_MSG_NEWRULE`) to the chains of a table.
pub(super) fn add(chains: &mut BTreeMap<Vec<u8>, ChainRules>, kind: i32, attributes: &Attributes<'_>) {
    match kind {
        libc::NFT_MSG_NEWCHAIN => {
            if let Some(name) = attributes.string(message::CHAIN_NAME) {
                chains.entry(name.to_vec()).or_default().chain = ChainContent::read(attributes);
            }
        }
        libc::NFT_MSG_NEWRULE => {
            if let Some(name) = attributes.string(message::RULE_CHAIN) {
                chains.entry(name.to_vec()).or_default().rules.push(RuleContent::read(attributes));
            }
        }
        _ => {}
    }
}

impl ChainContent {
    fn read(attributes: &Attributes<'_>) -> Self {
        const HOOK: u16 = 4;
        const POLICY: u16 = 5;
        const TYPE: u16 = 7;
        let mut found = BTreeMap::new();
        for (kind, value) in attributes.clone() {
            match kind {
                HOOK => found
                    .extend(Attributes::new(value).map(|(inner, value)| (vec![kind, inner], value.to_vec()))),
                POLICY | TYPE => {
                    found.insert(vec![kind], value.to_vec());
                }
                // The flags follow from the hook; handle, use count and the like are not content.
                _ => {}
            }
        }
        Self(found)
    }
}

impl RuleContent {
    fn read(rule: &Attributes<'_>) -> Self {
        const RULE_EXPRESSIONS: u16 = 4;
        let list = rule.nested(RULE_EXPRESSIONS).into_iter().flatten();
        let expressions: Vec<_> = list.filter_map(|(_, expression)| Expression::read(expression)).collect();
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = expressions.as_slice();
        while let Some((first, others)) = rest.split_first() {
            if let Some((bytes, more)) = compared_bytes(rest) {
                match parts.last_mut() {
                    // A byte that is compared twice keeps both comparisons.
                    Some(Part::Header(before)) if bytes.keys().all(|byte| !before.contains_key(byte)) => {
                        before.extend(bytes);
                    }
                    _ => parts.push(Part::Header(bytes)),
                }
                rest = more;
            } else {
                parts.push(first.queue().map_or_else(|| Part::Expression(first.clone()), Part::Queue));
                rest = others;
            }
        }
        Self(parts)
    }
}

impl Expression {
    fn read(expression: &[u8]) -> Option<Self> {
        const NAME: u16 = 1;
        const DATA: u16 = 2;
        let expression = Attributes::new(expression);
        let name = expression.string(NAME)?.to_vec();
        let mut attributes = BTreeMap::new();
        for (kind, value) in expression.nested(DATA).into_iter().flatten() {
            if counts(&name, kind, value) {
                flatten(&name, vec![kind], value, &mut attributes);
            }
        }
        Some(Self { name, attributes })
    }

    fn is(&self, name: &[u8]) -> bool {
        self.name == name
    }

    /// The big-endian number in an attribute, 0 if it is absent.
    fn number(&self, kind: u16) -> u32 {
        let value = self.attributes.get(&[kind][..]);
        value.and_then(|value| value.as_slice().try_into().ok()).map_or(0, u32::from_be_bytes)
    }

    /// The data in an attribute.
    fn data(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.get(&[kind, DATA_VALUE][..]).map(Vec::as_slice)
    }

    /// The number of the one queue, if this queues packets without any condition.
    fn queue(&self) -> Option<u16> {
        match self.name.as_slice() {
            b"queue" => {
                const NUMBER: u16 = 1;
                const TOTAL: u16 = 2;
                let number = |kind| self.attributes.get(&[kind][..]).map_or(&[0, 0][..], Vec::as_slice);
                let plain = self.attributes.keys().all(|path| matches!(path.as_slice(), [NUMBER | TOTAL]));
                let number_of_one = number(NUMBER).try_into().ok().filter(|_| number(TOTAL) == [0, 1]);
                number_of_one.filter(|_| plain).map(u16::from_be_bytes)
            }
            b"target" => {
                const NAME: u16 = 1;
                const INFO: u16 = 3;
                if self.attributes.get(&[NAME][..]).map(Vec::as_slice) != Some(b"NFQUEUE\0") {
                    return None;
                }
                // struct xt_NFQ_info_v3 { u16 queuenum, queues_total, flags }, padded.
                let (number, rest) = self.attributes.get(&[INFO][..])?.split_first_chunk()?;
                let (total, flags) = rest.split_first_chunk()?;
                let one = u16::from_ne_bytes(*total) == 1 && flags.iter().all(|byte| *byte == 0);
                one.then(|| u16::from_ne_bytes(*number))
            }
            _ => None,
        }
    }
}

/// `NFTA_DATA_VALUE`, in what holds data.
const DATA_VALUE: u16 = 1;

/// Whether an attribute has a part in what the expression does.
fn counts(name: &[u8], kind: u16, value: &[u8]) -> bool {
    const LOOKUP_SET_ID: u16 = 4;
    const DYNSET_SET_ID: u16 = 2;
    match (name, kind) {
        (b"counter", _) | (b"lookup", LOOKUP_SET_ID) | (b"dynset", DYNSET_SET_ID) => false,
        _ => value.iter().any(|byte| *byte != 0) || is_nested(name, kind),
    }
}

/// Whether an attribute holds others.
fn is_nested(name: &[u8], kind: u16) -> bool {
    matches!(
        (name, kind),
        // NFTA_CMP_DATA, NFTA_IMMEDIATE_DATA, NFTA_BITWISE_MASK, _XOR and _DATA.
        (b"cmp", 3) | (b"immediate", 2) | (b"bitwise", 4 | 5 | 7)
        // NFTA_DYNSET_EXPR and _EXPRESSIONS.
        | (b"dynset", 7 | 10)
    )
}

/// Adds an attribute, or those nested in it, under their path.
fn flatten(name: &[u8], path: Vec<u16>, value: &[u8], into: &mut BTreeMap<Vec<u16>, Vec<u8>>) {
    const IMMEDIATE_DATA: u16 = 2;
    const DATA_VERDICT: u16 = 2;
    const DYNSET_EXPR: u16 = 7;
    const EXPRESSION_DATA: u16 = 2;
    let nested = match (name, path.as_slice()) {
        // What an element counts is a counter: its values do not matter.
        (b"dynset", [DYNSET_EXPR, EXPRESSION_DATA]) => return,
        (_, [kind]) => is_nested(name, *kind),
        (b"immediate", [IMMEDIATE_DATA, DATA_VERDICT]) => true,
        _ => false,
    };
    if !nested {
        into.insert(path, value.to_vec());
        return;
    }
    for (kind, value) in Attributes::new(value) {
        flatten(name, [path.as_slice(), &[kind]].concat(), value, into);
    }
}

type Bytes = BTreeMap<(u32, u32), (u8, u8)>;

/// The header bytes that the first expressions compare with constants, and the expressions behind those.
fn compared_bytes(expressions: &[Expression]) -> Option<(Bytes, &[Expression])> {
    const DREG: u16 = 1;
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const LENGTH: u16 = 4;
    let (load, rest) = expressions.split_first().filter(|(load, _)| load.is(b"payload"))?;
    let (register, length) = (load.number(DREG), load.number(LENGTH) as usize);
    let (mask, rest) = match rest.split_first() {
        Some((bitwise, rest)) if bitwise.is(b"bitwise") => (plain_mask(bitwise, register)?.to_vec(), rest),
        _ => (vec![0xff; length], rest),
    };
    let (compare, rest) = rest.split_first().filter(|(compare, _)| compare.is(b"cmp"))?;
    let value = equal_to(compare, register)?;
    if load.attributes.len() > 4 || mask.len() != length || value.len() != length {
        return None;
    }
    let places = (load.number(OFFSET)..).map(|offset| (load.number(BASE), offset));
    let bytes = places.zip(mask.into_iter().zip(value.iter().copied()));
    Some((bytes.collect(), rest))
}

/// The mask, if the expression does nothing but mask a register in place.
fn plain_mask(bitwise: &Expression, register: u32) -> Option<&[u8]> {
    const SREG: u16 = 1;
    const DREG: u16 = 2;
    const MASK: u16 = 4;
    const XOR: u16 = 5;
    const OP: u16 = 6;
    let in_place = bitwise.number(SREG) == register && bitwise.number(DREG) == register;
    let flips_none = bitwise.data(XOR).is_none_or(|flips| flips.iter().all(|byte| *byte == 0));
    bitwise.data(MASK).filter(|_| in_place && flips_none && bitwise.number(OP) == 0)
}

/// The constant, if the expression compares a register with it for equality.
fn equal_to(compare: &Expression, register: u32) -> Option<&[u8]> {
    const SREG: u16 = 1;
    const OP: u16 = 2;
    const DATA: u16 = 3;
    const EQUAL: u32 = 0;
    let equal = compare.number(SREG) == register && compare.number(OP) == EQUAL;
    compare.data(DATA).filter(|_| equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A rule of one expression.
    fn rule(name: &str, data: &[Vec<u8>]) -> RuleContent {
        let name = attribute(1, format!("{name}\0").as_bytes());
        let expression = [name, attribute(2, &data.concat())].concat();
        RuleContent::read(&Attributes::new(&attribute(4, &attribute(1, &expression))))
    }

    fn queue(number: u16, total: u16, flags: u16) -> RuleContent {
        let numbers = [(1, number), (2, total), (3, flags)];
        rule("queue", &numbers.map(|(kind, value)| attribute(kind, &value.to_be_bytes())))
    }

    fn target(number: u16, total: u16, flags: u16) -> RuleContent {
        let info: Vec<u8> = [number, total, flags, 0].into_iter().flat_map(u16::to_ne_bytes).collect();
        rule("target", &[attribute(1, b"NFQUEUE\0"), attribute(2, &3_u32.to_be_bytes()), attribute(3, &info)])
    }

    #[test]
    fn a_queue_is_the_same_by_both_ways_and_another_one_with_bypass() {
        let plain = rule("queue", &[attribute(1, &7_u16.to_be_bytes()), attribute(2, &1_u16.to_be_bytes())]);
        assert_eq!(plain, queue(7, 1, 0), "the kernel reports flags of zero");
        assert_eq!(plain, target(7, 1, 0));
        for other in [
            queue(8, 1, 0),
            queue(7, 2, 0),
            queue(7, 1, 1),
            target(8, 1, 0),
            target(7, 2, 0),
            target(7, 1, 1),
        ] {
            assert_ne!(plain, other);
        }
    }

    #[test]
    fn an_unknown_attribute_counts_unless_it_is_zero() {
        let base = [attribute(1, &1_u32.to_be_bytes())];
        let with = |value: u32| [base.as_slice(), &[attribute(9, &value.to_be_bytes())]].concat();
        assert_eq!(rule("meta", &base), rule("meta", &with(0)));
        assert_ne!(rule("meta", &base), rule("meta", &with(1)));
        assert_ne!(rule("meta", &base), rule("socket", &base));
    }
}
