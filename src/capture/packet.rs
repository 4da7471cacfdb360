//! Packet sockets as a [`Source`]: production packets are read where they come in, and no rule touches them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::error::CaptureError;
use super::filter::{self, End, Selected};
use super::handshakes::Handshakes;
use super::tap::{self, PacketTap, Selection};
use super::{Captured, Received, Source};
use crate::sys::mmsg::ReceiveBatch;
use crate::sys::packet::{Instruction, IpVersion, PacketSocket, has_checksum};
use crate::wire::{Mapping, Prefix};

/// The longest packet, but for those beyond 64 KiB that some kernels may be told to make (BIG TCP).
const LONGEST: usize = 65_536 + 40;
/// Of each socket: the same as a queue's.
const RECEIVE_BUFFER: usize = 32 << 20;

/// What packet sockets are to capture.
#[derive(Clone, Copy, Debug)]
pub struct PacketOptions<'a> {
    /// Packets for these services. An address that is not named is any, whether it is this host's or not.
    pub mappings: &'a [Mapping],
    /// Only these of [`SHARES`](crate::wire::flow::SHARES) connections.
    pub share: u16,
    /// Only connections of clients in one of these; none means all.
    pub clients: &'a [Prefix],
    /// The mark (`SO_MARK`) of packets that this program sends itself.
    pub mark: u32,
    /// Whether segments that carry nothing but an acknowledgement are captured too.
    pub pure_acks: bool,
    /// If they are not, whether those that end clients' handshakes are captured all the same.
    pub handshake_acks: bool,
}

/// One worker's packet sockets: one for each IP version.
///
/// Each worker gets the packets that [`wire::flow::split`](crate::wire::flow::split) gives it.
#[derive(Debug)]
pub struct PacketSource {
    sockets: Vec<PacketSocket>,
    batch: ReceiveBatch,
    handshakes: Option<Handshakes>,
}

/// Opens the sockets for so many workers. They take nothing before [`PacketTap::open`].
pub fn open_packet_sources(
    options: PacketOptions<'_>,
    workers: u16,
) -> Result<(Vec<PacketSource>, PacketTap), CaptureError> {
    let open = |version| PacketSocket::open(version, RECEIVE_BUFFER);
    let split = |version| filter::split(version, End::Source, workers);
    let (all, tap) = tap::open(&options, workers, open, split)?;
    let select = options.handshake_acks && !options.pure_acks;
    let source = |sockets| PacketSource {
        sockets,
        batch: ReceiveBatch::new(LONGEST),
        handshakes: select.then(Handshakes::new),
    };
    Ok((all.into_iter().map(source).collect(), tap))
}

/// In the place of another one, the options for acknowledgements must be those of the beginning.
impl Selection for PacketOptions<'_> {
    fn program(&self, version: IpVersion) -> Option<Vec<Instruction>> {
        let selected = Selected { mappings: self.mappings, share: self.share, clients: self.clients };
        filter::capture(selected, version, self.mark, self.pure_acks || self.handshake_acks)
    }
}

impl Source for PacketSource {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets.iter().map(PacketSocket::as_fd).collect()
    }

    fn receive(&mut self, each: &mut dyn FnMut(Captured<'_>)) -> io::Result<Received> {
        let mut received = Received::default();
        for socket in &self.sockets {
            match socket.receive(&mut self.batch) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            for packet in self.batch.datagrams() {
                if packet.truncated {
                    received.malformed += 1;
                } else if self.handshakes.as_mut().is_none_or(|handshakes| handshakes.wants(packet.bytes)) {
                    received.packets += 1;
                    each(Captured {
                        id: 0,
                        bytes: packet.bytes,
                        original_len: packet.bytes.len(),
                        has_checksum: has_checksum(packet.control),
                    });
                } else {
                    received.left_out += 1;
                }
            }
            received.full |= self.batch.is_full();
        }
        Ok(received)
    }
}
