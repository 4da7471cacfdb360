//! What the packet sockets of all workers have in common, whatever is read from them: their filters and counters.

use std::io;

use super::error::CaptureError;
use crate::sys::BufferSize;
use crate::sys::packet::{Instruction, IpVersion, PacketSocket};

/// What is captured, as programs for packet sockets.
pub trait Selection {
    /// The program for packets of one IP version; `None` if it is longer than the kernel allows.
    #[doc(hidden)]
    fn program(&self, version: IpVersion) -> Option<Vec<Instruction>>;
}

/// Opens and closes the sockets of all workers, and knows what went through.
#[derive(Debug)]
pub struct PacketTap {
    sockets: Vec<Twin>,
    programs: Programs,
    /// Of each worker.
    passed: Vec<PacketCounters>,
}

/// A socket that a worker reads.
#[derive(Debug)]
struct Twin {
    worker: usize,
    version: IpVersion,
    socket: PacketSocket,
}

/// What is captured of each IP version.
#[derive(Debug)]
struct Programs {
    v4: Vec<Instruction>,
    v6: Vec<Instruction>,
}

/// What went through sockets' filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounters {
    /// Packets captured, or to be captured.
    pub packets: u64,
    /// Those of them that the kernel dropped, because there was no room for them.
    pub dropped: u64,
}

/// Opens sockets for so many workers, of each IP version one, among which the kernel splits the packets as `split` says.
/// They take nothing before [`PacketTap::open`].
pub(super) fn open<S: AsRef<PacketSocket>>(
    selection: &impl Selection,
    workers: u16,
    open: impl Fn(IpVersion) -> io::Result<S>,
    split: impl Fn(IpVersion) -> Vec<Instruction>,
) -> Result<(Vec<Vec<S>>, PacketTap), CaptureError> {
    let programs = Programs::new(selection)?;
    let mut all: Vec<Vec<S>> = (0..workers).map(|_| Vec::new()).collect();
    let mut twins = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let mut group = None;
        for (worker, sockets) in all.iter_mut().enumerate() {
            let socket = open(version).map_err(CaptureError::packet)?;
            if workers > 1 {
                let joined = socket.as_ref().join(group, &split(version)).map_err(CaptureError::packet)?;
                group = Some(joined);
            }
            let twin = socket.as_ref().try_clone().map_err(CaptureError::packet)?;
            twins.push(Twin { worker, version, socket: twin });
            sockets.push(socket);
        }
    }
    let passed = vec![PacketCounters::default(); all.len()];
    Ok((all, PacketTap { sockets: twins, programs, passed }))
}

impl Programs {
    fn new(selection: &impl Selection) -> Result<Self, CaptureError> {
        let program = |version| selection.program(version).ok_or(CaptureError::LongFilter);
        Ok(Self { v4: program(IpVersion::V4)?, v6: program(IpVersion::V6)? })
    }
}

impl PacketTap {
    /// What became of the receive buffers asked for, if one is less.
    pub fn short_buffer(&self) -> Option<BufferSize> {
        let mut buffers = self.sockets.iter().filter_map(|twin| twin.socket.receive_buffer());
        buffers.find(BufferSize::is_short)
    }

    /// From now on packets are captured.
    pub fn open(&self) -> io::Result<()> {
        self.sockets.iter().try_for_each(|twin| match twin.version {
            IpVersion::V4 => twin.socket.attach(&self.programs.v4),
            IpVersion::V6 => twin.socket.attach(&self.programs.v6),
        })
    }

    /// Captures something else from now on.
    pub fn replace(&mut self, selection: &impl Selection) -> Result<(), CaptureError> {
        self.programs = Programs::new(selection)?;
        self.open().map_err(CaptureError::packet)
    }

    /// From now on nothing is captured. What was captured can still be received.
    pub fn close(&self) -> io::Result<()> {
        self.sockets.iter().try_for_each(|twin| twin.socket.close())
    }

    /// What has gone through so far.
    pub fn counters(&mut self) -> io::Result<PacketCounters> {
        let mut total = PacketCounters::default();
        for passed in self.counters_of_workers()? {
            total.packets += passed.packets;
            total.dropped += passed.dropped;
        }
        Ok(total)
    }

    /// The same of each worker.
    pub fn counters_of_workers(&mut self) -> io::Result<&[PacketCounters]> {
        for twin in &self.sockets {
            // The kernel counts from zero after each look.
            let passed = twin.socket.passed()?;
            if let Some(total) = self.passed.get_mut(twin.worker) {
                total.packets += u64::from(passed.packets);
                total.dropped += u64::from(passed.dropped);
            }
        }
        Ok(&self.passed)
    }
}
