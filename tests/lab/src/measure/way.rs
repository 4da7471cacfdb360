//! The ways to bring the online server's requests to the target: this project, and what it is compared with.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::chain::{Chain, Setup};
use crate::daemon::Daemon;
use crate::network::{Family, Plan, Role};
use crate::nginx::Behaviour;
use crate::wait;

/// A way to bring requests to the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// None: what the load costs by itself.
    Nothing,
    /// The programs under test.
    Ours,
    /// The same with packet sockets, at both.
    Packet,
    /// The C programs.
    Original(Original),
    /// The C tcpcopy with our intercept.
    OriginalTcpcopy(Original),
    /// Our tcpcopy with the C intercept.
    OriginalIntercept(Original),
    /// The mirror module of the online server.
    Mirror,
}

/// Where the C programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Original {
    /// tcpcopy 1.x.
    pub(crate) tcpcopy: PathBuf,
    /// Its intercept, built for NFQUEUE or for pcap.
    pub(crate) intercept: PathBuf,
}

/// The port on which intercept listens, 36524, as /proc/net/tcp writes it.
const TUNNEL: &str = ":8EAC";
/// The first target, which must be known before there is a network.
const TARGET: &str = "10.91.2.2:80";
/// The first online host, likewise.
const ONLINE: &str = "10.91.2.1";
/// States of /proc/net/tcp.
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

impl Way {
    /// How tables call it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Ours => "ours",
            Self::Packet => "packet",
            Self::Original(_) => "original",
            Self::OriginalTcpcopy(_) => "c-tcpcopy",
            Self::OriginalIntercept(_) => "c-intercept",
            Self::Mirror => "mirror",
        }
    }

    /// Builds network and servers, and replays when this returns.
    pub(super) fn start(&self, offloads: bool, scratch: &Path) -> Result<Stage> {
        let mut setup = Setup::new(Plan { offloads, ..Plan::default() }, Family::V4);
        match self {
            Self::Nothing => Ok(Stage::of(Chain::prepare(setup, scratch)?)),
            Self::Ours | Self::Packet => {
                if *self == Self::Packet {
                    setup = setup.tcpcopy("--capture-source packet");
                    setup.intercept = ["--capture-source", "packet"].map(str::to_owned).to_vec();
                }
                let mut chain = Chain::start(setup, scratch)?;
                let pids = (chain.tcpcopy(0)?.pid(), chain.intercept(0)?.pid());
                Ok(Stage { pids: Some(pids), ..Stage::of(chain) })
            }
            Self::Mirror => {
                setup.target_behaviour = Some(Behaviour::default());
                setup.behaviour.mirror = Some(TARGET.parse()?);
                Ok(Stage::of(Chain::prepare(setup, scratch)?))
            }
            Self::Original(original) => {
                let chain = Chain::prepare(setup, scratch)?;
                let intercept = original.start_intercept(&chain)?;
                let tcpcopy = original.start_tcpcopy(&chain)?;
                let pids = Some((tcpcopy.pid(), intercept.pid()));
                Ok(Stage { pids, daemons: vec![tcpcopy, intercept], chain })
            }
            Self::OriginalTcpcopy(original) => {
                setup.intercept = vec!["--legacy".to_owned(), ONLINE.to_owned()];
                let mut chain = Chain::prepare(setup, scratch)?;
                chain.start_intercepts()?;
                let tcpcopy = original.start_tcpcopy(&chain)?;
                let pids = Some((tcpcopy.pid(), chain.intercept(0)?.pid()));
                Ok(Stage { pids, daemons: vec![tcpcopy], chain })
            }
            Self::OriginalIntercept(original) => {
                let setup = Setup { keyed: false, ..setup.tcpcopy("--legacy") };
                let mut chain = Chain::prepare(setup, scratch)?;
                let intercept = original.start_intercept(&chain)?;
                chain.start_tcpcopies()?;
                let pids = Some((chain.tcpcopy(0)?.pid(), intercept.pid()));
                Ok(Stage { pids, daemons: vec![intercept], chain })
            }
        }
    }

    /// Whether it is some program of others.
    pub(super) fn is_compared(&self) -> bool {
        match self {
            Self::Nothing | Self::Ours | Self::Packet => false,
            Self::Original(_) | Self::OriginalTcpcopy(_) | Self::OriginalIntercept(_) | Self::Mirror => true,
        }
    }
}

impl Original {
    fn start_intercept(&self, chain: &Chain) -> Result<Daemon> {
        let assistant = chain.network().host(Role::Assistant, 0)?;
        let target = chain.network().target(0, Family::V4)?;
        let (address, port) = (target.ip().to_string(), target.port().to_string());
        let mut arguments = words(&format!("-l {}", log(chain, "original-intercept.log")));
        if self.captures_by_pcap()? {
            let filter = format!("tcp and src host {address} and src port {port}");
            arguments.extend(["-i".to_owned(), "back".to_owned(), "-F".to_owned(), filter]);
        } else {
            let rule = format!(
                "-t mangle -A PREROUTING -p tcp -s {address} --sport {port} -j NFQUEUE --queue-num 0"
            );
            assistant.namespace().output("iptables", &rule.split(' ').collect::<Vec<_>>())?;
        }
        let mut intercept = Daemon::run(
            &self.intercept,
            "original-intercept",
            assistant.namespace(),
            &arguments,
            chain.scratch(),
        )?;
        ready(&mut intercept, "intercept listens", |table| connected(table, LISTEN))?;
        Ok(intercept)
    }

    fn start_tcpcopy(&self, chain: &Chain) -> Result<Daemon> {
        let network = chain.network();
        let (online, target) = (network.host(Role::Online, 0)?, network.target(0, Family::V4)?);
        let arguments = words(&format!(
            "-x {}-{target} -s {} -l {}",
            target.port(),
            network.host(Role::Assistant, 0)?.back(Family::V4),
            log(chain, "original-tcpcopy.log")
        ));
        let mut tcpcopy =
            Daemon::run(&self.tcpcopy, "original-tcpcopy", online.namespace(), &arguments, chain.scratch())?;
        ready(&mut tcpcopy, "tcpcopy is connected", |table| connected(table, ESTABLISHED))?;
        Ok(tcpcopy)
    }

    /// Only that build has a filter among its options.
    fn captures_by_pcap(&self) -> Result<bool> {
        let help = std::process::Command::new(&self.intercept).arg("-h").output()?;
        Ok(String::from_utf8_lossy(&help.stdout).contains("-F <filter>"))
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn log(chain: &Chain, name: &str) -> String {
    chain.scratch().join(name).to_string_lossy().into_owned()
}

/// Waits for what `/proc/net/tcp` of a daemon's host should show; the C programs do not say when they are ready.
fn ready(daemon: &mut Daemon, what: &str, shows: impl Fn(&str) -> bool) -> Result<()> {
    let table = format!("/proc/{}/net/tcp", daemon.pid());
    wait::until(Duration::from_secs(10), what, || {
        if !daemon.running()? {
            bail!("it ended: {}", daemon.output()?.trim());
        }
        Ok(shows(&fs::read_to_string(&table)?))
    })
}

/// Whether a table of TCP sockets has one of the tunnel in this state.
fn connected(table: &str, state: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let tunnel = |index: usize| fields.get(index).is_some_and(|address| address.ends_with(TUNNEL));
        (tunnel(1) || tunnel(2)) && fields.get(3) == Some(&state)
    })
}

/// A network with servers, and a way of replaying at work.
#[derive(Debug)]
pub(super) struct Stage {
    // tcpcopy goes before intercept, both before the network.
    daemons: Vec<Daemon>,
    /// The chain, which has daemons of its own for [`Way::Ours`].
    pub(super) chain: Chain,
    /// The processes on the online host and on the assistant that replay.
    pub(super) pids: Option<(u32, u32)>,
}

impl Stage {
    fn of(chain: Chain) -> Self {
        Self { daemons: Vec::new(), chain, pids: None }
    }

    /// Ends it. A chain of ours must leave nothing behind.
    pub(super) fn finish(self) -> Result<()> {
        let ours = self.daemons.is_empty();
        drop(self.daemons);
        if ours { self.chain.finish() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_is_found_by_its_port_and_state() {
        assert_eq!(TUNNEL, format!(":{:04X}", 36524));
        let table = "  sl  local_address rem_address   st\n   0: 00000000:8EAC 00000000:0000 0A 0\n\
                     \x20  1: 01025B0A:D431 03025B0A:8EAC 02 0\n";
        assert!(connected(table, LISTEN));
        assert!(!connected(table, ESTABLISHED));
        assert!(connected(&table.replace(" 02 ", " 01 "), ESTABLISHED));
    }
}
