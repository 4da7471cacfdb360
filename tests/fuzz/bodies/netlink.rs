//! What the kernel sends to a queue's socket, and what it is answered.

use tcpcopy::capture::take_datagram;
use tcpcopy::sys::netlink::{attributes, messages};

use super::input::Input;

/// `(NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_VERDICT_BATCH`, and its one attribute.
const VERDICT_BATCH: u16 = 0x0303;
const VERDICT_HEADER: u16 = 2;

/// Whatever comes, packets lie within the datagram, and the only answer is to drop all up to the newest.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let truncated = input.one_in(8);
    let datagram = input.rest();
    let mut ids = Vec::new();
    let (received, verdicts) = take_datagram(datagram, truncated, &mut |captured| {
        assert!(captured.bytes.len() <= datagram.len() && captured.bytes.len() <= captured.original_len);
        ids.push(captured.id);
    });
    assert_eq!(received.packets as usize, ids.len());
    assert!(!truncated || ids.is_empty(), "a packet of a datagram that was cut");
    let answers: Vec<_> = messages(&verdicts).map(|message| message.expect("own message")).collect();
    assert!(answers.len() <= 1 && answers.len() >= usize::from(!ids.is_empty()));
    for answer in answers {
        assert_eq!(answer.kind, VERDICT_BATCH);
        let body: Vec<_> =
            attributes(&answer.body[4..]).map(|attribute| attribute.expect("own attribute")).collect();
        let [verdict] = body[..] else { panic!("{body:?}") };
        assert_eq!(verdict.kind, VERDICT_HEADER);
        let (code, id) = verdict.payload.split_at(4);
        assert_eq!(code, [0; 4], "NF_DROP");
        if received.malformed == 0 {
            assert_eq!(Some(id), ids.last().map(|id| id.to_be_bytes()).as_ref().map(|id| &id[..]));
        }
    }
}
