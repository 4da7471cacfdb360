//! Memory that the process takes against what is accounted, as the kernel sees it.
//!
//! Each workload runs in a process of its own, which is this test again: what the allocator did for one workload must not
//! hide what it does for the next. The bounds are those that SECURITY.md gives, see [`Bounds`].
//!
//! ```text
//! cargo test --release --test memory -- --nocapture
//! ```

#[path = "memory/flows.rs"]
mod flows;
#[path = "memory/sessions.rs"]
mod sessions;

use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use tcpcopy::sys::memory;

pub(crate) const MIB: usize = 1 << 20;

/// Memory that a program takes besides what it accounts, at most.
fn fixed(workers: usize) -> usize {
    (16 + 8 * workers) * MIB
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// What the workers of a workload account, and what the process may take.
pub(crate) struct Bounds {
    workers: usize,
    limit: usize,
    accounted: Vec<AtomicUsize>,
    barrier: Barrier,
}

impl Bounds {
    /// For the limit of all workers together.
    fn new(workers: usize, limit: usize) -> Self {
        Self {
            workers,
            limit,
            accounted: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            barrier: Barrier::new(workers),
        }
    }

    /// The part of one worker.
    pub(crate) fn part(&self) -> usize {
        self.limit / self.workers
    }

    /// All workers have come to that point: the process takes no more than what is accounted, and the limit, allow.
    pub(crate) fn check(&self, worker: usize, what: &str, accounted: usize) {
        self.look(worker, accounted, |accounted, resident| {
            println!("{what}: {} MiB accounted, {} MiB resident", accounted / MIB, resident / MIB);
            assert!(resident <= fixed(self.workers) + accounted * 11 / 10, "{what}: more than is accounted");
            let most = (self.limit + fixed(self.workers)) * 11 / 10;
            assert!(resident <= most, "{what}: {resident} bytes are more than the limit allows");
        });
    }

    /// All that was accounted is over, and was given back as the programs do.
    pub(crate) fn check_end(&self, worker: usize, what: &str, accounted: usize) {
        self.look(worker, accounted, |accounted, _| {
            memory::trim();
            let resident = resident();
            println!("{what}: {} MiB accounted, {} MiB resident", accounted / MIB, resident / MIB);
            assert!(resident <= fixed(self.workers) + 16 * MIB, "{what}: {resident} bytes stay");
        });
    }

    fn look(&self, worker: usize, accounted: usize, judge: impl FnOnce(usize, usize)) {
        if let Some(own) = self.accounted.get(worker) {
            own.store(accounted, Ordering::Relaxed);
        }
        if self.barrier.wait().is_leader() {
            judge(self.accounted.iter().map(|each| each.load(Ordering::Relaxed)).sum(), resident());
        }
        self.barrier.wait();
    }
}

/// Runs a workload of this name with so many workers, in a process of its own.
fn in_a_process(workload: &str) {
    for workers in [1, 2, 4] {
        let output = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("MEMORY_WORKLOAD", workload)
            .env("MEMORY_WORKERS", workers.to_string())
            .output()
            .expect("a child");
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        println!("{workload}, {workers} workers:\n{said}");
        assert!(output.status.success(), "{workload} with {workers} workers");
    }
}

#[test]
#[ignore = "the child of the other tests"]
fn child() {
    let Ok(workload) = env::var("MEMORY_WORKLOAD") else { return };
    let workers: usize = env::var("MEMORY_WORKERS").expect("set").parse().expect("a number");
    memory::configure();
    let (limit, work): (usize, fn(usize, &Bounds)) = match &workload[..] {
        "idle" => (64 * MIB, sessions::idle),
        "uploads" => (64 * MIB, sessions::uploads),
        "bytes" => (64 * MIB, sessions::bytes_one_by_one),
        "flood" => (64 * MIB, sessions::flood),
        "strays" => (64 * MIB, sessions::strays),
        "flows" => (64 * MIB, flows::many),
        "held" => (64 * MIB, flows::held),
        other => panic!("no workload {other}"),
    };
    let bounds = Bounds::new(workers, limit);
    // A panic of one ends all: the others wait for it at the barrier.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(1);
    }));
    thread::scope(|scope| {
        for worker in 0..workers {
            let bounds = &bounds;
            scope.spawn(move || work(worker, bounds));
        }
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn many_idle_sessions() {
    in_a_process("idle");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn many_sessions_that_end_then_uploads() {
    in_a_process("uploads");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn segments_of_one_byte() {
    in_a_process("bytes");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn a_flood_of_syns() {
    in_a_process("flood");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn a_flood_of_strays() {
    in_a_process("strays");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn many_flows() {
    in_a_process("flows");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without --release")]
fn responses_that_wait_for_their_claims() {
    in_a_process("held");
}
