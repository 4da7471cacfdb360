//! Matches and targets of iptables in rules of nf_tables (`nft_compat`): the few that bear on destination NAT. Layouts are
//! those of `linux/netfilter/xt_tcpudp.h`, `nf_nat.h`, in this machine's byte order but for addresses and ports of NAT.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::message::Attributes;
use super::nat::{NewAddress, address};

const NAME: u16 = 1;
const REVISION: u16 = 2;
const INFO: u16 = 3;

/// `NF_NAT_RANGE_MAP_IPS`, `NF_NAT_RANGE_PROTO_SPECIFIED`.
const MAP_IPS: u32 = 1;
const PROTO_SPECIFIED: u32 = 2;

/// Takes a match's condition on the destination port in; `None` if no TCP packet meets it.
pub(super) fn narrow(data: &Attributes<'_>, ports: &mut RangeInclusive<u16>) -> Option<()> {
    const INVERTED_DESTINATION: u8 = 2;
    match data.string(NAME)? {
        // struct xt_tcp: u16 spts[2], dpts[2]; u8 option, flg_mask, flg_cmp, invflags.
        b"tcp" => {
            if let Some([_, _, _, _, f0, f1, l0, l1, _, _, _, inverted, ..]) = data.find(INFO)
                && inverted & INVERTED_DESTINATION == 0
            {
                *ports = u16::from_ne_bytes([*f0, *f1])..=u16::from_ne_bytes([*l0, *l1]);
            }
            Some(())
        }
        b"udp" | b"icmp" | b"icmp6" | b"sctp" => None,
        _ => Some(()),
    }
}

/// Where a target leads connections; `None` if it is no destination NAT.
pub(super) fn destination(data: &Attributes<'_>) -> Option<(NewAddress, Option<u16>)> {
    let revision = data.number(REVISION).map(u32::from_be_bytes)?;
    let info = data.find(INFO)?;
    let (name, info) = (data.string(NAME)?, info);
    // struct nf_nat_ipv4_multi_range_compat is for IPv4 alone, and shorter than what IPv6 has: u32 count, then of the
    // range u32 flags, be32 min_ip, max_ip, be16 min, max.
    let (flags, addresses, port) = if revision == 0 && info.len() < 32 {
        (word(info, 4)?, info.get(8..12)?, half(info, 16)?)
    } else {
        // struct nf_nat_range: u32 flags, 16 bytes min_addr, max_addr, be16 min_proto, max_proto.
        (word(info, 0)?, info.get(4..20)?, half(info, 36)?)
    };
    let to = match name {
        b"REDIRECT" => NewAddress::ThisHost,
        b"DNAT" if flags & MAP_IPS == 0 => NewAddress::Same,
        b"DNAT" => NewAddress::Address(short(address(addresses)?)),
        _ => return None,
    };
    Some((to, (flags & PROTO_SPECIFIED != 0).then_some(port)))
}

/// An IPv4 address in the room of an IPv6 one takes the first four bytes, and the others are zeros.
fn short(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.octets() {
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] if v6 != Ipv6Addr::UNSPECIFIED => {
                IpAddr::from([a, b, c, d])
            }
            _ => address,
        },
        IpAddr::V4(_) => address,
    }
}

fn word(info: &[u8], at: usize) -> Option<u32> {
    info.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn half(info: &[u8], at: usize) -> Option<u16> {
    info.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}
