//! Netlink messages of nf_tables, read and asked for: `linux/netlink.h`, `linux/netfilter/nfnetlink.h`,
//! `linux/netfilter/nf_tables.h`.
//!
//! Everything the kernel sends is read with checked lengths; what does not parse is `None`, never a panic.

use crate::sys::nfset::Shape;

/// `NFTA_TABLE_NAME`, and what the name of the table is in messages about chains, sets and rules.
pub(super) const TABLE_NAME: u16 = 1;
/// `NFTA_TABLE_FLAGS`, big-endian.
pub(super) const TABLE_FLAGS: u16 = 2;
/// `NFTA_CHAIN_NAME`.
pub(super) const CHAIN_NAME: u16 = 3;
/// `NFTA_RULE_CHAIN`. In requests and answers about rules, attribute 1 is the table's name too.
pub(super) const RULE_CHAIN: u16 = 2;

/// `NFTA_SET_NAME`.
pub(super) const SET_NAME: u16 = 2;

/// One netlink message, header checked.
pub(super) struct Message<'a> {
    kind: u16,
    flags: u16,
    pub(super) sequence: u32,
    payload: &'a [u8],
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// An answer to a request: 0, or a negative errno.
    Answer(i32),
    /// The end of a dump.
    Done,
    /// A message of nf_tables.
    Nftables {
        /// `NFT_MSG_*`.
        kind: i32,
        /// `NFPROTO_*`.
        family: u8,
        /// Its attributes.
        attributes: Attributes<'a>,
    },
    /// Something else.
    Other,
}

impl<'a> Message<'a> {
    /// Reads the header (`struct nlmsghdr`).
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (_length, rest) = bytes.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (_port, payload) = rest.split_first_chunk::<4>()?;
        Some(Self {
            kind: u16::from_ne_bytes(*kind),
            flags: u16::from_ne_bytes(*flags),
            sequence: u32::from_ne_bytes(*sequence),
            payload,
        })
    }

    /// True if what is dumped changed while it was: the dump has to be asked for again.
    pub(super) fn is_interrupted_dump(&self) -> bool {
        i32::from(self.flags) & libc::NLM_F_DUMP_INTR != 0
    }

    /// Reads the rest, or `None` if it is too short for its kind.
    pub(super) fn content(&self) -> Option<Content<'a>> {
        let [subsystem, message] = self.kind.to_be_bytes();
        if i32::from(self.kind) == libc::NLMSG_ERROR {
            let (error, _request) = self.payload.split_first_chunk()?;
            return Some(Content::Answer(i32::from_ne_bytes(*error)));
        }
        if i32::from(self.kind) == libc::NLMSG_DONE {
            return Some(Content::Done);
        }
        if i32::from(subsystem) != libc::NFNL_SUBSYS_NFTABLES {
            return Some(Content::Other);
        }
        // struct nfgenmsg: family, version, resource id.
        let (&[family, _version, _, _], attributes) = self.payload.split_first_chunk()?;
        Some(Content::Nftables { kind: message.into(), family, attributes: Attributes(attributes) })
    }
}

/// Netlink attributes, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes in the value of another.
    pub(super) fn new(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// The value of the first attribute of that kind.
    pub(super) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The attributes nested in the first attribute of that kind.
    pub(super) fn nested(&self, kind: u16) -> Option<Self> {
        self.find(kind).map(Self::new)
    }

    /// The string in the first attribute of that kind, without its NUL.
    pub(super) fn string(&self, kind: u16) -> Option<&'a [u8]> {
        self.find(kind).and_then(|value| value.split(|byte| *byte == 0).next())
    }

    /// The big-endian number in the first attribute of that kind.
    pub(super) fn number<const BYTES: usize>(&self, kind: u16) -> Option<[u8; BYTES]> {
        self.find(kind).and_then(|value| value.try_into().ok())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        /// The upper two bits say nested and byte order.
        const KIND_MASK: u16 = 0x3fff;
        let (length, rest) = self.0.split_first_chunk()?;
        let (kind, _value) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & KIND_MASK, value))
    }
}

/// The expressions of a rule, each by its name and attributes.
pub(super) fn expressions<'a>(
    rule: &Attributes<'a>,
) -> impl Iterator<Item = (&'a [u8], Attributes<'a>)> + use<'a> {
    const RULE_EXPRESSIONS: u16 = 4;
    const EXPRESSION_NAME: u16 = 1;
    const EXPRESSION_DATA: u16 = 2;
    rule.nested(RULE_EXPRESSIONS).into_iter().flatten().filter_map(|(_element, expression)| {
        let expression = Attributes::new(expression);
        let data = expression.nested(EXPRESSION_DATA).unwrap_or_else(|| Attributes::new(&[]));
        Some((expression.string(EXPRESSION_NAME)?, data))
    })
}

/// True if the rule has an expression of that name.
pub(super) fn has_expression(rule: &Attributes<'_>, name: &[u8]) -> bool {
    expressions(rule).any(|(found, _)| found == name)
}

/// The counter of a rule, if it has one.
pub(super) fn rule_counter(rule: &Attributes<'_>) -> Option<Counters> {
    let (_, counter) = expressions(rule).find(|(name, _)| *name == b"counter")?;
    counter_values(&counter)
}

/// The counter of a set's element, if it has one.
pub(super) fn element_counter(element: &Attributes<'_>) -> Option<Counters> {
    const ELEMENT_EXPRESSION: u16 = 7;
    const EXPRESSION_DATA: u16 = 2;
    counter_values(&element.nested(ELEMENT_EXPRESSION)?.nested(EXPRESSION_DATA)?)
}

fn counter_values(counter: &Attributes<'_>) -> Option<Counters> {
    const COUNTER_BYTES: u16 = 1;
    const COUNTER_PACKETS: u16 = 2;
    let packets = u64::from_be_bytes(counter.number(COUNTER_PACKETS)?);
    let bytes = u64::from_be_bytes(counter.number(COUNTER_BYTES)?);
    Some(Counters { packets, bytes })
}

/// What a set is like. What is not said is 0: the kernel says only what was asked for.
pub(super) fn set_shape(set: &Attributes<'_>) -> Shape {
    const SET_FLAGS: u16 = 3;
    const SET_KEY_TYPE: u16 = 4;
    const SET_KEY_LENGTH: u16 = 5;
    const SET_DESCRIPTION: u16 = 9;
    const SET_TIMEOUT: u16 = 11;
    const DESCRIPTION_SIZE: u16 = 1;
    let number = |kind| set.number(kind).map_or(0, u32::from_be_bytes);
    let description = set.nested(SET_DESCRIPTION);
    Shape {
        flags: number(SET_FLAGS),
        key_type: number(SET_KEY_TYPE),
        key_length: number(SET_KEY_LENGTH),
        size: description.and_then(|of| of.number(DESCRIPTION_SIZE)).map_or(0, u32::from_be_bytes),
        timeout_ms: set.number(SET_TIMEOUT).map_or(0, u64::from_be_bytes),
    }
}

/// What the rules counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

impl Counters {
    pub(super) fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What the rules of an online host counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Captured {
    /// Packets that were duplicated.
    pub duplicated: Counters,
    /// Packets that were not, because they came faster than the greatest rate.
    pub over_limit: Counters,
}

/// A request to nf_tables: `NFT_MSG_GET*` for what `family` (`NFPROTO_*`) has, with names as attributes.
pub(super) fn request(
    kind: i32,
    flags: i32,
    sequence: u32,
    family: u8,
    attributes: &[(u16, &str)],
) -> Vec<u8> {
    const HEADERS: usize = 20;
    let attribute_length = |text: &str| 4 + text.len() + 1;
    let padded = |(_, text): &(u16, &str)| attribute_length(text).next_multiple_of(4);
    let length = HEADERS + attributes.iter().map(padded).sum::<usize>();
    let kind = libc::NFNL_SUBSYS_NFTABLES << 8 | kind;
    let narrow = |number: i32| u16::try_from(number).expect("netlink kinds and flags have 16 bits");
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).expect("a request is short").to_ne_bytes());
    bytes.extend(narrow(kind).to_ne_bytes());
    bytes.extend(narrow(libc::NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, 0, 0, 0]);
    for (kind, text) in attributes {
        bytes.extend(u16::try_from(attribute_length(text)).expect("names are short").to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back() {
        let bytes = request(libc::NFT_MSG_GETTABLE, libc::NLM_F_ACK, 7, 2, &[(TABLE_NAME, "tcpcopy")]);
        assert_eq!(bytes.len(), 32);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.sequence, 7);
        let Some(Content::Nftables { kind, family, attributes }) = message.content() else {
            panic!("not of nf_tables");
        };
        assert_eq!((kind, family), (libc::NFT_MSG_GETTABLE, 2));
        assert_eq!(attributes.string(TABLE_NAME), Some(&b"tcpcopy"[..]));
        assert_eq!(attributes.string(RULE_CHAIN), None);
    }

    #[test]
    fn short_or_lying_messages_are_refused() {
        let bytes = request(libc::NFT_MSG_GETTABLE, 0, 7, 2, &[(TABLE_NAME, "tcpcopy")]);
        for length in 0..20 {
            let cut = &bytes[..length];
            assert!(Message::parse(cut).is_none_or(|message| message.content().is_none()), "{length}");
        }
        // An attribute that says it is longer than the message, and ones shorter than their own header.
        for length in [200_u16, 3, 0] {
            let mut lying = bytes.clone();
            lying[20..22].copy_from_slice(&length.to_ne_bytes());
            let Some(Content::Nftables { attributes, .. }) = Message::parse(&lying).unwrap().content() else {
                panic!("not of nf_tables");
            };
            assert_eq!(attributes.count(), 0, "{length}");
        }
    }

    #[test]
    fn the_counter_of_a_rule_is_found() {
        fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
            let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        }
        let data = [attribute(1, &300_u64.to_be_bytes()), attribute(2, &3_u64.to_be_bytes())].concat();
        let counter = [attribute(1, b"counter\0"), attribute(2, &data)].concat();
        let other = attribute(1, b"cmp\0");
        let rule = attribute(4, &[attribute(1, &other), attribute(1, &counter)].concat());
        assert_eq!(rule_counter(&Attributes(&rule)), Some(Counters { packets: 3, bytes: 300 }));
        assert_eq!(rule_counter(&Attributes(&attribute(4, &attribute(1, &other)))), None);
    }
}
