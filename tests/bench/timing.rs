//! Times of the hot paths: `cargo bench --bench timing`.

mod cases;
mod chain;

use cases::{CASES, exchanges_of};
use chain::{Chain, client};
use divan::Bencher;
use divan::counter::ItemsCount;

fn main() {
    divan::main();
}

/// One step of each: see `cases`.
#[divan::bench(args = CASES.map(|(name, _)| name))]
fn step(bencher: Bencher, case: &str) {
    let (_, prepare) = CASES.into_iter().find(|(name, _)| *name == case).expect("a case");
    bencher.bench_local(prepare());
}

/// An exchange (a request and its response) while so many sessions are live: it should not depend on them.
#[divan::bench(args = [10, 10_000, 100_000], sample_size = 1_000)]
fn exchange_among_sessions(bencher: Bencher, sessions: u32) {
    bencher.counter(ItemsCount::new(1_u32)).bench_local(exchanges_of(sessions));
}

/// Sessions begun, from the captured SYN to the SYN that leaves. Wanted: 200,000 a second.
#[divan::bench(args = [1_000, 100_000], sample_count = 10)]
fn sessions_begun(bencher: Bencher, sessions: u32) {
    bencher.counter(ItemsCount::new(sessions)).with_inputs(Chain::new).bench_local_values(|mut chain| {
        for number in 0..sessions {
            chain.open(client(number));
        }
        chain
    });
}
