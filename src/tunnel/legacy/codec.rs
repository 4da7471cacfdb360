//! Messages, records and frames: to bytes and back.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::wire::{FlowKey, MAX_HEADERS_V4, Outgoing, Reject, TcpHeader, parse};

/// The version of the protocol that the C tools 1.x speak.
pub const VERSION: u16 = 6;
/// Bytes of a message to intercept.
pub const MESSAGE: usize = 14;
/// Bytes of a record to tcpcopy.
pub const RECORD: usize = 64;
/// Records of a frame, at most.
pub const MAX_RECORDS: u16 = 16;

const _: () = assert!(RECORD == MAX_HEADERS_V4, "a record has room for all options that are written");

/// The type of a message that claims a flow.
const CLAIM: u16 = 1;
const IP_HEADER: usize = 20;
/// Words of four bytes that a record has for the TCP header.
const TCP_WORDS: u8 = 11;

/// What a C tool cannot have said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The first message is not one of a C tcpcopy.
    #[error("the peer does not begin as a C tcpcopy does")]
    Opening,
    /// The first message is one of another version.
    #[error("the peer speaks version {0} of the C tools' protocol, not {VERSION}")]
    Version(u16),
    /// A frame has more records than there can be.
    #[error(
        "a frame of {0} records, more than {MAX_RECORDS}: the peer is no C intercept, or is built with other options"
    )]
    Records(u16),
    /// A record does not begin with an IPv4 header.
    #[error("a record that is no IPv4 header: the peer is no C intercept, or is built with other options")]
    Record,
}

/// What a tcpcopy says after its first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A claim.
    Claim(FlowKey),
    /// Anything else, by its type.
    Other(u16),
}

/// Reads the first message.
pub(super) fn read_opening(bytes: &[u8; MESSAGE]) -> Result<(), Fault> {
    let (client, kind, target) = fields(bytes);
    let nobody = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    match kind {
        _ if client != nobody || target != nobody => Err(Fault::Opening),
        VERSION => Ok(()),
        other => Err(Fault::Version(other)),
    }
}

/// Whether that is what a C tcpcopy says first.
pub(in crate::tunnel) fn is_opening(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|message| read_opening(message).is_ok())
}

/// Reads a later message.
pub(super) fn read_message(bytes: &[u8; MESSAGE]) -> Message {
    let (client, kind, target) = fields(bytes);
    if kind == CLAIM {
        return Message::Claim(FlowKey { client: client.into(), server: target.into() });
    }
    Message::Other(kind)
}

/// The first message.
pub(super) fn opening() -> [u8; MESSAGE] {
    let nobody = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    message(nobody, VERSION, nobody)
}

/// A claim; `None` unless it is of an IPv4 flow.
pub(super) fn claim(key: FlowKey) -> Option<[u8; MESSAGE]> {
    let (client, server) = ends(&key)?;
    Some(message(client, CLAIM, server))
}

fn message(client: SocketAddrV4, kind: u16, target: SocketAddrV4) -> [u8; MESSAGE] {
    let [a, b, c, d] = client.ip().octets();
    let [e, f] = client.port().to_be_bytes();
    let [g, h] = kind.to_be_bytes();
    let [i, j, k, l] = target.ip().octets();
    let [m, n] = target.port().to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n]
}

fn fields(&[a, b, c, d, e, f, g, h, i, j, k, l, m, n]: &[u8; MESSAGE]) -> (SocketAddrV4, u16, SocketAddrV4) {
    let client = SocketAddrV4::new([a, b, c, d].into(), u16::from_be_bytes([e, f]));
    let target = SocketAddrV4::new([i, j, k, l].into(), u16::from_be_bytes([m, n]));
    (client, u16::from_be_bytes([g, h]), target)
}

/// A flow's ends, if it is one of IPv4.
fn ends(key: &FlowKey) -> Option<(SocketAddrV4, SocketAddrV4)> {
    match (key.client, key.server) {
        (SocketAddr::V4(client), SocketAddr::V4(server)) => Some((client, server)),
        (SocketAddr::V6(_), _) | (_, SocketAddr::V6(_)) => None,
    }
}

/// The record of a response on that flow; `None` if it is not one of IPv4, or no IPv4 packet could be as long.
pub(super) fn record(key: &FlowKey, header: &TcpHeader, scratch: &mut Outgoing) -> Option<[u8; RECORD]> {
    let (client, server) = ends(key)?;
    scratch.headers_v4(server, client, header)
}

/// Reads a record: whose response it is, and its header. The inner error is of a packet that is not to be used.
pub(super) fn read_record(bytes: &[u8; RECORD]) -> Result<Result<(FlowKey, TcpHeader), Reject>, Fault> {
    let mut whole = *bytes;
    let total = close_up(&mut whole).ok_or(Fault::Record)?;
    // Of a packet that the kernel merged beyond 64 KiB, nobody can tell the length.
    if total == 0 {
        return Ok(Err(Reject::IpLength));
    }
    // What the record has no room for is as if the capture had cut it.
    let len = usize::from(total).max(RECORD);
    Ok(parse(&whole, len).map(|packet| (FlowKey { client: packet.dst, server: packet.src }, packet.header)))
}

/// A record has the first 20 bytes of the IP header only, and the first 44 of the TCP header, while both say how long they
/// were: makes them say how long they are, and returns the packet's length, which is 0 if it cannot be. `None` if there is
/// no IPv4 header.
fn close_up(record: &mut [u8; RECORD]) -> Option<u16> {
    let (ip, tcp) = record.split_first_chunk_mut::<IP_HEADER>()?;
    let [first, _, high, low, ..] = ip;
    let ip_options = (*first & 15).checked_sub(5).filter(|_| *first >> 4 == 4)?;
    let [.., offset, _, _, _, _, _, _, _] = tcp.first_chunk_mut::<20>()?;
    let tcp_options = (*offset >> 4).saturating_sub(TCP_WORDS);
    *first -= ip_options;
    *offset -= tcp_options << 4;
    let left_out = 4 * (u16::from(ip_options) + u16::from(tcp_options));
    let total = u16::from_be_bytes([*high, *low]).saturating_sub(left_out);
    [*high, *low] = total.to_be_bytes();
    Some(total)
}
