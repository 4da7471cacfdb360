//! Who has no key.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Socket, Type};

use super::{Attack, PORT, Refused, intercept, key_id};
use crate::chain::Chain;
use crate::load::content;
use crate::network::Role;
use crate::relay::Relay;
use crate::wait;

/// How long a stranger may wait to be turned away: the deadline is five seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a tunnel may take to be there again: delays between attempts grow to some seconds.
const BACK: Duration = Duration::from_secs(10);
/// Ports of a scan, and how long it waits for an answer.
const PORTS: u16 = 2_000;
const NO_ANSWER: Duration = Duration::from_millis(20);
/// Connections to the tunnel's port that end at once.
const KNOCKS: usize = 2_000;
/// Connections with a wrong key, of each kind.
const KEYS: usize = 250;
/// Times that a recording is played.
const PLAYS: usize = 50;
/// Connections that say nothing, and the addresses that they come from.
const HALF_OPEN: usize = 10_000;
const ADDRESSES: usize = 10;
/// Connections that speak slowly: a byte each time.
const SLOW: usize = 200;
const BYTE: Duration = Duration::from_millis(200);
/// Rounds of nonsense.
const ROUNDS: usize = 100;
/// The first bytes of a tunnel with a key: its magic and version.
const HEAD: &[u8] = b"tcpk\x00\x01";
/// Bytes of an opening, and of what may answer it.
const OPENING: usize = 58;
const ANSWER: usize = 54;

const TURNED_AWAY: &str = "a connection was turned away";

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("port-scan", scan),
        Attack::new("wrong-key", wrong_key),
        Attack { relayed: true, ..Attack::new("recording", recording) },
        Attack::new("half-open", half_open),
        Attack::new("garbage", garbage),
        Attack::new("slow-loris", slow_loris),
    ]
}

/// Does something on a host of the target's network.
pub(super) fn on_the_network<T: Send>(chain: &Chain, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    chain.network().host(Role::Target, 0)?.namespace().enter(work)?
}

/// Ports are tried, and the one that is open again and again.
fn scan(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let tunnel = intercept(chain)?;
    let open = on_the_network(chain, || {
        let opens =
            |port: &u16| TcpStream::connect_timeout(&SocketAddr::new(tunnel.ip(), *port), NO_ANSWER).is_ok();
        let open: Vec<u16> = (1..=PORTS).chain([PORT]).filter(opens).collect();
        for _ in 0..KNOCKS {
            TcpStream::connect(tunnel)?;
        }
        Ok(open)
    })?;
    ensure!(open == [PORT], "ports {open:?} are open");
    Ok(Refused::exactly(&["turned_away.gone"], KNOCKS as u64 + 1, TURNED_AWAY))
}

/// Openings of keys that are not known here, and of the one that is, as seen on the network, by who does not have it.
fn wrong_key(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let (tunnel, known) = (intercept(chain)?, key_id(chain)?);
    let answers = on_the_network(chain, || {
        let opening = |n: usize, id: &[u8]| {
            let mut opening = [HEAD, id].concat();
            opening.extend(content().iter().skip(n * 61).take(OPENING - opening.len()));
            opening
        };
        (0..KEYS)
            .flat_map(|n| [opening(n, b"none"), opening(n, &known)])
            .map(|opening| say(tunnel, &opening))
            .collect::<Result<Vec<_>>>()
    })?;
    // A refusal in the clear.
    ensure!(answers.iter().all(|&bytes| bytes < ANSWER), "answers of {answers:?} bytes");
    Ok(Refused::exactly(&["turned_away.wrong_key"], 2 * KEYS as u64, TURNED_AWAY))
}

/// What the tcpcopy said from its first byte on is said again, by somebody else.
fn recording(chain: &mut Chain, relay: Option<&Relay>) -> Result<Refused> {
    let tunnel = intercept(chain)?;
    let recordings = relay.context("a recorder")?.recordings();
    let claimed = recordings.iter().all(|bytes| bytes.len() > 10 * OPENING);
    ensure!(!recordings.is_empty() && claimed, "no claims were recorded");
    let answers = on_the_network(chain, || {
        let plays = recordings.iter().cycle().take(PLAYS);
        plays.map(|bytes| say(tunnel, bytes)).collect::<Result<Vec<_>>>()
    })?;
    // The answer to the opening is all that comes.
    ensure!(answers.iter().all(|&bytes| bytes <= ANSWER), "answers of {answers:?} bytes");
    Ok(Refused::exactly(&["turned_away.forged"], PLAYS as u64, TURNED_AWAY))
}

/// Connections that say nothing, or only the beginning of what a tcpcopy says, from several addresses. A tunnel that is cut
/// meanwhile finds its way back among them.
fn half_open(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let tunnel = intercept(chain)?;
    let target = chain.network().host(Role::Target, 0)?.namespace();
    let addresses: Vec<Ipv4Addr> = (100_u8..).take(ADDRESSES).map(|n| Ipv4Addr::new(10, 91, 2, n)).collect();
    let change = |what: &str| {
        let lines = addresses.iter().map(|address| format!("address {what} {address}/24 dev back\n"));
        target.ip(&lines.collect::<String>())
    };
    change("add")?;
    let streams = on_the_network(chain, || {
        let open = |(n, from): (usize, &Ipv4Addr)| -> Result<TcpStream> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)
                .context("a descriptor for each connection is needed (ulimit -n)")?;
            socket.bind(&SocketAddr::new((*from).into(), 0).into())?;
            socket.connect(&tunnel.into())?;
            let mut stream = TcpStream::from(socket);
            if n % 2 == 0 {
                // It may have been turned away by now.
                let _ = stream.write_all(HEAD);
            }
            Ok(stream)
        };
        addresses.iter().cycle().take(HALF_OPEN).enumerate().map(open).collect::<Result<Vec<_>>>()
    })?;
    cut_and_await(chain)?;
    let silent = streams.into_iter().map(|mut stream| hung_up(&mut stream)).collect::<Result<Vec<_>>>()?;
    ensure!(silent.iter().all(|&bytes| bytes == 0), "a connection that says nothing got an answer");
    change("del")?;
    Ok(Refused::exactly(&["turned_away.crowded", "turned_away.late"], HALF_OPEN as u64, TURNED_AWAY))
}

/// Resets the tunnel and waits until the tcpcopy has it again.
fn cut_and_await(chain: &Chain) -> Result<()> {
    let online = chain.network().host(Role::Online, 0)?.namespace();
    let connections = || online.output("ss", &["-Htn", "state", "established", "dport", "=", "36524"]);
    let before = connections()?;
    online.output("ss", &["--kill", "--no-header", "state", "established", "dport", "=", "36524"])?;
    wait::until(BACK, "the tunnel is back among strangers", || {
        let now = connections()?;
        Ok(now != before && now.lines().count() == before.lines().count())
    })
}

/// Other protocols, lengths that lie, much more than is read.
fn garbage(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let tunnel = intercept(chain)?;
    let words: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: intercept\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[0xff; 64],
        b"tcpk\x00\x09abcdefgh",
        b"\x00\x00\x00\x13\x01tcpy\x00\x01abcdefghijkl",
        content().get(..100_000).unwrap_or_default(),
    ];
    on_the_network(chain, || {
        words.iter().cycle().take(words.len() * ROUNDS).try_for_each(|word| say(tunnel, word).map(drop))
    })?;
    let counters = &["turned_away.foreign", "turned_away.no_key", "turned_away.gone"];
    Ok(Refused::exactly(counters, (words.len() * ROUNDS) as u64, TURNED_AWAY))
}

/// Connections that say what a tcpcopy says, but take a long time over it.
fn slow_loris(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let (tunnel, known) = (intercept(chain)?, key_id(chain)?);
    let came = on_the_network(chain, || {
        let connect = |_| TcpStream::connect(tunnel);
        let mut streams = (0..SLOW).map(connect).collect::<std::io::Result<Vec<_>>>()?;
        let opening = [HEAD, &known, &[7; OPENING]].concat();
        for byte in opening.iter().take(OPENING - 1) {
            for stream in &mut streams {
                // Once it has been hung up on, it cannot.
                let _ = stream.write_all(&[*byte]);
            }
            std::thread::sleep(BYTE);
        }
        streams.iter_mut().map(hung_up).sum::<Result<usize>>()
    })?;
    ensure!(came == 0, "{came} bytes of answers");
    Ok(Refused::exactly(&["turned_away.late"], SLOW as u64, TURNED_AWAY))
}

/// Says something and waits to be hung up on; how many bytes came back.
pub(super) fn say(intercept: SocketAddr, bytes: &[u8]) -> Result<usize> {
    let mut stream = TcpStream::connect(intercept)?;
    // It may hang up before it has heard all.
    let _ = stream.write_all(bytes);
    hung_up(&mut stream)
}

fn hung_up(stream: &mut TcpStream) -> Result<usize> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; 1024];
    let mut came = 0;
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return Ok(came),
            Ok(n) => came += n,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(came),
            Err(error) => return Err(error).context("a stranger is not hung up on"),
        }
    }
}
