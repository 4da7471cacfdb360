//! What a target's TCP may do and smoltcp does not.

use crate::rng::Rng;

/// How the scripted host behaves. Times are in microseconds, chances in permille.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a habit for itself")]
pub(crate) struct Quirks {
    /// What it offers; another for each connection.
    pub(crate) mss: Vec<Option<u16>>,
    pub(crate) scale: Vec<Option<u8>>,
    pub(crate) timestamps: bool,
    /// Where its timestamp clock is at the beginning, in milliseconds.
    pub(crate) clock: u32,
    /// Data that fill the hole before none wait so long for an ACK.
    pub(crate) delayed_ack: u64,
    /// The SYN-ACK comes so late, and so many of them never leave.
    pub(crate) syn_ack_delay: u64,
    pub(crate) syn_acks_lost: u64,
    /// Every segment is of another length.
    pub(crate) piecemeal: bool,
    /// Nagle's algorithm (RFC 9293, 3.7.4).
    pub(crate) nagle: bool,
    /// A close that follows a response goes with its last segment.
    pub(crate) fin_with_data: bool,
    /// The window opens only after so long.
    pub(crate) closed_at_first: u64,
    /// Nobody is told when it has, unless it is probed (RFC 9293, 3.8.6.1), as if the update were lost.
    pub(crate) taciturn: bool,
    /// An idle connection is probed so often; with a byte of garbage, as old stacks do.
    pub(crate) keep_alive: Option<u64>,
    pub(crate) probe_with_byte: bool,
    pub(crate) time_wait: u64,
    /// RST does not end TIME-WAIT (RFC 1337).
    pub(crate) time_wait_is_safe: bool,
    /// With a segment comes one that makes no sense.
    pub(crate) nonsense: u64,
    /// With a segment comes a RST in the window, but not at its beginning. On a path that keeps the order only.
    pub(crate) stray_resets: u64,
    /// Options nobody knows, some of lengths that lie.
    pub(crate) unknown_options: u64,
}

impl Quirks {
    /// An ordinary host, its parameters drawn. Whatever it does belongs to the usual: every scenario must stand it.
    pub(crate) fn ordinary(rng: &mut Rng) -> Self {
        let piecemeal = rng.chance(200);
        Self {
            mss: vec![rng.pick(&[None, Some(536), Some(1460), Some(1460), Some(8960)])],
            scale: vec![rng.pick(&[None, Some(0), Some(7), Some(14)])],
            timestamps: rng.chance(700),
            clock: if rng.chance(300) { u32::MAX - 2_000 } else { 1_000 },
            delayed_ack: rng.pick(&[0, 0, 40_000, 200_000]),
            syn_ack_delay: 0,
            syn_acks_lost: 0,
            piecemeal,
            // Both together send a segment for each delayed ACK.
            nagle: !piecemeal && rng.chance(300),
            fin_with_data: rng.chance(500),
            closed_at_first: 0,
            taciturn: false,
            keep_alive: None,
            probe_with_byte: rng.chance(500),
            time_wait: 60_000_000,
            time_wait_is_safe: false,
            nonsense: 0,
            stray_resets: 0,
            unknown_options: rng.pick(&[0, 0, 100]),
        }
    }
}
