//! Peers that are let in, and take all they can get: their fair share is what they get.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Attack, COST_OF_GUESTS, Refused, intercept};
use crate::chain::Chain;
use crate::mimic::Mimic;
use crate::network::{Family, Role};
use crate::relay::Relay;

/// The second online host may be a C tcpcopy's. A small table is full soon.
const SMALL_TABLE: &[&str] = &["--legacy", "10.91.2.4", "--max-flows", "20000"];
/// Flows that it claims, so many at a time, again and again for so long.
const CLAIMS: u32 = 300_000;
const BATCH: u32 = 1_000;
const TIME: Duration = Duration::from_secs(10);
/// Log lines of all workers in a minute, at most.
const LINES: u64 = 8;

pub(super) fn attacks() -> Vec<Attack> {
    let flood = Attack::new("claims-flood", claims);
    vec![Attack { intercept: SMALL_TABLE, cost: COST_OF_GUESTS, ..flood }]
}

/// It claims many more flows than there may be, over several connections, while others connect.
fn claims(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let host = chain.network().host(Role::Online, 1)?.namespace();
    let mut mimic = Mimic::connect(host, intercept(chain)?, 4)?;
    let SocketAddr::V4(target) = chain.network().target(0, Family::V4)? else { bail!("no IPv4") };
    let start = Instant::now();
    for first in (0..CLAIMS).step_by(1_000).cycle().take_while(|_| start.elapsed() < TIME) {
        let clients: Vec<_> = (first..first + BATCH).map(client).collect();
        let connection = usize::try_from(first / BATCH % 4)?;
        mimic.claim(connection, &clients, target)?;
    }
    Ok(Refused {
        lines: LINES,
        ..Refused::at_least(&["displaced"], 100, "its idlest flows make room for other tcpcopys")
    })
}

/// A client that there is not.
fn client(number: u32) -> SocketAddrV4 {
    let address = Ipv4Addr::from_bits(u32::from_be_bytes([10, 99, 8, 0]) + number / 50_000);
    SocketAddrV4::new(address, 10_000 + u16::try_from(number % 50_000).unwrap_or(0))
}
