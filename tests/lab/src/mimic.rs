//! A tcpcopy that speaks to an intercept as the C one does, and replays nothing.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::namespace::Namespace;

/// What it says first: version 6, and nothing else.
pub(crate) const OPENING: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0];
/// The type of a claim.
const CLAIM: u16 = 1;
/// Bytes of a record, and how many of them a frame has at most.
const RECORD: usize = 64;
const RECORDS: u16 = 16;
/// How long headers may take, and until the target repeats what brought none.
const PATIENCE: Duration = Duration::from_secs(10);
const REPEAT: Duration = Duration::from_millis(300);
/// Receive buffer: one that reads slowly has little.
const BUFFER: usize = 16 << 10;

/// A response as its record tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    pub(crate) flags: u8,
    /// Of the packet, by its IP header.
    pub(crate) length: u16,
}

/// Its connections to one intercept.
#[derive(Debug)]
pub(crate) struct Mimic(Vec<TcpStream>);

impl Mimic {
    /// Connects so many times.
    pub(crate) fn connect(on: &Namespace, intercept: SocketAddr, connections: usize) -> Result<Self> {
        let connect = |_| -> Result<TcpStream> {
            let socket = Socket::new(Domain::for_address(intercept), Type::STREAM, None)?;
            socket.set_recv_buffer_size(BUFFER)?;
            socket.connect(&intercept.into())?;
            let mut stream = TcpStream::from(socket);
            stream.write_all(&OPENING)?;
            Ok(stream)
        };
        on.enter(|| (0..connections).map(connect).collect::<Result<_>>().map(Self))?
    }

    /// Claims flows of a target on one of them.
    pub(crate) fn claim(
        &mut self,
        connection: usize,
        clients: &[SocketAddrV4],
        target: SocketAddrV4,
    ) -> Result<()> {
        let end = |address: SocketAddrV4| (address.ip().octets(), address.port().to_be_bytes());
        let messages = clients.iter().flat_map(|client| {
            let ((client, port), (target, target_port)) = (end(*client), end(target));
            [&client[..], &port, &CLAIM.to_be_bytes(), &target, &target_port].concat()
        });
        self.stream(connection)?.write_all(&messages.collect::<Vec<u8>>())?;
        Ok(())
    }

    /// Waits until a header has come on one of them for each of these clients, to whom `answer` has the target send
    /// something: to those still missing again and again, as a target repeats what is not acknowledged.
    pub(crate) fn await_headers(
        &mut self,
        connection: usize,
        clients: &[SocketAddrV4],
        mut answer: impl FnMut(&[SocketAddrV4]) -> Result<()>,
    ) -> Result<Vec<Header>> {
        let (start, mut headers) = (Instant::now(), Vec::new());
        let mut missing: BTreeSet<SocketAddrV4> = clients.iter().copied().collect();
        while !missing.is_empty() {
            ensure!(start.elapsed() < PATIENCE, "no header for {} of {}", missing.len(), clients.len());
            answer(&missing.iter().copied().collect::<Vec<_>>())?;
            let stream = self.stream(connection)?;
            while !missing.is_empty()
                && let Some(frame) = frame(stream)?
            {
                missing.retain(|client| frame.iter().all(|header| header.to != *client));
                headers.extend(frame);
            }
        }
        Ok(headers)
    }

    /// Passes over what has come on one of them.
    pub(crate) fn pass_over(&mut self, connection: usize) -> Result<()> {
        while frame(self.stream(connection)?)?.is_some() {}
        Ok(())
    }

    /// Ends one of them.
    pub(crate) fn hang_up(&self, connection: usize) -> Result<()> {
        let stream = self.0.get(connection).context("no such connection")?;
        Ok(stream.shutdown(std::net::Shutdown::Both)?)
    }

    fn stream(&mut self, connection: usize) -> Result<&mut TcpStream> {
        self.0.get_mut(connection).context("no such connection")
    }
}

/// The next frame; `None` if none has begun within [`REPEAT`].
fn frame(stream: &mut TcpStream) -> Result<Option<Vec<Header>>> {
    stream.set_read_timeout(Some(REPEAT))?;
    match stream.peek(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
        peeked => ensure!(peeked? > 0, "it is hung up on"),
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut number = [0; 2];
    stream.read_exact(&mut number)?;
    let number = u16::from_be_bytes(number);
    ensure!((1..=RECORDS).contains(&number), "a frame of {number} records");
    let mut record = [0; RECORD];
    let headers = (0..number).map(|_| {
        stream.read_exact(&mut record)?;
        header(&record)
    });
    headers.collect::<Result<_>>().map(Some)
}

/// What a record says, where a C tcpcopy looks.
fn header(record: &[u8; RECORD]) -> Result<Header> {
    let [first, _, l0, l1, _, _, _, _, _, protocol, _, _, f0, f1, f2, f3, t0, t1, t2, t3, tcp @ ..] = record;
    let [p0, p1, q0, q1, _, _, _, _, _, _, _, _, offset, flags, ..] = tcp;
    ensure!((first, protocol, offset >> 4) == (&0x45, &6, 5), "no plain header: {record:?}");
    Ok(Header {
        from: SocketAddrV4::new([*f0, *f1, *f2, *f3].into(), u16::from_be_bytes([*p0, *p1])),
        to: SocketAddrV4::new([*t0, *t1, *t2, *t3].into(), u16::from_be_bytes([*q0, *q1])),
        flags: *flags,
        length: u16::from_be_bytes([*l0, *l1]),
    })
}
