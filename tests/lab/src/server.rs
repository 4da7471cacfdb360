//! A server program on a host, whatever it is: started with a directory of its own, awaited until it listens, and killed
//! in the end. What it writes goes to `<name>-<host>/server.log`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::wait;

/// How long a server may take to listen: PostgreSQL on a busy machine needs some seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server. Dropping it kills it: nothing it keeps is of value then.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts `command`, which must become the server itself, and waits until something listens on `port`.
    pub(crate) fn start(on: &Namespace, directory: &Path, mut command: Command, port: u16) -> Result<Self> {
        let log = directory.join("server.log");
        let output = File::create(&log)?;
        let child = command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let mut server = Self { child };
        wait::until(
            PATIENCE,
            &format!("port {port} on {} is listened on; see {}", on.name(), log.display()),
            || {
                if let Some(status) = server.child.try_wait()? {
                    bail!("{command:?} ended with {status}: {}", fs::read_to_string(&log)?.trim());
                }
                listened_on(on, port)
            },
        )?;
        Ok(server)
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the directory of a server on a host.
pub(crate) fn directory(scratch: &Path, name: &str, on: &Namespace) -> Result<PathBuf> {
    let directory = scratch.join(format!("{name}-{}", on.name()));
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Whether a TCP socket of the host listens on `port`: without a connection, which the server would count.
fn listened_on(on: &Namespace, port: u16) -> Result<bool> {
    let tables = on.enter(|| {
        ["tcp", "tcp6"]
            .map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default())
    })?;
    Ok(tables.iter().any(|table| has_listener(table, port)))
}

fn has_listener(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(1).is_some_and(|address| address.ends_with(&local)) && fields.nth(1) == Some(LISTEN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_count() {
        let table = "  sl  local_address rem_address   st\n   \
                     0: 00000000:18EB 00000000:0000 0A 00000000:00000000\n   \
                     1: 0100007F:0050 0100007F:18EC 01 00000000:00000000\n";
        assert!(has_listener(table, 6379));
        assert!(!has_listener(table, 80), "a connection");
        assert!(!has_listener(table, 6380), "the other end");
    }
}
