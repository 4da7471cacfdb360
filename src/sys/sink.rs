//! The device that duplicates are sent into, and that lets nothing out.
//!
//! A `dummy` where the kernel has one, else an `ifb`, else a `tun` that nobody reads. The packets that rules leave to
//! it end there: a dummy frees them; an ifb frees all that tc(8) did not redirect to it, and nothing of a duplicate
//! says that it was; a tun holds one packet and frees the others, whoever sends is never blocked.
//!
//! The device has no address in any family, so that it sends nothing of its own (router solicitations, multicast
//! reports, duplicate address detection) and no packet leaves with its address. One exception: a tun on a host that
//! forwards IPv6 reports a multicast group, a few times and into itself. An IPv6 `dup` needs a route to its
//! gateway on the device, or silently makes no copies: the sink has one for all link-local addresses. An IPv4 `dup` takes
//! any gateway to be on the link.
//!
//! Ours are recognised by an alias. A device with the name and without the alias is not touched. Two processes of one
//! network namespace cannot have one sink: the owner holds an empty nftables table of the sink's name with the flag
//! `owner`, which the kernel removes however it ends, so that a device without such a table is a dead process's, and is made
//! anew. Only who has CAP_NET_ADMIN can make that table: other users of the host cannot keep a sink from being made.

use super::capabilities::{Capability, has_capability};
use super::nfnl::OwnedTable;
use super::rtnetlink::{Rtnetlink, Which};
use super::tun;
use std::fs::File;
use std::io;
use std::net::Ipv6Addr;

/// `IFLA_IFALIAS` of every sink.
const ALIAS: &str = "tcpcopy sink";
/// `IFNAMSIZ` without the terminator.
const NAME_MAX: usize = 15;

/// The link-local prefix, which every link has to itself: routes of other links are not touched by ours.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
const LINK_LOCAL_LEN: u8 = 64;

/// What a sink is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkKind {
    /// A device that frees what it is given.
    Dummy,
    /// An intermediate functional block, which frees what was not redirected to it.
    Ifb,
    /// A tun device that is not read.
    Tun,
}

impl SinkKind {
    /// All kinds, best first.
    pub const ALL: [Self; 3] = [Self::Dummy, Self::Ifb, Self::Tun];

    /// The kernel's name for the kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dummy => "dummy",
            Self::Ifb => "ifb",
            Self::Tun => "tun",
        }
    }
}

/// A sink device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Not a name for a device.
    #[error("`{name}` cannot be a network device's name: 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// Another process has a sink of this name.
    #[error("sink device `{name}` belongs to another running process: stop it, or choose another name")]
    InUse {
        /// The name asked for.
        name: String,
    },
    /// There is a device of this name that is not a sink.
    #[error("network device `{name}` exists and is not ours (no alias \"{ALIAS}\"): choose another name")]
    Foreign {
        /// The name asked for.
        name: String,
    },
    /// Not permitted.
    #[error("no permission to make sink device `{name}`: run as root or with CAP_NET_ADMIN")]
    Permission {
        /// The name asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has none of the kinds.
    #[error(
        "no sink device can be made: this kernel has neither dummy, ifb nor tun; `modprobe dummy`, or a kernel with \
         CONFIG_DUMMY"
    )]
    Unsupported {
        /// What the kernel said to the last kind tried.
        source: io::Error,
    },
    /// A request failed.
    #[error("{step} sink device `{name}` failed")]
    Request {
        /// What was being done.
        step: &'static str,
        /// The name asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A sink device that is up; removed when dropped.
#[derive(Debug)]
pub struct Sink {
    name: String,
    index: u32,
    kind: SinkKind,
    ipv6: Result<(), io::Error>,
    rtnetlink: Rtnetlink,
    /// The device itself, for a tun.
    _tun: Option<File>,
    /// Says that we live. Goes after the device.
    _claim: OwnedTable,
}

impl Sink {
    /// Makes the best kind of sink that the kernel has, in the calling thread's network namespace.
    ///
    /// The device of a process that died is replaced, and then has another index.
    pub fn create(name: &str) -> Result<Self, SinkError> {
        Self::create_of(name, &SinkKind::ALL)
    }

    /// Makes a sink of the first of `kinds` that the kernel has.
    pub fn create_of(name: &str, kinds: &[SinkKind]) -> Result<Self, SinkError> {
        check_name(name)?;
        let failed = |step| move |source| SinkError::request(step, name, source);
        let claim = claim(name)?;
        let mut rtnetlink = Rtnetlink::open().map_err(failed("asking for"))?;
        remove_leftover(&mut rtnetlink, name)?;
        let (kind, tun) = make(&mut rtnetlink, name, kinds)?;
        let link = rtnetlink
            .link(Which::Name(name))
            .and_then(|link| link.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
            .map_err(failed("finding"))?;
        let mut sink = Self {
            name: name.to_owned(),
            index: link.index,
            kind,
            ipv6: Ok(()),
            rtnetlink,
            _tun: tun,
            _claim: claim,
        };
        sink.ipv6 = sink.rtnetlink.add_route(sink.index, LINK_LOCAL, LINK_LOCAL_LEN);
        Ok(sink)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's index, for rules.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What the device is made of.
    pub fn kind(&self) -> SinkKind {
        self.kind
    }

    /// Why IPv6 cannot be duplicated into this sink, if so: mostly a host with IPv6 switched off.
    pub fn ipv6(&self) -> Result<(), &io::Error> {
        self.ipv6.as_ref().copied()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Somebody may have deleted the device, and made another that has its index by now.
        let link = self.rtnetlink.link(Which::Index(self.index));
        if link.is_ok_and(|link| link.is_some_and(|link| link.alias.as_deref() == Some(ALIAS))) {
            // Nobody is left to tell of a failure, and the next start removes the device.
            let _ = self.rtnetlink.delete(self.index);
        }
    }
}

impl SinkError {
    fn request(step: &'static str, name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        if source.kind() == io::ErrorKind::PermissionDenied {
            Self::Permission { name, source }
        } else {
            Self::Request { step, name, source }
        }
    }
}

/// Stricter than the kernel, so that a name needs quoting nowhere: not in rules, paths nor shells.
fn check_name(name: &str) -> Result<(), SinkError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    if starts_well && name.len() <= NAME_MAX && name.bytes().all(good) && name != "all" && name != "default" {
        Ok(())
    } else {
        Err(SinkError::Name { name: name.to_owned() })
    }
}

fn claim(name: &str) -> Result<OwnedTable, SinkError> {
    let table = format!("tcpcopy-sink-{name}");
    OwnedTable::create(&table).map_err(|source| {
        // The kernel says the same of a table that is another process's and of a process that may make none.
        let is_permitted = has_capability(Capability::NetAdmin).unwrap_or(true);
        if source.raw_os_error() == Some(libc::EPERM) && is_permitted {
            SinkError::InUse { name: name.to_owned() }
        } else {
            SinkError::request("claiming", name, source)
        }
    })
}

fn remove_leftover(rtnetlink: &mut Rtnetlink, name: &str) -> Result<(), SinkError> {
    let failed = |step| move |source| SinkError::request(step, name, source);
    match rtnetlink.link(Which::Name(name)).map_err(failed("looking for"))? {
        None => Ok(()),
        Some(link) if link.alias.as_deref() == Some(ALIAS) => {
            rtnetlink.delete(link.index).map_err(failed("removing the old"))
        }
        Some(_) => Err(SinkError::Foreign { name: name.to_owned() }),
    }
}

fn make(
    rtnetlink: &mut Rtnetlink,
    name: &str,
    kinds: &[SinkKind],
) -> Result<(SinkKind, Option<File>), SinkError> {
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for kind in kinds {
        let made = match kind {
            SinkKind::Dummy | SinkKind::Ifb => rtnetlink.create(name, kind.name(), ALIAS).map(|()| None),
            SinkKind::Tun => make_tun(rtnetlink, name).map(Some),
        };
        match made {
            Ok(tun) => return Ok((*kind, tun)),
            Err(error) if is_absent(&error) => last = error,
            Err(error) => return Err(SinkError::request("making", name, error)),
        }
    }
    Err(SinkError::Unsupported { source: last })
}

/// No such kind of link; no tun driver, or its device node is missing.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

fn make_tun(rtnetlink: &mut Rtnetlink, name: &str) -> io::Result<File> {
    let file = tun::create(name)?;
    rtnetlink.set_queue_length(name, 1)?;
    rtnetlink.prepare(name, ALIAS)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_need_no_quoting_are_good() {
        for name in ["tcpcopy", "t", "tcpcopy-sink.1", "123456789012345"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "1234567890123456", "a b", "a/b", "a:b", "ü", "-a", "all", "a\"", "a\0"]
        {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
