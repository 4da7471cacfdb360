//! Watches what one server answers: its logs, and the bodies it received.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::nginx::Nginx;
use crate::records::{Answers, Record, Tail};

/// How often uploads are looked for: bodies are removed as they come, so the disk they need is bounded.
const POLL: Duration = Duration::from_millis(20);

/// What is seen of one server.
#[derive(Debug)]
pub(crate) struct Observer {
    access: Tail,
    answers: Answers,
    seen: Vec<Seen>,
    uploads: Arc<Mutex<Uploads>>,
    stop: Arc<AtomicBool>,
    collector: Option<JoinHandle<()>>,
}

/// A request as far as it is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// The request's own id.
    pub(crate) id: u64,
    /// Who asked.
    pub(crate) peer: SocketAddr,
}

/// Uploads that have been collected.
#[derive(Debug, Default)]
struct Uploads {
    records: Vec<Record>,
    hashes: HashMap<u64, Vec<u64>>,
}

impl Observer {
    /// Begins to watch a server.
    pub(crate) fn watch(nginx: &Nginx) -> Result<Self> {
        let (uploads, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut tail = Tail::open(&nginx.upload_log())?;
        let (shared, asked) = (Arc::clone(&uploads), Arc::clone(&stop));
        let collector = std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                collect(&mut tail, &shared);
                std::thread::sleep(POLL);
            }
        });
        Ok(Self {
            access: Tail::open(&nginx.access_log())?,
            answers: Answers::default(),
            seen: Vec::new(),
            uploads,
            stop,
            collector: Some(collector),
        })
    }

    /// Takes in what was logged since the last call.
    pub(crate) fn update(&mut self) -> Result<&Answers> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let (answers, seen) = (&mut self.answers, &mut self.seen);
        let mut add = |record: &Record| {
            answers.add(record);
            seen.push(Seen { id: record.id, peer: record.peer });
        };
        uploads.records.drain(..).for_each(|record| add(&record));
        self.access.read(|record| add(&record))?;
        Ok(&self.answers)
    }

    /// What was seen up to the last [`Observer::update`].
    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Every request in the order it was logged.
    pub(crate) fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// Lines in the log that are no request of ours.
    pub(crate) fn odd(&self) -> u64 {
        self.access.odd()
    }

    /// The hashes of the bodies received, by id.
    pub(crate) fn bodies(&self) -> HashMap<u64, Vec<u64>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).hashes.clone()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(collector) = self.collector.take() {
            let _ = collector.join();
        }
    }
}

/// Hashes and removes the bodies of the uploads logged since the last call.
fn collect(tail: &mut Tail, uploads: &Mutex<Uploads>) {
    let mut fresh = Vec::new();
    // An unreadable log shows as requests that are missing.
    let _ = tail.read(|record| fresh.push(record));
    for mut record in fresh {
        let hash = record.body.take().and_then(|body| hash_and_remove(&body));
        let mut uploads = uploads.lock().unwrap_or_else(PoisonError::into_inner);
        // What is cut short and refused has no body to compare; the comparison of answers counts it.
        if hash.is_some() || record.status == 200 {
            uploads.hashes.entry(record.id).or_default().push(hash.unwrap_or_default());
        }
        uploads.records.push(record);
    }
}

fn hash_and_remove(path: &Path) -> Option<u64> {
    let body = fs::read(path).ok()?;
    let _ = fs::remove_file(path);
    Some(hash(&body))
}

/// The hash by which bodies are compared.
pub(crate) fn hash(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    hasher.finish()
}

/// Counts the uploads of which a server received another body than was sent, and names the first.
pub(crate) fn altered(bodies: &HashMap<u64, Vec<u64>>, size: usize) -> (usize, Option<u64>) {
    let wrong = |(&id, hashes): (&u64, &Vec<u64>)| {
        let right = hash(crate::load::upload(id, size));
        hashes.iter().any(|&hash| hash != right).then_some(id)
    };
    let ids: Vec<u64> = bodies.iter().filter_map(wrong).collect();
    (ids.len(), ids.iter().min().copied())
}

/// Writes one line to standard output at once, also when it is a file.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody to tell when standard output is gone.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_body_is_noticed() {
        let right = hash(crate::load::upload(5, 1000));
        let bodies = HashMap::from([(5, vec![right]), (6, vec![right])]);
        assert_eq!(altered(&bodies, 1000), (1, Some(6)));
    }
}
