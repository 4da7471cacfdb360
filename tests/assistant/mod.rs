//! An assistant host and a target in namespaces, with what tells where packets went.
//!
//! The test's own namespace is the assistant, and sends what a tcpcopy would send. The target is a
//! namespace behind `to-target`; the replayed clients' addresses lead to `to-client`, behind which
//! nobody is. Forwarding is on, so only the rules keep responses from `to-client`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use tcpcopy::daemon::clock::Clock;
use tcpcopy::daemon::link::{Link, LinkEvent, Protocol};
use tcpcopy::sys::raw::RawSender;
use tcpcopy::tunnel::frame::Response;
use tcpcopy::tunnel::{Features, Hello, Limits};
use tcpcopy::wire::{Flags, FlowId, FlowKey, Outgoing, Seq, TcpHeader, flow};

use crate::namespace::{run, sh};

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes that the target's server sends when it has accepted a connection.
pub(crate) const GREETING: u32 = 1000;
pub(crate) const TARGET_V4: &str = "10.91.2.2:80";
pub(crate) const TARGET_V6: &str = "[fd91:2::2]:80";

const ROLE: &str = "TCPCOPY_TEST_ROLE";

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The flow of a replayed client and the target of its family.
pub(crate) fn key(client: &str) -> FlowKey {
    let client: SocketAddr = client.parse().expect("address");
    let server = if client.is_ipv4() { TARGET_V4 } else { TARGET_V6 };
    FlowKey { client, server: server.parse().expect("address") }
}

/// The target host, as long as this lives.
pub(crate) struct Target(Child);

impl Target {
    /// Builds the links and addresses of both hosts, and starts the target's server.
    pub(crate) fn start() -> Self {
        let this = std::env::current_exe().expect("a running test has a path");
        let mut child = Command::new("unshare")
            .args(["--net", "--"])
            .arg(this)
            .args(["--exact", "target_host", "--nocapture", "--include-ignored"])
            .env(ROLE, "target")
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the target");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let target = Self(child);
        let pid = target.0.id();
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert_ne!(output.read_line(&mut line).expect("read"), 0, "the target ended");
        }
        sh(&format!("ip link add to-target type veth peer name eth0 netns {pid}"));
        sh("ip link add to-client type veth peer name nobody");
        let inside = format!("nsenter --target {pid} --net ip");
        for line in ["link set lo up", "link set eth0 up", "addr add 10.91.2.2/24 dev eth0"] {
            sh(&format!("{inside} {line}"));
        }
        sh(&format!("{inside} addr add fd91:2::2/64 dev eth0 nodad"));
        for line in ["link set to-target up", "link set to-client up", "link set nobody up"] {
            sh(&format!("ip {line}"));
        }
        sh("ip addr add 10.91.2.3/24 dev to-target");
        sh("ip addr add fd91:2::3/64 dev to-target nodad");
        sh(&format!("{inside} route add 10.99.0.0/24 via 10.91.2.3"));
        sh(&format!("{inside} route add fd99::/64 via fd91:2::3"));
        sh("ip addr add 10.99.0.254/24 dev to-client");
        sh("ip addr add fd99::fe/64 dev to-client nodad");
        for host in 1..10 {
            sh(&format!("ip neigh add 10.99.0.{host} lladdr 02:00:00:00:00:01 dev to-client"));
            sh(&format!("ip neigh add fd99::{host} lladdr 02:00:00:00:00:01 dev to-client"));
        }
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{switch}"), "1").expect("switch forwarding on");
        }
        count();
        target
    }
}

/// Counts what comes from the target, and what goes on to clients.
pub(crate) fn count() {
    let probe = "table inet probe {
            counter seen { }
            counter leaked { }
            chain before { type filter hook prerouting priority -400; iifname to-target tcp sport 80 counter name seen; }
            chain after { type filter hook postrouting priority 400; oifname to-client tcp sport 80 counter name leaked; }
        }";
    run("nft", &[probe]);
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The body of the test that is no test but the target's server.
pub(crate) fn serve() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let listener = TcpListener::bind("[::]:80").expect("bind");
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream.expect("accept");
        std::thread::spawn(move || {
            // Whether anybody reads it is the test's business.
            let _ = stream.write_all(&[b'x'; GREETING as usize]);
            let _ = stream.read(&mut [0; 100]);
        });
    }
}

/// Packets that the probe has counted: `seen` or `leaked`.
pub(crate) fn packets(counter: &str) -> u64 {
    let text = run("nft", &["list", "counter", "inet", "probe", counter]);
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no count in {text}"))
}

/// A running intercept.
pub(crate) struct Intercept {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Intercept {
    /// Starts the program and waits for `ready`.
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut child = command(options).stderr(Stdio::piped()).spawn().expect("start intercept");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("{line}");
                lines.lock().expect("no panics here").push(line);
            }
        });
        let mut intercept = Self { child, log };
        wait_for("ready", || {
            assert_eq!(intercept.child.try_wait().expect("wait"), None, "intercept ended");
            intercept.logged(" ready ")
        });
        intercept
    }

    /// The first line of the log that contains `text`.
    pub(crate) fn logged(&self, text: &str) -> Option<String> {
        self.log.lock().expect("no panics there").iter().find(|line| line.contains(text)).cloned()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: &str) {
        sh(&format!("kill -{signal} {}", self.child.id()));
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.child.wait().expect("wait")
    }
}

impl Drop for Intercept {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program with options.
pub(crate) fn command(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_intercept"));
    command.args(options).env("NO_COLOR", "1").env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM");
    command
}

/// A tcpcopy worker of the simplest kind.
pub(crate) struct Tcpcopy {
    poll: Poll,
    clock: Clock,
    links: Vec<Link>,
    raw: RawSender,
    outgoing: Outgoing,
    pub(crate) responses: Vec<Response>,
    pub(crate) refused: Vec<LinkEvent>,
}

impl Tcpcopy {
    /// Connects to each worker of an intercept.
    pub(crate) fn connect(instance: u64, workers: u16) -> Self {
        let clock = Clock::start();
        let address = "10.91.2.3:36524".parse().expect("address");
        let link = |worker| {
            let hello = Hello { instance, claimer: 0, worker, features: Features::NONE };
            Link::new(
                clock.now(),
                address,
                hello,
                Protocol::Open,
                Token(worker.into()),
                Limits::default(),
                worker.into(),
            )
        };
        let mut tcpcopy = Self {
            poll: Poll::new().expect("poll"),
            clock,
            links: (0..workers).map(link).collect(),
            raw: RawSender::open(0).expect("raw sockets"),
            outgoing: Outgoing::default(),
            responses: Vec::new(),
            refused: Vec::new(),
        };
        tcpcopy.wait("the tunnels", |tcpcopy| tcpcopy.is_connected().then_some(()));
        tcpcopy
    }

    /// Runs its loop until there is an answer.
    pub(crate) fn wait<T>(&mut self, what: &str, mut ask: impl FnMut(&Self) -> Option<T>) -> T {
        wait_for(what, || {
            self.turn();
            ask(self)
        })
    }

    /// Waits for a response to a flow that has these flags.
    pub(crate) fn response(&mut self, flow: u64, flags: Flags) -> Response {
        self.wait("a response", |tcpcopy| {
            let mut found = tcpcopy.responses.iter();
            found.find(|each| each.flow == FlowId(flow) && each.header.flags.contains(flags)).copied()
        })
    }

    /// One turn of its loop.
    pub(crate) fn turn(&mut self) {
        let mut events = Events::with_capacity(16);
        self.poll.poll(&mut events, Some(Duration::from_millis(10))).expect("poll");
        let now = self.clock.now();
        for event in &events {
            self.links.get_mut(event.token().0).expect("a link's token").ready(now, event);
        }
        for link in &mut self.links {
            loop {
                let more = link.receive(now);
                while let Some(event) = link.poll_event(now) {
                    match event {
                        LinkEvent::Response(response) => self.responses.push(response),
                        LinkEvent::Refused { .. } => self.refused.push(event),
                        LinkEvent::Up { .. }
                        | LinkEvent::Down { .. }
                        | LinkEvent::Host
                        | LinkEvent::Confirmed(_)
                        | LinkEvent::Stats(_) => {}
                        LinkEvent::Unnamed { .. } | LinkEvent::Unreadable(_) => {
                            panic!("no C intercept: {event:?}")
                        }
                    }
                }
                if !more {
                    break;
                }
            }
            if link.poll_timeout().is_some_and(|at| at <= now) {
                link.handle_timeout(now, self.poll.registry());
            }
            link.flush(now);
        }
    }

    /// Whether all its tunnels are down.
    pub(crate) fn is_cut_off(&self) -> bool {
        !self.links.iter().any(Link::is_up)
    }

    /// Whether all its tunnels are up.
    pub(crate) fn is_connected(&self) -> bool {
        self.links.iter().all(Link::is_up)
    }

    /// Claims a flow from the worker it belongs to.
    pub(crate) fn claim(&mut self, id: u64, key: FlowKey) {
        let workers = u16::try_from(self.links.len()).expect("few");
        let worker = usize::from(flow::split(key.client, workers));
        self.links.get_mut(worker).expect("a worker's link").claim(FlowId(id), key);
        self.turn();
    }

    /// Sends a segment as the replayed client.
    pub(crate) fn send(&mut self, key: FlowKey, flags: Flags, seq: u32, ack: Seq) {
        let header = TcpHeader::bare(Seq(seq), ack, flags, 60000);
        self.outgoing.payload();
        let packet = self.outgoing.finish(key.client, key.server, &header).expect("one family");
        self.raw.send(packet, key.server).expect("send");
    }
}
