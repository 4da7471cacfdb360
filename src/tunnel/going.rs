//! What is to be written to a socket, bounded.

/// Bytes that wait to be written.
#[derive(Debug)]
pub(super) struct Going {
    bytes: Vec<u8>,
    /// How many of them are written.
    gone: usize,
    limit: usize,
    kept: usize,
}

impl Going {
    /// None; at most `limit` at a time, with room for at most `kept` when there are none.
    pub(super) fn new(limit: usize, kept: usize) -> Self {
        Self { bytes: Vec::new(), gone: 0, limit, kept }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether there is room for so many more.
    pub(super) fn has_room(&self, n: usize) -> bool {
        self.pending().len() + n <= self.limit
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Where more is appended.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.gone == self.bytes.len()
    }

    pub(super) fn pending(&self) -> &[u8] {
        self.bytes.get(self.gone..).unwrap_or_default()
    }

    /// What has been pushed from position `at` on, which was [`Going::end`] once; `None` if some of it is written.
    pub(super) fn since(&mut self, at: usize) -> Option<&mut [u8]> {
        self.bytes.get_mut(at..).filter(|_| at >= self.gone)
    }

    /// Where the next byte is pushed to.
    pub(super) fn end(&self) -> usize {
        self.bytes.len()
    }

    /// `n` bytes are written. Returns by how much positions are less now.
    pub(super) fn sent(&mut self, n: usize) -> usize {
        self.gone = self.bytes.len().min(self.gone + n);
        if self.gone == self.bytes.len() {
            // What a peer's slowness, or much at once, took is given back.
            if self.bytes.capacity() > self.kept {
                self.bytes = Vec::new();
            }
        } else if self.gone <= self.limit / 2 {
            return 0;
        }
        let moved = std::mem::take(&mut self.gone);
        self.bytes.drain(..moved.min(self.bytes.len()));
        moved
    }

    /// Gives its memory back if nothing waits.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            self.bytes = Vec::new();
            self.gone = 0;
        }
    }

    /// Memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }
}
