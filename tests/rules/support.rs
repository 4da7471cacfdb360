//! What these tests share.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tcpcopy::netfilter::{Capture, Device, Families, OnlineSpec, OwnResponses, Queues, TableName};
use tcpcopy::wire::flow::SHARES;

/// The example that `nftables/online.nft` documents.
pub(crate) fn online_example() -> OnlineSpec {
    OnlineSpec {
        table: TableName::tcpcopy(),
        captures: vec![
            Capture { online: None, port: 80 },
            Capture { online: Some([198, 51, 100, 10].into()), port: 443 },
        ],
        clients: Vec::new(),
        share: SHARES,
        max_packets_per_second: None,
        targets: vec!["203.0.113.20:80".parse().unwrap(), "[2001:db8::20]:80".parse().unwrap()],
        families: Families::BOTH,
        sink: Device { name: "tcpcopy0".to_owned(), index: 7 },
        queues: Queues::new(36520, 2).unwrap(),
        mark: 0x7463_7079,
        pure_acks: false,
        handshake_acks: true,
        conntrack: true,
        responses: None,
    }
}

/// The example that `nftables/embedded.nft` documents.
pub(crate) fn embedded_example() -> OnlineSpec {
    let flow = |target: &str, own: &str| (target.parse().unwrap(), own.parse().unwrap());
    OnlineSpec {
        captures: vec![Capture { online: None, port: 80 }],
        targets: Vec::new(),
        responses: Some(OwnResponses {
            flows: vec![flow("203.0.113.20:80", "198.51.100.10"), flow("[2001:db8::20]:80", "2001:db8::10")],
            ports: 10_000..=29_999,
            queues: Queues::new(36522, 2).unwrap(),
        }),
        ..online_example()
    }
}

/// Runs `body` in a network namespace of its own: runs this very test again, alone, there.
/// `wrap` is a command in front, for less privilege.
pub(crate) fn in_namespace(test: &str, wrap: &[&str], body: impl FnOnce()) {
    const INSIDE: &str = "TCPCOPY_TEST_IN_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let possible =
        Command::new("unshare").args(["-n", "nft", "list", "ruleset"]).stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {test} needs root, network namespaces (unshare) and nft");
        return;
    }
    let mut command = Command::new("unshare");
    command.arg("-n").args(wrap).arg(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "in the namespace:\n{said}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{test} is not the name of this test"
    );
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn nft_load(text: &str) {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]);
    load(nft, text);
}

fn load(mut nft: Command, text: &str) {
    let mut nft = nft.stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft refuses:\n{text}");
}

/// A sink for copies, as good as the daemon's.
pub(crate) fn make_sink() -> Device {
    let name = "tcpcopy0";
    let made = ["dummy", "ifb"].iter().any(|kind| {
        let arguments = ["link", "add", name, "type", kind];
        Command::new("ip").args(arguments).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    assert!(made, "the kernel has neither dummy nor ifb interfaces");
    run("ip", &["link", "set", name, "up"]);
    let listed = run("ip", &["-o", "link", "show", name]);
    let index = listed.split(':').next().unwrap().trim().parse().unwrap();
    Device { name: name.to_owned(), index }
}

/// A host in a network namespace of its own, which is this process's.
pub(crate) struct Host(Child);

impl Host {
    pub(crate) fn new() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let host = Self(child);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", host.pid());
        wait_for(|| std::fs::read_link(&path).is_ok_and(|other| other != own));
        host
    }

    pub(crate) fn pid(&self) -> String {
        self.0.id().to_string()
    }

    pub(crate) fn run(&self, line: &str) -> String {
        let pid = self.pid();
        let arguments: Vec<&str> = ["-t", &pid, "-n"].into_iter().chain(line.split(' ')).collect();
        run("nsenter", &arguments)
    }

    /// Loads nft rules there.
    pub(crate) fn load(&self, text: &str) {
        let mut nft = Command::new("nsenter");
        nft.args(["-t", &self.pid(), "-n", "nft", "-f", "-"]);
        load(nft, text);
    }

    /// Connects it: `name` here and there, with addresses `.1` and `.2` of a network of each family.
    pub(crate) fn connect(&self, name: &str, network: u8) {
        let pid = self.pid();
        ip(&format!("link add {name} type veth peer name {name} netns {pid}"));
        for (end, run) in
            [(1, &ip as &dyn Fn(&str)), (2, &|line: &str| drop(self.run(&format!("ip {line}"))))]
        {
            run(&format!("link set {name} up"));
            run(&format!("address add 10.9.{network}.{end}/24 dev {name}"));
            run(&format!("address add fd09:{network}::{end}/64 dev {name} nodad"));
        }
        self.run("ip link set lo up");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn ip(line: &str) {
    run("ip", &line.split(' ').collect::<Vec<_>>());
}

pub(crate) fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "nothing came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn sysctl(setting: &str) {
    run("sysctl", &["-q", setting]);
}
