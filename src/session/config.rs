//! What an operator can choose about every session.

use std::time::Duration;

/// When upstream bytes that followed a response may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GateMode {
    /// When the target has answered what came before.
    #[default]
    Response,
    /// As soon as they are captured.
    None,
}

/// Whether the client's distance is part of the replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Latency {
    /// ACKs and gated sends lag by the client's round-trip time.
    #[default]
    Client,
    /// They leave at once.
    None,
}

/// What becomes of a connection whose SYN was not captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MidStream {
    /// It is replayed from its next request on.
    #[default]
    Join,
    /// It is not replayed.
    Skip,
}

/// Settings of a session.
#[derive(Clone, Debug)]
pub struct Config {
    /// Gating of requests by responses.
    pub gate: GateMode,
    /// Emulation of the client's round-trip time.
    pub latency: Latency,
    /// Treatment of connections captured mid-stream.
    pub mid_stream: MidStream,
    /// How long a request waits for the response before it, at most.
    pub response_timeout: Duration,
    /// How long the target may leave a SYN or data unacknowledged before the session ends.
    pub give_up: Duration,
    /// How long a session may be without any packet before it ends.
    pub idle_timeout: Duration,
    /// How long a hole in what was captured may stay open before it is taken for lost.
    pub gap_timeout: Duration,
    /// Upstream bytes a session may hold before it ends.
    pub buffer_limit: usize,
    /// Bytes that may leave as one train of segments, to be cut on the way; 0: each segment leaves by itself.
    pub max_train: u32,
    /// A session without checks of its own: it never gives up, and asks for a connection whenever it has none.
    #[cfg(test)]
    pub relentless: bool,
}

impl Config {
    #[cfg(test)]
    pub(super) fn is_relentless(&self) -> bool {
        self.relentless
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests have the setting")]
    pub(super) fn is_relentless(&self) -> bool {
        false
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gate: GateMode::default(),
            latency: Latency::default(),
            mid_stream: MidStream::default(),
            response_timeout: Duration::from_secs(10),
            give_up: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(600),
            gap_timeout: Duration::from_secs(3),
            buffer_limit: 64 << 20,
            max_train: 0,
            #[cfg(test)]
            relentless: false,
        }
    }
}
