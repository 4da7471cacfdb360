//! Rings of packet sockets as a [`Source`]: the headers of responses, read where those come in.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::error::CaptureError;
use super::filter::{self, End};
use super::tap::{self, PacketTap, Selection};
use super::{Captured, Received, Source};
use crate::sys::mmsg::BATCH;
use crate::sys::packet::{Instruction, IpVersion};
use crate::sys::ring::{HEADERS, Ring};
use crate::wire::Prefix;

/// Which responses are captured.
#[derive(Clone, Copy, Debug)]
pub struct ResponseOptions<'a> {
    /// The services that send them.
    pub targets: &'a [SocketAddr],
    /// Only those to clients in one of these; none means all.
    pub clients: &'a [Prefix],
}

/// One worker's rings: one for each IP version.
///
/// Each worker gets the packets that [`wire::flow::split`](crate::wire::flow::split) gives it.
#[derive(Debug)]
pub struct HeaderSource {
    rings: Vec<Ring>,
}

/// Opens the rings for so many workers. They take nothing before [`PacketTap::open`].
pub fn open_header_sources(
    options: ResponseOptions<'_>,
    workers: u16,
) -> Result<(Vec<HeaderSource>, PacketTap), CaptureError> {
    let split = |version| filter::split(version, End::Destination, workers);
    let (all, tap) = tap::open(&options, workers, Ring::open, split)?;
    Ok((all.into_iter().map(|rings| HeaderSource { rings }).collect(), tap))
}

impl Selection for ResponseOptions<'_> {
    fn program(&self, version: IpVersion) -> Option<Vec<Instruction>> {
        filter::responses(self.targets, self.clients, version, HEADERS)
    }
}

impl Source for HeaderSource {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.rings.iter().map(Ring::as_fd).collect()
    }

    fn receive(&mut self, each: &mut dyn FnMut(Captured<'_>)) -> io::Result<Received> {
        let mut received = Received::default();
        for ring in &mut self.rings {
            let count = ring.receive(BATCH, &mut |frame| match frame.bytes {
                Some(bytes) => {
                    received.packets += 1;
                    let (original_len, has_checksum) = (frame.original_len, frame.has_checksum);
                    each(Captured { id: 0, bytes, original_len, has_checksum });
                }
                None => received.malformed += 1,
            });
            received.full |= count == BATCH;
        }
        Ok(received)
    }
}
