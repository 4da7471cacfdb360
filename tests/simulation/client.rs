//! Clients and their online servers: what passes between them is written down beforehand.

use std::net::SocketAddr;
use std::ops::Range;

use tcpcopy::wire::Time;

use crate::dialogue::{Captured, Dialogue, Request, request_bytes};
use crate::packet::{ACK, CWR, ECE, FIN, PSH, RST, SYN, Segment, URG};
use crate::rng::Rng;
use crate::scenario::{Answers, Close, Setup, Style};

/// Longest piece of data that goes with a SYN.
const FAST_OPEN: usize = 1_400;

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
        // Where the last connection from this port began, and its FIN's number.
        let mut last: Option<(u32, u32)> = None;
        for _ in 0..setup.reuse {
            let id = all.len();
            let mut script = Script::new(setup, id, address, servers[usize::from(v6)], now, rng);
            if let Some((isn, fin)) = last
                && script.isn.wrapping_sub(isn) <= fin.wrapping_sub(isn)
            {
                // The next one soon after takes none of its numbers again (RFC 9293, 3.4.1).
                script.isn = fin.wrapping_add(1);
            }
            let dialogue = script.play(rng);
            last = Some((script.isn, script.seq_at(dialogue.stream.len() as u64)));
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
    isn: u32,
    server_isn: u32,
    mss: u16,
    scale: Option<u8>,
    sack_permitted: bool,
    timestamps: bool,
    window: u16,
    /// How many bytes went with the SYN.
    early: usize,
    segment: usize,
    rtt: u64,
    now: u64,
    /// Bytes sent, bytes of the server acknowledged, whole responses among them, and what it has yet to say unasked.
    sent: u64,
    acked: u64,
    answered: u64,
    owed: u64,
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
        let scale = rng.pick(&[None, Some(0), Some(2), Some(7), Some(7)]);
        let timestamps = rng.chance(500);
        let chunk = usize::from(mss) - if timestamps { 12 } else { 0 };
        Self {
            setup,
            id,
            client,
            server,
            isn: isn(rng),
            server_isn: isn(rng),
            mss,
            scale,
            sack_permitted: rng.chance(500),
            timestamps,
            window: if scale >= Some(7) { 502 } else { 29_200 },
            early: 0,
            segment: if rng.chance(400) { chunk * (40_000 / chunk) } else { chunk },
            rtt: rng.size(&setup.client_rtt),
            now,
            sent: 0,
            acked: 0,
            answered: 0,
            owed: 0,
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
        self.handshake(requests[0].len, rng);
        self.exchange(&mut requests, style, close, rng);
        self.close(close, rng);
        let mut packets = std::mem::take(&mut self.packets);
        packets.sort_by_key(|packet| packet.at);
        let missed = usize::try_from(rng.within(&self.setup.missed)).expect("small").min(packets.len());
        packets.drain(..missed);
        Dialogue { id: self.id, requests, stream: std::mem::take(&mut self.stream), close, packets }
    }

    /// A request, its place in the stream still open.
    fn request(&self, rng: &mut Rng) -> Request {
        let online = rng.size(&self.setup.response_size);
        let target = match self.setup.answers {
            Answers::Equal => online,
            Answers::Shorter => rng.within(1..=online.max(1)),
            Answers::OneLess => online.saturating_sub(1).max(1),
            Answers::Other => rng.size(&self.setup.response_size),
            Answers::Longer => online + rng.size(0..=3_000),
        };
        let len = usize::try_from(rng.size(&self.setup.request_size)).expect("small");
        let delay = rng.time(&self.setup.target_delay);
        let unasked = rng.size(&self.setup.unasked);
        let unasked_after = rng.time(&(0..=200_000));
        let pause = rng.chance(self.setup.pauses).then(|| rng.time(&self.setup.pause));
        Request { offset: 0, len, gate: 0, online, target, unasked, unasked_after, delay, pause, burst: 0 }
    }

    /// `first`: the length of the first request.
    fn handshake(&mut self, first: usize, rng: &mut Rng) {
        let mut early = Vec::new();
        if rng.chance(self.setup.fast_open) {
            early = request_bytes(self.id, 0, first);
            early.truncate(FAST_OPEN);
        }
        let end = early.len() as u64;
        self.packet(SYN, self.isn, &early, 0..end, rng);
        if rng.chance(self.setup.retransmit) {
            self.now += 1_000_000;
            self.packet(SYN, self.isn, &[], 0..0, rng);
        }
        self.now += self.rtt;
        if rng.chance(500) {
            // The online server took the data. If not, they come again.
            self.early = early.len();
        }
        self.sent = self.early as u64;
        if rng.chance(self.setup.handshake_ack) {
            self.bare(ACK, rng);
        }
        if self.setup.greeting > 0 {
            self.now += self.rtt;
            self.acked = self.setup.greeting;
            self.answered = self.acked;
        }
    }

    fn exchange(&mut self, requests: &mut [Request], style: Style, close: Close, rng: &mut Rng) {
        let last = requests.len() - 1;
        let (ahead, batch) = match style {
            Style::Lockstep => (1, 1),
            Style::Batches(n) => (n, n),
            Style::Window(n) => (n, 1),
            Style::Trailing => (2, 1),
        };
        let mut answered = 0;
        let mut burst = 0;
        for index in 0..requests.len() {
            while index % batch == 0 && index >= answered + ahead {
                for _ in 0..batch {
                    self.answer(&requests[answered], rng);
                    answered += 1;
                }
            }
            if style == Style::Trailing && index > 0 {
                self.now += self.rtt;
                self.acked = self.answered + rng.within(1..=requests[index - 1].online);
            }
            if index % batch == 0 {
                self.now += rng.size(&self.setup.think);
            }
            if self.acked > requests[burst].gate {
                burst = index;
            }
            let ends = index == last && close == Close::Half && rng.chance(500);
            let request = &mut requests[index];
            let offset = self.stream.len() as u64;
            (request.offset, request.gate, request.burst) = (offset, self.acked, burst);
            let bytes = request_bytes(self.id, index, request.len);
            self.send(&bytes, ends, rng);
        }
        if close == Close::Half || close == Close::Abort {
            let flags = if close == Close::Half { FIN } else { RST };
            self.bare(flags | ACK, rng);
        }
        match close {
            Close::Abort => {}
            Close::Cancel => {
                requests[answered..last].iter().for_each(|request| self.answer(request, rng));
                self.answer_in_part(&requests[last], rng);
            }
            Close::Client | Close::Half | Close::Server | Close::Both | Close::Reset | Close::Vanish => {
                requests[answered..].iter().for_each(|request| self.answer(request, rng));
            }
        }
    }

    /// A request leaves, in segments or super-segments.
    fn send(&mut self, bytes: &[u8], fin: bool, rng: &mut Rng) {
        self.repeat(rng);
        self.stream.extend_from_slice(bytes);
        let end = self.stream.len() as u64;
        for part in bytes[std::mem::take(&mut self.early)..].chunks(self.segment) {
            let range = self.sent..self.sent + part.len() as u64;
            let close = if fin && range.end == end { FIN } else { 0 };
            let push = if range.end == end { PSH } else { 0 };
            let seq = self.seq_at(range.start);
            self.packet(ACK | push | close, seq, part, range.clone(), rng);
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
            // No client's retransmission timeout is shorter.
            self.now += rng.within(200_000..=300_000);
            self.packet(ACK, self.seq_at(range.start), &bytes, range, rng);
        }
        if self.sent > 0 && rng.chance(self.setup.retransmit) {
            // The byte is garbage; nobody is to take it for the one that was there.
            let byte = self.stream.last().map_or(0, |byte| !byte);
            let payload: &[u8] = if rng.chance(500) { &[byte] } else { &[] };
            self.packet(ACK, self.seq_at(self.sent - 1), payload, self.sent..self.sent, rng);
            self.now += 30;
        }
    }

    /// The online server's response has come.
    fn answer(&mut self, request: &Request, rng: &mut Rng) {
        self.now += self.rtt + rng.within(&self.setup.online_delay);
        self.answered += request.online + std::mem::take(&mut self.owed);
        if rng.chance(500) {
            self.owed = request.unasked;
        } else {
            self.answered += request.unasked;
        }
        self.acked = self.answered;
        if rng.chance(self.setup.pure_acks) {
            self.bare(ACK, rng);
        }
    }

    /// Some of the online server's response has come, or none yet.
    fn answer_in_part(&mut self, request: &Request, rng: &mut Rng) {
        self.now += self.rtt + rng.within(&self.setup.online_delay);
        self.acked = self.answered + if rng.chance(300) { 0 } else { rng.within(0..=request.online) };
        if rng.chance(self.setup.pure_acks) {
            self.bare(ACK, rng);
        }
    }

    /// The client closes while the response is still coming, and its kernel answers what comes then with a RST: at
    /// FIN+1, or at the FIN if it had not left; with ACK or without; once or for each segment.
    fn cancel(&mut self, rng: &mut Rng) {
        if rng.chance(900) {
            self.bare(FIN | ACK, rng);
        }
        let behind = u32::from(rng.chance(800));
        loop {
            self.now += rng.size(20..=3_000_000);
            let flags = if rng.chance(500) { RST } else { RST | ACK };
            self.packet(flags, self.seq_at(self.sent).wrapping_add(behind), &[], self.sent..self.sent, rng);
            if rng.chance(600) {
                break;
            }
        }
    }

    fn close(&mut self, close: Close, rng: &mut Rng) {
        self.now += rng.size(&self.setup.think);
        match close {
            Close::Client | Close::Both => {
                self.bare(FIN | ACK, rng);
                self.acked += 1;
                self.now += self.rtt;
                self.sent += 1;
                self.bare(ACK, rng);
            }
            Close::Server => {
                self.acked += 1;
                self.bare(FIN | ACK, rng);
            }
            Close::Reset => self.bare(if rng.chance(500) { RST } else { RST | ACK }, rng),
            Close::Cancel => self.cancel(rng),
            Close::Half | Close::Abort | Close::Vanish => {}
        }
        while rng.chance(self.setup.reset_again) {
            self.now += rng.size(20..=3_000_000);
            self.bare(RST, rng);
        }
    }

    /// A segment without data.
    fn bare(&mut self, flags: u8, rng: &mut Rng) {
        self.packet(flags, self.seq_at(self.sent), &[], self.sent..self.sent, rng);
        self.now += 10;
    }

    fn seq_at(&self, offset: u64) -> u32 {
        self.isn.wrapping_add(1).wrapping_add(u32::try_from(offset).expect("short"))
    }

    fn packet(&mut self, flags: u8, seq: u32, payload: &[u8], range: Range<u64>, rng: &mut Rng) {
        let acked = u32::try_from(self.acked).expect("short");
        let ack = if flags & ACK != 0 { self.server_isn.wrapping_add(1).wrapping_add(acked) } else { 0 };
        let mut segment = Segment::bare(self.client, self.server, seq, ack, flags);
        let is_syn = flags & SYN != 0;
        if is_syn {
            (segment.mss, segment.scale) = (Some(self.mss), self.scale);
            segment.sack_permitted = self.sack_permitted;
        }
        segment.window = self.window;
        segment.stamps = self.timestamps.then_some((1, 0));
        segment.payload = payload.to_vec();
        self.adorn(&mut segment, rng);
        let merged = payload.len() > usize::from(self.mss);
        let at = Time::from_micros(self.now);
        self.packets.push(Captured { at, bytes: segment.write(), merged, range, is_syn });
    }

    /// What clients may add to a segment, and nobody needs.
    fn adorn(&self, segment: &mut Segment, rng: &mut Rng) {
        if rng.chance(self.setup.ecn) {
            let bits = if segment.has(SYN) { ECE | CWR } else { rng.pick(&[ECE, CWR, ECE | CWR]) };
            segment.flags |= bits;
        }
        if rng.chance(self.setup.urgent) && !segment.payload.is_empty() {
            segment.flags |= URG;
            segment.urgent = u16::try_from(rng.within(0..=segment.payload.len() as u64)).unwrap_or(0);
        }
        if rng.chance(self.setup.unknown_options) {
            // An experiment, MPTCP, a Fast Open cookie; one without an end, one too short to be.
            let options: [&[u8]; 5] = [
                &[254, 4, 1, 2],
                &[30, 12, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9],
                &[34, 6, 1, 2, 3, 4],
                &[99, 40, 1],
                &[7, 0],
            ];
            segment.unknown = rng.pick(&options).to_vec();
        }
    }
}

/// An initial sequence number, near the wrap-around as often as not.
fn isn(rng: &mut Rng) -> u32 {
    let number = rng.next().to_le_bytes();
    let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
    if rng.chance(500) { 0u32.wrapping_sub(number % 8_000) } else { number }
}
