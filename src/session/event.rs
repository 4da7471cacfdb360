//! What a session reports: what became of a packet, of an exchange, of itself.

use std::time::Duration;

use super::gate::Opened;

/// What became of a captured client segment. Every one ends in exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Taken {
    /// New data (with or without FIN), in order.
    Data,
    /// New data that waits for a hole before it to be filled.
    OutOfOrder,
    /// SYN, FIN or RST without data that was news.
    Control,
    /// An ACK without data.
    Ack,
    /// Nothing new: a retransmission or a keep-alive probe.
    Duplicate,
    /// Sequence numbers that cannot belong to the connection, or data after its end.
    OutOfWindow,
    /// The capture cut the payload; what is missing is treated as lost.
    Cut,
    /// Before the first request boundary of a connection captured mid-stream.
    BeforeJoin,
    /// The session had ended already.
    Late,
}

crate::counted!(Taken {
    Data => "data",
    OutOfOrder => "out_of_order",
    Control => "control",
    Ack => "ack",
    Duplicate => "duplicate",
    OutOfWindow => "out_of_window",
    Cut => "cut",
    BeforeJoin => "before_join",
    Late => "late",
});

/// What became of a header from the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It advanced the connection: data, an ACK, SYN or FIN.
    Accepted,
    /// It lies behind a hole.
    OutOfOrder,
    /// It repeats what was known.
    Duplicate,
    /// A reset that was believed.
    Reset,
    /// Refused by RFC 9293 or RFC 5961: bad sequence or acknowledgment number, stray SYN.
    Unacceptable,
    /// No connection was there to take it.
    Stray,
}

crate::counted!(Answer {
    Accepted => "accepted",
    OutOfOrder => "out_of_order",
    Duplicate => "duplicate",
    Reset => "reset",
    Unacceptable => "unacceptable",
    Stray => "stray",
});

/// One request burst and its response. Each burst of which anything left is reported once, however
/// often it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Upstream bytes of the burst that left.
    pub request_bytes: u64,
    /// Downstream bytes the online server answered, by the client's ACKs as far as they were seen.
    pub online_bytes: u64,
    /// Downstream bytes the target answered before the next burst left, or there was no more to come.
    pub target_bytes: u64,
    /// From the end of the burst to the first byte of the target's response.
    pub first_byte: Option<Duration>,
    /// From the end of the burst to the last byte of the target's response so far.
    pub last_byte: Option<Duration>,
    /// From the capture of the burst to the time at which it could leave.
    pub late: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The target had answered as much as the online server, and the next burst left.
    Answered,
    /// It had answered less and fell silent, and the next burst left.
    Short,
    /// It did not answer in time, and the next burst left.
    TimedOut,
    /// The next burst did not wait for the answer.
    Ungated,
    /// The target closed its side, and the next burst went on a new connection.
    TargetClosed,
    /// The target reset the connection after it had acknowledged some of the burst. One that it resets
    /// before that is sent again.
    TargetReset,
    /// The session left the connection: the capture lost what came next, or somebody else has its
    /// address.
    Left,
    /// The session ended, and with it the exchange.
    Ended,
}

crate::counted!(Outcome {
    Answered => "answered",
    Short => "short",
    TimedOut => "timed_out",
    Ungated => "ungated",
    TargetClosed => "target_closed",
    TargetReset => "target_reset",
    Left => "left",
    Ended => "ended",
});

impl From<Opened> for Outcome {
    fn from(opened: Opened) -> Self {
        match opened {
            Opened::Answered => Self::Answered,
            Opened::Short => Self::Short,
            Opened::TimedOut => Self::TimedOut,
            Opened::Ungated => Self::Ungated,
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Both sides closed.
    Completed,
    /// The client reset the connection, and so did the replay.
    ClientReset,
    /// The target reset it, and there was nothing left to say, or it did so again and again.
    TargetReset,
    /// Its last connections to the target were established, and on none of them a new request byte was acknowledged.
    NoProgress,
    /// The target did not answer.
    Unreachable,
    /// The target did not close its side after the client had.
    Lingering,
    /// No packet from either side for the idle timeout.
    Idle,
    /// Captured mid-stream, and over before a request boundary was seen.
    NotJoined,
    /// The session held more bytes than it may.
    BufferLimit,
    /// No intercept takes the responses of its target, or none those to its client's address.
    OutOfScope,
    /// An intercept refused its claim, or did not confirm it in time.
    ClaimRefused,
    /// The replayer ended it: at its limits, or because it stops.
    Shed,
    /// The target has turned out to be production.
    Forbidden,
}

crate::counted!(End {
    Completed => "completed",
    ClientReset => "client_reset",
    TargetReset => "target_reset",
    NoProgress => "no_progress",
    Unreachable => "unreachable",
    Lingering => "lingering",
    Idle => "idle",
    NotJoined => "not_joined",
    BufferLimit => "buffer_limit",
    OutOfScope => "out_of_scope",
    ClaimRefused => "claim_refused",
    Shed => "shed",
    Forbidden => "target_is_production",
});

/// What a session asks for or reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection to the target is wanted: [`super::Session::connect`] once there is an address
    /// and port for it.
    Connect,
    /// An exchange is over.
    Exchange(Exchange),
    /// A burst left long after its capture, though neither the target nor the client's distance took
    /// long: the replay is behind.
    Behind,
    /// A burst left before the target had sent all of its response to the one before: data came afterwards that
    /// the target had sent before it had the burst.
    Early,
    /// Upstream bytes that will not be sent: before a boundary after a reconnect, or lost by the
    /// capture.
    Skipped(u64),
    /// The target acknowledged a request and reset the connection without a byte of response.
    Unanswered,
    /// Nothing more will come; the session can go.
    Ended(End),
}
