//! Which packets of which clients are copied, on `lo`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tcpcopy::netfilter::{
    Capture, Family, InstallError, Installed, OnlineSpec, Presence, Queues, online, present,
};
use tcpcopy::wire::{self, Flags, Prefix, TcpHeader};

use crate::support::{in_namespace, make_sink, online_example, run};

const WORKERS: u16 = 4;
const FLOWS: usize = 24;
const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Production goes on; of each connection these are copied once: SYN, the handshake's ACK, what carries data, FIN. Pure
/// ACKs, of which there are many more, and marked packets are not. Every copy is in the queue of its flow's worker.
#[test]
fn copies_reach_the_queue_of_their_worker() {
    in_namespace("traffic::copies_reach_the_queue_of_their_worker", &[], || {
        let mut stage = Stage::new();
        for timestamps in ["1", "0"] {
            run("sysctl", &["-q", &format!("net.ipv4.tcp_timestamps={timestamps}")]);
            let mut installed = Installed::install(&online(&stage.spec)).unwrap();
            assert!(installed.handshakes(), "{:?}", installed.without_sets());
            run("nft", &["add", "table", "inet", "witness"]);
            run("nft", &["add", "chain", "inet", "witness", "in", IN_HOOK]);
            let pure_ack = format!("tcp dport {} tcp flags == ack counter", stage.port);
            run("nft", &["add", "rule", "inet", "witness", "in", &pure_ack]);

            let (mut clients, mut copies) = (Vec::new(), Vec::new());
            for address in LOOPBACKS {
                clients.extend((0..FLOWS).map(|_| stage.exchange(address, address, None)));
                stage.exchange(address, address, Some(stage.spec.mark));
                copies.extend(stage.copies(FLOWS * (3 + ROUNDS)));
            }
            for copy in &copies {
                assert_eq!(copy.queue, 36520 + wire::flow::split(copy.client, WORKERS), "{copy:?}");
                assert!(clients.contains(&copy.client), "carried our mark: {copy:?}");
            }
            for client in &clients {
                let flow: Vec<_> = copies.iter().filter(|copy| copy.client == *client).collect();
                assert_eq!(kinds(&flow), expected_kinds(true), "{flow:?}");
                let [syn, ack, ..] = flow.as_slice() else { panic!("{flow:?}") };
                assert_eq!(ack.header.seq, syn.header.seq.add(1), "the handshake's ACK");
            }
            let captured = installed.captured().unwrap();
            assert_eq!(captured.duplicated.packets, copies.len() as u64);
            assert!(captured.duplicated.bytes > captured.duplicated.packets * 40);
            let witnessed = run("nft", &["list", "table", "inet", "witness"]);
            let pure_acks = witnessed.split_once("packets ").unwrap().1.split(' ').next().unwrap();
            let pure_acks: usize = pure_acks.parse().unwrap();
            assert!(pure_acks >= clients.len() * 3, "{pure_acks} pure ACKs, too few to prove anything");
            run("nft", &["delete", "table", "inet", "witness"]);
            installed.remove().unwrap();
        }
    });
}

const IN_HOOK: &str = "{ type filter hook prerouting priority -310; }";

#[test]
fn handshakes_are_left_out_where_they_are_not_wanted() {
    in_namespace("traffic::handshakes_are_left_out_where_they_are_not_wanted", &[], || {
        let mut stage = Stage::new();
        stage.spec.handshake_acks = false;
        let installed = Installed::install(&online(&stage.spec)).unwrap();
        assert!(!installed.handshakes() && installed.without_sets().is_none());
        for address in LOOPBACKS {
            let client = stage.exchange(address, address, None);
            let copies = stage.copies(2 + ROUNDS);
            assert!(copies.iter().all(|copy| copy.client == client));
            assert_eq!(kinds(&copies.iter().collect::<Vec<_>>()), expected_kinds(false));
        }
    });
}

#[test]
fn other_clients_are_not_copied() {
    in_namespace("traffic::other_clients_are_not_copied", &[], || {
        let mut stage = Stage::new();
        let wanted = IpAddr::from([127, 0, 0, 77]);
        stage.spec.clients = vec![Prefix::single(wanted)];
        let _installed = Installed::install(&online(&stage.spec)).unwrap();
        let mut clients = Vec::new();
        for _ in 0..FLOWS {
            stage.exchange(LOOPBACKS[0], LOOPBACKS[0], None);
            stage.exchange(LOOPBACKS[1], LOOPBACKS[1], None);
            clients.push(stage.exchange(LOOPBACKS[0], wanted, None));
        }
        let copies = stage.copies(clients.len() * (3 + ROUNDS));
        for client in clients {
            let flow: Vec<_> = copies.iter().filter(|copy| copy.client == client).collect();
            assert_eq!(kinds(&flow), expected_kinds(true));
        }
        assert_eq!(copies.len(), FLOWS * (3 + ROUNDS));
    });
}

/// Any user may bind a socket to the sink, and so could fill the queues.
#[test]
fn what_a_socket_sends_into_the_sink_is_not_queued() {
    in_namespace("traffic::what_a_socket_sends_into_the_sink_is_not_queued", &[], || {
        let mut stage = Stage::new();
        run("ip", &["address", "add", "198.51.100.1/32", "dev", "lo"]);
        let _installed = Installed::install(&online(&stage.spec)).unwrap();
        for _ in 0..FLOWS {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            client.bind_device(Some(stage.spec.sink.name.as_bytes())).unwrap();
            client.set_nonblocking(true).unwrap();
            let elsewhere = SocketAddr::from(([192, 0, 2, 77], stage.port));
            let pending = client.connect(&elsewhere.into()).unwrap_err();
            assert_eq!(pending.raw_os_error(), Some(libc::EINPROGRESS));
        }
        let chain = run("nft", &["list", "chain", "ip", "tcpcopy", "copies"]);
        assert!(chain.contains(&format!("counter packets {FLOWS} ")), "{chain}");
        assert!(stage.copies(0).is_empty());
    });
}

/// When nothing fits into the set any more, the connections go on, and all but the handshakes' ACKs are copied.
#[test]
fn a_full_set_costs_only_the_handshakes() {
    in_namespace("traffic::a_full_set_costs_only_the_handshakes", &[], || {
        const SIZE: usize = 4;
        let mut stage = Stage::new();
        let mut ruleset = online(&stage.spec);
        for set in ruleset.tables.iter_mut().flat_map(|table| &mut table.sets) {
            set.size = u32::try_from(SIZE).unwrap();
        }
        let mut installed = Installed::install(&ruleset).unwrap();
        for address in LOOPBACKS {
            // Nobody listens: these clients never end their handshakes.
            (0..SIZE).for_each(|_| begin_handshake(address));
        }
        stage.copies(LOOPBACKS.len() * SIZE);
        for address in LOOPBACKS {
            let client = stage.exchange(address, address, None);
            let copies = stage.copies(2 + ROUNDS);
            assert!(copies.iter().all(|copy| copy.client == client));
            assert_eq!(kinds(&copies.iter().collect::<Vec<_>>()), expected_kinds(false));
        }
        assert_eq!(installed.check().unwrap(), Presence::Complete);
    });
}

/// Handshakes under way do not stand in the way of new rules, nor of looking at the old ones.
#[test]
fn rules_are_replaced_while_handshakes_are_under_way() {
    in_namespace("traffic::rules_are_replaced_while_handshakes_are_under_way", &[], || {
        let mut stage = Stage::new();
        let mut installed = Installed::install(&online(&stage.spec)).unwrap();
        for round in 1..=3 {
            LOOPBACKS.into_iter().for_each(begin_handshake);
            stage.copies(LOOPBACKS.len());
            for (family, address) in Family::ALL.into_iter().zip(LOOPBACKS) {
                let set = run("nft", &["list", "set", family.name(), "tcpcopy", "handshakes"]);
                assert!(set.contains(&format!("{{ {address} . ")) && set.contains("expires"), "{set}");
            }
            assert_eq!(installed.check().unwrap(), Presence::Complete);
            assert_eq!(present(installed.ruleset()).unwrap(), Presence::Complete);
            match round {
                1 => installed.restore().unwrap(),
                2 => {
                    stage.spec.queues = Queues::new(36520, 1).unwrap();
                    installed.replace(&online(&stage.spec)).unwrap();
                }
                _ => break,
            }
            let set = run("nft", &["list", "set", "ip", "tcpcopy", "handshakes"]);
            assert!(!set.contains("elements"), "{set}");
        }
        let client = stage.exchange(LOOPBACKS[0], LOOPBACKS[0], None);
        let copies = stage.copies(3 + ROUNDS);
        assert!(copies.iter().all(|copy| copy.client == client));
        assert_eq!(kinds(&copies.iter().collect::<Vec<_>>()), expected_kinds(true));
    });
}

/// A kernel that refuses the set: here because a rule asks for one that is not there.
#[test]
fn refused_sets_are_done_without() {
    in_namespace("traffic::refused_sets_are_done_without", &[], || {
        let mut stage = Stage::new();
        let good = online(&stage.spec);
        let mut bad = good.clone();
        bad.tables[0].sets[0].name = "elsewhere";
        let mut installed = Installed::install(&bad).unwrap();
        assert!(!installed.handshakes());
        assert_eq!(*installed.ruleset(), good.without_sets());
        assert_eq!(installed.check().unwrap(), Presence::Complete);
        let why = installed.without_sets().unwrap();
        assert!(matches!(why, InstallError::Refused { .. }), "{why:?}");
        assert!(why.to_string().contains("delete @handshakes"), "{why}");
        stage.exchange(LOOPBACKS[0], LOOPBACKS[0], None);
        assert_eq!(kinds(&stage.copies(2 + ROUNDS).iter().collect::<Vec<_>>()), expected_kinds(false));

        installed.replace(&good).unwrap();
        assert!(installed.handshakes() && installed.without_sets().is_none());
        stage.exchange(LOOPBACKS[0], LOOPBACKS[0], None);
        assert_eq!(kinds(&stage.copies(3 + ROUNDS).iter().collect::<Vec<_>>()), expected_kinds(true));
    });
}

/// Bytes of the requests on a connection, which are also those of the responses. Some are short enough to be taken for
/// a pure ACK by their length alone.
const REQUESTS: [usize; ROUNDS] = [100, 1, 12];
const ROUNDS: usize = 3;

fn expected_kinds(handshake_ack: bool) -> Vec<&'static str> {
    let acks = usize::from(handshake_ack);
    [vec!["SYN"], vec!["ACK"; acks], vec!["data"; ROUNDS], vec!["FIN"]].concat()
}

fn kinds(copies: &[&Copy]) -> Vec<&'static str> {
    let kind = |header: &TcpHeader| match header.flags {
        Flags::SYN => "SYN",
        Flags::ACK if header.payload_len == 0 => "ACK",
        flags if flags == Flags::FIN | Flags::ACK => "FIN",
        _ if header.payload_len > 0 => "data",
        _ => "something else",
    };
    copies.iter().map(|copy| kind(&copy.header)).collect()
}

/// A server, what is captured of its clients, and the queues of the copies.
struct Stage {
    server: TcpListener,
    port: u16,
    spec: OnlineSpec,
    queue: nfq::Queue,
}

#[derive(Debug)]
struct Copy {
    queue: u16,
    client: SocketAddr,
    header: TcpHeader,
}

impl Stage {
    fn new() -> Self {
        run("ip", &["link", "set", "lo", "up"]);
        let mut queue = nfq::Queue::open().unwrap();
        for number in 0..WORKERS {
            queue.bind(36520 + number).unwrap();
        }
        queue.set_nonblocking(true);
        let server = TcpListener::bind("[::]:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let spec = OnlineSpec {
            // The first two match all clients on 127.0.0.1; their packets are copied once all the same.
            captures: vec![
                Capture { online: None, port },
                Capture { online: Some(Ipv4Addr::LOCALHOST.into()), port },
                Capture { online: None, port: CLOSED },
            ],
            sink: make_sink(),
            queues: Queues::new(36520, WORKERS).unwrap(),
            ..online_example()
        };
        Self { server, port, spec, queue }
    }

    /// One connection: the client sends requests, gets each back, acknowledges that at once, and closes. Returns the
    /// client's address.
    fn exchange(&self, to: IpAddr, from: IpAddr, mark: Option<u32>) -> SocketAddr {
        let client = Socket::new(Domain::for_address(SocketAddr::new(to, 0)), Type::STREAM, None).unwrap();
        if let Some(mark) = mark {
            client.set_mark(mark).unwrap();
        }
        client.bind(&SocketAddr::new(from, 0).into()).unwrap();
        client.connect(&SocketAddr::new(to, self.port).into()).unwrap();
        let (mut accepted, _) = self.server.accept().unwrap();
        for length in REQUESTS {
            let mut text = vec![b'x'; length];
            (&client).write_all(&text).unwrap();
            accepted.read_exact(&mut text).unwrap();
            client.set_tcp_quickack(true).unwrap();
            accepted.write_all(&text).unwrap();
            (&client).read_exact(&mut text).unwrap();
        }
        let address = client.local_addr().unwrap().as_socket().unwrap();
        drop(client);
        assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
        address
    }

    /// Receives and drops copies until there are `enough` and no more come, in the order of their capture.
    fn copies(&mut self, enough: usize) -> Vec<Copy> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut copies = Vec::new();
        loop {
            match self.queue.recv() {
                Ok(mut message) => {
                    let packet = wire::parse(message.get_payload(), message.get_original_len()).unwrap();
                    let (queue, client) = (message.get_queue_num(), packet.src);
                    copies.push(Copy { queue, client, header: packet.header });
                    message.set_verdict(nfq::Verdict::Drop);
                    self.queue.verdict(message).unwrap();
                }
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    if copies.len() >= enough {
                        return copies;
                    }
                    assert!(Instant::now() < deadline, "only {} of {enough} copies came", copies.len());
                    std::thread::yield_now();
                }
            }
        }
    }
}

/// A port that is captured, and that nobody listens on.
const CLOSED: u16 = 9;

/// A SYN that is answered with a reset.
fn begin_handshake(address: IpAddr) {
    let client = Socket::new(Domain::for_address(SocketAddr::new(address, 0)), Type::STREAM, None).unwrap();
    let refused = client.connect(&SocketAddr::new(address, CLOSED).into()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}
