//! The listening socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::intercept::Settings;
use crate::daemon::exit::Failure;

const BACKLOG: i32 = 1024;

/// Binds the address of the settings, and says which one it is.
pub(super) fn bind(settings: &Settings) -> Result<(TcpListener, SocketAddr), Failure> {
    // Without a choice: all addresses of both families, where the kernel has both.
    let ip = settings.bind.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
    let mut address = SocketAddr::new(ip, settings.port);
    let mut bound = listen(address);
    if settings.bind.is_none()
        && bound.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EAFNOSUPPORT))
    {
        address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), settings.port);
        bound = listen(address);
    }
    bound.map(|listener| (listener, address)).map_err(|error| refuse(address, &error))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
    }
    // Connections of an intercept that just ended do not keep the next one from starting.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds have the same remedy")]
fn refuse(address: SocketAddr, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process, perhaps an intercept, has the port: stop it or choose another with -p"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this host has the address: see `ip address`, and choose one with -b"
        }
        _ => "choose an address with -b and a port with -p",
    };
    Failure::system(format_args!("cannot listen on {address}"), error, remedy)
}
