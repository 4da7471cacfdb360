//! Redis on both sides: afterwards both have the same data and have run the same commands.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{Context, Offloads, Scenario};
use crate::network::Family;
use crate::pair::{Pair, Site};
use crate::talk::{Talk, at_once};

const PORT: u16 = 6379;
/// The longest value.
const BIG: usize = 5_000_000;

pub(super) fn scenarios() -> Vec<Scenario> {
    // No two commands of these depend on the order in which connections are served.
    let benchmark = |options: &'static str| {
        move |context: &Context, pair: &Pair| {
            let (address, port) = (pair.service()?.ip().to_string(), PORT.to_string());
            let requests = if context.long { "100000" } else { "4000" };
            let mut arguments = vec!["-h", &address, "-p", &port, "-n", requests, "-r", "1000", "-q"];
            arguments.extend(options.split(' '));
            pair.run("redis-benchmark", &arguments).map(drop)
        }
    };
    vec![
        scenario("redis/benchmark", Family::V4, benchmark("-t set,get,incr,lpush,sadd,hset -c 10")),
        scenario(
            "redis/pipelines-v4",
            Family::V4,
            benchmark("-t set,get,incr,lpush,sadd,hset,mset -c 10 -P 16"),
        ),
        scenario(
            "redis/pipelines-v6",
            Family::V6,
            benchmark("-t set,get,incr,lpush,sadd,hset,mset -c 10 -P 16"),
        ),
        scenario("redis/big-values", Family::V4, |_, pair| clients(pair, 3, big_values)),
        scenario("redis/multi", Family::V4, |_, pair| clients(pair, 8, transactions)),
        scenario("redis/publish", Family::V4, |_, pair| publish(pair)),
        scenario("redis/blocking-pop", Family::V4, |_, pair| blocking_pop(pair)),
    ]
}

/// A scenario in which `load` talks to the online server.
fn scenario(name: &str, family: Family, load: impl Fn(&Context, &Pair) -> Result<()> + 'static) -> Scenario {
    Scenario::new(name, Offloads::On, move |context| {
        let mut pair = Pair::start(context, family, ("redis", PORT), |site| Ok(launch(site)))?;
        load(context, &pair)?;
        let digest = pair.expect_same("the data's digests", |site| ask(site, &["DEBUG", "DIGEST"]))?;
        let statistics = pair.expect_same("the commands run", commands)?;
        let keys = pair.expect_same("the numbers of keys", |site| ask(site, &["DBSIZE"]))?;
        ensure!(keys.trim() != "0", "no data at all");
        pair.finish()?;
        let calls: u64 =
            statistics.lines().filter_map(|line| line.split(' ').nth(1)?.parse::<u64>().ok()).sum();
        Ok(format!(
            "{calls} commands, {} keys, digest {}",
            keys.trim(),
            digest.trim().get(..8).unwrap_or_default()
        ))
    })
}

fn launch(site: &Site<'_>) -> Command {
    let mut command = site.on.command("redis-server");
    command.args(["--port", &PORT.to_string(), "--bind", "0.0.0.0", "::", "--protected-mode", "no"]);
    command.args(["--save", "", "--appendonly", "no", "--enable-debug-command", "yes"]);
    command.args(["--unixsocket", &site.path("redis.sock")]);
    command
}

/// Asks by the UNIX socket: nothing that is captured.
fn ask(site: &Site<'_>, question: &[&str]) -> Result<String> {
    let socket = site.path("redis.sock");
    let mut arguments = vec!["-s", &socket];
    arguments.extend(question);
    site.output("redis-cli", &arguments)
}

/// Each command and how often it was called, but for those with which the laboratory asks.
fn commands(site: &Site<'_>) -> Result<String> {
    let own = ["info", "debug", "dbsize", "ping"];
    let statistics = ask(site, &["INFO", "commandstats"])?;
    let mut calls: Vec<String> = statistics
        .lines()
        .filter_map(|line| {
            let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            (!own.contains(&name))
                .then(|| format!("{name} {}", figures.split(',').next().unwrap_or_default()))
        })
        .collect();
    calls.sort();
    Ok(calls.join("\n"))
}

/// Runs a client function on several connections at once.
fn clients(pair: &Pair, count: usize, work: fn(SocketAddr, usize) -> Result<()>) -> Result<()> {
    let server = pair.service()?;
    at_once(pair.client()?, count, move |number| work(server, number))
}

/// Values of all sizes, written, appended to and read back.
fn big_values(server: SocketAddr, number: usize) -> Result<()> {
    let mut redis = Redis::connect(server)?;
    for size in [1, 1_000, 65_536, 1_000_000, BIG] {
        let key = format!("big:{number}:{size}");
        let value: Vec<u8> =
            crate::load::content().iter().copied().cycle().skip(number * 7).take(size).collect();
        redis.call(&[b"SET", key.as_bytes(), &value])?;
        redis.call(&[b"APPEND", key.as_bytes(), b"and more"])?;
        let Reply::Bulk(back) = redis.call(&[b"GET", key.as_bytes()])? else { bail!("{key} is gone") };
        ensure!(back.len() == size + 8 && back.starts_with(&value), "{key} is another value");
    }
    Ok(())
}

/// Transactions: sent command by command, and in one go.
fn transactions(server: SocketAddr, number: usize) -> Result<()> {
    let mut redis = Redis::connect(server)?;
    let (own, list) = (format!("account:{number}"), format!("journal:{number}"));
    for turn in 0..20 {
        let amount = (turn * 7 + number).to_string();
        let commands: [&[&str]; 5] = [
            &["MULTI"],
            &["INCRBY", &own, &amount],
            &["INCRBY", "account:all", &amount],
            &["RPUSH", &list, &amount],
            &["EXEC"],
        ];
        redis.call(&[b"WATCH", own.as_bytes()])?;
        if turn % 2 == 0 {
            for words in commands {
                redis.call(&bytes(words))?;
            }
        } else {
            let whole: Vec<u8> = commands.iter().flat_map(|words| encode(&bytes(words))).collect();
            redis.talk.send(&whole)?;
            for _ in commands {
                redis.reply()?;
            }
        }
    }
    redis.call(&[b"MULTI"])?;
    redis.call(&[b"DEL", own.as_bytes()])?;
    redis.call(&[b"DISCARD"])?;
    Ok(())
}

/// Subscribers are told what a publisher says and write down what they were told: bytes the server sends unasked, and
/// requests that follow from them.
fn publish(pair: &Pair) -> Result<()> {
    const SUBSCRIBERS: usize = 3;
    const MESSAGES: usize = 50;
    let server = pair.service()?;
    let subscribed = Arc::new(Barrier::new(SUBSCRIBERS + 1));
    at_once(pair.client()?, SUBSCRIBERS + 1, move |number| {
        let mut redis = Redis::connect(server)?;
        if number == SUBSCRIBERS {
            subscribed.wait();
            for message in 0..MESSAGES {
                let text = "x".repeat(message * 100) + &message.to_string();
                redis.call(&[b"PUBLISH", b"news", text.as_bytes()])?;
            }
            return Ok(());
        }
        // With the third version of its protocol a subscriber may ask other things as well.
        redis.call(&bytes(&["HELLO", "3"]))?;
        // The answer is a message of its own kind, and the one to PING follows it.
        redis.talk.send(&encode(&bytes(&["SUBSCRIBE", "news"])))?;
        redis.call(&bytes(&["PING"]))?;
        subscribed.wait();
        let key = format!("told:{number}");
        for _ in 0..MESSAGES {
            let message = redis.pushed()?;
            redis.call(&[b"RPUSH", key.as_bytes(), &message])?;
        }
        Ok(())
    })
}

/// One takes jobs as they come, waiting long for some; another makes them, at will.
fn blocking_pop(pair: &Pair) -> Result<()> {
    const JOBS: u64 = 30;
    let server = pair.service()?;
    at_once(pair.client()?, 2, move |number| {
        let mut redis = Redis::connect(server)?;
        for job in 0..JOBS {
            if number == 0 {
                let Reply::Array(popped) = redis.call(&bytes(&["BLPOP", "jobs", "10"]))? else {
                    bail!("no job came")
                };
                let Some(Reply::Bulk(job)) = popped.get(1) else { bail!("an odd job") };
                redis.call(&[b"RPUSH", b"done", job])?;
            } else {
                // The consumer waits, in some turns for long.
                std::thread::sleep(Duration::from_millis(job * 7 % 40));
                redis.call(&bytes(&["RPUSH", "jobs", &format!("job {job}")]))?;
            }
        }
        Ok(())
    })
}

/// A client of Redis.
struct Redis {
    talk: Talk,
    /// Published messages that came while a reply was awaited.
    pushed: VecDeque<Vec<u8>>,
}

/// What the server says.
enum Reply {
    /// A status or a number, as it is written.
    Simple,
    /// Bytes.
    Bulk(Vec<u8>),
    /// Several; also a map.
    Array(Vec<Reply>),
    /// Nothing.
    Null,
}

impl Redis {
    fn connect(server: SocketAddr) -> Result<Self> {
        Ok(Self { talk: Talk::connect(server)?, pushed: VecDeque::new() })
    }

    /// Sends a command and returns its reply.
    fn call(&mut self, words: &[&[u8]]) -> Result<Reply> {
        self.talk.send(&encode(words))?;
        self.reply()
    }

    /// The next reply; messages that come before it are kept.
    fn reply(&mut self) -> Result<Reply> {
        loop {
            let line = self.talk.line()?;
            if !line.starts_with('>') {
                return self.parse(&line);
            }
            self.keep(&line)?;
        }
    }

    /// The next published message.
    fn pushed(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(message) = self.pushed.pop_front() {
                return Ok(message);
            }
            let line = self.talk.line()?;
            ensure!(line.starts_with('>'), "`{line}` is no message");
            self.keep(&line)?;
        }
    }

    /// Keeps a message that begins with `line`; that a subscription is on is no message.
    fn keep(&mut self, line: &str) -> Result<()> {
        let Reply::Array(mut parts) = self.parse(line)? else { bail!("an odd message") };
        if let (Some(Reply::Bulk(message)), Some(Reply::Bulk(kind))) = (parts.pop(), parts.first())
            && kind == b"message"
        {
            self.pushed.push_back(message);
        }
        Ok(())
    }

    fn parse(&mut self, line: &str) -> Result<Reply> {
        let Some((kind, rest)) = line.split_at_checked(1) else { bail!("an empty line") };
        let mut several = |count: usize| -> Result<Reply> {
            let parts = (0..count).map(|_| {
                let line = self.talk.line()?;
                self.parse(&line)
            });
            parts.collect::<Result<_>>().map(Reply::Array)
        };
        match kind {
            "-" => bail!("the server refuses: {rest}"),
            "+" | ":" => Ok(Reply::Simple),
            "_" => Ok(Reply::Null),
            _ if rest == "-1" => Ok(Reply::Null),
            "*" | ">" => several(rest.parse()?),
            "%" => several(2 * rest.parse::<usize>()?),
            "$" => {
                let mut bytes = self.talk.bytes(rest.parse::<usize>()? + 2)?;
                bytes.truncate(bytes.len() - 2);
                Ok(Reply::Bulk(bytes))
            }
            _ => bail!("an odd reply: {line}"),
        }
    }
}

fn bytes<'a>(words: &[&'a str]) -> Vec<&'a [u8]> {
    words.iter().map(|word| word.as_bytes()).collect()
}

fn encode(words: &[&[u8]]) -> Vec<u8> {
    let mut command = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        command.extend(format!("${}\r\n", word.len()).into_bytes());
        command.extend_from_slice(word);
        command.extend_from_slice(b"\r\n");
    }
    command
}
