//! The places of one response at which it may have ended: the candidates of [`super::learned`].

use std::time::Duration;

use super::learned::{Learned, Position};
use crate::wire::Time;

/// Candidates of one response that are told apart. The last place stands for all later ones.
const KEPT: usize = 4;

/// What the last segment of an in-order arrival says about the write it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteEnd {
    /// No PSH: the write goes on.
    None,
    /// PSH on a segment shorter than the MSS, or FIN.
    Short,
    /// PSH on a whole segment.
    Whole,
}

/// A candidate after which data came.
#[derive(Clone, Copy, Debug)]
struct Followed {
    /// Downstream offset of the candidate, from the connection's beginning.
    offset: u64,
    /// In microseconds: sessions are many.
    pause: u32,
    whole: bool,
}

/// Candidates of the response under way.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    followed: [Option<Followed>; KEPT],
    /// How many candidates there were, the current one included.
    count: u8,
    /// The candidate at which the response stands: when it came, and whether its segment was whole.
    current: Option<(Time, bool)>,
}

impl Candidates {
    /// Data arrived in order, before which the response ended at `received`.
    pub(super) fn arrived(&mut self, now: Time, received: u64, end: WriteEnd) {
        if let Some((at, whole)) = self.current {
            self.follow(now - at, received, whole);
        }
        self.current = match end {
            WriteEnd::None => None,
            WriteEnd::Short | WriteEnd::Whole => Some((now, end == WriteEnd::Whole)),
        };
        self.count = self.count.saturating_add(u8::from(self.current.is_some()));
    }

    /// The target has ended its stream, without more data.
    pub(super) fn finished(&mut self, now: Time) {
        if self.current.is_none() {
            self.arrived(now, 0, WriteEnd::Short);
        }
    }

    fn follow(&mut self, pause: Duration, offset: u64, whole: bool) {
        let index = usize::from(self.count.saturating_sub(1)).min(KEPT - 1);
        let pause = u32::try_from(pause.as_micros()).unwrap_or(u32::MAX);
        if let Some(place) = self.followed.get_mut(index) {
            let known = place.get_or_insert(Followed { offset, pause, whole });
            // Of those that share the last place the longest pause decides.
            known.pause = known.pause.max(pause);
        }
    }

    /// Since when the response stands at a candidate.
    pub(super) fn since(&self) -> Option<Time> {
        self.current.map(|(at, _)| at)
    }

    /// The position of the current candidate. `greeting`: no request has left yet; `longer`: production's response
    /// is shorter than what has come.
    pub(super) fn position(&self, greeting: bool, longer: bool) -> Position {
        let whole = self.current.is_some_and(|(_, whole)| whole);
        position(usize::from(self.count.saturating_sub(1)), whole, greeting, longer)
    }

    /// The response is over: tells `learned` after which candidates data followed. `expected`: the offset at which
    /// production's response ended.
    pub(super) fn conclude(&mut self, learned: &Learned, expected: u64, greeting: bool) {
        if self.count > 1 || self.current.is_none() {
            for (index, place) in self.followed.iter_mut().enumerate() {
                // What reaches production's length exactly opens the gate whatever follows.
                if let Some(Followed { offset, pause, whole }) = place.take()
                    && offset != expected
                {
                    let position = position(index, whole, greeting, offset > expected);
                    learned.followed(position, Duration::from_micros(pause.into()));
                }
            }
        }
        self.count = 0;
        self.current = None;
    }
}

fn position(index: usize, whole: bool, greeting: bool, longer: bool) -> Position {
    let index = u8::try_from(index).unwrap_or(u8::MAX);
    if longer {
        Position::Longer(index)
    } else if whole {
        Position::Whole
    } else if greeting {
        Position::Greeting
    } else {
        Position::Short(index)
    }
}
