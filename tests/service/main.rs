//! The two programs as services: what the journal and the service manager receive from them, when they start, change,
//! are in trouble and stop. Both ends are sockets of this test at the places where systemd has its own.

mod edits;
#[path = "../namespace/mod.rs"]
mod namespace;
mod readiness;
mod refusals;
mod systemd;

use std::fs;

use namespace::{isolated, sh};
use systemd::{Entry, Journal, Manager, Service};
use tcpcopy::daemon::message_id;

const INTERCEPT: &str = env!("CARGO_BIN_EXE_intercept");
const TCPCOPY: &str = env!("CARGO_BIN_EXE_tcpcopy");

const INTERCEPT_CONFIG: &str = "target = ['10.9.0.9:80']\nbind = '127.0.0.1'\nworkers = 1\n";
const TCPCOPY_CONFIG: &str =
    "map = ['80-10.9.0.9:80']\nintercept = ['127.0.0.1']\npool = ['10.99.0.0/24']\nworkers = 2\n";

/// Everything of a test, in a network and a `/run` of its own, with a way to the target that leads nowhere.
fn site(test: &str, body: impl FnOnce(&Journal, &Manager)) {
    isolated(test, || {
        sh("mount -t tmpfs none /run");
        sh("ip link add nowhere type veth peer name elsewhere");
        sh("ip address add 10.9.0.1/24 dev nowhere");
        sh("ip link set nowhere up");
        sh("ip link set elsewhere up");
        body(&Journal::listen(), &Manager::listen());
    });
}

fn configure(program: &str, text: &str) {
    fs::write(format!("/run/{program}.toml"), text).expect("configuration");
}

fn intercept() -> Service {
    configure("intercept", INTERCEPT_CONFIG);
    Service::start(INTERCEPT, &["--config", "/run/intercept.toml"], &[])
}

fn tcpcopy() -> Service {
    configure("tcpcopy", TCPCOPY_CONFIG);
    Service::start(TCPCOPY, &["--config", "/run/tcpcopy.toml"], &[])
}

#[track_caller]
fn assert_has(entry: &Entry, fields: &[(&str, &str)]) {
    for (field, value) in fields {
        assert!(entry.has(field, value), "{field}={value}: {entry:?}");
    }
}

#[test]
fn events_reach_the_journal_with_their_fields() {
    site("events_reach_the_journal_with_their_fields", |journal, manager| {
        let intercept = intercept();
        let ready = journal.wait_for(message_id::READY);
        assert_has(
            &ready,
            &[
                ("MESSAGE", "ready"),
                ("PRIORITY", "6"),
                ("SYSLOG_IDENTIFIER", "intercept"),
                ("WORKERS", "1"),
                ("QUEUE", "36540"),
                ("LISTEN", "127.0.0.1:36524"),
            ],
        );
        manager.wait_for("READY=1");
        manager.wait_for("STATUS=0 tunnels, 0 flows, 0 responses/s; rules closed");

        let tcpcopy = tcpcopy();
        let back = journal.wait_for(message_id::INTERCEPT_BACK);
        assert_has(
            &back,
            &[("INTERCEPT", "127.0.0.1:36524"), ("PRIORITY", "6"), ("SYSLOG_IDENTIFIER", "tcpcopy")],
        );
        assert_has(&journal.wait_for(message_id::READY), &[("SINK", "tcpcopy0"), ("WORKERS", "2")]);
        manager.wait_for("STATUS=0 sessions, 0 requests/s, 1 of 1 intercepts up");

        sh("nft flush ruleset");
        let rules = journal.wait_for(message_id::RULES_BACK);
        assert_has(&rules, &[("WHAT", "table ip intercept is gone"), ("PRIORITY", "4")]);
        sh("ip link del tcpcopy0");
        assert_has(&journal.wait_for(message_id::RULES_BACK), &[("SINK", "tcpcopy0")]);

        intercept.kill();
        let lost = journal.wait_for(message_id::INTERCEPT_LOST);
        assert_has(&lost, &[("INTERCEPT", "127.0.0.1:36524"), ("PRIORITY", "4")]);
        assert!(lost.value("REASON").is_some_and(|reason| reason.contains("connect")), "{lost:?}");
        manager.wait_for("STATUS=0 sessions, 0 requests/s, 0 of 1 intercepts up");

        assert_eq!(tcpcopy.stop(), Some(0));
        let stats = journal.wait_for(message_id::STATS);
        assert_has(
            &stats,
            &[("MESSAGE", "stats"), ("CAPTURED", "0"), ("CAPTURED_PER_S", "0"), ("SESSIONS", "0")],
        );
        journal.wait_for(message_id::STOPPED);
        manager.wait_for("STOPPING=1");
    });
}

#[test]
fn a_reload_is_in_force_or_says_why_not() {
    site("a_reload_is_in_force_or_says_why_not", |journal, manager| {
        let intercept = intercept();
        journal.wait_for(message_id::READY);
        manager.wait_for("READY=1");
        let tcpcopy = tcpcopy();
        journal.wait_for(message_id::READY);
        manager.wait_for("READY=1");
        let rules = || sh("nft list ruleset");

        configure(
            "tcpcopy",
            &format!("{TCPCOPY_CONFIG}percent = 7\nlog = 'debug'\nqueue = 5\nmark = 6\n")
                .replace("80-", "81-"),
        );
        tcpcopy.reload();
        let reloading = manager.wait_for("RELOADING=1");
        assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
        manager.wait_for("READY=1");
        let fixed = journal.wait_for(message_id::RESTART_NEEDED);
        assert_has(&fixed, &[("KEYS", "queue mark"), ("PRIORITY", "4")]);
        journal.wait_for(message_id::CONFIG_RELOADED);
        let listed = rules();
        assert!(listed.contains("tcp dport 81") && !listed.contains("tcp dport 80"), "{listed}");
        assert!(listed.contains("0x74637079"), "{listed}");

        configure("tcpcopy", "percnt = 3\n");
        tcpcopy.reload();
        let rejected = journal.wait_for(message_id::CONFIG_REJECTED);
        assert_has(&rejected, &[("PRIORITY", "3")]);
        let reason = "/run/tcpcopy.toml: line 1: unknown key 'percnt'; did you mean 'percent'?";
        assert_has(&rejected, &[("REASON", reason)]);
        assert!(rejected.value("MESSAGE").is_some_and(|text| text.ends_with(reason)), "{rejected:?}");
        manager.wait_for("RELOADING=1");
        manager.wait_for("READY=1");
        assert_eq!(rules(), listed);

        configure(
            "intercept",
            &format!("{INTERCEPT_CONFIG}port = 99\n").replace("9:80'", "9:80', '10.9.0.8:80'"),
        );
        intercept.reload();
        assert_has(&journal.wait_for(message_id::RESTART_NEEDED), &[("KEYS", "port")]);
        assert!(rules().contains("10.9.0.8"), "{}", rules());
        configure("intercept", &INTERCEPT_CONFIG.replace("10.9.0.9", "127.0.0.1"));
        intercept.reload();
        let rejected = journal.wait_for(message_id::CONFIG_REJECTED);
        assert!(
            rejected.value("REASON").is_some_and(|text| text.contains("is this host itself")),
            "{rejected:?}"
        );
        assert_eq!((tcpcopy.stop(), intercept.stop()), (Some(0), Some(0)));
    });
}

/// By an address that this host is given, and by a NAT rule; and a reload does not bring it about.
#[test]
fn production_does_not_become_a_target() {
    site("production_does_not_become_a_target", |journal, manager| {
        const CONFIG: &str = "map = ['80-10.9.0.77:80']\nembedded = true\nuser = 'root'\nworkers = 1\n";
        const LEAD: &str = "nft add table ip n; add chain ip n o { type nat hook output priority -100; }; \
                            add rule ip n o ip daddr 10.9.0.77 tcp dport 80 dnat to 10.9.0.1:80";
        configure("tcpcopy", CONFIG);
        // The watchdog's interval makes rounds short. What the manager is told has to be read: there is little room.
        let environment = [("WATCHDOG_USEC", "1200000")];
        let tcpcopy = Service::start(TCPCOPY, &["--config", "/run/tcpcopy.toml"], &environment);
        journal.wait_for(message_id::READY);
        for (begin, end) in [
            ("ip address add 10.9.0.77/32 dev lo", "ip address del 10.9.0.77/32 dev lo"),
            (LEAD, "nft delete table ip n"),
        ] {
            sh(begin);
            let stopped = journal.wait_for(message_id::TARGET_IS_PRODUCTION);
            assert_has(
                &stopped,
                &[("MAPPING", "80-10.9.0.77:80"), ("TARGET", "10.9.0.77:80"), ("PRIORITY", "3")],
            );
            tcpcopy.reload();
            manager.wait_for("RELOADING=1");
            let rejected = journal.wait_for(message_id::CONFIG_REJECTED);
            let reason = rejected.value("REASON").unwrap_or_default();
            assert!(reason.contains("would replay to production"), "{rejected:?}");
            manager.wait_for("READY=1");
            sh(end);
            assert_has(&journal.wait_for(message_id::TARGET_IS_APART), &[("MAPPING", "80-10.9.0.77:80")]);
        }
        tcpcopy.reload();
        journal.wait_for(message_id::CONFIG_RELOADED);
        assert_eq!(tcpcopy.stop(), Some(0));
    });
}

#[test]
fn new_intercepts_are_connected_and_old_ones_left() {
    site("new_intercepts_are_connected_and_old_ones_left", |journal, _| {
        let intercept = intercept();
        let tcpcopy = tcpcopy();
        assert_has(&journal.wait_for(message_id::INTERCEPT_BACK), &[("INTERCEPT", "127.0.0.1:36524")]);
        configure("tcpcopy", &TCPCOPY_CONFIG.replace("127.0.0.1", "127.0.0.2"));
        tcpcopy.reload();
        assert_has(&journal.wait_for(message_id::INTERCEPT_LOST), &[("INTERCEPT", "127.0.0.2:36524")]);
        configure("tcpcopy", TCPCOPY_CONFIG);
        tcpcopy.reload();
        assert_has(&journal.wait_for(message_id::INTERCEPT_BACK), &[("INTERCEPT", "127.0.0.1:36524")]);
        assert_eq!((tcpcopy.stop(), intercept.stop()), (Some(0), Some(0)));
    });
}

#[test]
fn the_watchdog_is_fed_while_workers_answer() {
    site("the_watchdog_is_fed_while_workers_answer", |_, manager| {
        configure("intercept", INTERCEPT_CONFIG);
        let environment = [("WATCHDOG_USEC", "400000")];
        let intercept = Service::start(INTERCEPT, &["--config", "/run/intercept.toml"], &environment);
        for _ in 0..3 {
            manager.wait_for("WATCHDOG=1");
        }
        assert_eq!(intercept.stop(), Some(0));
    });
}

/// What `/proc` says of each thread: its name, user and permitted capabilities.
fn threads(service: &Service) -> Vec<(String, String, u64)> {
    let directory = format!("/proc/{}/task", service.pid());
    let tasks = fs::read_dir(directory).expect("a running process");
    let mut threads: Vec<_> = tasks
        .map(|task| {
            let status = fs::read_to_string(task.expect("a task").path().join("status")).expect("status");
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
                line.split_whitespace().next().expect("a value").to_owned()
            };
            (field("Name:"), field("Uid:"), u64::from_str_radix(&field("CapPrm:"), 16).expect("a mask"))
        })
        .collect();
    threads.sort();
    threads
}

const NET_ADMIN: u64 = 1 << 12;

#[test]
fn root_becomes_the_service_user_and_everything_works_on() {
    site("root_becomes_the_service_user_and_everything_works_on", |journal, manager| {
        let users = fs::read_to_string("/etc/passwd").expect("users");
        let others =
            users.lines().filter(|line| !line.starts_with("tcpcopy:")).map(|line| format!("{line}\n"));
        let users = others.collect::<String>() + "tcpcopy:x:54321:54321::/:/bin/false\n";
        fs::write("/run/passwd", users).expect("a file");
        sh("mount --bind /run/passwd /etc/passwd");
        let intercept = intercept();
        let tcpcopy = tcpcopy();
        journal.wait_for(message_id::INTERCEPT_BACK);
        manager.wait_for("STATUS=0 sessions");

        let thread = |name: &str, capabilities| (name.to_owned(), "54321".to_owned(), capabilities);
        assert_eq!(
            threads(&intercept),
            [
                thread("acceptor", 0),
                thread("bridge", 0),
                thread("intercept", NET_ADMIN),
                thread("worker-0", NET_ADMIN)
            ]
        );
        assert_eq!(
            threads(&tcpcopy),
            [thread("tcpcopy", NET_ADMIN), thread("worker-0", NET_ADMIN), thread("worker-1", NET_ADMIN)]
        );

        sh("ip link del tcpcopy0");
        assert_has(&journal.wait_for(message_id::RULES_BACK), &[("SINK", "tcpcopy0")]);
        sh("nft flush ruleset");
        assert_has(&journal.wait_for(message_id::RULES_BACK), &[("WHAT", "table ip intercept is gone")]);
        configure("tcpcopy", &TCPCOPY_CONFIG.replace("80-", "81-"));
        tcpcopy.reload();
        journal.wait_for(message_id::CONFIG_RELOADED);
        assert!(sh("nft list ruleset").contains("tcp dport 81"));
        assert_eq!((tcpcopy.stop(), intercept.stop()), (Some(0), Some(0)));
        assert!(!sh("ip link").contains("tcpcopy0"));
    });
}

/// What hands capabilities down as a service manager does, to an ordinary user who may read the program.
fn handed_down(program: &str, options: &[&str]) -> Service {
    fs::copy(program, "/run/program").expect("a copy of the program");
    let mut arguments = vec!["--reuid=54321", "--regid=54321", "--clear-groups"];
    arguments.extend([
        "--inh-caps=+net_admin,+net_raw",
        "--ambient-caps=+net_admin,+net_raw",
        "--no-new-privs",
    ]);
    arguments.extend(["/run/program"]);
    arguments.extend(options);
    Service::start("setpriv", &arguments, &[])
}

#[test]
fn a_capability_that_was_handed_down_goes_once_the_sockets_are_open() {
    site("a_capability_that_was_handed_down_goes_once_the_sockets_are_open", |journal, manager| {
        let intercept = intercept();
        journal.wait_for(message_id::READY);
        // For each of two workers: raw sockets of both families; packet sockets of both, and one for trains.
        for (source, segmentation, sockets) in [("nfqueue", "own", 4), ("packet", "offload", 10)] {
            configure("tcpcopy", TCPCOPY_CONFIG);
            let source = format!("--capture-source={source}");
            let segmentation = format!("--segmentation={segmentation}");
            let options = ["--config", "/run/tcpcopy.toml", &source, &segmentation];
            let tcpcopy = handed_down(TCPCOPY, &options);
            journal.wait_for(message_id::READY);
            manager.wait_for("STATUS=0 sessions, 0 requests/s, 1 of 1 intercepts up");
            let threads = threads(&tcpcopy);
            let names: Vec<_> = threads.iter().map(|(name, ..)| name.as_str()).collect();
            assert_eq!(names, ["program", "worker-0", "worker-1"]);
            for (name, user, capabilities) in &threads {
                let mine = (user.as_str(), capabilities & !NET_ADMIN);
                assert_eq!(mine, ("54321", 0), "{name}: {capabilities:x}");
            }
            // Not by capset, which a sandbox may refuse.
            let environment =
                fs::read_to_string(format!("/proc/{}/environ", tcpcopy.pid())).expect("an environment");
            assert!(environment.contains(&format!("LISTEN_FDS={sockets}\0")), "{environment:?}");
            assert_eq!(tcpcopy.stop(), Some(0));
        }
        assert_eq!(intercept.stop(), Some(0));
    });
}

#[test]
fn the_reason_for_a_failed_start_is_everywhere() {
    site("the_reason_for_a_failed_start_is_everywhere", |journal, manager| {
        let _taken = std::net::TcpListener::bind("127.0.0.1:36524").expect("a free port");
        assert_eq!(intercept().wait(), Some(69));
        let failed = journal.wait_for(message_id::FAILED);
        assert_has(
            &failed,
            &[("PRIORITY", "3"), ("EXIT_CODE", "69"), ("ERRNO", &libc::EADDRINUSE.to_string())],
        );
        let told = manager.wait_for("STATUS=cannot listen on 127.0.0.1:36524");
        assert!(told.contains(&format!("ERRNO={}\n", libc::EADDRINUSE)), "{told}");
        assert!(told.contains("EXIT_STATUS=69\n"), "{told}");
    });
}
