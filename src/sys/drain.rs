//! A device that swallows what is routed into it, and that outlives the process.
//!
//! A `dummy` where the kernel has one, else an `ifb`, else a persistent `tun` that is not open. Each frees the packets
//! it is given. It is known by its name and an alias; a device with the name and without the alias is not touched.

use std::io;

use super::rtnetlink::{Link, Rtnetlink, Which};
use super::sink::SinkKind;
use super::tun;

/// The longest packet that any route may lead into it: IPv6 has none longer, except jumbograms.
const MTU: u32 = 65_535;

/// The device is there, up, and long packets fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Its index.
    pub index: u32,
    /// Whether it was missing, down or altered until now.
    pub restored: bool,
}

impl Drain {
    /// Makes the device, or mends it. `AlreadyExists` if there is another device of the name.
    pub fn ensure(name: &str, alias: &str) -> io::Result<Self> {
        let mut rtnetlink = Rtnetlink::open()?;
        if let Some(link) = own(&mut rtnetlink, name, alias)? {
            let sound = link.is_up() && link.mtu == MTU;
            if !sound {
                rtnetlink.set_mtu(name, MTU)?;
                rtnetlink.prepare(name, alias)?;
            }
            return Ok(Self { index: link.index, restored: !sound });
        }
        make(&mut rtnetlink, name, alias)?;
        rtnetlink.set_mtu(name, MTU)?;
        let link = own(&mut rtnetlink, name, alias)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { index: link.index, restored: true })
    }

    /// Removes the device of this name and alias; false if there is none.
    pub fn remove(name: &str, alias: &str) -> io::Result<bool> {
        let mut rtnetlink = Rtnetlink::open()?;
        match rtnetlink.link(Which::Name(name))? {
            Some(link) if link.alias.as_deref() == Some(alias) => rtnetlink.delete(link.index).map(|()| true),
            Some(_) | None => Ok(false),
        }
    }
}

fn own(rtnetlink: &mut Rtnetlink, name: &str, alias: &str) -> io::Result<Option<Link>> {
    let link = rtnetlink.link(Which::Name(name))?;
    match &link {
        Some(link) if link.alias.as_deref() != Some(alias) => Err(io::ErrorKind::AlreadyExists.into()),
        Some(_) | None => Ok(link),
    }
}

fn make(rtnetlink: &mut Rtnetlink, name: &str, alias: &str) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for kind in SinkKind::ALL {
        let made = match kind {
            SinkKind::Dummy | SinkKind::Ifb => rtnetlink.create(name, kind.name(), alias),
            SinkKind::Tun => tun::create_persistent(name).and_then(|()| rtnetlink.prepare(name, alias)),
        };
        match made {
            Ok(()) => return Ok(()),
            Err(error) if super::sink::is_absent(&error) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}
