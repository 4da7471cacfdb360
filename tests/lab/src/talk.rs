//! A client's connection: bytes out, lines and bytes in. What the small protocol clients of the scenarios have in common.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::namespace::Namespace;

/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// A connection.
#[derive(Debug)]
pub(crate) struct Talk {
    stream: BufReader<TcpStream>,
}

impl Talk {
    /// Connects; call it on the client.
    pub(crate) fn connect(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self { stream: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("sending")
    }

    /// Sends the FIN.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write).context("half-closing")
    }

    /// The next line, without its end.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("receiving a line")? == 0 {
            bail!("the server closed the connection");
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    /// The next `length` bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).with_context(|| format!("receiving {length} bytes"))?;
        Ok(bytes)
    }

    /// Expects a line.
    pub(crate) fn expect(&mut self, wanted: &str) -> Result<()> {
        let line = self.line()?;
        ensure!(line == wanted, "the server said `{line}` instead of `{wanted}`");
        Ok(())
    }

    /// Everything up to the end of the connection.
    pub(crate) fn rest(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).context("receiving the rest")?;
        Ok(bytes)
    }
}

/// Runs `work` for each number below `count` at once, each on a thread of the host; fails as the first that failed.
pub(crate) fn at_once(
    on: &Namespace,
    count: usize,
    work: impl Fn(usize) -> Result<()> + Send + Sync + Clone + 'static,
) -> Result<()> {
    let threads: Result<Vec<_>> = (0..count)
        .map(|number| {
            let work = work.clone();
            on.spawn(move || work(number).with_context(|| format!("client {number}")))
        })
        .collect();
    let ends: Vec<Result<()>> = threads?
        .into_iter()
        .map(|thread| thread.join().unwrap_or_else(|_| bail!("a client panicked")))
        .collect();
    ends.into_iter().collect()
}
