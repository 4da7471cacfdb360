//! Where the kernel's rules lead connections elsewhere: destination NAT and redirects, of any table.
//!
//! Only what bears on the question "may this packet end up there?" is read: destination address, TCP destination port, hook,
//! and the new destination. A condition that is not understood is taken to hold, so that a doubt never hides a rule. A
//! destination that is not written in the rule itself (a map, a variable) cannot be read and is left out; so are rules of
//! iptables-legacy, which nf_tables does not show.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::link::{Link, undisturbed};
use super::message::{self, Attributes};
use super::xtables;

/// Where connections are led to another destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirection {
    /// Which connections: those that come in, or those that this host makes.
    pub direction: Direction,
    /// The destinations that are led elsewhere: bits, and which of them count; `None` for all.
    pub daddr: Option<(IpAddr, IpAddr)>,
    /// The ports that are led elsewhere.
    pub ports: RangeInclusive<u16>,
    /// The address they are led to.
    pub to: NewAddress,
    /// The port they are led to, unless it stays.
    pub to_port: Option<u16>,
    /// Where the rule is, for people.
    pub place: String,
}

/// Which connections a rule sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Those that come in.
    In,
    /// Those that this host makes.
    Out,
    /// Perhaps both: the rule's chain is called by others.
    Both,
}

/// The address that a rule leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewAddress {
    /// The same as before.
    Same,
    /// One of this host.
    ThisHost,
    /// This one, the first if there are several.
    Address(IpAddr),
}

/// All redirections that are in force in the calling thread's network namespace.
pub fn redirections() -> io::Result<Vec<Redirection>> {
    let mut link = Link::open()?;
    undisturbed(|| {
        let mut hooks = HashMap::new();
        link.dump_all(libc::NFT_MSG_GETCHAIN, &mut |family, chain| {
            if let Some((key, hook)) = base_chain(family, &chain) {
                hooks.insert(key, hook);
            }
        })?;
        let mut found = Vec::new();
        link.dump_all(libc::NFT_MSG_GETRULE, &mut |family, rule| {
            let Some(key) = chain_of(family, &rule, message::RULE_CHAIN) else { return };
            let direction = match hooks.get(&key).copied() {
                None => Direction::Both,
                Some(libc::NF_INET_PRE_ROUTING) => Direction::In,
                Some(libc::NF_INET_LOCAL_OUT) => Direction::Out,
                // Destinations are not changed elsewhere.
                Some(_) => return,
            };
            found.extend(read(&rule).map(|new| new.redirection(direction, &key)));
        })?;
        Ok(found)
    })
}

/// A chain by family, table and name.
type ChainKey = (u8, String, String);

fn chain_of(family: u8, object: &Attributes<'_>, name: u16) -> Option<ChainKey> {
    let text = |kind| Some(String::from_utf8_lossy(object.string(kind)?).into_owned());
    Some((family, text(message::TABLE_NAME)?, text(name)?))
}

/// The hook of a base chain.
fn base_chain(family: u8, chain: &Attributes<'_>) -> Option<(ChainKey, i32)> {
    const CHAIN_HOOK: u16 = 4;
    const HOOK_NUMBER: u16 = 1;
    let number = chain.nested(CHAIN_HOOK)?.number(HOOK_NUMBER).map(u32::from_be_bytes)?;
    Some((chain_of(family, chain, message::CHAIN_NAME)?, i32::try_from(number).ok()?))
}

/// What a rule that leads elsewhere says.
struct New {
    daddr: Option<(IpAddr, IpAddr)>,
    ports: RangeInclusive<u16>,
    to: NewAddress,
    to_port: Option<u16>,
}

impl New {
    fn redirection(self, direction: Direction, (_, table, chain): &ChainKey) -> Redirection {
        let Self { daddr, ports, to, to_port } = self;
        let place = format!("table {table}, chain {chain}");
        Redirection { direction, daddr, ports, to, to_port, place }
    }
}

/// What is in a register.
#[derive(Clone, PartialEq, Eq)]
enum Value {
    /// A field of the packet, and the bits of it that count.
    Field(Field, Option<Vec<u8>>),
    Constant(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Protocol,
    DestinationV4,
    DestinationV6,
    Port,
}

/// Evaluates a rule; `None` if it leads nowhere else, or no TCP.
fn read(rule: &Attributes<'_>) -> Option<New> {
    let mut registers: HashMap<u32, Value> = HashMap::new();
    let mut new = New { daddr: None, ports: 0..=u16::MAX, to: NewAddress::Same, to_port: None };
    for (name, data) in message::expressions(rule) {
        match name {
            b"payload" => load(&mut registers, &data, 1, payload_field(&data)),
            b"meta" => load(&mut registers, &data, 1, meta_field(&data)),
            b"immediate" => {
                let constant = data.nested(2).and_then(|data| data.find(1));
                set(&mut registers, &data, 1, constant.map(|bytes| Value::Constant(bytes.to_vec())));
            }
            b"bitwise" => mask(&mut registers, &data),
            b"lookup" => set(&mut registers, &data, 3, None),
            b"cmp" => compare(&registers, &data, &mut new)?,
            b"range" => range(&registers, &data, &mut new),
            b"match" => xtables::narrow(&data, &mut new.ports)?,
            b"nat" => return nat(&registers, &data, new),
            b"redir" => {
                new.to = NewAddress::ThisHost;
                new.to_port = register(&data, 1).and_then(|from| port(&registers, from));
                return Some(new);
            }
            b"target" => {
                (new.to, new.to_port) = xtables::destination(&data)?;
                return Some(new);
            }
            _ => {}
        }
    }
    None
}

/// The number of a register as words of four bytes: `NFT_REG_1` to 4 have 16 bytes each, `NFT_REG32_*` four.
fn register(data: &Attributes<'_>, kind: u16) -> Option<u32> {
    let number = data.number(kind).map(u32::from_be_bytes)?;
    let first_word = libc::NFT_REG32_00.cast_unsigned();
    if number >= first_word { Some(number - first_word) } else { number.checked_sub(1).map(|n| n * 4) }
}

fn set(registers: &mut HashMap<u32, Value>, data: &Attributes<'_>, kind: u16, value: Option<Value>) {
    let Some(register) = register(data, kind) else { return };
    match value {
        Some(value) => drop(registers.insert(register, value)),
        None => drop(registers.remove(&register)),
    }
}

fn load(registers: &mut HashMap<u32, Value>, data: &Attributes<'_>, kind: u16, field: Option<Field>) {
    set(registers, data, kind, field.map(|field| Value::Field(field, None)));
}

fn payload_field(data: &Attributes<'_>) -> Option<Field> {
    let number = |kind| data.number(kind).map(u32::from_be_bytes);
    let base = i32::try_from(number(2)?).ok()?;
    match (base, number(3)?, number(4)?) {
        (libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2) => Some(Field::Port),
        // The protocol of IPv4 and IPv6; the address, of which a prefix may be loaded.
        (libc::NFT_PAYLOAD_NETWORK_HEADER, 9 | 6, 1) => Some(Field::Protocol),
        (libc::NFT_PAYLOAD_NETWORK_HEADER, 16, 1..=4) => Some(Field::DestinationV4),
        (libc::NFT_PAYLOAD_NETWORK_HEADER, 24, 1..=16) => Some(Field::DestinationV6),
        _ => None,
    }
}

fn meta_field(data: &Attributes<'_>) -> Option<Field> {
    let key = data.number(2).map(u32::from_be_bytes)?;
    (key == libc::NFT_META_L4PROTO.cast_unsigned()).then_some(Field::Protocol)
}

/// `bitwise`: a field of which some bits count. XOR is not looked at: what it changes is compared as it is.
fn mask(registers: &mut HashMap<u32, Value>, data: &Attributes<'_>) {
    let from = register(data, 1).and_then(|from| registers.get(&from).cloned());
    let bits = data.nested(4).and_then(|data| data.find(1)).map(<[u8]>::to_vec);
    let masked = match from {
        Some(Value::Field(field @ (Field::DestinationV4 | Field::DestinationV6), None)) => {
            Some(Value::Field(field, bits))
        }
        Some(_) | None => None,
    };
    set(registers, data, 2, masked);
}

/// Takes a comparison in; `None` if no TCP packet meets it.
fn compare(registers: &HashMap<u32, Value>, data: &Attributes<'_>, new: &mut New) -> Option<()> {
    const TCP: u8 = 6;
    let Some(Value::Field(field, bits)) = register(data, 1).and_then(|from| registers.get(&from)) else {
        return Some(());
    };
    let Some(operation) = data.number(2).map(u32::from_be_bytes) else { return Some(()) };
    let Some(value) = data.nested(3).and_then(|data| data.find(1)) else { return Some(()) };
    let equal = operation == libc::NFT_CMP_EQ.cast_unsigned();
    match field {
        Field::Protocol => (!equal || value == [TCP]).then_some(()),
        Field::DestinationV4 | Field::DestinationV6 if equal => {
            new.daddr = masked_address(*field == Field::DestinationV4, value, bits.as_deref());
            Some(())
        }
        Field::DestinationV4 | Field::DestinationV6 => Some(()),
        Field::Port => {
            let port = u16::from_be_bytes(value.try_into().ok()?);
            let (first, last) = new.ports.clone().into_inner();
            new.ports = match i32::try_from(operation).unwrap_or_default() {
                libc::NFT_CMP_EQ => port..=port,
                libc::NFT_CMP_LT => first..=port.saturating_sub(1),
                libc::NFT_CMP_LTE => first..=port,
                libc::NFT_CMP_GT => port.saturating_add(1)..=last,
                libc::NFT_CMP_GTE => port..=last,
                _ => first..=last,
            };
            Some(())
        }
    }
}

/// `range`: first and last port. What is outside a range is not told apart from what is inside.
fn range(registers: &HashMap<u32, Value>, data: &Attributes<'_>, new: &mut New) {
    const FROM: u16 = 3;
    const TO: u16 = 4;
    let bound = |kind| {
        let bytes = data.nested(kind)?.find(1)?;
        bytes.try_into().ok().map(u16::from_be_bytes)
    };
    let equal = data.number(2).map(u32::from_be_bytes) == Some(libc::NFT_RANGE_EQ.cast_unsigned());
    if let Some(Value::Field(Field::Port, _)) = register(data, 1).and_then(|from| registers.get(&from))
        && equal
        && let (Some(first), Some(last)) = (bound(FROM), bound(TO))
    {
        new.ports = first..=last;
    }
}

/// An address whose first bytes are these, and the bits of it that count. A prefix of whole bytes is loaded and compared
/// without the rest.
fn masked_address(v4: bool, value: &[u8], bits: Option<&[u8]>) -> Option<(IpAddr, IpAddr)> {
    let bits = bits.map_or_else(|| vec![0xff; value.len()], <[u8]>::to_vec);
    let of = |bytes: &[u8]| {
        if v4 {
            IpAddr::from(Ipv4Addr::from(padded::<4>(bytes)))
        } else {
            IpAddr::from(Ipv6Addr::from(padded::<16>(bytes)))
        }
    };
    (value.len() <= if v4 { 4 } else { 16 }).then(|| (of(value), of(&bits)))
}

fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut whole = [0; N];
    whole.iter_mut().zip(bytes).for_each(|(room, byte)| *room = *byte);
    whole
}

fn nat(registers: &HashMap<u32, Value>, data: &Attributes<'_>, mut new: New) -> Option<New> {
    const NAT_TYPE: u16 = 1;
    const ADDRESS: u16 = 3;
    const PORT: u16 = 5;
    if data.number(NAT_TYPE).map(u32::from_be_bytes)? != libc::NFT_NAT_DNAT.cast_unsigned() {
        return None;
    }
    if let Some(from) = register(data, ADDRESS) {
        let Some(Value::Constant(bytes)) = registers.get(&from) else { return None };
        new.to = NewAddress::Address(address(bytes)?);
    }
    if let Some(from) = register(data, PORT) {
        new.to_port = Some(port(registers, from)?);
    }
    Some(new)
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(padded::<4>(bytes)).into()),
        16 => Some(Ipv6Addr::from(padded::<16>(bytes)).into()),
        _ => None,
    }
}

/// The port that is in a register.
fn port(registers: &HashMap<u32, Value>, from: u32) -> Option<u16> {
    let Some(Value::Constant(bytes)) = registers.get(&from) else { return None };
    bytes.first_chunk().map(|port| u16::from_be_bytes(*port))
}

impl Redirection {
    /// What connections to this destination may be led to by the rule; `None` if they are not. A destination without
    /// address is one of this host's, whichever.
    pub fn of(&self, address: Option<IpAddr>, port: u16) -> Option<(NewAddress, u16)> {
        let here = match (self.daddr, address) {
            (Some((wanted, bits)), Some(address)) => is_masked(address, wanted, bits),
            (None, _) | (_, None) => true,
        };
        (here && self.ports.contains(&port)).then(|| (self.to, self.to_port.unwrap_or(port)))
    }
}

fn is_masked(address: IpAddr, wanted: IpAddr, bits: IpAddr) -> bool {
    match (address, wanted, bits) {
        (IpAddr::V4(address), IpAddr::V4(wanted), IpAddr::V4(bits)) => address & bits == wanted & bits,
        (IpAddr::V6(address), IpAddr::V6(wanted), IpAddr::V6(bits)) => address & bits == wanted & bits,
        _ => false,
    }
}
