//! HTTP/2 in clear text: nghttpd on both sides, h2load as the clients. Every frame that the online server received comes
//! to the target once, and every stream gets its status.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Context, Offloads, Scenario};
use crate::network::Family;
use crate::pair::{Pair, Site};

const PORT: u16 = 8080;

pub(super) fn scenarios() -> Vec<Scenario> {
    // Requests, then options of h2load and the path.
    let loads: [(&str, Family, u64, &'static str); 5] = [
        ("streams-v4", Family::V4, 1_000, "-c 4 -m 10 f1000"),
        ("streams-v6", Family::V6, 1_000, "-c 4 -m 10 f1000"),
        ("one-by-one", Family::V4, 300, "-c 3 -m 1 f100"),
        // The server may send 64 KiB, then it waits for the client's WINDOW_UPDATE.
        ("flow-control", Family::V4, 40, "-c 2 -m 4 -w 16 -W 16 f1000000"),
        ("uploads", Family::V4, 100, "-c 4 -m 5 -d f100000 f100"),
    ];
    let scenario = |(name, family, requests, options)| {
        Scenario::new(format!("http2/{name}"), Offloads::On, move |context| {
            replayed(context, family, requests, options)
        })
    };
    loads.into_iter().map(scenario).collect()
}

fn replayed(context: &Context, family: Family, requests: u64, load: &str) -> Result<String> {
    let requests = context.seconds(requests);
    let count = requests.to_string();
    // While a request is uploaded, the two servers may send their WINDOW_UPDATEs at other places. Then a gate in the
    // middle of a request may open with the response timeout, once for each session.
    let options = "--response-timeout 5s";
    let mut pair = Pair::start_with(context, family, ("nghttpd", PORT), options, launch)?;
    let mut words: Vec<&str> = load.split(' ').collect();
    let url = format!("http://{}/{}", pair.service()?, words.pop().unwrap_or_default());
    let body = context.scratch.join("f100000").to_string_lossy().into_owned();
    for word in &mut words {
        if *word == "f100000" {
            *word = &body;
        }
    }
    fs::write(&body, crate::load::content().get(..100_000).unwrap_or_default())?;
    words.extend(["-n", &count, &url]);
    let said = pair.run("h2load", &words)?;
    ensure!(said.contains(&format!("{requests} succeeded, 0 failed, 0 errored")), "production: {said}");
    let received = pair.expect_same("what the servers saw", events)?;
    let of = |what: &str| received.lines().filter(|line| line.contains(what)).count();
    ensure!(of(":path:") == usize::try_from(requests)?, "{} requests of {requests}", of(":path:"));
    pair.finish()?;
    let (data, updates) = (of("recv DATA"), of("recv WINDOW_UPDATE"));
    Ok(format!("{requests} requests, {data} DATA and {updates} WINDOW_UPDATE frames"))
}

fn launch(site: &Site<'_>) -> Result<Command> {
    for size in [100, 1_000, 1_000_000] {
        let body = crate::load::content().get(..size).unwrap_or_default();
        fs::write(site.directory.join(format!("f{size}")), body)?;
    }
    let mut command = site.on.command("nghttpd");
    command.args(["-v", "--no-tls", "-d"]).arg(site.directory).arg(PORT.to_string());
    Ok(command)
}

/// What the server's log tells of frames received, requests, answers and errors, without connections and times. How it
/// cuts what it sends depends on its pace.
fn events(site: &Site<'_>) -> Result<String> {
    let log = fs::read(site.directory.join("server.log"))?;
    let log = String::from_utf8_lossy(&log);
    let mut events: Vec<&str> = log
        .lines()
        // [id=1] [  0.002] recv HEADERS frame <length=35, flags=0x05, stream_id=1>
        .map(|line| line.rsplit_once("] ").map_or(line, |(_, event)| event).trim())
        .filter(|event| event.starts_with("recv ") || event.starts_with(":status:") || event.contains("rror"))
        .collect();
    events.sort_unstable();
    Ok(events.join("\n"))
}
