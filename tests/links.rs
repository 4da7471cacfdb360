//! Real sink devices, news about links, and raw packets on a real link. Needs root; see `namespace`.

mod namespace;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::time::{Duration, Instant};

use namespace::{again, is_inside, isolated, run, sh};
use tcpcopy::capture::{NfQueue, QueueOptions, Source};
use tcpcopy::sys::links::{LinkEvent, LinkWatch};
use tcpcopy::sys::raw::RawSender;
use tcpcopy::sys::sink::{Sink, SinkError, SinkKind};

const SINK: &str = "tcpcopy-sink";
const DEADLINE: Duration = Duration::from_secs(10);

/// The sinks this kernel can make, each made and dropped in turn.
fn with_each_kind(mut body: impl FnMut(Sink)) {
    let mut made = 0;
    for kind in SinkKind::ALL {
        match Sink::create_of(SINK, &[kind]) {
            Ok(sink) => {
                assert_eq!((sink.kind(), sink.name()), (kind, SINK));
                made += 1;
                body(sink);
                assert!(!links().contains(SINK), "the {} outlived its owner", kind.name());
            }
            Err(SinkError::Unsupported { .. }) => eprintln!("SKIPPED {}: not in this kernel", kind.name()),
            Err(error) => panic!("{}: {error:?}", kind.name()),
        }
    }
    assert!(made > 0, "this kernel can make no sink");
}

fn links() -> String {
    sh("ip -o link")
}

/// A counter's packets in the output of `nft list`.
fn packets(listing: &str) -> u64 {
    let (_, after) = listing.split_once("counter packets ").expect("a counter");
    after.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

/// `nft dup` into the sink of what arrives at loopback for UDP port 9, counted and dropped on its way out.
fn duplicate(family: &str, gateway: &str, drop: &str) {
    sh(&format!("nft add table {family} t"));
    sh(&format!("nft add chain {family} t capture {{ type filter hook prerouting priority -300 ; }}"));
    sh(&format!("nft add rule {family} t capture iif lo udp dport 9 dup to {gateway} device {SINK}"));
    sh(&format!("nft add chain {family} t copies {{ type filter hook output priority -300 ; }}"));
    sh(&format!("nft add rule {family} t copies oif {SINK} counter {drop}"));
}

#[test]
fn the_best_sink_is_up_and_has_no_address() {
    isolated("the_best_sink_is_up_and_has_no_address", || {
        let sink = Sink::create(SINK).unwrap();
        assert_eq!(sh(&format!("ip -o address show dev {SINK}")), "", "an address");
        let link = sh(&format!("ip -o link show {SINK}"));
        assert!(link.starts_with(&format!("{}: ", sink.index())) && link.contains("NOARP,UP"), "{link}");
        assert!(link.contains("alias tcpcopy sink"), "{link}");
        sink.ipv6().unwrap();
    });
}

#[test]
fn duplicates_go_in_at_once_in_both_families() {
    isolated("duplicates_go_in_at_once_in_both_families", || {
        with_each_kind(|_sink| {
            for (family, gateway, to) in
                [("ip", "192.0.2.1", "127.0.0.1:9"), ("ip6", "fe80::7463:7079", "[::1]:9")]
            {
                for drop in ["drop", ""] {
                    duplicate(family, gateway, drop);
                    let to: SocketAddr = to.parse().unwrap();
                    let receiver = UdpSocket::bind(to).unwrap();
                    let from = UdpSocket::bind((to.ip(), 0)).unwrap();
                    (0..100).for_each(|_| assert_eq!(from.send_to(&[1; 500], to).unwrap(), 500));
                    assert_eq!(packets(&sh(&format!("nft list chain {family} t copies"))), 100, "{family}");
                    receiver.set_nonblocking(true).unwrap();
                    let mut arrived = 0;
                    while receiver.recv(&mut [0; 500]).is_ok() {
                        arrived += 1;
                    }
                    assert_eq!(arrived, 100, "originals, and nothing came back out of the sink");
                    sh(&format!("nft delete table {family} t"));
                }
            }
        });
    });
}

#[test]
fn what_is_routed_into_a_sink_is_discarded_and_never_blocks() {
    isolated("what_is_routed_into_a_sink_is_discarded_and_never_blocks", || {
        sh("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        sh("nft add table inet look");
        sh("nft add chain inet look in { type filter hook prerouting priority -300 ; }");
        sh("nft add rule inet look in counter");
        with_each_kind(|sink| {
            sh(&format!("ip route add 198.51.100.0/24 dev {SINK}"));
            sh(&format!("ip -6 route add 2001:db8::/64 dev {SINK}"));
            let raw = RawSender::open(0).unwrap();
            let before = Instant::now();
            for _ in 0..20_000 {
                raw.send(&ipv4(), "198.51.100.9:0".parse().unwrap())
                    .unwrap_or_else(|error| full_is_fine(&error));
                raw.send(&ipv6(), "[2001:db8::9]:0".parse().unwrap())
                    .unwrap_or_else(|error| full_is_fine(&error));
            }
            assert!(before.elapsed() < DEADLINE, "{} blocks", sink.kind().name());
            assert_eq!(packets(&sh("nft list chain inet look in")), 0, "{} reinjected", sink.kind().name());
        });
    });
}

fn full_is_fine(error: &std::io::Error) {
    assert!(
        error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS),
        "{error:?}"
    );
}

#[test]
fn a_sink_says_nothing_of_its_own() {
    isolated("a_sink_says_nothing_of_its_own", || {
        sh("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for family in ["ip", "ip6"] {
            sh(&format!("nft add table {family} t"));
            sh(&format!("nft add chain {family} t copies {{ type filter hook output priority -300 ; }}"));
            sh(&format!("nft add rule {family} t copies oifname {SINK} counter"));
        }
        with_each_kind(|sink| {
            // A tun is born with multicast, so that a router's tun reports a group, a few times.
            let allowed = if sink.kind() == SinkKind::Tun { 8 } else { 0 };
            // Solicitations and reports come within the first seconds, at random delays.
            let until = Instant::now() + Duration::from_secs(3);
            while Instant::now() < until {
                for family in ["ip", "ip6"] {
                    let said = packets(&sh(&format!("nft list chain {family} t copies")));
                    assert!(said <= allowed, "{said} by {} in {family}", sink.kind().name());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    });
}

#[test]
fn two_sinks_live_side_by_side() {
    isolated("two_sinks_live_side_by_side", || {
        // What any user can take is no obstacle.
        let squatted = UnixAddress::from_abstract_name("tcpcopy sink sink-one").unwrap();
        let _squatter = UnixDatagram::bind_addr(&squatted).unwrap();
        let (one, two) = (Sink::create("sink-one").unwrap(), Sink::create("sink-two").unwrap());
        assert_ne!(one.index(), two.index());
        one.ipv6().unwrap();
        two.ipv6().unwrap();
        let error = Sink::create("sink-one").unwrap_err();
        assert!(matches!(error, SinkError::InUse { .. }), "{error}");
        assert!(links().contains("sink-one"), "the owner's device is untouched");
    });
}

#[test]
#[ignore = "a part of the next test"]
fn part_die_with_a_sink() {
    if !is_inside() {
        return;
    }
    let sink = Sink::create(SINK).unwrap();
    eprintln!("made {}", sink.index());
    std::process::abort();
}

#[test]
fn a_dead_process_s_sink_is_made_anew() {
    isolated("a_dead_process_s_sink_is_made_anew", || {
        assert!(!again("part_die_with_a_sink").success());
        let left = links();
        assert!(left.contains(SINK), "{left}");
        let sink = Sink::create(SINK).unwrap();
        assert!(!left.contains(&format!("{}: {SINK}", sink.index())), "the same device");
        drop(sink);
        assert!(!links().contains(SINK));
    });
}

#[test]
fn a_strangers_device_is_left_alone() {
    isolated("a_strangers_device_is_left_alone", || {
        sh(&format!("ip link add {SINK} type bridge"));
        let error = Sink::create(SINK).unwrap_err();
        assert!(matches!(error, SinkError::Foreign { .. }), "{error}");
        assert!(links().contains(SINK));
        sh(&format!("ip link del {SINK}"));
        let sink = Sink::create(SINK).unwrap();
        // Deleted by somebody, who then makes a device of that name and index.
        let index = sink.index().to_string();
        sh(&format!("ip link del {SINK}"));
        run("ip", &["link", "add", SINK, "index", &index, "type", "bridge"]);
        drop(sink);
        assert!(links().contains(SINK), "a stranger's device was deleted");
    });
}

#[test]
fn a_host_without_ipv6_gets_a_sink_that_says_so() {
    isolated("a_host_without_ipv6_gets_a_sink_that_says_so", || {
        sh("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        let sink = Sink::create(SINK).unwrap();
        sink.ipv6().unwrap_err();
    });
}

fn next_events(watch: &mut LinkWatch, wanted: &LinkEvent) -> Vec<LinkEvent> {
    let deadline = Instant::now() + DEADLINE;
    let mut all = Vec::new();
    while !all.contains(wanted) && Instant::now() < deadline {
        watch.drain(|event| all.push(event)).expect("the watch's socket");
        std::thread::yield_now();
    }
    assert!(all.contains(wanted), "{all:?}");
    all
}

#[test]
fn the_watch_tells_of_a_sinks_life() {
    isolated("the_watch_tells_of_a_sinks_life", || {
        let mut watch = LinkWatch::open().unwrap();
        let sink = Sink::create(SINK).unwrap();
        let (index, name) = (sink.index(), SINK.to_owned());
        next_events(&mut watch, &LinkEvent::Up { index, name: name.clone() });
        sh(&format!("ip link set {SINK} down"));
        next_events(&mut watch, &LinkEvent::Down { index, name: name.clone() });
        sh(&format!("ip link set {SINK} up"));
        next_events(&mut watch, &LinkEvent::Up { index, name: name.clone() });
        sh(&format!("ip link del {SINK}"));
        next_events(&mut watch, &LinkEvent::Deleted { index, name });
        drop(sink);
    });
}

#[test]
fn news_that_was_lost_is_told() {
    isolated("news_that_was_lost_is_told", || {
        let mut watch = LinkWatch::open().unwrap();
        sh("ip link add flap type bridge");
        let batch = "link set flap up\nlink set flap down\n".repeat(400);
        let file = std::env::temp_dir().join(format!("tcpcopy-flap-{}", std::process::id()));
        std::fs::write(&file, batch).unwrap();
        sh(&format!("ip -batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        next_events(&mut watch, &LinkEvent::Unknown);
    });
}

/// UDP from a forged address, checksum left out as IPv4 allows.
fn ipv4() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 36, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0];
    packet.extend([203, 0, 113, 7, 198, 51, 100, 9]);
    packet.extend([0x30, 0x39, 0, 80, 0, 16, 0, 0]);
    packet.extend(b"forged 4");
    packet
}

/// UDP from a forged address; nobody here looks at the checksum.
fn ipv6() -> Vec<u8> {
    let mut packet = vec![0x60, 1, 2, 3, 0, 16, 17, 64];
    packet.extend([0x20, 0x01, 0x0d, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    packet.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    packet.extend([0x30, 0x39, 0, 80, 0, 16, 0xab, 0xcd]);
    packet.extend(b"forged 6");
    packet
}

/// A cable between two links of this namespace, with routes to 198.51.100.0/24 and 2001:db8::/64 into one end.
fn cable() {
    sh("ip link add one type veth peer name two");
    for link in ["one", "two"] {
        sh(&format!("sysctl -q -w net.ipv6.conf.{link}.accept_dad=0"));
        sh(&format!("ip link set {link} up"));
    }
    sh("ip route add 198.51.100.0/24 dev one");
    sh("ip -6 route add 2001:db8::/64 dev one");
    sh("ip neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev one nud permanent");
    sh("ip -6 neigh add 2001:db8::9 lladdr 02:00:00:00:00:09 dev one nud permanent");
    sh("ip link set two address 02:00:00:00:00:09");
}

#[test]
fn forged_packets_arrive_as_they_were_written() {
    isolated("forged_packets_arrive_as_they_were_written", || {
        cable();
        let mut queue = NfQueue::open(1, QueueOptions::packets()).unwrap();
        sh("iptables-nft -t raw -A PREROUTING -i two -p udp -j NFQUEUE --queue-num 1");
        sh("ip6tables-nft -t raw -A PREROUTING -i two -p udp -j NFQUEUE --queue-num 1");
        sh("iptables-nft -t raw -A OUTPUT -m mark --mark 0x74637079 -p udp");
        sh("ip6tables-nft -t raw -A OUTPUT -m mark --mark 0x74637079 -p udp");
        let raw = RawSender::open(0x7463_7079).unwrap();
        assert!(raw.has_ipv6() && !raw.send_buffer().is_short());

        raw.send(&ipv4(), "198.51.100.9:80".parse().unwrap()).unwrap();
        raw.send(&ipv6(), "[2001:db8::9]:80".parse().unwrap()).unwrap();
        let mut arrived = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        while arrived.len() < 2 && Instant::now() < deadline {
            let _ = queue.receive(&mut |captured| arrived.push(captured.bytes.to_vec())).unwrap();
        }

        let mut expected = vec![ipv4(), ipv6()];
        let sum = !expected[0][..20].chunks_exact(2).fold(0u16, |sum, word| {
            let (sum, carry) = sum.overflowing_add(u16::from_be_bytes([word[0], word[1]]));
            sum + u16::from(carry)
        });
        expected[0][10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(arrived, expected);
        for program in ["iptables-nft", "ip6tables-nft"] {
            let marked = run(program, &["-t", "raw", "-nvxL", "OUTPUT"]);
            assert!(marked.lines().any(|line| line.split_whitespace().next() == Some("1")), "{marked}");
        }
    });
}

#[test]
fn a_packet_that_cannot_go_is_an_error_and_the_next_one_goes() {
    isolated("a_packet_that_cannot_go_is_an_error_and_the_next_one_goes", || {
        cable();
        let raw = RawSender::open(0).unwrap();
        let errno = |packet: &[u8], to: &str| {
            raw.send(packet, to.parse().unwrap()).unwrap_err().raw_os_error().unwrap()
        };
        let mut large = ipv4();
        large.resize(1501, 0);
        assert_eq!(errno(&large, "198.51.100.9:80"), libc::EMSGSIZE);
        let mut large = ipv6();
        large.resize(1501, 0);
        assert_eq!(errno(&large, "[2001:db8::9]:80"), libc::EMSGSIZE);
        assert_eq!(errno(&ipv4(), "192.0.2.1:80"), libc::ENETUNREACH);
        assert_eq!(errno(&ipv6(), "[2001:db8:1::9]:80"), libc::ENETUNREACH);
        assert_eq!(errno(&ipv4()[..3], "198.51.100.9:80"), libc::EINVAL);
        assert_eq!(errno(&ipv6()[..3], "[2001:db8::9]:80"), libc::EINVAL);
        raw.send(&ipv4(), "198.51.100.9:80".parse().unwrap()).unwrap();
        raw.send(&ipv6(), "[2001:db8::9]:80".parse().unwrap()).unwrap();
    });
}
