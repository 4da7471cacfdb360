//! Who has a key: a second tcpcopy, with a service of its own on the second online host.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Attack, RELAY, Refused, intercept};
use crate::chain::{Chain, make_key};
use crate::daemon::{Daemon, Program};
use crate::forge::{ACK, Forger};
use crate::network::{Family, Role};
use crate::relay::Relay;
use crate::sys::Signal;
use crate::wait;

/// The port of its service.
const SERVICE: u16 = 8081;
/// Connections to it.
const CONNECTIONS: usize = 200;
/// How long a refusal may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A service that the intercept does not know, on an address that nobody has.
const FOREIGN: &str = "8081-10.91.2.99:80";
/// The same service as production's.
const SAME: &str = "8081-10.91.2.2:80";
/// What a tcpcopy says of connections outside the scope of the intercepts and its key.
const OUTSIDE: &str = "connections are not replayed, and nothing was sent for them";
/// Forged responses to who does not read, many more than are kept for him; so many at a time.
const RESPONSES: usize = 300_000;
const BURST: usize = 500;
const PAUSE: Duration = Duration::from_millis(5);

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("foreign-target", foreign_target),
        Attack { prepare: limited_key, ..Attack::new("foreign-client", foreign_client) },
        Attack::new("slow-reader", slow_reader),
        Attack { intercept: &["--memory-limit", "16MiB"], ..Attack::new("slow-readers", slow_readers) },
        Attack { prepare: second_key, ..Attack::new("key-removed", key_removed) },
    ]
}

/// It is to replay a service that is none of the intercept's targets: it is told so, and claims nothing.
fn foreign_target(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let mut holder = Holder::start(chain, &["-x", FOREIGN], "one", intercept(chain)?)?;
    let clients = holder.clients(chain)?;
    holder.wait_until_it_says(OUTSIDE)?;
    drop(clients);
    holder.daemon.stop()?;
    Ok(Refused { lines: 2, ..Refused::exactly(&["claims_foreign"], 0, "tcpcopy connected") })
}

/// A key for other clients than those it is used for. Of two keys, tcpcopy takes the last one by name.
fn limited_key(chain: &Chain) -> Result<()> {
    make_key(&chain.keys(), "limited")?;
    let file = chain.keys().join("limited");
    let text = fs::read_to_string(&file)? + "clients = [\"10.99.7.0/24\", \"fd99::/64\"]\n";
    Ok(fs::write(file, text)?)
}

/// It is to replay clients that its key is not for: it is told so, and claims nothing.
fn foreign_client(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let options = ["-x", SAME, "-c", "10.99.8.0/24"];
    let mut holder = Holder::start(chain, &options, "limited", intercept(chain)?)?;
    let clients = holder.clients(chain)?;
    holder.wait_until_it_says(OUTSIDE)?;
    drop(clients);
    holder.daemon.stop()?;
    Ok(Refused { lines: 2, ..Refused::exactly(&["claims_foreign_client"], 0, "tcpcopy connected") })
}

/// It claims flows, has the target send a lot on them, and does not read what it is told of that.
fn slow_reader(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    read_nothing(chain, "1", RESPONSES)?;
    Ok(Refused::at_least(&["tunnel_full"], 1, "reads its tunnel too slowly"))
}

/// The same over many tunnels: more than all may take.
fn slow_readers(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    read_nothing(chain, "8", 2 * RESPONSES)?;
    Ok(Refused::at_least(&["denied.shed"], 1, "the tunnels hold as much memory as they may"))
}

fn read_nothing(chain: &Chain, workers: &str, responses: usize) -> Result<()> {
    let second = chain.network().host(Role::Online, 1)?.namespace();
    let relay = Relay::start(second, RELAY, intercept(chain)?)?;
    let mut holder = Holder::start(chain, &["-x", SAME, "--workers", workers], "one", RELAY)?;
    let clients = holder.clients(chain)?;
    let target = chain.network().host(Role::Target, 0)?.namespace();
    wait::until(PATIENCE, "its sessions are established", || {
        let seen = target.output("ss", &["-Htn", "state", "established", "sport", "=", "80"])?;
        let theirs = |client: &&TcpStream| {
            client.local_addr().is_ok_and(|address| seen.contains(&format!("{address}")))
        };
        Ok(clients.iter().filter(theirs).count() == clients.len())
    })?;
    relay.stall();
    let SocketAddr::V4(server) = chain.network().target(0, Family::V4)? else { anyhow::bail!("no IPv4") };
    target.enter(|| -> Result<()> {
        let forger = Forger::open()?;
        for (n, client) in clients.iter().cycle().take(responses).enumerate() {
            let SocketAddr::V4(client) = client.local_addr()? else { anyhow::bail!("no IPv4") };
            forger.send(server, client, ACK)?;
            if n % BURST == 0 {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    })??;
    drop(clients);
    holder.daemon.stop()
}

/// A key beside the one that production's tcpcopy uses, which is the last one by name.
fn second_key(chain: &Chain) -> Result<()> {
    make_key(&chain.keys(), "another")
}

/// Its key is taken away while it has tunnels.
fn key_removed(chain: &mut Chain, _: Option<&Relay>) -> Result<Refused> {
    let mut holder = Holder::start(chain, &["-x", SAME], "another", intercept(chain)?)?;
    let tunnels =
        chain.network().host(Role::Online, 1)?.namespace().output("ss", &["-Htn", "dport", "=", "36524"])?;
    fs::rename(chain.keys().join("another"), chain.scratch().join("another"))?;
    chain.intercept(0)?.signal(Signal::Reload)?;
    wait::until(PATIENCE, "it loses its tunnels", || {
        Ok(holder.daemon.output()?.contains("no connection to the intercept"))
    })?;
    holder.daemon.stop()?;
    let count = tunnels.lines().count() as u64;
    Ok(Refused {
        lines: count,
        ..Refused::exactly(&["denied.key"], count, "its key is no longer one of ours")
    })
}

/// A tcpcopy with a key, and the service that it captures.
struct Holder {
    daemon: Daemon,
    service: SocketAddrV4,
}

impl Holder {
    /// Starts both.
    fn start(chain: &Chain, options: &[&str], key: &str, tunnel: SocketAddr) -> Result<Self> {
        let host = chain.network().host(Role::Online, 1)?;
        let SocketAddr::V4(service) = SocketAddr::new(host.front(Family::V4), SERVICE) else {
            anyhow::bail!("no IPv4")
        };
        let listener = host.namespace().enter(|| TcpListener::bind(service))??;
        // It ends with the laboratory.
        std::thread::spawn(move || {
            let streams: Vec<_> = listener.incoming().take(CONNECTIONS).collect();
            for mut stream in streams.into_iter().flatten() {
                let _ = stream.read(&mut [0]);
            }
        });
        let (tunnel, key) = (tunnel.to_string(), chain.keys().join(key).display().to_string());
        let own = ["-s", &tunnel, "--keys", &key];
        let arguments: Vec<String> = options.iter().chain(&own).map(|&word| word.to_owned()).collect();
        let mut daemon = Daemon::start(Program::Tcpcopy, host.namespace(), &arguments, chain.scratch())?;
        daemon.wait_ready()?;
        Ok(Self { daemon, service })
    }

    /// Clients of the service, who say nothing.
    fn clients(&self, chain: &Chain) -> Result<Vec<TcpStream>> {
        let client = chain.network().host(Role::Client, 0)?.namespace();
        let connect = |_| TcpStream::connect(self.service).context("a client of the service");
        client.enter(|| (0..CONNECTIONS).map(connect).collect())?
    }

    /// Waits for what it logs about the refusal, once.
    fn wait_until_it_says(&self, what: &str) -> Result<()> {
        wait::until(PATIENCE, "it says why it is refused", || Ok(self.daemon.output()?.contains(what)))?;
        let said = self.daemon.output()?.matches(what).count();
        ensure!(said == 1, "it was said {said} times");
        Ok(())
    }
}
