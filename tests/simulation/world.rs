//! The loop: one virtual clock, every leg, the replayer in the middle, and what must hold after
//! each step.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tcpcopy::replayer::{Claim, ClaimLoss, Config, Replayer};
use tcpcopy::tunnel::{ClientEvent, ServerEvent};
use tcpcopy::wire::{self, FlowId, FlowKey, Mapping, Outgoing, Packet, Time, is_damaged, parse};

use crate::check;
use crate::client;
use crate::dialogue::Dialogue;
use crate::intercept::Intercept;
use crate::link::Leg;
use crate::rng::Rng;
use crate::scenario::{Setup, Trouble};
use crate::server::Ledger;
use crate::target::{self, Target};
use crate::tunnel::Tunnel;
use crate::watch::Watch;

/// No run takes longer, in virtual time: every session has ended by then.
const LONGEST: Duration = Duration::from_secs(3_000);
/// How long it takes to connect to the intercept again.
const RECONNECT: Duration = Duration::from_millis(200);
/// Bytes of a response that the intercept sees.
const COPIED: usize = 160;
/// Steps at one instant that no honest load needs.
const MAX_STEPS: u32 = 20_000;

/// Something on its way.
#[derive(Clone, Debug)]
enum Event {
    Captured { dialogue: usize, packet: usize },
    Damaged(Vec<u8>),
    ToTarget { bytes: Vec<u8>, sound: bool },
    ToIntercept { bytes: Vec<u8>, sound: bool },
    ToClaimer(Frame),
    ToClaims(Frame),
    Tunnel { up: bool },
    Target { up: bool },
}

/// A frame in the tunnel, with the number of that tunnel.
type Frame = (u64, Vec<u8>);

/// One run.
pub(crate) struct World {
    pub(crate) setup: Setup,
    rng: Rng,
    pub(crate) now: Time,
    pub(crate) replayer: Replayer,
    pub(crate) target: Box<dyn Target>,
    pub(crate) ledger: Ledger,
    pub(crate) watch: Watch,
    target_up: bool,
    intercept: Intercept,
    tunnel: Tunnel,
    /// Its number.
    tunnels: u64,
    /// What the replayer has told to be in force, and whether that is news.
    told: BTreeMap<FlowId, FlowKey>,
    told_news: bool,
    turns: u64,
    events: BTreeMap<(Time, u64), Event>,
    serial: u64,
    /// When the target has something to do.
    target_due: Option<Time>,
    out: Outgoing,
    /// Captured packets handed in, and their payload bytes times copies.
    pub(crate) captured: u64,
    pub(crate) captured_bytes: u64,
    /// Which packets of each dialogue were captured.
    pub(crate) seen: Vec<Vec<bool>>,
    pub(crate) last_capture: Time,
    steps: u32,
    /// Claims leave in order.
    last_claim: Time,
    /// Print every packet (`SIM_TRACE`).
    trace: bool,
}

impl World {
    /// Everything in its place, nothing begun.
    pub(crate) fn new(setup: Setup, mut rng: Rng) -> Self {
        let online = [address("10.1.0.1:80"), address("[fd01::1]:80")];
        let targets =
            ["10.2.0.2", "fd02::2"].map(|ip| SocketAddr::new(ip.parse().expect("address"), target::PORT));
        let dialogues = client::dialogues(&setup, online, &mut rng);
        let mappings = targets.map(|target| Mapping { online: None, port: 80, target }).to_vec();
        let config = Config {
            session: Arc::new(setup.session.clone()),
            pools: setup.pools.iter().map(|pool| pool.parse().expect("prefix")).collect(),
            copies: setup.copies,
            max_sessions: 10_000,
            memory_limit: setup.memory_limit,
            ..Config::new(mappings)
        };
        let seen = dialogues.iter().map(|dialogue| vec![false; dialogue.packets.len()]).collect();
        let mut world = Self {
            target: target::host(&setup, targets, &mut rng),
            ledger: Ledger::new(dialogues),
            watch: Watch::default(),
            setup,
            rng,
            now: Time::from_micros(1),
            replayer: Replayer::new(Arc::new(config)),
            target_up: true,
            intercept: Intercept::new(),
            tunnel: Tunnel::new(Time::from_micros(1)),
            tunnels: 0,
            told: BTreeMap::new(),
            told_news: false,
            turns: 0,
            events: BTreeMap::new(),
            serial: 0,
            target_due: None,
            out: Outgoing::default(),
            captured: 0,
            captured_bytes: 0,
            seen,
            last_capture: Time::ZERO,
            steps: 0,
            last_claim: Time::ZERO,
            trace: std::env::var_os("SIM_TRACE").is_some(),
        };
        world.replayer.set_reachable(world.now, true);
        world.schedule();
        world
    }

    pub(crate) fn dialogues(&self) -> &[Dialogue] {
        &self.ledger.dialogues
    }

    /// All that is known beforehand.
    fn schedule(&mut self) {
        let legs = self.setup.capture.clone();
        let mut all = Vec::new();
        for dialogue in self.dialogues() {
            let packets = dialogue.packets.iter().enumerate();
            all.extend(packets.map(|(packet, captured)| (captured.at, dialogue.id, packet)));
        }
        for (at, dialogue, packet) in all {
            // A round trip lies between a SYN and what follows it: they keep their order.
            let first = self.dialogues()[dialogue].packets[packet].is_syn && packet == 0;
            let leg = if first { &Leg { loss: legs.loss, ..Leg::perfect(0) } } else { &legs };
            for passage in leg.pass(at, &mut self.rng) {
                let mut at = passage.at;
                let captured = &self.dialogues()[dialogue].packets[packet];
                if !passage.is_sound() && !captured.merged && !captured.is_syn {
                    // The online server does not take it, and the client sends it again.
                    let damaged = passage.apply(captured.bytes.clone());
                    self.at(at, Event::Damaged(damaged));
                    at += Duration::from_micros(self.rng.within(200_000..=300_000));
                }
                self.seen[dialogue][packet] = true;
                self.last_capture = self.last_capture.max(at);
                self.at(at, Event::Captured { dialogue, packet });
            }
        }
        for (from, to) in self.setup.outages.clone() {
            self.at(Time::from_micros(from), Event::Tunnel { up: false });
            self.at(Time::from_micros(to), Event::Tunnel { up: true });
        }
        if let Trouble::Down(from, to) = self.setup.trouble {
            self.at(Time::from_micros(from), Event::Target { up: false });
            self.at(Time::from_micros(to), Event::Target { up: true });
        }
    }

    fn trace(&self, what: &str, packet: &dyn std::fmt::Debug) {
        if self.trace {
            eprintln!("{:>10} {what} {packet:?}", self.now.micros());
        }
    }

    fn trace_bytes(&self, what: &str, bytes: &[u8]) {
        if self.trace
            && let Ok(packet) = parse(bytes, bytes.len())
        {
            self.trace(what, &(packet.src, packet.dst, packet.header));
        }
    }

    fn at(&mut self, at: Time, event: Event) {
        self.serial += 1;
        self.events.insert((at, self.serial), event);
    }

    /// Runs to the end and checks it.
    pub(crate) fn run(mut self) -> Result<Self, String> {
        while let Some(next) = self.next_instant() {
            self.steps = if next > self.now { 0 } else { self.steps + 1 };
            if self.steps > MAX_STEPS {
                return Err(format!(
                    "at {} us: {} steps and no end; replayer {:?} target {:?}",
                    self.now.micros(),
                    self.steps,
                    self.replayer.poll_timeout(),
                    self.target_due
                ));
            }
            self.now = self.now.max(next);
            if self.now > Time::ZERO + LONGEST {
                return Err(format!("{} sessions have no end", self.replayer.sessions()));
            }
            self.step()?;
        }
        // What no application has made a request of.
        self.target.restart(&mut self.ledger);
        check::end(&self)?;
        Ok(self)
    }

    /// The next time something happens; `None` when nothing of interest can.
    fn next_instant(&mut self) -> Option<Time> {
        if self.events.is_empty() && self.replayer.sessions() == 0 && self.target.has_read_all() {
            return None;
        }
        let event = self.events.first_key_value().map(|((at, _), _)| *at);
        [event, self.replayer.poll_timeout(), self.target_due].into_iter().flatten().min()
    }

    fn step(&mut self) -> Result<(), String> {
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= self.now
        {
            let event = entry.remove();
            self.handle(event);
            if self.rng.chance(700) {
                // The daemon's turns take one packet or many.
                self.turn()?;
            }
        }
        self.turn()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Captured { dialogue, packet } => {
                let bytes = &self.ledger.dialogues[dialogue].packets[packet].bytes;
                let packet = parse(bytes, bytes.len()).expect("a client's packet");
                self.trace("captured", &(packet.src, packet.header));
                self.captured += 1;
                self.captured_bytes += u64::from(packet.header.payload_len) * u64::from(self.setup.copies);
                self.replayer.handle_client(self.now, &packet);
            }
            Event::Damaged(bytes) => self.captured_damaged(&bytes),
            Event::ToTarget { bytes, sound } => {
                if self.target_up {
                    self.trace_bytes(if sound { "  > target" } else { "  > target, damaged" }, &bytes);
                    self.target.deliver(self.now, bytes, sound, &self.setup, &mut self.ledger);
                    self.target_acted();
                }
            }
            Event::ToIntercept { bytes, sound } => self.intercept(bytes, sound),
            Event::ToClaimer(frame) => self.headers_arrive(&frame),
            Event::ToClaims(frame) => self.claims_arrive(&frame),
            Event::Tunnel { up } => self.tunnel(up),
            Event::Target { up } => {
                (self.target_up, self.target_due) = (up, None);
                if up {
                    self.target.restart(&mut self.ledger);
                }
            }
        }
    }

    /// A packet that was damaged on the client's way is captured; its checksum tells.
    fn captured_damaged(&mut self, bytes: &[u8]) {
        if let Ok(packet) = parse(bytes, bytes.len())
            && !is_damaged(bytes, bytes.len())
        {
            self.captured += 1;
            self.captured_bytes += u64::from(packet.header.payload_len) * u64::from(self.setup.copies);
            self.replayer.handle_client(self.now, &packet);
        }
    }

    /// The target's packet reaches the intercept, which has its header sent to the claimer.
    fn intercept(&mut self, mut bytes: Vec<u8>, sound: bool) {
        let whole = bytes.len();
        bytes.truncate(COPIED);
        // Of a packet that is not copied as a whole only the host's network card can tell whether it is damaged.
        if is_damaged(&bytes, whole) || (!sound && whole > COPIED) {
            return;
        }
        let Ok(Packet { src, dst, header, .. }) = parse(&bytes, whole) else { return };
        let Some(id) = self.intercept.owner(dst, src).filter(|_| self.intercept.up) else { return };
        for passage in self.setup.tunnel.pass(self.now, &mut self.rng) {
            if passage.is_sound() {
                let frame = (self.tunnels, self.tunnel.header(id, &header));
                self.at(passage.at, Event::ToClaimer(frame));
            } else {
                // A frame that cannot be read ends the connection, and with it all that is under way.
                self.at(passage.at, Event::Tunnel { up: false });
                self.at(passage.at + RECONNECT, Event::Tunnel { up: true });
            }
        }
    }

    /// What is in the tunnel when it ends is lost.
    fn is_open(&self, tunnel: u64) -> bool {
        self.intercept.up && tunnel == self.tunnels
    }

    /// A frame reaches the intercept.
    fn claims_arrive(&mut self, (tunnel, frame): &Frame) {
        if !self.is_open(*tunnel) {
            return;
        }
        match self.tunnel.at_server(self.now, frame) {
            Some(ServerEvent::Claim { flow, .. }) if self.rng.chance(self.setup.refuse) => {
                let delay = Duration::from_micros(*self.setup.tunnel.delay.end());
                let frame = (self.tunnels, self.tunnel.refusal(flow));
                self.at(self.now + delay, Event::ToClaimer(frame));
            }
            Some(ServerEvent::Claim { flow, key }) => self.intercept.claim(flow, key),
            Some(ServerEvent::Release(flow)) => self.intercept.release(flow),
            other => self.ledger.fault(self.now, &format!("the intercept was told {other:?}")),
        }
    }

    /// A frame reaches tcpcopy.
    fn headers_arrive(&mut self, (tunnel, frame): &Frame) {
        if !self.is_open(*tunnel) {
            return;
        }
        match self.tunnel.at_client(self.now, frame) {
            Some(ClientEvent::Response(response)) => {
                let (id, header) = (response.flow, response.header);
                let client = self.told.get(&id).map(|key| key.client);
                self.trace("< header", &(client, header));
                self.watch.hears(self.now, id, client, &header, &mut self.ledger);
                self.replayer.handle_target(self.now, id, &header);
            }
            Some(ClientEvent::Refused { flow, .. }) => {
                self.replayer.handle_claim_loss(self.now, flow, ClaimLoss::Taken);
            }
            other => self.ledger.fault(self.now, &format!("tcpcopy was told {other:?}")),
        }
    }

    fn tunnel(&mut self, up: bool) {
        self.intercept.up = up;
        self.replayer.set_reachable(self.now, up);
        if up {
            if self.setup.forget {
                self.intercept.forget();
            }
            self.tunnels += 1;
            self.tunnel = Tunnel::new(self.now);
            for (id, key) in self.replayer.claims() {
                let frame = self.tunnel.claim(Claim::Claim(id, key));
                match self.tunnel.at_server(self.now, &frame) {
                    Some(ServerEvent::Claim { flow, key }) => self.intercept.claim(flow, key),
                    other => self.ledger.fault(self.now, &format!("the intercept was told {other:?}")),
                }
            }
        }
    }

    /// The replayer and the target act, and what must hold is checked.
    fn turn(&mut self) -> Result<(), String> {
        if self.replayer.poll_timeout().is_some_and(|due| due <= self.now) {
            self.replayer.handle_timeout(self.now);
        }
        self.take_claims()?;
        self.transmit()?;
        while self.take_claims()? {
            self.transmit()?;
        }
        if self.target_due.is_some_and(|at| at <= self.now) {
            self.target.run(self.now, &self.setup, &mut self.ledger);
            self.target_acted();
        }
        check::step(self)?;
        self.turns += 1;
        // All of them are many.
        if std::mem::take(&mut self.told_news) || self.turns.is_multiple_of(32) {
            check::claims(&self.replayer, &self.told)?;
        }
        Ok(())
    }

    /// What can be sent leaves.
    fn transmit(&mut self) -> Result<(), String> {
        while let Some(transmit) = self.replayer.poll_transmit(self.now, &mut self.out) {
            if transmit.header.payload_len > transmit.segment.max(self.setup.session.max_train) {
                return Err(format!("a train of {} bytes", transmit.header.payload_len));
            }
            let train = self.out.body().to_vec();
            for (header, payload) in wire::cut(&transmit.header, &train, transmit.segment) {
                self.out.payload().extend_from_slice(payload);
                let packet = self.out.finish(transmit.src, transmit.dst, &header);
                let bytes = packet.ok_or("a segment that fits no packet")?.to_vec();
                self.leaves(&bytes)?;
            }
        }
        Ok(())
    }

    /// A segment is on its way to the target.
    fn leaves(&mut self, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() > 1500 {
            return Err(format!("a packet of {} bytes", bytes.len()));
        }
        self.trace_bytes("> sent", bytes);
        self.take_claims()?;
        self.watch.leaves(self.now, bytes, &self.setup, &self.ledger)?;
        for passage in self.setup.send.pass(self.now, &mut self.rng) {
            let sound = passage.is_sound();
            self.at(passage.at, Event::ToTarget { bytes: passage.apply(bytes.to_vec()), sound });
        }
        Ok(())
    }

    /// Returns whether there were claims, whose sessions connect now.
    fn take_claims(&mut self) -> Result<bool, String> {
        let mut claimed = false;
        while let Some(claim) = self.replayer.poll_claim() {
            self.told_news = true;
            let known = match claim {
                Claim::Claim(id, key) => {
                    self.watch.claim(id, key);
                    self.told.insert(id, key).is_none()
                }
                Claim::Release(id, key) => {
                    self.watch.release(id, key);
                    self.told.remove(&id) == Some(key)
                }
            };
            if !known {
                return Err(format!("{claim:?} does not fit what was told before"));
            }
            let delay = self.rng.within(&self.setup.tunnel.delay);
            self.last_claim = self.last_claim.max(self.now + Duration::from_micros(delay));
            let frame = (self.tunnels, self.tunnel.claim(claim));
            self.at(self.last_claim, Event::ToClaims(frame));
            if let Claim::Claim(id, _) = claim {
                self.replayer.handle_claim_told(self.now, id, 0);
                claimed = true;
            }
        }
        Ok(claimed)
    }

    /// What the target has sent goes its way.
    fn target_acted(&mut self) {
        self.target_due = self.target.wakes_at(self.now);
        for bytes in self.target.take_sent() {
            self.trace_bytes("  < target", &bytes);
            for passage in self.setup.response.pass(self.now, &mut self.rng) {
                let sound = passage.is_sound();
                self.at(passage.at, Event::ToIntercept { bytes: passage.apply(bytes.clone()), sound });
            }
        }
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}
