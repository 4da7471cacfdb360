//! What was read from a socket and is still to be decoded.

/// Bytes that wait to be taken, in one piece.
#[derive(Debug, Default)]
pub(super) struct Bytes {
    buffer: Vec<u8>,
    /// What is not yet taken: `start..end` of the buffer.
    start: usize,
    end: usize,
}

impl Bytes {
    /// Room to read into, of `want` bytes or more.
    pub(super) fn space(&mut self, want: usize) -> &mut [u8] {
        if self.start == self.end || self.start >= want {
            // What was taken makes at least as much room as is wanted.
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < self.end + want {
            self.buffer.resize(self.end + want, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// `n` bytes of it were read.
    pub(super) fn filled(&mut self, n: usize) {
        self.end = self.buffer.len().min(self.end + n);
    }

    /// What is not yet taken.
    pub(super) fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// `n` bytes of it are taken.
    pub(super) fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start + n);
    }

    /// Memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.buffer.capacity()
    }
}
