//! What an intercept says about its host: whether the host is closed, so that no response of a target
//! can reach a real client, and whose responses it takes.
//!
//! Both follow the welcome, and are sent again whenever they change: first the entries of the scope,
//! if it changed, then the state, which completes them. A peer of the first release passes both over.

use std::net::{IpAddr, SocketAddr};

use super::codec::FrameError;
use super::frame::{Kind, Reader, Record};
use crate::wire::{Prefix, Scope};

/// What one end does or understands beyond the first release. Peers of that release have none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(u32);

impl Features {
    /// None: the first release.
    pub const NONE: Self = Self(0);
    /// In a welcome: the state of the host follows, and until it comes the host counts as open. In a
    /// hello: such messages are understood.
    pub const HOST_STATE: Self = Self(1);
    /// In a welcome: claims that are held are confirmed, and no packet of a flow may be sent to the target before that. In
    /// a hello: that is done.
    pub const CONFIRMATION: Self = Self(2);

    /// From a peer. Bits this version does not know are kept.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// To a peer.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are in it.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and those.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The field at the end of a hello or a welcome; the first release does not write it.
    pub(super) fn read(from: &mut Reader<'_>) -> Self {
        Self(from.u32().unwrap_or_default())
    }
}

/// Whether an intercept's host is closed: no response of a target can reach a real client through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostState {
    /// The intercept cannot say: it is of the first release, or a C intercept.
    Unknown,
    /// The intercept has not said yet.
    Awaited,
    /// Both layers are in force.
    Closed,
    /// A layer is missing, for this reason.
    Open(String),
}

/// A reason is cut to so many bytes.
const MAX_REASON: usize = 1024;
/// Entries of a scope, at most. The peer is authenticated, but its memory is not ours to give away.
const MAX_ENTRIES: usize = 1 << 16;

/// One entry of a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Target(SocketAddr),
    Client(Prefix),
}

impl Entry {
    pub(super) fn bytes(self) -> Vec<u8> {
        let (code, address, number) = match self {
            Self::Target(target) => (1, target.ip(), target.port()),
            Self::Client(prefix) => (2, prefix.address(), prefix.length().into()),
        };
        let mut out = vec![code];
        match address {
            IpAddr::V4(address) => {
                out.push(4);
                out.extend_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                out.push(6);
                out.extend_from_slice(&address.octets());
            }
        }
        out.extend_from_slice(&number.to_be_bytes());
        out
    }
}

impl Record for Entry {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let code = from.u8()?;
        let address: IpAddr = match from.u8()? {
            4 => from.take::<4>()?.into(),
            6 => from.take::<16>()?.into(),
            _ => return None,
        };
        let number = from.u16()?;
        match code {
            1 => Some(Self::Target(SocketAddr::new(address, number))),
            2 => Prefix::new(address, number.try_into().ok()?).map(Self::Client),
            _ => None,
        }
    }
}

const SCOPE_FOLLOWED: u8 = 1;
const CLIENTS_LIMITED: u8 = 2;

/// The state of a host, as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// Why the host is open; `None` if it is closed.
    open: Option<String>,
    /// The entries since the last report are the scope from now on.
    with_scope: bool,
    /// The scope is limited to the clients among its entries.
    limited: bool,
}

impl Report {
    pub(super) fn new(open: Option<&str>, scope: Option<&Scope>) -> Self {
        Self {
            open: open.map(str::to_owned),
            with_scope: scope.is_some(),
            limited: scope.is_some_and(|scope| scope.clients.is_some()),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let reason = self.open.as_deref().unwrap_or_default();
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason.get(..end).unwrap_or_default().as_bytes();
        let flags =
            if self.with_scope { SCOPE_FOLLOWED } else { 0 } | if self.limited { CLIENTS_LIMITED } else { 0 };
        let mut out = vec![u8::from(self.open.is_none()), flags];
        out.extend_from_slice(&u16::try_from(reason.len()).unwrap_or_default().to_be_bytes());
        out.extend_from_slice(reason);
        out
    }
}

impl Record for Report {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let (closed, flags) = (from.u8()?, from.u8()?);
        let length = from.u16()?;
        let (reason, rest) = from.0.split_at_checked(length.into())?;
        from.0 = rest;
        // A state this version does not know is not closed.
        let open = (closed != 1).then(|| printable(&String::from_utf8_lossy(reason)));
        Some(Self { open, with_scope: flags & SCOPE_FOLLOWED != 0, limited: flags & CLIENTS_LIMITED != 0 })
    }
}

/// The text without control characters: it goes to a log.
fn printable(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(MAX_REASON).collect()
}

/// What a client knows of the intercept's host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) state: HostState,
    /// Claims are to be confirmed.
    pub(super) confirms: bool,
    pub(super) scope: Option<Scope>,
    /// Entries of a scope that is not complete.
    entries: Scope,
    limits: Vec<Prefix>,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            state: HostState::Unknown,
            confirms: false,
            scope: None,
            entries: Scope::default(),
            limits: Vec::new(),
        }
    }

    /// The intercept welcomes us.
    pub(super) fn welcomed(&mut self, features: Features) {
        self.confirms = features.has(Features::CONFIRMATION);
        self.state = if features.has(Features::HOST_STATE) { HostState::Awaited } else { HostState::Unknown };
    }

    pub(super) fn add(&mut self, entry: Entry) -> Result<(), FrameError> {
        if self.entries.targets.len() + self.limits.len() >= MAX_ENTRIES {
            return Err(FrameError::Body(Kind::Scope));
        }
        match entry {
            Entry::Target(target) => self.entries.targets.push(target),
            Entry::Client(prefix) => self.limits.push(prefix),
        }
        Ok(())
    }

    pub(super) fn take(&mut self, report: Report) {
        let limits = std::mem::take(&mut self.limits);
        let entries = std::mem::take(&mut self.entries);
        if report.with_scope {
            self.scope = Some(Scope { clients: report.limited.then_some(limits), ..entries });
        }
        self.state = report.open.map_or(HostState::Closed, HostState::Open);
    }
}
