//! What a load costs: processor time of processes and of the machine, context switches, and packets on an interface, all
//! from /proc.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// `USER_HZ`, in which /proc counts CPU time.
const TICK: Duration = Duration::from_millis(10);

/// `PF_KTHREAD` of linux/sched.h.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// All processes of the laboratory, which are all it sees: it is in a PID namespace.
#[derive(Debug, Default)]
pub(super) struct Processes {
    table: HashMap<u32, Process>,
    /// Processor time of the laboratory's threads that watch: they read logs and hash bodies. The load generator is no
    /// such thread: while the load goes on it is one more, and once it is over its time is that of no thread.
    watching: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    parent: u32,
    kernel: bool,
    /// User and system.
    own: Duration,
    /// Of children that ended.
    ended: Duration,
}

impl Process {
    fn cpu(&self) -> Duration {
        self.own + self.ended
    }
}

impl Processes {
    /// The processes now: while no load is being put on.
    pub(super) fn now() -> Result<Self> {
        let mut table = processes(Path::new("/proc"))?;
        let laboratory = std::process::id();
        // Threads that ended are in the time of their process only, in ticks; only the laboratory has such.
        for (&pid, process) in table.iter_mut().filter(|(pid, _)| **pid != laboratory) {
            process.own = exact(pid).unwrap_or(process.own);
        }
        Ok(Self { table, watching: exact(laboratory)? })
    }

    /// Processor time of all, but for that of watching.
    pub(super) fn all(&self) -> Duration {
        self.table.values().map(Process::cpu).sum::<Duration>().saturating_sub(self.watching)
    }

    /// Processor time of the laboratory's watching threads.
    pub(super) fn watching(&self) -> Duration {
        self.watching
    }

    /// Processor time of a process and those it started.
    pub(super) fn tree(&self, pid: u32) -> Duration {
        let children = self.table.iter().filter(|(_, process)| process.parent == pid);
        let own = self.table.get(&pid).map_or(Duration::ZERO, Process::cpu);
        own + children.map(|(&child, _)| self.tree(child)).sum::<Duration>()
    }

    /// Processor time of what else runs on the machine, kernel threads left out: `outside` is its /proc.
    pub(super) fn others(&self, outside: &Path) -> Result<Duration> {
        let table = processes(outside)?;
        let everyone: Duration = table.values().filter(|process| !process.kernel).map(Process::cpu).sum();
        Ok(everyone.saturating_sub(self.all() + self.watching))
    }
}

fn processes(proc: &Path) -> Result<HashMap<u32, Process>> {
    let mut table = HashMap::new();
    for entry in fs::read_dir(proc)? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
        // One that has ended meanwhile counts with its parent.
        let Ok(stat) = fs::read_to_string(proc.join(format!("{pid}/stat"))) else { continue };
        table.insert(pid, process(&stat).with_context(|| format!("odd stat of process {pid}"))?);
    }
    Ok(table)
}

fn process(stat: &str) -> Option<Process> {
    // The name is in parentheses and may hold blanks. Then: state, parent, … and, as the 7th, flags, as the 12th to 15th,
    // utime, stime, cutime, cstime.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let cpu = |which: Range<usize>| {
        let ticks: Option<u32> = fields.get(which)?.iter().map(|field| field.parse::<u32>().ok()).sum();
        Some(TICK * ticks?)
    };
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        kernel: fields.get(6)?.parse::<u32>().ok()? & KERNEL_THREAD != 0,
        own: cpu(11..13)?,
        ended: cpu(13..15)?,
    })
}

/// Processor time of the threads that a process has, to the nanosecond.
pub(super) fn exact(pid: u32) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        let times =
            fs::read_to_string(task?.path().join("schedstat")).context("CONFIG_SCHED_INFO is needed")?;
        let nanos = times.split(' ').next().and_then(|nanos| nanos.parse().ok()).context("odd schedstat")?;
        sum += Duration::from_nanos(nanos);
    }
    Ok(sum)
}

/// How often the threads of a process were switched away from so far.
pub(super) fn switches(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
        sum += counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum::<u64>();
    }
    Ok(sum)
}

/// The processors of the machine, at an instant.
#[derive(Debug)]
pub(super) struct Machine {
    at: Instant,
    processors: u32,
    /// Of all processors: nothing to do, waiting for a disk, or taken away by a hypervisor.
    free: Duration,
}

impl Machine {
    /// The processors now.
    pub(super) fn now() -> Result<Self> {
        let at = Instant::now();
        let (processors, free) = processors(&fs::read_to_string("/proc/stat")?).context("odd /proc/stat")?;
        Ok(Self { at, processors, free })
    }

    /// The time since an earlier instant, and how long all processors together were busy in it: user, nice, system, irq
    /// and softirq, as what is left by the rest, because the kernel counts idle time exactly and samples those.
    pub(super) fn since(&self, earlier: &Self) -> (Duration, Duration) {
        let elapsed = self.at.saturating_duration_since(earlier.at);
        let free = self.free.saturating_sub(earlier.free);
        (elapsed, (elapsed * self.processors).saturating_sub(free))
    }
}

fn processors(stat: &str) -> Option<(u32, Duration)> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u32> = all.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let free = fields.get(3)?.checked_add(*fields.get(4)?)?.checked_add(*fields.get(7)?)?;
    let processors = stat.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    Some((u32::try_from(processors).ok()?, TICK * free))
}

/// Packets of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Packets {
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl Packets {
    /// The counters of a link now.
    pub(super) fn of(host: &Namespace, link: &str) -> Result<Self> {
        let table = host.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        packets(&table, link).with_context(|| format!("no link {link} on {}", host.name()))
    }
}

fn packets(table: &str, link: &str) -> Option<Packets> {
    let counters = table.lines().find_map(|row| row.trim_start().strip_prefix(link)?.strip_prefix(':'))?;
    let field = |index| counters.split_whitespace().nth(index)?.parse().ok();
    Some(Packets { received: field(1)?, sent: field(9)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_counts_its_ended_children() {
        let stat = "12 (a (b) c) S 7 1 1 0 -1 4194560 100 0 0 0 250 50 30 20 20 0 3 0 100 1000 10";
        let millis = Duration::from_millis;
        let expected = Process { parent: 7, kernel: false, own: millis(3_000), ended: millis(500) };
        assert_eq!(process(stat), Some(expected));
        assert!(process("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 1 2 0 0 20").unwrap().kernel);
        assert_eq!(process("12 (a"), None);
    }

    #[test]
    fn a_tree_is_a_process_and_all_below_it() {
        let process = |parent, seconds| Process {
            parent,
            kernel: false,
            own: Duration::from_secs(seconds),
            ended: Duration::ZERO,
        };
        let table = [(1, process(0, 1)), (2, process(1, 2)), (3, process(2, 4)), (4, process(1, 8))];
        let processes = Processes { table: HashMap::from(table), watching: Duration::from_secs(1) };
        assert_eq!((processes.tree(2).as_secs(), processes.all().as_secs()), (6, 14));
    }

    #[test]
    fn free_time_is_idle_disk_and_hypervisor() {
        let table = "cpu  10 20 30 100 40 0 5 60 0 0\ncpu0 1 2\ncpu1 1 2\nintr 5\n";
        assert_eq!(processors(table), Some((2, Duration::from_secs(2))));
        let start = Instant::now();
        let machine = |seconds, free| Machine {
            at: start + Duration::from_secs(seconds),
            processors: 2,
            free: Duration::from_secs(free),
        };
        let seconds = Duration::from_secs;
        assert_eq!(machine(5, 9).since(&machine(0, 2)), (seconds(5), seconds(3)));
    }

    #[test]
    fn links_are_told_apart() {
        let table = "  lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n back: 10 20 0 0 0 0 0 0 30 40 0 0 0 0 0 0\n";
        assert_eq!(packets(table, "back"), Some(Packets { received: 20, sent: 40 }));
        assert_eq!(packets(table, "ba"), None);
    }

    #[test]
    fn a_process_switches_and_takes_time() {
        let own = std::process::id();
        assert!(switches(own).unwrap() > 0 && exact(own).unwrap() > Duration::ZERO);
    }
}
