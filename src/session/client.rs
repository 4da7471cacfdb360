//! What is known of the real client and its connection to the online server.

use std::time::Duration;

use crate::wire::{Seq, TcpHeader, Time};

/// Longest client round-trip time that is emulated.
const MAX_RTT: Duration = Duration::from_secs(1);
/// Shorter ones are not worth a timer.
const MIN_RTT: Duration = Duration::from_millis(1);
/// What a client captured mid-stream is taken to have offered.
const DEFAULT_SCALE: u8 = 7;
const DEFAULT_MSS: u16 = 1460;

/// The downstream offset that the first acknowledgment seen stands for. Not 0: one from before it
/// may follow, since the capture may disorder packets.
const FIRST_ACKED: u64 = 1 << 32;

/// The client's side of the captured connection.
#[derive(Debug)]
pub(super) struct Client {
    /// What its SYN offered.
    pub(super) mss: u16,
    pub(super) scale: Option<u8>,
    pub(super) timestamps: bool,
    /// The largest window seen, in bytes. Pure ACKs are not captured, so a small one may be stale,
    /// and a closed one would hold the target's response for good.
    window: u32,
    /// The last acknowledgment number, and the downstream offset it stands for.
    acked: Option<(Seq, u64)>,
    /// The lowest downstream offset acknowledged, as far as was seen: where the response begins.
    first_acked: u64,
    last_at: Time,
    /// From SYN to the handshake's ACK. Unknown if that was not captured: the time to the first data
    /// is no measure of it, because a client may connect and wait.
    rtt: Option<Duration>,
}

impl Client {
    /// From its SYN.
    pub(super) fn from_syn(now: Time, syn: &TcpHeader) -> Self {
        Self {
            mss: syn.options.mss.unwrap_or(536),
            scale: syn.options.window_scale,
            timestamps: syn.options.timestamps.is_some(),
            window: u32::from(syn.window),
            acked: None,
            first_acked: FIRST_ACKED,
            last_at: now,
            rtt: None,
        }
    }

    /// From a segment in the middle of its connection.
    pub(super) fn from_segment(now: Time, header: &TcpHeader) -> Self {
        Self {
            mss: DEFAULT_MSS,
            scale: Some(DEFAULT_SCALE),
            timestamps: header.options.timestamps.is_some(),
            window: u32::from(u16::MAX),
            acked: Some((header.ack, FIRST_ACKED)),
            first_acked: FIRST_ACKED,
            last_at: now,
            rtt: None,
        }
    }

    /// The lowest downstream offset acknowledged so far.
    pub(super) fn first_acked(&self) -> u64 {
        self.first_acked
    }

    /// Whether it has ended its handshake, as far as was captured.
    pub(super) fn is_connected(&self) -> bool {
        self.acked.is_some()
    }

    /// The downstream offset acknowledged so far.
    pub(super) fn acked(&self) -> u64 {
        self.acked.map_or(FIRST_ACKED, |(_, offset)| offset)
    }

    /// Takes in a segment's acknowledgment, window and time. Returns the downstream offset up to
    /// which the client had seen the response when it sent it.
    pub(super) fn observe(&mut self, now: Time, header: &TcpHeader) -> u64 {
        // That of a SYN is as it is (RFC 7323, 2.2), and known; a RST has none to tell.
        if !header.flags.rst() && !header.flags.syn() {
            let window = u32::from(header.window) << self.scale.unwrap_or(0);
            self.window = self.window.max(window);
        }
        let gap = now - self.last_at;
        self.last_at = now;
        if !header.flags.ack() {
            return self.acked();
        }
        let Some((last, offset)) = self.acked else {
            self.acked = Some((header.ack, FIRST_ACKED));
            if header.segment_len() == 0 {
                self.rtt = Some(gap.min(MAX_RTT));
            }
            return FIRST_ACKED;
        };
        let seen = header.ack.unwrap_near(offset, last).unwrap_or(0);
        self.first_acked = self.first_acked.min(seen);
        if seen > offset {
            self.acked = Some((header.ack, seen));
        }
        seen
    }

    /// How much later than a neighbour of the target this client answers.
    pub(super) fn lag(&self) -> Duration {
        self.rtt.filter(|rtt| *rtt >= MIN_RTT).unwrap_or(Duration::ZERO)
    }

    /// The window to advertise, in bytes.
    pub(super) fn window(&self) -> u32 {
        self.window
    }
}
