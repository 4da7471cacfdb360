//! What must hold: after every step, and at the end of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tcpcopy::replayer::Replayer;
use tcpcopy::session::{End, Fate, Outcome};
use tcpcopy::wire::{FlowId, FlowKey};

use crate::dialogue::Dialogue;
use crate::scenario::{Close, Expect, Style};
use crate::world::World;

/// How long after the last captured packet the last session may end, if no client vanished.
const LONGEST_AFTER: Duration = Duration::from_secs(200);

/// After every step.
pub(crate) fn step(world: &World) -> Result<(), String> {
    if let Some(fault) = world.ledger.faults.first() {
        return Err(fault.clone());
    }
    let replayer = &world.replayer;
    let counters = replayer.counters();
    let counted = counters.taken.total() + counters.unused.total();
    if counted != world.captured {
        return Err(format!("{} packets captured, {counted} counted", world.captured));
    }
    let watch = &world.watch;
    let left = (counters.segments, counters.bytes, counters.answers.total(), counters.unanswered);
    let seen = (watch.segments, watch.bytes, watch.answers, watch.unanswered);
    if left != seen {
        return Err(format!("segments, bytes, answers, unanswered: {left:?} counted, {seen:?} seen"));
    }
    let ended = counters.ended.total();
    if counters.started != ended + replayer.sessions() as u64 {
        return Err(format!(
            "{} sessions began, {ended} ended, {} live",
            counters.started,
            replayer.sessions()
        ));
    }
    let fates = &counters.ledger.fates;
    let skipped = fates.of(Fate::Skipped);
    // What is skipped at a session's end is discarded with it.
    let lost = skipped
        + fates.of(Fate::Torn)
        + counters.ledger.missing
        + counters.ledger.discarded.of(End::Completed);
    if !(skipped..=lost).contains(&counters.skipped_bytes) {
        return Err(format!("{} bytes skipped, {skipped} to {lost} were lost", counters.skipped_bytes));
    }
    let held = replayer.buffered() as u64;
    let accounted = counters.settled_bytes() + held;
    if accounted != world.captured_bytes {
        return Err(format!(
            "{} bytes captured, {accounted} accounted for: {held} held, {:?}, discarded {:?}, unused {:?}",
            world.captured_bytes,
            counters.ledger.fates.nonzero().collect::<Vec<_>>(),
            counters.ledger.discarded.nonzero().collect::<Vec<_>>(),
            counters.unused_bytes.nonzero().collect::<Vec<_>>(),
        ));
    }
    if held > world.setup.memory_limit as u64 {
        return Err(format!("{held} bytes held, the limit is {}", world.setup.memory_limit));
    }
    if held > most_held(world) {
        return Err(format!("{held} bytes held, {} captured", world.captured_bytes));
    }
    if let Some(due) = replayer.poll_timeout()
        && due < world.now
    {
        return Err(format!("at {} us: a deadline at {} us", world.now.micros(), due.micros()));
    }
    Ok(())
}

/// What was captured and is not known to be acknowledged. A captured packet is held as a whole.
fn most_held(world: &World) -> u64 {
    let exact = world.setup.expect == Expect::Everything && world.setup.copies == 1;
    let acknowledged: u64 = if exact { world.ledger.heard.iter().sum() } else { 0 };
    let partly = world.replayer.sessions() as u64 * 65_535;
    world.captured_bytes.saturating_sub(acknowledged) + partly
}

/// The claims in force are those that were told.
pub(crate) fn claims(replayer: &Replayer, told: &BTreeMap<FlowId, FlowKey>) -> Result<(), String> {
    let mut count = 0;
    let same = replayer.claims().inspect(|_| count += 1).all(|(id, key)| told.get(&id) == Some(&key));
    if same && count == told.len() {
        Ok(())
    } else {
        Err("claims in force are not those that were told".to_owned())
    }
}

/// At the end, when no session is left.
pub(crate) fn end(world: &World) -> Result<(), String> {
    let counters = world.replayer.counters();
    if world.replayer.buffered() > 0 || world.replayer.claims().next().is_some() {
        return Err(format!("{} bytes and claims of no session", world.replayer.buffered()));
    }
    match world.setup.expect {
        Expect::Everything => everything(world)?,
        Expect::Accounted => accounted(world)?,
        Expect::Resumed => resumed(world)?,
    }
    if let Some((late, early)) = world.setup.keeps_up {
        keeps_up(world, late, early)?;
    }
    // A surplus that was doubted makes a pipelined request wait for a quiet time instead: late, but
    // not early.
    let pipelines =
        world.setup.styles.iter().any(|style| matches!(style, Style::Window(_) | Style::Trailing));
    if world.setup.strict_gate && world.setup.expect == Expect::Everything && !pipelines {
        let early = counters.exchanges.of(Outcome::TimedOut) + counters.exchanges.of(Outcome::Short);
        if early > 0 {
            return Err(format!("{early} gates opened before the response was there"));
        }
    }
    Ok(())
}

/// Requests do not fall behind, and do not leave before the response to the one before.
fn keeps_up(world: &World, late: Duration, early: u64) -> Result<(), String> {
    let lag = &world.replayer.counters().lag;
    let half = lag.quantile(500).unwrap_or_default();
    if half > late {
        return Err(format!("half of the requests left later than {half:?}"));
    }
    let ledger = &world.ledger;
    // While little is known, some are early on each connection.
    if ledger.early > 2 * world.dialogues().len() as u64 + ledger.requests * early / 1000 {
        return Err(format!("{} of {} requests left too early", ledger.early, ledger.requests));
    }
    Ok(())
}

fn everything(world: &World) -> Result<(), String> {
    let counters = world.replayer.counters();
    let copies = u32::from(world.setup.copies);
    for (dialogue, arrived) in world.dialogues().iter().zip(&world.ledger.arrived) {
        if let Some(index) = arrived.iter().position(|times| *times != copies) {
            let times = arrived[index];
            let ends: Vec<_> = counters.ended.nonzero().collect();
            return Err(format!(
                "request {}/{index} arrived {times} times; sessions ended {ends:?}",
                dialogue.id
            ));
        }
    }
    // One report for each, however often it left.
    let bursts =
        |dialogue: &Dialogue| dialogue.requests.iter().map(|r| r.burst).collect::<BTreeSet<_>>().len();
    let left = world.dialogues().iter().map(bursts).sum::<usize>() as u64 * u64::from(copies);
    if counters.exchanges.total() != left {
        let outcomes: Vec<_> = counters.exchanges.nonzero().collect();
        return Err(format!(
            "{left} bursts left, {} exchanges reported: {outcomes:?}",
            counters.exchanges.total()
        ));
    }
    let said = world.dialogues().iter().map(|dialogue| dialogue.stream.len() as u64).sum::<u64>();
    let delivered = counters.ledger.fates.of(Fate::Delivered);
    if delivered != said * u64::from(copies) {
        return Err(format!("{said} bytes said, {delivered} delivered"));
    }
    if counters.skipped_bytes > 0 {
        return Err(format!("{} bytes skipped", counters.skipped_bytes));
    }
    let ledger = &counters.ledger;
    if ledger.missing > 0 && world.setup.capture.loss == 0 {
        return Err(format!("{} bytes missing, and the capture lost nothing", ledger.missing));
    }
    let vanished = world.dialogues().iter().filter(|dialogue| dialogue.close == Close::Vanish).count() as u64;
    let ends = &counters.ended;
    let natural = ends.of(End::Completed) + ends.of(End::ClientReset);
    // A packet that the capture repeats after the end may begin a session that never joins.
    let connections = world.dialogues().len() as u64;
    let repeated = counters.started > connections * u64::from(copies);
    let expected = (connections - vanished) * u64::from(copies);
    if natural < expected {
        return Err(format!("sessions ended {:?}", ends.nonzero().collect::<Vec<_>>()));
    }
    let took = world.now - world.last_capture;
    if vanished == 0 && !repeated && took > LONGEST_AFTER {
        return Err(format!("the last session ended {took:?} after the last capture"));
    }
    Ok(())
}

/// Bytes of requests that never arrived are among those skipped or thrown away by the target.
fn accounted(world: &World) -> Result<(), String> {
    let ledger = &world.ledger;
    let mut missing = 0;
    for (dialogue, arrived) in world.dialogues().iter().zip(&ledger.arrived) {
        let lost = dialogue.requests.iter().zip(arrived).filter(|(_, times)| **times == 0);
        missing += lost.map(|(request, _)| request.len as u64).sum::<u64>();
    }
    let counters = world.replayer.counters();
    let mut known = counters.skipped_bytes + ledger.wasted;
    if world.setup.memory_limit < 1 << 30 {
        known += counters.ledger.discarded.of(End::Shed) + counters.unused_bytes.total();
        known += counters.ledger.fates.of(Fate::BeforeJoin) + counters.ledger.fates.of(Fate::Late);
    }
    if missing > known {
        return Err(format!("{missing} bytes did not arrive, {known} are accounted for"));
    }
    Ok(())
}

/// By the capture: what was whole before a hole, and what follows the next boundary.
fn resumed(world: &World) -> Result<(), String> {
    let zipped = world.dialogues().iter().zip(&world.ledger.arrived).zip(&world.seen);
    for ((dialogue, arrived), seen) in zipped {
        let mut ranges: Vec<_> = dialogue
            .packets
            .iter()
            .zip(seen)
            .filter(|(_, seen)| **seen)
            .map(|(p, _)| p.range.clone())
            .collect();
        ranges.sort_by_key(|range| range.start);
        let covered = |from: u64, to: u64| {
            ranges.iter().fold(from, |at, range| if range.start <= at { at.max(range.end) } else { at }) >= to
        };
        for (index, request) in dialogue.requests.iter().enumerate() {
            let burst = dialogue.requests[request.burst];
            // The burst before it must have come too, else nobody can tell that this one begins.
            let opened = dialogue.packets.iter().zip(seen).any(|(packet, seen)| packet.is_syn && *seen);
            if request.burst == 0 && !opened {
                continue;
            }
            let before = request.burst.checked_sub(1).map_or(0, |last| dialogue.requests[last].end() - 1);
            if covered(before.min(burst.offset), request.end()) && arrived[index] == 0 {
                return Err(format!("request {}/{index} was captured whole and did not arrive", dialogue.id));
            }
        }
    }
    Ok(())
}
