//! Strangers on the clients' side and on the tunnel's network.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Fault, Heal, over};
use crate::chain::Chain;
use crate::load::content;
use crate::network::{Family, PORT, Role};
use crate::scenarios::Context;

/// Sources of a flood in an ordinary run; five times as many in a long one.
const SOURCES: u32 = 20_000;
/// Connections that say nonsense on the tunnel's port.
const BABBLERS: usize = 50;
/// Ports of a scan.
const PORTS: u16 = 2_000;
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
    let sent = client.enter(|| -> Result<u32> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        socket.set_header_included_v4(true)?;
        let to = SockAddr::from(SocketAddr::new(service.into(), 0));
        for n in 0..sources {
            let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(11, 0, 0, 0)) + n * 7);
            socket.send_to(&syn(source, service), &to).context("cannot send a SYN")?;
        }
        Ok(sources)
    })??;
    ensure!(sent == sources, "{sent} SYNs sent");
    Ok(over())
}

/// A SYN with right checksums.
fn syn(source: Ipv4Addr, service: Ipv4Addr) -> Vec<u8> {
    let [p0, p1] = PORT.to_be_bytes();
    let mut tcp = vec![0x9c, 0x40, p0, p1, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    let pseudo = [&source.octets()[..], &service.octets(), &[0, 6, 0, 20], &tcp].concat();
    let [s0, s1] = checksum(&pseudo);
    tcp.splice(16..18, [s0, s1]);
    // The kernel fills the total length and the checksum in.
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    packet.extend(source.octets());
    packet.extend(service.octets());
    packet.extend(tcp);
    packet
}

/// The checksum of RFC 1071 over an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let [.., high, low] = folded.to_be_bytes();
    [!high, !low]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_has_a_right_checksum() {
        let packet = syn(Ipv4Addr::new(11, 2, 3, 4), Ipv4Addr::new(10, 91, 1, 1));
        let (ip, tcp) = packet.split_at(20);
        let pseudo = [&ip[12..], &[0, 6, 0, 20], tcp].concat();
        assert_eq!(checksum(&pseudo), [0, 0]);
    }
}
