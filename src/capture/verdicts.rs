//! Verdicts on their way to the kernel. Pure code.
//!
//! `NFQNL_MSG_VERDICT_BATCH` judges *every* packet the kernel holds for the queue up to an id. Three rules follow:
//! it is only ever used to drop; in deferred mode only once nothing older is undecided; and accepts that go with it
//! are written in front of it, as the kernel handles messages in order. Whatever goes wrong, a packet may be dropped
//! that should have been accepted, never the other way round.

use crate::sys::netlink::{REQUEST, Writer};

/// `(NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_VERDICT` and `…_BATCH`.
const VERDICT: u16 = 0x0301;
const VERDICT_BATCH: u16 = 0x0303;

const NFQA_VERDICT_HDR: u16 = 2;
const NFQA_MARK: u16 = 3;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// Decided verdicts kept before they are sent; 256 of them are about 10 KiB.
const KEPT: usize = 256;

/// What is to become of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet ends here.
    Drop,
    /// The packet goes on after our chain, with this mark.
    Accept {
        /// The packet's new mark (`meta mark`).
        mark: u32,
    },
}

/// The verdicts of one queue: those decided and not yet sent, and how many are owed.
#[derive(Debug)]
pub(super) struct Verdicts {
    queue: u16,
    writer: Writer,
    decided: Vec<(u32, Verdict)>,
    /// Packets handed out for a later verdict that has not been sent yet.
    owed: usize,
    /// The newest packet received.
    newest: Option<u32>,
    /// The kernel holds packets that nobody was told of, or whose verdicts were not delivered.
    sweep: bool,
}

impl Verdicts {
    pub(super) fn new(queue: u16) -> Self {
        let decided = Vec::with_capacity(KEPT);
        Self { queue, writer: Writer::new(), decided, owed: 0, newest: None, sweep: false }
    }

    /// Notes a packet received. Ids wrap around, and come in order.
    pub(super) fn saw(&mut self, id: u32) {
        self.newest = Some(id);
    }

    /// Notes that the packet just seen was handed out for a later verdict.
    pub(super) fn owe(&mut self) {
        self.owed += 1;
    }

    /// Notes that packets are held that no verdict by id will reach: they go with the next batch.
    pub(super) fn sweep(&mut self) {
        self.sweep = true;
    }

    /// Packets handed out whose verdict has not been sent.
    pub(super) fn owed(&self) -> usize {
        self.owed
    }

    /// Keeps a verdict for the next flush; true when it is time for that.
    #[must_use]
    pub(super) fn decide(&mut self, id: u32, verdict: Verdict) -> bool {
        self.decided.push((id, verdict));
        self.decided.len() >= KEPT
    }

    /// The message that drops all packets up to the newest, with those not understood. Settles everything.
    pub(super) fn drop_all(&mut self) -> Option<&[u8]> {
        let newest = self.newest.take()?;
        self.decided.clear();
        self.owed = 0;
        self.sweep = false;
        self.writer.clear();
        write(&mut self.writer, self.queue, VERDICT_BATCH, newest, Verdict::Drop);
        Some(self.writer.bytes())
    }

    /// The messages for what was decided; nothing when there is nothing to tell.
    pub(super) fn flush(&mut self) -> Option<&[u8]> {
        let settled = self.decided.len() >= self.owed;
        let drops = self.decided.iter().any(|(_, verdict)| *verdict == Verdict::Drop);
        let batch = self.newest.filter(|_| settled && (drops || self.sweep));
        if self.decided.is_empty() && batch.is_none() {
            return None;
        }
        self.owed = self.owed.saturating_sub(self.decided.len());
        self.writer.clear();
        for (id, verdict) in self.decided.drain(..) {
            if batch.is_none() || verdict != Verdict::Drop {
                write(&mut self.writer, self.queue, VERDICT, id, verdict);
            }
        }
        if let Some(newest) = batch {
            self.sweep = false;
            write(&mut self.writer, self.queue, VERDICT_BATCH, newest, Verdict::Drop);
        }
        Some(self.writer.bytes())
    }
}

fn write(writer: &mut Writer, queue: u16, kind: u16, id: u32, verdict: Verdict) {
    let code = match verdict {
        Verdict::Drop => NF_DROP,
        Verdict::Accept { .. } => NF_ACCEPT,
    };
    let [q0, q1] = queue.to_be_bytes();
    let [c0, c1, c2, c3] = code.to_be_bytes();
    let [i0, i1, i2, i3] = id.to_be_bytes();
    writer.begin(kind, REQUEST, 0);
    // struct nfgenmsg: family AF_UNSPEC, version NFNETLINK_V0, the queue's number.
    writer.put(&[0, 0, q0, q1]);
    writer.attribute(NFQA_VERDICT_HDR, &[c0, c1, c2, c3, i0, i1, i2, i3]);
    match verdict {
        Verdict::Drop => {}
        Verdict::Accept { mark } => writer.attribute(NFQA_MARK, &mark.to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::{Attribute, attributes, messages};

    const ACCEPT: Verdict = Verdict::Accept { mark: 0x0102_0304 };

    /// (message type, queue, verdict, id, mark) of each message.
    fn read(bytes: Option<&[u8]>) -> Vec<(u16, u16, u32, u32, Option<u32>)> {
        let each = |message: Result<crate::sys::netlink::Message<'_>, _>| {
            let message = message.unwrap();
            let all: Vec<_> = attributes(&message.body[4..]).map(Result::unwrap).collect();
            assert_eq!(all[0].kind, NFQA_VERDICT_HDR);
            let header: [u8; 8] = all[0].payload.try_into().unwrap();
            let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            let mark = all.get(1).inspect(|a| assert_eq!(a.kind, NFQA_MARK)).and_then(Attribute::be32);
            let queue = u16::from_be_bytes(message.body[2..4].try_into().unwrap());
            (message.kind, queue, number(0), number(4), mark)
        };
        messages(bytes.unwrap_or_default()).map(each).collect()
    }

    fn owing(ids: std::ops::RangeInclusive<u32>) -> Verdicts {
        let mut verdicts = Verdicts::new(9);
        for id in ids {
            verdicts.saw(id);
            verdicts.owe();
        }
        verdicts
    }

    #[test]
    fn a_batch_is_dropped_by_its_newest_id_once() {
        let mut verdicts = Verdicts::new(0x1234);
        assert_eq!(verdicts.drop_all(), None);
        verdicts.saw(u32::MAX);
        verdicts.saw(0);
        assert_eq!(read(verdicts.drop_all()), [(VERDICT_BATCH, 0x1234, NF_DROP, 0, None)]);
        assert_eq!(verdicts.drop_all(), None);
    }

    #[test]
    fn drops_that_settle_everything_are_one_message() {
        let mut verdicts = owing(1..=3);
        for id in 1..=3 {
            assert!(!verdicts.decide(id, Verdict::Drop));
        }
        assert_eq!(read(verdicts.flush()), [(VERDICT_BATCH, 9, NF_DROP, 3, None)]);
        assert_eq!((verdicts.owed(), verdicts.flush()), (0, None));
    }

    #[test]
    fn accepts_go_before_the_batch() {
        let mut verdicts = owing(1..=3);
        let _ = verdicts.decide(3, ACCEPT);
        let _ = verdicts.decide(1, Verdict::Drop);
        let _ = verdicts.decide(2, Verdict::Drop);
        let expected = [(VERDICT, 9, NF_ACCEPT, 3, Some(0x0102_0304)), (VERDICT_BATCH, 9, NF_DROP, 3, None)];
        assert_eq!(read(verdicts.flush()), expected);
    }

    #[test]
    fn accepts_alone_need_no_batch() {
        let mut verdicts = owing(1..=1);
        let _ = verdicts.decide(1, ACCEPT);
        assert_eq!(read(verdicts.flush()), [(VERDICT, 9, NF_ACCEPT, 1, Some(0x0102_0304))]);
    }

    #[test]
    fn while_one_is_undecided_nothing_is_batched() {
        let mut verdicts = owing(1..=3);
        let _ = verdicts.decide(1, Verdict::Drop);
        let _ = verdicts.decide(3, Verdict::Drop);
        assert_eq!(read(verdicts.flush()), [(VERDICT, 9, NF_DROP, 1, None), (VERDICT, 9, NF_DROP, 3, None)]);
        assert_eq!(verdicts.owed(), 1);
        let _ = verdicts.decide(2, Verdict::Drop);
        assert_eq!(read(verdicts.flush()), [(VERDICT_BATCH, 9, NF_DROP, 3, None)]);
    }

    #[test]
    fn what_nobody_was_told_of_goes_when_all_is_settled() {
        let mut verdicts = owing(5..=6);
        verdicts.sweep();
        let _ = verdicts.decide(5, ACCEPT);
        assert_eq!(read(verdicts.flush()).len(), 1);
        let _ = verdicts.decide(6, ACCEPT);
        let last = read(verdicts.flush());
        assert_eq!(last[1], (VERDICT_BATCH, 9, NF_DROP, 6, None));
        assert_eq!(verdicts.flush(), None);
    }

    #[test]
    fn many_decisions_ask_to_be_sent() {
        let mut verdicts = owing(1..=600);
        let asks = (1..=600).filter(|id| verdicts.decide(*id, Verdict::Drop)).count();
        assert!(asks > 0);
    }
}
