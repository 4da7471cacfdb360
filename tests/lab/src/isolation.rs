//! Isolation by the kernel: the laboratory runs as init of its own PID, mount and network namespaces, so that whatever
//! ends it (a panic, SIGKILL), the kernel removes every process, link, rule, mount and namespace it made.

use std::env;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, bail};

use crate::sys;

/// Tells a re-executed laboratory how deep inside it is.
const DEPTH: &str = "LAB_DEPTH";

/// The number of an open descriptor of the `/proc` outside.
const OUTSIDE: &str = "LAB_OUTSIDE";

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
        let outside = fs::File::open("/proc")?;
        let mut command = isolated(1)?;
        command.env(OUTSIDE, outside.as_raw_fd().to_string());
        sys::hand_down(&mut command, outside.as_fd());
        let inside = command.args(env::args_os().skip(1)).status();
        let status = inside.context("cannot run unshare (Debian package util-linux)")?;
        process::exit(status.code().unwrap_or(1));
    }
    sys::exit_on_signals()?;
    if let Some(descriptor) = outside() {
        sys::keep_to_itself(descriptor)?;
    }
    if depth() == 1 {
        mount_tmpfs("/run")?;
        fs::create_dir_all(SCRATCH)?;
    }
    fs::create_dir_all("/run/netns")?;
    mount_tmpfs("/run/netns")
}

/// The `/proc` outside, with the processes of the whole machine as far as the laboratory may see it.
pub(crate) fn processes_outside() -> Result<PathBuf> {
    let descriptor = outside().context("the laboratory was not started by itself")?;
    Ok(PathBuf::from(format!("/proc/self/fd/{descriptor}")))
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

fn outside() -> Option<i32> {
    env::var(OUTSIDE).ok()?.parse().ok()
}

fn isolated(depth: u32) -> Result<Command> {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(env::current_exe().context("the laboratory's own path")?)
        .env(DEPTH, depth.to_string())
        .env_remove(OUTSIDE)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM");
    sys::die_with_parent(&mut command);
    Ok(command)
}

fn mount_tmpfs(on: &str) -> Result<()> {
    sys::mount_tmpfs(on).with_context(|| format!("cannot mount a tmpfs on {on}"))
}
