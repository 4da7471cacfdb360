//! What a queue's socket delivers, as types. Pure code.
//!
//! Layouts: `include/uapi/linux/netfilter/nfnetlink_queue.h`. The kernel puts the packet's id first and its bytes
//! last, so that of a message cut short the id is still known and the packet can be given its verdict.

use super::Captured;
use crate::sys::netlink::{self, Malformed};

/// `(NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_PACKET`.
const PACKET: u16 = 0x0300;
const NFGENMSG_LEN: usize = 4;

const NFQA_PACKET_HDR: u16 = 1;
const NFQA_PAYLOAD: u16 = 10;
const NFQA_CAP_LEN: u16 = 13;
const NFQA_SKB_INFO: u16 = 14;
/// Flags of `NFQA_SKB_INFO`.
const NFQA_SKB_CSUMNOTREADY: u32 = 1;
const NFQA_SKB_GSO: u32 = 2;

/// One message from the queue's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A packet to be judged.
    Packet(Captured<'a>),
    /// The kernel refused a request of ours, with this errno.
    Refused(i32),
    /// An acknowledgement, or a message that concerns nobody.
    Nothing,
    /// Lengths that lie, or a packet without its id.
    Malformed {
        /// The packet concerned, where known.
        id: Option<u32>,
    },
}

/// The messages of one datagram.
pub(super) fn events(datagram: &[u8]) -> impl Iterator<Item = Event<'_>> {
    netlink::messages(datagram).map(|message| match message {
        Ok(message) => event(&message),
        Err(Malformed) => Event::Malformed { id: None },
    })
}

/// The id in a datagram that was cut by our own buffer, so that no length in it can be believed.
pub(super) fn id_of_truncated(datagram: &[u8]) -> Option<u32> {
    let body = datagram.get(netlink::HEADER_LEN + NFGENMSG_LEN..)?;
    netlink::attributes(body)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind == NFQA_PACKET_HDR)
        .and_then(|attribute| packet_id(attribute.payload))
}

fn event<'a>(message: &netlink::Message<'a>) -> Event<'a> {
    match message.error() {
        Some(Ok(0)) => return Event::Nothing,
        Some(Ok(errno)) => return Event::Refused(errno),
        Some(Err(Malformed)) => return Event::Malformed { id: None },
        None => {}
    }
    if message.kind != PACKET {
        return Event::Nothing;
    }
    message.body.get(NFGENMSG_LEN..).map_or(Event::Malformed { id: None }, packet)
}

fn packet(attributes: &[u8]) -> Event<'_> {
    let mut id = None;
    let mut bytes: &[u8] = &[];
    let mut original_len = None;
    let mut has_checksum = true;
    for attribute in netlink::attributes(attributes) {
        let Ok(attribute) = attribute else { return Event::Malformed { id } };
        match attribute.kind {
            NFQA_PACKET_HDR => id = packet_id(attribute.payload),
            NFQA_PAYLOAD => bytes = attribute.payload,
            NFQA_CAP_LEN => match attribute.be32().and_then(|len| usize::try_from(len).ok()) {
                Some(len) => original_len = Some(len),
                None => return Event::Malformed { id },
            },
            NFQA_SKB_INFO => match attribute.be32() {
                Some(flags) => has_checksum = flags & (NFQA_SKB_CSUMNOTREADY | NFQA_SKB_GSO) == 0,
                None => return Event::Malformed { id },
            },
            _ => {}
        }
    }
    let original_len = original_len.unwrap_or(bytes.len());
    match id {
        Some(id) if original_len >= bytes.len() => {
            Event::Packet(Captured { id, bytes, original_len, has_checksum })
        }
        id => Event::Malformed { id },
    }
}

/// The first member of `struct nfqnl_msg_packet_hdr`.
fn packet_id(header: &[u8]) -> Option<u32> {
    header.first_chunk().copied().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::Writer;

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.begin(PACKET, 0, 0);
        writer.put(&[2, 0, 0, 5]);
        for (kind, payload) in attributes {
            writer.attribute(*kind, payload);
        }
        writer.bytes().to_vec()
    }

    fn only(datagram: &[u8]) -> Event<'_> {
        let all: Vec<_> = events(datagram).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0]
    }

    /// What is expected of whole packets.
    fn captured(bytes: &[u8], original_len: usize) -> Event<'_> {
        Event::Packet(Captured { id: 258, bytes, original_len, has_checksum: true })
    }

    const HEADER: (u16, &[u8]) = (NFQA_PACKET_HDR, &[0, 0, 1, 2, 8, 0, 3]);

    #[test]
    fn a_packet_has_id_bytes_and_length() {
        let whole = message(&[HEADER, (5, &[0; 4]), (NFQA_PAYLOAD, b"packet!")]);
        let cut = message(&[HEADER, (NFQA_CAP_LEN, &[0, 0, 5, 220]), (NFQA_PAYLOAD, b"pack")]);

        assert_eq!(only(&whole), captured(b"packet!", 7));
        assert_eq!(only(&cut), captured(b"pack", 1500));
    }

    #[test]
    fn checksums_of_mergers_and_of_what_a_card_completes_say_nothing() {
        for (flags, expected) in [(0u32, true), (1, false), (2, false), (3, false), (4, true)] {
            let flags = flags.to_be_bytes();
            let message = message(&[HEADER, (NFQA_SKB_INFO, &flags), (NFQA_PAYLOAD, b"x")]);
            let Event::Packet(Captured { has_checksum, .. }) = only(&message) else { panic!("a packet") };
            assert_eq!(has_checksum, expected, "{flags:?}");
        }
        let short = message(&[HEADER, (NFQA_SKB_INFO, &[0, 1]), (NFQA_PAYLOAD, b"x")]);
        assert_eq!(only(&short), Event::Malformed { id: Some(258) });
    }

    #[test]
    fn a_packet_without_payload_is_a_packet() {
        let empty = message(&[HEADER]);
        assert_eq!(only(&empty), captured(b"", 0));
    }

    #[test]
    fn without_an_id_it_is_malformed() {
        let none = message(&[(NFQA_PAYLOAD, b"x")]);
        let short = message(&[(NFQA_PACKET_HDR, &[0, 0, 1]), (NFQA_PAYLOAD, b"x")]);
        let zero = message(&[(NFQA_PACKET_HDR, &[])]);
        for bytes in [none, short, zero] {
            assert_eq!(only(&bytes), Event::Malformed { id: None });
        }
    }

    #[test]
    fn contradicting_lengths_are_malformed_with_the_id() {
        let smaller = message(&[HEADER, (NFQA_CAP_LEN, &[0, 0, 0, 1]), (NFQA_PAYLOAD, b"xx")]);
        let odd = message(&[HEADER, (NFQA_CAP_LEN, &[0, 1]), (NFQA_PAYLOAD, b"xx")]);
        let mut overlong = message(&[HEADER, (NFQA_PAYLOAD, b"xxxx")]);
        let at = overlong.len() - 8;
        for len in [0u16, 3, 9, u16::MAX] {
            overlong[at..at + 2].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(only(&overlong), Event::Malformed { id: Some(258) }, "length {len}");
        }
        assert_eq!(only(&smaller), Event::Malformed { id: Some(258) });
        assert_eq!(only(&odd), Event::Malformed { id: Some(258) });
    }

    #[test]
    fn every_cut_of_a_message_is_malformed_and_none_panics() {
        let whole = message(&[HEADER, (NFQA_PAYLOAD, b"packet!!")]);
        for len in 1..whole.len() {
            assert_eq!(only(&whole[..len]), Event::Malformed { id: None }, "cut to {len}");
        }
    }

    #[test]
    fn the_id_of_a_truncated_datagram_is_found() {
        let whole = message(&[HEADER, (NFQA_PAYLOAD, &[0; 100])]);
        assert_eq!(id_of_truncated(&whole[..60]), Some(258));
        assert_eq!(id_of_truncated(&whole[..24]), None);
        assert_eq!(id_of_truncated(&whole[..3]), None);
        assert_eq!(id_of_truncated(&[]), None);
    }

    #[test]
    fn errors_and_strangers_are_told_apart() {
        let error = |body: &[u8]| {
            let mut writer = Writer::new();
            writer.begin(netlink::ERROR, 0, 0);
            writer.put(body);
            writer.bytes().to_vec()
        };
        let mut stranger = Writer::new();
        stranger.begin(0x0301, 0, 0);

        assert_eq!(only(&error(&(-2i32).to_ne_bytes())), Event::Refused(2));
        assert_eq!(only(&error(&0i32.to_ne_bytes())), Event::Nothing);
        assert_eq!(only(&error(&[])), Event::Malformed { id: None });
        assert_eq!(only(stranger.bytes()), Event::Nothing);
    }

    #[test]
    fn several_messages_of_one_datagram_all_count() {
        let mut datagram = message(&[HEADER, (NFQA_PAYLOAD, b"four")]);
        datagram.extend(message(&[HEADER, (NFQA_PAYLOAD, b"five!")]));
        datagram.extend([1, 2, 3]);
        let all: Vec<_> = events(&datagram).collect();
        assert!(matches!(all[..], [Event::Packet(_), Event::Packet(_), Event::Malformed { id: None }]));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(mut bytes: Vec<u8>, len in 0u32..200) {
            for _ in events(&bytes) {}
            id_of_truncated(&bytes);
            // And with a header that is believed, so that the attributes are reached.
            if let Some(field) = bytes.get_mut(..6) {
                field[..4].copy_from_slice(&len.to_ne_bytes());
                field[4..].copy_from_slice(&PACKET.to_ne_bytes());
            }
            for _ in events(&bytes) {}
        }
    }
}
