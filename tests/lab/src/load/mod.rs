//! The load generator: one thread, one epoll instance, open loop.
//!
//! At a fixed rate every request has a moment at which it is due, whatever became of the ones before it, and its latency
//! counts from that moment: a server that stalls shows the whole stall (no coordinated omission).

mod generator;
mod http;
mod stats;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::namespace::Namespace;
use crate::nginx::LONGEST_BODY;

pub(crate) use stats::{Latency, Progress, Report};

/// How the requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// So many a second, evenly.
    Rate(u32),
    /// As fast as the connections can.
    Flood,
}

/// Who closes a short connection first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closer {
    /// The request says `Connection: close`.
    Server,
    /// The client closes once it has the whole response.
    Client,
}

/// How requests use connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// So many connections that stay.
    KeepAlive(usize),
    /// One request per connection, at most so many at once.
    Short(usize, Closer),
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A static body of this size; see [`crate::nginx`] for those there are.
    Get(usize),
    /// An upload of this size.
    Post(usize),
}

/// A load to put on servers.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Servers, taken in turn by each new connection.
    pub(crate) servers: Vec<SocketAddr>,
    /// Source addresses, taken in turn by each new connection.
    pub(crate) sources: Vec<IpAddr>,
    /// When requests are made.
    pub(crate) pace: Pace,
    /// On which connections.
    pub(crate) connections: Connections,
    /// What they ask for.
    pub(crate) request: Request,
    /// For how long new requests are made.
    pub(crate) duration: Duration,
    /// The first request's id; the next ones count up.
    pub(crate) first_id: u64,
    /// How long a request may take.
    pub(crate) timeout: Duration,
}

impl Load {
    /// Puts the load on from `client` and waits until the last request has ended.
    pub(crate) fn run(self, client: &Namespace) -> Result<Report> {
        self.start(client)?.finish()
    }

    /// Starts putting the load on from `client`.
    pub(crate) fn start(self, client: &Namespace) -> Result<Running> {
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let thread = client.spawn(move || generator::Generator::new(self, shared)?.run())?;
        Ok(Running { thread, progress })
    }
}

/// A load that is being put on.
#[derive(Debug)]
pub(crate) struct Running {
    thread: JoinHandle<Result<Report>>,
    progress: Arc<Progress>,
}

impl Running {
    /// What happened so far.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether it has ended by itself.
    pub(crate) fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Makes no more requests.
    pub(crate) fn stop(&self) {
        self.progress.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until the last request has ended.
    pub(crate) fn finish(self) -> Result<Report> {
        self.thread.join().map_err(|_panic| anyhow!("the load generator panicked"))?
    }
}

/// How far apart the bodies of uploads begin in [`content`].
const STRIDE: usize = 61;
/// How many different uploads of one size there are.
const VARIANTS: usize = 1 << 16;

/// The bytes that bodies are made of: pseudo-random, so that no shifted or repeated piece looks right.
pub(crate) fn content() -> &'static [u8] {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let words = (LONGEST_BODY + VARIANTS).div_ceil(8);
        let word = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        (0..words).flat_map(word).collect()
    })
}

/// The body of the upload `id`.
pub(crate) fn upload(id: u64, size: usize) -> &'static [u8] {
    let turn = usize::try_from(id % VARIANTS as u64).unwrap_or_default();
    let start = turn * STRIDE % VARIANTS;
    content().get(start..start + size).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_uploads_differ() {
        assert_ne!(upload(1, LONGEST_BODY), upload(2, LONGEST_BODY));
        assert_eq!(upload(65_535, LONGEST_BODY).len(), LONGEST_BODY);
    }
}
