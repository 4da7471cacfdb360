//! Tests that run in a network namespace of their own, as root.
//!
//! A test calls [`isolated`] with its own name and body. The first time, the test's binary is started again for just
//! that test under `unshare --net --mount`, and only there the body runs. Nothing outlives the process.

use std::process::{Command, ExitStatus};

const INSIDE: &str = "TCPCOPY_TEST_NAMESPACE";
/// Seconds after which a test that hangs is ended.
const PATIENCE: &str = "120";

/// Runs `body` in a fresh network namespace whose loopback is up; skips, with the reason, where that cannot be.
pub(crate) fn isolated(test: &str, body: impl FnOnce()) {
    if is_inside() {
        run("ip", &["link", "set", "lo", "up"]);
        return body();
    }
    if let Err(why) = usable() {
        eprintln!("SKIPPED {test}: {why}");
        return;
    }
    let status = again(test);
    assert!(status.success(), "{test} failed in its namespace: {status}");
}

/// True where [`isolated`] or [`again`] started this process. Parts of tests do nothing elsewhere.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this binary again for one test, in the namespace the caller is in when it is inside already.
pub(crate) fn again(test: &str) -> ExitStatus {
    again_under(&[], test)
}

/// [`again`] as root without CAP_NET_ADMIN and CAP_NET_RAW.
#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) fn again_without_net_admin(test: &str) -> ExitStatus {
    again_under(&["setpriv", "--bounding-set=-net_admin,-net_raw", "--inh-caps=-net_admin,-net_raw"], test)
}

fn again_under(wrapper: &[&str], test: &str) -> ExitStatus {
    let this = std::env::current_exe().expect("a running test has a path");
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", PATIENCE]);
    if !is_inside() {
        command.args(["unshare", "--net", "--mount", "--"]);
    }
    command
        .args(wrapper)
        .arg(this)
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1");
    command.status().expect("starting the test again")
}

/// Runs a command that must succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("starting {program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// [`run`] with the arguments separated by spaces.
#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) fn sh(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (program, arguments) = words.split_first().expect("a command");
    run(program, arguments)
}

fn usable() -> Result<(), String> {
    for (program, arguments) in [
        ("unshare", &["--net", "--mount", "--", "true"][..]),
        ("ip", &["-V"][..]),
        ("nft", &["--version"][..]),
        ("iptables-nft", &["--version"][..]),
    ] {
        let output = Command::new(program).args(arguments).output();
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr))),
            Err(error) => return Err(format!("{program}: {error}")),
        }
    }
    Ok(())
}
