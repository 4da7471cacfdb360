//! tcpcopy's end of a tunnel connection.

use std::time::Duration;

use super::channel::Channel;
use super::codec::FrameError;
use super::frame::{
    AnyWelcome, Claim, ClaimRefusal, Confirmed, Hello, Hurry, Kind, Refuse, Refused, Response, Stats, Token,
};
use super::host::{Host, HostState};
use super::secret::{Ephemeral, Secret};
use super::{Claimer, Closed, Endpoint, Limits};
use crate::wire::flow::SPLIT_SEED;
use crate::wire::{FlowId, FlowKey, Reject, Scope, TcpHeader, Time};

/// What happened on a [`Client`]'s connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// The intercept took the connection. It knows none of our claims: all live ones are to be
    /// made again.
    Connected {
        /// How many workers the intercept has. Each takes the claims of the flows that
        /// [`crate::wire::flow::split`] gives to it.
        workers: u16,
    },
    /// A response to one of our flows.
    Response(Response),
    /// A response to one of our flows, perhaps: of an intercept that does not know our names for them ([`legacy`]).
    ///
    /// [`legacy`]: super::legacy
    Unnamed {
        /// Whose it is.
        key: FlowKey,
        /// Its header.
        header: TcpHeader,
    },
    /// A response that cannot be used, from there.
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
    /// [`Claimer::host`] and [`Claimer::scope`].
    Host,
    /// The intercept's counters.
    Stats(Stats),
    /// The connection is over. The last event.
    Closed(Closed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The hello is on its way.
    Greeting {
        until: Time,
    },
    Connected,
    /// Over, and not yet said so.
    Failed(Closed),
    Over,
}

/// tcpcopy's end of one connection to an intercept worker. See the module for the order of calls.
#[derive(Debug)]
pub struct Client {
    state: State,
    hello: Hello,
    channel: Channel,
    limits: Limits,
    heard: Time,
    next_ping: Time,
    pings: u64,
    host: Host,
}

impl Client {
    /// A connection just made, without a key: its hello is pending.
    pub fn new(now: Time, hello: Hello, limits: Limits) -> Self {
        Self::over(now, hello, limits, Channel::plain(limits.output))
    }

    /// A connection just made, to an intercept that has to have this key. Nothing is sent without it.
    pub fn keyed(now: Time, hello: Hello, limits: Limits, secret: &Secret, ephemeral: Ephemeral) -> Self {
        Self::over(now, hello, limits, Channel::client(limits.output, secret, ephemeral))
    }

    fn over(now: Time, hello: Hello, limits: Limits, channel: Channel) -> Self {
        let mut client = Self {
            state: State::Greeting { until: now + limits.handshake },
            hello,
            channel,
            limits,
            heard: now,
            next_ping: now + limits.ping,
            pings: 0,
            host: Host::new(),
        };
        client.send(Kind::Hello, &hello.bytes());
        client
    }

    /// Bytes that wait to be written.
    pub fn backlog(&self) -> usize {
        self.channel.output.pending().len()
    }

    /// Frames of unknown kinds that were passed over.
    pub fn unknown_frames(&self) -> u64 {
        self.channel.decoder.unknown()
    }
}

impl Claimer for Client {
    fn is_connected(&self) -> bool {
        self.state == State::Connected
    }

    fn memory(&self) -> usize {
        self.channel.memory()
    }

    fn claim(&mut self, flow: FlowId, key: FlowKey) {
        if !self.is_connected() {
            return;
        }
        // A flow between two families does not exist: there is nothing to claim.
        if let Some((bytes, len)) = (Claim { flow, key }).bytes() {
            self.send(Kind::Claims, bytes.get(..len).unwrap_or_default());
        }
    }

    fn release(&mut self, flow: FlowId) {
        if self.is_connected() {
            self.send(Kind::Releases, &flow.0.to_be_bytes());
        }
    }

    fn hurry(&mut self, time: Duration) {
        if self.is_connected() {
            let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
            self.send(Kind::Hurry, &Hurry { millis }.bytes());
        }
    }

    fn host(&self) -> &HostState {
        &self.host.state
    }

    fn confirms_claims(&self) -> bool {
        self.host.confirms
    }

    fn scope(&self) -> Option<&Scope> {
        self.host.scope.as_ref()
    }

    fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Greeting { until } => Some(until),
            State::Connected => Some(self.next_ping.min(self.heard + self.limits.silence)),
            State::Failed(_) => Some(Time::ZERO),
            State::Over => None,
        }
    }

    fn handle_timeout(&mut self, now: Time) {
        match self.state {
            State::Greeting { until } if now >= until => self.fail(Closed::HandshakeTimeout),
            State::Connected if now >= self.heard + self.limits.silence => self.fail(Closed::Silent),
            State::Connected if now >= self.next_ping => {
                self.next_ping = now + self.limits.ping;
                self.pings += 1;
                self.channel.release();
                self.send(Kind::Ping, &self.pings.to_be_bytes());
            }
            State::Greeting { .. } | State::Connected | State::Failed(_) | State::Over => {}
        }
    }

    fn poll_event(&mut self) -> Option<ClientEvent> {
        loop {
            if let State::Failed(why) = self.state {
                self.state = State::Over;
                return Some(ClientEvent::Closed(why));
            }
            if self.state == State::Over {
                return None;
            }
            match self.decode() {
                Ok(Step::Event(event)) => return Some(event),
                Ok(Step::Again) => {}
                Ok(Step::Starved) => return None,
                Err(why) => self.fail(why),
            }
        }
    }
}

impl Client {
    fn decode(&mut self) -> Result<Step, Closed> {
        let Some(kind) = self.channel.decoder.frame()? else { return Ok(Step::Starved) };
        match self.state {
            State::Greeting { .. } => self.decode_answer(kind),
            State::Connected => {
                self.decode_frame(kind).map_err(Closed::Frame)?.ok_or(Closed::Unexpected(kind))
            }
            State::Failed(_) | State::Over => Ok(Step::Starved),
        }
    }

    fn decode_answer(&mut self, kind: Kind) -> Result<Step, Closed> {
        match kind {
            Kind::Welcome if self.channel.is_trusted() => {
                let welcome = match self.channel.decoder.record::<AnyWelcome>()? {
                    AnyWelcome::Ours(welcome) => welcome,
                    AnyWelcome::Version(version) => return Err(Closed::Version(version)),
                };
                if welcome.split_seed != SPLIT_SEED {
                    return Err(Closed::SplitSeed(welcome.split_seed));
                }
                if welcome.worker != self.hello.worker || welcome.worker >= welcome.workers {
                    return Err(Closed::Worker(welcome.worker));
                }
                self.channel.open_up();
                self.state = State::Connected;
                self.host.welcomed(welcome.features);
                Ok(Step::Event(ClientEvent::Connected { workers: welcome.workers }))
            }
            Kind::Refuse => Err(Closed::Refused(self.channel.decoder.record::<Refuse>()?)),
            Kind::Welcome
            | Kind::Hello
            | Kind::Claims
            | Kind::Refused
            | Kind::Releases
            | Kind::Headers
            | Kind::Ping
            | Kind::Pong
            | Kind::Stats
            | Kind::Hurry
            | Kind::Scope
            | Kind::Host
            | Kind::Confirmed => Err(Closed::Unexpected(kind)),
        }
    }

    /// `None` for a frame that is not for this end.
    fn decode_frame(&mut self, kind: Kind) -> Result<Option<Step>, FrameError> {
        let event = match kind {
            Kind::Headers => ClientEvent::Response(self.channel.decoder.record()?),
            Kind::Refused => {
                let Refused { flow, why } = self.channel.decoder.record()?;
                ClientEvent::Refused { flow, why }
            }
            Kind::Confirmed => {
                let Confirmed(flow) = self.channel.decoder.record()?;
                ClientEvent::Confirmed(flow)
            }
            Kind::Stats => ClientEvent::Stats(self.channel.decoder.record()?),
            Kind::Scope => {
                self.host.add(self.channel.decoder.record()?)?;
                return Ok(Some(Step::Again));
            }
            Kind::Host => {
                self.host.take(self.channel.decoder.record()?);
                ClientEvent::Host
            }
            Kind::Pong => {
                let Token(_) = self.channel.decoder.record()?;
                return Ok(Some(Step::Again));
            }
            Kind::Hello
            | Kind::Welcome
            | Kind::Refuse
            | Kind::Claims
            | Kind::Releases
            | Kind::Ping
            | Kind::Hurry => return Ok(None),
        };
        Ok(Some(Step::Event(event)))
    }

    fn send(&mut self, kind: Kind, bytes: &[u8]) {
        if !self.channel.output.record(kind, bytes) {
            self.fail(Closed::Overflow);
        }
    }

    fn fail(&mut self, why: Closed) {
        match self.state {
            State::Greeting { .. } | State::Connected => self.state = State::Failed(why),
            State::Failed(_) | State::Over => {}
        }
    }
}

enum Step {
    Event(ClientEvent),
    Again,
    Starved,
}

impl Endpoint for Client {
    fn space(&mut self) -> &mut [u8] {
        self.channel.space()
    }

    fn filled(&mut self, now: Time, n: usize) {
        self.heard = now;
        if let Err(why) = self.channel.filled(n) {
            self.fail(why);
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
