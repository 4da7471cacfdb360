//! Between replayer and target: everything that leaves is looked at when it leaves, with what the replayer has been
//! told by then. What the target makes of it comes later.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tcpcopy::session::GateMode;
use tcpcopy::wire::{Flags, FlowId, FlowKey, TcpHeader, Time};

use crate::dialogue::{Dialogue, FRAMING, parse_framing};
use crate::packet::{FIN, RST, SYN, Segment};
use crate::scenario::Setup;
use crate::server::Ledger;

/// No target sends farther ahead of what is known: its windows are smaller.
const FAR: i64 = 200_000;
/// A target that says nothing more is not waited for less than this, and one that says nothing at all.
const SHORTEST_QUIET: Duration = Duration::from_millis(1);
const SHORTEST_SILENCE: Duration = Duration::from_millis(500);

/// All flows that are claimed, and what was counted.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    flows: BTreeMap<SocketAddr, Flow>,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
    pub(crate) connections: u64,
    pub(crate) answers: u64,
    /// Resets by the target of connections whose last burst it had acknowledged and not answered.
    pub(crate) unanswered: u64,
}

/// One connection to the target. Positions count from the byte after a SYN.
#[derive(Debug)]
struct Flow {
    id: FlowId,
    iss: Option<u32>,
    sent: u64,
    acked: u64,
    sent_at: Time,
    /// What has left while it was too little to tell whose it is.
    early: Vec<u8>,
    /// Dialogue, index of its first request here, and where that begins.
    base: Option<(usize, usize, u64)>,
    irs: Option<u32>,
    received: u64,
    ahead: Vec<(u64, u64)>,
    received_at: Time,
    fin: Option<u64>,
    /// The target's clock: as it is to be echoed, and the latest that came.
    echo: Option<(u32, u32)>,
    /// FIN has left.
    closed: bool,
    /// The target has said something since it had all that left.
    replied: bool,
    /// The last segment of the target ended a write.
    pushed: bool,
    /// The last burst that left: its gate, where it begins, and what had been received then.
    gate: u64,
    burst: u64,
    received_then: u64,
    /// By how much gates were ahead of what had been received, at most.
    credit: i64,
}

fn ahead_of(a: u32, b: u32) -> i64 {
    let distance = a.wrapping_sub(b);
    if distance < 1 << 31 { i64::from(distance) } else { i64::from(distance) - (1 << 32) }
}

/// How far a gate is ahead of what was received.
fn ahead(gate: u64, received: u64) -> i64 {
    i64::try_from(gate).expect("small") - i64::try_from(received).expect("small")
}

impl Flow {
    fn new(id: FlowId) -> Self {
        Self {
            id,
            iss: None,
            sent: 0,
            acked: 0,
            sent_at: Time::ZERO,
            early: Vec::new(),
            base: None,
            irs: None,
            received: 0,
            ahead: Vec::new(),
            received_at: Time::ZERO,
            fin: None,
            echo: None,
            closed: false,
            replied: false,
            pushed: false,
            gate: 0,
            burst: 0,
            received_then: 0,
            credit: 0,
        }
    }

    /// How far `seq` is from what is expected next, of the target.
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are offsets modulo 2^32")]
    fn ahead(&self, seq: u32) -> Option<i64> {
        Some(ahead_of(seq, self.irs?.wrapping_add(1).wrapping_add(self.received as u32)))
    }

    /// Takes in a segment's part of the target's stream.
    fn receive(&mut self, now: Time, header: &TcpHeader) {
        let Some(ahead) = self.ahead(header.seq.0).filter(|ahead| *ahead < FAR) else { return };
        let start = i64::try_from(self.received).expect("small") + ahead;
        let end = start + i64::from(header.payload_len) + i64::from(header.flags.fin());
        let Ok(end) = u64::try_from(end) else { return };
        if end <= self.received {
            return;
        }
        if header.flags.fin() {
            self.fin = Some(end);
        }
        self.ahead.push((u64::try_from(start.max(0)).expect("positive"), end));
        while let Some(at) = self.ahead.iter().position(|(start, _)| *start <= self.received) {
            let (_, end) = self.ahead.swap_remove(at);
            if end > self.received {
                (self.received, self.received_at) = (end, now);
            }
        }
    }

    /// Takes in the target's clock (RFC 7323, 4.3). Returns whether the segment is too old to count (5.3).
    fn is_outdated(&mut self, header: &TcpHeader) -> bool {
        let Some(((due, latest), stamp)) = self.echo.zip(header.options.timestamps) else { return false };
        let newest = |known: u32| if ahead_of(stamp.value, known) > 0 { stamp.value } else { known };
        let counts = self.ahead(header.seq.0).is_some_and(|ahead| (-FAR..=0).contains(&ahead));
        self.echo = Some((if counts { newest(due) } else { due }, newest(latest)));
        ahead_of(stamp.value, due) < 0
    }

    /// Whether the target's clock may be echoed so.
    fn may_echo(&self, echo: u32) -> bool {
        self.echo.is_none_or(|(due, latest)| ahead_of(echo, due) >= 0 && ahead_of(echo, latest) <= 0)
    }

    /// Bytes of the response received, without FIN.
    fn answer(&self) -> u64 {
        self.received - u64::from(self.fin == Some(self.received))
    }

    /// New bytes leave: they are the client's, and each request among them may.
    fn take(&mut self, now: Time, news: &[u8], setup: &Setup, ledger: &Ledger) -> Result<(), String> {
        let dialogues = &ledger.dialogues;
        let from = self.sent;
        self.sent += news.len() as u64;
        if self.base.is_none() {
            self.early.extend(news);
            let Some((id, index, _)) = parse_framing(&self.early) else {
                return if self.early.len() < FRAMING {
                    Ok(())
                } else {
                    Err("a connection begins in a request".into())
                };
            };
            let request = dialogues[id].requests[index];
            self.base = Some((id, index, request.offset));
            self.gate = if index == 0 { 0 } else { request.gate };
            self.credit = i64::try_from(self.gate).expect("small");
            if request.burst != index {
                return Err(format!("a connection begins with request {id}/{index}"));
            }
            if setup.copies == 1 && request.offset < ledger.heard[id] {
                return Err(format!("request {id}/{index} again, after it was acknowledged"));
            }
            // The greeting is the only thing that the first of all requests can have waited for. What came while its
            // first bytes left one by one is not told apart.
            return self.bursts(now, 0, setup, dialogues);
        }
        self.bursts(now, from, setup, dialogues)
    }

    /// Looks at the requests that begin at or after `from`, and have left.
    fn bursts(&mut self, now: Time, from: u64, setup: &Setup, dialogues: &[Dialogue]) -> Result<(), String> {
        let Some((id, first, base)) = self.base else { return Ok(()) };
        let begins = base + from..base + self.sent;
        let requests = &dialogues[id].requests;
        let next = requests.partition_point(|request| request.offset < begins.start);
        for (index, request) in requests.iter().enumerate().skip(next) {
            if !begins.contains(&request.offset) {
                break;
            }
            if request.gate > self.gate {
                let origin = if first == 0 { 0 } else { requests[first].gate };
                let may_leave = self.may_leave(now, request.gate, origin, setup);
                if setup.session.gate == GateMode::Response && !may_leave {
                    return Err(format!(
                        "request {id}/{index}, gate {}, left when {} bytes of {} had come, {} of them before the last",
                        request.gate,
                        self.answer(),
                        request.gate - origin,
                        self.received_then,
                    ));
                }
                (self.gate, self.burst, self.received_then) =
                    (request.gate, request.offset - base, self.received);
                self.credit = self.credit.max(ahead(self.gate, self.answer()));
            }
        }
        self.sent_at = now;
        Ok(())
    }

    /// Whether a burst may leave. In strict scenarios when the response is there; else what the target has said may
    /// be taken for all of it, but not at once.
    fn may_leave(&self, now: Time, gate: u64, origin: u64, setup: &Setup) -> bool {
        if setup.strict_gate {
            return self.answer() >= gate - origin;
        }
        // Measured from any burst: what a shorter answer lacked, or an earlier one had too much, is forgotten.
        let enough = self.credit >= ahead(gate, self.answer());
        // A write that has ended may be all of it, by what was learned of others.
        let some = self.replied && (self.pushed || now >= self.received_at + SHORTEST_QUIET);
        enough || some || now >= self.sent_at + SHORTEST_SILENCE
    }
}

impl Watch {
    pub(crate) fn claim(&mut self, id: FlowId, key: FlowKey) {
        self.flows.insert(key.client, Flow::new(id));
    }

    pub(crate) fn release(&mut self, id: FlowId, key: FlowKey) {
        if self.flows.get(&key.client).is_some_and(|flow| flow.id == id) {
            self.flows.remove(&key.client);
        }
    }

    /// A packet leaves.
    pub(crate) fn leaves(
        &mut self,
        now: Time,
        bytes: &[u8],
        setup: &Setup,
        ledger: &Ledger,
    ) -> Result<(), String> {
        let segment = Segment::read(bytes).ok_or("a packet that cannot be read, or has a wrong checksum")?;
        self.segments += 1;
        self.bytes += segment.payload.len() as u64;
        let fault = |what: &str| Err(format!("{} to {}: {what}", segment.src, segment.dst));
        let Some(flow) = self.flows.get_mut(&segment.src) else { return fault("nobody claimed its answers") };
        if segment.has(SYN) {
            self.connections += u64::from(flow.iss.is_none());
            let same = *flow.iss.get_or_insert(segment.seq) == segment.seq;
            return if same { Ok(()) } else { fault("SYN with another number") };
        }
        if segment.has(RST) {
            return Ok(());
        }
        let Some(iss) = flow.iss else { return fault("no SYN has left") };
        let Ok(from) = u64::try_from(ahead_of(segment.seq, iss.wrapping_add(1))) else {
            return fault("before the first byte");
        };
        if let Some((_, echo)) = segment.stamps
            && !flow.may_echo(echo)
        {
            return fault(&format!("an echo of {echo} where {:?} is due", flow.echo));
        }
        let to = from + segment.payload.len() as u64;
        if from > flow.sent + u64::from(segment.payload.is_empty()) {
            return fault("not in order");
        }
        if let Some(news) =
            segment.payload.get(usize::try_from(flow.sent.saturating_sub(from)).expect("small")..)
            && !news.is_empty()
        {
            flow.take(now, news, setup, ledger)?;
            flow.replied = false;
        }
        let (stream, base) = match flow.base {
            Some((id, _, base)) => (&ledger.dialogues[id].stream, base),
            None => (&flow.early, 0),
        };
        let range = usize::try_from(base + from).expect("small")..usize::try_from(base + to).expect("small");
        if !segment.payload.is_empty() && stream.get(range.clone()) != Some(&segment.payload[..]) {
            return fault("bytes that the client did not send there");
        }
        if segment.has(FIN) && flow.base.is_some() && range.end != stream.len() {
            return fault("FIN before the client's end");
        }
        if segment.has(FIN)
            && !std::mem::replace(&mut flow.closed, true)
            && let Some((id, ..)) = flow.base
            && ledger.dialogues[id].close.is_burst()
        {
            (flow.burst, flow.received_then) = (flow.sent, flow.received);
        }
        Ok(())
    }

    /// The replayer is told of a segment of the target.
    pub(crate) fn hears(
        &mut self,
        now: Time,
        id: FlowId,
        client: Option<SocketAddr>,
        header: &TcpHeader,
        ledger: &mut Ledger,
    ) {
        self.answers += 1;
        let Some(flow) = client.and_then(|client| self.flows.get_mut(&client)) else { return };
        if flow.id != id {
            return;
        }
        let Some(iss) = flow.iss else { return };
        let acked = ahead_of(header.ack.0, iss.wrapping_add(1));
        if header.flags.syn() {
            if header.flags.ack() && acked == 0 {
                if flow.irs.is_none() {
                    flow.irs = Some(header.seq.0);
                    flow.echo = header.options.timestamps.map(|stamp| (stamp.value, stamp.value));
                }
                flow.received_at = now;
            }
            return;
        }
        if header.flags.rst() {
            let over = flow.fin.is_some() && flow.acked > flow.sent;
            let believed = flow.ahead(header.seq.0) == Some(0) && !over;
            if believed && flow.acked > flow.burst && flow.received == flow.received_then {
                self.unanswered += 1;
            }
            return;
        }
        if !header.flags.ack() || acked > i64::try_from(flow.sent).expect("small") + 1 {
            return;
        }
        if flow.is_outdated(header) {
            return;
        }
        let before = flow.received;
        flow.receive(now, header);
        if header.payload_len > 0 {
            flow.pushed = header.flags.contains(Flags::PSH) || header.flags.fin();
        }
        let spoke = flow.received > before;
        let Ok(acked) = u64::try_from(acked) else { return };
        if flow.irs.is_none() {
            return;
        }
        flow.acked = flow.acked.max(acked);
        flow.replied |= spoke && flow.acked >= flow.sent;
        if let Some((id, _, base)) = flow.base {
            let end = ledger.dialogues[id].stream.len() as u64;
            ledger.heard[id] = ledger.heard[id].max((base + acked).min(end));
        }
    }
}
