//! The filter in the kernel: the leak detector gets all IP packets that reach a client but those that production consists
//! of, which are many.

use super::bpf::{AND, ANY_OF, EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_WORD, RETURN, Step};
use super::{KEPT, hardware};
use crate::network::Role;

/// Left out are frames that the client sends, IPv6 multicast, and TCP of online hosts' front addresses. Offsets are those
/// of an Ethernet frame: source address at 6, type at 12, the IP packet at 14.
pub(super) fn program() -> Vec<Step> {
    vec![
        Step(LOAD_WORD, 0, 0, 6), // hardware source address
        Step(EQUAL, 18, 0, hardware(Role::Client)),
        Step(LOAD_HALF, 0, 0, 12),
        Step(EQUAL, 8, 0, 0x86dd), // IPv6: to 12
        Step(EQUAL, 0, 15, 0x0800),
        Step(LOAD_BYTE, 0, 0, 23),
        Step(EQUAL, 0, 14, 6), // TCP
        Step(LOAD_HALF, 0, 0, 20),
        Step(ANY_OF, 12, 0, 0x3fff), // a fragment
        Step(LOAD_WORD, 0, 0, 26),   // source address
        Step(AND, 0, 0, 0xffff_ff00),
        Step(EQUAL, 6, 9, 0x0a5b_0100), // 10.91.1.0/24: to 18
        Step(LOAD_BYTE, 0, 0, 0),
        Step(ANY_OF, 6, 0, 1), // multicast
        Step(LOAD_BYTE, 0, 0, 20),
        Step(EQUAL, 0, 5, 6), // TCP
        Step(LOAD_WORD, 0, 0, 22),
        Step(EQUAL, 0, 3, 0xfd91_0001), // fd91:1::/64
        Step(LOAD_WORD, 0, 0, 6),
        Step(EQUAL, 0, 1, hardware(Role::Online)),
        Step(RETURN, 0, 0, 0),
        Step(RETURN, 0, 0, KEPT),
    ]
}
