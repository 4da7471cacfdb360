//! The few requests about network links, routes and routing policy that are needed, in place of the `ip` command
//! (rtnetlink(7)).

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use socket2::Socket;

use super::netlink::{self, ACK, APPEND, CREATE, DONE, DUMP, EXCL, Malformed, REQUEST, Writer};
use super::socket;

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const AF_INET6: u8 = 10;

pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
pub(super) const RTN_UNICAST: u8 = 1;

pub(super) const IFF_UP: u32 = 0x1;
const IFF_NOARP: u32 = 0x80;
const IFF_MULTICAST: u32 = 0x1000;
const ARPHRD_ETHER: u16 = 1;

/// `struct ifinfomsg`.
pub(super) const IFINFOMSG_LEN: usize = 16;

/// An answer this late will not come: the kernel answers before the request's system call returns.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// More than the kernel's own bound of an answer about one link (`NLMSG_GOODSIZE` and some virtual functions), and as
/// much as it puts into one part of a list.
const ANSWER_LEN: usize = 32 << 10;

/// A socket for requests, of the network namespace it was opened in.
#[derive(Debug)]
pub(super) struct Rtnetlink {
    socket: Socket,
    seq: u32,
}

/// What we want to know of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    /// `IFF_*`.
    pub(super) flags: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    /// Its own address, if it is an Ethernet.
    pub(super) ethernet: Option<[u8; 6]>,
    /// The longest packet, in bytes; 0 if the message does not say.
    pub(super) mtu: u32,
}

/// How a link is named in a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which<'a> {
    Name(&'a str),
    Index(u32),
}

impl Rtnetlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket::netlink(libc::NETLINK_ROUTE, 0)?;
        socket.set_read_timeout(Some(ANSWER_TIME))?;
        Ok(Self { socket, seq: 0 })
    }

    /// The link's properties; `None` when there is no such link.
    pub(super) fn link(&mut self, which: Which<'_>) -> io::Result<Option<Link>> {
        let mut writer = Writer::new();
        self.begin(&mut writer, RTM_GETLINK, 0);
        which.write(&mut writer, 0, 0);
        let mut found = None;
        match self.exchange(&writer, 1, &mut |message| found = parse_link(message.body).ok().flatten()) {
            Ok(()) => Ok(found),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a link of a kind that needs no parameters, and prepares it as [`prepare`](Self::prepare) does.
    ///
    /// All requests go in one system call, so that no signal leaves a link behind that does not bear our alias. The
    /// caller has made sure that there is no link of this name: one that appeared since would get the alias.
    pub(super) fn create(&mut self, name: &str, kind: &str, alias: &str) -> io::Result<()> {
        let mut writer = Writer::new();
        self.begin(&mut writer, RTM_NEWLINK, CREATE | EXCL);
        Which::Name(name).write(&mut writer, 0, 0);
        let info = writer.nest(IFLA_LINKINFO);
        writer.attribute(IFLA_INFO_KIND, kind.as_bytes());
        writer.end(info);
        let requests = self.write_prepare(&mut writer, name, alias);
        self.exchange(&writer, 1 + requests, &mut |_| {})
    }

    /// Gives the link its alias, keeps the kernel from speaking on it of its own accord, and sets it up.
    pub(super) fn prepare(&mut self, name: &str, alias: &str) -> io::Result<()> {
        let mut writer = Writer::new();
        let requests = self.write_prepare(&mut writer, name, alias);
        self.exchange(&writer, requests, &mut |_| {})
    }

    /// Sets how many packets may wait at the link for somebody to take them.
    pub(super) fn set_queue_length(&mut self, name: &str, packets: u32) -> io::Result<()> {
        let mut writer = Writer::new();
        self.begin(&mut writer, RTM_NEWLINK, 0);
        Which::Name(name).write(&mut writer, 0, 0);
        writer.attribute(IFLA_TXQLEN, &packets.to_ne_bytes());
        self.exchange(&writer, 1, &mut |_| {})
    }

    /// Sets the longest packet that the link takes, in bytes.
    pub(super) fn set_mtu(&mut self, name: &str, mtu: u32) -> io::Result<()> {
        let mut writer = Writer::new();
        self.begin(&mut writer, RTM_NEWLINK, 0);
        Which::Name(name).write(&mut writer, 0, 0);
        writer.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        self.exchange(&writer, 1, &mut |_| {})
    }

    /// Adds an IPv6 route to the link, beside those that others have for the same prefix.
    pub(super) fn add_route(&mut self, index: u32, prefix: Ipv6Addr, length: u8) -> io::Result<()> {
        let mut writer = Writer::new();
        self.begin(&mut writer, RTM_NEWROUTE, CREATE | APPEND);
        // struct rtmsg: family, destination length, source length, tos, table, protocol, scope, type, flags.
        writer.put(&[AF_INET6, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0]);
        writer.attribute(RTA_DST, &prefix.octets());
        writer.attribute(RTA_OIF, &index.to_ne_bytes());
        self.exchange(&writer, 1, &mut |_| {})
    }

    pub(super) fn delete(&mut self, index: u32) -> io::Result<()> {
        let mut writer = Writer::new();
        self.begin(&mut writer, RTM_DELLINK, 0);
        Which::Index(index).write(&mut writer, 0, 0);
        self.exchange(&writer, 1, &mut |_| {})
    }

    /// One request, whose contents `write` puts after the header, and its answer.
    pub(super) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        write: impl FnOnce(&mut Writer),
    ) -> io::Result<()> {
        let mut writer = Writer::new();
        self.begin(&mut writer, kind, flags);
        write(&mut writer);
        self.exchange(&writer, 1, &mut |_| {})
    }

    /// Asks about one thing, and hands the answer to `read`. `None` if there is none.
    pub(super) fn ask<T>(
        &mut self,
        kind: u16,
        write: impl FnOnce(&mut Writer),
        read: impl Fn(&[u8]) -> Result<Option<T>, Malformed>,
    ) -> io::Result<Option<T>> {
        let mut writer = Writer::new();
        self.begin(&mut writer, kind, 0);
        write(&mut writer);
        let mut answer = Ok(None);
        self.exchange(&writer, 1, &mut |message| answer = read(message.body))?;
        answer.map_err(malformed)
    }

    /// Asks for a list, and hands each entry to `each`.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        header: &[u8],
        each: &mut dyn FnMut(&netlink::Message<'_>) -> Result<(), Malformed>,
    ) -> io::Result<()> {
        let mut writer = Writer::new();
        self.begin(&mut writer, kind, DUMP);
        writer.put(header);
        self.socket.write_all(writer.bytes())?;
        let mut buffer = vec![0; ANSWER_LEN];
        loop {
            let len = self.receive(&mut buffer)?;
            for message in netlink::messages(buffer.get(..len).unwrap_or_default()) {
                let message = message.map_err(malformed)?;
                match message.error().transpose().map_err(malformed)? {
                    Some(errno) if errno != 0 => return Err(io::Error::from_raw_os_error(errno)),
                    Some(_) => {}
                    None if message.kind == DONE => return Ok(()),
                    None => each(&message).map_err(malformed)?,
                }
            }
        }
    }

    fn begin(&mut self, writer: &mut Writer, kind: u16, flags: u16) {
        self.seq = self.seq.wrapping_add(1);
        writer.begin(kind, REQUEST | ACK | flags, self.seq);
    }

    /// Alias and address mode come before the request that sets the link up, as the address is made then. Without
    /// multicast the kernel reports no group memberships, and without ARP it looks for no neighbours.
    fn write_prepare(&mut self, writer: &mut Writer, name: &str, alias: &str) -> usize {
        self.begin(writer, RTM_NEWLINK, 0);
        Which::Name(name).write(writer, 0, 0);
        writer.attribute(IFLA_IFALIAS, alias.as_bytes());
        self.begin(writer, RTM_NEWLINK, 0);
        Which::Name(name).write(writer, 0, 0);
        let families = writer.nest(IFLA_AF_SPEC);
        let v6 = writer.nest(u16::from(AF_INET6));
        writer.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
        writer.end(v6);
        writer.end(families);
        self.begin(writer, RTM_NEWLINK, 0);
        Which::Name(name).write(writer, IFF_UP | IFF_NOARP, IFF_UP | IFF_NOARP | IFF_MULTICAST);
        3
    }

    /// Sends `requests` requests, the last of which was begun last, and waits for the answer to each. Other messages
    /// go to `each`. The first error is the result; the later requests have been tried all the same.
    fn exchange(
        &mut self,
        writer: &Writer,
        requests: usize,
        each: &mut dyn FnMut(&netlink::Message<'_>),
    ) -> io::Result<()> {
        self.socket.write_all(writer.bytes())?;
        let mut answered = 0;
        let mut result = Ok(());
        let mut buffer = vec![0; ANSWER_LEN];
        while answered < requests {
            let len = self.receive(&mut buffer)?;
            for message in netlink::messages(buffer.get(..len).unwrap_or_default()) {
                let message = message.map_err(malformed)?;
                match message.error().transpose().map_err(malformed)? {
                    None => each(&message),
                    Some(errno) => {
                        // An answer left over from a request that was given up is of an older number.
                        answered += usize::from(self.is_recent(message.seq, requests));
                        if errno != 0 && result.is_ok() {
                            result = Err(io::Error::from_raw_os_error(errno));
                        }
                    }
                }
            }
        }
        result
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(no_answer()),
                other => return other,
            }
        }
    }

    fn is_recent(&self, seq: u32, requests: usize) -> bool {
        usize::try_from(self.seq.wrapping_sub(seq)).is_ok_and(|age| age < requests)
    }
}

impl Link {
    /// Whether the link is administratively up.
    pub(super) fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }
}

impl Which<'_> {
    /// Writes `struct ifinfomsg` and, for a name, its attribute. Of the link's flags those in `change` become as in
    /// `flags`.
    fn write(self, writer: &mut Writer, flags: u32, change: u32) {
        let index = match self {
            Self::Name(_) => 0,
            Self::Index(index) => index,
        };
        // Family AF_UNSPEC, padding, any type, index, flags, which of them to change.
        let mut header = [0; IFINFOMSG_LEN];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..12].copy_from_slice(&flags.to_ne_bytes());
        header[12..].copy_from_slice(&change.to_ne_bytes());
        writer.put(&header);
        match self {
            Self::Name(name) => writer.attribute(IFLA_IFNAME, &nul_terminated(name)),
            Self::Index(_) => {}
        }
    }
}

/// The link a `RTM_NEWLINK` or `RTM_DELLINK` message is about; `None` when it is a protocol's message about a link,
/// such as a bridge's that a port has left, rather than the link's own.
pub(super) fn parse_link(body: &[u8]) -> Result<Option<Link>, Malformed> {
    let header = body.first_chunk::<IFINFOMSG_LEN>().ok_or(Malformed)?;
    let [family, _, t0, t1, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *header;
    if i32::from(family) != libc::AF_UNSPEC {
        return Ok(None);
    }
    let mut link = Link {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        flags: u32::from_ne_bytes([f0, f1, f2, f3]),
        name: String::new(),
        alias: None,
        ethernet: None,
        mtu: 0,
    };
    let is_ethernet = u16::from_ne_bytes([t0, t1]) == ARPHRD_ETHER;
    for attribute in netlink::attributes(body.get(IFINFOMSG_LEN..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_IFNAME => link.name = text(attribute.payload),
            IFLA_IFALIAS => link.alias = Some(text(attribute.payload)),
            IFLA_ADDRESS if is_ethernet => link.ethernet = attribute.payload.try_into().ok(),
            IFLA_MTU => link.mtu = number(attribute.payload).unwrap_or_default(),
            _ => {}
        }
    }
    Ok(Some(link))
}

/// `AF_*` as it is in a message.
pub(super) fn family_number(family: i32) -> u8 {
    u8::try_from(family).unwrap_or_default()
}

/// An address as it is in a message.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The address of an attribute, if it is one.
pub(super) fn address(payload: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(payload).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(payload).map(IpAddr::from)).ok()
}

/// The number of an attribute, if it is one.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_ne_bytes)
}

pub(super) fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(payload.get(..end).unwrap_or_default()).into_owned()
}

pub(super) fn nul_terminated(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}

fn malformed(malformed: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, malformed)
}

/// Whether an error is of a kernel without the family, or without policy routing for it.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer a request about links or routes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.begin(RTM_NEWLINK, 0, 0);
        writer.put(&[family, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        for (kind, payload) in attributes {
            writer.attribute(*kind, payload);
        }
        writer.bytes()[netlink::HEADER_LEN..].to_vec()
    }

    #[test]
    fn a_link_is_read() {
        let link =
            parse_link(&body(0, &[(IFLA_IFNAME, b"sink\0"), (99, b"?"), (IFLA_IFALIAS, b"alias\0\0")]));
        let expected = Link {
            index: u32::from_ne_bytes([7, 0, 0, 0]),
            flags: u32::from_ne_bytes([1, 0, 0, 0]),
            name: "sink".into(),
            alias: Some("alias".into()),
            ethernet: None,
            mtu: 0,
        };
        assert_eq!(link, Ok(Some(expected)));
    }

    #[test]
    fn only_an_ethernet_has_an_address_for_packets() {
        let attributes: [(u16, &[u8]); 2] = [(IFLA_ADDRESS, &[6; 6]), (IFLA_MTU, &1500_u32.to_ne_bytes())];
        let mut body = body(0, &attributes);
        for (kind, address) in [(ARPHRD_ETHER, Some([6; 6])), (772, None)] {
            body[2..4].copy_from_slice(&kind.to_ne_bytes());
            let link = parse_link(&body).unwrap().unwrap();
            assert_eq!((link.ethernet, link.mtu), (address, 1500), "type {kind}");
        }
    }

    #[test]
    fn a_bridges_message_is_not_the_links() {
        assert_eq!(parse_link(&body(7, &[(IFLA_IFNAME, b"port\0")])), Ok(None));
    }

    #[test]
    fn short_and_lying_links_are_malformed() {
        let whole = body(0, &[(IFLA_IFNAME, b"sink\0")]);
        for len in (0..IFINFOMSG_LEN).chain(IFINFOMSG_LEN + 1..whole.len() - 3) {
            assert_eq!(parse_link(&whole[..len]), Err(Malformed), "cut to {len}");
        }
        assert_eq!(parse_link(&whole[..IFINFOMSG_LEN]).unwrap().unwrap().name, "");
    }

    #[test]
    fn names_may_lack_their_terminator_or_be_no_text() {
        assert_eq!(text(b"abc"), "abc");
        assert_eq!(text(b""), "");
        assert_eq!(text(b"\0abc"), "");
        assert_eq!(text(b"a\xffb\0"), "a\u{fffd}b");
    }

    #[test]
    fn the_loopback_link_is_found_and_others_are_not() {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        let by_name = rtnetlink.link(Which::Name("lo")).unwrap().unwrap();
        let by_index = rtnetlink.link(Which::Index(by_name.index)).unwrap().unwrap();
        assert_eq!((by_name.name.as_str(), by_name.index), ("lo", by_index.index));
        assert_eq!(rtnetlink.link(Which::Name("no-such-link")).unwrap(), None);
    }
}
