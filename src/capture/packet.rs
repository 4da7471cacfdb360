//! Packet sockets as a [`Source`]: production packets are read where they come in, and no rule touches them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::error::CaptureError;
use super::filter;
use super::handshakes::Handshakes;
use super::{Captured, Received, Source};
use crate::sys::BufferSize;
use crate::sys::mmsg::ReceiveBatch;
use crate::sys::packet::{Instruction, IpVersion, PacketSocket, has_checksum};
use crate::wire::Mapping;

/// The longest packet, but for those beyond 64 KiB that some kernels may be told to make (BIG TCP).
const LONGEST: usize = 65_536 + 40;
/// Of each socket: the same as a queue's.
const RECEIVE_BUFFER: usize = 32 << 20;

/// What packet sockets are to capture.
#[derive(Clone, Copy, Debug)]
pub struct PacketOptions<'a> {
    /// Packets for these services. An address that is not named is any, whether it is this host's or not.
    pub mappings: &'a [Mapping],
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

/// Opens and closes the sockets of all workers, and knows what went through.
#[derive(Debug)]
pub struct PacketTap {
    sockets: Vec<(IpVersion, PacketSocket)>,
    programs: Programs,
    passed: PacketCounters,
}

/// What is captured of each IP version.
#[derive(Debug)]
struct Programs {
    v4: Vec<Instruction>,
    v6: Vec<Instruction>,
}

/// What went through all sockets' filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounters {
    /// Packets captured, or to be captured.
    pub packets: u64,
    /// Those of them that the kernel dropped, because a receive buffer was full.
    pub dropped: u64,
}

/// Opens the sockets for so many workers. They take nothing before [`PacketTap::open`].
pub fn open_packet_sources(
    options: PacketOptions<'_>,
    workers: u16,
) -> Result<(Vec<PacketSource>, PacketTap), CaptureError> {
    let programs = Programs::new(options)?;
    let mut all: Vec<Vec<PacketSocket>> = (0..workers).map(|_| Vec::new()).collect();
    let mut twins = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let mut group = None;
        for sockets in &mut all {
            let socket = open_socket(version, workers, &mut group).map_err(CaptureError::packet)?;
            twins.push((version, socket.try_clone().map_err(CaptureError::packet)?));
            sockets.push(socket);
        }
    }
    let select = options.handshake_acks && !options.pure_acks;
    let source = |sockets| PacketSource {
        sockets,
        batch: ReceiveBatch::new(LONGEST),
        handshakes: select.then(Handshakes::new),
    };
    let tap = PacketTap { sockets: twins, programs, passed: PacketCounters::default() };
    Ok((all.into_iter().map(source).collect(), tap))
}

fn open_socket(version: IpVersion, workers: u16, group: &mut Option<u16>) -> io::Result<PacketSocket> {
    let socket = PacketSocket::open(version, RECEIVE_BUFFER)?;
    if workers > 1 {
        *group = Some(socket.join(*group, &filter::split(version, workers))?);
    }
    Ok(socket)
}

impl Programs {
    fn new(options: PacketOptions<'_>) -> Result<Self, CaptureError> {
        let PacketOptions { mappings, mark, pure_acks, handshake_acks } = options;
        let program = |version| {
            filter::capture(mappings, version, mark, pure_acks || handshake_acks)
                .ok_or(CaptureError::TooManyMappings)
        };
        Ok(Self { v4: program(IpVersion::V4)?, v6: program(IpVersion::V6)? })
    }
}

impl PacketTap {
    /// What became of the receive buffer asked for, if it is less.
    pub fn short_buffer(&self) -> Option<BufferSize> {
        let mut buffers = self.sockets.iter().map(|(_, socket)| socket.receive_buffer());
        buffers.find(BufferSize::is_short)
    }

    /// From now on packets are captured.
    pub fn open(&self) -> io::Result<()> {
        self.sockets.iter().try_for_each(|(version, socket)| match version {
            IpVersion::V4 => socket.attach(&self.programs.v4),
            IpVersion::V6 => socket.attach(&self.programs.v6),
        })
    }

    /// Captures for other mappings from now on; the options for acknowledgements must be those of the beginning.
    pub fn replace(&mut self, options: PacketOptions<'_>) -> Result<(), CaptureError> {
        self.programs = Programs::new(options)?;
        self.open().map_err(CaptureError::packet)
    }

    /// From now on nothing is captured. What was captured can still be received.
    pub fn close(&self) -> io::Result<()> {
        self.sockets.iter().try_for_each(|(_, socket)| socket.close())
    }

    /// What has gone through so far.
    pub fn counters(&mut self) -> io::Result<PacketCounters> {
        for (_, socket) in &self.sockets {
            let passed = socket.passed()?;
            self.passed.packets += u64::from(passed.packets);
            self.passed.dropped += u64::from(passed.dropped);
        }
        Ok(self.passed)
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
