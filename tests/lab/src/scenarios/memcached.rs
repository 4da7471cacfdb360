//! memcached on both sides, by its text and its binary protocol: afterwards both have counted the same and hold the same.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Context, Offloads, Scenario};
use crate::network::Family;
use crate::observer::hash;
use crate::pair::{Pair, Site};
use crate::talk::{Talk, at_once};

const PORT: u16 = 11211;
/// Where the laboratory asks, on the host itself: nothing that is captured.
const ASK: u16 = 11299;
/// Clients at once.
const CLIENTS: usize = 6;
/// Keys of each client.
const KEYS: usize = 60;
/// What is compared of `stats`: not what depends on time or on how much the laboratory asks.
const COUNTERS: [&str; 12] = [
    "curr_items",
    "total_items",
    "bytes",
    "cmd_set",
    "cmd_flush",
    "cmd_touch",
    "delete_misses",
    "delete_hits",
    "incr_misses",
    "incr_hits",
    "cas_misses",
    "evictions",
];

/// What one client does.
type Client = fn(SocketAddr, usize) -> Result<()>;

pub(super) fn scenarios() -> Vec<Scenario> {
    let loads: [(&str, Family, Client); 5] = [
        ("text-v4", Family::V4, text),
        ("text-v6", Family::V6, text),
        ("text-noreply", Family::V4, noreply),
        ("binary", Family::V4, binary),
        ("big-sets", Family::V4, big),
    ];
    let scenario = |(name, family, client)| {
        Scenario::new(format!("memcached/{name}"), Offloads::On, move |context| same(context, family, client))
    };
    loads.into_iter().map(scenario).collect()
}

fn same(context: &Context, family: Family, client: Client) -> Result<String> {
    let mut pair = Pair::start(context, family, ("memcached", PORT), |site| Ok(launch(site)))?;
    let server = pair.service()?;
    at_once(pair.client()?, CLIENTS, move |number| client(server, number))?;
    let statistics = pair.expect_same("the statistics", |site| site.on.enter(statistics)?)?;
    let contents = pair.expect_same("the contents", |site| site.on.enter(contents)?)?;
    ensure!(!contents.is_empty(), "no contents");
    pair.finish()?;
    let sets = statistics.lines().find(|line| line.starts_with("cmd_set")).unwrap_or_default();
    Ok(format!("{} keys equal, {sets}", contents.lines().count()))
}

fn launch(site: &Site<'_>) -> Command {
    let mut command = site.on.command("memcached");
    command.args(["-u", "root", "-m", "512", "-I", "8m", "-t", "2"]);
    command.args(["-l", &format!("0.0.0.0:{PORT},[::]:{PORT},127.0.0.1:{ASK}")]);
    command
}

/// The counters of the server on the calling thread's host.
fn statistics() -> Result<String> {
    let mut talk = Talk::connect(([127, 0, 0, 1], ASK).into())?;
    talk.send(b"stats\r\n")?;
    let mut all = BTreeMap::new();
    loop {
        let line = talk.line()?;
        let mut words = line.split(' ').skip(1);
        let (Some(name), Some(value)) = (words.next(), words.next()) else { break };
        all.insert(name.to_owned(), value.to_owned());
    }
    COUNTERS.iter().try_fold(String::new(), |mut text, &name| {
        let value = all.get(name).with_context(|| format!("no counter {name}"))?;
        writeln!(text, "{name} {value}")?;
        Ok(text)
    })
}

/// Every key of the server on the calling thread's host, with flags, length and hash of its value.
fn contents() -> Result<String> {
    let mut talk = Talk::connect(([127, 0, 0, 1], ASK).into())?;
    // By the hash table: in the LRU lists items are on the move.
    talk.send(b"lru_crawler metadump hash\r\n")?;
    let mut keys = Vec::new();
    loop {
        let line = talk.line()?;
        let Some(key) = line.strip_prefix("key=").and_then(|rest| rest.split(' ').next()) else { break };
        // It writes them as in an URL.
        keys.push(key.replace("%3A", ":"));
    }
    keys.sort();
    let mut text = String::new();
    for key in keys {
        talk.send(format!("get {key}\r\n").as_bytes())?;
        let head = talk.line()?;
        let mut words = head.split(' ').skip(2);
        let (Some(flags), Some(length)) = (words.next(), words.next()) else { bail!("{key}: {head}") };
        let value = talk.bytes(length.parse::<usize>()? + 2)?;
        talk.expect("END")?;
        writeln!(text, "{key} {flags} {length} {:016x}", hash(&value))?;
    }
    Ok(text)
}

fn value(number: usize, size: usize) -> Vec<u8> {
    crate::load::content().iter().copied().cycle().skip(number).take(size).collect()
}

/// Requests one after the other, as most clients make them.
fn text(server: SocketAddr, number: usize) -> Result<()> {
    let mut talk = Talk::connect(server)?;
    talk.send(format!("set count:{number} 0 0 1\r\n0\r\n").as_bytes())?;
    talk.expect("STORED")?;
    for turn in 0..KEYS {
        let (key, size) = (format!("text:{number}:{turn}"), turn * turn * 7);
        let mut set = format!("set {key} {turn} 0 {size}\r\n").into_bytes();
        set.extend(value(turn, size));
        set.extend_from_slice(b"\r\n");
        talk.send(&set)?;
        talk.expect("STORED")?;
        talk.send(format!("append {key} 0 0 4\r\nmore\r\n").as_bytes())?;
        talk.expect("STORED")?;
        talk.send(format!("get {key} nothing:{turn}\r\n").as_bytes())?;
        talk.expect(&format!("VALUE {key} {turn} {}", size + 4))?;
        talk.bytes(size + 4 + 2)?;
        talk.expect("END")?;
        talk.send(format!("incr count:{number} {turn}\r\n").as_bytes())?;
        talk.expect(&(turn * (turn + 1) / 2).to_string())?;
        if turn % 5 == 0 {
            talk.send(format!("delete {key}\r\n").as_bytes())?;
            talk.expect("DELETED")?;
        }
    }
    talk.send(b"quit\r\n")
}

/// Requests that are not answered, then one that is.
fn noreply(server: SocketAddr, number: usize) -> Result<()> {
    let mut talk = Talk::connect(server)?;
    for turn in 0..KEYS {
        for part in 0..10 {
            let set = format!("set quiet:{number}:{turn}:{part} 0 0 6 noreply\r\nabcdef\r\n");
            talk.send(set.as_bytes())?;
        }
        talk.send(format!("get quiet:{number}:{turn}:9\r\n").as_bytes())?;
        talk.expect(&format!("VALUE quiet:{number}:{turn}:9 0 6"))?;
        talk.expect("abcdef")?;
        talk.expect("END")?;
    }
    Ok(())
}

/// Values of megabytes, and back.
fn big(server: SocketAddr, number: usize) -> Result<()> {
    let mut talk = Talk::connect(server)?;
    for (turn, size) in [100_000, 1_000_000, 3_000_000].into_iter().enumerate() {
        let wanted = value(number * 10 + turn, size);
        talk.send(format!("set big:{number}:{turn} 0 0 {size}\r\n").as_bytes())?;
        talk.send(&wanted)?;
        talk.send(b"\r\n")?;
        talk.expect("STORED")?;
        talk.send(format!("get big:{number}:{turn}\r\n").as_bytes())?;
        talk.line()?;
        ensure!(talk.bytes(size)? == wanted, "another value came back");
        talk.expect("")?;
        talk.expect("END")?;
    }
    Ok(())
}

const GET: u8 = 0x00;
const SET: u8 = 0x01;
const DELETE: u8 = 0x04;
const INCREMENT: u8 = 0x05;
const NOOP: u8 = 0x0a;
const SET_QUIETLY: u8 = 0x11;

/// Binary packets, answered one by one and, the quiet ones, not at all.
fn binary(server: SocketAddr, number: usize) -> Result<()> {
    let mut talk = Talk::connect(server)?;
    // Flags, expiration.
    let plain = [0; 8];
    // Amount, initial value, expiration.
    let mut count = [0; 20];
    count[7] = 3;
    for turn in 0..KEYS {
        let (key, body) = (format!("binary:{number}:{turn}"), value(turn, turn * 100));
        let count_key = format!("counted:{number}");
        asked(&mut talk, &packet(SET, &plain, key.as_bytes(), &body))?;
        let back = asked(&mut talk, &packet(GET, &[], key.as_bytes(), &[]))?;
        ensure!(back.get(4..) == Some(&body), "another value came back");
        asked(&mut talk, &packet(INCREMENT, &count, count_key.as_bytes(), &[]))?;
        let mut burst: Vec<u8> = (0..5)
            .flat_map(|part| packet(SET_QUIETLY, &plain, format!("{key}:{part}").as_bytes(), b"quiet"))
            .collect();
        burst.extend(packet(NOOP, &[], &[], &[]));
        asked(&mut talk, &burst)?;
        if turn % 4 == 0 {
            asked(&mut talk, &packet(DELETE, &[], key.as_bytes(), &[]))?;
        }
    }
    Ok(())
}

fn packet(command: u8, extras: &[u8], key: &[u8], value: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
    let body = u32::try_from(extras.len() + key.len() + value.len()).unwrap_or(u32::MAX);
    let mut packet = vec![0x80, command];
    packet.extend(length(key.len()).to_be_bytes());
    packet.extend([u8::try_from(extras.len()).unwrap_or(u8::MAX), 0, 0, 0]);
    packet.extend(body.to_be_bytes());
    packet.extend([0; 12]);
    for part in [extras, key, value] {
        packet.extend_from_slice(part);
    }
    packet
}

/// Sends packets and returns the body of the one answer.
fn asked(talk: &mut Talk, packets: &[u8]) -> Result<Vec<u8>> {
    talk.send(packets)?;
    let head: [u8; 24] = talk.bytes(24)?.try_into().unwrap_or([0; 24]);
    let [0x81, _, _, _, _, _, 0, 0, a, b, c, d, ..] = head else { bail!("the server refuses: {head:02x?}") };
    talk.bytes(usize::try_from(u32::from_be_bytes([a, b, c, d]))?)
}
