//! The target's segments, by the state of the connection (RFC 9293, section 3.10.7).

use std::time::Duration;

use super::Session;
use super::connection::{Connection, State, TIME_WAIT};
use super::event::{Answer, End, Event, Outcome};
use super::receiver::{Arrived, Receiver, Segment};
use super::sender::Acked;
use super::upstream::Close;
use crate::wire::{Flags, Seq, TcpHeader, Time};

/// Resets without progress after which the target is taken at its word.
const MAX_RESETS: u8 = 3;

impl Session {
    /// Takes in the header of a segment that the target sent on the current connection.
    pub fn handle_target(&mut self, now: Time, header: &TcpHeader) -> Answer {
        let Some(connection) = &self.connection else { return Answer::Stray };
        self.last_activity = now;
        self.roomy = true;
        match connection.state {
            State::SynSent => self.answer_in_syn_sent(now, header),
            State::Open | State::TimeWait(_) => self.answer_when_synchronized(now, header),
        }
    }

    /// RFC 9293, 3.10.7.3.
    fn answer_in_syn_sent(&mut self, now: Time, header: &TcpHeader) -> Answer {
        let Some(connection) = &mut self.connection else { return Answer::Stray };
        if !header.flags.ack() {
            // A bare SYN would be a simultaneous open, which a server does not do; a RST without
            // ACK could come from anybody.
            return Answer::Unacceptable;
        }
        if header.ack != connection.sender.iss().add(1) {
            if !header.flags.rst() {
                // The target still has an older connection on these ports: end it, the SYN's
                // retransmission then finds it gone.
                self.farewell = Some(stray_reset(header.ack));
            }
            return Answer::Unacceptable;
        }
        if header.flags.rst() {
            // Refused. The target may be restarting: the SYN's timer tries again until the session
            // gives up.
            return Answer::Reset;
        }
        if !header.flags.syn() {
            return Answer::Unacceptable;
        }
        connection.establish(now, header, &self.client, self.config.max_train);
        self.unanswered_since = None;
        Answer::Accepted
    }

    /// RFC 9293, 3.10.7.4.
    fn answer_when_synchronized(&mut self, now: Time, header: &TcpHeader) -> Answer {
        let window = self.client.window();
        let lag = self.lag();
        let Some(connection) = &mut self.connection else { return Answer::Stray };
        let outdated = connection.is_outdated(header);
        let Some(receiver) = &mut connection.receiver else { return Answer::Stray };
        if header.flags.rst() {
            return self.answer_reset(now, header);
        }
        if outdated {
            // An ACK is not answered by one: it would not end if both took the other's for outdated.
            if header.segment_len() > 0 {
                receiver.ack_after(now, Duration::ZERO);
            }
            return Answer::Unacceptable;
        }
        if receiver.is_beyond(header.seq, window) {
            receiver.ack_after(now, Duration::ZERO);
            return Answer::Unacceptable;
        }
        if header.flags.syn() || !header.flags.ack() {
            // Our ACK of its SYN was lost, or RFC 5961, 4: a challenge ACK answers both.
            receiver.ack_after(now, Duration::ZERO);
            return if header.flags.syn() { Answer::Duplicate } else { Answer::Unacceptable };
        }
        let ack = connection.ack_of(now, header);
        let acked = ack.as_ref().map_or(Acked::Old, |ack| connection.sender.handle_ack(now, ack));
        if acked == Acked::Unsent {
            if let Some(receiver) = &mut connection.receiver {
                receiver.ack_after(now, Duration::ZERO);
            }
            return Answer::Unacceptable;
        }
        connection.note_timestamp(header);
        // Our own FIN can carry the ACK of the target's, unless it has left. What is under way may have come too late
        // for the target, which then answers the ACK with a reset.
        let fin_left = matches!(self.upstream.close(), Some(Close::Fin(at)) if connection.sender.max() > at);
        let prompt = fin_left || connection.sender.una() < connection.sender.max();
        let before = connection.receiver.as_ref().map_or(0, Receiver::received);
        let arrived = arrive(connection, now, header, prompt, lag);
        if acked == Acked::Advanced {
            connection.last_acked = now;
            self.resets = 0;
            self.upstream.release(connection.sender.una());
        }
        if arrived == Arrived::InOrder {
            let has_burst = ack.is_none_or(|ack| ack.offset > self.burst_start);
            self.note_response(now, header, before, has_burst);
        }
        self.close_if_done(now);
        match (arrived, acked) {
            (Arrived::OutOfOrder, _) => Answer::OutOfOrder,
            (Arrived::InOrder, _) | (_, Acked::Advanced) => Answer::Accepted,
            (Arrived::Nothing | Arrived::Duplicate, _) => Answer::Duplicate,
        }
    }

    /// The target has sent more, in order; before that it had sent `before`. `has_burst`: it acknowledged some of the
    /// burst that passed last.
    fn note_response(&mut self, now: Time, header: &TcpHeader, before: u64, has_burst: bool) {
        let (is_sampled, lag) = (self.is_sampled(), self.lag());
        let Some(connection) = &mut self.connection else { return };
        let received = connection.receiver.as_ref().map_or(before, Receiver::received);
        if header.payload_len > 0 {
            self.gate.arrived(now, before, connection.write_end(header));
        } else {
            self.gate.finished(now);
        }
        if connection.sender.una() == connection.sender.max()
            && !std::mem::replace(&mut connection.replied, true)
            && is_sampled
        {
            self.learned.answered_after(now - connection.last_sent);
        }
        // The target may keep the rest of its response until what came is acknowledged (RFC 9293, 3.7.4), and a request
        // waits for that. If the request leaves now, it carries the ACK.
        if self.upstream.waiting().is_some()
            && let Some(receiver) = &mut connection.receiver
        {
            receiver.ack_after(now, lag);
        }
        // Nothing answers a burst that a closed window still holds back.
        if connection.sender.max() <= self.burst_start {
            self.gate.hold_back(received);
        } else if !has_burst && self.gate.take_back(now, &self.learned, received) {
            self.events.push_back(Event::Early);
        } else {
            self.first_answer.get_or_insert(now);
        }
    }

    /// RFC 5961, 3: only a RST at RCV.NXT is believed at once, one elsewhere in the window is
    /// challenged.
    fn answer_reset(&mut self, now: Time, header: &TcpHeader) -> Answer {
        let window = self.client.window();
        let Some(connection) = &mut self.connection else { return Answer::Stray };
        let Some(receiver) = &mut connection.receiver else { return Answer::Stray };
        let ahead = header.seq.offset_from(receiver.rcv_nxt());
        if ahead != 0 {
            if ahead < window {
                receiver.ack_after(now, Duration::ZERO);
            }
            return Answer::Unacceptable;
        }
        let unacknowledged = connection.sender.una();
        let last_is_under_way = matches!(self.upstream.close(), Some(Close::Fin(at))
            if unacknowledged == at && connection.sender.max() > at);
        if matches!(connection.state, State::TimeWait(_)) || (receiver.finished() && last_is_under_way) {
            // RFC 9293, 3.10.7.4: both sides had closed, this changes nothing. The target forgets a
            // connection with our last ACK, or after TIME-WAIT when its own was lost, and answers what
            // comes after that with a reset.
            self.end(now, End::Completed);
            return Answer::Reset;
        }
        if self.first_answer.is_none() && self.acknowledged() > self.burst_start {
            // Its TCP took the request, and nobody answered it. It may have been served, so it is not
            // sent again.
            self.events.push_back(Event::Unanswered);
        }
        self.conclude_acknowledged(Outcome::TargetReset);
        self.connection = None;
        self.resets = self.resets.saturating_add(1);
        let all_acknowledged = self.upstream.close().is_some() && unacknowledged >= self.upstream.end();
        if (all_acknowledged || self.resets > MAX_RESETS) && !self.config.is_relentless() {
            self.end(now, End::TargetReset);
        } else {
            self.resume(now, unacknowledged);
        }
        Answer::Reset
    }

    /// Both sides have closed: the last ACK leaves, and the connection is done.
    fn close_if_done(&mut self, now: Time) {
        if !self.fin_acknowledged() {
            return;
        }
        let Some(connection) = &mut self.connection else { return };
        let Some(receiver) = &connection.receiver else { return };
        if !receiver.finished() {
            return;
        }
        if receiver.ack_due().is_some() || matches!(connection.state, State::TimeWait(_)) {
            connection.state = State::TimeWait(now + TIME_WAIT);
        } else {
            self.end(now, End::Completed);
        }
    }
}

fn arrive(
    connection: &mut Connection,
    now: Time,
    header: &TcpHeader,
    prompt: bool,
    lag: Duration,
) -> Arrived {
    let segment = Segment {
        seq: header.seq,
        len: header.payload_len,
        fin: header.flags.fin(),
        mss: connection.receive_mss,
        prompt,
    };
    match &mut connection.receiver {
        Some(receiver) => receiver.handle(now, &segment, lag),
        None => Arrived::Nothing,
    }
}

/// The RST for a segment that acknowledges what was never sent (RFC 9293, 3.10.7.3).
fn stray_reset(seq: Seq) -> TcpHeader {
    TcpHeader::bare(seq, Seq(0), Flags::RST, 0)
}
