//! HTTP/1.1 as it is spoken besides one request after the other: pipelining, uploads in pieces and on demand, slow
//! responses, servers that close.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive};
use crate::load::{self, Pace, upload};
use crate::network::{Family, Role};
use crate::nginx::Behaviour;
use crate::talk::{Talk, at_once};

/// Clients at once.
const CLIENTS: usize = 6;
/// How far apart the ids of two clients are.
const STRIDE: u64 = 1_000_000;
/// The size of uploads.
const UPLOAD: usize = 50_000;
/// Requests in a burst, and bursts of a client.
const BURST: u64 = 8;
const ROUNDS: u64 = 10;
/// After so many requests a server closes the connection.
const CLOSES: u32 = 10;

/// What one client does; its ids begin at the number given.
type Client = fn(SocketAddr, u64) -> Result<()>;

pub(super) fn scenarios() -> Vec<Scenario> {
    let clients: [(&str, Family, Client, usize); 7] = [
        ("pipelining-bursts-v4", Family::V4, bursts, 0),
        ("pipelining-bursts-v6", Family::V6, bursts, 0),
        ("pipelining-window", Family::V4, window, 0),
        ("100-continue-v4", Family::V4, on_demand, UPLOAD),
        ("100-continue-v6", Family::V6, on_demand, UPLOAD),
        ("chunked-upload", Family::V4, chunked, UPLOAD),
        ("half-close", Family::V4, half_close, 0),
    ];
    let mut scenarios: Vec<Scenario> = clients
        .into_iter()
        .map(|(name, family, client, uploads)| {
            Scenario::new(format!("http/{name}"), Offloads::On, move |context| {
                spoken(context, Setup::new(context.plan(), family), client, uploads)
            })
        })
        .collect();
    for (name, delay, rate, seconds) in [("50-ms", 50, 100, 2), ("2-s", 2_000, 3, 3)] {
        scenarios.push(Scenario::new(format!("http/slow-{name}"), Offloads::On, move |context| {
            let mut setup = Setup::new(context.plan(), Family::V4);
            setup.behaviour.delay = Some(Duration::from_millis(delay));
            loaded(context, setup, rate, seconds)
        }));
    }
    for (name, online, target) in [("both", true, true), ("target", false, true), ("online", true, false)] {
        let setup = move |context: &Context| {
            let mut setup = Setup::new(context.plan(), Family::V4);
            let closing = Behaviour { keepalive_requests: CLOSES, ..Behaviour::default() };
            let behaviour = |closes: bool| if closes { closing.clone() } else { Behaviour::default() };
            setup.behaviour = behaviour(online);
            setup.target_behaviour = Some(behaviour(target));
            setup
        };
        scenarios.push(Scenario::new(format!("http/{name}-closes-after-10"), Offloads::On, move |context| {
            loaded(context, setup(context), 500, 1)
        }));
        if (online, target) == (false, true) {
            let name = "http/target-closes-within-bursts";
            scenarios.push(Scenario::new(name, Offloads::On, move |context| {
                closed_within_bursts(context, setup(context))
            }));
        }
    }
    scenarios
}

/// The load generator's requests, on connections that it keeps as long as the server lets it.
fn loaded(context: &Context, setup: Setup, rate: u32, seconds: u64) -> Result<String> {
    let mut chain = Chain::start(setup, &context.scratch)?;
    let load = chain.load(Pace::Rate(rate), keep_alive(10), context.seconds(seconds))?;
    chain.run(load)?;
    let comparison = chain.expect_perfect(1)?;
    chain.finish()?;
    Ok(comparison.to_string())
}

/// Clients of our own; `uploads` is the size of the bodies they upload, if they do.
fn spoken(context: &Context, setup: Setup, client: Client, uploads: usize) -> Result<String> {
    let family = setup.family;
    let mut chain = Chain::start(setup, &context.scratch)?;
    let server = chain.network().service(0, family)?;
    let on = chain.network().host(Role::Client, 0)?.namespace();
    at_once(on, CLIENTS, move |number| client(server, u64::try_from(number)? * STRIDE + 1))?;
    let comparison = chain.expect_perfect(1)?;
    ensure!(comparison.online > 0, "no request at all");
    let bodies = if uploads > 0 {
        let bodies = chain.check_bodies(uploads)?;
        ensure!(bodies == comparison.online, "{bodies} bodies of {}", comparison.online);
        format!(", {bodies} bodies equal")
    } else {
        String::new()
    };
    chain.finish()?;
    Ok(format!("{comparison}{bodies}"))
}

/// The target closes with pipelined requests unanswered. It took them, so nobody who does not read HTTP can tell which
/// they are; the ones after the burst all come, and none comes twice.
fn closed_within_bursts(context: &Context, setup: Setup) -> Result<String> {
    let mut chain = Chain::start(setup, &context.scratch)?;
    let server = chain.network().service(0, Family::V4)?;
    let on = chain.network().host(Role::Client, 0)?.namespace();
    at_once(on, CLIENTS, move |number| bursts(server, u64::try_from(number)? * STRIDE + 1))?;
    let comparison = chain.compare(1)?;
    let target = chain.target()?;
    let (mut torn, mut lost) = (0, 0);
    for client in 0..u64::try_from(CLIENTS)? {
        for round in 0..ROUNDS {
            let first = client * STRIDE + 1 + round * BURST;
            let answered = (first..first + BURST).take_while(|&id| target.count(id) == 1).count();
            let after = (first..first + BURST).skip(answered).filter(|&id| target.count(id) > 0).count();
            ensure!(answered > 0, "the burst from {first} is lost as a whole");
            ensure!(after == 0, "of the burst from {first} other requests than the last ones are lost");
            torn += u64::from(answered < usize::try_from(BURST)?);
            lost += BURST - u64::try_from(answered)?;
        }
    }
    ensure!(comparison.duplicated == 0 && comparison.extra == 0 && comparison.failed == 0, "{comparison}");
    chain.finish()?;
    Ok(format!("{} requests, {lost} given up at the ends of {torn} bursts", comparison.online))
}

fn get(id: u64) -> (String, usize) {
    let size = match id % 3 {
        0 => 100,
        1 => 1_000,
        _ => 10_000,
    };
    (format!("GET /f{size}?id={id} HTTP/1.1\r\nHost: lab.example\r\n\r\n"), size)
}

/// Several requests in one write, then all their responses.
fn bursts(server: SocketAddr, first: u64) -> Result<()> {
    let mut talk = Talk::connect(server)?;
    for round in 0..ROUNDS {
        let requests: Vec<_> = (0..BURST).map(|number| get(first + round * BURST + number)).collect();
        let burst: String = requests.iter().map(|(request, _)| request.as_str()).collect();
        talk.send(burst.as_bytes())?;
        for (_, size) in requests {
            response(&mut talk, Some(size))?;
        }
    }
    Ok(())
}

/// Four requests outstanding, and one more for each response.
fn window(server: SocketAddr, first: u64) -> Result<()> {
    const OUTSTANDING: u64 = 4;
    const ALL: u64 = 150;
    let mut talk = Talk::connect(server)?;
    for id in first..first + OUTSTANDING {
        talk.send(get(id).0.as_bytes())?;
    }
    for id in first..first + ALL {
        response(&mut talk, Some(get(id).1))?;
        let next = id + OUTSTANDING;
        if next < first + ALL {
            talk.send(get(next).0.as_bytes())?;
        }
    }
    Ok(())
}

/// A request and the FIN at once; the response comes nevertheless.
fn half_close(server: SocketAddr, first: u64) -> Result<()> {
    for id in first..first + 20 {
        let mut talk = Talk::connect(server)?;
        let (request, size) = get(id);
        talk.send(request.as_bytes())?;
        talk.end()?;
        response(&mut talk, Some(size))?;
        ensure!(talk.rest()?.is_empty(), "more than a response");
    }
    Ok(())
}

/// Uploads whose body waits for the server's `100 Continue`.
fn on_demand(server: SocketAddr, first: u64) -> Result<()> {
    let mut talk = Talk::connect(server)?;
    for id in first..first + 10 {
        let head = format!(
            "POST /upload?id={id} HTTP/1.1\r\nHost: lab.example\r\nContent-Length: {UPLOAD}\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        talk.send(head.as_bytes())?;
        talk.expect("HTTP/1.1 100 Continue")?;
        talk.expect("")?;
        talk.send(upload(id, UPLOAD))?;
        response(&mut talk, None)?;
    }
    Ok(())
}

/// Uploads in chunks of all sizes, each chunk a write.
fn chunked(server: SocketAddr, first: u64) -> Result<()> {
    let mut talk = Talk::connect(server)?;
    for id in first..first + 10 {
        let head = format!(
            "POST /upload?id={id} HTTP/1.1\r\nHost: lab.example\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        talk.send(head.as_bytes())?;
        let (mut rest, mut size) = (upload(id, UPLOAD), 1);
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(size.min(rest.len()));
            talk.send(&[format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())?;
            (rest, size) = (after, size * 3 + 1);
        }
        talk.send(b"0\r\n\r\n")?;
        response(&mut talk, None)?;
    }
    Ok(())
}

/// Takes a response: 200, with a content length, and the static body of `size` bytes if it must be one.
fn response(talk: &mut Talk, size: Option<usize>) -> Result<()> {
    talk.expect("HTTP/1.1 200 OK")?;
    let mut length = None;
    loop {
        let line = talk.line()?.to_ascii_lowercase();
        match line.split_once(": ") {
            Some(("content-length", value)) => length = Some(value.parse()?),
            Some(("transfer-encoding", _)) => bail!("a response in chunks"),
            Some(_) => {}
            None => break,
        }
    }
    let body = talk.bytes(length.context("a response without length")?)?;
    let right = size.is_none_or(|size| load::content().get(..size) == Some(&body));
    ensure!(right, "another body");
    Ok(())
}
