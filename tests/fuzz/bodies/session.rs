//! One session between a client and a target that do anything.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tcpcopy::session::{Answer, Config, Event, GateMode, Latency, Ledger, Session};
use tcpcopy::wire::{Flags, Seq, TcpHeader, TcpOptions, Time, Timestamps};

use super::input::Input;

/// By how much the sequence numbers of each connection of a session are ahead of the one before it.
const STEP: u32 = 1 << 24;
/// The shortest silence of the target that opens a gate, unless it has said something since it had all before.
const SILENCE: Duration = Duration::from_millis(500);

/// Segments of both sides and time, in any order.
///
/// What is sent was captured, has the client's bytes in their places, and goes to the target's application once: a new
/// connection begins behind all that was acknowledged. No request leaves before its response was there, or silence. Every
/// captured byte has one fate or is held, and after the end nothing comes.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut course = Course::new(&mut input);
    while !input.is_empty() && !course.session.is_over() {
        course.step(&mut input);
        course.turn();
        course.check();
    }
}

/// The client's byte with this sequence number.
fn content(seq: Seq) -> u8 {
    seq.0.to_be_bytes().into_iter().fold(0x9d, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte))
}

struct Course {
    session: Session,
    ledger: Ledger,
    now: Time,
    given: u64,
    client: Client,
    target: Target,
    /// The sequence numbers of all bytes that were captured.
    captured: HashSet<Seq>,
    /// Requests that are to wait: where each begins, and how much of a response it follows.
    requests: Vec<Request>,
    ended: bool,
}

/// The client's side of the captured connection.
struct Client {
    isn: Seq,
    next: Seq,
    ack: Seq,
    closed: bool,
    /// Everything so far came in order, each write marked by PSH.
    plain: bool,
}

struct Request {
    seq: Seq,
    captured: Time,
    wanted: u32,
}

/// The target, and what it was sent on its connection.
struct Target {
    connections: u32,
    /// The first byte of the connection, and the next one that is wanted: in the client's numbers.
    base: Seq,
    next: Seq,
    beyond: HashSet<Seq>,
    /// The end of all that ever left, on whatever connection. What leaves again does not wait again.
    left: Seq,
    /// All before it was acknowledged.
    acked: Option<Seq>,
    isn: Seq,
    sent: u32,
    /// `sent`, and the time, when the last new byte came.
    sent_at_request: u32,
    last_request: Time,
    syn: bool,
    /// It has said nothing that a sound target would not.
    sound: bool,
    /// Its window has been small: what may leave can have to wait, and when it leaves is not when it could have.
    small: bool,
}

impl Course {
    fn new(input: &mut Input<'_>) -> Self {
        let config = Config {
            gate: input.of(&[GateMode::Response, GateMode::Response, GateMode::None]),
            latency: input.of(&[Latency::Client, Latency::None]),
            buffer_limit: input.of(&[1 << 20, 2_000]),
            ..Config::default()
        };
        let (now, isn) = (Time::from_micros(1), Seq(input.u32()));
        let client = Client { isn, next: isn.add(1), ack: Seq(77), closed: false, plain: true };
        let mut header = client.header(isn, Flags::SYN, 0);
        header.options = options(input);
        let gated = config.gate == GateMode::Response;
        let join = input.one_in(8);
        let config = Arc::new(config);
        let session = if join {
            Session::join(now, config, Arc::default(), &header)
        } else {
            Session::open(now, config, Arc::default(), &header)
        };
        let mut course = Self {
            session,
            ledger: Ledger::default(),
            now,
            given: 0,
            client: Client { plain: gated && !join, ..client },
            target: Target::new(now, isn.add(1)),
            captured: HashSet::new(),
            requests: Vec::new(),
            ended: false,
        };
        course.capture(&header);
        course.turn();
        course
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..4 => self.client_writes(input),
            4 => self.client_repeats(input),
            5 => {
                self.client.ack = self.client.ack.add(u32::from(input.u8()));
                self.capture(&self.client.header(self.client.next, Flags::ACK, 0));
            }
            6 => self.client_closes(input),
            7 => self.client_lies(input),
            8..11 => self.target_answers(input),
            11 => self.target_acks(input),
            12 => self.target_lies(input),
            13 => self.now += Duration::from_millis(u64::from(input.u8())),
            14 => self.now += Duration::from_secs(u64::from(input.u8())),
            _ => self.now = self.session.poll_timeout().map_or(self.now, |due| due.max(self.now)),
        }
    }

    /// The next piece of the stream, after more of the response or not; the capture loses some.
    fn client_writes(&mut self, input: &mut Input<'_>) {
        let (len, more, how) = (1 + u32::from(input.u8()), input.u8() / 2, input.u8());
        if self.client.closed {
            return;
        }
        self.client.ack = self.client.ack.add(u32::from(more));
        let flags = if how % 4 == 0 { Flags::ACK } else { Flags::ACK | Flags::PSH };
        let seq = self.client.next;
        self.client.next = seq.add(len);
        if how % 16 == 1 {
            self.client.plain = false;
            return;
        }
        self.client.plain &= flags.contains(Flags::PSH);
        if self.client.plain {
            let wanted = u32::from(more);
            let captured = self.now;
            self.requests.push(Request { seq, captured, wanted });
        }
        self.capture(&self.client.header(seq, flags, len));
    }

    fn client_repeats(&mut self, input: &mut Input<'_>) {
        self.client.plain = false;
        let sent = self.client.next.offset_from(self.client.isn.add(1));
        let from = if sent == 0 { 0 } else { u32::from(input.u16()) % sent };
        let len = u32::from(input.u8()).min(sent - from);
        let mut header = self.client.header(self.client.isn.add(1 + from), Flags::ACK, len);
        header.ack = header.ack.sub(u32::from(input.u8() % 4));
        self.capture(&header);
    }

    fn client_closes(&mut self, input: &mut Input<'_>) {
        self.client.closed = true;
        let flags = input.of(&[Flags::FIN | Flags::ACK, Flags::RST, Flags::RST | Flags::ACK]);
        self.capture(&self.client.header(self.client.next, flags, 0));
    }

    /// A segment with any numbers and flags. Its bytes are those that belong there.
    fn client_lies(&mut self, input: &mut Input<'_>) {
        self.client.plain = false;
        let seq = if input.one_in(2) { Seq(input.u32()) } else { self.client.next.sub(input.u16().into()) };
        let mut header = self.client.header(seq, Flags::from_bits(input.u8()), input.u8().into());
        header.ack = Seq(input.u32());
        header.options = options(input);
        self.capture(&header);
    }

    fn capture(&mut self, header: &TcpHeader) {
        let first = header.seq.add(u32::from(header.flags.syn()));
        let payload: Vec<u8> = (0..header.payload_len).map(|at| content(first.add(at))).collect();
        self.captured.extend((0..header.payload_len).map(|at| first.add(at)));
        self.given += u64::from(header.payload_len);
        self.session.handle_client(self.now, header, &payload);
    }

    /// So many bytes of response, or the SYN-ACK, or the end.
    fn target_answers(&mut self, input: &mut Input<'_>) {
        let (len, how) = (u32::from(input.u8()), input.u8());
        let first = std::mem::replace(&mut self.target.syn, false);
        let mut header = self.target.header(if first { Flags::SYN | Flags::ACK } else { Flags::ACK }, 0);
        if first {
            header.options = options(input);
        } else {
            header.seq = self.target.isn.add(1 + self.target.sent);
            header.payload_len = len;
            self.target.sent += len;
            match how {
                0..16 => header.flags = Flags::FIN | Flags::ACK,
                16..24 => header.flags = Flags::RST | Flags::ACK,
                // Lost on the way.
                24..32 => return,
                _ => {}
            }
            self.target.sent += u32::from(header.flags.fin());
        }
        self.answer(&header);
    }

    fn target_acks(&mut self, input: &mut Input<'_>) {
        let mut header = self.target.header(Flags::ACK, 0);
        header.seq = self.target.isn.add(1 + self.target.sent);
        header.window = input.u16();
        self.target.small |= header.window < 30_000;
        self.answer(&header);
    }

    fn target_lies(&mut self, input: &mut Input<'_>) {
        (self.target.sound, self.target.small) = (false, true);
        let mut header = self.target.header(Flags::from_bits(input.u8()), u32::from(input.u16()));
        header.seq = header.seq.add(u32::from(input.u16()));
        header.ack = if input.one_in(2) { Seq(input.u32()) } else { header.ack.sub(input.u16().into()) };
        header.window = input.u16();
        header.options = options(input);
        self.answer(&header);
    }

    fn answer(&mut self, header: &TcpHeader) {
        let answer = self.session.handle_target(self.now, header);
        let known = self.target.next;
        let news = self.target.acked.is_none_or(|at| known.is_after(at));
        if answer == Answer::Accepted && header.flags.ack() && news {
            self.target.acked = Some(known);
        }
    }

    /// The session acts, until nothing is due.
    fn turn(&mut self) {
        for _ in 0..1_000 {
            self.poll();
            match self.session.poll_timeout() {
                Some(due) if due <= self.now => self.session.handle_timeout(self.now),
                Some(_) | None => return,
            }
        }
        panic!("a deadline that stays: {:?} at {:?}", self.session.poll_timeout(), self.now);
    }

    fn poll(&mut self) {
        for _ in 0..10_000 {
            let mut payload = Vec::new();
            if let Some(header) = self.session.poll_transmit(self.now, &mut payload) {
                assert_eq!(header.payload_len as usize, payload.len());
                self.sent(&header, &payload);
                continue;
            }
            match self.session.poll_event() {
                Some(Event::Connect) => {
                    self.session.connect(self.now, 536);
                    self.target.connections += 1;
                    self.target.syn = true;
                }
                Some(Event::Ended(_)) => self.ended = true,
                Some(_) => {}
                None => return,
            }
        }
        panic!("it acts without end");
    }

    fn sent(&mut self, header: &TcpHeader, payload: &[u8]) {
        let ahead = STEP.wrapping_mul(self.target.connections.wrapping_sub(1));
        let first = header.seq.sub(ahead);
        for (at, byte) in (0..).zip(payload) {
            let seq = first.add(at);
            assert!(self.captured.contains(&seq), "byte {seq:?} was never captured");
            assert_eq!(*byte, content(seq), "byte {seq:?} has changed");
        }
        if header.flags.syn() {
            return self.target.listen(self.now, header.seq, ahead);
        }
        let end = first.add(header.payload_len);
        if header.payload_len > 0 && end.is_after(self.target.next) {
            self.check_gate(first, end);
        }
        if end.is_after(self.target.left) {
            self.target.left = end;
        }
        self.target.take(self.now, first, header.payload_len);
    }

    /// New bytes leave: those of no request whose response is not there.
    fn check_gate(&self, first: Seq, end: Seq) {
        if self.target.small || !self.client.plain {
            return;
        }
        let within = |request: &&Request| {
            !request.seq.is_before(first)
                && request.seq.is_before(end)
                && !request.seq.is_before(self.target.left)
        };
        let first_on_connection = |request: &Request| request.seq == self.target.base;
        for request in self.requests.iter().filter(within) {
            if request.wanted == 0 || first_on_connection(request) {
                continue;
            }
            let silence = self.now - self.target.last_request.max(request.captured);
            let answered =
                self.target.sent > self.target.sent_at_request || self.target.sent >= request.wanted;
            assert!(
                answered || silence >= SILENCE,
                "{:?} left after {silence:?}, the target having said {} since {}",
                request.seq,
                self.target.sent,
                self.target.sent_at_request
            );
        }
    }

    fn check(&mut self) {
        self.session.settle(&mut self.ledger);
        let held = self.session.buffered() as u64;
        assert_eq!(self.ledger.settled() + held, self.given, "bytes with a fate, and {held} held");
        assert_eq!(self.session.is_over(), self.ended);
        assert!(!self.ended || (held == 0 && self.session.poll_timeout().is_none()));
    }
}

impl Client {
    fn header(&self, seq: Seq, flags: Flags, payload_len: u32) -> TcpHeader {
        TcpHeader { payload_len, ..TcpHeader::bare(seq, self.ack, flags, 60_000) }
    }
}

impl Target {
    fn new(now: Time, base: Seq) -> Self {
        Self {
            connections: 0,
            base,
            next: base,
            beyond: HashSet::new(),
            left: base,
            acked: None,
            isn: Seq(0xffff_ff00),
            sent: 0,
            sent_at_request: 0,
            last_request: now,
            syn: false,
            sound: true,
            small: false,
        }
    }

    fn header(&self, flags: Flags, payload_len: u32) -> TcpHeader {
        let ahead = STEP.wrapping_mul(self.connections.wrapping_sub(1));
        TcpHeader { payload_len, ..TcpHeader::bare(self.isn, self.next.add(ahead), flags, 60_000) }
    }

    /// A SYN: of a new connection, or once more.
    fn listen(&mut self, now: Time, syn: Seq, ahead: u32) {
        let base = syn.add(1).sub(ahead);
        if let Some(acked) = self.acked
            && self.sound
        {
            assert!(!base.is_before(acked), "from {base:?} on again, {acked:?} was acknowledged");
        }
        (self.base, self.next, self.sent, self.sent_at_request, self.syn) = (base, base, 0, 0, true);
        self.last_request = now;
        self.beyond.clear();
    }

    fn take(&mut self, now: Time, first: Seq, len: u32) {
        let before = self.next;
        self.beyond.extend((0..len).map(|at| first.add(at)).filter(|seq| !seq.is_before(before)));
        while self.beyond.remove(&self.next) {
            self.next = self.next.add(1);
        }
        if self.next != before {
            (self.sent_at_request, self.last_request) = (self.sent, now);
        }
    }
}

fn options(input: &mut Input<'_>) -> TcpOptions {
    let bits = input.u8();
    TcpOptions {
        mss: (bits & 1 > 0).then(|| input.u16()),
        window_scale: (bits & 2 > 0).then(|| input.u8() % 15),
        sack_permitted: bits & 4 > 0,
        timestamps: (bits & 8 > 0).then(|| Timestamps { value: input.u32(), echo: input.u32() }),
    }
}
