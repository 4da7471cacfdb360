//! The whole chain: network, servers, daemons, and the checks that hold in every scenario.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::account::Account;
use crate::counters::Counters;
use crate::daemon::{Daemon, Program, Usage};
use crate::leak::{LeakDetector, Leaks};
use crate::load::{Closer, Connections, Load, Pace, Report, Request, Running};
use crate::namespace::Snapshot;
use crate::network::{Family, Network, Role};
use crate::nginx::Nginx;
use crate::observer::{self, Observer};
use crate::records::{Answers, Comparison};
use crate::wait;

pub(crate) use crate::setup::{Deployment, Setup};

/// How long the online server's log must be quiet once the load is over: it is flushed every 100 ms.
const FLUSHED: Duration = Duration::from_millis(250);
/// How long it must be quiet when nothing is missing: duplicates would come by then, and logs are flushed.
const SETTLE: Duration = Duration::from_millis(400);
/// How long to watch a log that does not become quiet.
const LIMIT: Duration = Duration::from_secs(60);

/// Ids of each load, the first of which is [`Load::first_id`].
pub(crate) const IDS: u64 = 1_000_000_000;

/// The ports that an embedded tcpcopy replays from by default: here the kernel would give out all ports.
const REPLAY_PORTS: &str = "10000-29999";

/// A running chain. Dropping it ends everything.
#[derive(Debug)]
pub(crate) struct Chain {
    // In the order in which they must go.
    tcpcopies: Vec<Daemon>,
    intercepts: Vec<Daemon>,
    online: Vec<Observer>,
    target: Vec<Observer>,
    online_servers: Vec<Nginx>,
    target_servers: Vec<Nginx>,
    leaks: Vec<LeakDetector>,
    network: Network,
    before: Vec<Snapshot>,
    setup: Setup,
    scratch: PathBuf,
    next_id: u64,
}

impl Chain {
    /// Builds the network and starts the servers, but no daemon.
    pub(crate) fn prepare(setup: Setup, scratch: &Path) -> Result<Self> {
        let network = Network::build(&setup.plan)?;
        if setup.deployment == Deployment::Embedded {
            for host in network.all(Role::Online) {
                host.namespace().set(&[("ipv4/ip_local_reserved_ports", REPLAY_PORTS)])?;
            }
        }
        let servers = |role, behaviour| -> Result<Vec<Nginx>> {
            let hosts = network.all(role).filter(|_| setup.port.is_none());
            hosts.map(|host| Nginx::start(host.namespace(), scratch, behaviour)).collect()
        };
        let online_servers = servers(Role::Online, &setup.behaviour)?;
        let other = setup.target_behaviour.as_ref();
        let target_servers = servers(Role::Target, other.unwrap_or(&setup.behaviour))?;
        let observers = |servers: &[Nginx]| servers.iter().map(Observer::watch).collect::<Result<Vec<_>>>();
        let (online, target) = (observers(&online_servers)?, observers(&target_servers)?);
        let (leaks, before) = (LeakDetector::all(&network)?, network.snapshot()?);
        if setup.keyed {
            make_key(&scratch.join("keys"), "one")?;
        }
        Ok(Self {
            tcpcopies: Vec::new(),
            intercepts: Vec::new(),
            online,
            target,
            online_servers,
            target_servers,
            leaks,
            network,
            before,
            setup,
            scratch: scratch.to_owned(),
            next_id: 1,
        })
    }

    /// Builds all of it: when this returns, traffic is replayed.
    pub(crate) fn start(setup: Setup, scratch: &Path) -> Result<Self> {
        let mut chain = Self::prepare(setup, scratch)?;
        chain.start_intercepts()?;
        chain.start_tcpcopies()?;
        Ok(chain)
    }

    /// The network.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Who takes the responses.
    pub(crate) fn deployment(&self) -> Deployment {
        self.setup.deployment
    }

    /// The directory of this chain's files.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The options with which every intercept is started.
    pub(crate) fn intercept_arguments(&self) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        if let Some(file) = &self.setup.intercept_file {
            arguments.extend(["--config".to_owned(), file.display().to_string()]);
        } else {
            for index in 0..usize::from(self.setup.plan.targets) {
                arguments.push("--target".to_owned());
                arguments.push(self.target_address(index)?.to_string());
            }
        }
        arguments.extend(self.tunnel_arguments());
        arguments.extend(self.setup.intercept.iter().cloned());
        Ok(arguments)
    }

    /// The options of the `index`-th tcpcopy.
    pub(crate) fn tcpcopy_arguments(&self, index: usize) -> Result<Vec<String>> {
        let family = self.setup.family;
        let mapping = if self.setup.mappings.is_empty() {
            let target = self.target_address(0)?;
            format!("{}-{target}", target.port())
        } else {
            self.setup.mappings.join(",")
        };
        let tunnel = |address: std::net::IpAddr| match address {
            std::net::IpAddr::V4(address) => address.to_string(),
            std::net::IpAddr::V6(address) => format!("[{address}]:36524"),
        };
        let intercepts: Vec<String> = match self.setup.tunnel {
            Some(address) => vec![address.to_string()],
            None => self.intercept_hosts().map(|host| tunnel(host.back(family))).collect(),
        };
        let number = (index + 1).to_string();
        let mut arguments = match &self.setup.tcpcopy_file {
            Some(file) => vec!["--config".to_owned(), file.display().to_string()],
            None => vec!["-x".to_owned(), mapping],
        };
        arguments.extend(match self.setup.deployment {
            Deployment::Embedded => vec!["--embedded".to_owned()],
            Deployment::Assistant | Deployment::OnTarget => {
                [vec!["-s".to_owned(), intercepts.join(",")], self.tunnel_arguments()].concat()
            }
        });
        arguments.extend(self.setup.tcpcopy.iter().map(|option| option.replace("{n}", &number)));
        Ok(arguments)
    }

    /// Where the keys are, or that there are none.
    fn tunnel_arguments(&self) -> Vec<String> {
        if self.setup.keyed {
            vec!["--keys".to_owned(), self.keys().display().to_string()]
        } else {
            vec!["--insecure".to_owned()]
        }
    }

    /// The directory of the tunnels' keys.
    pub(crate) fn keys(&self) -> PathBuf {
        self.scratch.join("keys")
    }

    /// The hosts that intercept runs on.
    fn intercept_hosts(&self) -> impl Iterator<Item = &crate::network::Host> {
        self.setup.deployment.intercepts().into_iter().flat_map(|role| self.network.all(role))
    }

    /// What is replayed to.
    fn target_address(&self, index: usize) -> Result<SocketAddr> {
        let mut target = self.network.target(index, self.setup.family)?;
        if let Some(port) = self.setup.port {
            target.set_port(port);
        }
        Ok(target)
    }

    /// Starts every intercept and waits until all are ready.
    pub(crate) fn start_intercepts(&mut self) -> Result<()> {
        let arguments = self.intercept_arguments()?;
        let mut intercepts = Vec::new();
        for host in self.intercept_hosts() {
            let under = &self.setup.intercept_under;
            intercepts.push(Daemon::start_under(
                under,
                Program::Intercept,
                host.namespace(),
                &arguments,
                &self.scratch,
            )?);
        }
        intercepts.iter_mut().try_for_each(Daemon::wait_ready)?;
        self.intercepts = intercepts;
        Ok(())
    }

    /// Starts every tcpcopy, without waiting.
    pub(crate) fn launch_tcpcopies(&mut self) -> Result<()> {
        let mut tcpcopies = Vec::new();
        for (index, host) in self.network.all(Role::Online).enumerate().take(self.setup.replaying) {
            let arguments = self.tcpcopy_arguments(index)?;
            tcpcopies.push(Daemon::start(Program::Tcpcopy, host.namespace(), &arguments, &self.scratch)?);
        }
        self.tcpcopies = tcpcopies;
        Ok(())
    }

    /// Starts every tcpcopy and waits until all are ready.
    pub(crate) fn start_tcpcopies(&mut self) -> Result<()> {
        self.launch_tcpcopies()?;
        self.tcpcopies.iter_mut().try_for_each(Daemon::wait_ready)
    }

    /// The `index`-th tcpcopy.
    pub(crate) fn tcpcopy(&mut self, index: usize) -> Result<&mut Daemon> {
        self.tcpcopies.get_mut(index).context("no such tcpcopy")
    }

    /// The `index`-th intercept.
    pub(crate) fn intercept(&mut self, index: usize) -> Result<&mut Daemon> {
        self.intercepts.get_mut(index).context("no such intercept")
    }

    /// The process id of the server on the first online host, and on the first target.
    pub(crate) fn server_pids(&self) -> Result<(u32, u32)> {
        let pid = |servers: &[Nginx]| servers.first().map(Nginx::pid).context("no server");
        Ok((pid(&self.online_servers)?, pid(&self.target_servers)?))
    }

    /// Stops the first target's server.
    pub(crate) fn stop_target(&mut self) -> Result<()> {
        self.target_servers.first_mut().context("no target")?.stop()
    }

    /// Starts the first target's server again.
    pub(crate) fn start_target_again(&mut self) -> Result<()> {
        let host = self.network.host(Role::Target, 0)?;
        self.target_servers.first_mut().context("no target")?.start_again(host.namespace())
    }

    /// Stops all tcpcopies, each with exit code 0, and returns what they counted, all together.
    pub(crate) fn stop_tcpcopies(&mut self) -> Result<Counters> {
        let mut counters = Counters::default();
        for tcpcopy in &mut self.tcpcopies {
            tcpcopy.stop()?;
            counters.add_last(&tcpcopy.output()?).context("tcpcopy logs no `stats` at its end")?;
        }
        self.tcpcopies.clear();
        Ok(counters)
    }

    /// A load from all addresses of the first client on all online servers, with fresh ids: adjust it and run it.
    pub(crate) fn load(&mut self, pace: Pace, connections: Connections, seconds: u64) -> Result<Load> {
        self.load_of(self.setup.family, pace, connections, seconds)
    }

    /// As [`Chain::load`], over a family.
    pub(crate) fn load_of(
        &mut self,
        family: Family,
        pace: Pace,
        connections: Connections,
        seconds: u64,
    ) -> Result<Load> {
        let onlines = self.setup.replaying.min(self.setup.plan.onlines.into());
        let servers: Result<Vec<SocketAddr>> =
            (0..onlines).map(|online| self.network.service(online, family)).collect();
        let first_id = self.next_id;
        self.next_id += IDS;
        Ok(Load {
            servers: servers?,
            sources: self.network.host(Role::Client, 0)?.sources(family),
            pace,
            connections,
            request: Request::Get(100),
            duration: Duration::from_secs(seconds),
            first_id,
            timeout: Duration::from_secs(10),
        })
    }

    /// Runs a load, to which no request may fail.
    pub(crate) fn run(&mut self, load: Load) -> Result<Report> {
        let report = load.run(self.network.host(Role::Client, 0)?.namespace())?;
        sound(&report)?;
        Ok(report)
    }

    /// Starts a load from the first client.
    pub(crate) fn begin(&self, load: Load) -> Result<Running> {
        load.start(self.network.host(Role::Client, 0)?.namespace())
    }

    /// What the online servers answered so far, all together.
    pub(crate) fn online(&mut self) -> Result<Answers> {
        merged(&mut self.online)
    }

    /// What the targets answered so far, all together.
    pub(crate) fn target(&mut self) -> Result<Answers> {
        merged(&mut self.target)
    }

    /// The observers of the online servers.
    pub(crate) fn online_observers(&mut self) -> &mut [Observer] {
        &mut self.online
    }

    /// The observers of the targets.
    pub(crate) fn target_observers(&mut self) -> &mut [Observer] {
        &mut self.target
    }

    /// Waits until the target has answered what the online server answered, `times` times, or has gone quiet.
    pub(crate) fn compare(&mut self, times: u32) -> Result<Comparison> {
        let online = &mut self.online;
        let mut all = || online.iter_mut().map(|online| Ok(online.update()?.lines())).sum::<Result<u64>>();
        let lines = wait::settled(LIMIT, FLUSHED, FLUSHED, &mut all, |_| true)?;
        let target = &mut self.target;
        let mut all = || target.iter_mut().map(|target| Ok(target.update()?.lines())).sum::<Result<u64>>();
        wait::settled(LIMIT, self.setup.patience, SETTLE, &mut all, |&count| {
            count >= lines * u64::from(times)
        })?;
        Ok(Comparison::of(&self.online()?, &self.target()?, times))
    }

    /// Compares and fails unless everything arrived exactly `times` times.
    pub(crate) fn expect_perfect(&mut self, times: u32) -> Result<Comparison> {
        let comparison = self.compare(times)?;
        if !comparison.perfect() {
            bail!("{comparison}");
        }
        let odd: u64 = self.target.iter().map(Observer::odd).sum();
        if odd > 0 {
            bail!("{comparison}, but {odd} lines of the target's log are no request that was sent");
        }
        Ok(comparison)
    }

    /// Stops all tcpcopies and fails if what they counted does not explain what the targets did not answer.
    pub(crate) fn account(&mut self) -> Result<(Account, Counters)> {
        let counters = self.stop_tcpcopies()?;
        let account = Account::of(&self.online()?, &self.target()?, &counters);
        Ok((account.with_context(|| counters.to_string())?, counters))
    }

    /// Fails if a server received another body than was sent; `size` is that of the uploads.
    pub(crate) fn check_bodies(&self, size: usize) -> Result<usize> {
        let mut checked = 0;
        for (side, observers) in [("online server", &self.online), ("target", &self.target)] {
            for observer in observers {
                let bodies = observer.bodies();
                checked = bodies.len();
                if let (count @ 1.., first) = observer::altered(&bodies, size) {
                    bail!(
                        "{count} of {} bodies are altered on the {side}; the first id: {first:?}",
                        bodies.len()
                    );
                }
            }
        }
        Ok(checked)
    }

    /// The cost of all tcpcopies and of all intercepts so far.
    pub(crate) fn usage(&self) -> Result<(Usage, Usage)> {
        let sum = |daemons: &[Daemon]| {
            daemons.iter().try_fold(Usage::default(), |sum, daemon| {
                let usage = daemon.usage()?;
                anyhow::Ok(Usage {
                    user: sum.user + usage.user,
                    system: sum.system + usage.system,
                    peak_kib: sum.peak_kib.max(usage.peak_kib),
                })
            })
        };
        Ok((sum(&self.tcpcopies)?, sum(&self.intercepts)?))
    }

    /// Fails if a client ever saw a packet of a target.
    pub(crate) fn check_leaks(&mut self) -> Result<()> {
        self.leaks.iter_mut().try_for_each(LeakDetector::check)
    }

    /// Packets of targets that clients saw, by family and kind.
    pub(crate) fn leaks_by_kind(&mut self) -> Result<Leaks> {
        let mut all = Leaks::new();
        for detector in &mut self.leaks {
            for (kind, count) in detector.leaks()? {
                *all.entry(*kind).or_default() += count;
            }
        }
        Ok(all)
    }

    /// Begins to count leaks anew.
    pub(crate) fn forget_leaks(&mut self) -> Result<()> {
        self.leaks()?;
        self.leaks.iter_mut().for_each(LeakDetector::forget);
        Ok(())
    }

    /// Packets of targets that clients saw.
    pub(crate) fn leaks(&mut self) -> Result<u64> {
        self.leaks.iter_mut().map(LeakDetector::count).sum()
    }

    /// The state of a host now.
    pub(crate) fn state(&self, role: Role, index: usize) -> Result<Snapshot> {
        self.network.host(role, index)?.namespace().snapshot()
    }

    /// Whether a host has, now, a table of this name.
    pub(crate) fn has_table(&self, role: Role, index: usize, table: &str) -> Result<bool> {
        Ok(self.state(role, index)?.has_table(table))
    }

    /// Takes the fail-closed rules away as an operator does.
    pub(crate) fn remove_rules(&self) -> Result<()> {
        for host in self.intercept_hosts() {
            let remove = ["rules".to_owned(), "remove".to_owned()];
            let mut daemon = Daemon::start(Program::Intercept, host.namespace(), &remove, &self.scratch)?;
            let status = daemon.wait()?;
            if !status.success() {
                bail!("`intercept rules remove` ended with {status}: {}", daemon.output()?.trim());
            }
        }
        Ok(())
    }

    /// As [`Chain::finish`], where packets of a target are to reach clients. Returns how many did.
    pub(crate) fn finish_leaking(mut self) -> Result<u64> {
        let leaked = self.leaks()?;
        self.leaks.clear();
        self.finish()?;
        Ok(leaked)
    }

    /// Stops all daemons and checks what must hold at the end of every scenario: they end with code 0, the fail-closed
    /// rules outlive intercept until they are taken away, nothing is left of rules and links, nothing leaked.
    pub(crate) fn finish(self) -> Result<()> {
        self.finish_counting().map(drop)
    }

    /// Stops all daemons, each with exit code 0. Returns what the intercepts counted, all together.
    pub(crate) fn stop_daemons(&mut self) -> Result<Counters> {
        self.tcpcopies.iter_mut().try_for_each(Daemon::stop)?;
        self.tcpcopies.clear();
        let mut counters = Counters::default();
        for intercept in &mut self.intercepts {
            intercept.stop()?;
            counters.add_last(&intercept.output()?).context("intercept logs no `stats` at its end")?;
        }
        self.intercepts.clear();
        Ok(counters)
    }

    /// As [`Chain::finish`]. Returns what the intercepts counted, all together.
    pub(crate) fn finish_counting(mut self) -> Result<Counters> {
        let intercepted = !self.intercepts.is_empty();
        let counters = self.stop_daemons()?;
        if intercepted {
            for host in self.intercept_hosts() {
                if !host.namespace().snapshot()?.has_table("intercept") {
                    bail!("intercept took its fail-closed rules with it");
                }
            }
            self.remove_rules()?;
        }
        let after = self.network.snapshot()?;
        self.before.iter().zip(&after).try_for_each(|(before, after)| before.same_as(after))?;
        self.check_leaks()?;
        Ok(counters)
    }
}

/// Makes a key for tunnels, as an operator does, unless it is there.
pub(crate) fn make_key(directory: &Path, name: &str) -> Result<()> {
    let file = directory.join(name);
    if file.exists() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    let output = Command::new(Program::Intercept.path()?).arg("keygen").arg(&file).output()?;
    if !output.status.success() {
        bail!("keygen: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Fails if a production request failed.
pub(crate) fn sound(report: &Report) -> Result<()> {
    if report.failed() > 0 || report.answered == 0 {
        bail!("production: {} answered, failures {:?}", report.answered, report.failures);
    }
    Ok(())
}

/// `count` connections that stay.
pub(crate) fn keep_alive(count: usize) -> Connections {
    Connections::KeepAlive(count)
}

/// One request per connection, closed by the server.
pub(crate) fn short() -> Connections {
    Connections::Short(2000, Closer::Server)
}

fn merged(observers: &mut [Observer]) -> Result<Answers> {
    let mut all = Answers::default();
    for observer in observers {
        all.merge(observer.update()?);
    }
    Ok(all)
}
