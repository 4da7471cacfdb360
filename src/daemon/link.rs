//! A tcpcopy worker's connection to one intercept worker, kept up for good: connect, hello, ping,
//! and after every failure connect again, with a growing and jittered delay.
//!
//! An intercept that is away is an expected state: who owns the links tells of it once, by [`Link::why_down`].

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Registry, Token};

use super::pipe::Pipe;
use crate::sys::random;
use crate::tunnel::frame::Response;
use crate::tunnel::{
    ClaimRefusal, Claimer, Client, ClientEvent, Closed, Ephemeral, Hello, HostState, Limits, Refuse, Secret,
    Stats, legacy,
};
use crate::wire::{FlowId, FlowKey, Reject, Scope, TcpHeader, Time};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Sessions wait for the intercept that is back, and an attempt costs one packet.
const LAST_DELAY: Duration = Duration::from_secs(1);
/// A connection that lasts shorter is to be tried ever more seldom too.
const STABLE: Duration = Duration::from_secs(5);

/// How an intercept is spoken with.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// Without a key.
    Open,
    /// With this key: nothing is said to an intercept without it.
    Keyed(Secret),
    /// As the C tools do, to a C intercept.
    Legacy,
}

/// What happened on a [`Link`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The intercept worker listens and knows none of our claims: all live ones that belong to it
    /// are to be made again.
    Up {
        /// How many workers the intercept has.
        workers: u16,
    },
    /// A response to one of our flows.
    Response(Response),
    /// A response to one of our flows, perhaps, by its ends.
    Unnamed {
        /// Whose it is.
        key: FlowKey,
        /// Its header.
        header: TcpHeader,
    },
    /// A response that cannot be used.
    Unreadable(Reject),
    /// A claim was not taken, or is no longer held.
    Refused {
        /// The claim.
        flow: FlowId,
        /// Why.
        why: ClaimRefusal,
    },
    /// A claim is held, and packets of its flow may be sent.
    Confirmed(FlowId),
    /// The intercept has said whether its host is closed, and perhaps whose responses it takes: see
    /// [`Link::host`] and [`Link::scope`].
    Host,
    /// The intercept worker's counters.
    Stats(Stats),
    /// The connection is gone, or was refused: no claim is in force. The link goes on trying.
    Down {
        /// The intercept's reason, if it gave one. After [`Refuse::Worker`] this link's worker does
        /// not exist there.
        refused: Option<Refuse>,
    },
}

#[derive(Debug)]
enum State {
    Waiting { until: Time },
    Connecting { pipe: Pipe, until: Time },
    Open { pipe: Pipe, client: Box<dyn Claimer + Send> },
}

/// One kept-up tunnel connection. The order of calls in a turn of the loop: [`Link::ready`] for its
/// token's events; [`Link::receive`] and then [`Link::poll_event`] until `None`, again while there
/// is more to read and the turn's budget lasts; [`Link::handle_timeout`] when due; [`Link::flush`].
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    hello: Hello,
    protocol: Protocol,
    token: Token,
    limits: Limits,
    state: State,
    delay: Duration,
    /// Since when it is up.
    up: Option<Time>,
    random: u64,
    event: Option<LinkEvent>,
    /// Why it is down, or `None` if it is up.
    why: Option<String>,
}

impl Link {
    /// A link that makes its first attempt at the first [`Link::handle_timeout`]. `seed` makes its delays differ from
    /// those of others.
    pub fn new(
        now: Time,
        address: SocketAddr,
        hello: Hello,
        protocol: Protocol,
        token: Token,
        limits: Limits,
        seed: u64,
    ) -> Self {
        Self {
            address,
            hello,
            protocol,
            token,
            limits,
            state: State::Waiting { until: now },
            delay: FIRST_DELAY,
            up: None,
            random: seed,
            event: None,
            why: None,
        }
    }

    /// The next connection is made so. The one that is there stays.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// The token it registers under.
    pub fn token(&self) -> Token {
        self.token
    }

    /// The intercept worker it connects to.
    pub fn worker(&self) -> u16 {
        self.hello.worker
    }

    /// Whether claims can be made.
    pub fn is_up(&self) -> bool {
        matches!(&self.state, State::Open { client, .. } if client.is_connected())
    }

    /// Why it is down; `None` if it is up, or its first attempt is under way.
    pub fn why_down(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Whether the intercept's host is closed, as far as it has said; `None` if the link is not up.
    pub fn host(&self) -> Option<&HostState> {
        match &self.state {
            State::Open { client, .. } if client.is_connected() => Some(client.host()),
            State::Open { .. } | State::Waiting { .. } | State::Connecting { .. } => None,
        }
    }

    /// Whose responses the intercept takes; `None` if it has not said, or the link is not up.
    pub fn scope(&self) -> Option<&Scope> {
        match &self.state {
            State::Open { client, .. } => client.scope(),
            State::Waiting { .. } | State::Connecting { .. } => None,
        }
    }

    /// Whether the link is up, and no packet of a flow may be sent before [`LinkEvent::Confirmed`].
    pub fn confirms_claims(&self) -> bool {
        matches!(&self.state, State::Open { client, .. } if client.is_connected() && client.confirms_claims())
    }

    /// Whether something waits to be written because the socket did not take it.
    pub fn has_pending(&self) -> bool {
        matches!(&self.state, State::Open { client, .. } if client.has_pending())
    }

    /// Memory that its buffers take, in bytes.
    pub fn memory(&self) -> usize {
        match &self.state {
            State::Open { client, .. } => client.memory(),
            State::Waiting { .. } | State::Connecting { .. } => 0,
        }
    }

    /// Claims a flow; nothing happens unless the link is up.
    pub fn claim(&mut self, flow: FlowId, key: FlowKey) {
        if let State::Open { client, .. } = &mut self.state {
            client.claim(flow, key);
        }
    }

    /// Gives a claim up; nothing happens unless the link is up.
    pub fn release(&mut self, flow: FlowId) {
        if let State::Open { client, .. } = &mut self.state {
            client.release(flow);
        }
    }

    /// Asks for headers to leave at once, for so long; nothing happens unless the link is up.
    pub fn hurry(&mut self, time: Duration) {
        if let State::Open { client, .. } = &mut self.state {
            client.hurry(time);
        }
    }

    /// Takes an event of this link's token.
    pub fn ready(&mut self, now: Time, event: &Event) {
        match &mut self.state {
            // An event of a socket that is closed by now.
            State::Waiting { .. } => {}
            State::Open { pipe, .. } => pipe.ready(event),
            State::Connecting { pipe, .. } => {
                pipe.ready(event);
                match pipe.is_connected() {
                    Ok(true) => self.open(now),
                    Ok(false) => {}
                    Err(error) => self.fail(now, &Failure::Connect(error)),
                }
            }
        }
    }

    /// Whether something was read at `now` or later, and nothing else is to come of its socket but bytes.
    pub fn flows(&self, now: Time) -> bool {
        matches!(&self.state, State::Open { pipe, .. } if pipe.flows(now))
    }

    /// There may be something to read, without an event.
    pub fn expect(&mut self) {
        if let State::Open { pipe, .. } = &mut self.state {
            pipe.expect();
        }
    }

    /// Reads once. `true` if there may be more to read, without another event.
    pub fn receive(&mut self, now: Time) -> bool {
        let State::Open { pipe, client } = &mut self.state else { return false };
        match pipe.receive(now, client.as_mut()) {
            Ok(_) => pipe.is_readable(),
            Err(error) => {
                self.fail(now, &Failure::Lost(error));
                false
            }
        }
    }

    /// The next event.
    pub fn poll_event(&mut self, now: Time) -> Option<LinkEvent> {
        if let Some(event) = self.event.take() {
            return Some(event);
        }
        let State::Open { client, .. } = &mut self.state else { return None };
        match client.poll_event()? {
            ClientEvent::Connected { workers } => {
                self.connected(now, workers);
                Some(LinkEvent::Up { workers })
            }
            ClientEvent::Response(response) => Some(LinkEvent::Response(response)),
            ClientEvent::Unnamed { key, header } => Some(LinkEvent::Unnamed { key, header }),
            ClientEvent::Unreadable(reject) => Some(LinkEvent::Unreadable(reject)),
            ClientEvent::Refused { flow, why } => Some(LinkEvent::Refused { flow, why }),
            ClientEvent::Confirmed(flow) => Some(LinkEvent::Confirmed(flow)),
            ClientEvent::Host => Some(LinkEvent::Host),
            ClientEvent::Stats(stats) => Some(LinkEvent::Stats(stats)),
            ClientEvent::Closed(why) => {
                self.fail(now, &Failure::Closed(why));
                self.event.take()
            }
        }
    }

    /// Writes what is pending.
    pub fn flush(&mut self, now: Time) {
        if let State::Open { pipe, client } = &mut self.state
            && let Err(error) = pipe.flush(client.as_mut())
        {
            self.fail(now, &Failure::Lost(error));
        }
    }

    /// When [`Link::handle_timeout`] is due; long ago if [`Link::poll_event`] is.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.event.is_some() {
            return Some(Time::ZERO);
        }
        match &self.state {
            State::Waiting { until } | State::Connecting { until, .. } => Some(*until),
            State::Open { client, .. } => client.poll_timeout(),
        }
    }

    /// Connects when it is time to, gives up what takes too long, pings. Events may follow.
    pub fn handle_timeout(&mut self, now: Time, registry: &Registry) {
        match &mut self.state {
            State::Waiting { until } if now >= *until => match self.connect(registry) {
                Ok(pipe) => self.state = State::Connecting { pipe, until: now + CONNECT_TIMEOUT },
                Err(error) => self.fail(now, &Failure::Connect(error)),
            },
            State::Connecting { until, .. } if now >= *until => {
                self.fail(now, &Failure::Connect(io::ErrorKind::TimedOut.into()));
            }
            State::Waiting { .. } | State::Connecting { .. } => {}
            State::Open { client, .. } => client.handle_timeout(now),
        }
    }

    fn connect(&self, registry: &Registry) -> io::Result<Pipe> {
        let mut pipe = Pipe::new(TcpStream::connect(self.address)?);
        pipe.register(registry, self.token)?;
        Ok(pipe)
    }

    fn open(&mut self, now: Time) {
        let state = std::mem::replace(&mut self.state, State::Waiting { until: now });
        if let State::Connecting { pipe, .. } = state {
            match self.client(now) {
                Ok(client) => {
                    self.state = State::Open { pipe, client };
                    self.flush(now);
                }
                Err(error) => self.fail(now, &Failure::Random(error)),
            }
        }
    }

    fn client(&self, now: Time) -> io::Result<Box<dyn Claimer + Send>> {
        Ok(match &self.protocol {
            Protocol::Open => Box::new(Client::new(now, self.hello, self.limits)),
            Protocol::Keyed(secret) => {
                let ephemeral = Ephemeral::new(random::bytes()?);
                Box::new(Client::keyed(now, self.hello, self.limits, secret, ephemeral))
            }
            Protocol::Legacy => Box::new(legacy::Client::new(self.limits)),
        })
    }

    fn connected(&mut self, now: Time, workers: u16) {
        self.up = Some(now);
        self.why = None;
        tracing::debug!(intercept = %self.address, worker = self.hello.worker, workers, "tunnel up");
    }

    /// Closes the socket, if there is one, and waits before the next attempt.
    fn fail(&mut self, now: Time, why: &Failure) {
        let refused = match why {
            Failure::Closed(Closed::Refused(refuse)) => Some(*refuse),
            Failure::Closed(_) | Failure::Connect(_) | Failure::Random(_) | Failure::Lost(_) => None,
        };
        let was_open = matches!(self.state, State::Open { .. });
        if was_open || refused.is_some() {
            self.event = Some(LinkEvent::Down { refused });
        }
        if self.up.take().is_some_and(|up| now >= up + STABLE) {
            self.delay = FIRST_DELAY;
        }
        let delay = self.jittered();
        self.delay = (self.delay * 2).min(LAST_DELAY);
        self.state = State::Waiting { until: now + delay };
        let why = why.to_string();
        tracing::debug!(intercept = %self.address, worker = self.hello.worker, reason = why, "tunnel down");
        self.why = Some(why);
    }

    /// Between half the delay and the whole of it.
    fn jittered(&mut self) -> Duration {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let part = u32::try_from(z >> 44).unwrap_or_default();
        self.delay / 2 + (self.delay / 2).mul_f64(f64::from(part) / f64::from(1u32 << 20))
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no random bytes for a handshake: {0}")]
    Random(io::Error),
    #[error("connection lost: {0}")]
    Lost(io::Error),
    #[error("{0}")]
    Closed(Closed),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::Features;
    use std::net::TcpListener;

    fn drive(link: &mut Link, poll: &mut mio::Poll, start: std::time::Instant) -> Vec<LinkEvent> {
        let mut events = mio::Events::with_capacity(16);
        poll.poll(&mut events, Some(Duration::from_millis(20))).expect("poll");
        let now = Time::ZERO + start.elapsed();
        let mut seen = Vec::new();
        for event in &events {
            assert_eq!(event.token(), link.token());
            link.ready(now, event);
        }
        loop {
            let more = link.receive(now);
            seen.extend(std::iter::from_fn(|| link.poll_event(now)));
            if !more {
                break;
            }
        }
        if link.poll_timeout().is_some_and(|at| at <= now) {
            link.handle_timeout(now, poll.registry());
        }
        link.flush(now);
        seen
    }

    #[test]
    fn connects_retries_and_comes_back() {
        use crate::tunnel::{Endpoint, Server, ServerEvent, Welcome};
        use std::io::{Read, Write};

        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("bound");
        let serve = std::thread::spawn(move || {
            // The first one is hung up on, the second one is served until it hangs up.
            drop(listener.accept().expect("accept"));
            let (mut stream, _) = listener.accept().expect("accept");
            let mut server = Server::new(Time::ZERO, Limits::default());
            let mut claims = Vec::new();
            let mut buffer = [0; 100];
            loop {
                let n = stream.read(&mut buffer).unwrap_or(0);
                if n == 0 {
                    return claims;
                }
                server.handle_bytes(Time::ZERO, &buffer[..n]);
                while let Some(event) = server.poll_event() {
                    match event {
                        ServerEvent::Hello(hello) => server.welcome(
                            Time::ZERO,
                            Welcome {
                                workers: 2,
                                worker: hello.worker,
                                split_seed: crate::wire::flow::SPLIT_SEED,
                                features: Features::NONE,
                            },
                        ),
                        ServerEvent::Claim { flow, .. } => claims.push(flow),
                        other
                        @ (ServerEvent::Release(_) | ServerEvent::Hurry(_) | ServerEvent::Closed(_)) => {
                            panic!("{other:?}")
                        }
                    }
                }
                let n = server.pending().len();
                stream.write_all(server.pending()).expect("write");
                server.sent(n);
            }
        });

        let start = std::time::Instant::now();
        let mut poll = mio::Poll::new().expect("poll");
        let hello = Hello { instance: 1, claimer: 0, worker: 1, features: Features::NONE };
        let mut link = Link::new(Time::ZERO, address, hello, Protocol::Open, Token(7), Limits::default(), 3);
        let mut seen = Vec::new();
        while !link.is_up() {
            assert!(start.elapsed() < Duration::from_secs(20), "{seen:?}");
            seen.extend(drive(&mut link, &mut poll, start));
        }
        assert_eq!(seen, [LinkEvent::Down { refused: None }, LinkEvent::Up { workers: 2 }]);
        let key = FlowKey {
            client: "10.0.0.1:5".parse().expect("address"),
            server: "10.0.0.2:80".parse().expect("address"),
        };
        link.claim(FlowId(9), key);
        link.flush(Time::ZERO + start.elapsed());
        drop(link);
        assert_eq!(serve.join().expect("server"), [FlowId(9)]);
    }

    #[test]
    fn a_c_intercept_is_up_once_it_is_connected_and_told_of_claims_again() {
        use std::io::{Read, Write};

        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("bound");
        let serve = std::thread::spawn(move || {
            let mut said = [[0; 28]; 2];
            for said in &mut said {
                let (mut stream, _) = listener.accept().expect("accept");
                stream.read_exact(said).expect("a version and a claim");
                // A header that is of no use: all zeros but for IPv4.
                stream.write_all(&[0, 1, 0x45]).and_then(|()| stream.write_all(&[0; 63])).expect("write");
            }
            said
        });
        let start = std::time::Instant::now();
        let mut poll = mio::Poll::new().expect("poll");
        let hello = Hello { instance: 1, claimer: 0, worker: 0, features: Features::NONE };
        let (now, limits) = (Time::ZERO, Limits::default());
        let mut link = Link::new(now, address, hello, Protocol::Legacy, Token(7), limits, 3);
        let mut seen = Vec::new();
        while seen.iter().filter(|event| matches!(event, LinkEvent::Down { .. })).count() < 2 {
            assert!(start.elapsed() < Duration::from_secs(20), "{seen:?}");
            let events = drive(&mut link, &mut poll, start);
            if events.contains(&LinkEvent::Up { workers: 1 }) {
                let ends = [([10, 0, 0, 1], 5).into(), ([10, 0, 0, 2], 80).into()];
                let [client, server] = ends;
                link.claim(FlowId(9), FlowKey { client, server });
                link.flush(Time::ZERO + start.elapsed());
            }
            seen.extend(events);
        }
        let (up, down) = (LinkEvent::Up { workers: 1 }, LinkEvent::Down { refused: None });
        let unusable = LinkEvent::Unreadable(Reject::IpLength);
        assert_eq!(seen, [up, unusable, down, up, unusable, down]);
        let version = [0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0];
        let claim = [10, 0, 0, 1, 0, 5, 0, 1, 10, 0, 0, 2, 0, 80];
        assert!(serve.join().expect("server").iter().all(|said| *said == *[version, claim].as_flattened()));
    }

    #[test]
    fn delays_grow_and_stay_in_bounds() {
        let address = "127.0.0.1:1".parse().expect("address");
        let hello = Hello { instance: 1, claimer: 0, worker: 0, features: Features::NONE };
        let mut link = Link::new(Time::ZERO, address, hello, Protocol::Open, Token(0), Limits::default(), 1);
        let mut delays = Vec::new();
        for _ in 0..10 {
            link.fail(Time::ZERO, &Failure::Connect(io::ErrorKind::ConnectionRefused.into()));
            delays.push(link.poll_timeout().expect("waits").since(Time::ZERO));
        }
        assert!(delays[0] >= FIRST_DELAY / 2 && delays[0] <= FIRST_DELAY, "{delays:?}");
        assert!(delays[9] >= LAST_DELAY / 2 && delays[9] <= LAST_DELAY, "{delays:?}");
        assert_ne!(delays[8], delays[9]);
    }
}
