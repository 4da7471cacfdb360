//! Starts that are refused, as tcpcopy-deployment(7) lists them: the exit code, the entry in the journal and the line
//! in `systemctl status` are what the page says.

use std::fs;
use std::net::TcpListener;

use super::namespace::run;
use super::systemd::Service;
use super::{INTERCEPT, INTERCEPT_CONFIG, TCPCOPY, assert_has, configure, site};
use tcpcopy::daemon::message_id;

/// What there is below `/run` here is below this in the page.
const DIRECTORY: &str = "/etc/tcpcopy/";

/// Kernels that lack something are the laboratory's.
const ELSEWHERE: &[&str] = &["no netfilter in the kernel"];

/// One row of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    what: String,
    code: i32,
    message: String,
}

/// The rows of the section, each `.It CODE WHAT` and then the message.
fn documented() -> Vec<Row> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/man/tcpcopy-deployment.7"));
    let page = page.expect("the page");
    let (_, section) = page.split_once(".Sh STARTS THAT ARE REFUSED\n").expect("the section");
    let section = section.split("\n.Sh ").next().unwrap_or_default();
    let mut lines = section.lines();
    let mut rows = Vec::new();
    while let Some(line) = lines.next() {
        let Some((code, what)) = line.strip_prefix(".It ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let message = lines.next().expect("a message").to_owned();
        rows.push(Row { what: what.to_owned(), code: code.parse().expect("a code"), message });
    }
    rows
}

/// How a program is brought to refuse its start.
struct Case {
    what: &'static str,
    program: &'static str,
    configuration: String,
    options: Vec<&'static str>,
    /// A command that is run before, if any.
    before: &'static [&'static str],
    /// A program that starts it, with its options.
    under: &'static [&'static str],
}

/// A case of tcpcopy with further settings.
fn tcpcopy(what: &'static str, settings: &str) -> Case {
    let configuration = format!("map = ['80-10.9.0.9:80']\nintercept = ['127.0.0.1']\n{settings}\n");
    Case { what, program: TCPCOPY, configuration, options: Vec::new(), before: &[], under: &[] }
}

fn whole(what: &'static str, program: &'static str, configuration: &str) -> Case {
    Case { program, configuration: configuration.to_owned(), ..tcpcopy(what, "") }
}

fn cases() -> Vec<Case> {
    vec![
        Case { options: vec!["--nonsense"], ..tcpcopy("unknown option", "") },
        Case { options: vec!["--config", "/run/none.toml"], ..tcpcopy("no configuration file", "") },
        tcpcopy("no TOML", "percent ="),
        tcpcopy("unknown key", "percnt = 3"),
        tcpcopy("a truth value", "insecure = 'maybe'"),
        tcpcopy("a number", "percent = 101"),
        tcpcopy("a mark", "mark = 0"),
        tcpcopy("a size", "memory-limit = '1 sack'"),
        tcpcopy("a time", "idle-timeout = '1'"),
        tcpcopy("a choice", "gate = 'both'"),
        tcpcopy("a list", "pool = ['10.99.0.0/99']"),
        whole("a setting that is missing", TCPCOPY, ""),
        tcpcopy("settings that contradict each other", "embedded = true"),
        tcpcopy("a user that does not exist", "user = 'nobody-here'"),
        tcpcopy("no key where one is named", "keys = '/run/none'"),
        Case {
            before: &["install", "-D", "-m", "644", "/dev/null", "/run/keys/one"],
            ..tcpcopy("a key that others can read", "keys = '/run/keys'")
        },
        whole("no key where one is needed", INTERCEPT, "target = ['10.9.0.9:80']\n"),
        whole("a target that is this host", TCPCOPY, "map = ['80-10.9.0.1:80']\nintercept = ['127.0.0.1']\n"),
        whole("a target that is production", TCPCOPY, "map = ['80-127.0.0.1:80']\nembedded = true\n"),
        whole(
            "an address that this host has not",
            INTERCEPT,
            "target = ['10.9.0.9:80']\nbind = '10.9.0.77'\ninsecure = true\n",
        ),
        Case {
            before: &["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 60999"],
            ..whole("ports that are not free", TCPCOPY, "map = ['80-10.9.0.9:80']\nembedded = true\n")
        },
        Case {
            under: &["setpriv", "--bounding-set=-net_admin,-net_raw", "--inh-caps=-net_admin,-net_raw"],
            ..tcpcopy("no privilege", "")
        },
        Case {
            before: &["ip", "link", "add", "tcpcopy0", "type", "veth"],
            ..tcpcopy("an interface of the sink's name", "")
        },
        whole("a port that is taken", INTERCEPT, INTERCEPT_CONFIG),
        whole("a queue that is taken", INTERCEPT, &format!("{INTERCEPT_CONFIG}port = 36525\n")),
    ]
}

#[test]
fn refused_starts_are_as_documented() {
    let documented = documented();
    let names: Vec<_> = cases().iter().map(|case| case.what).chain(ELSEWHERE.iter().copied()).collect();
    let rows: Vec<_> = documented.iter().map(|row| row.what.as_str()).collect();
    assert_eq!(rows, names, "tcpcopy-deployment(7), STARTS THAT ARE REFUSED");
    site("refusals::refused_starts_are_as_documented", |journal, manager| {
        let taken = TcpListener::bind("127.0.0.1:36524").expect("a free port");
        let mut other = None;
        for (case, row) in cases().into_iter().zip(&documented) {
            if let Some((program, arguments)) = case.before.split_first() {
                run(program, arguments);
            }
            if case.what == "a queue that is taken" {
                // Another intercept has it.
                configure("other", &format!("{INTERCEPT_CONFIG}port = 36526\n"));
                other = Some(Service::start(INTERCEPT, &["--config", "/run/other.toml"], &[]));
                journal.wait_for(message_id::READY);
            }
            let name = if case.program == TCPCOPY { "tcpcopy" } else { "intercept" };
            configure(name, &case.configuration);
            let file = format!("/run/{name}.toml");
            let mut command = case.under.to_vec();
            command.push(case.program);
            if !case.options.contains(&"--config") {
                command.extend(["--config", &file]);
            }
            command.extend(&case.options);
            let (program, arguments) = command.split_first().expect("a program");
            let code = Service::start(program, arguments, &[]).wait();
            assert_eq!(code, Some(row.code), "{}", row.what);

            let status = manager.wait_for("EXIT_STATUS=");
            assert!(status.contains(&format!("EXIT_STATUS={}\n", row.code)), "{}: {status}", row.what);
            let told = status.lines().find_map(|line| line.strip_prefix("STATUS=")).expect("a status");
            assert_eq!(masked(told), row.message, "{}", row.what);
            let failed = journal.wait_for(message_id::FAILED);
            assert_has(
                &failed,
                &[("MESSAGE", told), ("EXIT_CODE", &row.code.to_string()), ("PRIORITY", "3")],
            );
        }
        drop((taken, other));
    });
}

/// Without what differs between this site and the page, and from one run to the next.
fn masked(text: &str) -> String {
    let text = text.replace("/run/", DIRECTORY);
    let Some((head, tail)) = text.split_once("netlink port ") else { return text };
    let tail = tail.trim_start_matches(|digit: char| digit.is_ascii_digit());
    format!("{head}netlink port N{tail}")
}
