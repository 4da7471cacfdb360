//! How segments leave: each by a raw socket; or trains of them by a packet socket, to be cut behind this program.
//!
//! A train goes past the routing table, the neighbours and netfilter's output hook, so its way is looked up here, and is
//! known for a second at most. While there is none, or it is not one that takes trains, they are cut here. All
//! else, the handshake and what is sent again with it, takes the kernel's own way: neighbours are found that way.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::tcpcopy::Segmentation;
use crate::daemon::exit::Failure;
use crate::daemon::start::cannot;
use crate::replayer::Transmit;
use crate::sys::handover::Kind;
use crate::sys::packet::IpVersion;
use crate::sys::raw::RawSender;
use crate::sys::route::{self, NextHop};
use crate::sys::trains::{TrainPacket, TrainSender};
use crate::wire::{self, Fragments, Outgoing, Tally, Time, Train};

/// How long a way is taken to be as it was.
const FRESH: Duration = Duration::from_secs(1);

/// Why a segment was not sent. The target misses it, and it is sent again in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SendError {
    /// The network stack's queues are full: EAGAIN, ENOBUFS.
    Busy,
    /// A firewall rule of this host refused it: EPERM.
    Refused,
    /// Longer than the route's MTU: EMSGSIZE.
    TooLong,
    /// No way to the target: EHOSTUNREACH, ENETUNREACH.
    Unreachable,
    /// Held back because an intercept's host is open.
    Withheld,
    /// Anything else.
    Other,
}

crate::counted!(SendError {
    Busy => "send_busy",
    Refused => "send_refused",
    TooLong => "send_too_long",
    Unreachable => "send_unreachable",
    Withheld => "send_withheld",
    Other => "send_other",
});

impl SendError {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS) => Self::Busy,
            Some(libc::EPERM | libc::EACCES) => Self::Refused,
            Some(libc::EMSGSIZE) => Self::TooLong,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) => Self::Unreachable,
            Some(_) | None => Self::Other,
        }
    }
}

/// What was sent, and what was not.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent {
    pub(super) errors: Tally<SendError>,
    /// Trains that left as one packet.
    pub(super) trains: u64,
}

impl Sent {
    /// Adds another worker's counters to these.
    pub(super) fn merge(&mut self, other: &Self) {
        self.errors.merge(&other.errors);
        self.trains += other.trains;
    }

    /// Counts a segment, or train of segments, that is held back. To its session it is lost on the way: the session waits,
    /// and sends it again.
    pub(super) fn withhold(&mut self, transmit: &Transmit) {
        let segments = transmit.header.payload_len.div_ceil(transmit.segment.max(1)).max(1);
        self.errors.add(SendError::Withheld, segments.into());
    }

    fn note(&mut self, sent: io::Result<()>, segments: u64, dst: SocketAddr) {
        if let Err(error) = sent {
            tracing::debug!(%error, %dst, segments, "not sent");
            self.errors.add(SendError::of(&error), segments);
        }
    }
}

/// The sockets that segments leave by.
///
/// IPv4 packets with addresses that are not this host's may be fragmented by routers on the way: none of them answers
/// "fragmentation needed" then, which would go to a client. The kernel gives each an identification; trains, which it
/// sends as they are, have theirs from here.
#[derive(Debug)]
pub(super) struct Departures {
    raw: RawSender,
    own_addresses: bool,
    trains: Option<Trains>,
    /// A segment that was cut off a train.
    segment: Outgoing,
}

#[derive(Debug)]
struct Trains {
    sender: TrainSender,
    mark: u32,
    /// The way to each target, if there is one for trains, and since when that is so.
    ways: Vec<(IpAddr, Option<NextHop>, Time)>,
    /// Of the next train's first segment.
    identification: u16,
}

impl Departures {
    /// The sockets they are opened from, CAP_NET_RAW being needed for these.
    pub(super) fn kinds(segmentation: Segmentation) -> impl Iterator<Item = Kind> {
        let trains = match segmentation {
            Segmentation::Own => None,
            Segmentation::Offload => Some(TrainSender::KIND),
        };
        RawSender::kinds().into_iter().chain(trains)
    }

    /// Opens them; what they send carries `mark`.
    /// They are of this host's own addresses, or of others.
    pub(super) fn open(mark: u32, segmentation: Segmentation, own_addresses: bool) -> Result<Self, Failure> {
        let trains = match segmentation {
            Segmentation::Own => None,
            Segmentation::Offload => Some(TrainSender::open(mark).map_err(|error| no_trains(&error))?),
        };
        let mut segment = Outgoing::default();
        segment.set_fragments(fragments(own_addresses, 0));
        Ok(Self {
            raw: RawSender::open(mark).map_err(cannot("open sockets to send by"))?,
            own_addresses,
            trains: trains.map(|sender| Trains { sender, mark, ways: Vec::new(), identification: 1 }),
            segment,
        })
    }

    /// Sends what is to be sent; its payload is in `outgoing`.
    pub(super) fn send(&mut self, now: Time, what: &Transmit, outgoing: &mut Outgoing, sent: &mut Sent) {
        let Transmit { src, dst, header, segment } = what;
        outgoing.set_fragments(fragments(self.own_addresses, 0));
        if header.payload_len <= *segment {
            return sent.note(raw(&self.raw, outgoing, (*src, *dst), header), 1, *dst);
        }
        let segments = u64::from(header.payload_len.div_ceil(*segment));
        let Some(trains) = &mut self.trains else { return self.cut(what, outgoing, sent) };
        outgoing.set_fragments(fragments(self.own_addresses, trains.identify(segments)));
        match trains.send(now, what, outgoing) {
            None => self.cut(what, outgoing, sent),
            Some(result) => {
                sent.trains += u64::from(result.is_ok());
                sent.note(result, segments, *dst);
            }
        }
    }

    /// Sends the segments of a train one by one.
    fn cut(&mut self, what: &Transmit, outgoing: &Outgoing, sent: &mut Sent) {
        for (header, body) in wire::cut(&what.header, outgoing.body(), what.segment) {
            self.segment.payload().extend_from_slice(body);
            sent.note(raw(&self.raw, &mut self.segment, (what.src, what.dst), &header), 1, what.dst);
        }
    }
}

/// What is said of fragments in packets from this host's addresses, or from others.
fn fragments(own_addresses: bool, identification: u16) -> Fragments {
    if own_addresses { Fragments::Forbidden } else { Fragments::Allowed(identification) }
}

impl Trains {
    /// The identification of the first of so many segments, those of the others following it; never 0.
    fn identify(&mut self, segments: u64) -> u16 {
        let first = self.identification;
        let step = u16::try_from(segments % u64::from(u16::MAX)).unwrap_or(1);
        self.identification = first.wrapping_add(step).max(1);
        first
    }

    /// Sends one; `None` if there is no way that takes it.
    fn send(&mut self, now: Time, what: &Transmit, outgoing: &mut Outgoing) -> Option<io::Result<()>> {
        let hop = self.way(now, what.dst.ip())?;
        let train = outgoing.finish_train(what.src, what.dst, &what.header)?;
        let packet = fitting(&hop, what, &train)?;
        match self.sender.send(&hop, &packet) {
            Err(error) if !is_full(&error) => {
                tracing::debug!(%error, dst = %what.dst, "trains are cut here for a while");
                self.note_way(now, what.dst.ip(), None);
                None
            }
            result => Some(result),
        }
    }

    fn way(&mut self, now: Time, target: IpAddr) -> Option<NextHop> {
        let known = self.ways.iter().find(|(address, ..)| *address == target);
        if let Some((_, hop, _)) = known.filter(|(.., since)| now < *since + FRESH) {
            return *hop;
        }
        let hop = route::next_hop(target, self.mark).unwrap_or_else(|error| {
            tracing::debug!(%error, %target, "no way for trains");
            None
        });
        self.note_way(now, target, hop);
        hop
    }

    fn note_way(&mut self, now: Time, target: IpAddr, hop: Option<NextHop>) {
        self.ways.retain(|(address, ..)| *address != target);
        self.ways.push((target, hop, now));
    }
}

/// The train as the socket takes it; `None` if its segments are too long for the way.
fn fitting<'a>(hop: &NextHop, what: &Transmit, train: &Train<'a>) -> Option<TrainPacket<'a>> {
    let segment = u16::try_from(what.segment).ok()?;
    let longest = train.ip_header + train.tcp_header + usize::from(segment);
    let version = if what.dst.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
    let headers = (train.ip_header, train.tcp_header);
    (u32::try_from(longest).ok()? <= hop.mtu).then_some(TrainPacket {
        bytes: train.packet,
        version,
        headers,
        segment,
    })
}

/// Whether the next packet may well find room.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS))
}

fn raw(
    sender: &RawSender,
    outgoing: &mut Outgoing,
    (src, dst): (SocketAddr, SocketAddr),
    header: &wire::TcpHeader,
) -> io::Result<()> {
    match outgoing.finish(src, dst, header) {
        Some(packet) => sender.send(packet, dst),
        None => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A sandbox without leave for packet sockets says that there are none.
fn no_trains(error: &io::Error) -> Failure {
    Failure::system(
        "cannot open a packet socket for segmentation = \"offload\"",
        error,
        "as a service it takes RestrictAddressFamilies=AF_PACKET (systemctl edit tcpcopy)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_that_forbids_packet_sockets_is_known_for_what_it_is() {
        let failure = no_trains(&io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        assert!(failure.message.contains("offload") && failure.message.contains("AF_PACKET"), "{failure}");
    }
}
