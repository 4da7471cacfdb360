//! The generator's loop.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::http::{self, Response, Step};
use super::stats::{Progress, Report};
use super::{Closer, Connections, Load, Pace, Request};
use crate::sys;

/// The timer's token; connections have those below.
const TIMER: Token = Token(usize::MAX);
/// The shortest sleep until the next request is due.
const SHORTEST_TICK: Duration = Duration::from_micros(20);
/// How often time limits are looked at and progress is published.
const SWEEP: Duration = Duration::from_millis(100);
/// How long the first connections may take before the load starts without them.
const WARM_UP: Duration = Duration::from_secs(2);

/// A request to make.
#[derive(Clone, Copy, Debug)]
struct Job {
    id: u64,
    due: Instant,
}

/// What a connection is doing.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Phase {
    Connecting,
    Idle,
    Busy,
    /// The response is complete; the server closes first.
    Closing,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    phase: Phase,
    job: Option<Job>,
    head: Vec<u8>,
    body: &'static [u8],
    sent: usize,
    response: Response,
}

/// One run of a [`Load`].
pub(super) struct Generator {
    load: Load,
    poll: Poll,
    timer: sys::Timer,
    /// The moment the timer is set for.
    set_for: Option<Instant>,
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    idle: VecDeque<usize>,
    waiting: VecDeque<Job>,
    expected: Option<&'static [u8]>,
    buffer: Vec<u8>,
    opened: usize,
    report: Report,
    progress: Arc<Progress>,
    until: Instant,
    answered_last: Option<Instant>,
}

impl Generator {
    pub(super) fn new(load: Load, progress: Arc<Progress>) -> Result<Self> {
        let (poll, timer) = (Poll::new()?, sys::Timer::new()?);
        poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let expected = match load.request {
            Request::Get(size) => super::content().get(..size),
            Request::Post(_) => None,
        };
        Ok(Self {
            load,
            poll,
            timer,
            set_for: None,
            slots: Vec::new(),
            free: Vec::new(),
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            expected,
            buffer: vec![0; 256 * 1024],
            opened: 0,
            report: Report::default(),
            progress,
            until: Instant::now(),
            answered_last: None,
        })
    }

    pub(super) fn run(mut self) -> Result<Report> {
        let mut events = Events::with_capacity(1024);
        self.warm_up(&mut events)?;
        let start = Instant::now();
        self.until = start + self.load.duration;
        let last = self.until + self.load.timeout;
        let mut swept = start;
        if self.load.pace == Pace::Flood {
            let (Connections::KeepAlive(count) | Connections::Short(count, _)) = self.load.connections;
            (0..count).for_each(|_| self.next_flood(Instant::now()));
        }
        loop {
            if let Pace::Rate(rate) = self.load.pace {
                self.make_due(start, rate)?;
            }
            self.turn(&mut events)?;
            let now = Instant::now();
            if now - swept >= SWEEP {
                swept = now;
                self.sweep(now);
            }
            let over = now >= self.until || self.progress.stop.load(Ordering::Relaxed);
            if over && (self.nothing_left() || now >= last) {
                break;
            }
        }
        self.report.took = self.answered_last.unwrap_or(start) - start;
        let unfinished =
            self.slots.iter().flatten().filter(|slot| slot.job.is_some()).count() + self.waiting.len();
        (0..unfinished).for_each(|_| self.report.fail("not answered at the end"));
        self.progress.publish(&self.report);
        Ok(self.report)
    }

    /// Opens the connections that stay before the clock starts.
    fn warm_up(&mut self, events: &mut Events) -> Result<()> {
        let Connections::KeepAlive(count) = self.load.connections else { return Ok(()) };
        (0..count).for_each(|_| {
            self.open(None);
        });
        let deadline = Instant::now() + WARM_UP;
        while self.idle.len() < count && Instant::now() < deadline {
            self.turn(events)?;
        }
        Ok(())
    }

    fn nothing_left(&self) -> bool {
        let at_rest = |slot: &Connection| slot.job.is_none() && slot.phase != Phase::Closing;
        self.waiting.is_empty() && self.slots.iter().flatten().all(at_rest)
    }

    /// One wait and all that came of it.
    fn turn(&mut self, events: &mut Events) -> Result<()> {
        match self.poll.poll(events, Some(SWEEP)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).context("epoll"),
            Err(_) | Ok(()) => {}
        }
        for event in events.iter() {
            let Token(slot) = event.token();
            if event.token() == TIMER {
                continue;
            }
            if event.is_writable() {
                self.writable(slot);
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.readable(slot, event.is_read_closed());
            }
        }
        Ok(())
    }

    /// Makes the requests whose moment has come, and sets the timer for the next one.
    fn make_due(&mut self, start: Instant, rate: u32) -> Result<()> {
        loop {
            let nanos = u128::from(self.report.made) * 1_000_000_000 / u128::from(rate.max(1));
            let due = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            if due >= self.until || self.progress.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let now = Instant::now();
            if due > now {
                if self.set_for != Some(due) {
                    self.set_for = Some(due);
                    self.timer.set((due - now).max(SHORTEST_TICK))?;
                }
                return Ok(());
            }
            let job = self.next_job(due);
            self.dispatch(job);
        }
    }

    fn next_flood(&mut self, now: Instant) {
        if self.load.pace == Pace::Flood && now < self.until && !self.progress.stop.load(Ordering::Relaxed) {
            let job = self.next_job(now);
            self.dispatch(job);
        }
    }

    fn next_job(&mut self, due: Instant) -> Job {
        let id = self.load.first_id + self.report.made;
        self.report.made += 1;
        self.progress.made.store(self.report.made, Ordering::SeqCst);
        Job { id, due }
    }

    fn dispatch(&mut self, job: Job) {
        match self.load.connections {
            Connections::KeepAlive(most) => {
                if let Some(slot) = self.idle.pop_front() {
                    return self.assign(slot, job);
                }
                self.waiting.push_back(job);
                if self.slots.len() - self.free.len() < most {
                    self.open(None);
                }
            }
            Connections::Short(most, _) => {
                if self.slots.len() - self.free.len() < most {
                    self.open(Some(job));
                } else {
                    self.waiting.push_back(job);
                }
            }
        }
    }

    /// Opens a connection; a failure ends its job.
    fn open(&mut self, job: Option<Job>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let turn = self.opened;
        self.opened += 1;
        let stream = pick(&self.load.servers, turn)
            .ok_or_else(|| io::Error::other("no server"))
            .and_then(|server| connect(server, pick(&self.load.sources, turn)));
        let registered = stream.and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(slot), interest)?;
            Ok(stream)
        });
        let Ok(stream) = registered else {
            self.free.push(slot);
            if job.is_some() {
                self.report.fail("cannot connect");
            }
            return;
        };
        let mut connection = Connection {
            stream,
            phase: Phase::Connecting,
            job,
            head: Vec::new(),
            body: &[],
            sent: 0,
            response: Response::default(),
        };
        if let Some(job) = job {
            prepare(&mut connection, &self.load, job);
        }
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(connection);
        }
    }

    fn assign(&mut self, slot: usize, job: Job) {
        let Some(Some(connection)) = self.slots.get_mut(slot) else { return };
        connection.job = Some(job);
        connection.phase = Phase::Busy;
        prepare(connection, &self.load, job);
        self.flush(slot);
    }

    fn writable(&mut self, slot: usize) {
        let Some(Some(connection)) = self.slots.get_mut(slot) else { return };
        match connection.phase {
            Phase::Connecting => {
                if !matches!(connection.stream.take_error(), Ok(None)) {
                    return self.fail(slot, "cannot connect");
                }
                if connection.stream.peer_addr().is_err() {
                    return; // not yet
                }
                if connection.job.is_some() {
                    connection.phase = Phase::Busy;
                    self.flush(slot);
                } else {
                    self.rest(slot);
                }
            }
            Phase::Busy => self.flush(slot),
            Phase::Idle | Phase::Closing => {}
        }
    }

    /// Sends what is left of the request.
    fn flush(&mut self, slot: usize) {
        let Some(Some(connection)) = self.slots.get_mut(slot) else { return };
        loop {
            let rest = match connection.head.get(connection.sent..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => connection.body.get(connection.sent - connection.head.len()..).unwrap_or_default(),
            };
            if rest.is_empty() {
                return;
            }
            match connection.stream.write(rest) {
                Ok(count) => connection.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.fail(slot, "reset"),
            }
        }
    }

    /// Reads what is there. `closed` tells that the server closed: there is no other event for that.
    fn readable(&mut self, slot: usize, closed: bool) {
        loop {
            let Some(Some(connection)) = self.slots.get_mut(slot) else { return };
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => return self.ended(slot),
                Ok(count) => {
                    let bytes = self.buffer.get(..count).unwrap_or_default();
                    if connection.phase != Phase::Busy {
                        return self.fail(slot, "bytes that were not asked for");
                    }
                    match connection.response.take(bytes, self.expected) {
                        Step::More => {}
                        Step::Done => self.done(slot),
                        Step::Wrong(how) => return self.fail(slot, how),
                    }
                    if count < self.buffer.len() && !closed {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::NotConnected => return,
                Err(_) => return self.fail(slot, "reset"),
            }
        }
    }

    /// The server closed.
    fn ended(&mut self, slot: usize) {
        let Some(Some(connection)) = self.slots.get(slot) else { return };
        match connection.phase {
            Phase::Idle | Phase::Closing => self.close(slot),
            Phase::Connecting => self.fail(slot, "cannot connect"),
            Phase::Busy if connection.response.begun() => self.fail(slot, "closed within a response"),
            Phase::Busy => self.fail(slot, "closed without a response"),
        }
    }

    /// The response is complete.
    fn done(&mut self, slot: usize) {
        let Some(Some(connection)) = self.slots.get_mut(slot) else { return };
        let now = Instant::now();
        if let Some(job) = connection.job.take() {
            self.report.answered += 1;
            self.answered_last = Some(now);
            self.report.latency.add(now.saturating_duration_since(job.due));
        }
        match self.load.connections {
            Connections::KeepAlive(_) if connection.response.closes() => self.close(slot),
            Connections::KeepAlive(_) => {
                self.rest(slot);
                self.next_flood(now);
            }
            Connections::Short(_, Closer::Server) => connection.phase = Phase::Closing,
            Connections::Short(_, Closer::Client) => self.close(slot),
        }
    }

    /// The connection is free for the next request.
    fn rest(&mut self, slot: usize) {
        if let Some(job) = self.waiting.pop_front() {
            return self.assign(slot, job);
        }
        if let Some(Some(connection)) = self.slots.get_mut(slot) {
            connection.phase = Phase::Idle;
            self.idle.push_back(slot);
        }
    }

    fn fail(&mut self, slot: usize, kind: &'static str) {
        if let Some(Some(connection)) = self.slots.get_mut(slot)
            && connection.job.take().is_some()
        {
            self.report.fail(kind);
        }
        self.close(slot);
    }

    /// Closes a connection and puts what follows in its place.
    fn close(&mut self, slot: usize) {
        let Some(place) = self.slots.get_mut(slot) else { return };
        if place.take().is_none() {
            return;
        }
        self.free.push(slot);
        let now = Instant::now();
        match self.load.connections {
            Connections::KeepAlive(_) => {
                self.idle.retain(|&idle| idle != slot);
                if now < self.until {
                    self.open(None);
                    self.next_flood(now);
                }
            }
            Connections::Short(..) => match self.waiting.pop_front() {
                Some(job) => self.open(Some(job)),
                None => self.next_flood(now),
            },
        }
    }

    /// Time limits and progress.
    fn sweep(&mut self, now: Instant) {
        let limit = self.load.timeout;
        let late = |due: Instant| now.saturating_duration_since(due) > limit;
        while self.waiting.front().is_some_and(|job| late(job.due)) {
            self.waiting.pop_front();
            self.report.fail("no connection free in time");
        }
        for slot in 0..self.slots.len() {
            let Some(Some(connection)) = self.slots.get(slot) else { continue };
            if connection.job.is_some_and(|job| late(job.due)) {
                let connecting = connection.phase == Phase::Connecting;
                self.fail(slot, if connecting { "no connection in time" } else { "no response in time" });
            }
        }
        self.progress.publish(&self.report);
    }
}

fn prepare(connection: &mut Connection, load: &Load, job: Job) {
    http::write_head(&mut connection.head, load.request, load.connections, job.id);
    connection.body = match load.request {
        Request::Get(_) => &[],
        Request::Post(size) => super::upload(job.id, size),
    };
    connection.sent = 0;
    connection.response.reset();
}

fn pick<T: Copy>(list: &[T], turn: usize) -> Option<T> {
    list.get(turn.checked_rem(list.len())?).copied()
}

/// Begins to connect, from `source` if there is one.
fn connect(server: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        sys::bind_without_port(&socket)?;
        socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
    }
    match socket.connect(&SockAddr::from(server)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}
