//! Tells when somebody touches our tables, so that they can be put back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::link::is_loss;
use super::message::{Content, Message, TABLE_NAME};
use super::ruleset::TableName;
use crate::sys::nfnl::{Buffer, Socket};

/// A listener for changes of the ruleset. Non-blocking; readable when [`RulesWatch::drain`] has something to read.
pub struct RulesWatch {
    socket: Socket,
    buffer: Buffer,
    table: TableName,
}

/// What happened to our tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Something was added, changed or removed, perhaps by ourselves: ask [`super::present`].
    Touched,
    /// Events were lost: ask [`super::present`] as well.
    Unknown,
}

impl RulesWatch {
    /// Listens for changes of the tables called `table`, of any family. Start it before the rules are installed, so
    /// that nothing goes unseen.
    pub fn open(table: TableName) -> io::Result<Self> {
        let groups = [libc::NFNLGRP_NFTABLES.cast_unsigned()];
        Ok(Self { socket: Socket::open(&groups)?, buffer: Buffer::default(), table })
    }

    /// Reads all events that wait.
    pub fn drain(&mut self) -> io::Result<Change> {
        let mut change = Change::None;
        loop {
            match self.socket.receive(&mut self.buffer) {
                Ok(None) => return Ok(change),
                Ok(Some(messages)) => {
                    for message in messages {
                        match message.ok().and_then(|bytes| concerns(bytes, &self.table)) {
                            Some(true) if change == Change::None => change = Change::Touched,
                            Some(_) => {}
                            None => change = Change::Unknown,
                        }
                    }
                }
                Err(error) if is_loss(&error) => change = Change::Unknown,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for RulesWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether an event is about a table, chain, set or rule of ours; `None` if it cannot be read.
fn concerns(bytes: &[u8], table: &TableName) -> Option<bool> {
    let Content::Nftables { kind, attributes, .. } = Message::parse(bytes)?.content()? else {
        return Some(false);
    };
    let of_a_table = matches!(
        kind,
        libc::NFT_MSG_NEWTABLE
            | libc::NFT_MSG_DELTABLE
            | libc::NFT_MSG_NEWCHAIN
            | libc::NFT_MSG_DELCHAIN
            | libc::NFT_MSG_NEWSET
            | libc::NFT_MSG_DELSET
            | libc::NFT_MSG_NEWRULE
            | libc::NFT_MSG_DELRULE
    );
    Some(of_a_table && attributes.string(TABLE_NAME) == Some(table.as_str().as_bytes()))
}
