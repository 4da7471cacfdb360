//! What `tcpcopy` can be told: its keys, and the options of the C program.

use crate::config::common;
use crate::config::key::{Key, Kind, Program};

/// `tcpcopy` and its keys.
pub static PROGRAM: Program = Program {
    name: "tcpcopy",
    about: "Replays the TCP sessions of this server's clients on a test server",
    default_file: "/etc/tcpcopy/tcpcopy.toml",
    env_prefix: "TCPCOPY_",
    keys: KEYS,
    c_options: C_OPTIONS,
    examples: EXAMPLES,
    keeps_rules: false,
};

const EXAMPLES: &str = "\
Examples:
  tcpcopy -x 80-10.91.2.2:80 --embedded
      Replay what comes to port 80 on 10.91.2.2, from this host's own address:
      nothing else is needed.
  tcpcopy -x 80-10.91.2.2:80 -s 10.91.2.3 -c 10.99.0.x --insecure
      The same with client addresses from 10.99.0.0/24; intercept runs on
      10.91.2.3.
  tcpcopy -x '10.0.0.1:80-10.91.2.2:8080,[fd00::1]:80-[fd00:91::2]:8080' -s 10.91.2.3 -r 20
      Two services, a fifth of their connections.

Each option can also be set in the file (as named by --print-config) or in the
environment (TCPCOPY_PERCENT=20). The manual is tcpcopy(8).";

const KEYS: &[Key] = &[
    Key {
        name: "map",
        option: "map",
        short: Some('x'),
        kind: Kind::List,
        value_name: "[ADDR:]PORT-TARGET:PORT,…",
        default: "[]",
        help: "What to replay, and where to; without ADDR, any local address",
    },
    Key {
        name: "intercept",
        option: "intercept",
        short: Some('s'),
        kind: Kind::List,
        value_name: "ADDR[:PORT],…",
        default: "[]",
        help: "Where intercept listens [default port: 36524]",
    },
    Key {
        name: "embedded",
        option: "embedded",
        short: None,
        kind: Kind::Flag,
        value_name: "BOOL",
        default: "false",
        help: "Take the responses on this host, replaying from its own address: no intercept, no route",
    },
    Key {
        name: "ports",
        option: "ports",
        short: None,
        kind: Kind::Text,
        value_name: "FIRST-LAST",
        default: "\"10000-29999\"",
        help: "With --embedded, ports to replay from, which this host uses for nothing else",
    },
    Key {
        name: "pool",
        option: "pool",
        short: Some('c'),
        kind: Kind::List,
        value_name: "PREFIX,…",
        default: "[]",
        help: "Client addresses on the target, as 10.99.0.x or 10.99.0.0/24; else their own (embedded: this host's)",
    },
    Key {
        name: "copies",
        option: "copies",
        short: Some('n'),
        kind: Kind::Number,
        value_name: "COPIES",
        default: "1",
        help: "Replay each session this many times at once",
    },
    Key {
        name: "percent",
        option: "percent",
        short: Some('r'),
        kind: Kind::Number,
        value_name: "PERCENT",
        default: "100",
        help: "Replay this part of the connections",
    },
    common::workers("Worker threads; auto is half the processors"),
    common::keys("Key of the tunnel, a file or directory; auto: credentials, or /etc/tcpcopy/keys"),
    common::insecure(
        "Allow a tunnel without a key to another host: who can reach it can read and forge headers",
    ),
    Key {
        name: "gate",
        option: "gate",
        short: None,
        kind: Kind::Text,
        value_name: "MODE",
        default: "\"response\"",
        help: "What a request waits for: response (of the one before) or none",
    },
    Key {
        name: "response-timeout",
        option: "response-timeout",
        short: None,
        kind: Kind::Text,
        value_name: "TIME",
        default: "\"30s\"",
        help: "Longest wait for a response before the next request goes",
    },
    Key {
        name: "latency",
        option: "latency",
        short: None,
        kind: Kind::Text,
        value_name: "MODE",
        default: "\"client\"",
        help: "Network latency the target feels: client or none",
    },
    Key {
        name: "mid-stream",
        option: "mid-stream",
        short: None,
        kind: Kind::Text,
        value_name: "MODE",
        default: "\"join\"",
        help: "Connections older than the capture: join at the next request, or skip",
    },
    common::source("Capture by rules and queues (nfqueue), or packet sockets (packet): cheaper"),
    Key {
        name: "capture.pure-acks",
        option: "pure-acks",
        short: None,
        kind: Kind::Flag,
        value_name: "BOOL",
        default: "false",
        help: "Capture acknowledgements without data too: exact online latency, twice the copies",
    },
    Key {
        name: "capture.handshake-acks",
        option: "handshake-acks",
        short: None,
        kind: Kind::Flag,
        value_name: "BOOL",
        default: "true",
        help: "Capture the acknowledgement that ends a client's handshake (default): exact round-trip times",
    },
    common::memory_limit("\"512MiB\"", "Memory for all sessions; at the limit, sessions are shed"),
    Key {
        name: "max-sessions",
        option: "max-sessions",
        short: None,
        kind: Kind::Number,
        value_name: "N",
        default: "100000",
        help: "Most sessions at a time; more are refused and counted",
    },
    Key {
        name: "idle-timeout",
        option: "idle-timeout",
        short: None,
        kind: Kind::Text,
        value_name: "TIME",
        default: "\"1h\"",
        help: "End a session after this long without a packet",
    },
    Key {
        name: "mtu",
        option: "mtu",
        short: Some('M'),
        kind: Kind::Number,
        value_name: "BYTES",
        default: "1500",
        help: "Largest packet that reaches the target",
    },
    Key {
        name: "segmentation",
        option: "segmentation",
        short: None,
        kind: Kind::Text,
        value_name: "WHO",
        default: "\"own\"",
        help: "Cut requests into segments here (own) or in the network card (offload)",
    },
    common::coalesce("Handle packets that come thick together, once in this time; 0s: each at once"),
    common::queue("36520"),
    Key {
        name: "mark",
        option: "mark",
        short: None,
        kind: Kind::Hex,
        value_name: "MARK",
        default: "0x74637079",
        help: "Mark on the packets sent, by which rules know them",
    },
    Key {
        name: "sink",
        option: "sink",
        short: None,
        kind: Kind::Text,
        value_name: "NAME",
        default: "\"tcpcopy0\"",
        help: "Interface to make for the copies",
    },
    Key {
        name: "table",
        option: "table",
        short: None,
        kind: Kind::Text,
        value_name: "NAME",
        default: "\"tcpcopy\"",
        help: "Netfilter table to make for the rules",
    },
    common::rules("Who puts the netfilter rules and the sink in force: auto, or manual, which is you"),
    common::user(),
    common::log("What to log: error, warn, info, debug (sessions) or trace (packets)"),
];

/// From the `getopt` string of tcpcopy 1.3.
const C_OPTIONS: &[(char, &str)] = &[
    ('d', "it stays in the foreground; run it from a service manager such as systemd"),
    ('P', "it stays in the foreground; the service manager knows its process"),
    ('l', "it logs to the journal or to standard error; redirect that"),
    ('i', "netfilter captures on all interfaces and pcap files cannot be replayed yet; leave it out"),
    ('o', "packets leave by the routing table; leave it out and set a route"),
    ('F', "-x says what is captured, as -x 10.0.0.1:80-10.0.0.9:80; leave it out"),
    ('B', "the queues' buffers are large enough by themselves; leave it out"),
    ('S', "whole packets are captured; leave it out"),
    ('C', "each worker has its own connection to each intercept; set --workers"),
    ('L', "it never exits because an intercept is gone; leave it out"),
    ('m', "write the limit with a unit: --memory-limit 512MiB"),
    ('D', "the target's own MSS is used, bounded by --mtu; leave it out"),
    ('R', "the round-trip time is measured; leave it out"),
    ('U', "sessions take the memory they need; set --memory-limit"),
    ('p', "write the port with the address: -s ADDR:PORT"),
    ('t', "write the time with a unit: --response-timeout 30s or --idle-timeout 1h"),
    ('k', "write the time with a unit: --idle-timeout 1h"),
    ('f', "several tcpcopy share a target when each has its own pool: -c PREFIX"),
    ('H', "name the clients' addresses with -c PREFIX"),
    ('O', "leave out connections older than the capture with --mid-stream skip"),
    ('g', "a ramp is not there yet; start with a small -r PERCENT"),
    ('a', "pcap files cannot be replayed yet"),
    ('I', "pcap files cannot be replayed yet"),
];
