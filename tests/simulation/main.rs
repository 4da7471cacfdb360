//! The replayer against two independent TCP stacks, in virtual time.
//!
//! A run is a function of its scenario family and seed. It makes up clients and an online server,
//! plays what a capture would have seen of the clients to the real [`tcpcopy::replayer::Replayer`],
//! carries its packets to a target with a checking application, and the target's answers back through
//! a model of intercept and tunnel. The target's TCP is smoltcp or, for what smoltcp cannot do, one that is
//! scripted here and takes nothing of ours: the seed decides, or the family. Every leg loses, delays, repeats,
//! reorders and corrupts as the scenario says. What must hold is in `check` and, of all that leaves, in `watch`.
//!
//! A damaged packet has a wrong checksum. The target's TCP sees that. On the way in the simulation's model drops it by
//! [`tcpcopy::wire::is_damaged`], as the network card of a host does; the programs leave it to the card and check none.
//! What nobody can see is not simulated: two wrong bits that cancel out; and damage to a response that the
//! intercept's queue copies in part, if the network card does not check it. Of a response only the headers count, so no
//! upstream byte is altered by that, but an acknowledgment that never was can lose some.
//!
//! A failure prints the line that repeats it. `SIM_RUNS=100000` tries that many seeds of every
//! family, from a start that `SIM_SEED` can set; the families run side by side.
//!
//! | file | subject |
//! |---|---|
//! | `scenario` | what a run is made of, and the table of families |
//! | `dialogue`, `client` | what the capture sees of clients |
//! | `target`, `server` | the target's stacks and its application |
//! | `packet` | packets, by a codec that is not the one tested |
//! | `link`, `intercept`, `tunnel` | what lies between |
//! | `world` | the loop |
//! | `watch`, `check` | the invariants |
//! | `rng` | chance |

#![expect(clippy::indexing_slicing, reason = "an index out of bounds is a failed test")]

mod check;
mod client;
mod dialogue;
mod intercept;
mod link;
mod packet;
mod rng;
mod scenario;
mod server;
mod target;
mod tunnel;
mod watch;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use rng::Rng;
use scenario::Scenario;
use world::World;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Tries the seeds of a family.
fn family(name: &str) {
    if let Ok(only) = std::env::var("SIM_SCENARIO")
        && only != name
    {
        println!("skipped: SIM_SCENARIO={only}");
        return;
    }
    let scenario = Scenario::named(name);
    let (first, runs) = match (setting("SIM_SEED"), setting("SIM_RUNS")) {
        (Some(seed), runs) => (seed, runs.unwrap_or(1)),
        (None, Some(runs)) => (0, runs),
        (None, None) => (0, scenario.seeds),
    };
    for seed in first..first + runs {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut rng = Rng::new(name, seed);
            let setup = scenario.setup(&mut rng);
            World::new(setup, rng).run().map(|_| ())
        }));
        let why = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(why)) => why,
            Err(_) => "panicked, see above".to_owned(),
        };
        panic!("{why}\nSIM_SEED={seed} SIM_SCENARIO={name} cargo test --test simulation {name}");
    }
}

macro_rules! families {
    ($($name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                family(stringify!($name));
            }
        )+

        #[test]
        fn every_family_is_run() {
            assert_eq!(scenario::names(), [$(stringify!($name)),+]);
        }
    };
}

families! {
    clean,
    lossy_send,
    lossy_response,
    lossy_tunnel,
    lossy_everywhere,
    reorder,
    capture_disorder,
    capture_loss,
    target_slow,
    target_short,
    target_long,
    target_closes,
    target_resets,
    target_down,
    mid_stream,
    pipelined,
    half_close,
    resets,
    aborts,
    port_reuse,
    slow_reader,
    large_bodies,
    small_pool,
    copies,
    intercept_outage,
    refused_claims,
    server_first,
    fast_open,
    odd_segments,
    trailing,
    interim,
    long_polls,
    chat,
    ungated,
    memory_limit,
    corruption,
    simultaneous_close,
    small_segments,
    late_syn_acks,
    time_wait,
    keep_alive,
    stray_resets,
    nonsense,
    old_segments,
    one_byte_less,
    other_lengths,
    pauses,
    other_lengths_and_pauses,
    everything_at_once,
}
