//! Real packets through real netfilter queues. Needs root; see `namespace` for how nothing is left behind.
#![expect(clippy::unwrap_used, reason = "in a test a failure of the machine is a failure of the test")]

mod namespace;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use namespace::{again_without_net_admin, is_inside, isolated, sh};
use tcpcopy::capture::{
    CaptureError, Captured, NfQueue, QueueCounters, QueueOptions, Received, Source, Verdict, kernel_counters,
};
use tcpcopy::sys::capabilities::{Capability, has_capability};
use tcpcopy::sys::raw::RawSender;
use tcpcopy::sys::sink::{Sink, SinkError};

const QUEUE: u16 = 7;
const DEADLINE: Duration = Duration::from_secs(30);

fn counters() -> QueueCounters {
    let all = kernel_counters().unwrap();
    *all.iter().find(|counters| counters.queue == QUEUE).expect("the queue is bound")
}

/// Queues UDP to port 9 on its way out of a socket.
fn queue_discard_port() {
    sh(&format!("iptables-nft -A OUTPUT -p udp --dport 9 -j NFQUEUE --queue-num {QUEUE}"));
}

fn number_in_udp(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.get(28..).and_then(|payload| payload.first_chunk()).unwrap())
}

/// Sends numbered UDP packets to port 9 of this host.
///
/// Raw, as the packets that wait in a queue count against their sender's buffer, and a raw sender's is large.
struct Sender(RawSender);

impl Sender {
    fn new() -> Self {
        Self(RawSender::open(0).unwrap())
    }

    /// Waits while the buffer is full.
    fn send(&self, number: u64) {
        let packet = udp_packet(&number.to_be_bytes());
        let deadline = Instant::now() + DEADLINE;
        while let Err(error) = self.0.send(&packet, "127.0.0.1:0".parse().unwrap()) {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            assert!(Instant::now() < deadline, "nobody takes the packets");
            std::thread::yield_now();
        }
    }

    fn send_all(&self, numbers: std::ops::Range<u64>) {
        numbers.for_each(|number| self.send(number));
    }
}

/// Sends so many packets, as fast as they are received: only so many are under way.
fn send_paced(packets: u32, received: &AtomicU64) {
    const AHEAD: u64 = 20_000;
    let sender = Sender::new();
    for number in 0..packets.into() {
        while number >= received.load(Ordering::Relaxed) + AHEAD {
            std::thread::yield_now();
        }
        sender.send(number);
    }
}

/// IPv4 and UDP without checksums: the kernel fills in the one, and UDP needs none.
fn udp_packet(payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut packet =
        vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1, 0, 99, 0, 9];
    packet.extend(udp_len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

fn sum(total: &mut Received, one: Received) {
    total.packets += one.packets;
    total.overruns += one.overruns;
    total.malformed += one.malformed;
    total.refused += one.refused;
}

/// Waits until the queue's descriptor is readable.
fn wait(poll: &mut Poll) -> bool {
    let mut events = Events::with_capacity(1);
    poll.poll(&mut events, Some(Duration::from_millis(200))).unwrap();
    !events.is_empty()
}

fn poll(queue: &NfQueue) -> Poll {
    use std::os::fd::AsRawFd;
    let poll = Poll::new().unwrap();
    let fd = queue.fds().first().unwrap().as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
    poll
}

/// Receives, woken by the descriptor, until `count` packets have come.
fn receive(queue: &mut NfQueue, count: u32, mut each: impl FnMut(Captured<'_>)) -> Received {
    let mut poll = poll(queue);
    let deadline = Instant::now() + DEADLINE;
    let mut total = Received::default();
    while total.packets < count && Instant::now() < deadline {
        let one = queue.receive(&mut each).unwrap();
        sum(&mut total, one);
        if !one.full && total.packets < count {
            wait(&mut poll);
        }
    }
    total
}

#[test]
fn a_burst_nobody_reads_waits_in_the_buffer() {
    isolated("a_burst_nobody_reads_waits_in_the_buffer", || {
        const BURST: u32 = 30_000;
        let mut queue = NfQueue::open(QUEUE, QueueOptions::packets()).unwrap();
        queue_discard_port();
        let buffer = queue.receive_buffer();
        assert!(buffer.granted >= 32 << 20 && !buffer.is_short(), "{buffer:?}");

        Sender::new().send_all(0..BURST.into());
        assert_eq!(counters().waiting, BURST);
        let mut seen = BTreeSet::new();
        let total = receive(&mut queue, BURST, |captured| {
            assert_eq!(captured.bytes.len(), 36);
            assert_eq!(captured.original_len, 36);
            assert!(seen.insert(number_in_udp(captured.bytes)), "a packet came twice");
        });

        assert_eq!(total, Received { packets: BURST, ..Received::default() });
        assert_eq!(seen.len(), usize::try_from(BURST).unwrap());
        let after = counters();
        assert_eq!((after.waiting, after.queue_dropped, after.user_dropped), (0, 0, 0));
        assert_eq!((after.sequence, after.copy_mode), (BURST, 2));
        assert_eq!(queue.receive(&mut |_| panic!("nothing waits")).unwrap(), Received::default());
    });
}

#[test]
fn a_flood_is_received_exactly_once() {
    isolated("a_flood_is_received_exactly_once", || {
        const FLOOD: u32 = 200_000;
        let mut queue = NfQueue::open(QUEUE, QueueOptions::packets()).unwrap();
        queue_discard_port();
        let received = AtomicU64::new(0);
        let mut next = 0;

        let total = std::thread::scope(|scope| {
            scope.spawn(|| send_paced(FLOOD, &received));
            receive(&mut queue, FLOOD, |captured| {
                assert_eq!(number_in_udp(captured.bytes), next);
                next += 1;
                received.store(next, Ordering::Relaxed);
            })
        });

        assert_eq!(total, Received { packets: FLOOD, ..Received::default() });
        let after = counters();
        assert_eq!((after.waiting, after.queue_dropped, after.user_dropped), (0, 0, 0));
    });
}

#[test]
fn an_overrun_is_counted_and_survived() {
    isolated("an_overrun_is_counted_and_survived", || {
        const SENT: u32 = 20_000;
        let options = QueueOptions { receive_buffer: 1 << 20, ..QueueOptions::headers() };
        let mut queue = NfQueue::open(QUEUE, options).unwrap();
        queue_discard_port();
        let sender = Sender::new();

        sender.send_all(0..SENT.into());
        let lost = counters().user_dropped;
        let total = receive(&mut queue, SENT - lost, |_| {});

        assert!(lost > 0, "the buffer was too large for this test");
        assert_eq!(total, Received { packets: SENT - lost, overruns: lost, ..Received::default() });
        sender.send(1);
        assert_eq!(receive(&mut queue, 1, |_| {}).packets, 1);
        assert_eq!(counters().waiting, 0);
    });
}

#[test]
fn the_copy_range_cuts_and_the_length_is_known() {
    isolated("the_copy_range_cuts_and_the_length_is_known", || {
        let mut queue = NfQueue::open(QUEUE, QueueOptions::headers()).unwrap();
        queue_discard_port();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[1; 1400], "127.0.0.1:9").unwrap();
        let mut lengths = Vec::new();
        let total =
            receive(&mut queue, 1, |captured| lengths.push((captured.bytes.len(), captured.original_len)));
        assert_eq!(total.packets, 1);
        assert_eq!(lengths, [(160, 1428)]);
    });
}

#[test]
fn large_packets_come_whole() {
    isolated("large_packets_come_whole", || {
        let mut queue = NfQueue::open(QUEUE, QueueOptions::packets()).unwrap();
        queue_discard_port();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let payload: Vec<u8> = (0..=255).cycle().take(65_000).collect();
        socket.send_to(&payload, "127.0.0.1:9").unwrap();
        let mut got = Vec::new();
        let total = receive(&mut queue, 1, |captured| got = captured.bytes.to_vec());
        assert_eq!((total.packets, total.malformed), (1, 0));
        assert_eq!(got.get(28..), Some(&payload[..]));
    });
}

#[test]
fn deferred_packets_are_accepted_with_a_mark_or_dropped() {
    isolated("deferred_packets_are_accepted_with_a_mark_or_dropped", || {
        const COUNT: u64 = 1_000;
        let mut queue = NfQueue::open(QUEUE, QueueOptions::headers()).unwrap();
        queue_discard_port();
        sh("nft add table ip look");
        sh("nft add chain ip look seen { type filter hook input priority 0 ; }");
        sh("nft add rule ip look seen udp dport 9 mark 0x74637079 counter");
        sh("nft add rule ip look seen udp dport 9 mark != 0x74637079 counter drop");
        let receiver = UdpSocket::bind("127.0.0.1:9").unwrap();
        receiver.set_nonblocking(true).unwrap();
        Sender::new().send_all(0..COUNT);

        let mut held = Vec::new();
        while held.len() < usize::try_from(COUNT).unwrap() {
            let _ = queue.receive_deferred(&mut |c| held.push((c.id, number_in_udp(c.bytes)))).unwrap();
        }
        assert_eq!(counters().waiting, 1_000, "nothing is decided yet");
        assert_eq!(queue.undecided(), 1_000);
        // Newest first, so that most decisions overtake undecided packets.
        let mut accepted = BTreeSet::new();
        for (id, number) in held.into_iter().rev() {
            let accept = number % 10 == 3;
            let verdict = if accept { Verdict::Accept { mark: 0x7463_7079 } } else { Verdict::Drop };
            queue.verdict(id, verdict).unwrap();
            accepted.extend(accept.then_some(number));
        }
        queue.flush().unwrap();

        assert_eq!((counters().waiting, queue.undecided()), (0, 0));
        let rules = sh("nft list chain ip look seen");
        assert!(rules.contains("counter packets 100 ") && rules.contains("counter packets 0 "), "{rules}");
        let mut arrived = BTreeSet::new();
        let mut bytes = [0; 8];
        while receiver.recv(&mut bytes).is_ok() {
            arrived.insert(u64::from_be_bytes(bytes));
        }
        assert_eq!(arrived, accepted);
        assert_eq!(queue.receive(&mut |_| panic!("nothing waits")).unwrap(), Received::default());
    });
}

#[test]
fn a_verdict_for_a_packet_that_is_gone_is_counted() {
    isolated("a_verdict_for_a_packet_that_is_gone_is_counted", || {
        let mut queue = NfQueue::open(QUEUE, QueueOptions::headers()).unwrap();
        queue_discard_port();
        Sender::new().send(1);
        let mut id = None;
        let _ = queue.receive_deferred(&mut |captured| id = Some(captured.id)).unwrap();
        let id = id.unwrap();
        queue.verdict(id, Verdict::Drop).unwrap();
        queue.flush().unwrap();
        queue.verdict(id, Verdict::Accept { mark: 1 }).unwrap();
        queue.flush().unwrap();
        let received = queue.receive(&mut |_| {}).unwrap();
        assert_eq!(received, Received { refused: 1, ..Received::default() });
    });
}

#[test]
fn a_queue_in_use_names_its_holder() {
    isolated("a_queue_in_use_names_its_holder", || {
        let first = NfQueue::open(QUEUE, QueueOptions::headers()).unwrap();
        let holder = counters().port;
        let error = NfQueue::open(QUEUE, QueueOptions::headers()).unwrap_err();
        assert!(matches!(error, CaptureError::Busy { queue: QUEUE, port: Some(port) } if port == holder));
        drop(first);
        NfQueue::open(QUEUE, QueueOptions::headers()).unwrap();
    });
}

#[test]
#[ignore = "a part of the next test"]
fn part_open_without_permission() {
    if !is_inside() {
        return;
    }
    let error = NfQueue::open(QUEUE, QueueOptions::headers()).unwrap_err();
    assert!(matches!(error, CaptureError::Permission { .. }), "{error:?}");
    let error = Sink::create("tcpcopy-sink").unwrap_err();
    assert!(matches!(error, SinkError::Permission { .. }), "{error:?}");
    let error = RawSender::open(1).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(!has_capability(Capability::NetAdmin).unwrap());
}

#[test]
fn without_the_capability_permission_is_what_is_missing() {
    isolated("without_the_capability_permission_is_what_is_missing", || {
        assert!(has_capability(Capability::NetAdmin).unwrap());
        assert!(again_without_net_admin("part_open_without_permission").success());
    });
}

#[test]
fn a_dropped_queue_is_unbound_and_leaks_no_descriptor() {
    isolated("a_dropped_queue_is_unbound_and_leaks_no_descriptor", || {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        for _ in 0..10 {
            drop(NfQueue::open(QUEUE, QueueOptions::packets()).unwrap());
            assert_eq!(kernel_counters().unwrap(), []);
        }
        assert_eq!(open(), before);
    });
}

#[test]
fn the_socket_is_not_inherited() {
    isolated("the_socket_is_not_inherited", || {
        let _queue = NfQueue::open(QUEUE, QueueOptions::packets()).unwrap();
        // Standard input, output and error, and the descriptor of the listing itself.
        let inherited = sh("ls -l /proc/self/fd");
        assert!(!inherited.contains("socket"), "{inherited}");
    });
}

#[test]
fn several_queues_are_told_apart() {
    isolated("several_queues_are_told_apart", || {
        let mut queues: Vec<_> =
            (20..24).map(|number| NfQueue::open(number, QueueOptions::headers()).unwrap()).collect();
        sh("iptables-nft -A OUTPUT -p udp --dport 22 -j NFQUEUE --queue-num 22");
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[0; 8], "127.0.0.1:22").unwrap();
        let got: Vec<_> =
            queues.iter_mut().map(|queue| queue.receive(&mut |_| {}).unwrap().packets).collect();
        assert_eq!(got, [0, 0, 1, 0]);
    });
}

#[test]
fn a_tcp_stream_is_duplicated_whole_in_large_packets() {
    isolated("a_tcp_stream_is_duplicated_whole_in_large_packets", || {
        // A real network's segment size; offload makes packets of many segments all the same.
        sh("ip link set lo mtu 1500");
        let _sink = Sink::create("tcpcopy-sink").unwrap();
        let mut queue = NfQueue::open(QUEUE, QueueOptions::packets()).unwrap();
        for (family, iptables, gateway, host) in [
            ("ip", "iptables-nft", "192.0.2.1", "127.0.0.1"),
            ("ip6", "ip6tables-nft", "fe80::7463:7079", "::1"),
        ] {
            sh(&format!("{iptables} -A OUTPUT -o tcpcopy-sink -p tcp -j NFQUEUE --queue-num {QUEUE}"));
            sh(&format!("nft add table {family} t"));
            sh(&format!("nft add chain {family} t c {{ type filter hook prerouting priority -300 ; }}"));
            sh(&format!(
                "nft add rule {family} t c iif lo tcp dport 8080 dup to {gateway} device tcpcopy-sink"
            ));
            let (bytes, largest) = capture_stream(&mut queue, host);
            assert_eq!(bytes, STREAM, "{family}");
            assert!(largest > 10_000, "{family}: {largest}");
        }
        let after = counters();
        assert_eq!((after.waiting, after.queue_dropped, after.user_dropped), (0, 0, 0));
    });
}

const STREAM: usize = 20 << 20;

/// Sends a stream to a listener and captures its copy; returns its bytes up to the first gap and the largest packet.
fn capture_stream(queue: &mut NfQueue, host: &str) -> (usize, usize) {
    let listener = TcpListener::bind((host, 8080)).unwrap();
    let reader = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        std::io::copy(&mut connection, &mut std::io::sink()).unwrap()
    });
    let mut writer = TcpStream::connect((host, 8080)).unwrap();
    let writing = std::thread::spawn(move || {
        writer.write_all(&vec![7; STREAM]).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let (mut segments, mut start, mut largest, mut fin) = (Vec::new(), None, 0, false);
    let mut poll = poll(queue);
    let deadline = Instant::now() + DEADLINE;
    while !fin && Instant::now() < deadline {
        let received = queue.receive(&mut |captured| {
            let headers = if host.contains(':') { 40 } else { 20 };
            let (ip, tcp) = captured.bytes.split_at_checked(headers).unwrap();
            assert_eq!(ip.len() + tcp.len(), captured.original_len, "cut");
            let seq = u32::from_be_bytes(*tcp.get(4..).and_then(|rest| rest.first_chunk()).unwrap());
            let offset = usize::from(tcp.get(12).unwrap() >> 4) * 4;
            fin |= tcp.get(13).unwrap() & 1 != 0;
            largest = largest.max(captured.original_len);
            let syn = tcp.get(13).unwrap() & 2 != 0;
            let first = *start.get_or_insert_with(|| seq.wrapping_add(u32::from(syn)));
            segments.push((seq.wrapping_sub(first), u32::try_from(tcp.len() - offset).unwrap()));
        });
        if !received.unwrap().full && !fin {
            wait(&mut poll);
        }
    }
    writing.join().unwrap();
    assert_eq!(reader.join().unwrap(), u64::try_from(STREAM).unwrap(), "the original stream");
    // What the listener's end still says on the connection is not captured, and the writer's last ACK has no bytes.
    while queue.receive(&mut |_| {}).unwrap().packets > 0 {}
    // Retransmissions may overlap.
    segments.retain(|(_, len)| *len > 0);
    segments.sort_unstable();
    let whole =
        segments.iter().fold(0, |whole, (at, len)| if *at <= whole { whole.max(at + len) } else { whole });
    (usize::try_from(whole).unwrap(), largest)
}

/// CPU time of this thread in nanoseconds.
fn cpu_time() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "a measurement: cargo test --release --test capture -- --ignored --nocapture"]
fn cost_of_receive_and_verdict() {
    isolated("cost_of_receive_and_verdict", || {
        const BURST: u32 = 30_000;
        const ROUNDS: u32 = 10;
        for (name, options) in [("packets", QueueOptions::packets()), ("headers", QueueOptions::headers())] {
            let mut queue = NfQueue::open(QUEUE, options).unwrap();
            queue_discard_port();
            let sender = Sender::new();
            let (mut sum, mut time) = (0usize, 0);
            for _ in 0..ROUNDS {
                sender.send_all(0..BURST.into());
                let start = cpu_time();
                let total = receive(&mut queue, BURST, |captured| sum += captured.bytes.len());
                time += cpu_time() - start;
                assert_eq!(total.packets, BURST);
            }
            eprintln!("{name}, burst: {} ns CPU per packet ({sum} bytes)", time / u64::from(BURST * ROUNDS));
            flood(name, &mut queue);
            sh("iptables-nft -F OUTPUT");
        }
    });
}

fn flood(name: &str, queue: &mut NfQueue) {
    const FLOOD: u32 = 1_000_000;
    let received = AtomicU64::new(0);
    let mut count = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| send_paced(FLOOD, &received));
        let (start, began) = (cpu_time(), Instant::now());
        let total = receive(queue, FLOOD, |_| {
            count += 1;
            received.store(count, Ordering::Relaxed);
        });
        let nanos = (cpu_time() - start) / u64::from(FLOOD);
        assert_eq!((total.packets, total.overruns), (FLOOD, 0));
        eprintln!("{name}, flood: {nanos} ns CPU per packet, {:?} in all", began.elapsed());
    });
}
