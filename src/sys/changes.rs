//! Notifications of the kernel about rules of the routing policy, routes and links.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;

use super::socket;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV4_RULE`, `RTMGRP_IPV6_ROUTE`, and the group `RTNLGRP_IPV6_RULE`.
const GROUPS: u32 = 0x1 | 0x40 | 0x80 | 0x400 | 1 << 18;
/// Contents do not matter, so what is cut off does not either.
const LEN: usize = 4096;

/// Tells that rules, routes or links of the network namespace have changed, by whomever.
#[derive(Debug)]
pub struct RoutingWatch {
    socket: Socket,
}

impl RoutingWatch {
    /// Starts listening; earlier changes are not reported. Non-blocking, CLOEXEC, needs no permission.
    pub fn open() -> io::Result<Self> {
        let socket = socket::netlink(libc::NETLINK_ROUTE, GROUPS)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Reads all notifications; true if there were any, or if some were lost.
    pub fn drain(&mut self) -> io::Result<bool> {
        let mut changed = false;
        let mut buffer = [0; LEN];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(_) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for RoutingWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_watch_does_not_block() {
        RoutingWatch::open().unwrap().drain().unwrap();
    }
}
