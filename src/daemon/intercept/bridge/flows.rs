//! The flows that the C tcpcopys of one host have claimed: which connection of theirs gets the headers, and when a flow is
//! over, as they never say so.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::wire::{FlowId, FlowKey, TcpHeader, Time};

/// How long the target must be silent on a flow that it has closed until the flow is over.
const LINGER: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Flow {
    key: FlowKey,
    /// The connection that claimed it last.
    connection: usize,
    /// When the target said something last.
    last: Time,
    /// The target has closed it.
    closed: bool,
    /// It is in `ending`.
    ending: bool,
}

/// Flows by their names for the router, and by their ends.
#[derive(Debug)]
pub(super) struct Flows {
    all: HashMap<FlowId, Flow>,
    by_key: HashMap<FlowKey, FlowId>,
    next: u64,
    /// Closed flows, with the time at which they are over unless the target goes on.
    ending: VecDeque<(Time, FlowId)>,
    most: usize,
}

impl Flows {
    /// None, and never more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { all: HashMap::new(), by_key: HashMap::new(), next: 0, ending: VecDeque::new(), most }
    }

    /// From now on, no more than `most` are taken.
    pub(super) fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    /// A connection claims a flow. `None` if there is no room for it.
    pub(super) fn claim(&mut self, now: Time, key: FlowKey, connection: usize) -> Option<FlowId> {
        if let Some(id) = self.by_key.get(&key)
            && let Some(flow) = self.all.get_mut(id)
        {
            flow.connection = connection;
            flow.closed = false;
            return Some(*id);
        }
        if self.all.len() >= self.most {
            return None;
        }
        let id = FlowId(self.next);
        self.next += 1;
        self.all.insert(id, Flow { key, connection, last: now, closed: false, ending: false });
        self.by_key.insert(key, id);
        Some(id)
    }

    /// The target has sent something on a flow: whose it is, and which connection wants to know.
    pub(super) fn answer(&mut self, now: Time, id: FlowId, header: &TcpHeader) -> Option<(FlowKey, usize)> {
        let flow = self.all.get_mut(&id)?;
        flow.last = now;
        flow.closed |= header.flags.fin() || header.flags.rst();
        if flow.closed && !flow.ending {
            flow.ending = true;
            self.ending.push_back((now + LINGER, id));
        }
        Some((flow.key, flow.connection))
    }

    /// The router does not have that flow for us.
    pub(super) fn remove(&mut self, id: FlowId) -> Option<FlowKey> {
        let flow = self.all.remove(&id)?;
        self.by_key.remove(&flow.key);
        Some(flow.key)
    }

    /// A connection is gone, and its flows with it. They are to be released.
    pub(super) fn remove_all_of(&mut self, connection: usize) -> Vec<(FlowId, FlowKey)> {
        let theirs =
            |(id, flow): (&FlowId, &Flow)| (flow.connection == connection).then_some((*id, flow.key));
        let gone: Vec<_> = self.all.iter().filter_map(theirs).collect();
        for (id, _) in &gone {
            self.remove(*id);
        }
        gone
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, FlowKey)> {
        self.all.iter().map(|(id, flow)| (*id, flow.key))
    }

    /// Memory that they take, in bytes.
    pub(super) fn memory(&self) -> usize {
        // The capacity of a map is seven eighths of its buckets.
        let map = |capacity: usize, entry: usize| capacity * (entry + 1) * 8 / 7;
        map(self.all.capacity(), size_of::<(FlowId, Flow)>())
            + map(self.by_key.capacity(), size_of::<(FlowKey, FlowId)>())
            + self.ending.capacity() * size_of::<(Time, FlowId)>()
    }

    /// When [`Flows::poll_over`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.ending.front().map(|(due, _)| *due)
    }

    /// The next flow that is over by now, to be released.
    pub(super) fn poll_over(&mut self, now: Time) -> Option<(FlowId, FlowKey)> {
        while let Some((due, id)) = self.ending.pop_front() {
            if due > now {
                self.ending.push_front((due, id));
                return None;
            }
            let Some(flow) = self.all.get_mut(&id) else { continue };
            if !flow.closed {
                flow.ending = false;
            } else if flow.last + LINGER > now {
                self.ending.push_back((flow.last + LINGER, id));
            } else {
                return self.remove(id).map(|key| (id, key));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Flags, Seq};

    fn key(port: u16) -> FlowKey {
        FlowKey { client: ([10, 9, 0, 1], port).into(), server: ([10, 0, 0, 2], 80).into() }
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn header(flags: Flags) -> TcpHeader {
        TcpHeader::bare(Seq(1), Seq(1), flags, 1)
    }

    #[test]
    fn headers_go_to_the_connection_that_claimed_last() {
        let mut flows = Flows::new(2);
        let (one, two) = (flows.claim(at(0), key(1), 7), flows.claim(at(0), key(2), 8));
        assert_eq!((one, two), (Some(FlowId(0)), Some(FlowId(1))));
        assert_eq!(flows.claim(at(0), key(3), 7), None, "there is no room");
        assert_eq!(flows.claim(at(0), key(1), 8), one, "the same flow");
        assert_eq!(flows.answer(at(0), FlowId(0), &header(Flags::ACK)), Some((key(1), 8)));
        assert_eq!(flows.remove_all_of(7), []);
        assert_eq!(flows.remove(FlowId(0)), Some(key(1)));
        assert_eq!(flows.remove_all_of(8), [(FlowId(1), key(2))]);
        assert_eq!(flows.answer(at(0), FlowId(1), &header(Flags::ACK)), None);
        assert_eq!(flows.claim(at(0), key(1), 7), Some(FlowId(2)), "no name is used twice");
        assert_eq!(flows.iter().collect::<Vec<_>>(), [(FlowId(2), key(1))]);
    }

    #[test]
    fn a_flow_that_the_target_closed_is_over_once_it_is_silent() {
        for flag in [Flags::FIN, Flags::RST] {
            let mut flows = Flows::new(9);
            let id = flows.claim(at(0), key(1), 1).expect("room");
            flows.answer(at(1), id, &header(Flags::ACK));
            assert_eq!(
                (flows.poll_timeout(), flows.poll_over(at(5_000))),
                (None, None),
                "open, it may be idle"
            );
            flows.answer(at(5_000), id, &header(flag | Flags::ACK));
            flows.answer(at(5_004), id, &header(flag | Flags::ACK));
            assert_eq!(flows.poll_timeout(), Some(at(5_010)));
            assert_eq!(flows.poll_over(at(5_010)), None, "it has said something since");
            assert_eq!(flows.poll_timeout(), Some(at(5_014)));
            assert_eq!(flows.poll_over(at(5_014)), Some((id, key(1))));
            assert_eq!((flows.poll_over(at(5_014)), flows.poll_timeout()), (None, None));
        }
    }

    #[test]
    fn a_flow_that_is_claimed_again_is_not_over() {
        let mut flows = Flows::new(9);
        let id = flows.claim(at(0), key(1), 1).expect("room");
        for second in 0..9 {
            flows.answer(at(second), id, &header(Flags::FIN));
            flows.claim(at(second), key(1), 2);
        }
        assert_eq!(flows.ending.len(), 1);
        assert_eq!((flows.poll_over(at(10)), flows.ending.len()), (None, 0));
        flows.answer(at(20), id, &header(Flags::RST));
        flows.remove(id);
        assert_eq!((flows.poll_over(at(30)), flows.ending.len()), (None, 0), "gone by another way");
    }
}
