//! What the process gives up once it is set up: the user it was started as, and the capabilities that no thread needs.

use std::io;

use nix::sys::prctl;
use nix::unistd::{self, Gid, User};

use super::exit::{Code, Failure};
use crate::config::DEFAULT_USER;
use crate::sys::capabilities::{Capability, has_more_than, is_ambient, keep_capabilities, lower_ambient};
use crate::sys::handover::{self, Kind};

/// Gives up CAP_NET_RAW if a service manager has handed it down: the program executes itself again without, and with
/// sockets of these kinds open. In a sandbox there is no other way, as it forbids [`give_up`] to do it.
///
/// To be called before anything else is open. It returns if there is nothing to give up, if the sockets cannot be
/// opened, which is told where they are used, or with the error that the execution failed with.
pub(super) fn execute_without_net_raw(kinds: impl Iterator<Item = Kind>) -> io::Result<()> {
    if !is_ambient(Capability::NetRaw) {
        return Ok(());
    }
    let mut sockets = Vec::new();
    for kind in kinds {
        match kind.open() {
            Ok(socket) => sockets.push(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            Err(_) => return Ok(()),
        }
    }
    lower_ambient(Capability::NetRaw)?;
    Err(handover::execute_again(sockets))
}

/// Becomes `user`, if the process is root and there is such a user, and keeps no capability but `needed`. To be called
/// after all that root alone may do, and before there are other threads: they have no more than this one.
pub(super) fn give_up(user: &str, needed: &[Capability]) -> Result<(), Failure> {
    if unistd::geteuid().is_root()
        && let Some(user) = find(user)?
    {
        become_user(&user, needed).map_err(|error| failed(&user.name, error))?;
    }
    if let Err(error) = prctl::set_no_new_privs() {
        tracing::warn!(%error, "the process could gain privileges by starting programs; it starts none");
    }
    handover::close();
    keep(needed);
    Ok(())
}

/// Keeps no capability of this thread but `needed`. A sandbox that forbids giving them up is no reason not to run, nor
/// one for a warning if it has left no more than the programs can use.
pub(super) fn keep(needed: &[Capability]) {
    let Err(error) = keep_capabilities(needed) else { return };
    let usable = [Capability::NetAdmin, Capability::NetRaw];
    if error.kind() == io::ErrorKind::PermissionDenied && has_more_than(&usable).is_ok_and(|more| !more) {
        tracing::debug!(%error, "the sandbox forbids giving up capabilities");
    } else {
        tracing::warn!(%error, "capabilities that are not needed cannot be given up (allow the system call capset)");
    }
}

/// The user's entry. Without a package there is no user of ours, and root stays what it is.
fn find(name: &str) -> Result<Option<User>, Failure> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok(Some(user).filter(|user| !user.uid.is_root())),
        Ok(None) if name == DEFAULT_USER => {
            tracing::info!(
                user = name,
                "there is no such user: running as root, with no capability that is not needed"
            );
            Ok(None)
        }
        Ok(None) => Err(Failure::new(
            Code::Config,
            format_args!("user: there is no user {name}; name another, or root"),
        )),
        Err(error) => Err(failed(name, error)),
    }
}

fn become_user(user: &User, needed: &[Capability]) -> nix::Result<()> {
    // Capabilities survive the change of user, though not in effect.
    prctl::set_keepcaps(true)?;
    unistd::setgroups(&[] as &[Gid])?;
    unistd::setresgid(user.gid, user.gid, user.gid)?;
    unistd::setresuid(user.uid, user.uid, user.uid)?;
    prctl::set_keepcaps(false)?;
    keep(needed);
    // The process's own files below /proc would be root's now.
    prctl::set_dumpable(true)
}

fn failed(user: &str, error: nix::Error) -> Failure {
    Failure::system(
        format_args!("cannot become user {user}"),
        &error.into(),
        "name another with the key user, or root to stay root",
    )
}
