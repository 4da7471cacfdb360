//! What is to be written to a socket, bounded.

/// Room that it keeps when it is empty.
const KEPT: usize = 64 << 10;

/// Bytes that wait to be written.
#[derive(Debug)]
pub(super) struct Going {
    bytes: Vec<u8>,
    /// How many of them are written.
    gone: usize,
    limit: usize,
}

impl Going {
    /// None; at most `limit` at a time.
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), gone: 0, limit }
    }

    /// Whether there is room for so many more.
    pub(super) fn has_room(&self, n: usize) -> bool {
        self.pending().len() + n <= self.limit
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn pending(&self) -> &[u8] {
        self.bytes.get(self.gone..).unwrap_or_default()
    }

    pub(super) fn sent(&mut self, n: usize) {
        self.gone = self.bytes.len().min(self.gone + n);
        if self.gone == self.bytes.len() {
            self.bytes.clear();
            self.gone = 0;
            // What a peer's slowness took is given back.
            if self.bytes.capacity() > KEPT {
                self.bytes = Vec::new();
            }
        } else if self.gone > self.limit / 2 {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
    }

    /// Memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }
}
