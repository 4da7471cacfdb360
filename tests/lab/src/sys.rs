//! The few system calls the standard library does not offer: the only `unsafe` of the laboratory.
#![expect(unsafe_code, reason = "libc calls; each has a SAFETY comment")]

use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// A signal the laboratory sends to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Asks to end.
    Term,
    /// Ends at once; cannot be caught.
    Kill,
    /// Freezes; cannot be caught.
    Stop,
    /// Goes on after [`Signal::Stop`].
    Continue,
    /// Asks to read the configuration again.
    Reload,
}

/// Sends `signal` to the one process `pid`.
pub(crate) fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let number = match signal {
        Signal::Term => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
        Signal::Reload => libc::SIGHUP,
    };
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    if pid <= 1 {
        return Err(io::Error::other("refusing to signal init or a process group"));
    }
    // SAFETY: kill() takes two integers and touches no memory of ours.
    check(unsafe { libc::kill(pid, number) }).map(drop)
}

/// Moves the calling thread, and no other, into the network namespace behind `namespace`.
pub(crate) fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call; setns() touches no memory of ours.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Has the kernel kill the program that `command` will start when the calling thread ends, however it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    let set = || {
        // SAFETY: prctl() with these arguments takes integers only.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }).map(drop)
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(set) };
}

/// Keeps the calling thread, and all that it starts, to the processors with these numbers.
pub(crate) fn keep_to(processors: Range<usize>) -> io::Result<()> {
    // SAFETY: all-zero bytes are an empty set, and CPU_SET() changes bytes of the set only, none for a number beyond it.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for processor in processors {
            libc::CPU_SET(processor, &mut set);
        }
        set
    };
    // SAFETY: `set` is valid for reads of its size, and the kernel keeps no pointer to it.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) }).map(drop)
}

/// Has the program that `command` will start keep to the processors with these numbers.
pub(crate) fn run_on(command: &mut Command, processors: Range<usize>) {
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(move || keep_to(processors.clone())) };
}

/// Lets the program that `command` will start keep a descriptor of this process, which must be open until then.
pub(crate) fn hand_down(command: &mut Command, descriptor: BorrowedFd<'_>) {
    let descriptor = descriptor.as_raw_fd();
    // SAFETY: fcntl() with these arguments takes integers only.
    let keep = move || check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) }).map(drop);
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(keep) };
}

/// Keeps a descriptor that was handed down from the programs this process starts.
pub(crate) fn keep_to_itself(descriptor: i32) -> io::Result<()> {
    // SAFETY: fcntl() with these arguments takes integers only.
    check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Ends the process on SIGINT, SIGTERM and SIGHUP. Init of a PID namespace ignores them otherwise, and its end is what
/// makes the kernel remove everything that the laboratory made.
pub(crate) fn exit_on_signals() -> io::Result<()> {
    extern "C" fn exit(number: libc::c_int) {
        // SAFETY: _exit() is async-signal-safe and does not return.
        unsafe { libc::_exit(128 + number) }
    }
    let handler: extern "C" fn(libc::c_int) = exit;
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler is a function of the right type that lives forever and calls only _exit().
        if unsafe { libc::signal(number, handler as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Mounts a fresh tmpfs. By system call: mount(8) leaves notes of it in `/run`.
pub(crate) fn mount_tmpfs(on: &str) -> io::Result<()> {
    let on = CString::new(on)?;
    // SAFETY: the strings end in a zero byte and outlive the call.
    check(unsafe {
        libc::mount(
            c"tmpfs".as_ptr(),
            on.as_ptr(),
            c"tmpfs".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV,
            c"mode=755".as_ptr().cast(),
        )
    })
    .map(drop)
}

/// Makes netfilter's netlink sockets impossible for this process and those it becomes, with the error of a kernel that
/// does not have them.
pub(crate) fn forbid_netfilter() -> io::Result<()> {
    const LOAD: u16 = 0x20; // A = four bytes at k of struct seccomp_data: number, architecture, address, six arguments
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FIRST_ARGUMENT: u32 = 16;
    const THIRD_ARGUMENT: u32 = 32;
    let number = |value: i64| u32::try_from(value).map_err(io::Error::other);
    let step = |code, no, k| libc::sock_filter { code, jt: 0, jf: no, k };
    let refused = libc::SECCOMP_RET_ERRNO | number(i64::from(libc::EPROTONOSUPPORT))?;
    let mut filter = [
        step(LOAD, 0, 0),
        step(EQUAL, 5, number(libc::SYS_socket)?),
        step(LOAD, 0, FIRST_ARGUMENT),
        step(EQUAL, 3, number(i64::from(libc::AF_NETLINK))?),
        step(LOAD, 0, THIRD_ARGUMENT),
        step(EQUAL, 1, number(i64::from(libc::NETLINK_NETFILTER))?),
        step(RETURN, 0, refused),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 8, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and the eight instructions it points to are valid for the call; the kernel copies them.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })
        .map(drop)
}

/// Whether the process runs as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid() takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Lets `bind` take an address only; the port is chosen by `connect`, which knows the whole 4-tuple and so can use one
/// local port towards several destinations.
pub(crate) fn bind_without_port(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the size describe `on`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size,
        )
    })
    .map(drop)
}

/// Restricts a packet socket to one link: it captures what comes there, and what is written to it leaves there.
pub(crate) fn bind_to_link(socket: &impl AsFd, link: &str) -> io::Result<()> {
    let name = CString::new(link)?;
    // SAFETY: the string ends in a zero byte and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let size = u32::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be(),
        // Index 0 is no link, and would be all of them.
        sll_ifindex: i32::try_from(index).ok().filter(|index| *index > 0).ok_or(io::ErrorKind::NotFound)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `address` is a struct sockaddr_ll of the given size and valid for the call.
    check(unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const address).cast(), size) }).map(drop)
}

/// The kernel's receive time of the packet last read from `socket`, nanoseconds since the epoch.
pub(crate) fn last_packet_time(socket: &impl AsFd) -> io::Result<u64> {
    const SIOCGSTAMPNS: libc::c_ulong = 0x8907; // linux/sockios.h, SIOCGSTAMPNS_OLD: takes a struct timespec
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one struct timespec to the pointer, which is valid for the call.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSTAMPNS, &raw mut time) })?;
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) => Ok(seconds * 1_000_000_000 + nanos),
        _ => Err(io::Error::other("packet time before the epoch")),
    }
}

/// A timer with a file descriptor: finer than epoll's millisecond timeout.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// Makes a timer that is not set.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: timerfd_create() takes two integers and touches no memory of ours.
        let fd = check(unsafe {
            libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC)
        })?;
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Makes the timer readable after `delay`, once, and not readable until then.
    pub(crate) fn set(&self, delay: Duration) -> io::Result<()> {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(delay.as_secs()).map_err(io::Error::other)?,
            // Zero would unset the timer.
            tv_nsec: libc::c_long::from(delay.subsec_nanos().max(1)),
        };
        let spec = libc::itimerspec { it_interval: none, it_value: value };
        // SAFETY: `spec` is valid for the call, and a null old value is allowed.
        check(unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut()) })
            .map(drop)
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
