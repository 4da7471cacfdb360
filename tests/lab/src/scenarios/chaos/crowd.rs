//! Strangers on the clients' side and on the tunnel's network.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::network::rule;
use super::{Fault, Heal, over};
use crate::chain::Chain;
use crate::forge::{Forger, SYN};
use crate::load::content;
use crate::network::{Family, PORT, Role};
use crate::scenarios::Context;

/// Sources of a flood in an ordinary run; five times as many in a long one.
const SOURCES: u32 = 20_000;
/// Connections that say nonsense on the tunnel's port.
const BABBLERS: usize = 50;
/// Ports of a scan.
const PORTS: u16 = 2_000;
/// A port that nobody listens on.
const CLOSED: u16 = 9;
/// Ports that the production server listens on.
const SERVICES: usize = 2;
/// How long a scan waits for an answer of a port that gives none.
const NO_ANSWER: Duration = Duration::from_millis(20);

pub(super) fn faults() -> Vec<Fault> {
    vec![
        Fault::new("garbage-on-the-tunnel", babble),
        Fault {
            setup: |_, setup| Ok(setup.tcpcopy("-c 10.99.0.0/16")),
            lasts: 1_000,
            // What was begun for the flood's sources stays until the target has not answered for long enough.
            ..Fault::new("syn-flood", flood)
        },
        Fault { lasts: 100, ..Fault::new("port-scan", scan) },
        Fault { lasts: 1_000, ..Fault::new("conntrack-full", fill_conntrack) },
    ]
}

/// Connections to the tunnel's port say nonsense, all kinds of it, and stay as long as they can.
fn babble(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let address = SocketAddr::new(chain.network().host(Role::Assistant, 0)?.back(Family::V4), 36524);
    let online = chain.network().host(Role::Online, 0)?.namespace();
    let babblers = online.enter(|| {
        let babble = |n: usize| -> Result<TcpStream> {
            let mut stream = TcpStream::connect(address)?;
            let nonsense = content().get(n * 1_000..).unwrap_or_default();
            stream.write_all(nonsense.get(..n * 20).unwrap_or_default())?;
            Ok(stream)
        };
        (0..BABBLERS).map(babble).collect::<Result<Vec<_>>>()
    })??;
    Ok(Box::new(move |_| {
        drop(babblers);
        Ok(())
    }))
}

/// SYNs to the production service from addresses of all the world, one each.
fn flood(chain: &mut Chain, context: &Context) -> Result<Heal> {
    let IpAddr::V4(service) = chain.network().service(0, Family::V4)?.ip() else { anyhow::bail!("no IPv4") };
    let client = chain.network().host(Role::Client, 0)?.namespace();
    let sources = if context.long { 5 * SOURCES } else { SOURCES };
    client.enter(|| -> Result<()> {
        let forger = Forger::open()?;
        for n in 0..sources {
            let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(11, 0, 0, 0)) + n * 7);
            forger.send(SocketAddrV4::new(source, 40_000), SocketAddrV4::new(service, PORT), SYN)?;
        }
        Ok(())
    })??;
    Ok(over())
}

/// A client tries many ports of the production server. The assistant's own answers would count as leaks.
fn scan(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let client = chain.network().host(Role::Client, 0)?.namespace();
    let host = chain.network().host(Role::Online, 0)?.front(Family::V4);
    let open = client.enter(|| {
        let opens = |port: &u16| TcpStream::connect_timeout(&SocketAddr::new(host, *port), NO_ANSWER).is_ok();
        (1..=PORTS).filter(opens).count()
    })?;
    ensure!(open <= SERVICES, "{open} ports are open on {host}");
    Ok(over())
}

/// The online host tracks connections, and a flood takes all the room there is for them. What is replayed takes none.
fn fill_conntrack(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let heal = rule(chain, Role::Online, "input", "ct state new counter")?;
    let SocketAddr::V4(closed) =
        SocketAddr::new(chain.network().host(Role::Online, 0)?.front(Family::V4), CLOSED)
    else {
        anyhow::bail!("no IPv4")
    };
    let online = chain.network().host(Role::Online, 0)?.namespace();
    let read = |name: &str| online.number(&format!("netfilter/nf_conntrack_{name}"));
    let most = read("max")?;
    let client = chain.network().host(Role::Client, 0)?.namespace();
    client.enter(|| -> Result<()> {
        let forger = Forger::open()?;
        for n in 0..most + most / 10 {
            let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(11, 0, 0, 0)) + n);
            forger.send(SocketAddrV4::new(source, 40_000), closed, SYN)?;
        }
        Ok(())
    })??;
    let count = read("count")?;
    ensure!(count >= most / 100 * 99, "{count} connections are tracked, {most} may be");
    Ok(heal)
}
