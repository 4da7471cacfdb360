//! The application on the target, one connection at a time: takes requests apart, checks them, and
//! decides what to answer and when.

use std::collections::VecDeque;

use tcpcopy::wire::Time;

use crate::dialogue::{Dialogue, FRAMING, parse_framing, request_bytes};
use crate::scenario::{Close, Setup, Trouble};

/// What all connections of the target share.
pub(crate) struct Ledger {
    pub(crate) dialogues: Vec<Dialogue>,
    /// How often each request of each dialogue arrived whole.
    pub(crate) arrived: Vec<Vec<u32>>,
    /// Upstream offset, by dialogue, that the replayer knows to be acknowledged.
    pub(crate) heard: Vec<u64>,
    /// Requests that arrived, and those that did while the response to another was still under way.
    pub(crate) requests: u64,
    pub(crate) early: u64,
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
            requests: 0,
            early: 0,
            wasted: 0,
            faults: Vec::new(),
        }
    }

    pub(crate) fn fault(&mut self, now: Time, what: &str) {
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
    /// The dialogue, and the request expected next.
    dialogue: Option<usize>,
    next: usize,
    /// Responses under way: when they begin, and their lengths.
    responses: VecDeque<(Time, u64)>,
    /// Bytes that may be written.
    pub(crate) to_write: u64,
    answered: u32,
    /// The request under way has had its interim response.
    forewarned: bool,
}

impl Server {
    /// A connection that was just accepted.
    pub(crate) fn new(setup: &Setup) -> Self {
        Self { to_write: setup.greeting, ..Self::default() }
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

    /// Takes in what was read.
    pub(crate) fn take(
        &mut self,
        now: Time,
        setup: &Setup,
        bytes: &[u8],
        ledger: &mut Ledger,
    ) -> Option<Order> {
        self.buffer.extend_from_slice(bytes);
        self.read += bytes.len() as u64;
        let mut order = None;
        while self.buffer.len() >= FRAMING {
            let Some((id, index, len)) = parse_framing(&self.buffer) else {
                ledger.fault(now, &format!("no request at {:?}", &self.buffer[..FRAMING]));
                self.buffer.clear();
                break;
            };
            if self.buffer.len() < len {
                if setup.interim > 0 && !std::mem::replace(&mut self.forewarned, true) {
                    self.to_write += setup.interim;
                }
                break;
            }
            let request: Vec<u8> = self.buffer.drain(..len).collect();
            if request != request_bytes(id, index, len) {
                ledger.fault(now, &format!("request {id}/{index} was altered"));
            }
            order = order.or(self.request(now, setup, id, index, ledger));
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
    ) -> Option<Order> {
        if self.dialogue.is_none() {
            self.dialogue = Some(id);
            self.next = index;
        }
        if (self.dialogue, self.next) != (Some(id), index) {
            let expected = (self.dialogue, self.next);
            ledger.fault(now, &format!("request {id}/{index} where {expected:?} was expected"));
        }
        self.next = index + 1;
        ledger.arrived[id][index] += 1;
        if let Trouble::Resets(after) = setup.trouble
            && self.answered >= after
        {
            return Some(Order::Abort);
        }
        let request = &ledger.dialogues[id].requests[index];
        let start = self.responses.back().map_or(now, |(at, _)| (*at).max(now)) + request.delay;
        let said = if std::mem::take(&mut self.forewarned) { setup.interim } else { 0 };
        ledger.requests += 1;
        ledger.early += u64::from(!self.responses.is_empty() || self.to_write > 0);
        let rest = request.target - said;
        match request.pause.filter(|_| rest > 1) {
            Some(pause) => {
                self.responses.push_back((start, rest / 2));
                self.responses.push_back((start + pause, rest - rest / 2));
            }
            None => self.responses.push_back((start, rest)),
        }
        if request.unasked > 0 {
            self.responses.push_back((start + request.unasked_after, request.unasked));
        }
        None
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
        let server_closes = matches!(dialogue.close, Close::Server | Close::Both) && over;
        let closes = matches!(setup.trouble, Trouble::Closes(after) if self.answered >= after);
        (self.to_write == 0 && (server_closes || closes)).then_some(Order::Close)
    }
}
