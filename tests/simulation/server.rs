//! The application on the target, one connection at a time: takes requests apart, checks them, and
//! decides what to answer and when.

use std::collections::VecDeque;

use tcpcopy::wire::Time;

use crate::client::{Dialogue, FRAMING, parse_framing, request_bytes};
use crate::scenario::{Setup, Trouble};

/// What all connections of the target share.
pub(crate) struct Ledger {
    pub(crate) dialogues: Vec<Dialogue>,
    /// How often each request of each dialogue arrived whole.
    pub(crate) arrived: Vec<Vec<u32>>,
    /// Upstream offset, by dialogue, that the replayer knows to be acknowledged.
    pub(crate) heard: Vec<u64>,
    /// Bytes that the target acknowledged and then threw away.
    pub(crate) wasted: u64,
    pub(crate) faults: Vec<String>,
}

impl Ledger {
    pub(crate) fn new(dialogues: Vec<Dialogue>) -> Self {
        Self {
            arrived: dialogues.iter().map(|dialogue| vec![0; dialogue.requests.len()]).collect(),
            heard: vec![0; dialogues.len()],
            dialogues,
            wasted: 0,
            faults: Vec::new(),
        }
    }

    pub(crate) fn fault(&mut self, now: Time, what: String) {
        self.faults.push(format!("at {} us: {what}", now.micros()));
    }
}

/// What the application does to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Close,
    Abort,
}

/// The application's side of one connection.
#[derive(Debug, Default)]
pub(crate) struct Server {
    /// Read, but not yet a whole request.
    buffer: Vec<u8>,
    /// All that was read.
    pub(crate) read: u64,
    /// The dialogue, and the requests from the first to the one expected next.
    dialogue: Option<usize>,
    first: usize,
    next: usize,
    /// Responses under way: when they begin, and their lengths.
    responses: VecDeque<(Time, u64)>,
    /// Bytes that may be written.
    pub(crate) to_write: u64,
    answered: u32,
}

impl Server {
    /// A connection that was just accepted.
    pub(crate) fn new(setup: &Setup) -> Self {
        Self { to_write: setup.greeting, ..Self::default() }
    }

    /// The client's stream offset of this connection's first byte, once known.
    pub(crate) fn base(&self, ledger: &Ledger) -> Option<(usize, u64)> {
        let id = self.dialogue?;
        Some((id, ledger.dialogues[id].requests[self.first].offset))
    }

    /// Bytes that belong to no whole request.
    pub(crate) fn unparsed(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// When the next response begins.
    pub(crate) fn wakes_at(&self) -> Option<Time> {
        self.responses.front().map(|(at, _)| *at)
    }

    /// Whether all that came has been answered.
    pub(crate) fn is_done(&self) -> bool {
        self.responses.is_empty() && self.to_write == 0
    }

    /// Takes in what was read. `sent_before(offset)` is how much the target had sent when the byte
    /// at that offset of the connection arrived.
    pub(crate) fn take(
        &mut self,
        now: Time,
        setup: &Setup,
        bytes: &[u8],
        ledger: &mut Ledger,
        sent_before: &dyn Fn(u64) -> u64,
    ) -> Option<Order> {
        self.buffer.extend_from_slice(bytes);
        self.read += bytes.len() as u64;
        let mut order = None;
        while self.buffer.len() >= FRAMING {
            let Some((id, index, len)) = parse_framing(&self.buffer) else {
                ledger.fault(now, format!("no request at {:?}", &self.buffer[..FRAMING]));
                self.buffer.clear();
                break;
            };
            if self.buffer.len() < len {
                break;
            }
            let request: Vec<u8> = self.buffer.drain(..len).collect();
            if request != request_bytes(id, index, len) {
                ledger.fault(now, format!("request {id}/{index} was altered"));
            }
            order = order.or(self.request(now, setup, id, index, ledger, sent_before));
        }
        order
    }

    /// A whole request has arrived.
    fn request(
        &mut self,
        now: Time,
        setup: &Setup,
        id: usize,
        index: usize,
        ledger: &mut Ledger,
        sent_before: &dyn Fn(u64) -> u64,
    ) -> Option<Order> {
        if self.dialogue.is_none() {
            self.dialogue = Some(id);
            (self.first, self.next) = (index, index);
            self.check_begin(now, setup, ledger);
        }
        if (self.dialogue, self.next) != (Some(id), index) {
            let expected = (self.dialogue, self.next);
            ledger.fault(now, format!("request {id}/{index} where {expected:?} was expected"));
        }
        self.next = index + 1;
        ledger.arrived[id][index] += 1;
        if setup.strict_gate {
            self.check_gate(now, id, index, ledger, sent_before);
        }
        if let Trouble::Resets(after) = setup.trouble
            && self.answered >= after
        {
            return Some(Order::Abort);
        }
        let request = &ledger.dialogues[id].requests[index];
        let start = self.responses.back().map_or(now, |(at, _)| (*at).max(now)) + request.delay;
        self.responses.push_back((start, request.target));
        None
    }

    /// A connection begins with a burst, and with nothing that was known to be acknowledged.
    fn check_begin(&self, now: Time, setup: &Setup, ledger: &mut Ledger) {
        let Some((id, offset)) = self.base(ledger) else { return };
        let request = ledger.dialogues[id].requests[self.first];
        if request.burst != self.first {
            ledger.fault(now, format!("a connection begins with request {id}/{}", self.first));
        }
        if setup.copies == 1 && offset < ledger.heard[id] {
            ledger.fault(now, format!("request {id}/{} again, after it was acknowledged", self.first));
        }
    }

    /// The target must have sent as much as the online server had when the request came in.
    fn check_gate(
        &self,
        now: Time,
        id: usize,
        index: usize,
        ledger: &mut Ledger,
        sent_before: &dyn Fn(u64) -> u64,
    ) {
        let requests = &ledger.dialogues[id].requests;
        let (first, request) = (requests[self.first], requests[index]);
        let base = if self.first == 0 { 0 } else { first.gate };
        let sent = sent_before(request.offset - first.offset);
        if sent + base < request.gate {
            let gate = request.gate - base;
            ledger.fault(now, format!("request {id}/{index} came after {sent} bytes, not {gate}"));
        }
    }

    /// Lets responses begin that are due.
    pub(crate) fn wake(&mut self, now: Time) {
        while let Some((_, len)) = self.responses.front().copied().filter(|(at, _)| *at <= now) {
            self.responses.pop_front();
            self.to_write += len;
            self.answered += 1;
        }
    }

    /// What to do when all that was due has been written.
    pub(crate) fn after_write(&self, setup: &Setup, ledger: &Ledger) -> Option<Order> {
        let id = self.dialogue?;
        let dialogue = &ledger.dialogues[id];
        let over = self.next == dialogue.requests.len() && self.responses.is_empty();
        let server_closes = dialogue.close == crate::scenario::Close::Server && over;
        let closes = matches!(setup.trouble, Trouble::Closes(after) if self.answered >= after);
        (self.to_write == 0 && (server_closes || closes)).then_some(Order::Close)
    }
}
