//! Many datagrams with one system call: recvmmsg(2) into buffers allocated once.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Datagrams taken by one call. More saves little: the call is then a few per cent of the work.
pub const BATCH: usize = 64;

const CACHE_LINE: usize = 64;
/// Room for one control message of a few words with each datagram.
const CONTROL: usize = 48;

/// Buffers for [`BATCH`] datagrams, and what the last [`receive`](Self::receive) put there.
pub struct ReceiveBatch {
    storage: Vec<u8>,
    stride: usize,
    controls: [Control; BATCH],
    received: [Slot; BATCH],
    count: usize,
}

/// Control messages (cmsg(3)), aligned as their headers are.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// One datagram of the last batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Its bytes, as many as fit.
    pub bytes: &'a [u8],
    /// True when it was longer than the buffer.
    pub truncated: bool,
    /// What the socket was asked to tell of it: control messages, as many bytes as fit.
    pub control: &'a [u8],
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    len: usize,
    truncated: bool,
    control: usize,
}

impl ReceiveBatch {
    /// Buffers for datagrams of up to `datagram` bytes each.
    ///
    /// The memory is zero pages until used, so large buffers cost what arrives in them.
    pub fn new(datagram: usize) -> Self {
        // An odd number of cache lines, so that the datagrams' beginnings do not all compete for one cache set.
        let stride = (datagram.max(1).div_ceil(CACHE_LINE) | 1) * CACHE_LINE;
        Self {
            storage: vec![0; stride * BATCH],
            stride,
            controls: [Control([0; CONTROL]); BATCH],
            received: [Slot::default(); BATCH],
            count: 0,
        }
    }

    /// Takes what is waiting at the socket, up to [`BATCH`] datagrams, without blocking; returns how many.
    ///
    /// Interrupted calls are repeated. `WouldBlock` when nothing waits. After an error the batch is empty.
    pub fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.count = 0;
        loop {
            match self.receive_once(fd) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// The datagrams of the last batch, oldest first.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = Datagram<'_>> {
        let buffers = self.storage.chunks_exact(self.stride).zip(&self.controls);
        buffers.zip(&self.received).take(self.count).map(|((buffer, Control(control)), slot)| Datagram {
            bytes: buffer.get(..slot.len).unwrap_or(buffer),
            truncated: slot.truncated,
            control: control.get(..slot.control).unwrap_or(control),
        })
    }

    /// True when the last batch was as large as can be, so that more may be waiting.
    pub fn is_full(&self) -> bool {
        self.count == BATCH
    }

    fn receive_once(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
        // SAFETY: `mmsghdr` is integers and raw pointers, for which all-zero bytes are valid (null pointers, no
        // name).
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        let buffers = self.storage.chunks_exact_mut(self.stride).zip(&mut self.controls);
        for ((header, vector), (buffer, control)) in headers.iter_mut().zip(&mut vectors).zip(buffers) {
            let buffer = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_iov = vector.write(buffer);
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL;
        }
        let length = libc::c_uint::try_from(BATCH).unwrap_or_default();
        // SAFETY: `headers` holds `length` entries, each pointing to one initialised iovec in `vectors`, which covers
        // one chunk of `storage`, and to an element of `controls` of the length given; chunks and elements are disjoint,
        // writable, and borrowed exclusively by `self`; headers, vectors and both outlive the call, which keeps no pointer. The timeout may be null. The descriptor is
        // open while borrowed.
        let count = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                length,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        self.count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (slot, header) in self.received.iter_mut().zip(&headers).take(self.count) {
            slot.len = usize::try_from(header.msg_len).unwrap_or(usize::MAX).min(self.stride);
            slot.truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            slot.control = header.msg_hdr.msg_controllen;
        }
        Ok(self.count)
    }
}

impl fmt::Debug for ReceiveBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveBatch")
            .field("stride", &self.stride)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn pair() -> (UnixDatagram, UnixDatagram) {
        UnixDatagram::pair().unwrap()
    }

    #[test]
    fn datagrams_come_in_order_and_whole() {
        let (near, far) = pair();
        let mut batch = ReceiveBatch::new(100);
        for i in 0..5u8 {
            far.send(&[i; 100][..usize::from(i) * 20]).unwrap();
        }

        assert_eq!(batch.receive(near.as_fd()).unwrap(), 5);

        for (i, datagram) in (0..5u8).zip(batch.datagrams()) {
            assert_eq!(
                datagram,
                Datagram { bytes: &[i; 100][..usize::from(i) * 20], truncated: false, control: &[] }
            );
        }
        assert!(!batch.is_full());
    }

    #[test]
    fn an_empty_socket_would_block_and_empties_the_batch() {
        let (near, far) = pair();
        let mut batch = ReceiveBatch::new(10);
        far.send(b"one").unwrap();
        batch.receive(near.as_fd()).unwrap();

        assert_eq!(batch.receive(near.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);

        assert_eq!(batch.datagrams().len(), 0);
    }

    #[test]
    fn a_long_datagram_is_cut_and_says_so() {
        let (near, far) = pair();
        let mut batch = ReceiveBatch::new(64);
        far.send(&[7; 500]).unwrap();
        far.send(&[8; 3]).unwrap();

        batch.receive(near.as_fd()).unwrap();

        let got: Vec<_> = batch.datagrams().collect();
        assert_eq!(got[0], Datagram { bytes: &[7; 64], truncated: true, control: &[] });
        assert_eq!(got[1], Datagram { bytes: &[8; 3], truncated: false, control: &[] });
    }

    #[test]
    fn a_full_batch_leaves_the_rest_for_the_next() {
        let (near, far) = pair();
        far.set_nonblocking(true).unwrap();
        let mut batch = ReceiveBatch::new(8);
        let mut sent = 0usize;
        let mut received = 0;
        while received < 3 * BATCH {
            while sent < 3 * BATCH && far.send(&sent.to_ne_bytes()).is_ok() {
                sent += 1;
            }
            received += batch.receive(near.as_fd()).unwrap();
            let last = batch.datagrams().last().unwrap().bytes.to_vec();
            assert_eq!(last, (received - 1).to_ne_bytes());
        }
        assert_eq!(received, 3 * BATCH);
    }
}
