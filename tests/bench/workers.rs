//! Whether workers that share nothing cost each other nothing: processor time of an exchange, by the number of threads.

#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod chain;

use std::fs;
use std::thread;

use chain::Chain;

/// Live sessions of each worker, and exchanges each of them makes.
const SESSIONS: u32 = 1_000;
const EXCHANGES: u32 = 100;

/// Processor time of the calling thread so far, in nanoseconds.
fn processor_time() -> u64 {
    let times = fs::read_to_string("/proc/thread-self/schedstat").expect("CONFIG_SCHED_INFO");
    times.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number")
}

/// Processor time in nanoseconds that one worker takes for an exchange.
fn work() -> u64 {
    let (mut chain, mut talks) = Chain::with_sessions(SESSIONS);
    let before = processor_time();
    for _ in 0..EXCHANGES {
        for talk in &mut talks {
            chain.exchange(talk);
        }
    }
    (processor_time() - before) / u64::from(SESSIONS * EXCHANGES)
}

/// The mean of so many workers at once.
fn of_each(workers: u64) -> u64 {
    let sum = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<u64>()
    });
    sum / workers
}

#[test]
#[ignore = "a measurement; run with --release -- --ignored --nocapture"]
fn an_exchange_costs_the_same_among_eight_workers() {
    let alone = of_each(1);
    for workers in [1, 2, 4, 8] {
        let each = of_each(workers);
        let percent = each * 100 / alone.max(1);
        println!("{workers} workers: {each} ns of processor time for an exchange, {percent} % of one alone");
    }
}
