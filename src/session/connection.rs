//! One connection to the target: its state, and the headers it sends.

use std::time::Duration;

use super::candidates::WriteEnd;
use super::client::Client;
use super::receiver::Receiver;
use super::sender::{Ack, Sender, Sizes};
use crate::wire::{Flags, Seq, TcpHeader, TcpOptions, Time, Timestamps};

/// How long a closed connection still answers a FIN that comes again. Not 2 MSL: the target's side
/// is in no doubt, and a SYN on the same ports ends the wait.
pub(super) const TIME_WAIT: Duration = Duration::from_secs(1);

/// Bytes the timestamps option takes in every segment.
const TIMESTAMPS_LEN: u16 = 12;

/// States of RFC 9293, as far as they differ for us: what is half-closed shows in the sender and
/// the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// SYN-SENT.
    SynSent,
    /// ESTABLISHED to LAST-ACK.
    Open,
    /// TIME-WAIT until then.
    TimeWait(Time),
}

/// A connection to the target.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: State,
    pub(super) sender: Sender,
    /// `None` before the target's SYN.
    pub(super) receiver: Option<Receiver>,
    /// When upstream bytes last left for the first time.
    pub(super) last_sent: Time,
    /// When the target last acknowledged some.
    pub(super) last_acked: Time,
    /// The target has said something since it had all that left.
    pub(super) replied: bool,
    /// SYN is to be sent.
    pub(super) syn_due: bool,
    /// The target's window scale and ours, once negotiated.
    scale: u8,
    own_scale: u8,
    /// Timestamps are in use.
    timestamps: bool,
    ts_recent: u32,
    /// What the target sends at most in a segment.
    pub(super) receive_mss: u16,
    /// What we send at most in a segment, without options.
    max_segment: u16,
}

impl Connection {
    /// A connection about to send its SYN, for upstream bytes from `base` on.
    pub(super) fn new(now: Time, iss: Seq, base: u64, client: &Client, max_segment: u16) -> Self {
        Self {
            state: State::SynSent,
            sender: Sender::new(iss, base),
            receiver: None,
            last_sent: now,
            last_acked: now,
            replied: false,
            syn_due: true,
            scale: 0,
            own_scale: 0,
            timestamps: client.timestamps,
            ts_recent: 0,
            receive_mss: client.mss.min(max_segment),
            max_segment,
        }
    }

    /// The SYN.
    pub(super) fn syn(&self, now: Time, client: &Client) -> TcpHeader {
        TcpHeader {
            seq: self.sender.iss(),
            ack: Seq(0),
            flags: Flags::SYN,
            window: u16::try_from(client.window()).unwrap_or(u16::MAX),
            options: TcpOptions {
                mss: Some(self.receive_mss),
                window_scale: client.scale,
                sack_permitted: false,
                timestamps: self.timestamps.then(|| Timestamps { value: clock(now), echo: 0 }),
            },
            payload_len: 0,
        }
    }

    /// A segment with `flags` and ACK, numbered `seq`.
    pub(super) fn segment(&self, now: Time, client: &Client, flags: Flags, seq: Seq) -> TcpHeader {
        TcpHeader {
            seq,
            ack: self.receiver.as_ref().map_or(Seq(0), Receiver::rcv_nxt),
            flags: flags | if self.receiver.is_some() { Flags::ACK } else { Flags::NONE },
            window: u16::try_from(client.window() >> self.own_scale).unwrap_or(u16::MAX),
            options: TcpOptions {
                timestamps: self.timestamps.then(|| Timestamps { value: clock(now), echo: self.ts_recent }),
                ..TcpOptions::default()
            },
            payload_len: 0,
        }
    }

    /// The RST that ends this connection from our side.
    pub(super) fn reset(&self, now: Time, client: &Client) -> TcpHeader {
        // After our SYN alone, the target expects the number behind it.
        let seq = self.sender.seq_at(self.sender.max());
        self.segment(now, client, Flags::RST, seq)
    }

    /// Takes the target's SYN-ACK in; whether it acknowledges our SYN was checked. `train`: bytes that may leave as one.
    pub(super) fn establish(&mut self, now: Time, header: &TcpHeader, client: &Client, train: u32) {
        let options = &header.options;
        self.state = State::Open;
        self.syn_due = false;
        // Both scale, or neither does (RFC 7323, 2.2).
        (self.scale, self.own_scale) =
            client.scale.zip(options.window_scale).map_or((0, 0), |(own, its)| (its, own));
        self.timestamps &= options.timestamps.is_some();
        self.ts_recent = options.timestamps.map_or(0, |ts| ts.value);
        let overhead = if self.timestamps { TIMESTAMPS_LEN } else { 0 };
        let mss = options.mss.unwrap_or(536).min(self.max_segment).saturating_sub(overhead);
        let rtt = self.echoed_rtt(now, header);
        let sizes = Sizes { segment: u32::from(mss), train };
        self.sender.established(now, sizes, u32::from(header.window), rtt);
        self.receiver = Some(Receiver::new(now, header.seq, client.is_connected()));
        self.last_sent = now;
    }

    /// What a segment of the target with data says about the end of a write.
    pub(super) fn write_end(&self, header: &TcpHeader) -> WriteEnd {
        let overhead = if self.timestamps { TIMESTAMPS_LEN } else { 0 };
        let whole = u32::from(self.receive_mss.saturating_sub(overhead).max(1));
        if header.flags.fin() {
            WriteEnd::Short
        } else if !header.flags.contains(Flags::PSH) {
            WriteEnd::None
        } else if header.payload_len.is_multiple_of(whole) {
            WriteEnd::Whole
        } else {
            WriteEnd::Short
        }
    }

    /// When the target had all that left. Far ahead while it has not.
    pub(super) fn arrived_at(&self) -> Time {
        if self.sender.una() < self.sender.max() {
            return Time::from_micros(u64::MAX);
        }
        self.last_sent.max(self.last_acked)
    }

    /// The acknowledgment in a header, in the sender's terms. `None` if it lies before our SYN.
    pub(super) fn ack_of(&self, now: Time, header: &TcpHeader) -> Option<Ack> {
        Some(Ack {
            offset: self.sender.offset_of(header.ack)?,
            window: u32::from(header.window) << self.scale,
            bare: header.segment_len() == 0,
            rtt: self.echoed_rtt(now, header),
        })
    }

    /// Whether a segment, no RST, was sent before what came already (RFC 7323, 5.3, R1). One without a
    /// timestamp is taken, as most stacks do.
    pub(super) fn is_outdated(&self, header: &TcpHeader) -> bool {
        let stamp = header.options.timestamps.filter(|_| self.timestamps && self.receiver.is_some());
        stamp.is_some_and(|stamp| Seq(stamp.value).is_before(Seq(self.ts_recent)))
    }

    /// Remembers the timestamp to echo (RFC 7323, 4.3), if the segment is at or before RCV.NXT.
    pub(super) fn note_timestamp(&mut self, header: &TcpHeader) {
        let Some(receiver) = &self.receiver else { return };
        if let Some(ts) = header.options.timestamps
            && !header.seq.is_after(receiver.rcv_nxt())
            && !Seq(ts.value).is_before(Seq(self.ts_recent))
        {
            self.ts_recent = ts.value;
        }
    }

    /// Round-trip time by timestamp. Its clock ticks in milliseconds, so what is below one tick
    /// counts as none.
    fn echoed_rtt(&self, now: Time, header: &TcpHeader) -> Option<Duration> {
        let echo = header.options.timestamps.filter(|_| self.timestamps)?.echo;
        let ticks = Seq(clock(now)).distance_from(Seq(echo));
        u64::try_from(ticks).ok().filter(|_| echo != 0).map(Duration::from_millis)
    }
}

/// The timestamp clock: milliseconds of monotonic time, so it never goes back for any connection,
/// also across restarts of the process (RFC 7323, 5).
#[expect(clippy::cast_possible_truncation, reason = "the clock is modulo 2^32")]
fn clock(now: Time) -> u32 {
    (now.micros() / 1000) as u32
}
