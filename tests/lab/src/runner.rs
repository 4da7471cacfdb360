//! Runs scenarios, each in a process and namespaces of its own, and says how they ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::isolation;
use crate::observer::say;
use crate::recovery;
use crate::scenarios::{self, Context, Offloads, Scenario};

/// What a scenario's process writes before its figures.
const OK: &str = "ok: ";
/// What a scenario's process writes before its error.
const FAILED: &str = "failed: ";
/// Of a kept log, no more than its last bytes.
const KEPT: usize = 1 << 20;

/// Runs the scenarios whose name contains one of `names`, or all. Returns whether all passed.
pub(crate) fn run(names: &[String], offloads: Option<Offloads>, long: bool) -> Result<bool> {
    let chosen: Vec<Scenario> = scenarios::all()
        .into_iter()
        .filter(|scenario| names.is_empty() || names.iter().any(|name| scenario.name.contains(name)))
        .collect();
    if chosen.is_empty() {
        bail!("no scenario is called {names:?}; `lab list` names them");
    }
    let kept = isolation::kept_logs();
    let (mut passed, mut failed, mut recoveries) = (0, 0, Vec::new());
    for scenario in &chosen {
        let variants: &[bool] = match offloads.unwrap_or(scenario.offloads) {
            Offloads::Both => &[true, false],
            Offloads::On => &[true],
            Offloads::Off => &[false],
        };
        for &offloads in variants {
            let start = Instant::now();
            let outcome = run_one(scenario, offloads, long, &kept);
            let (name, took) = (&scenario.name, start.elapsed().as_secs_f64());
            let state = if offloads { "offloads on " } else { "offloads off" };
            match outcome {
                Ok(figures) => {
                    passed += 1;
                    recoveries.extend(recovery::of_faults(name, &figures));
                    say(&format!("PASS  {name}  [{state}]  {took:.1} s  {figures}"));
                }
                Err(error) => {
                    failed += 1;
                    say(&format!("FAIL  {name}  [{state}]  {took:.1} s  {error:#}"));
                }
            }
        }
    }
    if !recoveries.is_empty() {
        say(&recovery::table(&recoveries));
    }
    say(&format!("{passed} passed, {failed} failed"));
    Ok(failed == 0)
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

fn run_one(scenario: &Scenario, offloads: bool, long: bool, kept: &Path) -> Result<String> {
    let state = if offloads { "on" } else { "off" };
    let label = format!("{}-offloads-{state}", scenario.name.replace('/', "-"));
    let scratch = Path::new(isolation::SCRATCH).join(&label);
    fs::create_dir_all(&scratch)?;
    let output = scratch.join("scenario.log");
    let file = File::create(&output)?;
    let mut command = isolation::nested()?;
    command.args(["one", &scenario.name, "--offloads", state]).arg("--scratch").arg(&scratch);
    if long {
        command.arg("--long");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("cannot run unshare (Debian package util-linux)")?;
    let limit = if long { scenario.limit * 10 } else { scenario.limit };
    let ended = wait(&mut child, limit)?;
    let outcome = match (ended, verdict(&output)?) {
        (false, _) => Err(anyhow::anyhow!("not over within {limit:?}")),
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
