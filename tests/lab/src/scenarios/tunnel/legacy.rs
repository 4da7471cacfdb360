//! Who speaks the C tools' protocol, and may not, or not so.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, bail};

use super::strangers::{on_the_network, say};
use super::{Attack, Refused, intercept};
use crate::chain::Chain;
use crate::forge::{ACK, Forger};
use crate::mimic::{Mimic, OPENING};
use crate::network::{Family, Role};
use crate::relay::Relay;

/// The second online host may be a C tcpcopy's.
const LISTED: &[&str] = &["--legacy", "10.91.2.4"];
/// Connections, or claims, of each kind.
const COUNT: usize = 200;
/// A service that the intercept does not know, on an address that nobody has.
const FOREIGN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 91, 2, 99), 80);
/// Forged responses to who does not read, many more than are kept for him; so many at a time.
const RESPONSES: usize = 150_000;
const BURST: usize = 500;
const PAUSE: Duration = Duration::from_millis(5);

pub(super) fn attacks() -> Vec<Attack> {
    let listed = |name, strike| Attack { intercept: LISTED, ..Attack::new(name, strike) };
    vec![
        Attack::new("legacy-not-listed", not_listed),
        listed("legacy-garbage", garbage),
        listed("legacy-foreign-target", foreign_target),
        listed("legacy-slow-reader", slow_reader),
    ]
}

/// A C tcpcopy on a host that is not listed.
fn not_listed(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let tunnel = intercept(chain)?;
    let answers =
        on_the_network(chain, || (0..COUNT).map(|_| say(tunnel, &OPENING)).collect::<Result<Vec<_>>>())?;
    if answers.iter().any(|bytes| *bytes > 0) {
        bail!("it is answered: {answers:?}");
    }
    Ok(Refused::exactly(&["turned_away.foreign"], COUNT as u64, "the peer is a C tcpcopy"))
}

/// A listed host speaks other protocols, another version, or says too little.
fn garbage(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let tunnel = intercept(chain)?;
    let other_version = [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0];
    let words: [&[u8]; 4] = [b"GET / HTTP/1.1\r\n\r\n", b"tcpk\x00\x01abcdefgh", &[0xff; 64], &other_version];
    let host = chain.network().host(Role::Online, 1)?.namespace();
    host.enter(|| -> Result<()> {
        words.iter().cycle().take(COUNT).try_for_each(|word| say(tunnel, word).map(drop))?;
        // It is hung up on when its time is over.
        say(tunnel, &OPENING[..13]).map(drop)
    })??;
    let counters = &["turned_away.foreign", "turned_away.late"];
    Ok(Refused::exactly(counters, COUNT as u64 + 1, "which is in `legacy`"))
}

/// A listed one claims the flows of a service that is none of the intercept's targets.
fn foreign_target(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let mut mimic = Mimic::connect(chain.network().host(Role::Online, 1)?.namespace(), intercept(chain)?, 2)?;
    mimic.claim(0, &clients(), FOREIGN)?;
    let SocketAddr::V4(target) = chain.network().target(0, Family::V4)? else { bail!("no IPv4") };
    // These are all right.
    mimic.claim(1, &clients(), target)?;
    mimic.await_headers(1, &clients(), |_| answer(chain, target, COUNT))?;
    Ok(Refused::exactly(&["claims_foreign"], COUNT as u64, "claims flows that it may not have"))
}

/// A listed one does not read what it is told.
fn slow_reader(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let mut mimic = Mimic::connect(chain.network().host(Role::Online, 1)?.namespace(), intercept(chain)?, 1)?;
    let SocketAddr::V4(target) = chain.network().target(0, Family::V4)? else { bail!("no IPv4") };
    mimic.claim(0, &clients(), target)?;
    answer(chain, target, RESPONSES)?;
    Ok(Refused::at_least(&["legacy.headers_dropped"], 1, "reads its tunnel too slowly"))
}

/// Replayed clients, of which there are none.
fn clients() -> Vec<SocketAddrV4> {
    (0..COUNT)
        .map(|n| SocketAddrV4::new(Ipv4Addr::new(10, 99, 1, 1), 10_000 + u16::try_from(n).unwrap_or(0)))
        .collect()
}

/// The target sends them so many packets.
fn answer(chain: &Chain, target: SocketAddrV4, count: usize) -> Result<()> {
    chain.network().host(Role::Target, 0)?.namespace().enter(|| -> Result<()> {
        let forger = Forger::open()?;
        for (n, client) in clients().iter().cycle().take(count).enumerate() {
            forger.send(target, *client, ACK)?;
            if n % BURST == BURST - 1 {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    })?
}
