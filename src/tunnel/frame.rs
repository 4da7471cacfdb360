//! What the frames say, and how it is written: fixed-size fields in network byte order.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::host::Features;
use crate::wire::{Flags, FlowId, FlowKey, Seq, TcpHeader, TcpOptions, Timestamps};

/// The protocol's version. Within one version frames may be added, and fields at the end of frames
/// that are no batches; both are passed over by those who do not know them.
pub const VERSION: u16 = 1;

/// "tcpy": the first field of the first frame.
pub const MAGIC: u32 = 0x7463_7079;

/// Bytes of a header record.
pub const HEADER_RECORD: usize = 40;

/// The frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// tcpcopy's first: one [`Hello`].
    Hello,
    /// The answer to it: one [`Welcome`].
    Welcome,
    /// Or one [`Refuse`], after which the connection ends.
    Refuse,
    /// To intercept: a batch of [`Claim`]s.
    Claims,
    /// To tcpcopy: a batch of [`Refused`].
    Refused,
    /// To intercept: a batch of [`Release`]s.
    Releases,
    /// To tcpcopy: a batch of [`Response`]s.
    Headers,
    /// To intercept: is anybody there?
    Ping,
    /// To tcpcopy: the answer, with the ping's token.
    Pong,
    /// To tcpcopy: [`Stats`].
    Stats,
    /// To intercept: a [`Hurry`].
    Hurry,
    /// To tcpcopy: a batch of entries of the intercept's scope, which a [`Kind::Host`] completes.
    Scope,
    /// To tcpcopy: whether the intercept's host is closed.
    Host,
    /// To tcpcopy: a batch of flows whose claims are held, if that was asked for
    /// ([`Features::CONFIRMATION`]).
    Confirmed,
}

impl Kind {
    /// From the byte behind the length; `None` if this version does not know it.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refuse,
            4 => Self::Claims,
            5 => Self::Refused,
            6 => Self::Releases,
            7 => Self::Headers,
            8 => Self::Ping,
            9 => Self::Pong,
            10 => Self::Stats,
            11 => Self::Hurry,
            12 => Self::Scope,
            13 => Self::Host,
            14 => Self::Confirmed,
            _ => return None,
        })
    }

    /// The byte behind the length.
    pub const fn code(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Welcome => 2,
            Self::Refuse => 3,
            Self::Claims => 4,
            Self::Refused => 5,
            Self::Releases => 6,
            Self::Headers => 7,
            Self::Ping => 8,
            Self::Pong => 9,
            Self::Stats => 10,
            Self::Hurry => 11,
            Self::Scope => 12,
            Self::Host => 13,
            Self::Confirmed => 14,
        }
    }

    /// Whether the body is a sequence of records.
    pub const fn is_batch(self) -> bool {
        match self {
            Self::Claims | Self::Refused | Self::Releases | Self::Headers | Self::Scope | Self::Confirmed => {
                true
            }
            Self::Hello
            | Self::Welcome
            | Self::Refuse
            | Self::Ping
            | Self::Pong
            | Self::Stats
            | Self::Hurry
            | Self::Host => false,
        }
    }
}

/// A part of a frame's body.
pub(super) trait Record: Sized {
    /// Reads one; `None` if the body ends within it or it holds a value it cannot.
    fn read(from: &mut Reader<'_>) -> Option<Self>;
}

/// The rest of a body.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}

/// Who connects, and to which worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// Random, chosen once per tcpcopy process.
    pub instance: u64,
    /// The tcpcopy worker that connects. With `instance`, the identity under which claims survive
    /// a reconnect.
    pub claimer: u16,
    /// The intercept worker wanted.
    pub worker: u16,
    /// What this tcpcopy understands beyond the first release.
    pub features: Features,
}

impl Hello {
    pub(super) fn bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(22);
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&self.instance.to_be_bytes());
        out.extend_from_slice(&self.claimer.to_be_bytes());
        out.extend_from_slice(&self.worker.to_be_bytes());
        out.extend_from_slice(&self.features.bits().to_be_bytes());
        out
    }
}

/// A hello as it arrives: of any version, or of another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnyHello {
    Ours(Hello),
    Version(u16),
    Foreign,
}

impl Record for AnyHello {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        if from.u32()? != MAGIC {
            return Some(Self::Foreign);
        }
        let version = from.u16()?;
        if version != VERSION {
            return Some(Self::Version(version));
        }
        let (instance, claimer, worker) = (from.u64()?, from.u16()?, from.u16()?);
        Some(Self::Ours(Hello { instance, claimer, worker, features: Features::read(from) }))
    }
}

/// The intercept's answer to a hello it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// How many workers the intercept has.
    pub workers: u16,
    /// Which one answers.
    pub worker: u16,
    /// Seed of the hash by which flows are spread over them ([`crate::wire::flow::SPLIT_SEED`]).
    pub split_seed: u32,
    /// What this intercept does beyond the first release.
    pub features: Features,
}

impl Welcome {
    pub(super) fn bytes(self) -> [u8; 14] {
        let [a, b] = VERSION.to_be_bytes();
        let [c, d] = self.workers.to_be_bytes();
        let [e, f] = self.worker.to_be_bytes();
        let [g, h, i, j] = self.split_seed.to_be_bytes();
        let [k, l, m, n] = self.features.bits().to_be_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n]
    }
}

/// Sessions wait for responses: headers are to leave at once, for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hurry {
    /// For how long, in milliseconds.
    pub millis: u32,
}

impl Hurry {
    pub(super) fn bytes(self) -> [u8; 4] {
        self.millis.to_be_bytes()
    }
}

impl Record for Hurry {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self { millis: from.u32()? })
    }
}

/// A welcome of any version.
pub(super) enum AnyWelcome {
    Ours(Welcome),
    Version(u16),
}

impl Record for AnyWelcome {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let version = from.u16()?;
        if version != VERSION {
            return Some(Self::Version(version));
        }
        let (workers, worker, split_seed) = (from.u16()?, from.u16()?, from.u32()?);
        Some(Self::Ours(Welcome { workers, worker, split_seed, features: Features::read(from) }))
    }
}

/// Why an intercept does not take a connection. Its layout is the same in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuse {
    /// It speaks this other version.
    Version(u16),
    /// It has only this many workers, and one beyond was wanted.
    Worker(u16),
    /// It has as many connections as it takes.
    Full,
    /// It takes connections with a key only.
    KeyWanted,
    /// It has no keys.
    NoKeys,
    /// It does not have this key.
    UnknownKey,
    /// A reason this version does not know, by its code.
    Other(u8),
}

impl Refuse {
    pub(super) fn bytes(self) -> [u8; 3] {
        let (code, value) = match self {
            Self::Version(version) => (1, version),
            Self::Worker(workers) => (2, workers),
            Self::Full => (3, 0),
            Self::KeyWanted => (4, 0),
            Self::NoKeys => (5, 0),
            Self::UnknownKey => (6, 0),
            Self::Other(code) => (code, 0),
        };
        let [high, low] = u16::to_be_bytes(value);
        [code, high, low]
    }
}

impl Record for Refuse {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let (code, value) = (from.u8()?, from.u16()?);
        Some(match code {
            1 => Self::Version(value),
            2 => Self::Worker(value),
            3 => Self::Full,
            4 => Self::KeyWanted,
            5 => Self::NoKeys,
            6 => Self::UnknownKey,
            other => Self::Other(other),
        })
    }
}

impl fmt::Display for Refuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "the intercept speaks version {version} of the protocol"),
            Self::Worker(workers) => write!(f, "the intercept has {workers} workers only"),
            Self::Full => f.write_str("the intercept has as many connections as it takes"),
            Self::KeyWanted => f.write_str("the intercept takes connections with a key only"),
            Self::NoKeys => f.write_str("the intercept has no keys"),
            Self::UnknownKey => f.write_str("the intercept does not have our key"),
            Self::Other(code) => write!(f, "for reason {code}"),
        }
    }
}

/// "Responses for this flow are mine."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The claimer's name for the flow.
    pub flow: FlowId,
    /// The replayed client and the target.
    pub key: FlowKey,
}

impl Claim {
    /// The encoded form and its length; `None` if the ends are of different families.
    pub(super) fn bytes(self) -> Option<([u8; 45], usize)> {
        let mut out = [0; 45];
        let mut rest = out.as_mut_slice();
        let mut put = |bytes: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            head.copy_from_slice(bytes);
            rest = tail;
        };
        put(&self.flow.0.to_be_bytes());
        match (self.key.client.ip(), self.key.server.ip()) {
            (IpAddr::V4(client), IpAddr::V4(server)) => {
                put(&[4]);
                put(&client.octets());
                put(&server.octets());
            }
            (IpAddr::V6(client), IpAddr::V6(server)) => {
                put(&[6]);
                put(&client.octets());
                put(&server.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        }
        put(&self.key.client.port().to_be_bytes());
        put(&self.key.server.port().to_be_bytes());
        let left = rest.len();
        Some((out, out.len() - left))
    }
}

impl Record for Claim {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let flow = FlowId(from.u64()?);
        let (client, server): (IpAddr, IpAddr) = match from.u8()? {
            4 => (from.take::<4>()?.into(), from.take::<4>()?.into()),
            6 => (from.take::<16>()?.into(), from.take::<16>()?.into()),
            _ => return None,
        };
        let client = SocketAddr::new(client, from.u16()?);
        let server = SocketAddr::new(server, from.u16()?);
        Some(Self { flow, key: FlowKey { client, server } })
    }
}

/// "Responses for this flow are no longer mine."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release(pub FlowId);

impl Record for Release {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        from.u64().map(|flow| Self(FlowId(flow)))
    }
}

/// "Your claim of this flow is held."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Confirmed(pub(super) FlowId);

impl Record for Confirmed {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        from.u64().map(|flow| Self(FlowId(flow)))
    }
}

/// Why a claim is not, or no longer, held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClaimRefusal {
    /// Another tcpcopy has the flow.
    Taken,
    /// The intercept does not serve this target.
    ForeignTarget,
    /// The intercept's rules do not take responses to this client, or our key is not for it.
    ForeignClient,
    /// The intercept's table is full of busy flows.
    TableFull,
    /// The claim was dropped after a long idle time, to make room. It can be made again.
    Evicted,
    /// The intercept's host is open: see [`Kind::Host`].
    HostOpen,
    /// A reason this version does not know, by its code.
    Other(u8),
}

/// An answer to a claim; a claim that is taken has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The claim.
    pub flow: FlowId,
    /// Why.
    pub why: ClaimRefusal,
}

impl Refused {
    pub(super) fn bytes(self) -> [u8; 9] {
        let [a, b, c, d, e, f, g, h] = self.flow.0.to_be_bytes();
        let why = match self.why {
            ClaimRefusal::Taken => 1,
            ClaimRefusal::ForeignTarget => 2,
            ClaimRefusal::TableFull => 3,
            ClaimRefusal::Evicted => 4,
            ClaimRefusal::ForeignClient => 5,
            ClaimRefusal::HostOpen => 6,
            ClaimRefusal::Other(code) => code,
        };
        [a, b, c, d, e, f, g, h, why]
    }
}

impl Record for Refused {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let flow = FlowId(from.u64()?);
        let why = match from.u8()? {
            1 => ClaimRefusal::Taken,
            2 => ClaimRefusal::ForeignTarget,
            3 => ClaimRefusal::TableFull,
            4 => ClaimRefusal::Evicted,
            5 => ClaimRefusal::ForeignClient,
            6 => ClaimRefusal::HostOpen,
            other => ClaimRefusal::Other(other),
        };
        Some(Self { flow, why })
    }
}

/// The header of a response, with the flow it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The claim it is for.
    pub flow: FlowId,
    /// The header.
    pub header: TcpHeader,
    /// From the packet's arrival in the intercept process to its being put into the outgoing
    /// buffer: nearly nothing, unless it had to wait for its claim. At most 2^32 - 1 µs.
    pub waited: Duration,
}

const HAS_MSS: u32 = 1;
const HAS_WINDOW_SCALE: u32 = 2;
const HAS_SACK_PERMITTED: u32 = 4;
const HAS_TIMESTAMPS: u32 = 8;
const MAX_WINDOW_SCALE: u8 = 14;

impl Response {
    pub(super) fn bytes(&self) -> [[u8; 4]; HEADER_RECORD / 4] {
        let header = &self.header;
        let options = &header.options;
        let present = [
            (options.mss.is_some(), HAS_MSS),
            (options.window_scale.is_some(), HAS_WINDOW_SCALE),
            (options.sack_permitted, HAS_SACK_PERMITTED),
            (options.timestamps.is_some(), HAS_TIMESTAMPS),
        ];
        let present = present.iter().fold(0, |bits, (is, bit)| if *is { bits | bit } else { bits });
        let Timestamps { value, echo } = options.timestamps.unwrap_or_default();
        let waited = u32::try_from(self.waited.as_micros()).unwrap_or(u32::MAX);
        let [high, low] = halves(self.flow.0);
        [
            high,
            low,
            header.seq.0,
            header.ack.0,
            header.payload_len,
            value,
            echo,
            waited,
            (u32::from(header.window) << 16) | u32::from(options.mss.unwrap_or_default()),
            (u32::from(header.flags.bits()) << 24)
                | (present << 16)
                | (u32::from(options.window_scale.unwrap_or_default()) << 8),
        ]
        .map(u32::to_be_bytes)
    }
}

impl Record for Response {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let flow = FlowId(from.u64()?);
        let (seq, ack) = (Seq(from.u32()?), Seq(from.u32()?));
        let payload_len = from.u32()?;
        let timestamps = Timestamps { value: from.u32()?, echo: from.u32()? };
        let waited = Duration::from_micros(from.u32()?.into());
        let (window, mss) = (from.u16()?, from.u16()?);
        let [flags, present, window_scale, _reserved] = from.take()?;
        let has = |bit: u32| u32::from(present) & bit != 0;
        let options = TcpOptions {
            mss: has(HAS_MSS).then_some(mss),
            window_scale: has(HAS_WINDOW_SCALE).then_some(window_scale.min(MAX_WINDOW_SCALE)),
            sack_permitted: has(HAS_SACK_PERMITTED),
            timestamps: has(HAS_TIMESTAMPS).then_some(timestamps),
        };
        let flags = Flags::from_bits(flags);
        Some(Self { flow, header: TcpHeader { seq, ack, flags, window, options, payload_len }, waited })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of the number are the meaning")]
const fn halves(number: u64) -> [u32; 2] {
    [(number >> 32) as u32, number as u32]
}

/// A ping's or pong's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(pub(super) u64);

impl Record for Token {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        from.u64().map(Self)
    }
}

/// What an intercept worker counted since its start, as far as it matters to a tcpcopy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Responses seen by the worker, whoever they were for.
    pub responses: u64,
    /// Headers sent on this connection.
    pub headers: u64,
    /// Headers for this connection that its full buffer dropped.
    pub headers_dropped: u64,
    /// Packets the kernel dropped because the worker's queue was full.
    pub queue_dropped: u64,
}

impl Stats {
    pub(super) fn bytes(self) -> [[u8; 8]; 4] {
        [self.responses, self.headers, self.headers_dropped, self.queue_dropped].map(u64::to_be_bytes)
    }
}

impl Record for Stats {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            responses: from.u64()?,
            headers: from.u64()?,
            headers_dropped: from.u64()?,
            queue_dropped: from.u64()?,
        })
    }
}
