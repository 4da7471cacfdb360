//! Sockets that this program opened before it executed itself again, with a capability that it no longer has.
//!
//! A process gets rid of a capability that a service manager hands down (the ambient set of capabilities(7)) by
//! capset(2), or by an execve(2) before which it takes it out of that set. The sandbox of the packaged units refuses
//! capset. So the sockets that take the capability stay open over an execve, and are passed as service managers pass
//! sockets: from descriptor 3 on (sd_listen_fds(3)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};

/// The first descriptor that is passed.
const FIRST: RawFd = 3;

/// Those that nobody has asked for yet.
static PASSED: LazyLock<Mutex<Vec<Socket>>> = LazyLock::new(|| Mutex::new(claim()));

/// What socket(2) takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub(super) domain: Domain,
    pub(super) r#type: Type,
    pub(super) protocol: Option<Protocol>,
}

impl Kind {
    /// A socket of this kind, CLOEXEC: one that was passed, or a new one.
    pub fn open(self) -> io::Result<Socket> {
        let mut passed = passed();
        match passed.iter().position(|socket| Self::of(socket).is_ok_and(|kind| kind == self)) {
            Some(index) => Ok(passed.swap_remove(index)),
            None => Socket::new(self.domain, self.r#type, self.protocol),
        }
    }

    fn of(socket: &Socket) -> io::Result<Self> {
        Ok(Self { domain: socket.domain()?, r#type: socket.r#type()?, protocol: socket.protocol()? })
    }
}

/// Whether there are sockets that were passed and that nobody has asked for. Listeners do not count: a service manager
/// passes those, and not this program to itself.
pub fn has_sockets() -> bool {
    passed().iter().any(|socket| !is_listener(socket))
}

/// The listening TCP sockets that a service manager passed.
pub fn take_listeners() -> Vec<Socket> {
    let mut passed = passed();
    let (listeners, others) = std::mem::take(&mut *passed).into_iter().partition(is_listener);
    *passed = others;
    listeners
}

fn is_listener(socket: &Socket) -> bool {
    let is_tcp = socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
        && socket.domain().is_ok_and(|domain| domain == Domain::IPV4 || domain == Domain::IPV6);
    is_tcp && socket.is_listener().unwrap_or(false)
}

/// Closes those that nobody has asked for, and will not.
pub fn close() {
    passed().clear();
}

/// Executes this program again, with the arguments and the environment it has, and passes `sockets`. Returns only if
/// that fails; the sockets are closed then.
///
/// To be called before there are threads and before anything is open that is to be closed in order. Descriptors from 3
/// on that are not `sockets`' are taken for these.
pub fn execute_again(mut sockets: Vec<Socket>) -> io::Error {
    // In this order none lands on one that has not moved yet: the lowest is 3 or more, the next one more, and so on.
    sockets.sort_by_key(AsRawFd::as_raw_fd);
    let mut moved = Vec::new();
    for (socket, to) in sockets.into_iter().zip(FIRST..) {
        match move_to(socket, to) {
            Ok(socket) => moved.push(socket),
            Err(error) => return error,
        }
    }
    // Its own path, not /proc/self/exe, after whose last part the process would be called.
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments);
    command.env("LISTEN_PID", process::id().to_string()).env("LISTEN_FDS", moved.len().to_string());
    command.exec()
}

/// The same socket, not CLOEXEC, as descriptor `to`.
fn move_to(socket: Socket, to: RawFd) -> io::Result<Socket> {
    if socket.as_raw_fd() == to {
        socket.set_cloexec(false)?;
        return Ok(socket);
    }
    // SAFETY: the call takes numbers only. What `to` was before is nobody's who goes on after this, see
    // `execute_again`.
    if unsafe { libc::dup2(socket.as_raw_fd(), to) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `to` has just been opened, and nobody else has it.
    Ok(unsafe { Socket::from_raw_fd(to) })
}

fn passed() -> MutexGuard<'static, Vec<Socket>> {
    PASSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sockets that were passed to this process. What is said of them is believed as far as it is true.
fn claim() -> Vec<Socket> {
    let Ok(descriptors) = sd_notify::listen_fds() else { return Vec::new() };
    // SAFETY: who says, in the environment and with this process's number, that these descriptors are passed to it
    // has left them to it, and `PASSED` is the only one to ask, once. They are open: `listen_fds` has set CLOEXEC on
    // each.
    descriptors.map(|descriptor| unsafe { Socket::from_raw_fd(descriptor) }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_kind_is_told_by_its_socket() {
        let kind = Kind { domain: Domain::IPV4, r#type: Type::DGRAM, protocol: Some(Protocol::UDP) };
        assert_eq!(Kind::of(&kind.open().unwrap()).unwrap(), kind);
        assert!(!has_sockets());
    }

    #[test]
    fn only_a_listening_tcp_socket_is_a_listener() {
        for domain in [Domain::IPV4, Domain::IPV6] {
            let socket = Socket::new(domain, Type::STREAM, None).unwrap();
            assert!(!is_listener(&socket));
            socket.listen(1).unwrap();
            assert!(is_listener(&socket));
        }
        assert!(!is_listener(&Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap()));
        assert!(take_listeners().is_empty());
    }

    #[test]
    fn a_moved_socket_is_the_same_and_stays_over_an_execution() {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_ttl_v4(7).unwrap();
        // A number that no other test has meanwhile.
        let to = socket.try_clone().unwrap().into_raw_fd();
        let moved = move_to(socket, to).unwrap();
        assert_eq!((moved.as_raw_fd(), moved.ttl_v4().unwrap()), (to, 7));
        // SAFETY: the call takes numbers only.
        assert_eq!(unsafe { libc::fcntl(to, libc::F_GETFD) }, 0);
    }
}
