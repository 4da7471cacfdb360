//! smoltcp as the target's TCP.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::Socket as AnySocket;
use smoltcp::socket::tcp::{Socket as TcpSocket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use tcpcopy::wire::{Flags, Outgoing, Packet, Seq, TcpHeader, Time, parse};

use super::{Conn, PORT, Socket, Target};
use crate::scenario::Setup;
use crate::server::Ledger;

const MTU: usize = 1500;

thread_local! {
    /// smoltcp asks a plain function for its timestamps.
    static MILLIS: Cell<u32> = const { Cell::new(0) };
}

/// A connection: its socket, as seen on the wire, and its application once it is accepted.
struct Track {
    handle: SocketHandle,
    client_isn: Seq,
    /// Where the host's stream and the client's have got to, once the SYN-ACK has left.
    next: Option<(Seq, Seq)>,
    conn: Option<Conn>,
}

/// The target host.
pub(super) struct Host {
    iface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    tracks: BTreeMap<SocketAddr, Track>,
    /// Connections that the peer has reset and replaced, and whose application still reads.
    orphans: Vec<Track>,
    listening: Option<SocketHandle>,
    receive_buffer: usize,
}

fn instant(now: Time) -> Instant {
    Instant::from_micros(i64::try_from(now.micros()).expect("short"))
}

impl Host {
    /// A host with `addresses` and nothing under way.
    pub(super) fn new(setup: &Setup, addresses: [SocketAddr; 2], seed: u64) -> Self {
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
        Self {
            iface,
            sockets,
            wire,
            tracks: BTreeMap::new(),
            orphans: Vec::new(),
            listening: None,
            receive_buffer,
        }
    }

    /// Does what a host does and smoltcp does not. Returns whether that is all.
    fn inspect(&mut self, packet: &Packet<'_>) -> bool {
        let header = packet.header;
        if header.flags.syn() {
            match self.state_of(packet.src) {
                Some(State::TimeWait) => {
                    // RFC 9293, 3.10.7.4: a new SYN may end TIME-WAIT.
                    self.forget(packet.src);
                    self.track(packet);
                }
                None | Some(State::Closed | State::Listen) => self.track(packet),
                Some(state) => {
                    // A listening socket must not see it. In SYN-RECEIVED, the SYN-ACK comes again
                    // by smoltcp's own timer.
                    if state != State::SynReceived {
                        self.challenge(packet);
                    }
                    return true;
                }
            }
            return false;
        }
        let Some(track) = self.tracks.get(&packet.src) else { return false };
        let end = header.seq.add(header.payload_len).unwrap_near(0, track.client_isn.add(1));
        if let Some(conn) = track.conn.as_ref().filter(|conn| conn.closed)
            && header.payload_len > 0
            && end.is_some_and(|end| end > conn.server.read)
        {
            // Data for an application that has closed: nobody will read it (RFC 9293, 3.10.7.4).
            self.sockets.get_mut::<TcpSocket>(track.handle).abort();
            return true;
        }
        false
    }

    fn state_of(&self, peer: SocketAddr) -> Option<State> {
        let track = self.tracks.get(&peer)?;
        let socket = self.sockets.get::<TcpSocket>(track.handle);
        let own = socket.remote_endpoint().map(SocketAddr::from) == Some(peer);
        own.then(|| socket.state())
    }

    /// Follows a connection from its SYN on.
    fn track(&mut self, packet: &Packet<'_>) {
        let Some(handle) = self.listening else { return };
        let client_isn = packet.header.seq;
        let old = self.tracks.insert(packet.src, Track { handle, client_isn, next: None, conn: None });
        self.orphans.extend(old.filter(|track| track.conn.is_some()));
    }

    fn forget(&mut self, peer: SocketAddr) {
        if let Some(track) = self.tracks.remove(&peer) {
            self.sockets.remove(track.handle);
        }
    }

    /// RFC 5961, 4: a SYN for a connection that exists is answered with an ACK.
    fn challenge(&mut self, packet: &Packet<'_>) {
        let Some((seq, ack)) = self.tracks.get(&packet.src).and_then(|track| track.next) else { return };
        let header = TcpHeader::bare(seq, ack, Flags::ACK, 1000);
        let mut out = Outgoing::default();
        out.payload();
        self.wire.sent.extend(out.finish(packet.dst, packet.src, &header).map(<[u8]>::to_vec));
    }

    /// There is always a socket for the next connection: the first that listens. One that was reset in SYN-RECEIVED
    /// listens again.
    fn listen(&mut self) {
        let listens =
            |socket: &AnySocket<'_>| matches!(socket, AnySocket::Tcp(tcp) if tcp.state() == State::Listen);
        self.listening = self.sockets.iter().find_map(|(handle, socket)| listens(socket).then_some(handle));
        if let Some(handle) = self.listening {
            self.tracks.retain(|_, track| track.handle != handle);
            return;
        }
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = TcpSocket::new(buffer(self.receive_buffer), buffer(32_768));
        socket.set_tsval_generator(Some(|| MILLIS.get()));
        socket.listen(PORT).expect("a port");
        self.listening = Some(self.sockets.add(socket));
    }

    fn poll(&mut self, now: Time) {
        let before = self.wire.sent.len();
        self.iface.poll(instant(now), &mut self.wire, &mut self.sockets);
        for bytes in &self.wire.sent[before..] {
            let packet = parse(bytes, bytes.len()).expect("smoltcp sends packets");
            let header = packet.header;
            if let Some(track) = self.tracks.get_mut(&packet.dst)
                && !header.flags.rst()
                && (header.flags.syn() || track.next.is_some())
            {
                track.next = Some((header.end(), header.ack));
            }
        }
    }

    /// Connections whose handshake is over get their application.
    fn accept(&mut self, now: Time, setup: &Setup) {
        for (peer, track) in &mut self.tracks {
            if track.conn.is_some() {
                continue;
            }
            let socket = self.sockets.get::<TcpSocket>(track.handle);
            let waiting = matches!(socket.state(), State::Listen | State::SynReceived | State::Closed);
            if !waiting && socket.remote_endpoint().map(SocketAddr::from) == Some(*peer) {
                track.conn = Some(Conn::accept(now, setup));
            }
        }
    }

    /// Connections that are over leave.
    fn bury(&mut self, ledger: &mut Ledger) {
        let Self { sockets, tracks, orphans, .. } = self;
        let mut lives = |track: &Track| {
            let Some(conn) = &track.conn else { return true };
            let socket = sockets.get::<TcpSocket>(track.handle);
            let gone = socket.state() == State::Closed && socket.remote_endpoint().is_none();
            let over = gone && (conn.closed || socket.recv_queue() == 0);
            if over {
                ledger.wasted += conn.server.unparsed() + socket.recv_queue() as u64;
                sockets.remove(track.handle);
            }
            !over
        };
        tracks.retain(|_, track| lives(track));
        orphans.retain(lives);
    }

    fn all(&self) -> impl Iterator<Item = &Track> {
        self.tracks.values().chain(&self.orphans)
    }
}

impl Target for Host {
    fn deliver(&mut self, now: Time, bytes: Vec<u8>, sound: bool, setup: &Setup, ledger: &mut Ledger) {
        self.listen();
        let swallow = sound && parse(&bytes, bytes.len()).is_ok_and(|packet| self.inspect(&packet));
        if !swallow {
            self.wire.received.push_back(bytes);
        }
        self.run(now, setup, ledger);
    }

    fn run(&mut self, now: Time, setup: &Setup, ledger: &mut Ledger) {
        MILLIS.set(u32::try_from(now.micros() / 1000 + 1).expect("short"));
        self.poll(now);
        self.accept(now, setup);
        let mut wrote = false;
        for track in self.tracks.values_mut().chain(&mut self.orphans) {
            let socket = self.sockets.get_mut::<TcpSocket>(track.handle);
            wrote |= track.conn.as_mut().is_some_and(|conn| conn.serve(now, setup, socket, ledger));
        }
        if wrote {
            self.poll(now);
        }
        self.bury(ledger);
    }

    fn take_sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.wire.sent)
    }

    fn wakes_at(&mut self, now: Time) -> Option<Time> {
        let stack = self.iface.poll_at(instant(now), &self.sockets);
        let stack = stack.map(|at| Time::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)));
        let apps = self.all().filter_map(|track| {
            let unread = self.sockets.get::<TcpSocket>(track.handle).can_recv();
            track.conn.as_ref()?.wakes_at(unread)
        });
        apps.chain(stack).min().map(|at| at.max(now))
    }

    fn has_read_all(&self) -> bool {
        self.all().all(|track| {
            let closed = track.conn.as_ref().is_none_or(|conn| conn.closed);
            closed || !self.sockets.get::<TcpSocket>(track.handle).can_recv()
        })
    }

    fn restart(&mut self, ledger: &mut Ledger) {
        let tracks = std::mem::take(&mut self.tracks).into_values();
        for track in tracks.chain(std::mem::take(&mut self.orphans)) {
            let Some(conn) = track.conn else { continue };
            let unread = self.sockets.get::<TcpSocket>(track.handle).recv_queue() as u64;
            ledger.wasted += unread + conn.server.unparsed();
        }
        self.sockets = SocketSet::new(Vec::new());
        self.listening = None;
    }
}

impl Socket for TcpSocket<'_> {
    fn unread(&self) -> usize {
        self.recv_queue()
    }

    fn read(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; most.min(self.recv_queue())];
        let len = self.recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(len);
        bytes
    }

    fn may_receive(&self) -> bool {
        self.may_recv()
    }

    fn write(&mut self, most: usize) -> usize {
        if self.can_send() { self.send_slice(&vec![b'r'; most]).unwrap_or(0) } else { 0 }
    }

    fn close(&mut self) {
        TcpSocket::close(self);
    }

    fn abort(&mut self) {
        TcpSocket::abort(self);
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
