//! Requests to nf_tables and their answers, over one socket.

use std::io;
use std::time::{Duration, Instant};

use super::batch::Transaction;
use super::message::{self, Attributes, Content, Message};
use super::ruleset::{Family, TableName};
use crate::sys::nfnl::{Buffer, Socket};

/// How long an answer may take. The kernel answers before `send` returns, so this is for one that does not answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How often a dump is asked for again because the ruleset changed meanwhile.
const DUMP_ATTEMPTS: u32 = 10;

/// A socket with what its conversations need. Tables installed through it belong to it.
pub(super) struct Link {
    socket: Socket,
    buffer: Buffer,
    /// The crate numbers batches from 1; our own requests are numbered far above.
    sequence: u32,
}

/// How a transaction failed.
#[derive(Debug)]
pub(super) enum Failure {
    Send(io::Error),
    Receive(io::Error),
    /// The kernel refused a message, by sequence number; nothing has changed.
    Refused {
        sequence: u32,
        error: io::Error,
    },
    Unanswered {
        answers: usize,
    },
}

impl Link {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(&[])?, buffer: Buffer::default(), sequence: 1 << 20 })
    }

    /// Has the kernel carry out `transaction`, all of it or nothing.
    pub(super) fn commit(&mut self, transaction: &Transaction) -> Result<(), Failure> {
        self.discard_leftovers();
        self.socket.send(&transaction.bytes).map_err(Failure::Send)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        let mut answers = 0;
        let mut refused: Option<(u32, i32)> = None;
        while answers < transaction.acknowledgements {
            let Some(messages) = self.socket.receive(&mut self.buffer).map_err(Failure::Receive)? else {
                // A failure is not followed by an answer to every message: what has come by now is all.
                let left = deadline.saturating_duration_since(Instant::now());
                if refused.is_some() || !self.socket.wait(left).map_err(Failure::Receive)? {
                    break;
                }
                continue;
            };
            for bytes in messages {
                let Some(message) = Message::parse(bytes.map_err(Failure::Receive)?) else { continue };
                match message.content() {
                    Some(Content::Answer(0)) => answers += 1,
                    Some(Content::Answer(code)) => {
                        // The first message refused is the cause; those after it fail for its absence.
                        let earliest = refused.is_none_or(|(sequence, _)| message.sequence < sequence);
                        refused = if earliest { Some((message.sequence, code)) } else { refused };
                    }
                    Some(Content::Done | Content::Nftables { .. } | Content::Other) | None => {}
                }
            }
        }
        match refused {
            Some((sequence, code)) => {
                let error = io::Error::from_raw_os_error(code.saturating_neg());
                Err(Failure::Refused { sequence, error })
            }
            None if answers < transaction.acknowledgements => Err(Failure::Unanswered { answers }),
            None => Ok(()),
        }
    }

    /// The flags of a table, or `None` if there is none of that name.
    pub(super) fn table_flags(&mut self, family: Family, name: &TableName) -> io::Result<Option<u32>> {
        let mut flags = None;
        let about = [(message::TABLE_NAME, name.as_str())];
        let answer = self.ask(
            libc::NFT_MSG_GETTABLE,
            libc::NLM_F_ACK,
            family.protocol(),
            &about,
            &mut |_, attributes| {
                flags = Some(attributes.number(message::TABLE_FLAGS).map_or(0, u32::from_be_bytes));
            },
        );
        match answer {
            Ok(()) => Ok(flags),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls `each` with every object of one kind (`NFT_MSG_GETRULE`, `NFT_MSG_GETCHAIN`) in a table.
    pub(super) fn dump(
        &mut self,
        kind: i32,
        family: Family,
        name: &TableName,
        each: &mut dyn FnMut(Attributes<'_>),
    ) -> io::Result<()> {
        let about = [(message::TABLE_NAME, name.as_str())];
        self.ask(kind, libc::NLM_F_DUMP, family.protocol(), &about, &mut |found, attributes| {
            // Dumps of chains hold those of other tables too.
            let ours = attributes.string(message::TABLE_NAME) == Some(name.as_str().as_bytes());
            if found == family.protocol() && ours {
                each(attributes);
            }
        })
    }

    /// Calls `each` with every object of one kind in all tables, and its family (`NFPROTO_*`).
    pub(super) fn dump_all(&mut self, kind: i32, each: &mut dyn FnMut(u8, Attributes<'_>)) -> io::Result<()> {
        const NFPROTO_UNSPEC: u8 = 0;
        self.ask(kind, libc::NLM_F_DUMP, NFPROTO_UNSPEC, &[], each)
    }

    /// Calls `each` with every element of a set of a table.
    pub(super) fn dump_set(
        &mut self,
        family: Family,
        name: &TableName,
        set: &str,
        each: &mut dyn FnMut(Attributes<'_>),
    ) -> io::Result<()> {
        const ELEMENTS: u16 = 3;
        let about = [(message::TABLE_NAME, name.as_str()), (message::SET_NAME, set)];
        let kind = libc::NFT_MSG_GETSETELEM;
        self.ask(kind, libc::NLM_F_DUMP, family.protocol(), &about, &mut |_, attributes| {
            let elements = attributes.nested(ELEMENTS).into_iter().flatten();
            elements.for_each(|(_, element)| each(Attributes::new(element)));
        })
    }

    /// Sends a request with names as attributes, and reads the answer to its end.
    fn ask(
        &mut self,
        kind: i32,
        flags: i32,
        family: u8,
        about: &[(u16, &str)],
        each: &mut dyn FnMut(u8, Attributes<'_>),
    ) -> io::Result<()> {
        let number = self.next_sequence();
        let request = message::request(kind, flags, number, family, about);
        self.converse(&request, number, each)
    }

    /// The sequence number of the next request.
    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request with that sequence number, and calls `each` with what comes before its end.
    pub(super) fn converse(
        &mut self,
        request: &[u8],
        number: u32,
        each: &mut dyn FnMut(u8, Attributes<'_>),
    ) -> io::Result<()> {
        self.discard_leftovers();
        self.socket.send(request)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        let mut interrupted = false;
        loop {
            let Some(messages) = self.socket.receive(&mut self.buffer)? else {
                if !self.socket.wait(deadline.saturating_duration_since(Instant::now()))? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                continue;
            };
            for bytes in messages {
                let Some(message) = Message::parse(bytes?).filter(|message| message.sequence == number)
                else {
                    continue;
                };
                interrupted |= message.is_interrupted_dump();
                match message.content() {
                    Some(Content::Nftables { family: found, attributes, .. }) => {
                        each(found, attributes);
                    }
                    Some(Content::Done | Content::Answer(0)) if interrupted => {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                    Some(Content::Done | Content::Answer(0)) => return Ok(()),
                    Some(Content::Answer(code)) => {
                        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                    }
                    Some(Content::Other) | None => {}
                }
            }
        }
    }

    /// What came too late for an earlier question must not answer the next.
    fn discard_leftovers(&mut self) {
        loop {
            match self.socket.receive(&mut self.buffer) {
                Ok(Some(_)) => {}
                Err(error) if is_loss(&error) => {}
                // An error that stays is met again by the next question.
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// The socket overran, or a datagram was larger than the buffer.
pub(super) fn is_loss(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOSPC))
}

/// Repeats a dump that was interrupted by changes of the ruleset.
pub(super) fn undisturbed<T>(mut dump: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..DUMP_ATTEMPTS {
        match dump() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            settled => return settled,
        }
    }
    dump()
}
