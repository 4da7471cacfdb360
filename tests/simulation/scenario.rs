//! What a run is made of, and the table of scenario families.

use std::ops::RangeInclusive;

use tcpcopy::session::{self, Latency};

use crate::link::Leg;
use crate::rng::Rng;

/// How clients send their requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// One at a time, after the whole response.
    Lockstep,
    /// So many at once, the next ones after all their responses.
    Batches(usize),
    /// So many under way: each response lets the next request go.
    Window(usize),
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
    /// RST after the last response.
    Reset,
    /// RST right behind the last request.
    Abort,
    /// The client is never heard of again.
    Vanish,
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
    /// Nothing but the invariants of every step.
    Sane,
}

/// One run, all of it. Times are in microseconds, chances in permille.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
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
    pub(crate) pure_acks: u64,
    /// The handshake's ACK is captured.
    pub(crate) handshake_ack: u64,
    pub(crate) greeting: u64,
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
    pub(crate) pools: Vec<&'static str>,
    pub(crate) copies: u16,
    pub(crate) session: session::Config,
    pub(crate) expect: Expect,
    /// No request may leave before the response before it is complete.
    pub(crate) strict_gate: bool,
}

impl Setup {
    /// A quiet network and ordinary clients.
    fn clean(rng: &mut Rng) -> Self {
        let hop = rng.within(20..=2_000);
        Self {
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
            pure_acks: 200,
            handshake_ack: 500,
            greeting: 0,
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
            pools: Vec::new(),
            copies: 1,
            session: session::Config {
                latency: if rng.chance(300) { Latency::None } else { Latency::Client },
                ..session::Config::default()
            },
            expect: Expect::Everything,
            strict_gate: true,
        }
    }
}

/// A family: its name, how many seeds a default run tries, and what sets it apart from a clean run.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) seeds: u64,
    alter: fn(&mut Setup, &mut Rng),
}

impl Scenario {
    /// The run number `seed`.
    pub(crate) fn setup(&self, rng: &mut Rng) -> Setup {
        let mut setup = Setup::clean(rng);
        (self.alter)(&mut setup, rng);
        setup
    }

    /// The family called `name`.
    pub(crate) fn named(name: &str) -> &'static Self {
        SCENARIOS.iter().find(|scenario| scenario.name == name).expect("a scenario of the table")
    }
}

fn loss(rng: &mut Rng) -> u64 {
    rng.pick(&[10, 10, 50, 50, 100])
}

fn disorder(leg: &mut Leg, rng: &mut Rng) {
    leg.reorder = rng.within(20..=300);
    leg.held = rng.size(100..=50_000);
    leg.duplicate = rng.within(0..=100);
}

/// Losses and disorder on a leg make the target fall silent in the middle of a response, so the
/// gate's quiet rule may let a request go: that is by design.
const SCENARIOS: &[Scenario] = &[
    Scenario { name: "clean", seeds: 200, alter: |_, _| {} },
    Scenario {
        name: "lossy_send",
        seeds: 150,
        alter: |setup, rng| {
            setup.send.loss = loss(rng);
            setup.send.corrupt = rng.within(0..=20);
            setup.send.duplicate = rng.within(0..=50);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "lossy_response",
        seeds: 150,
        alter: |setup, rng| {
            setup.response.loss = loss(rng);
            setup.response.duplicate = rng.within(0..=50);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "lossy_tunnel",
        seeds: 150,
        alter: |setup, rng| {
            setup.tunnel.loss = loss(rng);
            setup.tunnel.delay = 100..=rng.size(200..=30_000);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "lossy_everywhere",
        seeds: 150,
        alter: |setup, rng| {
            for leg in [&mut setup.send, &mut setup.response, &mut setup.tunnel] {
                leg.loss = rng.within(0..=50);
                disorder(leg, rng);
            }
            setup.send.corrupt = rng.within(0..=20);
            setup.styles.push(Style::Window(3));
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "reorder",
        seeds: 150,
        alter: |setup, rng| {
            disorder(&mut setup.send, rng);
            disorder(&mut setup.response, rng);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "capture_disorder",
        seeds: 150,
        alter: |setup, rng| {
            disorder(&mut setup.capture, rng);
            setup.retransmit = rng.within(0..=200);
            setup.pure_acks = rng.pick(&[0, 500, 1000]);
        },
    },
    Scenario {
        name: "capture_loss",
        seeds: 200,
        alter: |setup, rng| {
            setup.capture.loss = rng.pick(&[5, 10, 50, 200]);
            setup.requests = 1..=15;
            setup.styles = vec![Style::Lockstep, Style::Batches(3), Style::Window(3)];
            setup.closes = vec![Close::Client, Close::Server, Close::Half, Close::Reset, Close::Vanish];
            setup.expect = Expect::Resumed;
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "target_slow",
        seeds: 150,
        alter: |setup, rng| {
            setup.target_delay = 0..=rng.pick(&[50_000, 500_000, 5_000_000]);
            setup.closes.push(Close::Half);
        },
    },
    Scenario {
        name: "target_short",
        seeds: 150,
        alter: |setup, rng| {
            setup.answers = Answers::Shorter;
            setup.target_delay = 0..=rng.pick(&[1_000, 100_000]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "target_long",
        seeds: 150,
        alter: |setup, rng| {
            setup.answers = Answers::Longer;
            setup.target_delay = 0..=rng.pick(&[1_000, 100_000]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "target_closes",
        seeds: 150,
        alter: |setup, rng| {
            setup.requests = 1..=12;
            setup.trouble = Trouble::Closes(u32::try_from(rng.within(1..=4)).expect("small"));
            setup.send.loss = rng.pick(&[0, 0, 20]);
            setup.response.loss = rng.pick(&[0, 0, 20]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "target_resets",
        seeds: 150,
        alter: |setup, rng| {
            setup.requests = 1..=12;
            setup.styles.push(Style::Window(2));
            setup.trouble = Trouble::Resets(u32::try_from(rng.within(1..=4)).expect("small"));
            setup.expect = Expect::Accounted;
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "target_down",
        seeds: 150,
        alter: |setup, rng| {
            let from = rng.within(0..=1_000_000);
            setup.trouble = Trouble::Down(from, from + rng.size(1_000..=30_000_000));
            setup.closes = vec![Close::Client, Close::Server, Close::Half, Close::Reset];
            setup.expect = Expect::Accounted;
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "mid_stream",
        seeds: 150,
        alter: |setup, rng| {
            setup.requests = 3..=12;
            setup.missed = 1..=8;
            setup.styles.push(Style::Batches(2));
            setup.pure_acks = rng.pick(&[0, 1000]);
            setup.expect = Expect::Resumed;
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "pipelined",
        seeds: 200,
        alter: |setup, rng| {
            setup.requests = 2..=20;
            setup.styles = vec![Style::Window(2), Style::Window(4), Style::Batches(3), Style::Batches(8)];
            setup.think = 0..=20_000;
            setup.closes.push(Close::Half);
            setup.target_delay = 0..=rng.pick(&[0, 1_000, 30_000]);
        },
    },
    Scenario {
        name: "half_close",
        seeds: 150,
        alter: |setup, _| {
            setup.closes = vec![Close::Half];
            setup.styles.push(Style::Batches(3));
            setup.request_size = 16..=60_000;
        },
    },
    Scenario {
        name: "resets",
        seeds: 150,
        alter: |setup, rng| {
            setup.closes = vec![Close::Reset, Close::Abort];
            setup.send.loss = rng.pick(&[0, 20]);
            setup.response.loss = rng.pick(&[0, 20]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "port_reuse",
        seeds: 150,
        alter: |setup, rng| {
            setup.reuse = rng.within(2..=6);
            setup.requests = 1..=4;
            setup.closes = vec![Close::Client, Close::Server, Close::Half, Close::Reset, Close::Vanish];
            setup.send.loss = rng.pick(&[0, 0, 20]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "slow_reader",
        seeds: 150,
        alter: |setup, rng| {
            setup.request_size = 16..=60_000;
            setup.receive_buffer = rng.pick(&[512, 2_048, 8_192]);
            setup.read_rate = Some(rng.pick(&[100, 1_000, 10_000]));
            setup.send.loss = rng.pick(&[0, 10]);
            setup.response.loss = rng.pick(&[0, 10]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "large_bodies",
        seeds: 60,
        alter: |setup, rng| {
            setup.clients = 1..=2;
            setup.requests = 1..=3;
            setup.request_size = 16..=400_000;
            setup.response_size = 1..=400_000;
            setup.receive_buffer = rng.pick(&[16_384, 65_535, 200_000]);
            setup.closes.push(Close::Half);
        },
    },
    Scenario {
        name: "small_pool",
        seeds: 40,
        alter: |setup, _| {
            setup.clients = 30..=60;
            setup.requests = 1..=4;
            setup.reuse = 2;
            setup.pools = vec!["10.99.0.0/31", "fd99::/127"];
        },
    },
    Scenario {
        name: "copies",
        seeds: 100,
        alter: |setup, rng| {
            setup.copies = 3;
            setup.pools = vec!["10.99.0.0/24", "fd99::/64"];
            setup.send.loss = rng.pick(&[0, 20]);
            setup.response.loss = rng.pick(&[0, 20]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "intercept_outage",
        seeds: 150,
        alter: |setup, rng| {
            let from = rng.within(0..=1_000_000);
            let to = from + rng.size(1_000..=20_000_000);
            setup.outages = vec![(from, to), (to + 500_000, to + 2_000_000)];
            setup.forget = rng.chance(500);
            setup.reuse = 2;
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "refused_claims",
        seeds: 100,
        alter: |setup, rng| {
            setup.refuse = rng.pick(&[50, 300]);
            setup.pools = vec!["10.99.0.0/24", "fd99::/64"];
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "server_first",
        seeds: 150,
        alter: |setup, rng| {
            setup.greeting = rng.within(1..=2_000);
            setup.handshake_ack = 1000;
            setup.styles.push(Style::Batches(2));
        },
    },
];

/// The families, in the order of the table.
pub(crate) fn names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name).collect()
}
