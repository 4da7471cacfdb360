//! The laboratory leaves nothing on the machine: neither at its end nor when it is killed in the middle.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A scenario that needs no daemon and takes some seconds.
const SCENARIO: &str = "lab/keep-alive-10000";
/// For building, loading and comparing.
const LIMIT: Duration = Duration::from_secs(60);

/// A run of the laboratory, known by a mark in the environment of its processes and by their PID namespaces: nginx
/// overwrites its environment.
struct Lab {
    process: Child,
    logs: PathBuf,
    namespaces: HashSet<PathBuf>,
}

impl Lab {
    fn start(mark: &str) -> Self {
        let logs = std::env::temp_dir().join(format!("lab-{mark}-{}", std::process::id()));
        let process = Command::new(env!("CARGO_BIN_EXE_lab"))
            .args(["run", SCENARIO, "--offloads", "off"])
            .env("LAB_LOGS", &logs)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the laboratory starts");
        Self { process, logs, namespaces: HashSet::new() }
    }

    /// The commands of all its processes.
    fn processes(&mut self) -> Vec<String> {
        let mark = format!("LAB_LOGS={}", self.logs.display());
        let entries: Vec<PathBuf> =
            fs::read_dir("/proc").expect("/proc is there").flatten().map(|entry| entry.path()).collect();
        let ours = fs::read_link("/proc/self/ns/pid").expect("our own namespace");
        let namespace = |process: &PathBuf| fs::read_link(process.join("ns/pid")).ok();
        let marked = |process: &&PathBuf| {
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let inside = entries.iter().filter(marked).filter_map(namespace).filter(|inside| *inside != ours);
        self.namespaces.extend(inside);
        entries
            .iter()
            .filter(|process| {
                namespace(process).is_some_and(|inside| self.namespaces.contains(&inside)) || marked(process)
            })
            .filter_map(|process| fs::read_to_string(process.join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.logs);
    }
}

/// Links and rules of the machine itself, and its mounts.
fn machine() -> Vec<String> {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect("a tool of the laboratory");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut links: Vec<String> = fs::read_dir("/sys/class/net")
        .expect("sysfs is there")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    links.sort();
    vec![
        links.join(" "),
        output("nft", &["list", "ruleset"]),
        output("findmnt", &["-l", "-n", "-o", "TARGET"]),
    ]
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let root =
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    if !root {
        println!("skipped: network namespaces need root");
    }
    root
}

/// Ends a running laboratory by a signal to its first process only.
fn ends_without_a_trace(signal: &str, before: &[String]) {
    let mut lab = Lab::start(signal);
    until("the laboratory runs its servers", || {
        let processes = lab.processes();
        assert!(lab.process.try_wait().expect("its state").is_none(), "the laboratory ended early");
        processes.iter().filter(|name| *name == "nginx").count() >= 4
    });
    assert_eq!(before, machine(), "a running laboratory is seen outside");
    let kill = Command::new("kill").args([signal, &lab.process.id().to_string()]).status();
    assert!(kill.is_ok_and(|status| status.success()), "kill {signal}");
    lab.process.wait().expect("it ends");
    until("no process is left", || lab.processes().is_empty());
    assert_eq!(before, machine(), "left behind after {signal}");
}

#[test]
fn nothing_is_left_behind() {
    if !is_root() {
        return;
    }
    let before = machine();

    for signal in ["-KILL", "-TERM"] {
        ends_without_a_trace(signal, &before);
    }

    let mut whole = Lab::start("whole");
    let mut status = None;
    until("the scenario is over", || {
        whole.processes();
        status = whole.process.try_wait().expect("its state");
        status.is_some()
    });
    // A debug build on a busy machine may miss the rate: what counts here is that nothing stays.
    assert!(status.is_some_and(|status| matches!(status.code(), Some(0 | 1))), "{status:?}");
    until("no process is left at the end", || whole.processes().is_empty());
    assert_eq!(before, machine(), "left behind at the end");
}
