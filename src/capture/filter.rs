//! The classic BPF programs of packet sockets. Pure code.
//!
//! [`capture`] decides what is captured, as the rules of [`netfilter`](crate::netfilter) do for the other source: packets
//! for a mapping's service that neither this program sent nor are merely overheard, and of segments without payload none,
//! if so wished. [`split`] computes the worker they belong to, and is [`wire::flow::split`](crate::wire::flow::split) in
//! another language.
//!
//! Programs begin at the IP header. What they cannot read (extension headers between IPv6 and TCP, later fragments, which
//! have no ports) is not captured.

use std::net::IpAddr;

use crate::sys::packet::{Instruction, IpVersion};
use crate::wire::Mapping;
use crate::wire::flow::SPLIT_SEED;

// Operations of include/uapi/linux/bpf_common.h that are used here; `X` are relative to the register X, `K` constant.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_X: u16 = 0x48;
const LOAD_BYTE_X: u16 = 0x50;
const LOAD_KEPT: u16 = 0x60;
const KEEP: u16 = 0x02;
const KEEP_X: u16 = 0x03;
const SET: u16 = 0x00;
const SET_X: u16 = 0x01;
const LOAD_X_KEPT: u16 = 0x61;
/// X becomes the length of the IPv4 header at an offset.
const LOAD_X_IP_HEADER_LEN: u16 = 0xb1;
const TO_X: u16 = 0x07;
const ADD: u16 = 0x04;
const ADD_X: u16 = 0x0c;
const SUB_X: u16 = 0x1c;
const MUL: u16 = 0x24;
const OR_X: u16 = 0x4c;
const AND: u16 = 0x54;
const SHIFT_LEFT: u16 = 0x64;
const SHIFT_RIGHT: u16 = 0x74;
const XOR_X: u16 = 0xac;
const IF_EQUAL: u16 = 0x15;
const IF_EQUAL_X: u16 = 0x1d;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const RETURN_A: u16 = 0x16;

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
/// `BPF_MAXINSNS`.
const MOST: usize = 4096;

/// The program that takes the mappings' packets of one IP version. `None` if it is longer than the kernel allows, which
/// takes hundreds of mappings.
pub(super) fn capture(
    mappings: &[Mapping],
    version: IpVersion,
    own_mark: u32,
    pure_acks: bool,
) -> Option<Vec<Instruction>> {
    let mut program = Program::default();
    program.step(LOAD_BYTE, PACKET_TYPE);
    program.require(IF_EQUAL, FOR_US);
    program.step(LOAD_WORD, MARK);
    program.refuse(IF_EQUAL, own_mark);
    program.tcp_or_end(version);
    if !pure_acks {
        program.refuse_pure_acks(version);
    }
    for mapping in mappings.iter().filter(|mapping| of(mapping.target.ip()) == version) {
        program.take(mapping);
    }
    program.step(RETURN, 0);
    (program.0.len() <= MOST).then_some(program.0)
}

/// The program that returns the worker, of `workers`, that a packet belongs to by its source.
pub(super) fn split(version: IpVersion, workers: u16) -> Vec<Instruction> {
    let mut program = Program::default();
    program.tcp_or_end(version);
    // A port as a register of the kernel's rules holds it: two bytes, then zeros, in this machine's order of bytes.
    program.step(LOAD_HALF_X, 0);
    program.swap(2, 6);
    let (from, address) = match version {
        IpVersion::V4 => (12, 1),
        IpVersion::V6 => (8, 4),
    };
    for word in 0..address {
        program.step(LOAD_WORD, from + 4 * word);
        program.swap(4, word);
    }
    program.jhash(address);
    program.scale(workers);
    program.step(RETURN_A, 0);
    program.0
}

fn of(address: IpAddr) -> IpVersion {
    match address {
        IpAddr::V4(_) => IpVersion::V4,
        IpAddr::V6(_) => IpVersion::V6,
    }
}

/// Where `a`, `b` and `c` of the hash are kept; 0 to 3 hold the address, 6 the port.
const A: u32 = 8;
const B: u32 = 9;
const C: u32 = 10;
/// Scratch.
const T: u32 = 11;
const PORT: u32 = 6;

/// A program under construction: instructions with one register A, one register X, and 16 kept words.
#[derive(Default)]
struct Program(Vec<Instruction>);

impl Program {
    fn step(&mut self, code: u16, k: u32) {
        self.0.push(Instruction { code, jt: 0, jf: 0, k });
    }

    fn branch(&mut self, code: u16, k: u32, jt: u8, jf: u8) {
        self.0.push(Instruction { code, jt, jf, k });
    }

    /// Ends with 0 unless it holds.
    fn require(&mut self, code: u16, k: u32) {
        self.branch(code, k, 1, 0);
        self.step(RETURN, 0);
    }

    /// Ends with 0 if it holds.
    fn refuse(&mut self, code: u16, k: u32) {
        self.branch(code, k, 0, 1);
        self.step(RETURN, 0);
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

    /// Ends with the whole packet if it is for the mapping's service.
    fn take(&mut self, mapping: &Mapping) {
        self.step(LOAD_HALF_X, 2);
        let words: Vec<(u32, u32)> = match mapping.online {
            None => Vec::new(),
            Some(IpAddr::V4(address)) => vec![(16, u32::from(address))],
            Some(IpAddr::V6(address)) => {
                let words = address.octets();
                let words = words.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word));
                (24..).step_by(4).zip(words).collect()
            }
        };
        // What follows this comparison: two instructions for each word, and one.
        let mut rest = u8::try_from(words.len()).unwrap_or(u8::MAX) * 2 + 1;
        self.branch(IF_EQUAL, u32::from(mapping.port), 0, rest);
        for (at, word) in words {
            rest -= 2;
            self.step(LOAD_WORD, at);
            self.branch(IF_EQUAL, word, 0, rest);
        }
        self.step(RETURN, WHOLE);
    }

    /// Keeps A's lower `bytes` bytes in `place`, in the order in which they lie in the packet.
    fn swap(&mut self, bytes: u32, place: u32) {
        if cfg!(target_endian = "big") {
            self.step(SHIFT_LEFT, 32 - 8 * bytes);
            self.step(KEEP, place);
            return;
        }
        self.step(KEEP, T);
        self.step(SET, 0);
        self.step(KEEP, place);
        for byte in 0..bytes {
            self.step(LOAD_KEPT, T);
            self.step(SHIFT_RIGHT, 8 * byte);
            self.step(AND, 0xff);
            self.step(SHIFT_LEFT, 8 * (bytes - 1 - byte));
            self.step(LOAD_X_KEPT, place);
            self.step(OR_X, 0);
            self.step(KEEP, place);
        }
    }

    /// A becomes the hash of the first `address` kept words and the port: see `wire::flow`.
    fn jhash(&mut self, address: u32) {
        let start = 0xdead_beef_u32.wrapping_add(4 * (address + 1)).wrapping_add(SPLIT_SEED);
        for place in [A, B, C] {
            self.step(SET, start);
            self.step(KEEP, place);
        }
        if address == 1 {
            self.add(A, 0);
            self.add(B, PORT);
        } else {
            self.add(A, 0);
            self.add(B, 1);
            self.add(C, 2);
            for (x, y, z, by) in
                [(A, C, B, 4), (B, A, C, 6), (C, B, A, 8), (A, C, B, 16), (B, A, C, 19), (C, B, A, 4)]
            {
                // x -= y; x ^= rotated(y); y += z
                self.combine(x, y, SUB_X);
                self.rotated(y, by);
                self.combine(x, T, XOR_X);
                self.add(y, z);
            }
            self.add(A, 3);
            self.add(B, PORT);
        }
        for (x, y, by) in [(C, B, 14), (A, C, 11), (B, A, 25), (C, B, 16), (A, C, 4), (B, A, 14), (C, B, 24)]
        {
            self.combine(x, y, XOR_X);
            self.rotated(y, by);
            self.combine(x, T, SUB_X);
        }
    }

    fn add(&mut self, x: u32, y: u32) {
        self.combine(x, y, ADD_X);
    }

    /// The word kept at `x` becomes what the operation makes of it and that at `y`, and A with it.
    fn combine(&mut self, x: u32, y: u32, operation: u16) {
        self.step(LOAD_X_KEPT, y);
        self.step(LOAD_KEPT, x);
        self.step(operation, 0);
        self.step(KEEP, x);
    }

    /// T becomes the word kept at `y`, rotated left.
    fn rotated(&mut self, y: u32, by: u32) {
        self.step(LOAD_KEPT, y);
        self.step(SHIFT_LEFT, by);
        self.step(TO_X, 0);
        self.step(LOAD_KEPT, y);
        self.step(SHIFT_RIGHT, 32 - by);
        self.step(OR_X, 0);
        self.step(KEEP, T);
    }

    /// A becomes A × `workers` ÷ 2³², in two halves: there are 32 bits only.
    fn scale(&mut self, workers: u16) {
        self.step(KEEP, C);
        self.step(AND, 0xffff);
        self.step(MUL, workers.into());
        self.step(SHIFT_RIGHT, 16);
        self.step(TO_X, 0);
        self.step(LOAD_KEPT, C);
        self.step(SHIFT_RIGHT, 16);
        self.step(MUL, workers.into());
        self.step(ADD_X, 0);
        self.step(SHIFT_RIGHT, 16);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

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

    fn takes(mappings: &[Mapping], version: IpVersion, pure_acks: bool, packet: &[u8]) -> bool {
        let program = capture(mappings, version, OWN_MARK, pure_acks).expect("short enough");
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
    fn no_program_is_longer_than_the_kernel_allows() {
        let many =
            |count| (0..count).map(|port| mapping(Some("fd00::2"), port, "[fd00::9]:1")).collect::<Vec<_>>();
        assert!(capture(&many(300), IpVersion::V6, OWN_MARK, false).is_some());
        assert!(capture(&many(400), IpVersion::V6, OWN_MARK, false).is_none());
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
                    let worker = run(&split(version, workers), &packet, FOR_US, 0);
                    assert_eq!(worker, u32::from(flow::split(address, workers)), "{client} of {workers}");
                }
            }
        }
    }
}
