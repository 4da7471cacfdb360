//! News about network links, so that a sink that somebody deletes or takes down does not go unnoticed.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;

use super::netlink::{self, Malformed};
use super::rtnetlink::{IFF_UP, RTM_DELLINK, RTM_NEWLINK, parse_link};
use super::socket;

/// `RTMGRP_LINK`.
const GROUP: u32 = 1;
/// More than the kernel's bound of one notification.
const NEWS_LEN: usize = 32 << 10;

/// Something happened to a link of the namespace this watch was opened in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The link is gone: deleted, or moved to another namespace.
    Deleted {
        /// Its former index.
        index: u32,
        /// Its former name.
        name: String,
    },
    /// The link exists and is administratively down. Told again with every change of whatever property.
    Down {
        /// Its index.
        index: u32,
        /// Its name, which may be new.
        name: String,
    },
    /// The link exists and is administratively up. Told again with every change of whatever property.
    Up {
        /// Its index.
        index: u32,
        /// Its name, which may be new.
        name: String,
    },
    /// News was lost or not understood: check the links that matter.
    Unknown,
}

/// Listens for news about links.
#[derive(Debug)]
pub struct LinkWatch {
    socket: Socket,
    buffer: Vec<u8>,
}

impl LinkWatch {
    /// Starts listening; what happened before is not told. Non-blocking, CLOEXEC, needs no permission.
    pub fn open() -> io::Result<Self> {
        let socket = socket::netlink(libc::NETLINK_ROUTE, GROUP)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, buffer: vec![0; NEWS_LEN] })
    }

    /// Tells all news there is, oldest first, without blocking.
    pub fn drain(&mut self, mut each: impl FnMut(LinkEvent)) -> io::Result<()> {
        loop {
            match self.socket.read(&mut self.buffer) {
                Ok(len) => events(self.buffer.get(..len).unwrap_or_default(), &mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => each(LinkEvent::Unknown),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn events(datagram: &[u8], each: &mut impl FnMut(LinkEvent)) {
    for message in netlink::messages(datagram) {
        match message.and_then(|message| event(&message)) {
            Ok(Some(event)) => each(event),
            Ok(None) => {}
            Err(Malformed) => each(LinkEvent::Unknown),
        }
    }
}

fn event(message: &netlink::Message<'_>) -> Result<Option<LinkEvent>, Malformed> {
    if message.kind != RTM_NEWLINK && message.kind != RTM_DELLINK {
        return Ok(None);
    }
    let link = parse_link(message.body)?;
    Ok(link.map(|link| {
        let (index, name) = (link.index, link.name);
        if message.kind == RTM_DELLINK {
            LinkEvent::Deleted { index, name }
        } else if link.flags & IFF_UP == 0 {
            LinkEvent::Down { index, name }
        } else {
            LinkEvent::Up { index, name }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::super::netlink::Writer;
    use super::super::rtnetlink::IFLA_IFNAME;
    use super::*;

    fn news(kind: u16, family: u8, flags: u32) -> Vec<u8> {
        let mut header = [0; 16];
        header[0] = family;
        header[4..8].copy_from_slice(&7u32.to_ne_bytes());
        header[8..12].copy_from_slice(&flags.to_ne_bytes());
        let mut writer = Writer::new();
        writer.begin(kind, 0, 0);
        writer.put(&header);
        writer.attribute(IFLA_IFNAME, b"sink\0");
        writer.bytes().to_vec()
    }

    fn told(datagram: &[u8]) -> Vec<LinkEvent> {
        let mut all = Vec::new();
        events(datagram, &mut |event| all.push(event));
        all
    }

    #[test]
    fn news_becomes_events() {
        let (index, name) = (7, "sink".to_owned());
        let mut datagram = news(RTM_NEWLINK, 0, IFF_UP | 0x1000);
        datagram.extend(news(RTM_NEWLINK, 0, 0x1000));
        datagram.extend(news(RTM_DELLINK, 0, IFF_UP));
        let expected = [
            LinkEvent::Up { index, name: name.clone() },
            LinkEvent::Down { index, name: name.clone() },
            LinkEvent::Deleted { index, name },
        ];
        assert_eq!(told(&datagram), expected);
    }

    #[test]
    fn leaving_a_bridge_is_not_deletion() {
        assert_eq!(told(&news(RTM_DELLINK, 7, IFF_UP)), []);
    }

    #[test]
    fn what_is_not_understood_is_unknown() {
        let whole = news(RTM_DELLINK, 0, 0);
        assert_eq!(told(&whole[..whole.len() - 6]), [LinkEvent::Unknown]);
        assert_eq!(told(&[0; 16]), [LinkEvent::Unknown]);
        assert_eq!(told(&[1]), [LinkEvent::Unknown]);
    }

    #[test]
    fn a_quiet_watch_does_not_block() {
        let mut watch = LinkWatch::open().unwrap();
        watch.drain(|_| {}).unwrap();
    }
}
