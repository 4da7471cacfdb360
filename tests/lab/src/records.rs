//! What a server logged, and the comparison of two servers' logs: fidelity.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One request as a server logged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The request's own id.
    pub(crate) id: u64,
    /// The status of the answer.
    pub(crate) status: u16,
    /// Bytes of the answer's body that were sent.
    pub(crate) sent: u64,
    /// Bytes of the whole request.
    pub(crate) received: u64,
    /// Whether the answer was sent completely.
    pub(crate) complete: bool,
    /// Who asked: it names the connection for as long as ports are not used again.
    pub(crate) peer: SocketAddr,
    /// Where the request's body is.
    pub(crate) body: Option<PathBuf>,
}

impl Record {
    /// Parses one line of the log format in [`crate::nginx`]. `None`: not a request of ours.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let mut next = || fields.next();
        let (id, status, sent, received) =
            (next()?.parse().ok()?, next()?.parse().ok()?, next()?.parse().ok()?, next()?.parse().ok()?);
        let complete = next()? == "OK-";
        let (address, port): (IpAddr, u16) = (next()?.parse().ok()?, next()?.parse().ok()?);
        let body = next()?.trim_end_matches('-');
        let body = (!body.is_empty()).then(|| PathBuf::from(body));
        Some(Self { id, status, sent, received, complete, peer: SocketAddr::new(address, port), body })
    }

    /// Whether the server answered as it should.
    pub(crate) fn answered(&self) -> bool {
        self.status == 200 && self.complete
    }
}

/// Reads a growing log.
#[derive(Debug)]
pub(crate) struct Tail {
    reader: BufReader<File>,
    line: String,
    odd: u64,
}

impl Tail {
    /// Begins at the start of the log.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { reader: BufReader::with_capacity(1 << 16, file), line: String::new(), odd: 0 })
    }

    /// Gives every request logged since the last call; a line that is not complete yet waits.
    pub(crate) fn read(&mut self, mut each: impl FnMut(Record)) -> io::Result<()> {
        loop {
            if self.reader.read_line(&mut self.line)? == 0 || !self.line.ends_with('\n') {
                return Ok(());
            }
            match Record::parse(self.line.trim_end()) {
                Some(record) => each(record),
                None => self.odd += 1,
            }
            self.line.clear();
        }
    }

    /// Lines that are no request of ours.
    pub(crate) fn odd(&self) -> u64 {
        self.odd
    }
}

/// How often each id was answered: what one server did.
#[derive(Debug, Default, Clone)]
pub(crate) struct Answers {
    counts: HashMap<u64, u32>,
    sizes: HashMap<u64, (u64, u64)>,
    lines: u64,
    failed: u64,
}

impl Answers {
    /// Adds a record.
    pub(crate) fn add(&mut self, record: &Record) {
        self.lines += 1;
        if record.answered() {
            *self.counts.entry(record.id).or_default() += 1;
            self.sizes.insert(record.id, (record.sent, record.received));
        } else {
            self.failed += 1;
        }
    }

    /// Adds another server's answers.
    pub(crate) fn merge(&mut self, other: &Self) {
        other.counts.iter().for_each(|(&id, count)| *self.counts.entry(id).or_default() += count);
        self.sizes.extend(&other.sizes);
        self.lines += other.lines;
        self.failed += other.failed;
    }

    /// Requests logged, whatever their status.
    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    /// Ids answered at least once.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u64> {
        self.counts.keys().copied()
    }

    /// How many ids were answered at least once.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// How many answers there were.
    pub(crate) fn total(&self) -> u64 {
        self.counts.values().map(|&count| u64::from(count)).sum()
    }

    /// Bytes of all requests that were answered.
    pub(crate) fn request_bytes(&self) -> u64 {
        self.sizes.values().map(|(_, received)| received).sum()
    }

    /// Bytes of the longest of them.
    pub(crate) fn longest_request(&self) -> u64 {
        self.sizes.values().map(|(_, received)| *received).max().unwrap_or(0)
    }

    /// How often this id was answered.
    pub(crate) fn count(&self, id: u64) -> u32 {
        self.counts.get(&id).copied().unwrap_or(0)
    }
}

/// Two servers' answers side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Ids the online server answered.
    pub(crate) online: usize,
    /// Those of them that the target answered, at least as often as wanted.
    pub(crate) replayed: usize,
    /// Those that it answered less often, some of them.
    pub(crate) lost: Vec<u64>,
    /// How many were lost.
    pub(crate) lost_count: usize,
    /// Ids that the target answered more often than wanted.
    pub(crate) duplicated: usize,
    /// Ids that only the target answered.
    pub(crate) extra: usize,
    /// Requests that the target answered with an error or not to the end.
    pub(crate) failed: u64,
    /// Ids whose request or response had another size on the target.
    pub(crate) altered: usize,
}

/// How many lost ids a comparison names.
const NAMED: usize = 8;

impl Comparison {
    /// Compares, with every id wanted `times` times on the target.
    pub(crate) fn of(online: &Answers, target: &Answers, times: u32) -> Self {
        let mut lost: Vec<u64> = online.ids().filter(|&id| target.count(id) < times).collect();
        lost.sort_unstable();
        let lost_count = lost.len();
        lost.truncate(NAMED);
        Self {
            online: online.len(),
            replayed: online.len() - lost_count,
            lost,
            lost_count,
            duplicated: target.counts.values().filter(|&&count| count > times).count(),
            extra: target.ids().filter(|&id| online.count(id) == 0).count(),
            failed: target.failed,
            altered: target
                .sizes
                .iter()
                .filter(|(id, size)| online.sizes.get(id).is_some_and(|online| online != *size))
                .count(),
        }
    }

    /// The part of what the online server answered that the target answered too.
    #[expect(clippy::cast_precision_loss, reason = "a ratio of counts far below 2^52")]
    pub(crate) fn fidelity(&self) -> f64 {
        if self.online == 0 { 0.0 } else { self.replayed as f64 / self.online as f64 }
    }

    /// Whether every request arrived once and nothing else did.
    pub(crate) fn perfect(&self) -> bool {
        self.online > 0
            && self.lost_count == 0
            && self.duplicated == 0
            && self.extra == 0
            && self.failed == 0
            && self.altered == 0
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "fidelity {:.5} ({} of {})", self.fidelity(), self.replayed, self.online)?;
        for (count, what) in [
            (self.lost_count as u64, "lost"),
            (self.duplicated as u64, "duplicated"),
            (self.extra as u64, "extra"),
            (self.failed, "failed on the target"),
            (self.altered as u64, "of other size"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        if !self.lost.is_empty() {
            write!(f, ", lost first: {:?}", self.lost)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(id: u64) -> String {
        format!("{id} 200 100 180 OK- 10.91.1.10 4000 -")
    }

    fn answers(ids: impl IntoIterator<Item = u64>) -> Answers {
        let mut answers = Answers::default();
        ids.into_iter().for_each(|id| answers.add(&Record::parse(&line(id)).unwrap()));
        answers
    }

    #[test]
    fn a_line_becomes_a_record() {
        let record = Record::parse("7 200 8 1048800 OK- fd91:1::a 4000 /tmp/body/0000000001-").unwrap();
        assert_eq!((record.id, record.sent, record.received), (7, 8, 1_048_800));
        assert_eq!(record.peer, "[fd91:1::a]:4000".parse().unwrap());
        assert_eq!(record.body.as_deref(), Some(Path::new("/tmp/body/0000000001")));
        assert!(record.answered());
    }

    #[test]
    fn an_answer_cut_short_is_no_answer() {
        let cut = Record::parse("7 200 8 1048800 - 10.91.1.10 4000 -").unwrap();
        assert!(!cut.answered());
        assert_eq!(Record::parse("- 400 0 0 - 10.91.1.10 4000 -"), None);
    }

    #[test]
    fn equal_logs_are_perfect() {
        let comparison = Comparison::of(&answers(1..=1000), &answers((1..=1000).rev()), 1);
        assert!(comparison.perfect(), "{comparison}");
    }

    #[test]
    fn seeded_losses_duplicates_and_extras_are_found() {
        let target = (1..=1000).filter(|id| id % 100 != 7).chain([5, 6, 2000]);
        let comparison = Comparison::of(&answers(1..=1000), &answers(target), 1);
        assert_eq!((comparison.lost_count, comparison.duplicated, comparison.extra), (10, 2, 1));
        assert_eq!(comparison.lost.first(), Some(&7));
        assert!((comparison.fidelity() - 0.99).abs() < 1e-9);
        assert!(!comparison.perfect());
    }

    #[test]
    fn three_copies_are_three_of_each() {
        let thrice = |ids: std::ops::RangeInclusive<u64>| ids.flat_map(|id| [id; 3]);
        assert!(Comparison::of(&answers(1..=9), &answers(thrice(1..=9)), 3).perfect());
        assert_eq!(Comparison::of(&answers(1..=9), &answers(thrice(1..=9).skip(1)), 3).lost_count, 1);
        assert_eq!(Comparison::of(&answers(1..=9), &answers(thrice(1..=9).chain([4])), 3).duplicated, 1);
    }

    #[test]
    fn an_empty_log_is_not_fidelity() {
        assert!(!Comparison::of(&answers([]), &answers([]), 1).perfect());
    }

    #[test]
    fn a_request_of_another_size_is_altered() {
        let mut target = Answers::default();
        target.add(&Record::parse(&line(1).replace("180", "181")).unwrap());
        assert_eq!(Comparison::of(&answers([1]), &target, 1).altered, 1);
    }

    #[test]
    fn a_tail_waits_for_the_end_of_a_line() {
        let path = std::env::temp_dir().join(format!("lab-tail-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        let mut tail = Tail::open(&path).unwrap();
        let mut ids = Vec::new();
        file.write_all(line(1).as_bytes()).unwrap();
        tail.read(|record| ids.push(record.id)).unwrap();
        assert!(ids.is_empty());
        file.write_all(b"\nnonsense\n").unwrap();
        tail.read(|record| ids.push(record.id)).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((ids, tail.odd()), (vec![1], 1));
    }
}
