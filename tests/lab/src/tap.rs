//! How long a server takes to answer, as its own network interface sees it: the same measure for the online server, which
//! has real clients, and for the target, which has none.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::Socket;

use crate::leak::{bpf, packet_socket};
use crate::load::Latency;
use crate::namespace::Namespace;
use crate::network::PORT;
use crate::sys;

/// As much of a packet as the headers need.
const HEADERS: usize = 96;
/// Requests that wait for their response at most; the answer to more is not measured.
const MOST_WAITING: usize = 100_000;

/// Measures one server, IPv4 only.
#[derive(Debug)]
pub(crate) struct ServerTap {
    recent: Arc<Mutex<Latency>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl ServerTap {
    /// Begins to measure the server on a host.
    pub(crate) fn start(on: &Namespace) -> Result<Self> {
        let socket = on.enter(packet_socket)?.context("cannot capture")?;
        bpf::attach(&socket, &filter())?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (recent, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (shared, asked) = (Arc::clone(&recent), Arc::clone(&stop));
        let thread = std::thread::spawn(move || watch(&socket, &shared, &asked));
        Ok(Self { recent, stop, thread: Some(thread) })
    }

    /// Takes the latencies since the last call.
    pub(crate) fn take_recent(&self) -> Latency {
        std::mem::take(&mut self.recent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for ServerTap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A client's address and port.
type Peer = (Ipv4Addr, u16);

/// A packet with data.
#[derive(Debug, PartialEq, Eq)]
enum Data {
    Request(Peer),
    Response(Peer),
}

fn watch(mut socket: &Socket, recent: &Mutex<Latency>, stop: &AtomicBool) -> Result<()> {
    let mut waiting: HashMap<Peer, u64> = HashMap::new();
    let mut packet = [0_u8; HEADERS];
    while !stop.load(Ordering::Relaxed) {
        let length = match socket.read(&mut packet) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error).context("tap"),
        };
        let Some(data) = packet.get(..length).and_then(parse) else { continue };
        let Ok(time) = sys::last_packet_time(&socket) else { continue };
        match data {
            Data::Request(peer) if waiting.len() < MOST_WAITING => {
                waiting.insert(peer, time);
            }
            Data::Request(_) => {}
            Data::Response(peer) => {
                if let Some(begun) = waiting.remove(&peer) {
                    let latency = Duration::from_nanos(time.saturating_sub(begun));
                    recent.lock().unwrap_or_else(PoisonError::into_inner).add(latency);
                }
            }
        }
    }
    Ok(())
}

/// A frame that holds TCP data from or to the server.
fn parse(frame: &[u8]) -> Option<Data> {
    let ip = frame.get(14..)?;
    let header = usize::from(ip.first()? & 0x0f) * 4;
    let half = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let tcp = ip.get(header..)?;
    let offset = usize::from(tcp.get(12)? >> 4) * 4;
    if usize::from(half(ip, 2)?) <= header + offset {
        return None;
    }
    if half(tcp, 2)? == PORT {
        Some(Data::Request((address(12)?, half(tcp, 0)?)))
    } else {
        (half(tcp, 0)? == PORT).then_some(Data::Response((address(16)?, half(tcp, 2)?)))
    }
}

/// IPv4 and TCP; the rest is looked at in user space.
fn filter() -> Vec<bpf::Step> {
    let kept = u32::try_from(HEADERS).unwrap_or(u32::MAX);
    vec![
        bpf::Step(bpf::LOAD_HALF, 0, 0, 12),
        bpf::Step(bpf::EQUAL, 0, 3, 0x0800),
        bpf::Step(bpf::LOAD_BYTE, 0, 0, 23),
        bpf::Step(bpf::EQUAL, 0, 1, 6),
        bpf::Step(bpf::RETURN, 0, 0, kept),
        bpf::Step(bpf::RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(source: u16, destination: u16, payload: u8) -> Vec<u8> {
        let mut frame = vec![0; 14];
        frame.extend([0x45, 0, 0, 52 + payload, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(source.to_be_bytes());
        frame.extend(destination.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x18]);
        frame
    }

    #[test]
    fn only_data_counts() {
        assert_eq!(parse(&frame(4000, 80, 0)), None);
        assert_eq!(parse(&frame(4000, 80, 1)), Some(Data::Request((Ipv4Addr::new(10, 0, 0, 1), 4000))));
        assert_eq!(parse(&frame(80, 4000, 1)), Some(Data::Response((Ipv4Addr::new(10, 0, 0, 2), 4000))));
        assert_eq!(parse(&frame(4000, 80, 1)[..40]), None);
    }
}
