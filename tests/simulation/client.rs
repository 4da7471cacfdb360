//! Clients and their online servers: what passes between them is written down beforehand, as the
//! packets that a capture on the online host would see of the client.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use tcpcopy::wire::{Flags, Outgoing, Seq, TcpHeader, TcpOptions, Time, Timestamps};

use crate::rng::Rng;
use crate::scenario::{Answers, Close, Setup, Style};

/// First bytes of every request.
const MAGIC: [u8; 4] = *b"\xabREQ";
/// Magic, dialogue, index, length.
pub(crate) const FRAMING: usize = 16;

/// One request and what the servers answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// Where it begins in the client's stream.
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Downstream bytes the client had acknowledged when it sent it.
    pub(crate) gate: u64,
    /// Lengths of the responses.
    online: u64,
    pub(crate) target: u64,
    /// How long the target takes.
    pub(crate) delay: Duration,
    /// Index of the first request sent with the same acknowledgment.
    pub(crate) burst: usize,
}

impl Request {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len as u64
    }
}

/// A captured packet.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) at: Time,
    pub(crate) bytes: Vec<u8>,
    /// Its part of the client's stream.
    pub(crate) range: Range<u64>,
    pub(crate) is_syn: bool,
}

/// One client connection from its first packet to its last.
#[derive(Clone, Debug)]
pub(crate) struct Dialogue {
    pub(crate) id: usize,
    pub(crate) requests: Vec<Request>,
    pub(crate) close: Close,
    pub(crate) packets: Vec<Captured>,
}

/// The bytes of a request.
pub(crate) fn request_bytes(id: usize, index: usize, len: usize) -> Vec<u8> {
    let number = |n: usize| u32::try_from(n).expect("small").to_be_bytes();
    let mut bytes = [MAGIC, number(id), number(index), number(len)].concat();
    let salt = id * 31 + index * 7;
    bytes.extend((FRAMING..len).map(|at| (salt + at * 3 + (at >> 8)).to_le_bytes()[0]));
    bytes
}

/// The dialogue, index and length that a request's first bytes name.
pub(crate) fn parse_framing(bytes: &[u8]) -> Option<(usize, usize, usize)> {
    let number = |at: usize| {
        let word = bytes.get(at..at + 4)?;
        usize::try_from(u32::from_be_bytes(word.try_into().ok()?)).ok()
    };
    if bytes.get(..4)? != MAGIC {
        return None;
    }
    Some((number(4)?, number(8)?, number(12)?))
}

/// The dialogues of all clients of a run; `servers` are the online addresses, IPv4 and IPv6.
pub(crate) fn dialogues(setup: &Setup, servers: [SocketAddr; 2], rng: &mut Rng) -> Vec<Dialogue> {
    let mut all = Vec::new();
    for client in 0..rng.within(&setup.clients) {
        let v6 = rng.chance(300);
        let host = u16::try_from(client % 250 + 1).expect("small");
        let port = u16::try_from(rng.within(1024..=65_535)).expect("a port");
        let address = if v6 {
            SocketAddr::from(([0xfd09, 0, 0, 0, 0, 0, 0, host], port))
        } else {
            SocketAddr::from(([10, 9, 0, host.to_le_bytes()[0]], port))
        };
        let mut now = rng.within(1_000..=500_000);
        for _ in 0..setup.reuse {
            let id = all.len();
            let mut script = Script::new(setup, id, address, servers[usize::from(v6)], now, rng);
            let dialogue = script.play(rng);
            now = script.now + rng.size(20..=3_000_000);
            all.push(dialogue);
        }
    }
    all
}

/// A dialogue while it is written.
struct Script<'a> {
    setup: &'a Setup,
    id: usize,
    client: SocketAddr,
    server: SocketAddr,
    isn: Seq,
    server_isn: Seq,
    options: TcpOptions,
    window: u16,
    segment: usize,
    rtt: u64,
    now: u64,
    /// Bytes sent, and bytes of the server acknowledged.
    sent: u64,
    acked: u64,
    stream: Vec<u8>,
    /// Ranges to be sent once more.
    again: Vec<Range<u64>>,
    packets: Vec<Captured>,
}

impl<'a> Script<'a> {
    fn new(
        setup: &'a Setup,
        id: usize,
        client: SocketAddr,
        server: SocketAddr,
        now: u64,
        rng: &mut Rng,
    ) -> Self {
        let mss = rng.pick(&[536u16, 1200, 1440, 1460, 1460, 8960]);
        let window_scale = rng.pick(&[None, Some(0), Some(2), Some(7), Some(7)]);
        let timestamps = rng.chance(500);
        let chunk = usize::from(mss) - if timestamps { 12 } else { 0 };
        Self {
            setup,
            id,
            client,
            server,
            isn: isn(rng),
            server_isn: isn(rng),
            options: TcpOptions {
                mss: Some(mss),
                window_scale,
                sack_permitted: rng.chance(500),
                timestamps: timestamps.then_some(Timestamps { value: 1, echo: 0 }),
            },
            window: if window_scale >= Some(7) { 502 } else { 29_200 },
            segment: if rng.chance(400) { chunk * (40_000 / chunk) } else { chunk },
            rtt: rng.size(&setup.client_rtt),
            now,
            sent: 0,
            acked: 0,
            stream: Vec::new(),
            again: Vec::new(),
            packets: Vec::new(),
        }
    }

    fn play(&mut self, rng: &mut Rng) -> Dialogue {
        let close = rng.pick(&self.setup.closes);
        let style = rng.pick(&self.setup.styles);
        let mut requests: Vec<Request> =
            (0..rng.within(&self.setup.requests)).map(|_| self.request(rng)).collect();
        self.handshake(rng);
        self.exchange(&mut requests, style, close, rng);
        self.close(close, rng);
        let mut packets = std::mem::take(&mut self.packets);
        packets.sort_by_key(|packet| packet.at);
        let missed = usize::try_from(rng.within(&self.setup.missed)).expect("small").min(packets.len());
        packets.drain(..missed);
        Dialogue { id: self.id, requests, close, packets }
    }

    /// A request, its place in the stream still open.
    fn request(&self, rng: &mut Rng) -> Request {
        let online = rng.size(&self.setup.response_size);
        let target = match self.setup.answers {
            Answers::Equal => online,
            Answers::Shorter => rng.within(1..=online.max(1)),
            Answers::Longer => online + rng.size(0..=3_000),
        };
        let len = usize::try_from(rng.size(&self.setup.request_size)).expect("small");
        let delay = rng.time(&self.setup.target_delay);
        Request { offset: 0, len, gate: 0, online, target, delay, burst: 0 }
    }

    fn handshake(&mut self, rng: &mut Rng) {
        self.packet(Flags::SYN, self.isn, &[], 0..0);
        if rng.chance(self.setup.retransmit) {
            self.now += 1_000_000;
            self.packet(Flags::SYN, self.isn, &[], 0..0);
        }
        self.options = TcpOptions { timestamps: self.options.timestamps, ..TcpOptions::default() };
        self.now += self.rtt;
        if rng.chance(self.setup.handshake_ack) {
            self.bare(Flags::ACK);
        }
        if self.setup.greeting > 0 {
            self.now += self.rtt;
            self.acked = self.setup.greeting;
        }
    }

    fn exchange(&mut self, requests: &mut [Request], style: Style, close: Close, rng: &mut Rng) {
        let last = requests.len() - 1;
        let (ahead, batch) = match style {
            Style::Lockstep => (1, 1),
            Style::Batches(n) => (n, n),
            Style::Window(n) => (n, 1),
        };
        let mut answered = 0;
        let mut burst = 0;
        for index in 0..requests.len() {
            while index % batch == 0 && index >= answered + ahead {
                for _ in 0..batch {
                    self.answer(requests[answered].online, rng);
                    answered += 1;
                }
            }
            if index % batch == 0 {
                self.now += rng.size(&self.setup.think);
            }
            if self.acked > requests[burst].gate {
                burst = index;
            }
            let ends = index == last && close == Close::Half && rng.chance(500);
            let request = &mut requests[index];
            (request.offset, request.gate, request.burst) = (self.sent, self.acked, burst);
            let bytes = request_bytes(self.id, index, request.len);
            self.send(&bytes, ends, rng);
        }
        if close == Close::Half || close == Close::Abort {
            let flags = if close == Close::Half { Flags::FIN } else { Flags::RST };
            self.bare(flags | Flags::ACK);
        }
        if close != Close::Abort {
            requests[answered..].iter().for_each(|request| self.answer(request.online, rng));
        }
    }

    /// A request leaves, in segments or super-segments.
    fn send(&mut self, bytes: &[u8], fin: bool, rng: &mut Rng) {
        self.repeat(rng);
        self.stream.extend_from_slice(bytes);
        let end = self.sent + bytes.len() as u64;
        for part in bytes.chunks(self.segment) {
            let range = self.sent..self.sent + part.len() as u64;
            let close = if fin && range.end == end { Flags::FIN } else { Flags::NONE };
            let push = if range.end == end { Flags::PSH } else { Flags::NONE };
            let seq = self.seq_at(range.start);
            self.packet(Flags::ACK | push | close, seq, part, range.clone());
            self.sent = range.end;
            self.now += rng.within(1..=50);
            if rng.chance(self.setup.retransmit) {
                self.again.push(range);
            }
        }
    }

    /// The client sends something a second time, with its present acknowledgment; or probes whether
    /// the server is still there (RFC 9293, 3.8.4).
    fn repeat(&mut self, rng: &mut Rng) {
        for range in std::mem::take(&mut self.again) {
            let part =
                usize::try_from(range.start).expect("small")..usize::try_from(range.end).expect("small");
            let bytes = self.stream[part].to_vec();
            self.now += rng.within(1..=200);
            self.packet(Flags::ACK, self.seq_at(range.start), &bytes, range);
        }
        if self.sent > 0 && rng.chance(self.setup.retransmit) {
            let byte = self.stream.last().copied().unwrap_or(0);
            let payload: &[u8] = if rng.chance(500) { &[byte] } else { &[] };
            self.packet(Flags::ACK, self.seq_at(self.sent - 1), payload, self.sent..self.sent);
            self.now += 30;
        }
    }

    /// The online server's response has come.
    fn answer(&mut self, len: u64, rng: &mut Rng) {
        self.now += self.rtt + rng.within(10..=5_000);
        self.acked += len;
        if rng.chance(self.setup.pure_acks) {
            self.bare(Flags::ACK);
        }
    }

    fn close(&mut self, close: Close, rng: &mut Rng) {
        self.now += rng.size(&self.setup.think);
        match close {
            Close::Client => {
                self.bare(Flags::FIN | Flags::ACK);
                self.acked += 1;
                self.now += self.rtt;
                self.sent += 1;
                self.bare(Flags::ACK);
            }
            Close::Server => {
                self.acked += 1;
                self.bare(Flags::FIN | Flags::ACK);
            }
            Close::Reset => self.bare(if rng.chance(500) { Flags::RST } else { Flags::RST | Flags::ACK }),
            Close::Half | Close::Abort | Close::Vanish => {}
        }
    }

    /// A segment without data.
    fn bare(&mut self, flags: Flags) {
        self.packet(flags, self.seq_at(self.sent), &[], self.sent..self.sent);
        self.now += 10;
    }

    fn seq_at(&self, offset: u64) -> Seq {
        self.isn.add(1).add(u32::try_from(offset).expect("short"))
    }

    fn packet(&mut self, flags: Flags, seq: Seq, payload: &[u8], range: Range<u64>) {
        let acked = u32::try_from(self.acked).expect("short");
        let header = TcpHeader {
            seq,
            ack: if flags.ack() { self.server_isn.add(1).add(acked) } else { Seq(0) },
            flags,
            window: self.window,
            options: self.options,
            payload_len: u32::try_from(payload.len()).expect("short"),
        };
        let mut out = Outgoing::default();
        out.payload().extend_from_slice(payload);
        let bytes = out.finish(self.client, self.server, &header).expect("fits").to_vec();
        let at = Time::from_micros(self.now);
        self.packets.push(Captured { at, bytes, range, is_syn: flags.syn() });
    }
}

/// An initial sequence number, near the wrap-around as often as not.
fn isn(rng: &mut Rng) -> Seq {
    let number = rng.next().to_le_bytes();
    let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
    if rng.chance(500) { Seq(0).sub(number % 8_000) } else { Seq(number) }
}
