//! intercept's end of a tunnel connection.

use std::sync::Arc;
use std::time::Duration;

use super::channel::Channel;
use super::codec::FrameError;
use super::frame::{
    AnyHello, Claim, ClaimRefusal, Hello, Hurry, Kind, Refuse, Refused, Release, Response, Stats, Token,
    VERSION, Welcome,
};
use super::host::{Entry, Features, Report};
use super::secret::{Ephemeral, KeyId, Secret};
use super::{Closed, Endpoint, Limits, legacy, noise};
use crate::wire::{FlowId, FlowKey, Scope, TcpHeader, Time};

/// What happened on a [`Server`]'s connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// A tcpcopy wants in: to be answered by [`Server::welcome`] or [`Server::refuse`]. No other
    /// event comes before that.
    Hello(Hello),
    /// A claim.
    Claim {
        /// The claimer's name for the flow.
        flow: FlowId,
        /// The replayed client and the target.
        key: FlowKey,
    },
    /// A claim is given up.
    Release(FlowId),
    /// Headers are to leave at once, for so long.
    Hurry(Duration),
    /// The connection is over. The last event.
    Closed(Closed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody has said hello.
    Expecting {
        until: Time,
    },
    /// Somebody has, and waits for the answer.
    Greeted {
        until: Time,
    },
    Connected,
    /// Over, and not yet said so.
    Failed(Closed),
    Over,
}

/// intercept's end of one connection of a tcpcopy worker. See the module for the order of calls.
///
/// It can be handed from the thread that accepts to the worker wanted, between the hello and its
/// answer: what was read behind the hello goes with it.
#[derive(Debug)]
pub struct Server {
    state: State,
    channel: Channel,
    limits: Limits,
    heard: Time,
    stats: Stats,
    /// The last header sent.
    last: Option<Response>,
    /// What the client understands.
    features: Features,
}

impl Server {
    /// A connection just accepted, of a client without a key.
    pub fn new(now: Time, limits: Limits) -> Self {
        Self::over(now, limits, Channel::plain(limits.output))
    }

    /// A connection just accepted, of a client that has to have one of these keys. It can make no
    /// event happen before it has proved that.
    pub fn keyed(now: Time, limits: Limits, keys: Arc<[Secret]>, ephemeral: Ephemeral) -> Self {
        Self::over(now, limits, Channel::server(limits.output, keys, ephemeral))
    }

    fn over(now: Time, limits: Limits, channel: Channel) -> Self {
        Self {
            state: State::Expecting { until: now + limits.handshake },
            channel,
            limits,
            heard: now,
            stats: Stats::default(),
            last: None,
            features: Features::NONE,
        }
    }

    /// Takes the connection.
    pub fn welcome(&mut self, now: Time, welcome: Welcome) {
        if let State::Greeted { .. } = self.state {
            self.state = State::Connected;
            self.heard = now;
            self.channel.open_up();
            self.send(Kind::Welcome, &welcome.bytes());
        }
    }

    /// Does not take the connection: it ends with [`Closed::Refused`] once what is pending was
    /// written.
    pub fn refuse(&mut self, why: Refuse) {
        self.send(Kind::Refuse, &why.bytes());
        self.fail(Closed::Refused(why));
    }

    /// Sends a response's header. `false` if the outgoing buffer is full or nobody is connected:
    /// the header is dropped and counted, and the target will send the segment again.
    ///
    /// One that continues the header before it, of the same flow and not yet on its way, makes one
    /// of both: a long response is a few of them.
    #[must_use]
    pub fn response(&mut self, flow: FlowId, header: &TcpHeader, waited: Duration) -> bool {
        let sent = self.is_connected() && (self.join(flow, header) || self.append(flow, header, waited));
        if sent {
            self.stats.headers += 1;
        } else {
            self.stats.headers_dropped += 1;
        }
        sent
    }

    fn join(&mut self, flow: FlowId, header: &TcpHeader) -> bool {
        let last = self.last.filter(|last| last.flow == flow);
        let Some((last, header)) = last.and_then(|last| Some((last, last.header.joined(header)?))) else {
            return false;
        };
        let record = Response { header, ..last };
        let joined = self.channel.output.replace_last(Kind::Headers, record.bytes().as_flattened());
        if joined {
            self.last = Some(record);
        }
        joined
    }

    fn append(&mut self, flow: FlowId, header: &TcpHeader, waited: Duration) -> bool {
        let record = Response { flow, header: *header, waited };
        let appended = self.channel.output.record(Kind::Headers, record.bytes().as_flattened());
        if appended {
            self.last = Some(record);
        }
        appended
    }

    /// Tells whether this host is closed: `open` is why it is not. A `scope` takes the place of the one told before. A
    /// client of the first release is told nothing.
    pub fn host(&mut self, open: Option<&str>, scope: Option<&Scope>) {
        if !self.is_connected() || !self.features.has(Features::HOST_STATE) {
            return;
        }
        if let Some(scope) = scope {
            let targets = scope.targets.iter().copied().map(Entry::Target);
            let clients = scope.clients.iter().flatten().copied().map(Entry::Client);
            targets.chain(clients).for_each(|entry| self.send(Kind::Scope, &entry.bytes()));
        }
        self.send(Kind::Host, &Report::new(open, scope).bytes());
    }

    /// Tells that a claim is held. A client that does not wait for it is told nothing.
    pub fn confirmed(&mut self, flow: FlowId) {
        if self.is_connected() && self.features.has(Features::CONFIRMATION) {
            self.send(Kind::Confirmed, &flow.0.to_be_bytes());
        }
    }

    /// Tells that a claim is not, or no longer, held.
    pub fn refused(&mut self, flow: FlowId, why: ClaimRefusal) {
        self.send(Kind::Refused, &Refused { flow, why }.bytes());
    }

    /// Sends the counters of this connection, with those of the worker. `false` if they do not fit:
    /// the next ones will say the same and more.
    pub fn report(&mut self, responses: u64, queue_dropped: u64) -> bool {
        let stats = Stats { responses, queue_dropped, ..self.stats };
        self.is_connected() && self.channel.output.record(Kind::Stats, stats.bytes().as_flattened())
    }

    /// The key that the client has proved to have, if one is wanted.
    pub fn key(&self) -> Option<KeyId> {
        self.channel.key()
    }

    /// Whether the connection was taken and is not over.
    pub fn is_connected(&self) -> bool {
        self.state == State::Connected
    }

    /// Memory that its buffers take, in bytes. What is written late, or read in part, is in it.
    pub fn memory(&self) -> usize {
        self.channel.memory()
    }

    /// Headers sent, and those dropped because the outgoing buffer was full.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// When [`Server::handle_timeout`] is due; long ago if [`Server::poll_event`] is.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Expecting { until } | State::Greeted { until } => Some(until),
            State::Connected => Some(self.heard + self.limits.silence),
            State::Failed(_) => Some(Time::ZERO),
            State::Over => None,
        }
    }

    /// Ends what has lasted too long.
    pub fn handle_timeout(&mut self, now: Time) {
        match self.state {
            State::Expecting { until } | State::Greeted { until } if now >= until => {
                self.fail(Closed::HandshakeTimeout);
            }
            State::Connected if now >= self.heard + self.limits.silence => self.fail(Closed::Silent),
            State::Expecting { .. }
            | State::Greeted { .. }
            | State::Connected
            | State::Failed(_)
            | State::Over => {}
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        loop {
            let step = match self.state {
                State::Failed(why) => {
                    self.state = State::Over;
                    return Some(ServerEvent::Closed(why));
                }
                State::Over | State::Greeted { .. } => return None,
                State::Expecting { until } => self.decode_hello(until),
                State::Connected => self.decode_frame(),
            };
            match step {
                Ok(Step::Event(event)) => return Some(event),
                Ok(Step::Again) => {}
                Ok(Step::Starved) => return None,
                Err(why) => self.fail(why),
            }
        }
    }

    fn decode_hello(&mut self, until: Time) -> Result<Step, Closed> {
        let kind = match self.channel.decoder.frame() {
            Err(FrameError::Length(noise::MAGIC)) => {
                self.send(Kind::Refuse, &Refuse::NoKeys.bytes());
                return Err(Closed::KeyOffered);
            }
            Err(_) if legacy::is_opening(self.channel.decoder.unread()) => return Err(Closed::CTool),
            Err(why) => return Err(why.into()),
            Ok(kind) => kind,
        };
        match kind {
            None => return Ok(Step::Starved),
            Some(Kind::Hello) => {}
            Some(other) => return Err(Closed::Unexpected(other)),
        }
        match self.channel.decoder.record()? {
            AnyHello::Ours(hello) => {
                self.state = State::Greeted { until };
                self.features = hello.features;
                Ok(Step::Event(ServerEvent::Hello(hello)))
            }
            AnyHello::Version(version) => {
                self.send(Kind::Refuse, &Refuse::Version(VERSION).bytes());
                Err(Closed::Version(version))
            }
            AnyHello::Foreign => Err(Closed::Magic),
        }
    }

    fn decode_frame(&mut self) -> Result<Step, Closed> {
        let Some(kind) = self.channel.decoder.frame()? else { return Ok(Step::Starved) };
        match kind {
            Kind::Claims => {
                let Claim { flow, key } = self.channel.decoder.record()?;
                Ok(Step::Event(ServerEvent::Claim { flow, key }))
            }
            Kind::Releases => {
                let Release(flow) = self.channel.decoder.record()?;
                Ok(Step::Event(ServerEvent::Release(flow)))
            }
            Kind::Ping => {
                let Token(token) = self.channel.decoder.record()?;
                self.channel.release();
                self.send(Kind::Pong, &token.to_be_bytes());
                Ok(Step::Again)
            }
            Kind::Hello
            | Kind::Welcome
            | Kind::Refuse
            | Kind::Refused
            | Kind::Headers
            | Kind::Pong
            | Kind::Stats
            | Kind::Scope
            | Kind::Host
            | Kind::Confirmed => Err(Closed::Unexpected(kind)),
            Kind::Hurry => {
                let Hurry { millis } = self.channel.decoder.record()?;
                Ok(Step::Event(ServerEvent::Hurry(Duration::from_millis(millis.into()))))
            }
        }
    }

    fn send(&mut self, kind: Kind, bytes: &[u8]) {
        if !self.channel.output.record(kind, bytes) {
            self.fail(Closed::Overflow);
        }
    }

    fn fail(&mut self, why: Closed) {
        match self.state {
            State::Expecting { .. } | State::Greeted { .. } | State::Connected => {
                self.state = State::Failed(why);
            }
            State::Failed(_) | State::Over => {}
        }
    }
}

enum Step {
    Event(ServerEvent),
    Again,
    Starved,
}

impl Endpoint for Server {
    fn space(&mut self) -> &mut [u8] {
        self.channel.space()
    }

    fn filled(&mut self, now: Time, n: usize) {
        self.heard = now;
        if let Err(why) = self.channel.filled(n) {
            self.fail(why);
        }
        if let State::Greeted { .. } = self.state
            && self.channel.decoder.buffered() > super::codec::MAX_HELLO
        {
            // A client waits for the answer before it says more.
            self.fail(Closed::Unexpected(Kind::Hello));
        }
    }

    fn has_pending(&self) -> bool {
        self.channel.has_pending()
    }

    fn pending(&mut self) -> &[u8] {
        self.channel.pending()
    }

    fn sent(&mut self, n: usize) {
        self.channel.sent(n);
    }
}
