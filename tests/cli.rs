//! The two programs from the outside, as far as they get without the data path: what their options
//! mean, what is said when something is wrong, and the exit codes.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TCPCOPY: &str = env!("CARGO_BIN_EXE_tcpcopy");
const INTERCEPT: &str = env!("CARGO_BIN_EXE_intercept");

/// What a run left behind.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A program with its options, in an empty environment and with an empty configuration file.
fn command(program: &str, options: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().args(options).stdin(Stdio::null());
    if !options.iter().any(|option| option.starts_with("--config") || *option == "rules") {
        command.args(["--config", "/dev/null"]);
    }
    command
}

fn run(program: &str, options: &[&str]) -> Outcome {
    outcome(&mut command(program, options))
}

fn outcome(command: &mut Command) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(10);
    let output = loop {
        match command.output() {
            // A test beside this one has begun a process while a copy of the program was written: until that process
            // is another program, it holds the file open.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            output => break output.expect("the program starts"),
        }
    };
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Asserts that a run failed with this code and one line that holds this fragment and begins with the name.
#[track_caller]
fn assert_refused(program: &str, options: &[&str], code: i32, fragment: &str) {
    let outcome = run(program, options);
    assert_eq!(outcome.code, Some(code), "{options:?}: {outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{options:?}: {outcome:?}");
    assert!(outcome.stderr.contains(fragment), "{options:?}: {outcome:?}");
    let name = Path::new(program).file_name().and_then(|name| name.to_str()).expect("a name");
    assert!(outcome.stderr.starts_with(&format!("{name}: ")), "{options:?}: {outcome:?}");
    assert_eq!(outcome.stdout, "", "{options:?}");
}

/// A directory that goes away with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tcpcopy-cli-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("temporary directory");
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).expect("temporary file");
        path.to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for program in [TCPCOPY, INTERCEPT] {
        let help = run(program, &["--help"]);
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
        assert!(help.stdout.contains("Usage:") && help.stdout.contains("--print-config"), "{help:?}");
        assert!(help.stdout.lines().all(|line| line.chars().count() <= 110), "{}", help.stdout);

        let version = run(program, &["-V"]);
        assert_eq!(version.code, Some(0));
        assert!(version.stdout.trim_end().ends_with(env!("CARGO_PKG_VERSION")), "{version:?}");
    }
}

#[test]
fn a_reader_who_has_had_enough_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    let status = command(TCPCOPY, &["--help"]).stdout(writer).status().expect("the program starts");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    for (options, fragment) in [
        (&["--nonsense"][..], "unknown option '--nonsense'"),
        (&["-x", "8080", "-s", "127.0.0.1"][..], "names no target"),
        (&["-x", "80-10.0.0.9:80", "-s", "10.0.0.8"][..], "there is no key"),
        (&["-x", "80-10.0.0.9:80", "-s", "127.0.0.1", "-n", "5000"][..], "from 1 to 1023"),
        (&["-x", "80-10.0.0.9:80", "-d"][..], "stays in the foreground"),
        (&["-i", "eth0"][..], "of the C tcpcopy"),
    ] {
        assert_refused(TCPCOPY, options, 64, fragment);
    }
    for (options, fragment) in [
        (&["-i", "eth0", "-F", "tcp and src port 80", "-d"][..], "of the C intercept"),
        (&["--target", "10.0.0.9:80", "-b", "0.0.0.0"][..], "there is no key"),
        (
            &["--target", "10.0.0.9:80", "--insecure", "--capture-source", "packet", "--on-target"][..],
            "use \"nfqueue\", or run intercept on a host that the target routes them to",
        ),
        (
            &["--target", "10.0.0.9:80", "--insecure", "--capture-source", "packet", "--unclaimed", "accept"]
                [..],
            "use \"nfqueue\", or unclaimed = \"drop\"",
        ),
        (&["rules"][..], "'rules load', 'rules show' or 'rules remove'"),
        (&["rules", "remove", "--now"][..], "--now"),
    ] {
        assert_refused(INTERCEPT, options, 64, fragment);
    }
}

#[test]
fn a_key_is_made_once_and_taken_while_it_is_secret() {
    let directory = Directory::new("keygen");
    let keys = directory.0.join("keys");
    fs::create_dir(&keys).expect("directory");
    let path = keys.join("2026-11");
    let file = path.to_str().expect("UTF-8");
    let made = outcome(Command::new(INTERCEPT).args(["keygen", file]).env_clear());
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""));
    assert!(made.stdout.contains("a new key, id "), "{}", made.stdout);
    let text = fs::read_to_string(&path).expect("the key");
    assert_eq!(fs::metadata(&path).expect("the key").permissions().mode() & 0o7777, 0o600);

    let again = outcome(Command::new(TCPCOPY).args(["keygen", file]).env_clear());
    assert_eq!(again.code, Some(71), "{again:?}");
    assert!(again.stderr.contains("never overwritten"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(&path).expect("the key"), text);
    let printed = outcome(Command::new(TCPCOPY).arg("keygen").env_clear());
    assert!(printed.code == Some(0) && printed.stdout != text, "{printed:?}");
    let fields = |text: &str| text.lines().filter(|line| line.starts_with("key = \"")).count();
    assert_eq!((fields(&printed.stdout), fields(&text)), (1, 1));

    let keys = keys.to_str().expect("UTF-8");
    let options = ["--target", "10.0.0.9:80", "--check-config", "--keys"];
    let remote = ["-x", "80-10.0.0.9:80", "-s", "10.0.0.8", "--check-config", "--keys"];
    for place in [keys, file] {
        assert_eq!(run(INTERCEPT, &[&options[..], &[place]].concat()).code, Some(0), "{place}");
        assert_eq!(run(TCPCOPY, &[&remote[..], &[place]].concat()).code, Some(0), "{place}");
    }
    let legacy = ["--legacy", "--insecure"];
    assert_refused(
        TCPCOPY,
        &[&remote[..], &[keys], &legacy].concat(),
        64,
        "a C intercept has no key, and there",
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("mode");
    assert_refused(INTERCEPT, &[&options[..], &[keys]].concat(), 78, "mode 0640");
}

#[test]
fn wrong_files_and_variables_are_configuration_errors() {
    let directory = Directory::new("files");
    for (text, fragment) in [
        ("percnt = 3\n", "unknown key 'percnt'; did you mean 'percent'?"),
        ("percent = 'all'\n", "percent: expected a whole number from 1 to 100"),
        ("percent = \n", "line 1"),
        ("percent = 3\n", "tcpcopy.toml: map: nothing to replay"),
    ] {
        let path = directory.file("tcpcopy.toml", text);
        assert_refused(TCPCOPY, &["--config", &path], 78, fragment);
        assert_refused(TCPCOPY, &["--config", &path], 78, &path[..8]);
    }
    assert_refused(TCPCOPY, &["--config", "/nonexistent.toml"], 78, "/nonexistent.toml: cannot read");

    let outcome = outcome(command(TCPCOPY, &["-x", "80-10.0.0.9:80"]).env("TCPCOPY_COPIES", "0"));
    assert_eq!(outcome.code, Some(78), "{outcome:?}");
    assert!(outcome.stderr.contains("TCPCOPY_COPIES: expected"), "{outcome:?}");
}

#[test]
fn the_configuration_can_be_checked_and_shown() {
    let directory = Directory::new("check");
    let path = directory.file("tcpcopy.toml", "map = [\"80-10.0.0.9:80\"]\nintercept = \"127.0.0.1\"\n");

    let checked = run(TCPCOPY, &["--config", &path, "--check-config"]);
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""));
    let shown = run(TCPCOPY, &["--config", &path, "--print-config", "-r", "20"]);
    assert_eq!(shown.code, Some(0));
    assert!(
        shown.stdout.lines().any(|line| line.starts_with("map = ") && line.ends_with(&path)),
        "{shown:?}"
    );
    assert!(
        shown.stdout.lines().any(|line| line.starts_with("percent = 20") && line.ends_with("command line"))
    );

    assert_refused(
        TCPCOPY,
        &["--check-config", "--config", &directory.file("bad.toml", "zz = 1")],
        78,
        "unknown key",
    );
    let checked = run(INTERCEPT, &["--check-config", "--target", "[fd00::9]:80", "-b", "::1"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[test]
fn without_privileges_both_say_so() {
    let directory = Directory::new("privileges");
    // The build directory may be closed to others.
    fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o755)).expect("permissions");
    for (program, options) in [
        (TCPCOPY, &["-x", "80-10.0.0.9:80", "-s", "127.0.0.1"][..]),
        (INTERCEPT, &["--target", "10.0.0.9:80", "-b", "127.0.0.1"][..]),
    ] {
        let name = Path::new(program).file_name().expect("a name");
        let copy = directory.0.join(name);
        fs::copy(program, &copy).expect("copy of the program");
        let mut command = command(copy.to_str().expect("UTF-8"), options);
        if fs::metadata("/proc/self").expect("/proc").uid() == 0 {
            command.uid(65534).gid(65534);
        }
        let outcome = outcome(&mut command);
        assert_eq!(outcome.code, Some(77), "{outcome:?}");
        assert!(outcome.stderr.contains("CAP_NET_ADMIN") && outcome.stderr.contains("setcap"), "{outcome:?}");
    }
}

#[test]
fn failures_in_the_journal_have_a_priority() {
    let directory = Directory::new("journal");
    let path = directory.file("stderr", "");
    let stderr = fs::File::options().write(true).open(&path).expect("temporary file");
    let metadata = stderr.metadata().expect("metadata");
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());

    let status = command(TCPCOPY, &["--nonsense"]).env("JOURNAL_STREAM", stream).stderr(stderr).status();

    assert_eq!(status.expect("the program starts").code(), Some(64));
    let mut text = String::new();
    fs::File::open(&path).and_then(|mut file| file.read_to_string(&mut text)).expect("temporary file");
    assert!(text.starts_with("<3>tcpcopy: unknown option"), "{text}");
}

/// Whether this process may do what the programs do; those checks come before the ones of addresses.
fn is_privileged(test: &str) -> bool {
    let privileged = fs::metadata("/proc/self").expect("/proc").uid() == 0;
    if !privileged {
        eprintln!("{test}: skipped, needs root to get past the check of capabilities");
    }
    privileged
}

#[test]
fn addresses_that_this_host_lacks_are_named() {
    if !is_privileged("addresses_that_this_host_lacks_are_named") {
        return;
    }
    let options = ["--target", "10.0.0.9:80", "-b", "192.0.2.77", "--insecure"];
    assert_refused(INTERCEPT, &options, 78, "192.0.2.77 in -b is not an address of this host");
    let options = ["--target", "127.0.0.1:80", "-b", "127.0.0.1"];
    assert_refused(INTERCEPT, &options, 78, "is this host itself");
    let options = ["-x", "81-127.0.0.1:80", "-s", "127.0.0.1"];
    assert_refused(TCPCOPY, &options, 78, "the target 127.0.0.1 is this host itself");
}
