//! Netlink messages as bytes: a writer for requests and a defensive reader for what comes back.
//!
//! Pure code: no socket is touched here. Layouts are those of `include/uapi/linux/netlink.h`. Headers are in host
//! byte order, which is why numbers are written with `to_ne_bytes`; payloads that the kernel wants in network order
//! are converted by the caller. The reader trusts no length: a message or attribute that claims more than is there,
//! or less than its own header, ends the iteration with [`Malformed`].

/// Size of `struct nlmsghdr`.
pub const HEADER_LEN: usize = 16;
/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: answer with an error message also on success.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP`: all objects of the kind.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`: in place of an object that exists.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: fail when the object exists.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`: make the object when it does not exist.
pub const CREATE: u16 = 0x400;
/// `NLMSG_ERROR`: the answer to a request, with a negative errno or 0.
pub const ERROR: u16 = 0x2;
/// `NLMSG_DONE`: the end of a list.
pub const DONE: u16 = 0x3;
/// `NLM_F_APPEND`: add beside existing objects.
pub const APPEND: u16 = 0x800;

const ATTRIBUTE_HEADER_LEN: usize = 4;
/// `NLA_TYPE_MASK`: the two highest bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// A length in a message contradicts the bytes that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a netlink message's lengths contradict each other")]
pub struct Malformed;

/// One netlink message: its header's type and sequence number, and what follows the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_seq`, as the request had it.
    pub seq: u32,
    /// Everything after the header.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// The errno (0 on success) when this is an error message.
    pub fn error(&self) -> Option<Result<i32, Malformed>> {
        (self.kind == ERROR).then(|| {
            let bytes = self.body.first_chunk::<4>().ok_or(Malformed)?;
            Ok(i32::from_ne_bytes(*bytes).saturating_neg())
        })
    }
}

/// The messages of one datagram.
///
/// After an `Err` the iteration ends: with a wrong length there is no next message to find.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    walk(datagram, next_message)
}

/// One attribute: its type without the flag bits, and its payload without the padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// `nla_type & NLA_TYPE_MASK`.
    pub kind: u16,
    /// The attribute's own bytes.
    pub payload: &'a [u8],
}

impl Attribute<'_> {
    /// The payload as a number in network byte order, as nfnetlink sends them.
    pub fn be32(&self) -> Option<u32> {
        self.payload.try_into().ok().map(u32::from_be_bytes)
    }
}

/// The attributes in `bytes`, ending after the first malformed one.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, Malformed>> {
    walk(bytes, next_attribute)
}

/// Takes one item off the front; what is left follows it.
type Step<'a, T> = fn(&'a [u8]) -> Result<(T, &'a [u8]), Malformed>;

fn walk<'a, T: 'a>(mut rest: &'a [u8], step: Step<'a, T>) -> impl Iterator<Item = Result<T, Malformed>> + 'a {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (item, next) = match step(rest) {
            Ok((item, next)) => (Ok(item), next),
            Err(malformed) => (Err(malformed), &[][..]),
        };
        rest = next;
        Some(item)
    })
}

fn next_message(bytes: &[u8]) -> Result<(Message<'_>, &[u8]), Malformed> {
    let (header, _) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed)?;
    let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
    let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).map_err(|_| Malformed)?;
    let body = bytes.get(HEADER_LEN..len).ok_or(Malformed)?;
    let message =
        Message { kind: u16::from_ne_bytes([k0, k1]), seq: u32::from_ne_bytes([s0, s1, s2, s3]), body };
    Ok((message, after(bytes, len)))
}

fn next_attribute(bytes: &[u8]) -> Result<(Attribute<'_>, &[u8]), Malformed> {
    let (header, _) = bytes.split_first_chunk::<ATTRIBUTE_HEADER_LEN>().ok_or(Malformed)?;
    let [l0, l1, k0, k1] = *header;
    let len = usize::from(u16::from_ne_bytes([l0, l1]));
    let payload = bytes.get(ATTRIBUTE_HEADER_LEN..len).ok_or(Malformed)?;
    Ok((Attribute { kind: u16::from_ne_bytes([k0, k1]) & TYPE_MASK, payload }, after(bytes, len)))
}

/// What follows the first `len` bytes and their padding. The kernel leaves the last one's padding out.
fn after(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(len.next_multiple_of(4)..).unwrap_or_default()
}

/// One or more messages being written into one buffer, to be sent in one go.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    message: usize,
}

/// The place of a nested attribute that is still open.
#[derive(Debug)]
#[must_use = "an open attribute has no length until it is ended"]
pub struct Nest(usize);

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a message; what is written until the next `begin` belongs to it.
    pub fn begin(&mut self, kind: u16, flags: u16, seq: u32) {
        self.message = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.close(self.message, 4);
    }

    /// Appends a family's fixed header or other raw bytes, padded to four.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self.close(self.message, 4);
    }

    /// Appends one attribute. Payloads of this project are a few bytes; one over 64 KiB would be cut.
    pub fn attribute(&mut self, kind: u16, payload: &[u8]) {
        let nest = self.open(kind);
        self.bytes.extend_from_slice(payload);
        self.close(nest.0, 2);
        self.pad();
        self.close(self.message, 4);
    }

    /// Opens an attribute that holds attributes.
    pub fn nest(&mut self, kind: u16) -> Nest {
        self.open(kind | NESTED)
    }

    /// Ends what [`nest`](Self::nest) opened.
    #[expect(clippy::needless_pass_by_value, reason = "an attribute is ended once")]
    pub fn end(&mut self, nest: Nest) {
        self.close(nest.0, 2);
        self.close(self.message, 4);
    }

    /// The finished messages.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets all messages and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.message = 0;
    }

    fn open(&mut self, kind: u16) -> Nest {
        let nest = Nest(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        nest
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Writes the length of what began at `start` into its first `width` bytes.
    fn close(&mut self, start: usize, width: usize) {
        let len = self.bytes.len() - start;
        let Some(field) = self.bytes.get_mut(start..start + width) else { return };
        if width == 2 {
            field.copy_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
        } else {
            field.copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(bytes: &[u8]) -> Vec<Result<(u16, usize), Malformed>> {
        attributes(bytes).map(|a| a.map(|a| (a.kind, a.payload.len()))).collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::new();
        writer.begin(16, REQUEST | ACK, 7);
        writer.put(&[1, 2, 3, 4]);
        writer.attribute(3, b"sink\0");
        let nest = writer.nest(18);
        writer.attribute(1, b"ifb");
        writer.end(nest);
        writer.begin(17, REQUEST, 8);

        let read: Vec<_> = messages(writer.bytes()).collect::<Result<_, _>>().unwrap();

        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].seq), (16, 7));
        assert_eq!((read[1].kind, read[1].seq, read[1].body.len()), (17, 8, 0));
        let outer: Vec<_> = attributes(&read[0].body[4..]).collect::<Result<_, _>>().unwrap();
        assert_eq!(outer[0], Attribute { kind: 3, payload: b"sink\0" });
        assert_eq!(kinds(outer[1].payload), [Ok((1, 3))]);
    }

    #[test]
    fn a_cleared_writer_starts_over() {
        let mut writer = Writer::new();
        writer.begin(1, 0, 1);
        writer.put(&[0; 40]);
        writer.clear();
        writer.begin(2, 0, 2);
        assert_eq!(writer.bytes().len(), HEADER_LEN);
        assert_eq!(messages(writer.bytes()).next().unwrap().unwrap().kind, 2);
    }

    #[test]
    fn attribute_lengths_that_lie_end_the_walk() {
        let short = 3u16.to_ne_bytes();
        let long = 9u16.to_ne_bytes();
        let zero = 0u16.to_ne_bytes();
        assert_eq!(kinds(&[short[0], short[1], 1, 0, 9, 9, 9, 9]), [Err(Malformed)]);
        assert_eq!(kinds(&[zero[0], zero[1], 1, 0, 9, 9, 9, 9]), [Err(Malformed)]);
        assert_eq!(kinds(&[long[0], long[1], 1, 0, 9, 9, 9, 9]), [Err(Malformed)]);
        assert_eq!(kinds(&[4]), [Err(Malformed)]);
        assert_eq!(kinds(&[]), []);
    }

    #[test]
    fn an_unpadded_last_attribute_is_whole() {
        let len = 5u16.to_ne_bytes();
        assert_eq!(kinds(&[len[0], len[1], 10, 0, 0xaa]), [Ok((10, 1))]);
    }

    #[test]
    fn flag_bits_are_not_part_of_the_type() {
        let (len, kind) = (4u16.to_ne_bytes(), 0x800a_u16.to_ne_bytes());
        assert_eq!(kinds(&[len[0], len[1], kind[0], kind[1]]), [Ok((10, 0))]);
    }

    #[test]
    fn message_lengths_that_lie_end_the_walk() {
        let mut writer = Writer::new();
        writer.begin(1, 0, 1);
        let whole = writer.bytes().to_vec();
        for len in [0u32, 15, 17, u32::MAX] {
            let mut bytes = whole.clone();
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(messages(&bytes).collect::<Vec<_>>(), [Err(Malformed)], "length {len}");
        }
        assert_eq!(messages(&whole[..15]).collect::<Vec<_>>(), [Err(Malformed)]);
    }

    #[test]
    fn errors_carry_a_positive_errno() {
        let error = |body: &[u8]| Message { kind: ERROR, seq: 0, body }.error();
        assert_eq!(error(&(-2i32).to_ne_bytes()), Some(Ok(2)));
        assert_eq!(error(&0i32.to_ne_bytes()), Some(Ok(0)));
        assert_eq!(error(&i32::MIN.to_ne_bytes()), Some(Ok(i32::MAX)));
        assert_eq!(error(&[1, 2]), Some(Err(Malformed)));
        assert_eq!(Message { kind: 3, seq: 0, body: &[] }.error(), None);
    }
}
