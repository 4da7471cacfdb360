//! A network in which packets overtake each other or are damaged: a bridge in user space between a host and its switch,
//! which holds some frames back for a moment, or changes a bit of them.
//!
//! It carries frames as they are, so the network must be without segmentation and checksum offloads.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::Socket;

use crate::leak::{bpf, packet_socket};
use crate::namespace::run;
use crate::network::{Host, Segment, port_name};
use crate::sys;

/// The middlebox's link to the switch: the switch's end and its own.
const LINK: [&str; 2] = ["mid-switch", "mid-box"];
/// Longest frame without offloads, and more.
const FRAME: usize = 4096;
/// How long a frame is held back. What comes within that time overtakes it.
const HELD: Duration = Duration::from_millis(2);
/// How often the end is looked for.
const POLL: Duration = Duration::from_millis(50);

/// What becomes of a frame that chance has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Those after it overtake it.
    Late,
    /// It arrives with another bit in its last byte, which TCP's checksum covers.
    Damaged,
}

/// A running middlebox. Dropping it joins host and switch again.
#[derive(Debug)]
pub(crate) struct Middlebox {
    port: String,
    switch: String,
    chosen: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Middlebox {
    /// Has `percent` of the TCP frames from or to `tcp_port` that a host receives or sends on a segment meet with a fault,
    /// IPv4 only.
    pub(crate) fn start(
        host: &Host,
        segment: Segment,
        tcp_port: u16,
        percent: u8,
        fault: Fault,
    ) -> Result<Self> {
        let (port, switch) = (port_name(host, segment), segment.switch());
        let [outer, inner] = LINK;
        let lines = format!(
            "link add {outer} type veth peer name {inner}\nlink set {inner} up\nlink set {port} nomaster\n\
             link set {outer} master {switch} up\n"
        );
        run(Command::new("ip").args(["-batch", "-"]), Some(&lines))?;
        let (chosen, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut carrier = Carrier {
            sides: [open(&port)?, open(inner)?],
            held: VecDeque::new(),
            random: 0x2545_f491_4f6c_dd1d,
            tcp_port,
            percent,
            fault,
            chosen: Arc::clone(&chosen),
        };
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || carrier.run(&asked));
        Ok(Self { port, switch, chosen, stop, thread: Some(thread) })
    }

    /// Ends it. Returns how many frames met with the fault.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_panic| anyhow!("the middlebox panicked"))??;
        }
        Ok(self.chosen.load(Ordering::Relaxed))
    }
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let lines = format!("link delete {}\nlink set {} master {}\n", LINK[0], self.port, self.switch);
        let _ = run(Command::new("ip").args(["-force", "-batch", "-"]), Some(&lines));
    }
}

/// A socket for the frames that come in on a link.
fn open(link: &str) -> Result<Socket> {
    /// Offset of a packet's type for the filter, and the type of those that go out; linux/filter.h, linux/if_packet.h.
    const PACKET_TYPE: u32 = 0xffff_f004;
    const OUTGOING: u32 = 4;
    let socket = packet_socket()?;
    let incoming = [
        bpf::Step(bpf::LOAD_BYTE, 0, 0, PACKET_TYPE),
        bpf::Step(bpf::EQUAL, 0, 1, OUTGOING),
        bpf::Step(bpf::RETURN, 0, 0, 0),
        bpf::Step(bpf::RETURN, 0, 0, 0xffff),
    ];
    bpf::attach(&socket, &incoming)?;
    sys::bind_to_link(&socket, link).with_context(|| format!("cannot capture on {link}"))?;
    // What came before the socket was bound may be of any link.
    while (&socket).read(&mut [0; FRAME]).is_ok() {}
    Ok(socket)
}

/// A frame on its way.
struct Held {
    due: Instant,
    to: usize,
    frame: Vec<u8>,
}

/// The middlebox's thread.
struct Carrier {
    /// Towards the host, and towards the switch.
    sides: [Socket; 2],
    held: VecDeque<Held>,
    random: u64,
    tcp_port: u16,
    percent: u8,
    fault: Fault,
    chosen: Arc<AtomicU64>,
}

impl Carrier {
    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut poll = Poll::new()?;
        for (number, side) in self.sides.iter().enumerate() {
            poll.registry().register(&mut SourceFd(&side.as_raw_fd()), Token(number), Interest::READABLE)?;
        }
        let mut events = Events::with_capacity(8);
        while !stop.load(Ordering::Relaxed) {
            let wait =
                self.held.front().map_or(POLL, |held| held.due.saturating_duration_since(Instant::now()));
            match poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
            for from in 0..self.sides.len() {
                self.carry(from)?;
            }
            while self.held.front().is_some_and(|held| held.due <= Instant::now()) {
                if let Some(held) = self.held.pop_front() {
                    self.send(held.to, &held.frame);
                }
            }
        }
        Ok(())
    }

    /// Carries what has come from one side over to the other.
    fn carry(&mut self, from: usize) -> Result<()> {
        let to = 1 - from;
        let mut buffer = [0; FRAME];
        loop {
            let Some(mut side) = self.sides.get(from) else { return Ok(()) };
            let length = match side.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("middlebox"),
            };
            let frame = buffer.get_mut(..length).unwrap_or_default();
            if !has_port(frame, self.tcp_port) || !self.chance() {
                self.send(to, frame);
                continue;
            }
            self.chosen.fetch_add(1, Ordering::Relaxed);
            match self.fault {
                Fault::Late => {
                    self.held.push_back(Held { due: Instant::now() + HELD, to, frame: frame.to_owned() });
                }
                Fault::Damaged => {
                    if let Some(last) = frame.last_mut() {
                        *last ^= 4;
                    }
                    self.send(to, frame);
                }
            }
        }
    }

    /// Sends a frame; one for which there is no room is lost, as in any network.
    fn send(&self, to: usize, frame: &[u8]) {
        if let Some(mut side) = self.sides.get(to) {
            let _ = side.write(frame);
        }
    }

    fn chance(&mut self) -> bool {
        // xorshift64 (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100 < u64::from(self.percent)
    }
}

/// Whether a frame is TCP over IPv4, from or to a port.
fn has_port(frame: &[u8], port: u16) -> bool {
    let ends = |frame: &[u8]| -> Option<[u16; 2]> {
        let ip = frame.strip_prefix(frame.get(..12)?)?.strip_prefix(&[0x08, 0x00])?;
        let header = usize::from(ip.first()? & 0x0f) * 4;
        let tcp = ip.get(header..).filter(|_| ip.get(9) == Some(&6))?;
        let half = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        Some([half(0)?, half(2)?])
    };
    ends(frame).is_some_and(|ends| ends.contains(&port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_by_their_port() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x0f, 0xa0, 0, 80]);
        assert!(has_port(&frame, 80) && has_port(&frame, 4000) && !has_port(&frame, 81));
        frame[23] = 17;
        assert!(!has_port(&frame, 80));
        assert!(!has_port(&frame[..30], 80));
    }
}
