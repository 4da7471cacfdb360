//! intercept's end of a connection with a C tcpcopy.

use super::super::bytes::Bytes;
use super::super::going::Going;
use super::super::{Closed, Endpoint, Limits};
use super::KEPT;
use super::codec::{self, MAX_RECORDS, MESSAGE, Message, RECORD};
use crate::wire::{FlowKey, Outgoing, TcpHeader, Time};

/// Room offered to one read.
const READ: usize = 16 << 10;
/// The same before the first message.
const READ_OPENING: usize = 512;

/// What happened on a [`Server`]'s connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// A C tcpcopy has said its version, which is ours. The first event, unless the connection is closed.
    Greeted,
    /// A claim, for this connection: another one's of before is over.
    Claim(FlowKey),
    /// A message of a type that means nothing here.
    Ignored(u16),
    /// The connection is over. The last event.
    Closed(Closed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first message has not come.
    Expecting {
        until: Time,
    },
    Connected,
    /// Over, and not yet said so.
    Failed(Closed),
    Over,
}

/// intercept's end of one connection of a C tcpcopy, which says nothing as long as it has nothing to claim: only the first
/// message has a deadline.
#[derive(Debug)]
pub struct Server {
    state: State,
    came: Bytes,
    going: Frames,
    scratch: Outgoing,
}

impl Server {
    /// A connection just accepted. Of the limits, those of the handshake and of the output count.
    pub fn new(now: Time, limits: Limits) -> Self {
        Self {
            state: State::Expecting { until: now + limits.handshake },
            came: Bytes::default(),
            going: Frames::new(limits.output),
            scratch: Outgoing::default(),
        }
    }

    /// Sends a response's header. `false` if the outgoing buffer is full, nobody is connected or the header is of no IPv4
    /// packet that there can be: it is dropped, and the target will send the segment again.
    #[must_use]
    pub fn response(&mut self, key: &FlowKey, header: &TcpHeader) -> bool {
        self.is_connected()
            && codec::record(key, header, &mut self.scratch).is_some_and(|record| self.going.push(&record))
    }

    /// Whether a C tcpcopy has introduced itself and the connection is not over.
    pub fn is_connected(&self) -> bool {
        self.state == State::Connected
    }

    /// Memory that its buffers take, in bytes.
    pub fn memory(&self) -> usize {
        self.came.memory() + self.going.memory()
    }

    /// When [`Server::handle_timeout`] is due; long ago if [`Server::poll_event`] is.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Expecting { until } => Some(until),
            State::Failed(_) => Some(Time::ZERO),
            State::Connected | State::Over => None,
        }
    }

    /// Ends what has lasted too long.
    pub fn handle_timeout(&mut self, now: Time) {
        match self.state {
            State::Expecting { until } if now >= until => {
                self.state = State::Failed(Closed::HandshakeTimeout);
            }
            State::Expecting { .. } | State::Connected | State::Failed(_) | State::Over => {}
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        match self.state {
            State::Over => return None,
            State::Failed(why) => {
                self.state = State::Over;
                return Some(ServerEvent::Closed(why));
            }
            State::Expecting { .. } | State::Connected => {}
        }
        let bytes = self.came.unread().first_chunk::<MESSAGE>()?;
        let event = if self.is_connected() {
            match codec::read_message(bytes) {
                Message::Claim(key) => ServerEvent::Claim(key),
                Message::Other(kind) => ServerEvent::Ignored(kind),
            }
        } else {
            match codec::read_opening(bytes) {
                Ok(()) => {
                    self.state = State::Connected;
                    ServerEvent::Greeted
                }
                Err(fault) => {
                    self.state = State::Over;
                    return Some(ServerEvent::Closed(Closed::Legacy(fault)));
                }
            }
        };
        self.came.consume(MESSAGE);
        Some(event)
    }
}

impl Endpoint for Server {
    fn space(&mut self) -> &mut [u8] {
        self.came.space(if self.is_connected() { READ } else { READ_OPENING })
    }

    fn filled(&mut self, _: Time, n: usize) {
        self.came.filled(n);
    }

    fn has_pending(&self) -> bool {
        !self.going.is_empty()
    }

    fn pending(&mut self) -> &[u8] {
        self.going.pending()
    }

    fn sent(&mut self, n: usize) {
        let _ = self.going.closed.sent(n);
    }
}

/// Records to frames, bounded.
#[derive(Debug)]
struct Frames {
    closed: Going,
    /// The records of the frame that more can join.
    open: Vec<u8>,
}

impl Frames {
    fn new(limit: usize) -> Self {
        Self { closed: Going::new(limit, KEPT), open: Vec::new() }
    }

    fn push(&mut self, record: &[u8; RECORD]) -> bool {
        let fits = self.closed.has_room(self.open.len() + RECORD);
        if fits {
            self.open.extend_from_slice(record);
            if self.records() == MAX_RECORDS {
                self.close();
            }
        }
        fits
    }

    fn records(&self) -> u16 {
        u16::try_from(self.open.len() / RECORD).unwrap_or(MAX_RECORDS)
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.closed.push(&self.records().to_be_bytes());
            self.closed.push(&self.open);
            self.open.clear();
        }
    }

    fn is_empty(&self) -> bool {
        self.closed.pending().is_empty() && self.open.is_empty()
    }

    fn pending(&mut self) -> &[u8] {
        self.close();
        self.closed.pending()
    }

    fn memory(&self) -> usize {
        self.closed.memory() + self.open.capacity()
    }
}
