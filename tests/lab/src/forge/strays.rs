//! A steady stream of packets that no client may see, of all kinds and both families at once.
//!
//! Three threads send: on the target, packets of every kind; on the router, ICMP errors about packets to the target; on the
//! online host, packets in the clients' names to which the target's own kernel answers, with or without an error.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::craft::{self, Ends, Flow};
use super::random::Random;
use crate::leak::{Kind, Packet, UDP, bpf, packet_socket};
use crate::network::{Family, Network, PORT, Role};
use crate::wait;

/// The time between two rounds. A round has a packet of each kind and family.
const PACE: Duration = Duration::from_millis(5);
/// How long so many rounds may take at most, each.
const SLOW: Duration = Duration::from_millis(200);
/// Flows whose connections the target has seen last.
const FLOWS: usize = 64;
/// An experimental protocol (RFC 3692), which the target does not know.
const UNKNOWN_PROTOCOL: u8 = 253;

/// Ports of clients from which the target's firewall refuses connections.
pub(crate) const REFUSED_PORTS: u16 = 512;

/// The running threads. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Strays {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Whether the router sends nothing.
    silent_router: AtomicBool,
    rounds: AtomicU64,
    made: AtomicU64,
}

impl Strays {
    /// Begins to send in a network with a router.
    ///
    /// The online host's own kernel answers what does not reach the target. With `as_tcpcopy`, that is about TCP to the
    /// service only, which tcpcopy sends.
    pub(crate) fn start(network: &Network, seed: u64, as_tcpcopy: bool) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut strays = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let (target, router) = (network.host(Role::Target, 0)?, network.host(Role::Router, 0)?);
        let (clients, services) = (Clients::of(network)?, both(|family| network.target(0, family))?);
        let sources = services.map(|service| service.ip());
        let socket = target.namespace().enter(listen)??;
        let flows = Flows { socket, clients: clients.clone(), recent: VecDeque::new() };
        let from_target =
            target.namespace().enter(|| Sender::open(sources.map(Some), seed, 1, &shared))??;
        let main = move || from_target.kinds(flows, services);
        strays.threads.push(std::thread::spawn(main));
        let sources = both(|family| Ok(router.back(family)))?;
        let from_router =
            router.namespace().enter(|| Sender::open(sources.map(Some), seed, 2, &shared))??;
        let known = clients.clone();
        strays.threads.push(std::thread::spawn(move || {
            from_router.errors(sources, &known, services);
            Ok(())
        }));
        let online = network.host(Role::Online, 0)?.namespace();
        let from_online = online.enter(|| Sender::open([None; 2], seed, 3, &shared))??;
        strays.threads.push(std::thread::spawn(move || {
            from_online.provoke(&clients, services, as_tcpcopy);
            Ok(())
        }));
        Ok(strays)
    }

    /// Packets made so far, those that a kernel refused to send included.
    pub(crate) fn made(&self) -> u64 {
        self.shared.made.load(Ordering::Relaxed)
    }

    /// Has the router send errors, or none. It sends them from the start.
    pub(crate) fn set_router(&self, sends: bool) {
        self.shared.silent_router.store(!sends, Ordering::Relaxed);
    }

    /// Waits until so many more rounds have been made.
    pub(crate) fn pass(&self, rounds: u32) -> Result<()> {
        let made = || self.shared.rounds.load(Ordering::Relaxed);
        let goal = made() + u64::from(rounds);
        wait::until(SLOW * rounds + SLOW, "strays are sent", || Ok(made() >= goal))
    }

    /// Ends the threads, and fails if one of them did.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_panic| anyhow!("a generator of strays panicked"))??;
        }
        Ok(self.made())
    }
}

impl Drop for Strays {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Sends strays of every kind on the calling thread's host, as the target would, from `service` to `client`, for so long.
/// Returns how many there were.
pub(crate) fn send(service: SocketAddr, client: IpAddr, seed: u64, until: Instant) -> Result<u64> {
    let shared = Arc::new(Shared::default());
    let from = [service.ip()].into_iter().find(IpAddr::is_ipv4);
    let from6 = [service.ip()].into_iter().find(IpAddr::is_ipv6);
    let mut sender = Sender::open([from, from6], seed, 1, &shared)?;
    while Instant::now() < until {
        for kind in Kind::ALL {
            let client = SocketAddr::new(client, sender.random.half());
            sender.stray(kind, service.ip(), Flow { service, client });
        }
        // The pace, not a condition.
        std::thread::sleep(PACE);
    }
    Ok(shared.made.load(Ordering::Relaxed))
}

fn both<T>(of: impl Fn(Family) -> Result<T>) -> Result<[T; 2]> {
    Ok([of(Family::V4)?, of(Family::V6)?])
}

/// The clients' addresses.
#[derive(Clone, Debug)]
struct Clients([Vec<IpAddr>; 2]);

impl Clients {
    fn of(network: &Network) -> Result<Self> {
        let client = network.host(Role::Client, 0)?;
        Ok(Self(Family::ALL.map(|family| client.sources(family))))
    }

    /// A client, and a port.
    fn any(&self, family: Family, port: u16, random: &mut Random) -> SocketAddr {
        let [v4, v6] = &self.0;
        let address = random.pick(if family == Family::V4 { v4 } else { v6 });
        SocketAddr::new(address, port)
    }
}

/// Raw sockets of both families on one host.
struct Sender {
    sockets: [Socket; 2],
    random: Random,
    shared: Arc<Shared>,
}

impl Sender {
    /// To be opened on the host that sends. Routing looks at the address that a raw socket is bound to, not at the packet's.
    fn open(from: [Option<IpAddr>; 2], seed: u64, stream: u64, shared: &Arc<Shared>) -> Result<Self> {
        let open = |domain: Domain, from: Option<IpAddr>| -> Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
            socket.set_nonblocking(true)?;
            if let Some(from) = from {
                socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
            }
            Ok(socket)
        };
        let [v4, v6] = from;
        let sockets = [open(Domain::IPV4, v4), open(Domain::IPV6, v6)];
        let [v4, v6] = sockets.map(|socket| socket.context("cannot open a raw socket"));
        Ok(Self { sockets: [v4?, v6?], random: Random::new(seed, stream), shared: Arc::clone(shared) })
    }

    /// Makes rounds until the end.
    fn rounds(mut self, mut round: impl FnMut(&mut Self, u64)) {
        let mut number = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            round(&mut self, number);
            number += 1;
            // The pace, not a condition.
            std::thread::sleep(PACE);
        }
    }

    /// Sends a packet. Kernels refuse some while there is no route, no link, or rules on the way out: that is no error.
    fn send(&self, packet: &[u8], ends: Ends) {
        let [v4, v6] = &self.sockets;
        let to = SockAddr::from(SocketAddr::new(ends.destination(), 0));
        let socket = if ends.destination().is_ipv4() { v4 } else { v6 };
        let _ = socket.send_to(packet, &to);
        self.shared.made.fetch_add(1, Ordering::Relaxed);
    }

    fn stray(&mut self, kind: Kind, from: IpAddr, flow: Flow) {
        let packet = craft::stray(kind, from, flow, &mut self.random);
        if let (Some(packet), Some(ends)) = (packet, Ends::new(from, flow.client.ip())) {
            self.send(&packet, ends);
        }
    }

    /// On the target: each kind for each family, half of them about connections that there are.
    fn kinds(self, mut flows: Flows, services: [SocketAddr; 2]) -> Result<()> {
        let mut failure = Ok(());
        self.rounds(|sender, _| {
            if let Err(error) = flows.read() {
                failure = Err(error);
            }
            for (family, service) in Family::ALL.into_iter().zip(services) {
                for kind in Kind::ALL {
                    let client = flows.pick(family, &mut sender.random);
                    sender.stray(kind, service.ip(), Flow { service, client });
                }
            }
            sender.shared.rounds.fetch_add(1, Ordering::Relaxed);
        });
        failure
    }

    /// On the router: errors about packets that tcpcopy sends.
    fn errors(self, sources: [IpAddr; 2], clients: &Clients, services: [SocketAddr; 2]) {
        self.rounds(|sender, _| {
            if sender.shared.silent_router.load(Ordering::Relaxed) {
                return;
            }
            for ((family, service), from) in Family::ALL.into_iter().zip(services).zip(sources) {
                let port = sender.random.half();
                let client = clients.any(family, port, &mut sender.random);
                let packet = craft::replay_error(from, Flow { service, client }, &mut sender.random);
                if let (Some(packet), Some(ends)) = (packet, Ends::new(from, client.ip())) {
                    sender.send(&packet, ends);
                }
            }
        });
    }

    /// On the online host: what the target's kernel answers. A few only, since it answers some of them again and again.
    fn provoke(self, clients: &Clients, services: [SocketAddr; 2], as_tcpcopy: bool) {
        self.rounds(|sender, round| {
            if !round.is_multiple_of(4) {
                return;
            }
            for (family, service) in Family::ALL.into_iter().zip(services) {
                let random = &mut sender.random;
                let port = 1 + u16::try_from(random.below(1_000)).unwrap_or_default();
                let client = clients.any(family, port, random);
                let Some(ends) = Ends::new(client.ip(), service.ip()) else { continue };
                let (protocol, body) = match random.below(4) {
                    0 if !as_tcpcopy => (UDP, craft::datagram(ends, port, service.port(), random)),
                    1 if !as_tcpcopy => (UNKNOWN_PROTOCOL, random.bytes::<16>().to_vec()),
                    _ => (crate::leak::TCP, craft::syn(ends, port, service.port(), random)),
                };
                let packet = craft::plain(ends, protocol, &body, random);
                sender.send(&packet, ends);
            }
        });
    }
}

/// The flows of the connections that the target has seen last.
struct Flows {
    socket: Socket,
    clients: Clients,
    recent: VecDeque<SocketAddr>,
}

impl Flows {
    fn read(&mut self) -> Result<()> {
        let mut frame = [0_u8; 128];
        loop {
            match self.socket.read(&mut frame) {
                Ok(length) => {
                    let packet = frame.get(14..length).and_then(Packet::parse);
                    let Some((packet, (port, _))) = packet.and_then(|packet| Some((packet, packet.ports()?)))
                    else {
                        continue;
                    };
                    self.recent.push_back(SocketAddr::new(packet.source, port));
                    if self.recent.len() > FLOWS {
                        self.recent.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) => return Err(error).context("capture on the target"),
            }
        }
    }

    /// A client and its port: of a connection, or of none.
    fn pick(&self, family: Family, random: &mut Random) -> SocketAddr {
        let known: Vec<SocketAddr> =
            self.recent.iter().copied().filter(|flow| flow.is_ipv4() == (family == Family::V4)).collect();
        if known.is_empty() || random.once_in(2) {
            let port = random.half();
            return self.clients.any(family, port, random);
        }
        random.pick(&known)
    }
}

/// A capture of SYNs to the mapped port.
fn listen() -> Result<Socket> {
    use bpf::{ANY_OF, EQUAL, LOAD_BYTE, LOAD_HALF, RETURN, Step};
    let socket = packet_socket().context("cannot capture")?;
    let port = u32::from(PORT);
    let program = [
        Step(LOAD_HALF, 0, 0, 12),
        Step(EQUAL, 0, 6, 0x0800),
        Step(LOAD_BYTE, 0, 0, 23),
        Step(EQUAL, 0, 12, 6), // TCP
        Step(LOAD_HALF, 0, 0, 36),
        Step(EQUAL, 0, 10, port),
        Step(LOAD_BYTE, 0, 0, 47),
        Step(ANY_OF, 7, 8, 2), // SYN
        Step(EQUAL, 0, 7, 0x86dd),
        Step(LOAD_BYTE, 0, 0, 20),
        Step(EQUAL, 0, 5, 6),
        Step(LOAD_HALF, 0, 0, 56),
        Step(EQUAL, 0, 3, port),
        Step(LOAD_BYTE, 0, 0, 67),
        Step(ANY_OF, 0, 1, 2),
        Step(RETURN, 0, 0, 128),
        Step(RETURN, 0, 0, 0),
    ];
    bpf::attach(&socket, &program)?;
    Ok(socket)
}
