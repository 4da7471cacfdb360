//! One host of the laboratory: a named network namespace.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::sys;

/// A network namespace under `/run/netns`. It goes away with the laboratory's mount namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes the namespace and brings its loopback up.
    pub(crate) fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]), None)?;
        let file = File::open(format!("/run/netns/{name}")).context("the namespace just made")?;
        let namespace = Self { name: name.to_owned(), file };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// The host's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside; the spawned process is the program itself, so its PID is the program's.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `ip -batch` inside with `lines`.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        run(self.command("ip").args(["-batch", "-"]), Some(lines)).map(drop)
    }

    /// Runs a program inside and returns its standard output.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments), None).with_context(|| format!("on {}", self.name))
    }

    /// Runs `work` on a thread inside. Sockets that it opens stay inside wherever they are used later.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                sys::enter_network(self.file.as_fd())?;
                Ok(work())
            });
            inside.join().map_err(|_panic| anyhow!("a thread on {} panicked", self.name))?
        })
    }

    /// Starts a thread inside that outlives this call.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let file = self.file.try_clone()?;
        Ok(std::thread::spawn(move || {
            sys::enter_network(file.as_fd())?;
            work()
        }))
    }

    /// Sets kernel parameters of this namespace: paths below `/proc/sys/net` and values.
    pub(crate) fn set(&self, parameters: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (path, value) in parameters {
                fs::write(format!("/proc/sys/net/{path}"), value)
                    .with_context(|| format!("cannot set net/{path} to {value} on {}", self.name))?;
            }
            Ok(())
        })?
    }

    /// A kernel parameter of this namespace that is a number: a path below `/proc/sys/net`.
    pub(crate) fn number(&self, path: &str) -> Result<u32> {
        let text = self.enter(|| fs::read_to_string(format!("/proc/sys/net/{path}")))??;
        Ok(text.trim().parse()?)
    }

    /// What the host has of rules, links, addresses and routes: to compare before and after.
    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        let links = self.output("ip", &["-o", "link", "show"])?;
        let addresses = self.output("ip", &["-o", "address", "show"])?;
        let mut routes = self.output("ip", &["route", "show", "table", "all"])?;
        routes.push_str(&self.output("ip", &["-6", "route", "show", "table", "all"])?);
        routes.push_str(&self.output("ip", &["rule", "show"])?);
        routes.push_str(&self.output("ip", &["-6", "rule", "show"])?);
        Ok(Snapshot {
            host: self.name.clone(),
            rules: self.output("nft", &["list", "ruleset"])?,
            links: links.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect(),
            addresses: addresses.lines().map(words).collect(),
            routes: routes.lines().map(words).collect(),
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A namespace that stays is removed with the mount namespace, at the latest.
        let _ = run(Command::new("ip").args(["netns", "delete", &self.name]), None);
    }
}

/// The state of a host's network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    host: String,
    rules: String,
    links: Vec<String>,
    addresses: Vec<String>,
    routes: Vec<String>,
}

impl Snapshot {
    /// Fails with what differs between this state and a later one.
    pub(crate) fn same_as(&self, later: &Self) -> Result<()> {
        if self.rules != later.rules {
            bail!("rules left on {}:\n{}", self.host, later.rules);
        }
        for (what, before, after) in [
            ("links", &self.links, &later.links),
            ("addresses", &self.addresses, &later.addresses),
            ("routes", &self.routes, &later.routes),
        ] {
            if before != after {
                bail!("{what} on {} changed from {before:?} to {after:?}", self.host);
            }
        }
        Ok(())
    }

    /// The names of its links.
    pub(crate) fn links(&self) -> &[String] {
        &self.links
    }

    /// Whether a link of this name is there.
    pub(crate) fn has_link(&self, name: &str) -> bool {
        self.links.iter().any(|link| link.trim_end_matches(':').split('@').next() == Some(name))
    }

    /// Whether the ruleset has a table of this name.
    pub(crate) fn has_table(&self, name: &str) -> bool {
        self.rules.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("table") && words.nth(1) == Some(name)
        })
    }
}

/// Runs a command to its end and returns its standard output; its error names the command and what it said.
pub(crate) fn run(command: &mut Command, input: Option<&str>) -> Result<String> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One line with the words that count lifetimes left out and single blanks.
fn words(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    words.retain(|word| !word.ends_with("sec"));
    words.join(" ")
}

/// A ruleset without what its counters say.
pub(crate) fn without_counts(rules: &str) -> String {
    let words = rules.split_whitespace();
    let mut counted = false;
    words
        .filter(|word| {
            let number = counted && word.chars().all(|c| c.is_ascii_digit());
            counted = matches!(*word, "packets" | "bytes");
            !number
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn counters_do_not_make_a_ruleset_another() {
        let rules =
            |packets| format!("table ip x {{\n tcp dport 80 counter packets {packets} bytes 9 drop\n}}");
        assert_eq!(super::without_counts(&rules(1)), super::without_counts(&rules(77)));
        assert_ne!(super::without_counts(&rules(1)), super::without_counts(&rules(1).replace("80", "81")));
    }
}
