//! Which connections the kernel selects, and how many packets it copies of them.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tcpcopy::netfilter::{
    Capture, Chain, End, Family, Hook, Installed, Match, OnlineSpec, Queues, Rule, Ruleset, Statement, Table,
    TableName, online,
};
use tcpcopy::sys::raw::RawSender;
use tcpcopy::wire::flow::{SHARES, share_of};
use tcpcopy::wire::{Flags, Outgoing, Seq, TcpHeader};

use crate::support::{in_namespace, make_sink, online_example, run};

/// A port that nobody listens on.
const CLOSED: u16 = 9;

/// For flows of both families from addresses and ports that are pseudorandom, sent without a connection, each rule counts
/// those that are outside its share by [`share_of`].
#[test]
fn the_kernel_selects_connections_as_the_replayer_does() {
    in_namespace("selection::the_kernel_selects_connections_as_the_replayer_does", &[], || {
        const SHARES_TRIED: [u16; 7] = [1, 10, 100, 2_500, 5_000, 9_900, 9_999];
        run("ip", &["link", "set", "lo", "up"]);
        let outside = |share| Rule {
            matches: vec![Match::TcpDport(CLOSED), Match::OutsideShare { client: End::Source, share }],
            statements: vec![Statement::Counter],
        };
        let rules: Vec<Rule> = SHARES_TRIED.map(outside).to_vec();
        let tables = Family::ALL.map(|family| {
            let chain = Chain { name: "share", hook: Hook::Output, priority: 0, rules: rules.clone() };
            Table { family, sets: Vec::new(), chains: vec![chain] }
        });
        let name = TableName::new("share").unwrap();
        let _installed =
            Installed::install(&Ruleset { name, owner: false, tables: tables.to_vec() }).unwrap();

        let sender = RawSender::open(1).unwrap();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut expected = [[0_u64; SHARES_TRIED.len()]; 2];
        for _ in 0..2_000 {
            for (of_family, client) in expected.iter_mut().zip(random.clients()) {
                send_syn(&sender, client, CLOSED);
                let counts = of_family.iter_mut().zip(SHARES_TRIED);
                counts.for_each(|(count, share)| *count += u64::from(share_of(client) >= share));
            }
        }
        for (expected, family) in expected.iter().zip(Family::ALL) {
            let listed = run("nft", &["list", "chain", family.name(), "share", "share"]);
            let packets = |line: &str| line.split_once("counter packets ")?.1.split(' ').next()?.parse().ok();
            let counted: Vec<u64> = listed.lines().filter_map(packets).collect();
            assert_eq!(counted, expected, "{family}");
            assert!(expected.iter().any(|count| (500..1_500).contains(count)), "shares differ: {expected:?}");
        }
    });
}

/// Production's packets all pass; those of connections that are selected, and no others, are copied.
#[test]
fn what_is_not_selected_is_not_copied() {
    in_namespace("selection::what_is_not_selected_is_not_copied", &[], || {
        let spec = OnlineSpec { share: 2_000, ..loopback_spec() };
        let mut installed = Installed::install(&online(&spec)).unwrap();
        let selected: Vec<bool> = (0..200).map(|_| share_of(refused_connection()) < spec.share).collect();
        let selected = selected.into_iter().filter(|selected| *selected).count();
        assert!((10..80).contains(&selected), "{selected} of 200");
        // A SYN each: nobody listens.
        assert_eq!(installed.captured().unwrap().duplicated.packets, selected as u64);
        assert_eq!(installed.captured().unwrap().over_limit.packets, 0);
        installed.replace(&online(&OnlineSpec { share: SHARES, ..spec })).unwrap();
        for _ in 0..50 {
            refused_connection();
        }
        assert_eq!(installed.captured().unwrap().duplicated.packets, 50);
    });
}

/// Beyond the rate nothing is copied, over all captures together, and each packet is counted; production goes on.
#[test]
fn packets_beyond_the_rate_are_counted_and_not_copied() {
    in_namespace("selection::packets_beyond_the_rate_are_counted_and_not_copied", &[], || {
        const RATE: u32 = 20;
        let mut spec = OnlineSpec { max_packets_per_second: NonZeroU32::new(RATE), ..loopback_spec() };
        spec.captures.push(Capture { online: Some([127, 0, 0, 1].into()), port: CLOSED });
        let mut installed = Installed::install(&online(&spec)).unwrap();
        let began = std::time::Instant::now();
        for _ in 0..500 {
            refused_connection();
        }
        let most = u64::from(RATE) * (2 + began.elapsed().as_secs());
        let captured = installed.captured().unwrap();
        let (copied, left_out) = (captured.duplicated.packets, captured.over_limit.packets);
        assert_eq!(copied + left_out, 500);
        assert!((u64::from(RATE)..=most).contains(&copied), "{copied} copied");
        let handshakes = run("nft", &["list", "set", "ip", "tcpcopy", "handshakes"]);
        let known = handshakes.matches("expires").count();
        assert!(
            u64::try_from(known).unwrap() <= copied,
            "what is left out takes no room in the set: {known}"
        );
    });
}

fn loopback_spec() -> OnlineSpec {
    run("ip", &["link", "set", "lo", "up"]);
    OnlineSpec {
        captures: vec![Capture { online: None, port: CLOSED }],
        sink: make_sink(),
        queues: Queues::new(36520, 1).unwrap(),
        ..online_example()
    }
}

/// A connection that is refused at once. Returns the client.
fn refused_connection() -> SocketAddr {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    client.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = client.local_addr().unwrap().as_socket().unwrap();
    let refused = client
        .connect_timeout(&SocketAddr::from(([127, 0, 0, 1], CLOSED)).into(), Duration::from_secs(5))
        .unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    address
}

fn send_syn(sender: &RawSender, client: SocketAddr, port: u16) {
    let loopback: IpAddr = if client.is_ipv4() { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() };
    let server = SocketAddr::new(loopback, port);
    let header = TcpHeader::bare(Seq(1), Seq(0), Flags::SYN, 1_000);
    let mut out = Outgoing::default();
    out.payload();
    sender.send(out.finish(client, server, &header).unwrap(), server).unwrap();
}

/// Xorshift (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A client of each family.
    fn clients(&mut self) -> [SocketAddr; 2] {
        let (bits, port) = (self.next(), self.next());
        let [a, b, c, ..] = bits.to_be_bytes();
        let port = u16::try_from(port % 60_000).unwrap() + 1;
        let v6 = u128::from(self.next()) << 64 | u128::from(self.next());
        // Unicast: 2000::/3, and 127.0.0.0/8, which is not refused as the source of a packet on lo.
        let v6 = v6 >> 3 | 1 << 125;
        [SocketAddr::from(([127, a, b, c], port)), SocketAddr::from((v6.to_be_bytes(), port))]
    }
}
