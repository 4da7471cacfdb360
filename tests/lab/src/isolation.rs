//! Isolation by the kernel: the laboratory runs as init of its own PID, mount and network namespaces, so that whatever
//! ends it (a panic, SIGKILL), the kernel removes every process, link, rule, mount and namespace it made.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, bail};

use crate::sys;

/// Tells a re-executed laboratory how deep inside it is.
const DEPTH: &str = "LAB_DEPTH";

/// Where the laboratory keeps its files: on a tmpfs only its own mount namespace sees.
pub(crate) const SCRATCH: &str = "/run/lab";

/// Re-executes the laboratory in namespaces of its own, unless it already is in them. The network namespace the process
/// ends up in is empty but for `lo`; `/run` is a fresh tmpfs.
pub(crate) fn enter() -> Result<()> {
    if depth() == 0 {
        if !sys::is_root() {
            bail!("network namespaces need root: run it through sudo");
        }
        // unshare(1) itself is deaf to SIGTERM and SIGINT; this process is not, and takes it along.
        let inside = isolated(1)?.args(env::args_os().skip(1)).status();
        let status = inside.context("cannot run unshare (Debian package util-linux)")?;
        process::exit(status.code().unwrap_or(1));
    }
    sys::exit_on_signals()?;
    if depth() == 1 {
        mount_tmpfs("/run")?;
        fs::create_dir_all(SCRATCH)?;
    }
    fs::create_dir_all("/run/netns")?;
    mount_tmpfs("/run/netns")
}

/// A command that runs this program once more in namespaces of its own: a scenario that hangs can be killed, and all it
/// made goes with it.
pub(crate) fn nested() -> Result<Command> {
    isolated(depth() + 1)
}

/// Where logs of failures are kept: outside the private tmpfs.
pub(crate) fn kept_logs() -> PathBuf {
    if let Some(dir) = env::var_os("LAB_LOGS") {
        return PathBuf::from(dir);
    }
    let program = env::current_exe().unwrap_or_default();
    program.ancestors().nth(2).unwrap_or(Path::new("/tmp")).join("lab-logs")
}

fn depth() -> u32 {
    env::var(DEPTH).ok().and_then(|depth| depth.parse().ok()).unwrap_or(0)
}

fn isolated(depth: u32) -> Result<Command> {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(env::current_exe().context("the laboratory's own path")?)
        .env(DEPTH, depth.to_string())
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM");
    sys::die_with_parent(&mut command);
    Ok(command)
}

fn mount_tmpfs(on: &str) -> Result<()> {
    sys::mount_tmpfs(on).with_context(|| format!("cannot mount a tmpfs on {on}"))
}
