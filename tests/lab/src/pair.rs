//! A chain with the same software on the online host and on the target, and the comparison of what the two hold.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::chain::{Chain, Setup};
use crate::namespace::Namespace;
use crate::network::{Family, Role};
use crate::scenarios::Context;
use crate::server::{self, Server};
use crate::wait;

/// How long the target may take to become what the online server is.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long both must stay equal: what is replayed twice shows by then.
const SETTLE: Duration = Duration::from_millis(300);
/// How often a server is asked: a question may cost as much as a request.
const POLL: Duration = Duration::from_millis(50);

/// One of the two servers.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    /// Its host.
    pub(crate) on: &'a Namespace,
    /// The family of its clients.
    pub(crate) family: Family,
    /// Its directory.
    pub(crate) directory: &'a Path,
}

impl Site<'_> {
    /// Runs a program beside the server and returns its output.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.on.output(program, arguments)
    }

    /// A path in the server's directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }
}

/// The two servers and the chain between them.
#[derive(Debug)]
pub(crate) struct Pair {
    // Before the chain: servers end before their hosts.
    servers: Vec<Server>,
    directories: [PathBuf; 2],
    chain: Chain,
    port: u16,
    family: Family,
}

impl Pair {
    /// Starts what `launch` says on both hosts, and the daemons: when this returns, `port` is replayed.
    pub(crate) fn start(
        context: &Context,
        family: Family,
        server: (&str, u16),
        launch: impl Fn(&Site<'_>) -> Result<Command>,
    ) -> Result<Self> {
        Self::start_with(context, family, server, "", launch)
    }

    /// The same, with `options` of tcpcopy.
    pub(crate) fn start_with(
        context: &Context,
        family: Family,
        (name, port): (&str, u16),
        options: &str,
        launch: impl Fn(&Site<'_>) -> Result<Command>,
    ) -> Result<Self> {
        let mut setup = Setup::new(context.plan(), family).tcpcopy(options);
        setup.port = Some(port);
        let mut chain = Chain::prepare(setup, &context.scratch)?;
        let mut servers = Vec::new();
        let directories = [Role::Online, Role::Target].map(|role| -> Result<PathBuf> {
            let on = chain.network().host(role, 0)?.namespace();
            let directory = server::directory(&context.scratch, name, on)?;
            let command = launch(&Site { on, family, directory: &directory })?;
            servers.push(Server::start(on, &directory, command, port)?);
            Ok(directory)
        });
        let [online, target] = directories;
        let directories = [online?, target?];
        chain.start_intercepts()?;
        chain.start_tcpcopies()?;
        Ok(Self { servers, directories, chain, port, family })
    }

    /// The service as clients know it.
    pub(crate) fn service(&self) -> Result<SocketAddr> {
        let mut service = self.chain.network().service(0, self.family)?;
        service.set_port(self.port);
        Ok(service)
    }

    /// The host that makes the load.
    pub(crate) fn client(&self) -> Result<&Namespace> {
        Ok(self.chain.network().host(Role::Client, 0)?.namespace())
    }

    /// Runs a program on the client; it must succeed.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.client()?.output(program, arguments)
    }

    /// Waits until the target says what the online server says; the clients must be done. Returns what both say.
    pub(crate) fn expect_same(
        &mut self,
        what: &str,
        ask: impl Fn(&Site<'_>) -> Result<String>,
    ) -> Result<String> {
        let [online, target] = [Role::Online, Role::Target].map(|role| self.chain.network().host(role, 0));
        let [at_online, at_target] = &self.directories;
        let online = Site { on: online?.namespace(), family: self.family, directory: at_online };
        let target = Site { on: target?.namespace(), family: self.family, directory: at_target };
        let mut answers = (String::new(), String::new());
        let mut same = || -> Result<bool> {
            answers = (ask(&online).context("the online server")?, ask(&target).context("the target")?);
            Ok(answers.0 == answers.1)
        };
        let waited = wait::every(POLL, PATIENCE, what, &mut same);
        let stayed = waited.and_then(|()| {
            let settled = Instant::now() + SETTLE;
            wait::every(POLL, PATIENCE, what, || {
                ensure!(same()?, "{what} were the same for a moment only");
                Ok(Instant::now() >= settled)
            })
        });
        match stayed {
            Ok(()) => Ok(answers.0),
            Err(error) => {
                // Before what follows from it.
                for server in &mut self.servers {
                    if let Some(status) = server.ended()? {
                        bail!("a server ended with {status}; {what} differ");
                    }
                }
                bail!("{what} differ, {}: {error:#}", difference(&answers.0, &answers.1));
            }
        }
    }

    /// Ends all; see [`Chain::finish`].
    pub(crate) fn finish(self) -> Result<()> {
        self.chain.finish()
    }
}

/// What the two said where they first differ.
fn difference(online: &str, target: &str) -> String {
    let pieces = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (online, target) = (pieces(online), pieces(target));
    let at = online.iter().zip(&target).take_while(|(one, other)| one == other).count();
    let shown = |lines: &[String]| {
        let few = lines.iter().skip(at).take(3);
        few.map(|line| line.chars().take(160).collect()).collect::<Vec<String>>().join(" | ")
    };
    format!(
        "line {} of {} and {}: online `{}`, target `{}`",
        at + 1,
        online.len(),
        target.len(),
        shown(&online),
        shown(&target)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_shown() {
        let said = difference("a\nb\nc", "a\nx");
        assert_eq!(said, "line 2 of 3 and 2: online `b | c`, target `x`");
    }
}
