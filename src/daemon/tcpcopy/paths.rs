//! The longest packets that the ways to the targets take, where that is less than the setting `mtu`.

use std::net::IpAddr;

use crate::config::tcpcopy::Settings;
use crate::sys::route;

/// What this host knows of the ways to the targets.
#[derive(Debug, Default)]
pub(super) struct Paths {
    mtus: Vec<(IpAddr, u16)>,
}

impl Paths {
    /// Looks at the routes again; true if they take other packets than before.
    pub(super) fn look(&mut self, settings: &Settings) -> bool {
        let mtus = read(settings);
        let changed = mtus != self.mtus;
        for (target, mtu) in mtus.iter().filter(|path| !self.mtus.contains(path)) {
            tracing::info!(%target, mtu, "packets to {target} are {mtu} bytes long at most, by its route");
        }
        self.mtus = mtus;
        changed
    }

    /// Each target to which packets are shorter than the setting says.
    pub(super) fn mtus(&self) -> Vec<(IpAddr, u16)> {
        self.mtus.clone()
    }
}

fn read(settings: &Settings) -> Vec<(IpAddr, u16)> {
    let mut mtus: Vec<(IpAddr, u16)> = Vec::new();
    for target in settings.mappings.iter().map(|mapping| mapping.target.ip()) {
        // Without a route nothing is sent.
        let known = route::mtu(target, settings.mark).unwrap_or_default();
        let known = known.and_then(|mtu| u16::try_from(mtu).ok()).filter(|mtu| *mtu < settings.mtu);
        if let Some(mtu) = known
            && mtus.iter().all(|(address, _)| *address != target)
        {
            mtus.push((target, mtu.max(least(target))));
        }
    }
    mtus
}

/// What every way takes (RFC 791 for IPv4 hosts; RFC 8200).
fn least(target: IpAddr) -> u16 {
    if target.is_ipv4() { 576 } else { 1280 }
}
