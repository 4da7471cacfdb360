//! A processor for production alone. In life the clients, the target and the assistant are machines of their own; in the
//! laboratory they take turns with the online server, and that it waits for them says nothing about the replay.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};

use crate::sys;

/// How many there are, once production has the first of them; 0 before.
static ALL: AtomicUsize = AtomicUsize::new(0);

/// From now on this thread keeps to the first processor, with all that it starts: the clients and the online server.
pub(crate) fn give_production_one() -> Result<()> {
    let all = std::thread::available_parallelism().context("cannot count the processors")?.get();
    ensure!(all > 1, "production cannot have a processor for itself: there is one only");
    sys::keep_to(0..1).context("cannot choose a processor")?;
    ALL.store(all, Ordering::Relaxed);
    Ok(())
}

/// Has the program run on the other processors, if production has one for itself.
pub(crate) fn away_from_production(command: &mut Command) {
    let all = ALL.load(Ordering::Relaxed);
    if all > 1 {
        sys::run_on(command, 1..all);
    }
}
