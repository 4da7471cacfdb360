//! Runs scenarios, each in a process and namespaces of its own, and says how they ended.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::isolation;
use crate::leak::table;
use crate::observer::say;
use crate::recovery;
use crate::scenarios::{self, Context, Offloads, Scenario};

/// What a scenario's process writes before its figures.
const OK: &str = "ok: ";
/// What a scenario's process writes before its error.
const FAILED: &str = "failed: ";
/// Of a kept log, no more than its last bytes.
const KEPT: usize = 1 << 20;

/// What to run, and how.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Parts of names; empty: all scenarios.
    pub(crate) names: Vec<String>,
    /// Instead of each scenario's own.
    pub(crate) offloads: Option<Offloads>,
    /// Long loads.
    pub(crate) long: bool,
    /// Scenarios that run at the same time.
    pub(crate) jobs: NonZero<usize>,
    /// What random values come from; without one, from the time.
    pub(crate) seed: Option<u64>,
}

/// One scenario under one of its circumstances.
#[derive(Clone, Debug)]
struct Job {
    name: String,
    limit: Duration,
    offloads: bool,
    long: bool,
    seed: u64,
    alone: bool,
}

/// Runs the scenarios whose name contains one of `options.names`, or all. Returns whether all passed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let names = &options.names;
    let chosen = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part.as_str()));
    let (alone, together): (VecDeque<Job>, VecDeque<Job>) = scenarios::all()
        .iter()
        .filter(|scenario| chosen(&scenario.name))
        .flat_map(|scenario| jobs(scenario, options))
        .partition(|job| job.alone && options.jobs.get() > 1);
    if alone.is_empty() && together.is_empty() {
        bail!("no scenario is called {names:?}; `lab list` names them");
    }
    let summary = Mutex::new(Summary::default());
    let together = Mutex::new(together);
    let next = || together.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.get() {
            scope.spawn(|| {
                while let Some(job) = next() {
                    report(&job, &summary);
                }
            });
        }
    });
    for job in &alone {
        report(job, &summary);
    }
    let summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !summary.recoveries.is_empty() {
        say(&recovery::table(&summary.recoveries));
    }
    if let Some(table) = table::table(&summary.ended) {
        say(&table);
    }
    say(&format!("{} passed, {} failed", summary.passed, summary.failed));
    Ok(summary.failed == 0)
}

/// How the scenarios ended so far.
#[derive(Debug, Default)]
struct Summary {
    passed: u32,
    failed: u32,
    recoveries: Vec<recovery::Recoveries>,
    ended: Vec<table::Ended>,
}

/// The circumstances under which a scenario runs.
fn jobs(scenario: &Scenario, options: &Options) -> Vec<Job> {
    let variants: &[bool] = match options.offloads.unwrap_or(scenario.offloads) {
        Offloads::Both => &[true, false],
        Offloads::On => &[true],
        Offloads::Off => &[false],
    };
    let limit = if options.long { scenario.limit * 10 } else { scenario.limit };
    let seed = options.seed.unwrap_or_else(seed_of_the_time);
    let job = |&offloads| Job {
        name: scenario.name.clone(),
        limit,
        offloads,
        long: options.long,
        seed,
        alone: scenario.alone,
    };
    variants.iter().map(job).collect()
}

fn seed_of_the_time() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::from(time.unwrap_or_default().subsec_nanos())
}

/// Runs a job, prints how it ended and adds that to the summary.
fn report(job: &Job, summary: &Mutex<Summary>) {
    let start = Instant::now();
    let outcome = run_one(job, &isolation::kept_logs());
    let (name, took) = (&job.name, start.elapsed().as_secs_f64());
    let state = if job.offloads { "offloads on " } else { "offloads off" };
    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = outcome.as_ref().map(Clone::clone).map_err(|error| format!("{error:#}"));
    summary.ended.push((name.clone(), ended));
    match outcome {
        Ok(figures) => {
            summary.passed += 1;
            summary.recoveries.extend(recovery::of_faults(name, &figures));
            say(&format!("PASS  {name}  [{state}]  {took:.1} s  {figures}"));
        }
        Err(error) => {
            summary.failed += 1;
            say(&format!("FAIL  {name}  [{state}]  {took:.1} s  {error:#}"));
        }
    }
}

/// Runs one scenario in this process and writes how it ended, for [`run`] to read.
pub(crate) fn one(name: &str, context: &Context) -> Result<bool> {
    let all = scenarios::all();
    let scenario = all.iter().find(|scenario| scenario.name == name).context("no such scenario")?;
    match (scenario.body)(context) {
        Ok(figures) => {
            say(&format!("{OK}{figures}"));
            Ok(true)
        }
        Err(error) => {
            say(&format!("{FAILED}{}", format!("{error:#}").replace('\n', " / ")));
            Ok(false)
        }
    }
}

fn run_one(job: &Job, kept: &Path) -> Result<String> {
    let state = if job.offloads { "on" } else { "off" };
    let label = format!("{}-offloads-{state}", job.name.replace('/', "-"));
    let scratch = Path::new(isolation::SCRATCH).join(&label);
    fs::create_dir_all(&scratch)?;
    let output = scratch.join("scenario.log");
    let file = File::create(&output)?;
    let mut command = isolation::nested()?;
    command.args(["one", &job.name, "--offloads", state]).arg("--scratch").arg(&scratch);
    command.args(["--seed", &job.seed.to_string()]);
    if job.long {
        command.arg("--long");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("cannot run unshare (Debian package util-linux)")?;
    let ended = wait(&mut child, job.limit)?;
    let outcome = match (ended, verdict(&output)?) {
        (false, _) => Err(anyhow::anyhow!("not over within {:?}", job.limit)),
        (true, verdict) => verdict,
    };
    let outcome = outcome.map_err(|error| match keep(&scratch, &kept.join(&label)) {
        Ok(path) => anyhow::anyhow!("{error:#}; logs in {}", path.display()),
        Err(trouble) => anyhow::anyhow!("{error:#}; logs lost: {trouble:#}"),
    });
    let _ = fs::remove_dir_all(&scratch);
    outcome
}

/// Waits for the end of a scenario; one that takes too long is killed, and the kernel removes all it made.
fn wait(child: &mut Child, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(true)
}

fn verdict(output: &Path) -> Result<Result<String>> {
    let text = fs::read_to_string(output)?;
    let last = text.lines().next_back().unwrap_or_default();
    Ok(match (last.strip_prefix(OK), last.strip_prefix(FAILED)) {
        (Some(figures), _) => Ok(figures.to_owned()),
        (None, Some(error)) => Err(anyhow::anyhow!(error.to_owned())),
        (None, None) => Err(anyhow::anyhow!("ended without a verdict: {}", text.trim().replace('\n', " / "))),
    })
}

/// Copies the logs of a failed scenario to where they stay.
fn keep(scratch: &Path, to: &Path) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to)?;
    let mut directories = vec![scratch.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log" || extension == "conf") {
                let bytes = fs::read(&path)?;
                let name = path.strip_prefix(scratch)?.to_string_lossy().replace('/', "-");
                fs::write(to.join(name), bytes.get(bytes.len().saturating_sub(KEPT)..).unwrap_or(&bytes))?;
            }
        }
    }
    Ok(to.to_owned())
}
