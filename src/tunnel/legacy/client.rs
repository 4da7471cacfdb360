//! tcpcopy's end of a connection with a C intercept.

use std::time::Duration;

use super::super::bytes::Bytes;
use super::super::going::Going;
use super::super::{Claimer, ClientEvent, Closed, Endpoint, HostState, Limits};
use super::KEPT;
use super::codec::{self, Fault, MAX_RECORDS, MESSAGE, RECORD};
use crate::wire::{FlowId, FlowKey, Scope, Time};

/// Room offered to one read.
const READ: usize = 16 << 10;
const COUNT_BYTES: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Connected, and not yet said so.
    Fresh,
    Connected,
    /// Over, and not yet said so.
    Failed(Closed),
    Over,
}

/// tcpcopy's end of one connection to a C intercept, which is all of one worker. It answers nothing, so that the socket's
/// keepalive alone tells whether it is there.
#[derive(Debug)]
pub struct Client {
    state: State,
    came: Bytes,
    /// Records of the frame at hand that are still to be read.
    records: u16,
    going: Going,
}

impl Client {
    /// A connection just made: its version is pending. Of the limits, that of the output counts.
    pub fn new(limits: Limits) -> Self {
        let mut going = Going::new(limits.output, KEPT);
        going.push(&codec::opening());
        Self { state: State::Fresh, came: Bytes::default(), records: 0, going }
    }

    fn read(&mut self) -> Result<Option<ClientEvent>, Fault> {
        while self.records == 0 {
            let Some(count) = self.came.unread().first_chunk::<COUNT_BYTES>() else { return Ok(None) };
            let count = u16::from_be_bytes(*count);
            if count > MAX_RECORDS {
                return Err(Fault::Records(count));
            }
            self.came.consume(COUNT_BYTES);
            self.records = count;
        }
        let Some(bytes) = self.came.unread().first_chunk::<RECORD>() else { return Ok(None) };
        let event = match codec::read_record(bytes)? {
            Ok((key, header)) => ClientEvent::Unnamed { key, header },
            Err(reject) => ClientEvent::Unreadable(reject),
        };
        self.came.consume(RECORD);
        self.records -= 1;
        Ok(Some(event))
    }
}

impl Claimer for Client {
    fn is_connected(&self) -> bool {
        self.state == State::Connected
    }

    fn memory(&self) -> usize {
        self.came.memory() + self.going.memory()
    }

    fn claim(&mut self, _: FlowId, key: FlowKey) {
        if !self.is_connected() {
            return;
        }
        // A flow of IPv6 does not come here: such targets are refused with the settings.
        let Some(message) = codec::claim(key) else { return };
        if self.going.has_room(MESSAGE) {
            self.going.push(&message);
        } else {
            self.state = State::Failed(Closed::Overflow);
        }
    }

    /// A C intercept has no word for it: it forgets the oldest.
    fn release(&mut self, _: FlowId) {}

    /// A C intercept sends what it has every few milliseconds.
    fn hurry(&mut self, _: Duration) {}

    /// A C intercept has no word for it.
    fn host(&self) -> &HostState {
        &HostState::Unknown
    }

    fn confirms_claims(&self) -> bool {
        false
    }

    /// Nor for this.
    fn scope(&self) -> Option<&Scope> {
        None
    }

    fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Fresh | State::Failed(_) => Some(Time::ZERO),
            State::Connected | State::Over => None,
        }
    }

    fn handle_timeout(&mut self, _: Time) {}

    fn poll_event(&mut self) -> Option<ClientEvent> {
        match self.state {
            State::Fresh => {
                self.state = State::Connected;
                return Some(ClientEvent::Connected { workers: 1 });
            }
            State::Connected => {}
            State::Failed(why) => {
                self.state = State::Over;
                return Some(ClientEvent::Closed(why));
            }
            State::Over => return None,
        }
        self.read().unwrap_or_else(|fault| {
            self.state = State::Over;
            Some(ClientEvent::Closed(Closed::Legacy(fault)))
        })
    }
}

impl Endpoint for Client {
    fn space(&mut self) -> &mut [u8] {
        self.came.space(READ)
    }

    fn filled(&mut self, _: Time, n: usize) {
        self.came.filled(n);
    }

    fn has_pending(&self) -> bool {
        !self.going.pending().is_empty()
    }

    fn pending(&mut self) -> &[u8] {
        self.going.pending()
    }

    fn sent(&mut self, n: usize) {
        let _ = self.going.sent(n);
    }
}
