//! The listening socket: one that the service manager has held since boot, or one of our own.
//!
//! A socket unit (`intercept.socket`) keeps local users from taking the tunnel's port while intercept does not run. The
//! unit cannot read the configuration, so it listens on all addresses. If the configuration names one, connections to
//! the others are closed unread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::Registry;
use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::intercept::Settings;
use crate::daemon::exit::Failure;
use crate::sys::handover;

const BACKLOG: i32 = 1024;

/// The listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    /// Only connections to this address are accepted; `None` means all that the socket takes.
    only: Option<IpAddr>,
}

/// A connection that was accepted.
#[derive(Debug)]
pub(super) enum Accepted {
    /// One to the address of the settings, from this peer.
    Connection(TcpStream, SocketAddr),
    /// One to another address. It has been closed.
    Elsewhere,
}

impl Listener {
    /// Takes the socket that was passed, if it fits the settings, or binds their address.
    pub(super) fn bind(settings: &Settings) -> Result<Self, Failure> {
        for socket in handover::take_listeners() {
            let address = socket.local_addr().ok().and_then(|address| address.as_socket());
            match address.map(|address| (address, fit(settings, address))) {
                Some((address, Ok(only))) => {
                    return Self::passed(socket, address, only).map_err(|error| refuse(address, &error));
                }
                Some((_, Err(difference))) => tracing::warn!("{difference}"),
                None => {}
            }
        }
        let (socket, address) = bind(settings)?;
        Ok(Self { socket, address, only: None })
    }

    fn passed(socket: Socket, address: SocketAddr, only: Option<IpAddr>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // What the unit says may be less.
        socket.listen(BACKLOG)?;
        Ok(Self { socket: TcpListener::from_std(socket.into()), address, only })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.only.map_or(self.address, |ip| SocketAddr::new(ip, self.address.port()))
    }

    /// Has a poll report connections.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.socket.register(registry, token, Interest::READABLE)
    }

    /// Accepts a connection.
    pub(super) fn accept(&self) -> io::Result<Accepted> {
        let (stream, peer) = self.socket.accept()?;
        let Some(only) = self.only else { return Ok(Accepted::Connection(stream, peer)) };
        if stream.local_addr()?.ip().to_canonical() == only {
            Ok(Accepted::Connection(stream, peer))
        } else {
            Ok(Accepted::Elsewhere)
        }
    }
}

/// Whether a socket that was passed serves the settings: the only address that connections may be for, or how it
/// differs.
fn fit(settings: &Settings, address: SocketAddr) -> Result<Option<IpAddr>, String> {
    let (ip, port) = (address.ip(), settings.port);
    let remedy = "change ListenStream= with `systemctl edit intercept.socket`, or disable that unit";
    if address.port() != port {
        return Err(format!(
            "the socket that the service manager passed listens on port {}, and the configuration says {port}: \
             intercept listens on its own; {remedy}",
            address.port()
        ));
    }
    match settings.bind {
        None if ip.is_unspecified() => Ok(None),
        Some(bind) if bind == ip => Ok(None),
        // A wildcard of IPv6 takes IPv4 too, unless it says otherwise, and then none comes.
        Some(bind) if ip.is_unspecified() && (ip.is_ipv6() || bind.is_ipv4()) => {
            Ok(Some(bind).filter(|bind| !bind.is_unspecified()))
        }
        None | Some(_) => Err(format!(
            "the socket that the service manager passed listens on {ip}, which is not what `bind` says: intercept listens \
             on its own; {remedy}"
        )),
    }
}

/// Binds the address of the settings, and says which one it is.
fn bind(settings: &Settings) -> Result<(TcpListener, SocketAddr), Failure> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;

    fn settings(options: &[&str]) -> Settings {
        let common = ["intercept", "--config", "/dev/null", "--target", "10.0.0.1:80", "--insecure"];
        let arguments = common.iter().chain(options).map(Into::into);
        match Settings::load(arguments) {
            Ok(Action::Run(settings)) => settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_passed_socket_has_to_fit_the_settings() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let only = |text: &str| Ok(Some(text.parse::<IpAddr>().unwrap()));
        for (options, passed, expected) in [
            (&[][..], "[::]:36524", Ok(None)),
            (&[], "0.0.0.0:36524", Ok(None)),
            (&["-b", "127.0.0.1"], "127.0.0.1:36524", Ok(None)),
            (&["-b", "0.0.0.0"], "[::]:36524", Ok(None)),
            (&["-b", "127.0.0.1"], "[::]:36524", only("127.0.0.1")),
            (&["-b", "127.0.0.1"], "0.0.0.0:36524", only("127.0.0.1")),
            (&["-b", "::1"], "[::]:36524", only("::1")),
        ] {
            assert_eq!(fit(&settings(options), address(passed)), expected, "{options:?}, {passed}");
        }
        for (options, passed, what) in [
            (&["-p", "99"][..], "[::]:36524", "the configuration says 99"),
            (&[], "127.0.0.1:36524", "not what `bind` says"),
            (&["-b", "::1"], "0.0.0.0:36524", "not what `bind` says"),
            (&["-b", "::1"], "127.0.0.1:36524", "not what `bind` says"),
        ] {
            let difference = fit(&settings(options), address(passed)).unwrap_err();
            assert!(difference.contains(what) && difference.contains("intercept.socket"), "{difference}");
        }
    }
}
