//! A daemon under test: a process on a host, its log, its cost and its end.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::processors;
use crate::sys::{self, Signal};
use crate::wait;

/// How long a daemon may take to say that it is ready, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one may take to end after a scenario that failed.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// `USER_HZ`, in which /proc counts CPU time.
const TICK: Duration = Duration::from_millis(10);

/// One of the programs of the project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// `tcpcopy`
    Tcpcopy,
    /// `intercept`
    Intercept,
}

impl Program {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcpcopy => "tcpcopy",
            Self::Intercept => "intercept",
        }
    }

    /// The file to run: `LAB_TCPCOPY` or `LAB_INTERCEPT` name it, or it lies beside the laboratory.
    pub(crate) fn path(self) -> Result<PathBuf> {
        let variable = match self {
            Self::Tcpcopy => "LAB_TCPCOPY",
            Self::Intercept => "LAB_INTERCEPT",
        };
        let path = match std::env::var_os(variable) {
            Some(path) => PathBuf::from(path),
            None => std::env::current_exe()?.with_file_name(self.name()),
        };
        if !path.is_file() {
            bail!("{} is not there: build it (cargo build --release) or set {variable}", path.display());
        }
        Ok(path)
    }
}

/// What a process has cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time in user space, all threads.
    pub(crate) user: Duration,
    /// CPU time in the kernel, all threads.
    pub(crate) system: Duration,
    /// The most memory it ever had, KiB.
    pub(crate) peak_kib: u64,
}

impl Usage {
    /// CPU time, user and system.
    pub(crate) fn cpu(&self) -> Duration {
        self.user + self.system
    }

    /// The cost of a process so far.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Self::parse(&stat, &status).with_context(|| format!("odd /proc/{pid}/stat"))
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The program's name, in parentheses, may hold blanks; utime and stime are fields 14 and 15.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u32>().ok();
        let (user, system) = (TICK * ticks()?, TICK * ticks()?);
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let peak_kib = peak.split_whitespace().next()?.parse().ok()?;
        Some(Self { user, system, peak_kib })
    }
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Daemon {
    what: String,
    child: Child,
    log: PathBuf,
    /// Where this run's part of the log begins.
    from: u64,
}

impl Daemon {
    /// Starts a program on a host. Its output is appended to `<program>-<host>.log` in `scratch`.
    pub(crate) fn start(
        program: Program,
        on: &Namespace,
        arguments: &[String],
        scratch: &Path,
    ) -> Result<Self> {
        let path = program.path()?;
        Self::run(&path, program.name(), on, arguments, scratch)
    }

    /// The same, started by another program: `under` is it and its first arguments, or nothing. It must become the
    /// program itself.
    pub(crate) fn start_under(
        under: &[String],
        program: Program,
        on: &Namespace,
        arguments: &[String],
        scratch: &Path,
    ) -> Result<Self> {
        let Some((first, rest)) = under.split_first() else {
            return Self::start(program, on, arguments, scratch);
        };
        let mut all = rest.to_vec();
        all.push(program.path()?.display().to_string());
        all.extend_from_slice(arguments);
        Self::run(first.as_ref(), program.name(), on, &all, scratch)
    }

    /// Starts any file on a host.
    pub(crate) fn run(
        path: &Path,
        name: &str,
        on: &Namespace,
        arguments: &[String],
        scratch: &Path,
    ) -> Result<Self> {
        let log = scratch.join(format!("{name}-{}.log", on.name()));
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        let from = file.metadata()?.len();
        let mut command = on.command(path);
        processors::away_from_production(&mut command);
        let child = command
            .args(arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot run {}", path.display()))?;
        Ok(Self { what: format!("{name} on {}", on.name()), child, log, from })
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the daemon has logged `ready`; fails at once if it ends instead.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        let what = format!("{} logs `ready`; see {}", self.what, self.log.display());
        wait::until(PATIENCE, &what, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended before it was ready ({status}): {}", self.what, self.output()?.trim());
            }
            self.is_ready()
        })
    }

    /// Whether the daemon has logged `ready`.
    pub(crate) fn is_ready(&self) -> Result<bool> {
        Ok(self.output()?.lines().any(says_ready))
    }

    /// What this run has logged.
    pub(crate) fn output(&self) -> Result<String> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What it has cost so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        sys::signal(self.pid(), signal).with_context(|| format!("{signal:?} to {}", self.what))
    }

    /// Whether it still runs.
    pub(crate) fn running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        self.wait_for(PATIENCE)
    }

    /// Waits for its end, not longer than `limit`.
    pub(crate) fn wait_for(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait::until(limit, &format!("{} ends", self.what), || Ok(self.child.try_wait()?.is_some()))?;
        Ok(self.child.wait()?)
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::Kill)?;
        self.wait().map(drop)
    }

    /// Asks it to end, and expects exit code 0.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.signal(Signal::Term)?;
        let status = self.wait()?;
        if !status.success() {
            bail!("{} ended with {status} on SIGTERM: {}", self.what, self.output()?.trim());
        }
        Ok(())
    }
}

impl Drop for Daemon {
    /// After a failure: the last statistics, which an ordinary end logs, tell why.
    fn drop(&mut self) {
        if self.signal(Signal::Term).is_ok() {
            let ended = |child: &mut Child| Ok(child.try_wait()?.is_some());
            let _ = wait::until(LAST_WORDS, "the end", || ended(&mut self.child));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn says_ready(line: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric()).any(|word| word == "ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_a_word() {
        assert!(says_ready("2026-01-01T00:00:00Z  INFO tcpcopy: ready workers=1"));
        assert!(says_ready("ready"));
        assert!(!says_ready("already connected"));
    }

    #[test]
    fn cost_is_read_from_proc() {
        let stat = "12 (a (b) c) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 100 1000 10";
        let usage = Usage::parse(stat, "Name:\tx\nVmHWM:\t    5432 kB\n").unwrap();
        assert_eq!((usage.cpu(), usage.peak_kib), (Duration::from_secs(3), 5432));
        assert!(Usage::of(std::process::id()).is_ok());
    }
}
