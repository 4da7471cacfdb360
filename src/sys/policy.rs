//! Rules of the routing policy (ip-rule(8)).
//!
//! Layouts are those of `include/uapi/linux/fib_rules.h`. Addresses are in network byte order, all else in the host's.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::netlink::{self, CREATE, EXCL, Malformed, Writer};
use super::rtnetlink::{
    Rtnetlink, address, family_number, is_unsupported, nul_terminated, number, octets, text,
};

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;

const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FR_ACT_BLACKHOLE: u8 = 6;
const FIB_RULE_INVERT: u32 = 2;
/// `struct fib_rule_hdr`.
const HEADER_LEN: usize = 12;
/// `RT_TABLE_LOCAL`.
pub const TABLE_LOCAL: u32 = 255;
/// `RTPROT_KERNEL`: systemd-networkd deletes foreign rules when it starts, except those of this protocol.
const PROTOCOL: u8 = 2;
/// The interface that every locally generated packet "comes in" through.
pub const LOOPBACK: &str = "lo";

/// What a rule does with a packet that it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Looks the route up in the rule's table; continues with the next rule if there is none.
    Lookup,
    /// Continues with the rule of this priority, which is later.
    Goto(u32),
    /// Continues with the next rule: the destination of a [`Goto`](Self::Goto).
    Nop,
    /// Drops the packet without an ICMP error.
    BlackHole,
    /// One that is never made here (`FR_ACT_*`).
    Other(u8),
}

/// Which packets a rule selects. `None` does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Only packets that came in through this interface; [`LOOPBACK`] for those that this host generates.
    pub iif: Option<String>,
    /// Only packets from this prefix.
    pub from: Option<(IpAddr, u8)>,
    /// Only packets to this prefix.
    pub to: Option<(IpAddr, u8)>,
    /// Only this IP protocol.
    pub protocol: Option<u8>,
    /// Only these source ports.
    pub sport: Option<RangeInclusive<u16>>,
    /// Only these destination ports.
    pub dport: Option<RangeInclusive<u16>>,
    /// Only packets whose mark has these bits in the second number as in the first.
    pub mark: Option<(u32, u32)>,
}

/// A rule of the routing policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Whether it is of IPv4.
    pub ipv4: bool,
    /// Its place in the order; the lowest number comes first.
    pub priority: u32,
    /// The table of a lookup. The kernel keeps it for every other action, too: there it tells the rule's owner.
    pub table: u32,
    /// What becomes of a packet.
    pub action: Action,
    /// Which packets.
    pub selector: Selector,
    /// Whether it bears the kernel's mark of origin (`RTPROT_KERNEL`), as all that are made here do.
    pub kernel: bool,
    /// Whether it has further restrictions that are not known here.
    pub restricted: bool,
}

impl PolicyRule {
    /// A rule to put in force.
    pub fn new(ipv4: bool, priority: u32, table: u32, action: Action, selector: Selector) -> Self {
        Self { ipv4, priority, table, action, selector, kernel: true, restricted: false }
    }

    /// Whether the other rule does the same, whatever its origin.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        Self { kernel: other.kernel, ..self.clone() } == *other
    }

    /// Puts the rule in force; false if it already is. Needs `CAP_NET_ADMIN`. `EOPNOTSUPP` or `EAFNOSUPPORT` comes
    /// from a kernel without policy routing (`CONFIG_IP_MULTIPLE_TABLES`, `CONFIG_IPV6_MULTIPLE_TABLES`).
    pub fn add(&self) -> io::Result<bool> {
        match self.change(RTM_NEWRULE, CREATE | EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Deletes the rule; no error if it does not exist.
    pub fn delete(&self) -> io::Result<()> {
        match self.change(RTM_DELRULE, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// All rules of both families in force, in their order; none of a family whose policy the kernel does not have.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let header = [family_number(family), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let listed = Rtnetlink::open()?.dump(RTM_GETRULE, &header, &mut |message| {
                if message.kind == RTM_NEWRULE {
                    found.push(parse(message.body)?);
                }
                Ok(())
            });
            match listed {
                Err(error) if !is_unsupported(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Whether the kernel reads ports out of every packet because of this rule. For a rule about packets of this host
    /// it does not.
    pub fn needs_ports(&self) -> bool {
        let selector = &self.selector;
        selector.iif.as_deref() != Some(LOOPBACK)
            && (selector.protocol.is_some() || selector.sport.is_some() || selector.dport.is_some())
    }

    fn change(&self, kind: u16, flags: u16) -> io::Result<()> {
        Rtnetlink::open()?.request(kind, flags, |writer| self.write(writer))
    }

    fn write(&self, writer: &mut Writer) {
        let family = family_number(if self.ipv4 { libc::AF_INET } else { libc::AF_INET6 });
        let length = |prefix: Option<(IpAddr, u8)>| prefix.map_or(0, |(_, length)| length);
        let (to, from) = (length(self.selector.to), length(self.selector.from));
        let (action, goto) = match self.action {
            Action::Lookup => (FR_ACT_TO_TBL, None),
            Action::Goto(priority) => (FR_ACT_GOTO, Some(priority)),
            Action::Nop => (FR_ACT_NOP, None),
            Action::BlackHole => (FR_ACT_BLACKHOLE, None),
            Action::Other(action) => (action, None),
        };
        // Family, lengths, tos, table, reserved, reserved, action, flags.
        writer.put(&[family, to, from, 0, 0, 0, 0, action, 0, 0, 0, 0]);
        writer.attribute(FRA_PRIORITY, &self.priority.to_ne_bytes());
        writer.attribute(FRA_TABLE, &self.table.to_ne_bytes());
        if let Some(goto) = goto {
            writer.attribute(FRA_GOTO, &goto.to_ne_bytes());
        }
        if self.kernel {
            writer.attribute(FRA_PROTOCOL, &[PROTOCOL]);
        }
        self.selector.write(writer);
    }
}

/// The words that ip-rule(8) takes after `ip rule add`, or `ip -6 rule add`, for this rule.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {}", self.priority)?;
        let selector = &self.selector;
        match selector.from {
            Some((address, length)) => write!(f, " from {address}/{length}")?,
            None => f.write_str(" from all")?,
        }
        if let Some((address, length)) = selector.to {
            write!(f, " to {address}/{length}")?;
        }
        if let Some(iif) = &selector.iif {
            write!(f, " iif {iif}")?;
        }
        if let Some((mark, mask)) = selector.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        if let Some(protocol) = selector.protocol {
            write!(f, " ipproto {protocol}")?;
        }
        for (word, ports) in [("sport", &selector.sport), ("dport", &selector.dport)] {
            if let Some(ports) = ports {
                write!(f, " {word} {}-{}", ports.start(), ports.end())?;
            }
        }
        write!(f, " table {}", self.table)?;
        match self.action {
            Action::Lookup => Ok(()),
            Action::Goto(priority) => write!(f, " goto {priority}"),
            Action::Nop => f.write_str(" nop"),
            Action::BlackHole => f.write_str(" blackhole"),
            Action::Other(action) => write!(f, " action {action}"),
        }?;
        if self.kernel { f.write_str(" protocol kernel") } else { Ok(()) }
    }
}

impl Selector {
    fn write(&self, writer: &mut Writer) {
        if let Some(iif) = &self.iif {
            writer.attribute(FRA_IIFNAME, &nul_terminated(iif));
        }
        for (kind, prefix) in [(FRA_SRC, self.from), (FRA_DST, self.to)] {
            if let Some((address, _)) = prefix {
                writer.attribute(kind, &octets(address));
            }
        }
        if let Some(protocol) = self.protocol {
            writer.attribute(FRA_IP_PROTO, &[protocol]);
        }
        for (kind, ports) in [(FRA_SPORT_RANGE, &self.sport), (FRA_DPORT_RANGE, &self.dport)] {
            if let Some(ports) = ports {
                writer.attribute(kind, &[ports.start().to_ne_bytes(), ports.end().to_ne_bytes()].concat());
            }
        }
        if let Some((mark, mask)) = self.mark {
            writer.attribute(FRA_FWMARK, &mark.to_ne_bytes());
            writer.attribute(FRA_FWMASK, &mask.to_ne_bytes());
        }
    }

    /// Reads an attribute into this selector; false if it is not one about a selection that is known here.
    fn read(&mut self, attribute: &netlink::Attribute<'_>, lengths: (u8, u8)) -> bool {
        let prefix = |length| address(attribute.payload).map(|address| (address, length));
        match attribute.kind {
            FRA_DST => self.to = prefix(lengths.0),
            FRA_SRC => self.from = prefix(lengths.1),
            FRA_IIFNAME => self.iif = Some(text(attribute.payload)),
            FRA_IP_PROTO => self.protocol = attribute.payload.first().copied(),
            FRA_SPORT_RANGE => self.sport = ports(attribute.payload),
            FRA_DPORT_RANGE => self.dport = ports(attribute.payload),
            FRA_FWMARK => self.mark.get_or_insert_default().0 = number(attribute.payload).unwrap_or_default(),
            FRA_FWMASK => self.mark.get_or_insert_default().1 = number(attribute.payload).unwrap_or_default(),
            _ => return false,
        }
        true
    }
}

fn ports(payload: &[u8]) -> Option<RangeInclusive<u16>> {
    let [a, b, c, d] = *payload.first_chunk()?;
    Some(u16::from_ne_bytes([a, b])..=u16::from_ne_bytes([c, d]))
}

/// The rule that an `RTM_NEWRULE` message is about.
fn parse(body: &[u8]) -> Result<PolicyRule, Malformed> {
    let header = body.first_chunk::<HEADER_LEN>().ok_or(Malformed)?;
    let [family, to, from, tos, table, _, _, action, f0, f1, f2, f3] = *header;
    let inverted = u32::from_ne_bytes([f0, f1, f2, f3]) & FIB_RULE_INVERT != 0;
    let mut rule = PolicyRule {
        ipv4: i32::from(family) == libc::AF_INET,
        priority: 0,
        table: table.into(),
        action: Action::Other(action),
        selector: Selector::default(),
        kernel: false,
        restricted: inverted || tos != 0,
    };
    let mut goto = None;
    for attribute in netlink::attributes(body.get(HEADER_LEN..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind {
            FRA_PRIORITY => rule.priority = number(attribute.payload).unwrap_or_default(),
            FRA_TABLE => rule.table = number(attribute.payload).unwrap_or(rule.table),
            FRA_GOTO => goto = number(attribute.payload),
            FRA_PROTOCOL => rule.kernel = attribute.payload == [PROTOCOL],
            FRA_PAD => {}
            // Of a range, no bits; of a port, all.
            FRA_SPORT_MASK | FRA_DPORT_MASK => {
                rule.restricted |= ![[0; 2], [0xff; 2]].iter().any(|mask| attribute.payload == mask);
            }
            // Minus one: suppresses nothing.
            FRA_SUPPRESS_PREFIXLEN => rule.restricted |= number(attribute.payload) != Some(u32::MAX),
            _ => rule.restricted |= !rule.selector.read(&attribute, (to, from)),
        }
    }
    rule.action = match (action, goto) {
        (FR_ACT_TO_TBL, _) => Action::Lookup,
        (FR_ACT_GOTO, Some(priority)) => Action::Goto(priority),
        (FR_ACT_NOP, _) => Action::Nop,
        (FR_ACT_BLACKHOLE, _) => Action::BlackHole,
        (other, _) => Action::Other(other),
    };
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(rule: &PolicyRule) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.begin(RTM_NEWRULE, 0, 0);
        rule.write(&mut writer);
        writer.bytes()[netlink::HEADER_LEN..].to_vec()
    }

    fn rules() -> Vec<PolicyRule> {
        let from = |text: &str, length| Some((text.parse().unwrap(), length));
        let plain = Selector { from: from("192.0.2.1", 32), ..Selector::default() };
        let full = Selector {
            iif: Some(LOOPBACK.to_owned()),
            from: from("2001:db8::1", 128),
            to: from("2001:db8:1::", 48),
            protocol: Some(6),
            sport: Some(80..=80),
            dport: Some(1024..=u16::MAX),
            mark: Some((0, 0x7463)),
        };
        vec![
            PolicyRule::new(true, 74, 0x7463_0001, Action::BlackHole, plain.clone()),
            PolicyRule::new(true, 73, 7, Action::Goto(75), plain),
            PolicyRule::new(false, 74, 0x7463_ffff, Action::Lookup, full),
            PolicyRule::new(false, 75, 0x7463_ffff, Action::Nop, Selector::default()),
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        for rule in rules() {
            assert_eq!(parse(&body(&rule)), Ok(rule));
        }
    }

    #[test]
    fn unknown_restrictions_are_not_taken_for_none() {
        for (kind, payload) in [(17, &b"eth0\0"[..]), (12, &[0; 8]), (FRA_IIFNAME, b"eth0\0")] {
            let rule = rules().remove(0);
            let mut writer = Writer::new();
            writer.begin(RTM_NEWRULE, 0, 0);
            rule.write(&mut writer);
            writer.attribute(kind, payload);
            let read = parse(&writer.bytes()[netlink::HEADER_LEN..]).unwrap();
            assert!(read.restricted != (kind == FRA_IIFNAME) && read != rule, "{kind}");
        }
        let mut inverted = body(&rules()[0]);
        inverted[8..12].copy_from_slice(&FIB_RULE_INVERT.to_ne_bytes());
        assert!(parse(&inverted).unwrap().restricted);
    }

    #[test]
    fn a_shortened_rule_is_malformed_or_another_one() {
        for rule in rules() {
            let whole = body(&rule);
            for len in 0..whole.len() - 3 {
                assert_ne!(parse(&whole[..len]).as_ref(), Ok(&rule), "cut to {len}");
            }
        }
    }

    #[test]
    fn the_rules_in_force_are_listed() {
        let all = PolicyRule::all().unwrap();
        assert!(all.iter().any(|rule| rule.ipv4 && rule.table == TABLE_LOCAL), "{all:?}");
    }
}
