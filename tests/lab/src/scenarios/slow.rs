//! A target that is slower than the online server: requests wait for it in order, and none is dropped. For what happens
//! at the memory limit see [`super::outage`].

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::ongoing::by_connection;
use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive};
use crate::load::Pace;
use crate::network::Family;
use crate::nginx::Behaviour;
use crate::observer::Observer;

/// Connections, each of which makes ten requests a second.
const CONNECTIONS: u32 = 20;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for millis in [50, 500] {
        scenarios.push(Scenario::new(
            format!("slow/target-takes-{millis}-ms"),
            Offloads::On,
            move |context| waits(context, Duration::from_millis(millis)),
        ));
    }
    scenarios
}

/// A chain whose target takes `delay` for each request.
fn start(context: &Context, delay: Duration) -> Result<Chain> {
    let slow = Behaviour { delay: Some(delay), ..Behaviour::default() };
    let mut setup = Setup::new(context.plan(), Family::V4);
    setup.target_behaviour = Some(slow);
    setup.patience += delay;
    Chain::start(setup, &context.scratch)
}

/// All arrives, in order.
fn waits(context: &Context, delay: Duration) -> Result<String> {
    let mut chain = start(context, delay)?;
    let connections = keep_alive(usize::try_from(CONNECTIONS)?);
    let load = chain.load(Pace::Rate(CONNECTIONS * 10), connections, context.seconds(1))?;
    chain.run(load)?;
    let comparison = chain.expect_perfect(1)?;
    in_order(&mut chain)?;
    chain.finish()?;
    Ok(format!("{comparison}, in order"))
}

/// Fails if a connection's requests came to the target in another order than to the online server.
fn in_order(chain: &mut Chain) -> Result<()> {
    let seen = chain.target_observers().iter().flat_map(Observer::seen);
    let place: HashMap<u64, usize> = seen.enumerate().map(|(place, seen)| (seen.id, place)).collect();
    for ids in by_connection(chain.online_observers()).into_values() {
        let places: Vec<usize> = ids.iter().filter_map(|id| place.get(id)).copied().collect();
        ensure!(places.is_sorted(), "a session's requests came out of order: {ids:?} at {places:?}");
    }
    Ok(())
}
