//! The session leaves a connection, or has it taken back, and goes on with another.

use super::Session;
use super::connection::State;
use super::event::{End, Event, Outcome};
use crate::wire::Time;

impl Session {
    /// Whether its SYN has no answer yet.
    pub fn is_connecting(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.state == State::SynSent)
    }

    /// Whether the SYN of the current connection is sent once only, however long it is unanswered.
    pub fn send_syn_once(&mut self, once: bool) {
        self.syn_once = once;
    }

    /// Takes a connection back whose SYN has no answer: it ends with a RST, and [`Session::connect`] is waited for again.
    /// Returns whether there was one.
    pub fn take_back(&mut self, now: Time) -> bool {
        let Some(connection) = self.connection.take_if(|connection| connection.state == State::SynSent)
        else {
            return false;
        };
        if let Some(since) = connection.sender.stalled_since() {
            self.farewell = Some(connection.reset(now, &self.client));
            self.await_target(Some(since));
        }
        self.connecting = Some(connection.sender.base());
        true
    }

    /// The connection that is wanted has to wait because the target does not answer: the session's patience runs from the
    /// first such time on. `None`: the target answers again.
    pub fn await_target(&mut self, since: Option<Time>) {
        self.unanswered_since = since.map(|since| self.unanswered_since.unwrap_or(since));
    }

    pub(super) fn request_connection(&mut self, base: u64) {
        self.connecting = Some(base);
        self.events.push_back(Event::Connect);
    }

    /// Leaves the connection, and goes on with the next request at or after `from` on a new one.
    pub(super) fn reconnect(&mut self, now: Time, from: u64) {
        if let Some(connection) = self.connection.take()
            && connection.state == State::Open
        {
            self.farewell = Some(connection.reset(now, &self.client));
        }
        self.resume(now, from);
    }

    /// The address and port of the connection belong to somebody else: begins anew on others, from
    /// the first request that is not acknowledged. No reset, which would hit their connection.
    pub fn move_connection(&mut self, now: Time) {
        self.conclude_acknowledged(Outcome::Left);
        let Some(connection) = self.connection.take() else { return };
        let from = connection.sender.una();
        if self.upstream.end() > from {
            self.resume(now, from);
        } else {
            self.request_connection(from);
        }
    }

    /// Without a connection: asks for one if a request is there, at or after `from`.
    pub(super) fn resume(&mut self, now: Time, from: u64) {
        if self.config.is_relentless() {
            return self.request_connection(from);
        }
        let closed = self.upstream.close().is_some();
        let boundary = self.upstream.restart_at_boundary(from);
        let to = boundary.map_or(self.upstream.end(), |mark| mark.offset);
        if to > from {
            self.events.push_back(Event::Skipped(to - from));
        }
        match boundary {
            Some(mark) if closed && mark.offset == self.upstream.end() => self.end(now, End::Completed),
            Some(mark) => {
                self.gate.restart(&mark);
                self.request_connection(mark.offset);
            }
            None if closed => self.end(now, End::Completed),
            None => self.upstream.skip(to),
        }
    }
}
