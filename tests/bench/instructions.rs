//! Instructions of the hot paths, counted by callgrind and compared with `instructions.txt` beside this file.
//!
//! ```text
//! cargo test --release --test instructions                 # compare
//! cargo test --release --test instructions -- --record     # write the file anew, after a change that was meant
//! ```
//!
//! The comparison fails beyond ±5 % with the recorded rustc only: another one makes other code, so then it prints.

mod cases;
mod chain;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use cases::{CASES, Step};

/// Steps that are counted, after as many that are not.
const STEPS: u64 = 2_000;
/// By how many thousandths a count may differ.
const TOLERANCE: u64 = 50;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--case"
    {
        run(name);
        return ExitCode::SUCCESS;
    }
    let unwanted =
        arguments.iter().any(|word| !word.starts_with('-') && !"instructions".contains(word.as_str()));
    if unwanted || arguments.iter().any(|word| word == "--list" || word == "--ignored") {
        return ExitCode::SUCCESS;
    }
    if cfg!(debug_assertions) {
        println!("instructions: skipped: only code built with --release is counted");
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("instructions: skipped: valgrind is not installed (apt install valgrind)");
        return ExitCode::SUCCESS;
    }
    let counts: BTreeMap<&str, u64> = CASES.iter().map(|(name, _)| (*name, count(name))).collect();
    if arguments.iter().any(|word| word == "--record") {
        record(&counts);
        return ExitCode::SUCCESS;
    }
    compare(&counts)
}

/// What the counts depend on beside the code.
fn toolchain() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().expect("rustc starts");
    let version = String::from_utf8(output.stdout).expect("UTF-8");
    format!("{} {}", version.trim(), env::consts::ARCH)
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/instructions.txt")
}

fn record(counts: &BTreeMap<&str, u64>) {
    let heading = "# Instructions of one step; see instructions.rs. Valid for this compiler and processor:";
    let lines = counts.iter().map(|(name, count)| format!("{name} {count}"));
    let all: Vec<_> = [heading.to_owned(), toolchain()].into_iter().chain(lines).collect();
    let text = all.join("\n") + "\n";
    fs::write(file(), text).expect("the file can be written");
    println!("instructions: recorded {} cases", counts.len());
}

fn compare(counts: &BTreeMap<&str, u64>) -> ExitCode {
    let text = fs::read_to_string(file()).expect("instructions.txt");
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let recorded_with = lines.next().expect("the compiler's line");
    let recorded: BTreeMap<&str, u64> = lines
        .map(|line| line.split_once(' ').expect("name and count"))
        .map(|(name, count)| (name, count.parse().expect("a count")))
        .collect();
    let comparable = recorded_with == toolchain();
    let mut faults = 0;
    for (name, count) in counts {
        let before = recorded.get(name).copied();
        let change = before.map_or_else(|| "new".to_owned(), |before| change(*count, before));
        let within = before.is_some_and(|before| count.abs_diff(before) * 1000 <= before * TOLERANCE);
        let mark = if within || !comparable { "" } else { "  <- beyond the tolerance" };
        println!("{name:20} {count:8} {change:>8}{mark}");
        faults += usize::from(!within);
    }
    faults += recorded.keys().filter(|name| !counts.contains_key(*name)).count();
    if !comparable {
        println!("instructions: printed only: recorded with {recorded_with}, this is {}", toolchain());
    } else if faults > 0 {
        println!(
            "instructions: {faults} differ by more than {} %. If meant, record them: see instructions.rs",
            TOLERANCE / 10
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// By how many percent a count has changed.
fn change(count: u64, before: u64) -> String {
    let sign = if count < before { '-' } else { '+' };
    let thousandths = count.abs_diff(before) * 1000 / before.max(1);
    format!("{sign}{}.{} %", thousandths / 10, thousandths % 10)
}

/// Instructions of one step of a case, by a run of this program under callgrind.
fn count(name: &str) -> u64 {
    let out = env::temp_dir().join(format!("tcpcopy-instructions-{}-{name}", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=instructions::measured*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe().expect("own path"))
        .args(["--case", name])
        .output()
        .expect("valgrind starts");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let profile = fs::read_to_string(&out).expect("callgrind's file");
    let _ = fs::remove_file(&out);
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")).expect("totals");
    let count = total.trim().parse::<u64>().expect("a number") / STEPS;
    assert!(count > 0, "{name}: nothing was counted, is `measured` still a function of its own?");
    count
}

fn run(name: &str) {
    let (_, prepare) = CASES.into_iter().find(|(known, _)| *known == name).expect("a case");
    let mut step = prepare();
    for _ in 0..STEPS {
        step();
    }
    measured(&mut step);
}

/// What callgrind counts.
#[inline(never)]
fn measured(step: &mut Step) {
    for _ in 0..STEPS {
        step();
    }
}
