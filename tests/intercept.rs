//! The program `intercept` between a real TCP stack and a test's own tcpcopy. Needs root; see
//! `namespace` for how nothing is left behind.

mod assistant;
mod namespace;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use assistant::{GREETING, Intercept, Target, Tcpcopy, command, key, packets, wait_for};
use namespace::{isolated, run, sh};
use tcpcopy::daemon::link::LinkEvent;
use tcpcopy::tunnel::{
    ClaimRefusal, Claimer, Client, ClientEvent, Closed, Endpoint, Features, Hello, Limits, Refuse,
};
use tcpcopy::wire::{Flags, FlowId, Seq, Time};

const OPTIONS: [&str; 7] =
    ["--target", "10.91.2.2:80", "--target", "[fd91:2::2]:80", "--workers", "2", "--insecure"];

fn rules() -> String {
    let text = run("nft", &["list", "tables"]);
    text.lines().filter(|line| line.ends_with(" intercept")).collect::<Vec<_>>().join(", ")
}

const BOTH: &str = "table ip intercept, table ip6 intercept";

#[test]
#[ignore = "no test: the target's server, which the others start"]
fn target_host() {
    assistant::serve();
}

#[test]
fn claimed_responses_come_back_and_others_end_here() {
    isolated("claimed_responses_come_back_and_others_end_here", || {
        claimed_responses(&[], &["workers=2", "queue=36540", "listen=[::]:36524", "rules="]);
    });
}

#[test]
fn packet_sockets_see_the_responses_that_the_rules_drop() {
    isolated("packet_sockets_see_the_responses_that_the_rules_drop", || {
        let fields = ["workers=2", "source=\"packet\"", "listen=[::]:36524", "rules=\"drop\""];
        claimed_responses(&["--capture-source", "packet"], &fields);
        let rules = run("nft", &["list", "ruleset"]);
        assert!(rules.contains("chain blackhole") && !rules.contains("chain responses"), "{rules}");
    });
}

/// With these options besides, and then these fields in the entry `ready`.
fn claimed_responses(options: &[&str], fields: &[&str]) {
    let _target = Target::start();
    let intercept = Intercept::start(&[&OPTIONS[..], options].concat());
    let ready = intercept.logged(" ready ").expect("it is");
    for field in fields {
        assert!(ready.contains(field), "{ready}");
    }
    let mut tcpcopy = Tcpcopy::connect(1, 2);
    for (id, client) in
        [(1, "10.99.0.1:4000"), (2, "[fd99::1]:4000"), (3, "10.99.0.2:4002"), (4, "10.99.0.2:4003")]
    {
        let flow = key(client);
        tcpcopy.claim(id, flow);
        tcpcopy.send(flow, Flags::SYN, 100, Seq(0));
        let answer = tcpcopy.response(id, Flags::SYN | Flags::ACK);
        assert_eq!(answer.header.ack, Seq(101));
        assert!(answer.header.options.mss.is_some());
        tcpcopy.send(flow, Flags::ACK, 101, answer.header.seq.add(1));
        let greeting = tcpcopy.response(id, Flags::PSH);
        assert_eq!(greeting.header.payload_len, GREETING);
        assert_eq!(greeting.header.seq, answer.header.seq.add(1));
    }

    // A response that beats its claim waits for it.
    let seen = packets("seen");
    let late = key("10.99.0.3:4000");
    tcpcopy.send(late, Flags::SYN, 200, Seq(0));
    wait_for("the response", || (packets("seen") > seen).then_some(()));
    tcpcopy.claim(5, late);
    assert_eq!(tcpcopy.response(5, Flags::SYN).header.ack, Seq(201));

    // What nobody claims ends here, and so does what comes when nobody listens.
    let seen = packets("seen");
    tcpcopy.send(key("10.99.0.4:4000"), Flags::SYN, 300, Seq(0));
    tcpcopy.send(key("[fd99::4]:4000"), Flags::SYN, 300, Seq(0));
    wait_for("unclaimed responses", || (packets("seen") >= seen + 4).then_some(()));
    assert_eq!(packets("leaked"), 0);

    // Every packet ended in one outcome.
    let mut intercept = intercept;
    intercept.end("TERM");
    let stats = wait_for("statistics", || intercept.logged(" stats "));
    let count = |name: &str| -> u64 {
        let field = stats.split(' ').find_map(|word| word.strip_prefix(&format!("{name}=")));
        field.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {stats}"))
    };
    let outcomes = ["forwarded", "forwarded_late", "tunnel_full", "orphaned", "released"];
    let others = ["unclaimed_dropped", "unclaimed_accepted", "hold_full", "unreadable", "held"];
    let sum: u64 = outcomes.iter().chain(&others).map(|name| count(name)).sum();
    assert_eq!(sum, count("responses"));
    assert!(count("forwarded") >= 8 && count("forwarded_late") >= 1, "{stats}");
    assert!(count("unclaimed_dropped") + count("held") >= 2, "{stats}");
    assert_eq!((count("kernel_dropped"), count("malformed"), count("verdicts_refused")), (0, 0, 0));
}

#[test]
fn packet_sockets_follow_a_reload() {
    isolated("packet_sockets_follow_a_reload", || {
        let _target = Target::start();
        let directory = std::env::temp_dir().join(format!("tcpcopy-intercept-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("intercept.toml");
        let configure = |targets: &str| {
            let text =
                format!("target = [{targets}]\ninsecure = true\ncapture.source = 'packet'\nworkers = 1\n");
            std::fs::write(&file, text).expect("a file");
        };
        configure("'10.91.2.2:80'");
        let intercept = Intercept::start(&["--config", file.to_str().expect("UTF-8")]);
        let mut tcpcopy = Tcpcopy::connect(1, 1);
        let flow = key("[fd99::1]:4000");
        tcpcopy.claim(1, flow);
        tcpcopy.wait("a refusal", |tcpcopy| (!tcpcopy.refused.is_empty()).then_some(()));

        configure("'10.91.2.2:80', '[fd91:2::2]:80'");
        intercept.signal("HUP");
        wait_for("the reload", || intercept.logged("configuration was read again"));
        tcpcopy.claim(2, flow);
        tcpcopy.send(flow, Flags::SYN, 100, Seq(0));
        assert_eq!(tcpcopy.response(2, Flags::SYN | Flags::ACK).header.ack, Seq(101));
        assert_eq!(packets("leaked"), 0);
        drop(intercept);
        std::fs::remove_dir_all(&directory).expect("removed");
    });
}

#[test]
fn a_flow_has_one_owner_and_survives_reconnects() {
    isolated("a_flow_has_one_owner_and_survives_reconnects", || {
        let _target = Target::start();
        let _intercept = Intercept::start(&OPTIONS);
        let flow = key("10.99.0.1:5000");
        let mut ann = Tcpcopy::connect(1, 2);
        ann.claim(7, flow);
        ann.send(flow, Flags::SYN, 100, Seq(0));
        let first = ann.response(7, Flags::SYN);
        let mut bob = Tcpcopy::connect(2, 2);
        bob.claim(9, flow);
        bob.wait("a refusal", |bob| (!bob.refused.is_empty()).then_some(()));
        assert_eq!(bob.refused, [LinkEvent::Refused { flow: FlowId(9), why: ClaimRefusal::Taken }]);
        bob.refused.clear();
        let foreign = tcpcopy::wire::FlowKey { server: "10.91.2.2:81".parse().expect("address"), ..flow };
        bob.claim(10, foreign);
        bob.wait("a refusal", |bob| (!bob.refused.is_empty()).then_some(()));
        assert_eq!(bob.refused, [LinkEvent::Refused { flow: FlowId(10), why: ClaimRefusal::ForeignTarget }]);

        // Ann's process reconnects, while its earlier connections still seem alive.
        let mut again = Tcpcopy::connect(1, 2);
        again.claim(7, flow);
        ann.wait("to be replaced", |ann| ann.is_cut_off().then_some(()));
        again.send(flow, Flags::ACK, 101, first.header.seq.add(1));
        // In one packet, or in two if it comes again.
        let greeting = again.response(7, Flags::PSH).header;
        assert_eq!(greeting.seq.add(greeting.payload_len), first.header.seq.add(1 + GREETING));
        assert_eq!(packets("leaked"), 0);
    });
}

#[test]
fn strangers_keep_nobody_out() {
    isolated("strangers_keep_nobody_out", || {
        let _target = Target::start();
        let intercept = Intercept::start(&OPTIONS);
        let connect = || TcpStream::connect("10.91.2.3:36524").expect("connect");
        // More than are listened to say nothing, and some say something else.
        let silent: Vec<_> = (0..400).map(|_| connect()).collect();
        for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 14], &[0, 0, 0, 2, 1, 0]] {
            let mut stream = connect();
            stream.write_all(words).expect("write");
            stream.set_read_timeout(Some(assistant::DEADLINE)).expect("set");
            assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0, "it is hung up on");
        }
        let start = std::time::Instant::now();
        let mut tcpcopy = Tcpcopy::connect(1, 2);
        assert!(start.elapsed().as_secs() < 4, "before the strangers' time was over");
        let flow = key("10.99.0.1:4000");
        tcpcopy.claim(1, flow);
        tcpcopy.send(flow, Flags::SYN, 100, Seq(0));
        tcpcopy.response(1, Flags::SYN);
        assert!(intercept.logged("turned away").is_some());

        // A worker that does not exist is refused, with how many there are.
        let mut client = Client::new(
            Time::ZERO,
            Hello { instance: 3, claimer: 0, worker: 2, features: Features::NONE },
            Limits::default(),
        );
        let mut stream = connect();
        stream.write_all(client.pending()).expect("write");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("read");
        client.handle_bytes(Time::ZERO, &answer);
        let refused = Closed::Refused(Refuse::Worker(2));
        assert_eq!(client.poll_event(), Some(ClientEvent::Closed(refused)));
        drop(silent);
    });
}

#[test]
fn unclaimed_accept_lets_others_through_and_never_a_replayed_flow() {
    isolated("unclaimed_accept_lets_others_through_and_never_a_replayed_flow", || {
        let _target = Target::start();
        let _intercept = Intercept::start(&[&OPTIONS[..], &["--unclaimed", "accept"]].concat());
        let mut tcpcopy = Tcpcopy::connect(1, 2);
        let replayed = key("10.99.0.1:4000");
        tcpcopy.claim(1, replayed);
        tcpcopy.send(replayed, Flags::SYN, 100, Seq(0));
        let answer = tcpcopy.response(1, Flags::SYN);
        run("nft", &["add rule inet probe after ip daddr 10.99.0.1 counter comment \"replayed\""]);
        let mut port = 5000;
        let mut next = std::time::Instant::now();
        wait_for("an unclaimed response at the client", || {
            tcpcopy.turn();
            if next.elapsed().as_millis() > 500 {
                next = std::time::Instant::now();
                port += 1;
                tcpcopy.send(key(&format!("10.99.0.2:{port}")), Flags::SYN, 100, Seq(0));
            }
            (packets("leaked") > 0).then_some(())
        });
        // The target goes on to send to a flow whose claimer is gone.
        let seen = packets("seen");
        tcpcopy.send(replayed, Flags::ACK, 101, answer.header.seq.add(1));
        drop(tcpcopy);
        wait_for("retransmissions", || (packets("seen") > seen + 3).then_some(()));
        let listed = run("nft", &["list chain inet probe after"]);
        assert!(listed.contains("counter packets 0 bytes 0 comment \"replayed\""), "{listed}");
    });
}

#[test]
fn the_rules_come_back_and_outlive_the_process() {
    isolated("the_rules_come_back_and_outlive_the_process", || {
        let _target = Target::start();
        let mut intercept = Intercept::start(&OPTIONS);
        assert_eq!(rules(), BOTH);
        let drops = || run("nft", &["list", "ruleset"]).matches(" drop").count();
        let intact = drops();
        for alteration in
            ["flush ruleset", "delete table ip intercept", "flush chain ip6 intercept blackhole"]
        {
            run("nft", &[alteration]);
            wait_for("the rules", || (rules() == BOTH && drops() == intact).then_some(()));
        }
        wait_for("the warning", || intercept.logged("somebody changed the rules"));
        assistant::count();

        let mut tcpcopy = Tcpcopy::connect(1, 2);
        intercept.end("KILL");
        tcpcopy.wait("the end", |tcpcopy| tcpcopy.is_cut_off().then_some(()));
        assert_eq!(rules(), BOTH);
        for client in ["10.99.0.1:4000", "[fd99::1]:4000"] {
            tcpcopy.send(key(client), Flags::SYN, 100, Seq(0));
        }
        wait_for("responses", || (packets("seen") >= 4).then_some(()));
        assert_eq!(packets("leaked"), 0);

        // The next one takes over without a gap, its tcpcopy comes back by itself, and it stops
        // in good order.
        let mut intercept = Intercept::start(&OPTIONS);
        tcpcopy.wait("the tunnels", |tcpcopy| tcpcopy.is_connected().then_some(()));
        let flow = key("10.99.0.2:4000");
        tcpcopy.claim(3, flow);
        tcpcopy.send(flow, Flags::SYN, 100, Seq(0));
        tcpcopy.response(3, Flags::SYN);
        assert_eq!(intercept.end("TERM").code(), Some(0));
        let stopped = wait_for("the last line", || intercept.logged("stopped"));
        assert!(stopped.contains("intercept rules remove"), "{stopped}");
        assert_eq!(rules(), BOTH);

        let output = command(&["rules", "remove"]).output().expect("run");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("ip intercept and ip6 intercept"), "{text}");
        assert_eq!(rules(), "");
        let output = command(&["rules", "remove"]).output().expect("run");
        assert!(output.status.success() && !output.stdout.is_empty());

        // As at boot: closed, without a process.
        let mut load = command(&["rules", "load"]);
        load.env("INTERCEPT_TARGET", "10.91.2.2:80,[fd91:2::2]:80").env("INTERCEPT_INSECURE", "true");
        let output = load.output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(rules(), BOTH);
        let seen = packets("seen");
        tcpcopy.send(key("10.99.0.3:4000"), Flags::SYN, 100, Seq(0));
        wait_for("the response", || (packets("seen") > seen).then_some(()));
        assert_eq!(packets("leaked"), 0);
    });
}

#[test]
fn what_keeps_it_from_starting_is_one_line() {
    isolated("what_keeps_it_from_starting_is_one_line", || {
        let refused = |code: i32, fragments: &[&str], extra: &[&str]| {
            let output = command(&[&OPTIONS[..], extra].concat()).output().expect("run");
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().last().unwrap_or_default();
            assert_eq!(output.status.code(), Some(code), "{text}");
            assert!(fragments.iter().all(|fragment| line.contains(fragment)), "{text}");
            assert_eq!(rules(), "", "nothing was changed");
        };
        let taken = TcpListener::bind("0.0.0.0:36524").expect("bind");
        refused(69, &["0.0.0.0:36524", "another process", "-p"], &["-b", "0.0.0.0"]);
        refused(69, &["[::]:36524", "another process"], &[]);
        drop(taken);
        refused(78, &["10.1.2.3"], &["-b", "10.1.2.3"]);
        let options = tcpcopy::capture::QueueOptions::headers();
        let queue = tcpcopy::capture::NfQueue::open(36541, options).expect("queue");
        refused(69, &["queue 36541", "another process"], &[]);
        drop(queue);
        sh("ip addr add 10.91.2.3/24 dev lo");
        let mut intercept = Intercept::start(&[&OPTIONS[..], &["-b", "10.91.2.3"]].concat());
        assert_eq!(intercept.end("INT").code(), Some(0));
    });
}
