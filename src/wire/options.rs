//! TCP options (RFC 9293 section 3.2, RFC 7323, RFC 2018).

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const TIMESTAMPS: u8 = 8;

/// Room the options of [`TcpOptions::write`] can take, in bytes.
pub(super) const MAX_WRITTEN: usize = 24;

/// The largest shift RFC 7323 allows; a larger one is used as this.
const MAX_WINDOW_SCALE: u8 = 14;

/// The timestamps option, both fields as in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timestamps {
    /// `TSval`: the sender's clock.
    pub value: u32,
    /// `TSecr`: the receiver's clock, echoed.
    pub echo: u32,
}

/// The options a TCP peer acts on. Unknown ones are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpOptions {
    /// Maximum segment size.
    pub mss: Option<u16>,
    /// Window scale shift, at most 14.
    pub window_scale: Option<u8>,
    /// Selective acknowledgments are welcome.
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
}

impl TcpOptions {
    /// Reads the options of a header. What is malformed ends the list, as in every known stack;
    /// what came before it counts.
    pub fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while let [kind, rest @ ..] = bytes {
            match *kind {
                END => break,
                NOP => bytes = rest,
                kind => {
                    let Some((body, after)) =
                        rest.split_first().and_then(|(len, _)| split_option(bytes, *len))
                    else {
                        break;
                    };
                    options.set(kind, body);
                    bytes = after;
                }
            }
        }
        options
    }

    fn set(&mut self, kind: u8, body: &[u8]) {
        match (kind, body) {
            (MSS, &[a, b]) => self.mss = Some(u16::from_be_bytes([a, b])),
            (WINDOW_SCALE, &[shift]) => self.window_scale = Some(shift.min(MAX_WINDOW_SCALE)),
            (SACK_PERMITTED, &[]) => self.sack_permitted = true,
            (TIMESTAMPS, &[a, b, c, d, e, f, g, h]) => {
                self.timestamps = Some(Timestamps {
                    value: u32::from_be_bytes([a, b, c, d]),
                    echo: u32::from_be_bytes([e, f, g, h]),
                });
            }
            // Unknown, or known with a length it cannot have: passed over.
            (_, _) => {}
        }
    }

    /// Appends the options to `out`, padded to a multiple of four bytes.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if let Some(mss) = self.mss {
            out.extend_from_slice(&[MSS, 4]);
            out.extend_from_slice(&mss.to_be_bytes());
        }
        if self.sack_permitted {
            out.extend_from_slice(&[NOP, NOP, SACK_PERMITTED, 2]);
        }
        if let Some(Timestamps { value, echo }) = self.timestamps {
            out.extend_from_slice(&[NOP, NOP, TIMESTAMPS, 10]);
            out.extend_from_slice(&value.to_be_bytes());
            out.extend_from_slice(&echo.to_be_bytes());
        }
        if let Some(shift) = self.window_scale {
            out.extend_from_slice(&[NOP, WINDOW_SCALE, 3, shift]);
        }
    }
}

/// Splits the option at the front of `bytes`, whose length byte is `len`, into body and rest.
fn split_option(bytes: &[u8], len: u8) -> Option<(&[u8], &[u8])> {
    let (option, rest) = bytes.split_at_checked(usize::from(len))?;
    Some((option.get(2..)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: TcpOptions = TcpOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some(Timestamps { value: 1, echo: 2 }),
    };

    #[test]
    fn what_is_written_is_read_back() {
        let mut bytes = Vec::new();
        ALL.write(&mut bytes);
        assert!(bytes.len() <= MAX_WRITTEN && bytes.len().is_multiple_of(4));
        assert_eq!(TcpOptions::parse(&bytes), ALL);
    }

    #[test]
    fn unknown_options_are_passed_over() {
        let bytes = [34, 4, 9, 9, 2, 4, 5, 180, 254, 2, 3, 3, 20, 0, 99];
        let options = TcpOptions::parse(&bytes);
        assert_eq!(options.mss, Some(1460));
        assert_eq!(options.window_scale, Some(14));
    }

    #[test]
    fn lengths_that_lie_end_the_list() {
        for bytes in [&[2u8][..], &[2, 0], &[2, 1], &[2, 4, 5], &[8, 10, 0], &[77, 200, 1]] {
            assert_eq!(TcpOptions::parse(bytes), TcpOptions::default(), "{bytes:?}");
        }
        assert_eq!(TcpOptions::parse(&[3, 3, 2, 2, 9, 0]).window_scale, Some(2));
    }
}
