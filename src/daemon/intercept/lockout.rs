//! Keeps rules from cutting off the operator who puts them in force.
//!
//! On the target itself, with `clients`, nothing but the tunnel and `pass` leaves for those addresses. A shell from one of
//! them would hang as soon as the rules are in force, so that nobody could take them away again. Rules that would cut off
//! an established connection are therefore refused. Replayed connections, which are to the targets' services, and the
//! tunnel are none of those.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::daemon::exit::{Code, Failure};
use crate::netfilter::{self, AssistantSpec, Family, Place};

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// Refuses the first rules of a host if they would cut off a connection.
///
/// Where there is a table already, the host is closed, and what is still established are the ends of replayed connections.
pub(super) fn refuse_first_lockout(spec: &AssistantSpec) -> Result<(), Failure> {
    if netfilter::table_families(&spec.table)?.is_empty() { refuse_lockout(spec) } else { Ok(()) }
}

/// Refuses rules that would cut off a connection of this host.
pub(super) fn refuse_lockout(spec: &AssistantSpec) -> Result<(), Failure> {
    if !Family::ALL.into_iter().any(|family| is_closed_to_clients(spec, family)) {
        return Ok(());
    }
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(std::fs::read_to_string);
    let connections: Vec<Connection> =
        tables.iter().flatten().flat_map(|table| table.lines().filter_map(established)).collect();
    match cut_off(spec, &connections) {
        None => Ok(()),
        Some(connection) => Err(Failure::new(Code::Config, refusal(connection))),
    }
}

/// The two ends of an established connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    local: SocketAddr,
    peer: SocketAddr,
}

fn is_closed_to_clients(spec: &AssistantSpec, family: Family) -> bool {
    spec.place == Place::Target && spec.is_closed(family)
}

/// The first connection that the rules would cut off.
fn cut_off(spec: &AssistantSpec, connections: &[Connection]) -> Option<Connection> {
    let own: HashSet<IpAddr> = connections.iter().map(|connection| connection.local.ip()).collect();
    connections.iter().copied().find(|Connection { local, peer }| {
        is_closed_to_clients(spec, Family::of(peer.ip()))
            && spec.clients.iter().any(|prefix| prefix.contains(peer.ip()))
            && !peer.ip().is_loopback()
            && !own.contains(&peer.ip())
            && !spec.targets.contains(local)
            && local.port() != spec.tunnel_port
            && !spec
                .pass
                .iter()
                .any(|pass| pass.covers(TCP, (local.ip(), local.port()), (peer.ip(), peer.port())))
    })
}

fn refusal(Connection { local, peer }: Connection) -> String {
    // The lower port is the service's.
    let entry = if local.port() <= peer.port() {
        format!("tcp sport {}", local.port())
    } else {
        format!("tcp dport {}", peer.port())
    };
    format!(
        "the rules would cut off the connection of {peer} to port {} of this host, because the peer's address is in \
         `clients`: add pass = [\"{entry}\"], or take the address out of `clients`",
        local.port()
    )
}

/// The connection in a line of `/proc/net/tcp` or `tcp6`, if it is established.
fn established(line: &str) -> Option<Connection> {
    const ESTABLISHED: &str = "01";
    let mut words = line.split_whitespace().skip(1);
    let (local, peer) = (address(words.next()?)?, address(words.next()?)?);
    (words.next() == Some(ESTABLISHED)).then_some(Connection { local, peer })
}

/// An address as those files have it: words of 32 bits in this machine's byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = words.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match words.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, bytes) in octets.as_chunks_mut().0.iter_mut().enumerate() {
                *bytes = word(at)?;
            }
            // A socket of both families shows IPv4 addresses in this form.
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::{TableName, Unclaimed};

    fn spec() -> AssistantSpec {
        AssistantSpec {
            table: TableName::intercept(),
            targets: vec!["10.0.0.1:80".parse().expect("address"), "[fd00::1]:80".parse().expect("address")],
            clients: vec!["10.99.0.0/24".parse().expect("prefix"), "fd00:99::/64".parse().expect("prefix")],
            pass: vec!["tcp sport 22".parse().expect("pass")],
            tunnel_port: 36524,
            queues: None,
            unclaimed: Unclaimed::Drop,
            accept_mark: 1,
            place: Place::Target,
        }
    }

    fn connection(local: &str, peer: &str) -> Connection {
        Connection { local: local.parse().expect(local), peer: peer.parse().expect(peer) }
    }

    /// From a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_tables_are_read() {
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(established(header), None);
        let line = |local: &str, peer: &str, state: &str| {
            format!("   3: {local} {peer} {state} 00000000:00000000 00:00")
        };
        let v4 = ("0100000A:0016", "0500630A:9C40");
        assert_eq!(established(&line(v4.0, v4.1, "01")), Some(connection("10.0.0.1:22", "10.99.0.5:40000")));
        assert_eq!(established(&line(v4.0, v4.1, "0A")), None, "listening");
        let v6 = ("000000FD000000000000000001000000:0016", "990000FD000000000000000005000000:9C40");
        assert_eq!(
            established(&line(v6.0, v6.1, "01")),
            Some(connection("[fd00::1]:22", "[fd00:99::5]:40000"))
        );
        let mapped = ("0000000000000000FFFF00000100000A:0016", "0000000000000000FFFF00000500630A:9C40");
        assert_eq!(
            established(&line(mapped.0, mapped.1, "01")),
            Some(connection("10.0.0.1:22", "10.99.0.5:40000"))
        );
        for odd in ["", "1:", "1: x y 01", "1: 0100000A:0016 01", "1: 0100000A 0500630A 01"] {
            assert_eq!(established(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_would_be_cut_off_is_named_with_the_entry_that_keeps_it() {
        for (local, peer, entry) in [
            ("10.0.0.1:2222", "10.99.0.5:40000", Some("tcp sport 2222")),
            ("[fd00::1]:2222", "[fd00:99::5]:40000", Some("tcp sport 2222")),
            ("10.0.0.1:45000", "10.99.0.5:5432", Some("tcp dport 5432")),
            ("10.0.0.1:22", "10.99.0.5:40000", None),
            ("10.0.0.1:80", "10.99.0.5:40000", None),
            ("10.0.0.2:80", "10.99.0.5:40000", Some("tcp sport 80")),
            ("10.0.0.1:36524", "10.99.0.5:40000", None),
            ("10.0.0.1:2222", "10.98.0.5:40000", None),
        ] {
            let found = cut_off(&spec(), &[connection(local, peer)]).map(refusal);
            assert_eq!(found.is_some(), entry.is_some(), "{local} {peer}: {found:?}");
            if let (Some(found), Some(entry)) = (found, entry) {
                assert!(found.contains(peer) && found.contains(&format!("pass = [\"{entry}\"]")), "{found}");
            }
        }
        let own = [
            connection("10.99.0.5:2222", "10.99.0.6:40000"),
            connection("10.99.0.6:40000", "10.99.0.5:2222"),
        ];
        assert_eq!(cut_off(&spec(), &own), None, "both ends are on this host");
    }

    #[test]
    fn hosts_that_are_open_to_clients_cut_nothing_off() {
        let shell = [connection("10.0.0.1:2222", "10.99.0.5:40000")];
        let everybody = vec!["0.0.0.0/0".parse().expect("prefix"), "::/0".parse().expect("prefix")];
        for open in [
            AssistantSpec { clients: Vec::new(), ..spec() },
            AssistantSpec { clients: everybody, ..spec() },
            AssistantSpec { unclaimed: Unclaimed::Accept, ..spec() },
            AssistantSpec { place: Place::Assistant, ..spec() },
        ] {
            assert_eq!(cut_off(&open, &shell), None, "{open:?}");
        }
    }
}
