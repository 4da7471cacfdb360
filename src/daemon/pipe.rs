//! A tunnel's socket in a mio loop, for either end.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::{Event, Source};
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{SockRef, TcpKeepalive};

use crate::tunnel::Endpoint;
use crate::wire::Time;

/// The kernel gives a connection up when sent bytes stay unacknowledged for this long.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// A connected, non-blocking socket with what is known of its readiness.
///
/// Registered once for both directions: mio reports edges, and the two flags remember them until
/// the kernel says that there is nothing to read, or no room to write.
#[derive(Debug)]
pub(super) struct Pipe {
    stream: Stream,
    readable: bool,
    writable: bool,
    /// When something was read.
    gave: Time,
    /// The peer has closed its side, or the connection has failed: no other edge will say so.
    ending: bool,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    /// To another thread, on behalf of that peer.
    Inner(UnixStream, SocketAddr),
}

impl Pipe {
    /// Takes a non-blocking stream, connected or connecting.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self::over(Stream::Tcp(stream))
    }

    /// The two ends of a pipe between threads, for what concerns that peer.
    pub(super) fn pair(peer: SocketAddr) -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        Ok((Self::over(Stream::Inner(one, peer)), Self::over(Stream::Inner(other, peer))))
    }

    fn over(stream: Stream) -> Self {
        Self { stream, readable: false, writable: false, gave: Time::ZERO, ending: false }
    }

    /// Registers the socket and sets its options. Small frames leave at once, and a peer that is
    /// gone is noticed.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        if let Stream::Tcp(stream) = &self.stream {
            let socket = SockRef::from(stream);
            socket.set_tcp_nodelay(true)?;
            socket.set_tcp_keepalive(&keepalive)?;
            socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        }
        self.watch(registry, token)
    }

    /// Registers the socket as it is: of somebody who is not known yet, and costs little.
    pub(super) fn watch(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.stream.source(), token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Takes the socket out of its loop, to be registered in another.
    pub(super) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(self.stream.source())
    }

    /// Remembers what an event of this socket's token says.
    pub(super) fn ready(&mut self, event: &Event) {
        // A closed or failed socket is read, and written, to learn of it.
        self.ending |= event.is_read_closed() || event.is_error();
        self.readable |= event.is_readable() || self.ending;
        self.writable |= event.is_writable() || event.is_write_closed();
    }

    /// Whether [`Pipe::receive`] has something to do.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether it gave something at `now` or later, and there is no event that it waits for.
    pub(super) fn flows(&self, now: Time) -> bool {
        self.gave >= now && self.writable && !self.ending
    }

    /// There may be something to read, without an event.
    pub(super) fn expect(&mut self) {
        self.readable = true;
    }

    /// The address of the other end; an IPv4 one as such, also if the listener is for both.
    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        let address = match &self.stream {
            Stream::Tcp(stream) => stream.peer_addr()?,
            Stream::Inner(_, peer) => *peer,
        };
        Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// Whether a connecting socket is connected by now.
    pub(super) fn is_connected(&self) -> io::Result<bool> {
        let Stream::Tcp(stream) = &self.stream else { return Ok(true) };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads once, and returns the number of bytes. The end of the stream is an error of kind `UnexpectedEof`.
    pub(super) fn receive(
        &mut self,
        now: Time,
        endpoint: &mut (impl Endpoint + ?Sized),
    ) -> io::Result<usize> {
        if !self.readable {
            return Ok(0);
        }
        let space = endpoint.space();
        let room = space.len();
        match self.stream.read(space) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the peer")),
            Ok(n) => {
                // A stream that gives less than was asked for is empty (epoll(7), Q9), but for its end.
                self.readable = n == room || self.ending;
                self.gave = now;
                endpoint.filled(now, n);
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Writes what is pending, as far as the kernel takes it.
    pub(super) fn flush(&mut self, endpoint: &mut (impl Endpoint + ?Sized)) -> io::Result<()> {
        while self.writable {
            let bytes = endpoint.pending();
            if bytes.is_empty() {
                break;
            }
            match self.stream.write(bytes) {
                Ok(n) => endpoint.sent(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Stream {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(stream) => stream,
            Self::Inner(stream, _) => stream,
        }
    }

    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(space),
            Self::Inner(stream, _) => stream.read(space),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Inner(stream, _) => stream.write(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use mio::{Events, Poll};

    use super::*;
    use crate::tunnel::{Client, Features, Hello, Limits};

    #[test]
    fn an_end_that_comes_with_the_last_bytes_is_not_missed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("bound");
        let mut pipe = Pipe::new(TcpStream::connect(address).expect("connect"));
        let mut poll = Poll::new().expect("poll");
        pipe.register(poll.registry(), Token(0)).expect("registered");
        let (mut peer, _) = listener.accept().expect("accept");
        peer.write_all(b"some")
            .and_then(|()| peer.shutdown(std::net::Shutdown::Both))
            .expect("bytes and FIN");

        let mut client = Client::new(
            Time::ZERO,
            Hello { instance: 1, claimer: 0, worker: 0, features: Features::NONE },
            Limits::default(),
        );
        let mut events = Events::with_capacity(4);
        // Both are there before the socket is looked at.
        let mut all = [0; 5];
        let Stream::Tcp(stream) = &pipe.stream else { panic!("no TCP") };
        while stream.peek(&mut all).map_or(true, |count| count < 4) {}
        poll.poll(&mut events, Some(Duration::from_secs(10))).expect("poll");
        events.iter().for_each(|event| pipe.ready(event));
        pipe.receive(Time::ZERO, &mut client).expect("the bytes");
        let end = pipe.receive(Time::ZERO, &mut client).expect_err("the end");
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_pipe_flows_as_long_as_each_turn_reads_something() {
        let (mut pipe, far) = Pipe::pair("10.0.0.1:1".parse().expect("an address")).expect("a pair");
        let Stream::Inner(mut peer, _) = far.stream else { panic!("no inner one") };
        let mut client = Client::new(
            Time::ZERO,
            Hello { instance: 1, claimer: 0, worker: 0, features: Features::NONE },
            Limits::default(),
        );
        let mut turn = |pipe: &mut Pipe, micros: u64, said: &[u8]| {
            peer.write_all(said).expect("room");
            pipe.expect();
            pipe.receive(Time::from_micros(micros), &mut client).expect("open");
            pipe.flows(Time::from_micros(micros))
        };
        assert!(!turn(&mut pipe, 1, b"some"), "nobody has said that it can be written to");
        pipe.writable = true;
        assert!(turn(&mut pipe, 2, b"some"));
        assert!(!turn(&mut pipe, 3, b""));
        pipe.ending = true;
        assert!(!turn(&mut pipe, 4, b"last"), "its end is to be awaited");
    }
}
