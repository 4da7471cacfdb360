//! The table of scenario families.

use std::time::Duration;

use tcpcopy::session::GateMode;

use super::{Answers, Close, Expect, Setup, Style, Trouble};
use crate::link::Leg;
use crate::rng::Rng;

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

/// Keep-alive connections with 50 to 100 requests a second, to a target that answers otherwise than production.
fn keep_alive_load(setup: &mut Setup, answers: Answers) {
    setup.answers = answers;
    setup.clients = 2..=4;
    setup.requests = 200..=300;
    setup.request_size = 16..=300;
    setup.response_size = 2..=1_400;
    setup.think = 10_000..=20_000;
    setup.client_rtt = 100..=1_000;
    setup.target_delay = 0..=1_000;
    for leg in [&mut setup.send, &mut setup.response, &mut setup.tunnel] {
        *leg = Leg::perfect(100);
    }
    setup.keeps_up = Some((Duration::from_millis(5), 40));
    setup.strict_gate = false;
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
            if setup.response.loss > 0 {
                // A gate that opens early sends into the close, which cuts the request off.
                setup.expect = Expect::Accounted;
            }
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
            setup.target_delay = 0..=rng.pick(&[0, 1_000, 15_000]);
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
            setup.reset_again = 300;
            setup.send.loss = rng.pick(&[0, 20]);
            setup.response.loss = rng.pick(&[0, 20]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "aborts",
        seeds: 200,
        alter: |setup, rng| {
            setup.closes = vec![Close::Cancel];
            setup.target_delay = 0..=rng.pick(&[1_000, 200_000, 2_000_000]);
            setup.pure_acks = rng.pick(&[0, 500, 1000]);
            setup.retransmit = rng.pick(&[0, 0, 100]);
            if rng.chance(300) {
                disorder(&mut setup.capture, rng);
            } else {
                // Segments of one connection do not come in the middle of the next.
                setup.reuse = rng.within(1..=2);
            }
            setup.send.loss = rng.pick(&[0, 0, 20]);
            setup.response.loss = rng.pick(&[0, 0, 20]);
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
            setup.read_pause = rng.pick(&[0, 0, 1_000_000, 40_000_000]);
            setup.session.give_up = Duration::from_secs(20);
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
            setup.clients = 15..=30;
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
    Scenario {
        name: "fast_open",
        seeds: 100,
        alter: |setup, rng| {
            setup.fast_open = 800;
            // Without it nobody can tell how much answers what came with the SYN.
            setup.handshake_ack = 1000;
            setup.retransmit = rng.pick(&[0, 100]);
            setup.styles.push(Style::Batches(2));
            setup.closes.push(Close::Half);
            setup.send.loss = rng.pick(&[0, 20]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "odd_segments",
        seeds: 100,
        alter: |setup, rng| {
            setup.unknown_options = rng.pick(&[0, 300]);
            setup.ecn = rng.pick(&[0, 300]);
            setup.urgent = rng.pick(&[0, 300]);
            setup.retransmit = rng.pick(&[0, 100]);
        },
    },
    Scenario {
        name: "trailing",
        seeds: 100,
        alter: |setup, rng| {
            setup.styles = vec![Style::Trailing];
            setup.requests = 2..=12;
            setup.think = 0..=20_000;
            setup.target_delay = 0..=rng.pick(&[0, 1_000, 15_000]);
        },
    },
    Scenario {
        name: "interim",
        seeds: 100,
        alter: |setup, rng| {
            setup.request_size = 16..=60_000;
            setup.interim = rng.within(1..=500);
            setup.response_size = 500..=rng.pick(&[500, 20_000]);
            setup.target_delay = 0..=rng.pick(&[1_000, 400_000]);
            setup.closes.push(Close::Half);
        },
    },
    Scenario {
        name: "long_polls",
        seeds: 100,
        alter: |setup, rng| {
            setup.session.response_timeout = Duration::from_secs(40);
            setup.requests = 1..=4;
            setup.online_delay = 10..=rng.pick(&[1_000_000, 50_000_000]);
            setup.target_delay = 0..=rng.pick(&[1_000_000, 30_000_000]);
            setup.retransmit = rng.pick(&[0, 200]);
        },
    },
    Scenario {
        name: "chat",
        seeds: 100,
        alter: |setup, rng| {
            setup.unasked = 0..=rng.pick(&[10, 3_000]);
            setup.requests = 1..=12;
            setup.request_size = 16..=500;
            setup.response_size = 1..=500;
            setup.styles = vec![Style::Lockstep, Style::Window(2), Style::Trailing];
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "ungated",
        seeds: 50,
        alter: |setup, rng| {
            setup.session.gate = GateMode::None;
            setup.target_delay = 0..=rng.pick(&[1_000, 5_000_000]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "memory_limit",
        seeds: 100,
        alter: |setup, rng| {
            setup.memory_limit = usize::try_from(rng.within(20_000..=200_000)).expect("small");
            setup.request_size = 16..=60_000;
            setup.think = 0..=10_000;
            setup.target_delay = 0..=1_000_000;
            setup.read_rate = rng.pick(&[None, Some(1_000)]);
            setup.expect = Expect::Accounted;
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "corruption",
        seeds: 150,
        alter: |setup, rng| {
            setup.capture.corrupt = rng.pick(&[0, 50]);
            setup.send.corrupt = rng.pick(&[0, 50]);
            setup.response.corrupt = rng.pick(&[0, 50]);
            setup.tunnel.corrupt = rng.pick(&[0, 0, 10]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "simultaneous_close",
        seeds: 100,
        alter: |setup, rng| {
            setup.closes = vec![Close::Both];
            setup.think = 0..=rng.pick(&[100, 5_000]);
            setup.send.loss = rng.pick(&[0, 20]);
            setup.response.loss = rng.pick(&[0, 20]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "small_segments",
        seeds: 100,
        alter: |setup, rng| {
            setup.scripted(rng, |quirks, rng| {
                quirks.mss = vec![Some(48), Some(64), Some(200), None, Some(1460), Some(65_535)];
                quirks.closed_at_first = rng.size(0..=5_000_000);
                quirks.taciturn = rng.chance(300);
            });
            setup.request_size = 16..=3_000;
            setup.reuse = 2;
        },
    },
    Scenario {
        name: "late_syn_acks",
        seeds: 100,
        alter: |setup, rng| {
            setup.scripted(rng, |quirks, rng| {
                quirks.syn_ack_delay = rng.size(0..=10_000_000);
                quirks.syn_acks_lost = rng.within(0..=4);
            });
            setup.strict_gate = rng.chance(500);
            setup.response.loss = if setup.strict_gate { 0 } else { 30 };
        },
    },
    Scenario {
        name: "time_wait",
        seeds: 150,
        alter: |setup, rng| {
            setup.scripted(rng, |quirks, rng| {
                quirks.time_wait = rng.size(1_000..=30_000_000);
                quirks.time_wait_is_safe = rng.chance(500);
            });
            setup.closes = vec![Close::Server, Close::Both, Close::Client];
            setup.reuse = rng.within(2..=5);
            setup.requests = 1..=3;
            setup.send.loss = rng.pick(&[0, 0, 20]);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "keep_alive",
        seeds: 100,
        alter: |setup, rng| {
            setup.scripted(rng, |quirks, rng| quirks.keep_alive = Some(rng.within(200_000..=5_000_000)));
            setup.think = 0..=rng.pick(&[1_000_000, 60_000_000]);
            setup.retransmit = 200;
        },
    },
    Scenario {
        name: "stray_resets",
        seeds: 100,
        alter: |setup, rng| {
            setup.scripted(rng, |quirks, rng| quirks.stray_resets = rng.pick(&[50, 500]));
        },
    },
    Scenario {
        name: "nonsense",
        seeds: 150,
        alter: |setup, rng| {
            setup.scripted(rng, |quirks, rng| {
                quirks.nonsense = rng.pick(&[50, 500]);
                quirks.unknown_options = 300;
            });
            if rng.chance(500) {
                disorder(&mut setup.response, rng);
            }
            setup.reuse = rng.within(1..=2);
            setup.strict_gate = false;
        },
    },
    Scenario {
        name: "old_segments",
        seeds: 100,
        alter: |setup, rng| {
            setup.scripted(rng, |quirks, _| quirks.timestamps = true);
            for leg in [&mut setup.send, &mut setup.response, &mut setup.tunnel] {
                leg.duplicate = rng.within(0..=300);
                (leg.reorder, leg.held) = (100, rng.size(1_000..=2_000_000));
            }
            setup.strict_gate = false;
        },
    },
    Scenario { name: "one_byte_less", seeds: 20, alter: |setup, _| keep_alive_load(setup, Answers::OneLess) },
    Scenario {
        name: "other_lengths",
        seeds: 8,
        alter: |setup, _| {
            keep_alive_load(setup, Answers::Other);
            setup.requests = 500..=700;
        },
    },
    Scenario {
        name: "pauses",
        seeds: 20,
        alter: |setup, rng| {
            keep_alive_load(setup, Answers::Equal);
            setup.pauses = rng.pick(&[500, 1000]);
            setup.pause = 1_000..=400_000;
            setup.keeps_up = Some((Duration::from_secs(3600), 1));
        },
    },
    Scenario {
        name: "other_lengths_and_pauses",
        seeds: 8,
        alter: |setup, rng| {
            keep_alive_load(setup, Answers::Other);
            setup.pauses = rng.pick(&[300, 1000]);
            setup.pause = 1_000..=rng.pick(&[5_000, 10_000]);
            setup.requests = 500..=700;
            setup.think = 20_000..=40_000;
            // The aim is 50 ms and one early request in a hundred. Seeds of a long run have up to eight: lengths tell
            // nothing here, and pauses look like ends until enough of them were seen.
            setup.keeps_up = Some((Duration::from_millis(100), 150));
        },
    },
    Scenario {
        name: "everything_at_once",
        seeds: 200,
        alter: |setup, rng| {
            for leg in [&mut setup.send, &mut setup.response, &mut setup.tunnel] {
                leg.loss = rng.within(0..=30);
                disorder(leg, rng);
            }
            setup.capture.reorder = 100;
            setup.capture.held = rng.size(10..=20_000);
            setup.retransmit = rng.within(0..=100);
            setup.styles = vec![Style::Lockstep, Style::Window(3), Style::Batches(2)];
            setup.closes = vec![Close::Client, Close::Server, Close::Half, Close::Reset];
            setup.answers = rng.pick(&[Answers::Equal, Answers::Shorter, Answers::Longer]);
            setup.target_delay = 0..=rng.pick(&[1_000, 200_000]);
            setup.read_rate = rng.pick(&[None, Some(1_000)]);
            setup.receive_buffer = rng.pick(&[2_048, 16_384]);
            setup.strict_gate = false;
        },
    },
];

/// The families, in the order of the table.
pub(crate) fn names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name).collect()
}
