//! What a run is made of. The families are in [`families`].

mod families;

use std::ops::RangeInclusive;
use std::time::Duration;

use tcpcopy::session::{self, Latency};
use tcpcopy::wire::MAX_TRAIN;

pub(crate) use families::{Scenario, names};

use crate::link::Leg;
use crate::rng::Rng;
use crate::target::Quirks;

/// Which TCP the target has.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    Smoltcp,
    Scripted(Quirks),
}

/// How clients send their requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// One at a time, after the whole response.
    Lockstep,
    /// So many at once, the next ones after all their responses.
    Batches(usize),
    /// So many under way: each response lets the next request go.
    Window(usize),
    /// One more whenever a part of the response before it has come.
    Trailing,
}

/// How a client's connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// FIN after the last response.
    Client,
    /// FIN with the last request, or right behind it: half-closed while the response comes.
    Half,
    /// The server closes after its last response, then the client.
    Server,
    /// Both do, and neither has seen the other's FIN.
    Both,
    /// RST after the last response.
    Reset,
    /// RST right behind the last request.
    Abort,
    /// FIN in the middle of the last response, then RST at the FIN or behind it.
    Cancel,
    /// The client is never heard of again.
    Vanish,
}

impl Close {
    /// Whether it comes after the client has seen more of the response than its last request did.
    pub(crate) fn is_burst(self) -> bool {
        !matches!(self, Self::Half | Self::Abort | Self::Cancel | Self::Vanish)
    }
}

/// How long the target's responses are, measured against the online server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// As long.
    Equal,
    /// Between one byte and as long.
    Shorter,
    /// As long or longer.
    Longer,
    /// One byte less.
    OneLess,
    /// Of another length, whatever the online server's is.
    Other,
}

/// What the target does to connections, against the online server's example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing.
    None,
    /// It closes after so many requests of a connection.
    Closes(u32),
    /// It resets after having answered so many requests of a connection.
    Resets(u32),
    /// It is gone between these times (microseconds) and knows no connection afterwards.
    Down(u64, u64),
}

/// What must come of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Every request arrives once in each copy.
    Everything,
    /// What does not arrive is accounted for as skipped, or was acknowledged by a connection that
    /// the target threw away; what arrives twice had not been acknowledged.
    Accounted,
    /// Whatever is whole in the capture before a hole arrives, and what follows the next boundary.
    Resumed,
}

/// One run, all of it. Times are in microseconds, chances in permille.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) peer: Peer,
    pub(crate) clients: RangeInclusive<u64>,
    pub(crate) requests: RangeInclusive<u64>,
    pub(crate) request_size: RangeInclusive<u64>,
    pub(crate) response_size: RangeInclusive<u64>,
    pub(crate) think: RangeInclusive<u64>,
    pub(crate) client_rtt: RangeInclusive<u64>,
    pub(crate) styles: Vec<Style>,
    pub(crate) closes: Vec<Close>,
    /// Connections made one after the other from one client port.
    pub(crate) reuse: u64,
    /// First packets of a connection that were not captured.
    pub(crate) missed: RangeInclusive<u64>,
    /// Client retransmissions, keep-alive probes.
    pub(crate) retransmit: u64,
    /// A client that has reset answers what comes late with another reset.
    pub(crate) reset_again: u64,
    pub(crate) pure_acks: u64,
    /// The handshake's ACK is captured.
    pub(crate) handshake_ack: u64,
    pub(crate) greeting: u64,
    /// Bytes of a response that the target says as soon as it sees a request coming.
    pub(crate) interim: u64,
    /// Bytes that the servers say unasked some time after each response.
    pub(crate) unasked: RangeInclusive<u64>,
    /// How long the online server takes.
    pub(crate) online_delay: RangeInclusive<u64>,
    /// Clients that send data with their SYN (RFC 7413).
    pub(crate) fast_open: u64,
    /// Segments with options nobody knows, with ECN bits, with an urgent pointer.
    pub(crate) unknown_options: u64,
    pub(crate) ecn: u64,
    pub(crate) urgent: u64,
    pub(crate) capture: Leg,
    pub(crate) send: Leg,
    pub(crate) response: Leg,
    pub(crate) tunnel: Leg,
    /// No tunnel in these times; `forget`: the intercept has lost its claims when it returns.
    pub(crate) outages: Vec<(u64, u64)>,
    pub(crate) forget: bool,
    /// Claims refused.
    pub(crate) refuse: u64,
    pub(crate) answers: Answers,
    pub(crate) target_delay: RangeInclusive<u64>,
    pub(crate) trouble: Trouble,
    pub(crate) receive_buffer: usize,
    /// Bytes the target's application reads every 10 ms; `None`: as they come.
    pub(crate) read_rate: Option<usize>,
    /// How long it leaves a connection alone at first.
    pub(crate) read_pause: u64,
    pub(crate) pools: Vec<&'static str>,
    pub(crate) copies: u16,
    pub(crate) memory_limit: usize,
    pub(crate) session: session::Config,
    pub(crate) expect: Expect,
    /// No request may leave before the response before it is complete.
    pub(crate) strict_gate: bool,
    /// Chance that the target pauses in the middle of a response, and how long.
    pub(crate) pauses: u64,
    pub(crate) pause: RangeInclusive<u64>,
    /// How late half of the requests may leave at most, and how many of a thousand may leave too early.
    pub(crate) keeps_up: Option<(Duration, u64)>,
}

impl Setup {
    /// A quiet network and ordinary clients.
    fn clean(rng: &mut Rng) -> Self {
        let hop = rng.within(20..=2_000);
        Self {
            peer: if rng.chance(500) { Peer::Smoltcp } else { Peer::Scripted(Quirks::ordinary(rng)) },
            clients: 1..=4,
            requests: 1..=8,
            request_size: 16..=6_000,
            response_size: 1..=20_000,
            think: 0..=300_000,
            client_rtt: 100..=80_000,
            styles: vec![Style::Lockstep],
            closes: vec![Close::Client, Close::Server],
            reuse: 1,
            missed: 0..=0,
            retransmit: 0,
            reset_again: 0,
            pure_acks: 200,
            handshake_ack: 500,
            greeting: 0,
            interim: 0,
            unasked: 0..=0,
            online_delay: 10..=5_000,
            fast_open: 0,
            unknown_options: 0,
            ecn: 0,
            urgent: 0,
            capture: Leg::perfect(5),
            send: Leg::perfect(hop),
            response: Leg::perfect(hop),
            tunnel: Leg::perfect(hop / 2),
            outages: Vec::new(),
            forget: false,
            refuse: 0,
            answers: Answers::Equal,
            target_delay: 0..=20_000,
            trouble: Trouble::None,
            receive_buffer: 16_384,
            read_rate: None,
            read_pause: 0,
            pools: Vec::new(),
            copies: 1,
            memory_limit: 1 << 30,
            session: session::Config {
                latency: if rng.chance(300) { Latency::None } else { Latency::Client },
                max_train: rng.pick(&[0, MAX_TRAIN]),
                ..session::Config::default()
            },
            expect: Expect::Everything,
            strict_gate: true,
            pauses: 0,
            pause: 0..=0,
            keeps_up: None,
        }
    }
}

impl Setup {
    /// The target is the scripted one, and like this.
    fn scripted(&mut self, rng: &mut Rng, change: impl FnOnce(&mut Quirks, &mut Rng)) {
        let mut quirks = Quirks::ordinary(rng);
        change(&mut quirks, rng);
        self.peer = Peer::Scripted(quirks);
    }
}
