//! The classic BPF programs of packet sockets. Pure code.
//!
//! [`capture`] and [`responses`] decide what is captured, as the rules of [`netfilter`](crate::netfilter) do for the other
//! source: packets for a mapping's service, of the clients and the share of connections that are selected, that neither this
//! program sent nor are merely overheard, and of segments without payload none, if so wished; or what targets send to
//! clients. [`split`] computes the worker they belong to, and is
//! [`wire::flow::split`](crate::wire::flow::split) in another language.
//!
//! Programs begin at the IP header. What they cannot read (extension headers between IPv6 and TCP, later fragments, which
//! have no ports) is not captured.

use std::net::{IpAddr, SocketAddr};

use super::bpf::{
    ADD, ADD_X, AND, GO, IF_ANY_BIT, IF_AT_LEAST, IF_EQUAL, IF_EQUAL_X, KEEP_X, LOAD_BYTE, LOAD_BYTE_X,
    LOAD_HALF, LOAD_HALF_X, LOAD_WORD, LOAD_X_IP_HEADER_LEN, LOAD_X_KEPT, PORT, Program, RETURN, RETURN_A,
    SET_X, SHIFT_RIGHT, T, TO_X,
};
use crate::sys::packet::{Instruction, IpVersion};
use crate::wire::flow::{SHARE_SEED, SHARES, SPLIT_SEED};
use crate::wire::{Mapping, Prefix};

/// `SKF_AD_OFF + SKF_AD_PKTTYPE`: loads whom the link layer says the packet is for.
const PACKET_TYPE: u32 = 0xffff_f000 + 4;
/// `SKF_AD_OFF + SKF_AD_MARK`.
const MARK: u32 = 0xffff_f000 + 20;
/// `PACKET_HOST`: for this host.
const FOR_US: u32 = 0;

const TCP: u32 = 6;
const FIN_SYN_RST: u32 = 0x07;
/// More than any packet has.
const WHOLE: u32 = 1 << 18;

/// Which connections are captured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selected<'a> {
    /// Those to these services.
    pub(super) mappings: &'a [Mapping],
    /// Only these of [`SHARES`] connections.
    pub(super) share: u16,
    /// Only those of clients in one of these; none means all.
    pub(super) clients: &'a [Prefix],
}

/// The program that takes the selected packets of one IP version. `None` if it is longer than the kernel allows, which
/// takes hundreds of mappings or prefixes.
pub(super) fn capture(
    selected: Selected<'_>,
    version: IpVersion,
    own_mark: u32,
    pure_acks: bool,
) -> Option<Vec<Instruction>> {
    let mut program = Program::default();
    program.for_us_or_end();
    program.step(LOAD_WORD, MARK);
    program.refuse(IF_EQUAL, own_mark);
    program.tcp_or_end(version);
    if !pure_acks {
        program.refuse_pure_acks(version);
    }
    let mappings = selected.mappings.iter().filter(|mapping| of(mapping.target.ip()) == version);
    let services = mappings
        .map(|mapping| Service::new(End::Destination, mapping.online.map(Prefix::single), mapping.port));
    program.one_or_end(&services.collect::<Vec<_>>())?;
    program.in_one_or_end(End::Source, selected.clients, version)?;
    program.in_share_or_end(version, selected.share);
    program.step(RETURN, WHOLE);
    program.finish()
}

/// The program that takes the first `most` bytes of what the targets of one IP version send to clients in one of these
/// prefixes, or, if there are none, to all. `None` as for [`capture`].
pub(super) fn responses(
    targets: &[SocketAddr],
    clients: &[Prefix],
    version: IpVersion,
    most: u32,
) -> Option<Vec<Instruction>> {
    let mut program = Program::default();
    program.for_us_or_end();
    program.tcp_or_end(version);
    program.in_one_or_end(End::Destination, clients, version)?;
    let targets = targets.iter().filter(|target| of(target.ip()) == version);
    let services =
        targets.map(|target| Service::new(End::Source, Some(Prefix::single(target.ip())), target.port()));
    program.one_or_end(&services.collect::<Vec<_>>())?;
    program.step(RETURN, most);
    program.finish()
}

/// The program that returns the worker, of `workers`, that a packet belongs to by one end, which is the client.
pub(super) fn split(version: IpVersion, client: End, workers: u16) -> Vec<Instruction> {
    let mut program = Program::default();
    program.tcp_or_end(version);
    program.hash_flow(version, client, SPLIT_SEED);
    program.scale(workers);
    program.step(RETURN_A, 0);
    program.finish().expect("some hundred instructions")
}

/// One end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Who sent it.
    Source,
    /// Whom it is for.
    Destination,
}

impl End {
    /// Where in the packet its address is.
    fn address(self, version: IpVersion) -> u32 {
        match (self, version) {
            (Self::Source, IpVersion::V4) => 12,
            (Self::Destination, IpVersion::V4) => 16,
            (Self::Source, IpVersion::V6) => 8,
            (Self::Destination, IpVersion::V6) => 24,
        }
    }

    /// Where in the TCP header its port is.
    fn port(self) -> u32 {
        match self {
            Self::Source => 0,
            Self::Destination => 2,
        }
    }
}

fn of(address: IpAddr) -> IpVersion {
    match address {
        IpAddr::V4(_) => IpVersion::V4,
        IpAddr::V6(_) => IpVersion::V6,
    }
}

/// A word of a packet that is looked at.
#[derive(Clone, Copy, Debug)]
struct Comparison {
    at: u32,
    mask: u32,
    word: u32,
}

impl Comparison {
    /// How many instructions it takes.
    fn steps(&self) -> usize {
        if self.mask == u32::MAX { 2 } else { 3 }
    }
}

/// One end of packets, as a port, and an address if it matters.
struct Service {
    end: End,
    address: Vec<Comparison>,
    port: u16,
}

impl Service {
    fn new(end: End, address: Option<Prefix>, port: u16) -> Self {
        Self { end, address: address.map_or_else(Vec::new, |address| comparisons(end, address)), port }
    }

    /// How many instructions it takes, with the way out.
    fn steps(&self) -> usize {
        2 + steps(&self.address) + 1
    }
}

/// How many instructions they take.
fn steps(test: &[Comparison]) -> usize {
    test.iter().map(Comparison::steps).sum()
}

/// What holds if that end is in a prefix; nothing, if it holds all addresses.
fn comparisons(end: End, prefix: Prefix) -> Vec<Comparison> {
    let bytes: Vec<u8> = match prefix.address() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let words = bytes.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word));
    let places = (end.address(of(prefix.address()))..).step_by(4);
    let bits = (0..).step_by(32).map(|before| u32::from(prefix.length()).saturating_sub(before).min(32));
    let masks = bits.map(|bits| u32::MAX.checked_shl(32 - bits).unwrap_or(0));
    let all = places.zip(masks).zip(words).map(|((at, mask), word)| Comparison { at, mask, word });
    all.filter(|comparison| comparison.mask != 0).collect()
}

impl Program {
    /// What is merely overheard ends with 0.
    fn for_us_or_end(&mut self) {
        self.step(LOAD_BYTE, PACKET_TYPE);
        self.require(IF_EQUAL, FOR_US);
    }

    /// X becomes the offset of the TCP header; what has none here ends with 0.
    fn tcp_or_end(&mut self, version: IpVersion) {
        match version {
            IpVersion::V4 => {
                self.step(LOAD_BYTE, 9);
                self.require(IF_EQUAL, TCP);
                self.step(LOAD_HALF, 6);
                self.refuse(IF_ANY_BIT, 0x1fff);
                self.step(LOAD_X_IP_HEADER_LEN, 0);
            }
            IpVersion::V6 => {
                self.step(LOAD_BYTE, 6);
                self.require(IF_EQUAL, TCP);
                self.step(SET_X, 40);
            }
        }
    }

    /// Segments without SYN, FIN, RST and payload end with 0.
    fn refuse_pure_acks(&mut self, version: IpVersion) {
        let (length_at, fixed) = match version {
            IpVersion::V4 => (2, 0),
            IpVersion::V6 => (4, 40),
        };
        self.step(LOAD_BYTE_X, 13);
        // Over the eleven instructions that follow.
        self.branch(IF_ANY_BIT, FIN_SYN_RST, 11, 0);
        self.step(KEEP_X, T);
        self.step(LOAD_BYTE_X, 12);
        self.step(SHIFT_RIGHT, 2);
        self.step(AND, 0x3c);
        self.step(ADD_X, 0);
        self.step(TO_X, 0);
        self.step(LOAD_HALF, length_at);
        self.step(ADD, fixed);
        self.branch(IF_EQUAL_X, 0, 0, 1);
        self.step(RETURN, 0);
        self.step(LOAD_X_KEPT, T);
    }

    /// What is for none of these ends with 0. `None` if they are too many.
    fn one_or_end(&mut self, services: &[Service]) -> Option<()> {
        // Each test ends with a way over those that follow it, and over the end.
        let mut rest: usize = services.iter().map(Service::steps).sum();
        for service in services {
            rest -= service.steps();
            self.step(LOAD_HALF_X, service.end.port());
            let skipped = u8::try_from(steps(&service.address) + 1).unwrap_or(u8::MAX);
            self.branch(IF_EQUAL, u32::from(service.port), 0, skipped);
            self.skip_unless(&service.address, 1);
            self.step(GO, u32::try_from(rest + 1).ok()?);
        }
        self.step(RETURN, 0);
        Some(())
    }

    /// What has that end in none of the prefixes ends with 0, if there are any. `None` if they are too many.
    fn in_one_or_end(&mut self, end: End, prefixes: &[Prefix], version: IpVersion) -> Option<()> {
        if prefixes.is_empty() {
            return Some(());
        }
        let prefixes = prefixes.iter().filter(|prefix| of(prefix.address()) == version);
        let tests: Vec<_> = prefixes.map(|prefix| comparisons(end, *prefix)).collect();
        let mut rest: usize = tests.iter().map(|test| steps(test) + 1).sum();
        for test in tests {
            rest -= steps(&test) + 1;
            self.skip_unless(&test, 1);
            self.step(GO, u32::try_from(rest + 1).ok()?);
        }
        self.step(RETURN, 0);
        Some(())
    }

    /// Connections outside the share end with 0. To be the last test: X is lost.
    fn in_share_or_end(&mut self, version: IpVersion, share: u16) {
        if share < SHARES {
            self.hash_flow(version, End::Source, SHARE_SEED);
            self.scale(SHARES);
            self.refuse(IF_AT_LEAST, share.into());
        }
    }

    /// A becomes the hash of address and port of one end; X is lost.
    fn hash_flow(&mut self, version: IpVersion, end: End, seed: u32) {
        // A port as a register of the kernel's rules holds it: two bytes, then zeros, in this machine's order of bytes.
        self.step(LOAD_HALF_X, end.port());
        self.swap(2, PORT);
        let address = match version {
            IpVersion::V4 => 1,
            IpVersion::V6 => 4,
        };
        for word in 0..address {
            self.step(LOAD_WORD, end.address(version) + 4 * word);
            self.swap(4, word);
        }
        self.jhash(address, seed);
    }

    /// Skips so many instructions unless all of it holds.
    fn skip_unless(&mut self, test: &[Comparison], skipped: usize) {
        let mut rest = steps(test) + skipped;
        for comparison in test {
            let Comparison { at, mask, word } = *comparison;
            rest -= comparison.steps();
            self.step(LOAD_WORD, at);
            if mask != u32::MAX {
                self.step(AND, mask);
            }
            // There are four words at most.
            self.branch(IF_EQUAL, word, 0, u8::try_from(rest).unwrap_or(u8::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::bpf::{KEEP, LOAD_KEPT, MUL, OR_X, SET, SHIFT_LEFT, SUB_X, XOR_X};
    use super::*;
    use crate::wire::flow;
    use crate::wire::{Flags, Outgoing, Seq, TcpHeader, TcpOptions, Timestamps};

    const OWN_MARK: u32 = 77;

    /// What the kernel's interpreter returns, with these for the packet's type and mark.
    fn run(program: &[Instruction], packet: &[u8], packet_type: u32, mark: u32) -> u32 {
        let bytes = |at: u32, len: usize| {
            let at = usize::try_from(at).expect("64 bits");
            packet
                .get(at..at + len)
                .map(|bytes| bytes.iter().fold(0, |all, byte| all << 8 | u32::from(*byte)))
        };
        let (mut a, mut x, mut kept, mut at) = (0_u32, 0_u32, [None; 16], 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            let place = usize::try_from(k % 16).expect("small");
            at += 1;
            let loaded = match code {
                LOAD_BYTE if k == PACKET_TYPE => Some(packet_type),
                LOAD_WORD if k == MARK => Some(mark),
                LOAD_WORD => bytes(k, 4),
                LOAD_HALF => bytes(k, 2),
                LOAD_BYTE => bytes(k, 1),
                LOAD_HALF_X => bytes(x + k, 2),
                LOAD_BYTE_X => bytes(x + k, 1),
                LOAD_X_IP_HEADER_LEN => bytes(k, 1).map(|byte| (byte & 0xf) * 4),
                _ => Some(0),
            };
            let Some(loaded) = loaded else { return 0 };
            match code {
                LOAD_X_IP_HEADER_LEN => x = loaded,
                LOAD_BYTE | LOAD_WORD | LOAD_HALF | LOAD_HALF_X | LOAD_BYTE_X => a = loaded,
                LOAD_KEPT => a = kept[place].expect("kept before"),
                LOAD_X_KEPT => x = kept[place].expect("kept before"),
                KEEP => kept[place] = Some(a),
                KEEP_X => kept[place] = Some(x),
                SET => a = k,
                SET_X => x = k,
                TO_X => x = a,
                ADD => a = a.wrapping_add(k),
                ADD_X => a = a.wrapping_add(x),
                SUB_X => a = a.wrapping_sub(x),
                MUL => a = a.wrapping_mul(k),
                OR_X => a |= x,
                XOR_X => a ^= x,
                AND => a &= k,
                SHIFT_LEFT => a <<= k,
                SHIFT_RIGHT => a >>= k,
                GO => at += usize::try_from(k).expect("64 bits"),
                IF_AT_LEAST => at += usize::from(if a >= k { jt } else { jf }),
                IF_EQUAL => at += usize::from(if a == k { jt } else { jf }),
                IF_EQUAL_X => at += usize::from(if a == x { jt } else { jf }),
                IF_ANY_BIT => at += usize::from(if a & k != 0 { jt } else { jf }),
                RETURN => return k,
                RETURN_A => return a,
                other => panic!("no such operation: {other:#x}"),
            }
        }
    }

    fn packet(src: &str, dst: &str, flags: Flags, payload: &[u8]) -> Vec<u8> {
        let header = TcpHeader {
            seq: Seq(1),
            ack: Seq(2),
            flags,
            window: 3,
            options: TcpOptions {
                timestamps: Some(Timestamps { value: 1, echo: 2 }),
                ..TcpOptions::default()
            },
            payload_len: u32::try_from(payload.len()).expect("short"),
        };
        let mut out = Outgoing::default();
        out.payload().extend_from_slice(payload);
        let (src, dst) = (src.parse().expect("address"), dst.parse().expect("address"));
        out.finish(src, dst, &header).expect("one family").to_vec()
    }

    fn mapping(online: Option<&str>, port: u16, target: &str) -> Mapping {
        let online = online.map(|address| address.parse().expect("address"));
        Mapping { online, port, target: target.parse().expect("address") }
    }

    /// All connections to these.
    fn every(mappings: &[Mapping]) -> Selected<'_> {
        Selected { mappings, share: SHARES, clients: &[] }
    }

    fn takes(mappings: &[Mapping], version: IpVersion, pure_acks: bool, packet: &[u8]) -> bool {
        let program = capture(every(mappings), version, OWN_MARK, pure_acks).expect("short enough");
        let taken = run(&program, packet, FOR_US, 0);
        assert!(taken == 0 || taken == WHOLE);
        assert_eq!(run(&program, packet, FOR_US, OWN_MARK), 0, "own packets");
        assert_eq!(run(&program, packet, 3, 0), 0, "overheard packets");
        taken == WHOLE
    }

    #[test]
    fn services_are_told_by_port_and_address() {
        let mappings = [
            mapping(None, 80, "10.0.0.9:80"),
            mapping(Some("10.0.0.2"), 443, "10.0.0.9:443"),
            mapping(Some("fd00::2"), 443, "[fd00::9]:443"),
            mapping(None, 8080, "[fd00::9]:80"),
        ];
        let v4 =
            |dst| takes(&mappings, IpVersion::V4, false, &packet("10.9.0.1:80", dst, Flags::ACK, b"data"));
        assert!(v4("10.0.0.2:80") && v4("10.0.0.3:80") && v4("10.0.0.2:443"));
        assert!(!v4("10.0.0.3:443") && !v4("10.0.0.2:8080") && !v4("10.0.0.2:81"));
        let v6 =
            |dst| takes(&mappings, IpVersion::V6, false, &packet("[fd01::1]:80", dst, Flags::ACK, b"data"));
        assert!(v6("[fd00::2]:443") && v6("[fd00::3]:8080"));
        assert!(!v6("[fd00::3]:443") && !v6("[fd00::1:0:0:2]:443") && !v6("[fd00::2]:80"));
    }

    #[test]
    fn acks_without_payload_are_told_from_all_else() {
        let cases = [
            ("10.9.0.1:9", "10.0.0.2:80", IpVersion::V4, mapping(None, 80, "10.0.0.9:80")),
            ("[fd01::1]:9", "[fd00::2]:80", IpVersion::V6, mapping(None, 80, "[fd00::9]:80")),
        ];
        for (src, dst, version, mapping) in cases {
            let takes = |pure_acks, flags, payload: &[u8]| {
                takes(&[mapping], version, pure_acks, &packet(src, dst, flags, payload))
            };
            assert!(!takes(false, Flags::ACK, b""));
            assert!(takes(true, Flags::ACK, b""));
            assert!(takes(false, Flags::ACK, b"x"));
            for flag in [Flags::SYN, Flags::FIN, Flags::RST] {
                assert!(takes(false, flag | Flags::ACK, b""));
            }
        }
    }

    #[test]
    fn what_has_no_ports_is_not_captured() {
        let mappings = [mapping(None, 80, "10.0.0.9:80")];
        let whole = packet("10.9.0.1:9", "10.0.0.2:80", Flags::ACK, b"data");
        let with = |at: usize, value: u8| {
            let mut changed = whole.clone();
            changed[at] = value;
            takes(&mappings, IpVersion::V4, false, &changed)
        };
        assert!(with(6, 0x20), "a first fragment has ports, and is counted as what it is");
        assert!(!with(7, 1));
        assert!(!with(9, 17));
        assert!((0..22).all(|len| !takes(&mappings, IpVersion::V4, false, &whole[..len])));
    }

    #[test]
    fn responses_are_told_by_target_and_client() {
        let targets =
            ["10.0.0.2:80", "10.0.0.2:443", "[fd00::2]:80"].map(|each| each.parse().expect("address"));
        let some = ["10.9.0.0/20", "10.8.0.7/32", "fd02:0:0:5::/64", "fd01::/17", "0.0.0.0/0"];
        let some = some.map(|prefix| prefix.parse().expect("a prefix"));
        let takes = |clients: &[Prefix], src: &str, dst: &str| {
            let version = of(src.parse::<SocketAddr>().expect("address").ip());
            let program = responses(&targets, clients, version, 96).expect("short enough");
            let packet = packet(src, dst, Flags::ACK, b"data");
            assert_eq!(run(&program, &packet, 3, 0), 0, "overheard packets");
            let taken = run(&program, &packet, FOR_US, 0);
            assert!(taken == 0 || taken == 96);
            taken == 96
        };
        assert!(takes(&[], "10.0.0.2:80", "10.9.0.1:9") && takes(&[], "10.0.0.2:443", "10.9.0.1:9"));
        assert!(takes(&[], "[fd00::2]:80", "[fd01::1]:9"));
        assert!(!takes(&[], "10.0.0.2:81", "10.9.0.1:80") && !takes(&[], "10.0.0.3:80", "10.0.0.2:80"));
        assert!(!takes(&[], "[fd00::2]:443", "[fd01::1]:9") && !takes(&[], "[fd00::3]:80", "[fd01::1]:9"));

        let four = |client: &str| takes(&some[..4], "10.0.0.2:80", client);
        assert!(four("10.9.15.1:9") && four("10.8.0.7:9"));
        assert!(!four("10.9.16.1:9") && !four("10.8.0.6:9"));
        let six = |client: &str| takes(&some[..4], "[fd00::2]:80", client);
        assert!(six("[fd02:0:0:5:ffff::1]:9") && six("[fd01:7fff::1]:9"));
        assert!(!six("[fd01:8000::1]:9") && !six("[fd02:0:0:6::1]:9"));
        assert!(takes(&some, "10.0.0.2:80", "1.2.3.4:9"), "the last one is everything");
        assert!(!takes(&some[..2], "[fd00::2]:80", "[fd01::1]:9"), "no prefix of the family");
    }

    #[test]
    fn no_program_is_longer_than_the_kernel_allows() {
        let many =
            |count| (0..count).map(|port| mapping(Some("fd00::2"), port, "[fd00::9]:1")).collect::<Vec<_>>();
        assert!(capture(every(&many(300)), IpVersion::V6, OWN_MARK, false).is_some());
        assert!(capture(every(&many(400)), IpVersion::V6, OWN_MARK, false).is_none());
        let target = ["[fd00::2]:80".parse().expect("address")];
        let prefixes = |count| vec!["fd00:1:2:3:8000::/65".parse().expect("a prefix"); count];
        assert!(responses(&target, &prefixes(500), IpVersion::V6, 96).is_some());
        assert!(responses(&target, &prefixes(600), IpVersion::V6, 96).is_none());
    }

    #[test]
    fn selected_are_those_of_the_replayer() {
        let mappings = [mapping(None, 80, "10.0.0.9:80"), mapping(None, 80, "[fd00::9]:80")];
        let clients =
            ["10.16.0.0/12", "10.200.3.7/32", "fd00:1000::/20"].map(|text| text.parse().expect("prefix"));
        let (mut taken, mut total) = (0, 0);
        for (share, clients) in
            [(100, &clients[..]), (5_000, &clients), (SHARES, &clients), (1, &[]), (100, &[]), (9_999, &[])]
        {
            let selected = Selected { mappings: &mappings, share, clients };
            let [v4, v6] = [IpVersion::V4, IpVersion::V6]
                .map(|version| capture(selected, version, OWN_MARK, false).expect("short enough"));
            for port in (1..60_000).step_by(487) {
                let four = (format!("10.{}.3.7:{port}", port % 251), "10.0.0.2:80", &v4);
                let six = (format!("[fd00:{port:x}:3::7:{port:x}]:{port}"), "[fd00::2]:80", &v6);
                for (client, server, program) in [four, six] {
                    let address: SocketAddr = client.parse().expect("address");
                    let wanted =
                        clients.is_empty() || clients.iter().any(|prefix| prefix.contains(address.ip()));
                    let expected = wanted && (share == SHARES || flow::share_of(address) < share);
                    let passed = run(program, &packet(&client, server, Flags::SYN, b""), FOR_US, 0);
                    assert_eq!(passed == WHOLE, expected, "{client}, {share}");
                    taken += usize::from(expected);
                    total += 1;
                }
            }
        }
        assert!(taken > total / 10 && taken < total * 9 / 10, "{taken} of {total}");
    }

    #[test]
    fn workers_are_those_of_the_rules_split() {
        for workers in [2, 3, 8, 256] {
            for port in (1..60_000).step_by(977) {
                let clients = [
                    (format!("10.{}.3.7:{port}", port % 251), "10.0.0.2:80", IpVersion::V4),
                    (format!("[fd00:{port:x}:3::7:{port:x}]:{port}"), "[fd00::2]:80", IpVersion::V6),
                ];
                for (client, server, version) in clients {
                    let packet = packet(&client, server, Flags::SYN, b"");
                    let address: SocketAddr = client.parse().expect("address");
                    let response = self::packet(server, &client, Flags::SYN | Flags::ACK, b"");
                    for (end, packet) in [(End::Source, packet), (End::Destination, response)] {
                        let worker = run(&split(version, end, workers), &packet, FOR_US, 0);
                        assert_eq!(worker, u32::from(flow::split(address, workers)), "{client} of {workers}");
                    }
                }
            }
        }
    }
}
