//! The target host: smoltcp as its TCP, and a [`Server`] on every connection.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use tcpcopy::wire::{Flags, Outgoing, Packet, Seq, TcpHeader, TcpOptions, Time, parse};

use crate::scenario::Setup;
use crate::server::{Ledger, Order, Server};

/// The port the target listens on.
pub(crate) const PORT: u16 = 8080;
const MTU: usize = 1500;
/// How often a slow application reads, in microseconds.
const READ_EVERY: u64 = 10_000;

thread_local! {
    /// smoltcp asks a plain function for its timestamps.
    static MILLIS: Cell<u32> = const { Cell::new(0) };
}

/// A connection as seen on the wire.
#[derive(Debug)]
struct Track {
    handle: SocketHandle,
    client_isn: Seq,
    /// How far the client's bytes have come, and how much had been sent when each part came.
    reached: u64,
    arrivals: Vec<(u64, u64)>,
    server_isn: Option<Seq>,
    sent: u64,
    snd_nxt: Seq,
    rcv_nxt: Seq,
}

/// A connection as the application has it.
struct Conn {
    handle: SocketHandle,
    peer: SocketAddr,
    server: Server,
    /// The application has closed it.
    closed: bool,
    reads_at: Time,
}

/// The target host.
pub(crate) struct Target {
    iface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    conns: Vec<Conn>,
    tracks: BTreeMap<SocketAddr, Track>,
    receive_buffer: usize,
    pub(crate) ledger: Ledger,
}

fn instant(now: Time) -> Instant {
    Instant::from_micros(i64::try_from(now.micros()).expect("short"))
}

impl Target {
    /// A host with `addresses` and nothing under way.
    pub(crate) fn new(setup: &Setup, addresses: [SocketAddr; 2], seed: u64, ledger: Ledger) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut wire, Instant::ZERO);
        iface.update_ip_addrs(|list| {
            for address in addresses {
                let whole = if address.is_ipv4() { 24 } else { 64 };
                list.push(IpCidr::new(address.ip().into(), whole)).expect("room");
            }
        });
        let routes = iface.routes_mut();
        routes.add_default_ipv4_route([10, 2, 0, 254].into()).expect("room");
        routes.add_default_ipv6_route([0xfd02, 0, 0, 0, 0, 0, 0, 0xff].into()).expect("room");
        let sockets = SocketSet::new(Vec::new());
        let receive_buffer = setup.receive_buffer;
        let (conns, tracks) = (Vec::new(), BTreeMap::new());
        Self { iface, sockets, wire, conns, tracks, receive_buffer, ledger }
    }

    /// The host has crashed and is back: it knows nothing of what was.
    pub(crate) fn restart(&mut self) {
        for conn in std::mem::take(&mut self.conns) {
            let unread = self.sockets.get::<Socket>(conn.handle).recv_queue() as u64;
            self.ledger.wasted += unread + conn.server.unparsed();
        }
        self.sockets = SocketSet::new(Vec::new());
        self.tracks.clear();
    }

    /// A packet arrives; `sound` unless its checksum is wrong.
    pub(crate) fn deliver(&mut self, now: Time, bytes: Vec<u8>, sound: bool, setup: &Setup) {
        self.listen();
        let swallow = sound && parse(&bytes, bytes.len()).is_ok_and(|packet| self.inspect(&packet));
        if !swallow {
            self.wire.received.push_back(bytes);
        }
        self.run(now, setup);
    }

    /// Does what a host does and smoltcp does not. Returns whether that is all.
    fn inspect(&mut self, packet: &Packet<'_>) -> bool {
        let header = packet.header;
        let state = self.state_of(packet.src);
        if header.flags.syn() {
            match state {
                Some(State::TimeWait) => {
                    // RFC 9293, 3.10.7.4: a new SYN may end TIME-WAIT.
                    self.forget(packet.src);
                    self.track(packet);
                }
                None | Some(State::Closed | State::Listen) => self.track(packet),
                Some(_) => {
                    // A listening socket must not see it. In SYN-RECEIVED, the SYN-ACK comes again
                    // by smoltcp's own timer.
                    if state != Some(State::SynReceived) {
                        self.challenge(packet);
                    }
                    return true;
                }
            }
            return false;
        }
        let Some(track) = self.tracks.get_mut(&packet.src) else { return false };
        let end = header.seq.add(header.payload_len);
        let Some(end) = end.unwrap_near(0, track.client_isn.add(1)) else { return false };
        if end > track.reached && !packet.payload.is_empty() {
            track.arrivals.push((track.reached, track.sent));
            track.reached = end;
        }
        let conn = self.conns.iter_mut().find(|conn| conn.handle == track.handle && conn.closed);
        if let Some(conn) = conn
            && header.payload_len > 0
            && end > conn.server.read
        {
            // Data for an application that has closed: nobody will read it (RFC 9293, 3.10.7.4).
            self.sockets.get_mut::<Socket>(conn.handle).abort();
            return true;
        }
        false
    }

    fn state_of(&self, peer: SocketAddr) -> Option<State> {
        let track = self.tracks.get(&peer)?;
        let socket = self.sockets.get::<Socket>(track.handle);
        let own = socket.remote_endpoint().map(SocketAddr::from) == Some(peer);
        own.then(|| socket.state())
    }

    /// Follows a connection from its SYN on.
    fn track(&mut self, packet: &Packet<'_>) {
        let listening = self.sockets.iter().find(|(_, socket)| match socket {
            smoltcp::socket::Socket::Tcp(tcp) => tcp.state() == State::Listen,
        });
        let Some((handle, _)) = listening else { return };
        let isn = packet.header.seq;
        self.tracks.insert(
            packet.src,
            Track {
                handle,
                client_isn: isn,
                reached: 0,
                arrivals: Vec::new(),
                server_isn: None,
                sent: 0,
                snd_nxt: Seq(0),
                rcv_nxt: isn.add(1),
            },
        );
    }

    fn forget(&mut self, peer: SocketAddr) {
        let Some(track) = self.tracks.remove(&peer) else { return };
        self.conns.retain(|conn| conn.handle != track.handle);
        self.sockets.remove(track.handle);
    }

    /// RFC 5961, 4: a SYN for a connection that exists is answered with an ACK.
    fn challenge(&mut self, packet: &Packet<'_>) {
        let Some(track) = self.tracks.get(&packet.src) else { return };
        let header = TcpHeader {
            seq: track.snd_nxt,
            ack: track.rcv_nxt,
            flags: Flags::ACK,
            window: 1000,
            options: TcpOptions::default(),
            payload_len: 0,
        };
        let mut out = Outgoing::default();
        out.payload();
        self.wire.sent.extend(out.finish(packet.dst, packet.src, &header).map(<[u8]>::to_vec));
    }

    /// There is always a socket for the next connection.
    fn listen(&mut self) {
        let listening = |(_, socket): (_, &smoltcp::socket::Socket)| match socket {
            smoltcp::socket::Socket::Tcp(tcp) => tcp.state() == State::Listen,
        };
        if self.sockets.iter().any(listening) {
            return;
        }
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(self.receive_buffer), buffer(32_768));
        socket.set_tsval_generator(Some(|| MILLIS.get()));
        socket.listen(PORT).expect("a port");
        self.sockets.add(socket);
    }

    /// Time has passed: the stack and the applications run.
    pub(crate) fn run(&mut self, now: Time, setup: &Setup) {
        MILLIS.set(u32::try_from(now.micros() / 1000 + 1).expect("short"));
        self.poll(now);
        self.accept(now, setup);
        let mut wrote = false;
        for at in 0..self.conns.len() {
            wrote |= self.serve(now, setup, at);
        }
        if wrote {
            self.poll(now);
        }
        self.bury();
    }

    fn poll(&mut self, now: Time) {
        let before = self.wire.sent.len();
        self.iface.poll(instant(now), &mut self.wire, &mut self.sockets);
        for bytes in &self.wire.sent[before..] {
            let packet = parse(bytes, bytes.len()).expect("smoltcp sends packets");
            let Some(track) = self.tracks.get_mut(&packet.dst) else { continue };
            let header = packet.header;
            if header.flags.syn() {
                track.server_isn = Some(header.seq);
            }
            let Some(isn) = track.server_isn.filter(|_| !header.flags.rst()) else { continue };
            let end = u64::from(header.seq.add(header.payload_len).offset_from(isn.add(1)));
            if header.payload_len > 0 {
                track.sent = track.sent.max(end);
            }
            (track.snd_nxt, track.rcv_nxt) = (header.end(), header.ack);
        }
    }

    fn accept(&mut self, now: Time, setup: &Setup) {
        for (peer, track) in &self.tracks {
            let handle = track.handle;
            let socket = self.sockets.get::<Socket>(handle);
            let known = self.conns.iter().any(|conn| conn.handle == handle);
            let waiting = matches!(socket.state(), State::Listen | State::SynReceived | State::Closed);
            if !known && !waiting && socket.remote_endpoint().map(SocketAddr::from) == Some(*peer) {
                self.conns.push(Conn {
                    handle,
                    peer: *peer,
                    server: Server::new(setup),
                    closed: false,
                    reads_at: now,
                });
            }
        }
    }

    /// One connection's application runs. Returns whether it did something.
    fn serve(&mut self, now: Time, setup: &Setup, at: usize) -> bool {
        let Self { conns, sockets, tracks, ledger, .. } = self;
        let conn = &mut conns[at];
        let socket = sockets.get_mut::<Socket>(conn.handle);
        let mut busy = false;
        if !conn.closed && socket.can_recv() && now >= conn.reads_at {
            let mut bytes = vec![0; setup.read_rate.unwrap_or(usize::MAX).min(socket.recv_queue())];
            let len = socket.recv_slice(&mut bytes).unwrap_or(0);
            if setup.read_rate.is_some() {
                conn.reads_at = Time::from_micros(now.micros() + READ_EVERY);
            }
            let sent_before = |offset: u64| {
                let arrivals = tracks.get(&conn.peer).map(|track| &track.arrivals);
                let part = arrivals.and_then(|all| all.iter().rev().find(|(start, _)| *start <= offset));
                part.map_or(0, |(_, sent)| *sent)
            };
            let order = conn.server.take(now, setup, &bytes[..len], ledger, &sent_before);
            busy = true;
            if order == Some(Order::Abort) {
                conn.closed = true;
                socket.abort();
            }
        }
        conn.server.wake(now);
        while !conn.closed && conn.server.to_write > 0 && socket.can_send() {
            let len = usize::try_from(conn.server.to_write).expect("small").min(16_384);
            let written = socket.send_slice(&vec![b'r'; len]).unwrap_or(0);
            conn.server.to_write -= written as u64;
            busy = true;
        }
        let eof = !socket.may_recv() && socket.recv_queue() == 0 && conn.server.is_done();
        let wants_close = conn.server.after_write(setup, ledger).is_some();
        if !conn.closed && (eof || wants_close) {
            conn.closed = true;
            busy = true;
            if socket.recv_queue() > 0 || (wants_close && conn.server.unparsed() > 0) {
                // Linux does so too when it closes a socket with unread data (RFC 2525, 2.17).
                socket.abort();
            } else {
                socket.close();
            }
        }
        busy
    }

    /// Connections that are over leave.
    fn bury(&mut self) {
        let Self { conns, sockets, tracks, ledger, .. } = self;
        conns.retain(|conn| {
            let socket = sockets.get::<Socket>(conn.handle);
            let gone = socket.state() == State::Closed && socket.remote_endpoint().is_none();
            let over = gone && (conn.closed || socket.recv_queue() == 0);
            if over {
                ledger.wasted += conn.server.unparsed() + socket.recv_queue() as u64;
                tracks.retain(|_, track| track.handle != conn.handle);
                sockets.remove(conn.handle);
            }
            !over
        });
    }

    /// The packets sent since the last call.
    pub(crate) fn take_sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.wire.sent)
    }

    /// The replayer has seen an ACK of the connection with `peer`.
    pub(crate) fn heard(&mut self, peer: SocketAddr, ack: Seq) {
        let Some(track) = self.tracks.get(&peer) else { return };
        let Some(conn) = self.conns.iter().find(|conn| conn.handle == track.handle) else { return };
        if let Some((id, base)) = conn.server.base(&self.ledger) {
            let acked = base + u64::from(ack.offset_from(track.client_isn.add(1)));
            let dialogue = &self.ledger.dialogues[id];
            let end = dialogue.requests.last().map_or(0, crate::client::Request::end);
            self.ledger.heard[id] = self.ledger.heard[id].max(acked.min(end));
        }
    }

    /// When the stack or an application has something to do.
    pub(crate) fn wakes_at(&mut self, now: Time) -> Option<Time> {
        let stack = self.iface.poll_at(instant(now), &self.sockets);
        let stack = stack.map(|at| Time::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)));
        let apps = self.conns.iter().filter(|conn| !conn.closed).flat_map(|conn| {
            let unread = self.sockets.get::<Socket>(conn.handle).can_recv();
            [conn.server.wakes_at(), unread.then_some(conn.reads_at)]
        });
        apps.flatten().chain(stack).min().map(|at| at.max(now))
    }
}

/// The host's interface: packets in, packets out.
#[derive(Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut bytes = vec![0; len];
        let result = write(&mut bytes);
        self.0.push(bytes);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sent<'_>)> {
        let bytes = self.received.pop_front()?;
        Some((Received(bytes), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = MTU;
        capabilities.medium = Medium::Ip;
        capabilities
    }
}
