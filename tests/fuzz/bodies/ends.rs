//! What holds of both kinds of tunnel, ours and the C tools': what their bodies share.

use std::fmt::Debug;

use tcpcopy::tunnel::{Endpoint, Limits};
use tcpcopy::wire::Time;

/// What may wait to be written, in bytes: so little that inputs fill it.
pub(super) const OUTPUT: usize = 4 << 10;

pub(super) fn limits() -> Limits {
    Limits { output: OUTPUT, ..Limits::default() }
}

/// Where a connection stands, as its events say.
#[derive(Debug, PartialEq)]
pub(super) enum Stage {
    Before,
    /// There was a hello, which is still to be answered.
    Greeted,
    Open,
    Over,
}

/// An end tells the same of the same bytes in one piece and in pieces of `size`.
pub(super) fn in_pieces<E: Endpoint, T: Debug + PartialEq>(
    stream: &[u8],
    size: usize,
    new: impl Fn() -> E,
    poll_event: impl Fn(&mut E) -> Option<T>,
) {
    let events = |size: usize| {
        let mut end = new();
        let mut events = Vec::new();
        for piece in stream.chunks(size) {
            end.handle_bytes(Time::ZERO, piece);
            events.extend(std::iter::from_fn(|| poll_event(&mut end)));
        }
        events
    };
    assert_eq!(events(size), events(usize::MAX));
}
