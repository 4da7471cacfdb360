//! A rule as the expressions the kernel evaluates.

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr};

use nftnl::expr::{Bitwise, Cmp, CmpOp, Counter, Immediate, Meta, Register as CrateRegister, Verdict};
use nftnl::{Chain as ChainMessage, Rule as RuleMessage};

use super::ruleset::{Device, End, Family, Match, Rule, SetKey, Statement};
use crate::sys::expr::{Base, Expr, Register};
use crate::wire::Prefix;
use crate::wire::flow::{SHARE_SEED, SHARES, SPLIT_SEED};

/// `IPPROTO_TCP`, in the one byte that `meta l4proto` loads.
pub(super) const TCP: u8 = 6;
/// The first byte of an IPv4 header without options: version 4, five words.
pub(super) const PLAIN_IPV4: u8 = 0x45;

// Bits of the TCP header's flags (RFC 9293).
/// No user has this number (setresuid(2)).
pub(super) const NOBODY: u32 = u32::MAX;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Bytes of a register that a port takes.
const PADDED_PORT: u32 = 4;

/// How a rule hands packets to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    /// The kernel's own `queue` expression.
    Native,
    /// The xtables target `NFQUEUE` through `nft_compat`.
    Compat,
}

/// The message that adds `rule` to `chain`.
pub(super) fn encode<'a>(
    chain: &'a ChainMessage<'a>,
    family: Family,
    rule: &Rule,
    queue: QueueKind,
) -> RuleMessage<'a> {
    let mut message = RuleMessage::new(chain);
    let header = Header::of(family);
    let mut tcp_checked = false;
    for condition in &rule.matches {
        if needs_tcp(condition) && !tcp_checked {
            equal(&mut message, &Meta::L4Proto, &[TCP]);
            tcp_checked = true;
        }
        add_match(&mut message, family, condition);
    }
    for statement in &rule.statements {
        add_statement(&mut message, header, statement, queue);
    }
    message
}

/// Whether a match reads the TCP header. nft adds the check of the protocol by itself; a batch has to say it.
fn needs_tcp(condition: &Match) -> bool {
    match condition {
        Match::Tcp
        | Match::TcpSport(_)
        | Match::TcpDport(_)
        | Match::TcpDports(_)
        | Match::DataOffset(_)
        | Match::NoSynFinRst
        | Match::SynAlone
        | Match::Worker { .. }
        | Match::OutsideShare { .. }
        | Match::NotIn { .. } => true,
        Match::Mark(_)
        | Match::Iif(_)
        | Match::Oif(_)
        | Match::FromSocket
        | Match::Saddr(_)
        | Match::Daddr(_)
        | Match::DaddrLocal
        | Match::DaddrBroadcast
        | Match::L4Proto(_)
        | Match::Sports(_)
        | Match::Dports(_)
        | Match::Fragment
        | Match::NotFragment
        | Match::HopLimit(_)
        | Match::Length(_)
        | Match::LengthAtMost(_)
        | Match::IcmpTypes(_)
        | Match::QuotedTcpTo(_)
        | Match::QuotedTcpWithOptionsTo(_) => false,
    }
}

/// Without a socket, the rule ends at its user.
fn add_from_socket(rule: &mut RuleMessage<'_>) {
    rule.add_expr(&Meta::SkUid);
    rule.add_expr(&Cmp::new(CmpOp::Neq, NOBODY.to_ne_bytes().as_slice()));
}

fn add_daddr_type(rule: &mut RuleMessage<'_>, kind: u8) {
    equal(rule, &Expr::fib_daddr_type(), &u32::from(kind).to_ne_bytes());
}

fn add_match(rule: &mut RuleMessage<'_>, family: Family, condition: &Match) {
    let header = Header::of(family);
    let network = |offset, length| Expr::payload(Base::Network, offset, length, Register::R1);
    let transport = |offset, length| Expr::payload(Base::Transport, offset, length, Register::R1);
    match condition {
        Match::Mark(mark) => equal(rule, &Meta::Mark { set: false }, &mark.to_ne_bytes()),
        Match::Iif(Device { index, .. }) => equal(rule, &Meta::Iif, &index.to_ne_bytes()),
        Match::Oif(Device { index, .. }) => equal(rule, &Meta::Oif, &index.to_ne_bytes()),
        Match::FromSocket => add_from_socket(rule),
        Match::Saddr(prefix) => in_prefix(rule, header.source, *prefix),
        Match::Daddr(prefix) => in_prefix(rule, header.destination, *prefix),
        Match::DaddrLocal => add_daddr_type(rule, libc::RTN_LOCAL),
        Match::DaddrBroadcast => add_daddr_type(rule, libc::RTN_BROADCAST),
        Match::L4Proto(protocol) => equal(rule, &Meta::L4Proto, &[*protocol]),
        Match::Sports(ports) => {
            add_range(rule, &transport(0, 2), ports.start().to_be_bytes(), ports.end().to_be_bytes());
        }
        Match::Dports(ports) => {
            add_range(rule, &transport(2, 2), ports.start().to_be_bytes(), ports.end().to_be_bytes());
        }
        Match::Fragment => add_fragment(rule, family, true),
        Match::NotFragment => add_fragment(rule, family, false),
        Match::HopLimit(hops) => equal(rule, &network(7, 1), &[*hops]),
        // The check of the protocol itself, which the caller has added.
        Match::Tcp => {}
        Match::TcpSport(port) => equal(rule, &transport(0, 2), &port.to_be_bytes()),
        Match::TcpDport(port) => equal(rule, &transport(2, 2), &port.to_be_bytes()),
        Match::TcpDports(ports) => {
            rule.add_expr(&transport(2, 2));
            rule.add_expr(&Cmp::new(CmpOp::Gte, ports.start().to_be_bytes().as_slice()));
            rule.add_expr(&Cmp::new(CmpOp::Lte, ports.end().to_be_bytes().as_slice()));
        }
        Match::Length(bytes) => equal(rule, &network(header.length, 2), &bytes.to_be_bytes()),
        Match::LengthAtMost(bytes) => {
            rule.add_expr(&network(header.length, 2));
            rule.add_expr(&Cmp::new(CmpOp::Lte, bytes.to_be_bytes().as_slice()));
        }
        Match::DataOffset(words) => masked_equal(rule, &transport(12, 1), &[0xf0], &[words << 4]),
        Match::NoSynFinRst => masked_equal(rule, &transport(13, 1), &[FIN | SYN | RST], &[0]),
        Match::SynAlone => masked_equal(rule, &transport(13, 1), &[FIN | SYN | RST | ACK], &[SYN]),
        Match::Worker { client, index, workers } => add_worker(rule, header, *client, *index, *workers),
        Match::OutsideShare { client, share } => add_share(rule, header, *client, *share),
        Match::IcmpTypes(types) => {
            equal(rule, &Meta::L4Proto, &[header.icmp]);
            add_range(rule, &transport(0, 1), [*types.start()], [*types.end()]);
        }
        Match::QuotedTcpTo(to) => {
            equal(rule, &transport(header.quoted.protocol, 1), &[TCP]);
            equal(rule, &transport(header.quoted.destination, header.address), &octets(to.ip()));
            equal(rule, &transport(header.quoted.port, 2), &to.port().to_be_bytes());
        }
        Match::QuotedTcpWithOptionsTo(to) => add_quoted_with_options(rule, header, *to),
        Match::NotIn { set, client } => {
            load_flow(rule, header, *client, Register::R1);
            rule.add_expr(&Expr::not_in(&c_string(set), Register::R1));
        }
    }
}

fn add_statement(rule: &mut RuleMessage<'_>, header: Header, statement: &Statement, queue: QueueKind) {
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
        Statement::Add { set, client } => {
            load_flow(rule, header, *client, Register::R1);
            rule.add_expr(&Expr::set_add(&c_string(set), Register::R1));
        }
        Statement::Delete { set, client } => {
            load_flow(rule, header, *client, Register::R1);
            rule.add_expr(&Expr::set_delete(&c_string(set), Register::R1));
        }
        Statement::LimitOver(rate) => rule.add_expr(&Expr::limit_over(rate.get(), rate.get())),
        Statement::Goto(chain) => rule.add_expr(&Verdict::Goto { chain: c_string(chain) }),
        Statement::Jump(chain) => rule.add_expr(&Verdict::Jump { chain: c_string(chain) }),
        Statement::SetMark(mark) => {
            rule.add_expr(&Immediate::new(*mark, CrateRegister::Reg1));
            rule.add_expr(&Meta::Mark { set: true });
        }
        Statement::Count { set, key } => {
            load_key(rule, header, *key);
            rule.add_expr(&Expr::set_count(&c_string(set), Register::R1));
        }
        Statement::Return => rule.add_expr(&Verdict::Return),
        Statement::Accept => rule.add_expr(&Verdict::Accept),
        Statement::Drop => rule.add_expr(&Verdict::Drop),
    }
}

/// The client's address and, right behind it, its port padded to four bytes are hashed.
fn add_worker(rule: &mut RuleMessage<'_>, header: Header, client: End, index: u16, workers: u16) {
    load_flow(rule, header, client, Register::R2);
    let hash = Expr::jhash(Register::R2, header.address + PADDED_PORT, workers.into(), SPLIT_SEED);
    equal(rule, &hash, &u32::from(index).to_ne_bytes());
}

/// The hash of the same bytes as a worker's, with another seed. A comparison of more or less takes the most significant
/// byte first.
fn add_share(rule: &mut RuleMessage<'_>, header: Header, client: End, share: u16) {
    load_flow(rule, header, client, Register::R2);
    rule.add_expr(&Expr::jhash(Register::R2, header.address + PADDED_PORT, SHARES.into(), SHARE_SEED));
    rule.add_expr(&Expr::to_network_order());
    rule.add_expr(&Cmp::new(CmpOp::Gte, u32::from(share).to_be_bytes().as_slice()));
}

/// Loads the address of one end into `register` and its port, padded to four bytes, right behind it.
fn load_flow(rule: &mut RuleMessage<'_>, header: Header, end: End, register: Register) {
    let (address_offset, port_offset) = match end {
        End::Source => (header.source, 0),
        End::Destination => (header.destination, 2),
    };
    let behind = register.behind(header.address);
    rule.add_expr(&Expr::payload(Base::Network, address_offset, header.address, register));
    rule.add_expr(&Expr::payload(Base::Transport, port_offset, 2, behind));
}

/// Loads the key of a set of counters into register 1 and those behind it.
fn load_key(rule: &mut RuleMessage<'_>, header: Header, key: SetKey) {
    match key {
        SetKey::Client => load_flow(rule, header, End::Source, Register::R1),
        SetKey::Protocol => rule.add_expr(&Meta::L4Proto),
        SetKey::Ports => {
            rule.add_expr(&Meta::L4Proto);
            for (offset, behind) in [(0, 4), (2, 8)] {
                rule.add_expr(&Expr::payload(Base::Transport, offset, 2, Register::R1.behind(behind)));
            }
        }
    }
}

fn add_quoted_with_options(rule: &mut RuleMessage<'_>, header: Header, to: Ipv4Addr) {
    let transport = |offset, length| Expr::payload(Base::Transport, offset, length, Register::R1);
    rule.add_expr(&transport(Quoted::BEGIN, 1));
    rule.add_expr(&Cmp::new(CmpOp::Neq, [PLAIN_IPV4].as_slice()));
    equal(rule, &transport(header.quoted.protocol, 1), &[TCP]);
    equal(rule, &transport(header.quoted.destination, header.address), &to.octets());
}

/// IPv4 says it in the header, by an offset or that more follows (RFC 791); IPv6 by an extension header.
fn add_fragment(rule: &mut RuleMessage<'_>, family: Family, is_one: bool) {
    match family {
        Family::Ip => {
            const OFFSET_OR_MORE: u16 = 0x3fff;
            rule.add_expr(&Expr::payload(Base::Network, 6, 2, Register::R1));
            rule.add_expr(&Bitwise::new(OFFSET_OR_MORE.to_be_bytes().as_slice(), [0_u8, 0].as_slice()));
            let compare = if is_one { CmpOp::Neq } else { CmpOp::Eq };
            rule.add_expr(&Cmp::new(compare, [0_u8, 0].as_slice()));
        }
        Family::Ip6 => equal(rule, &Expr::has_fragment_header(), &[u8::from(is_one)]),
    }
}

/// Both ends are inside; one value needs one comparison.
fn add_range<const BYTES: usize>(
    rule: &mut RuleMessage<'_>,
    load: &Expr,
    first: [u8; BYTES],
    last: [u8; BYTES],
) {
    if first == last {
        return equal(rule, load, &first);
    }
    rule.add_expr(load);
    rule.add_expr(&Cmp::new(CmpOp::Gte, first.as_slice()));
    rule.add_expr(&Cmp::new(CmpOp::Lte, last.as_slice()));
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

fn c_string(name: &str) -> CString {
    CString::new(name).expect("names of sets and chains are literals without NUL")
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
    /// The protocol number of the family's ICMP.
    icmp: u8,
    quoted: Quoted,
}

/// Where an ICMP error has fields of the packet that it quotes, which follows eight bytes of its own (RFC 792, RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quoted {
    pub(super) protocol: u32,
    pub(super) destination: u32,
    /// TCP's destination port, behind an IP header without options.
    pub(super) port: u32,
}

impl Quoted {
    /// Where the quoted packet begins.
    pub(super) const BEGIN: u32 = 8;

    pub(super) fn of(family: Family) -> Self {
        match family {
            Family::Ip => Self::at(9, 16, 20 + 2),
            Family::Ip6 => Self::at(6, 24, 40 + 2),
        }
    }

    fn at(protocol: u32, destination: u32, port: u32) -> Self {
        Self {
            protocol: Self::BEGIN + protocol,
            destination: Self::BEGIN + destination,
            port: Self::BEGIN + port,
        }
    }
}

impl Header {
    fn of(family: Family) -> Self {
        let quoted = Quoted::of(family);
        match family {
            Family::Ip => Self { length: 2, source: 12, destination: 16, address: 4, icmp: 1, quoted },
            Family::Ip6 => Self { length: 4, source: 8, destination: 24, address: 16, icmp: 58, quoted },
        }
    }
}
