//! A relay in the way of a tunnel: it keeps what the tcpcopy says, and stops reading what the intercept says when asked.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;
use socket2::{Domain, Socket, Type};

use crate::namespace::Namespace;

/// Receive buffer towards the intercept: one that reads slowly has little.
const BUFFER: usize = 16 << 10;

/// A relay. Its threads end with their connections, and the last one with the laboratory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Relay {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What was said towards the intercept, by connection.
    said: Mutex<Vec<Vec<u8>>>,
    /// Nothing of the intercept's is read any more.
    stalled: AtomicBool,
}

impl Relay {
    /// Listens on a host, and connects to `intercept` from there.
    pub(crate) fn start(on: &Namespace, listen: SocketAddr, intercept: SocketAddr) -> Result<Self> {
        let relay = Self::default();
        let listener = on.enter(|| TcpListener::bind(listen))??;
        let shared = Arc::clone(&relay.shared);
        on.spawn(move || -> Result<()> {
            loop {
                let client = listener.accept()?.0;
                let socket = Socket::new(Domain::for_address(intercept), Type::STREAM, None)?;
                socket.set_recv_buffer_size(BUFFER)?;
                socket.connect(&intercept.into())?;
                carry(&client, &socket.into(), &shared)?;
            }
        })?;
        Ok(relay)
    }

    /// What was said towards the intercept so far, by connection.
    pub(crate) fn recordings(&self) -> Vec<Vec<u8>> {
        self.shared.said().clone()
    }

    /// From now on, nothing that the intercept says is read.
    pub(crate) fn stall(&self) {
        self.shared.stalled.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn said(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns if nothing is stalled; else never.
    fn pass(&self) {
        while self.stalled.load(Ordering::Relaxed) {
            thread::park();
        }
    }
}

fn carry(client: &TcpStream, server: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let (there, back) = (Arc::clone(shared), Arc::clone(shared));
    let number = {
        let mut said = shared.said();
        said.push(Vec::new());
        said.len() - 1
    };
    thread::spawn(move || {
        copy(&mut from_client, &mut to_server, |bytes| {
            if let Some(recording) = there.said().get_mut(number) {
                recording.extend_from_slice(bytes);
            }
        });
    });
    thread::spawn(move || copy(&mut from_server, &mut to_client, |_| back.pass()));
    Ok(())
}

/// Copies until either end has enough, and tells of all that passes.
fn copy(from: &mut TcpStream, to: &mut TcpStream, mut tell: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..n).unwrap_or_default();
        tell(bytes);
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
