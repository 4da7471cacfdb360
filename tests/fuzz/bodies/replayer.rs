//! The replayer, with clients, a target and intercepts that do anything.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tcpcopy::replayer::{Claim, ClaimLoss, Config, Replayer, TargetHealth};
use tcpcopy::session::{self, MidStream};
use tcpcopy::wire::flow::split;
use tcpcopy::wire::{
    Flags, FlowId, FlowKey, Mapping, Outgoing, Packet, Seq, TcpHeader, TcpOptions, Time, Timestamps, parse,
};

use super::input::Input;

const MAX_SESSIONS: usize = 12;
const MTU: u16 = 600;
/// Clients, the production server, the targets and others: each may be forged as either end of a packet.
const ADDRESSES: [&str; 12] = [
    "10.1.0.9",
    "10.1.0.8",
    "10.1.0.1",
    "10.2.0.2",
    "10.2.0.3",
    "127.0.0.1",
    "255.255.255.255",
    "224.0.0.1",
    "0.0.0.0",
    "fd01::9",
    "fd01::1",
    "fd02::2",
];
const PORTS: [u16; 5] = [80, 81, 8080, 40_000, 0];
const TARGETS: [&str; 3] = ["10.2.0.2:8080", "10.2.0.3:81", "[fd02::2]:80"];
const FLAGS: [Flags; 4] = [Flags::SYN, Flags::ACK, Flags::PSH, Flags::FIN];

/// Crafted packets of clients never make a packet to any address but the configured targets, nor from addresses outside
/// the pools (without pools: of the clients that the packets name), nor on a flow that is not claimed. Tables and buffers
/// keep their bounds, and every captured packet and byte has one outcome.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut course = Course::new(&mut input);
    while !input.is_empty() {
        course.step(&mut input);
        course.turn();
        course.check();
    }
    course.replayer.shut_down(course.now);
    course.turn();
    course.check();
    assert_eq!((course.replayer.sessions(), course.claims.len()), (0, 0), "after the end");
}

struct Course {
    config: Arc<Config>,
    replayer: Replayer,
    now: Time,
    out: Outgoing,
    /// Clients whose packets were captured.
    seen: HashSet<IpAddr>,
    claims: BTreeMap<FlowId, FlowKey>,
    captured: u64,
    captured_bytes: u64,
}

impl Course {
    fn new(input: &mut Input<'_>) -> Self {
        let pools: &[&str] = input.of(&[&[][..], &["10.99.0.0/29"], &["10.99.0.4/32", "fd99::/126"]]);
        let session = session::Config {
            mid_stream: input.of(&[MidStream::Join, MidStream::Skip]),
            buffer_limit: input.of(&[100, 2_000, 1 << 20]),
            ..session::Config::default()
        };
        let workers = input.of(&[1, 1, 3]);
        let any = |online: Option<&str>, port, target: &str| Mapping {
            online: online.map(|online| online.parse().expect("address")),
            port,
            target: address(target),
        };
        let mappings = vec![
            any(None, 80, TARGETS[0]),
            any(Some("10.1.0.1"), 81, TARGETS[1]),
            any(Some("fd01::1"), 80, TARGETS[2]),
        ];
        let config = Config {
            session: Arc::new(session),
            targets: TargetHealth::of(&mappings, &[]),
            reconnects_per_second: input.of(&[1_000, 1_000_000]),
            mappings,
            pools: pools.iter().map(|pool| pool.parse().expect("prefix")).collect(),
            local: None,
            copies: input.of(&[1, 1, 3]),
            share: input.of(&[10_000, 10_000, 5_000]),
            clients: Vec::new(),
            forbidden: Vec::new(),
            workers,
            worker: workers - 1,
            mtu: MTU,
            path_mtus: Vec::new(),
            max_sessions: MAX_SESSIONS,
            // The tables of so few sessions take less than the smallest one.
            memory_limit: input.of(&[16_000, 40_000, 1 << 20]),
        };
        let config = Arc::new(config);
        Self {
            replayer: Replayer::new(Arc::clone(&config)),
            config,
            now: Time::from_micros(1),
            out: Outgoing::default(),
            seen: HashSet::new(),
            claims: BTreeMap::new(),
            captured: 0,
            captured_bytes: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..5 => self.crafted(input),
            5 => {
                let bytes = input.piece();
                if let Ok(packet) = parse(bytes, bytes.len()) {
                    self.client(&packet);
                }
            }
            6..10 => {
                if let Some(id) = self.flow(input) {
                    let header = header(input, 0);
                    self.replayer.handle_target(self.now, id, &header);
                }
            }
            10 => {
                if let Some(id) = self.flow(input) {
                    let losses = [ClaimLoss::Taken, ClaimLoss::Full, ClaimLoss::Foreign, ClaimLoss::Evicted];
                    let loss = losses.get(input.below(4)).copied().unwrap_or(ClaimLoss::Taken);
                    self.replayer.handle_claim_loss(self.now, id, loss);
                }
            }
            11 => self.replayer.set_reachable(self.now, !input.one_in(4)),
            12 => self.now += Duration::from_millis(u64::from(input.u8())),
            13 => self.now += Duration::from_secs(u64::from(input.u8())),
            _ => self.now = self.replayer.poll_timeout().map_or(self.now, |due| due.max(self.now)),
        }
    }

    fn crafted(&mut self, input: &mut Input<'_>) {
        let src = SocketAddr::new(input.of(&ADDRESSES).parse().expect("address"), input.of(&PORTS));
        let dst = SocketAddr::new(input.of(&ADDRESSES).parse().expect("address"), input.of(&PORTS));
        let payload = input.piece();
        let cut = u32::from(input.u8() == 1);
        let header = header(input, u32::try_from(payload.len()).expect("short") + cut);
        // As the parser has it: never more than the header says.
        let payload = payload.get(..header.payload_len as usize).unwrap_or(payload);
        self.client(&Packet { src, dst, header, payload });
    }

    fn client(&mut self, packet: &Packet<'_>) {
        self.seen.insert(packet.src.ip());
        self.captured += 1;
        self.captured_bytes += u64::from(packet.header.payload_len) * u64::from(self.config.copies);
        self.replayer.handle_client(self.now, packet);
    }

    /// The name of a claimed flow, or of none.
    fn flow(&self, input: &mut Input<'_>) -> Option<FlowId> {
        let at = usize::from(input.u8());
        if at == 255 { Some(FlowId(input.u64())) } else { self.claims.keys().nth(at % 16).copied() }
    }

    fn turn(&mut self) {
        for _ in 0..1_000 {
            self.take_claims();
            self.transmit();
            while self.take_claims() {
                self.transmit();
            }
            if self.replayer.poll_timeout().is_none_or(|due| due > self.now) {
                return;
            }
            self.replayer.handle_timeout(self.now);
        }
        panic!("a deadline that stays");
    }

    fn transmit(&mut self) {
        for _ in 0..10_000 {
            let Some(sent) = self.replayer.poll_transmit(self.now, &mut self.out) else { return };
            self.take_claims();
            assert!(TARGETS.iter().any(|target| address(target) == sent.dst), "a packet to {}", sent.dst);
            let local = sent.src.ip();
            let ours = if self.config.pools.is_empty() {
                self.seen.contains(&local)
            } else {
                self.config.pools.iter().any(|pool| pool.contains(local))
            };
            assert!(ours && sent.src != sent.dst, "a packet from {}", sent.src);
            assert_eq!(split(sent.src, self.config.workers), self.config.worker);
            let flow = FlowKey { client: sent.src, server: sent.dst };
            assert!(self.claims.values().any(|claimed| *claimed == flow), "{flow:?} is not claimed");
            let packet = self.out.finish(sent.src, sent.dst, &sent.header).expect("fits a packet");
            assert!(packet.len() <= usize::from(MTU), "a packet of {} bytes", packet.len());
        }
        panic!("it sends without end");
    }

    /// Returns whether there were claims.
    fn take_claims(&mut self) -> bool {
        let mut claimed = false;
        while let Some(claim) = self.replayer.poll_claim() {
            match claim {
                Claim::Claim(id, key) => {
                    // A claim that was lost is made again.
                    let twice = |(other, known): (&FlowId, &FlowKey)| *known == key && *other != id;
                    assert!(!self.claims.iter().any(twice), "{key:?} is claimed twice");
                    assert!(self.claims.insert(id, key).is_none_or(|known| known == key));
                    self.replayer.handle_claim_told(self.now, id, 0);
                    claimed = true;
                }
                Claim::Release(id, key) => assert_eq!(self.claims.remove(&id), Some(key)),
            }
        }
        claimed
    }

    fn check(&self) {
        let counters = self.replayer.counters();
        assert_eq!(counters.taken.total() + counters.unused.total(), self.captured);
        let held = self.replayer.buffered() as u64;
        assert_eq!(counters.settled_bytes() + held, self.captured_bytes);
        assert_eq!(counters.captured_bytes, self.captured_bytes);
        let sessions = self.replayer.sessions();
        assert_eq!(counters.started, counters.ended.total() + sessions as u64);
        assert!(sessions <= MAX_SESSIONS && self.claims.len() <= sessions);
        assert!(
            self.replayer.memory() <= self.config.memory_limit,
            "{} of {}, {} sessions",
            self.replayer.memory(),
            self.config.memory_limit,
            sessions
        );
        let live: BTreeMap<_, _> = self.replayer.claims().collect();
        assert_eq!(live, self.claims);
    }
}

/// A header whose numbers are near each other, now and then.
fn header(input: &mut Input<'_>, payload_len: u32) -> TcpHeader {
    let number = |input: &mut Input<'_>| match input.u8() {
        255 => input.u32(),
        near => u32::from(near).wrapping_mul(50).wrapping_sub(1_000),
    };
    let (seq, ack, bits, options) = (number(input), number(input), input.u8(), input.u8());
    let mostly = FLAGS[usize::from(bits) % FLAGS.len()] | Flags::ACK;
    TcpHeader {
        seq: Seq(seq),
        ack: Seq(ack),
        flags: if bits < 64 {
            Flags::from_bits(input.u8())
        } else if bits < 96 {
            Flags::SYN
        } else {
            mostly
        },
        window: input.u16(),
        options: TcpOptions {
            mss: (options & 1 > 0).then(|| input.u16()),
            window_scale: (options & 2 > 0).then(|| input.u8() % 15),
            sack_permitted: options & 4 > 0,
            timestamps: (options & 8 > 0).then(|| Timestamps { value: input.u32(), echo: input.u32() }),
        },
        payload_len: if options & 16 > 0 { u32::from(input.u16()) } else { payload_len },
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}
