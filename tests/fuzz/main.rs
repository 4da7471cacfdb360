//! Fuzz targets, and their corpus as an ordinary test.
//!
//! What a target does with its input is in `bodies`. Here each input that was kept in `corpus` is tried again, those of
//! faults found once included, and random ones besides. Fuzzing itself takes `cargo install cargo-fuzz`, which wants a
//! nightly compiler, or a stable one that is told to be:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz replayer
//! RUSTC_BOOTSTRAP=1 cargo fuzz cmin --fuzz-dir tests/fuzz replayer
//! ```
#![expect(clippy::indexing_slicing, reason = "an index out of bounds is a failed test")]

mod bodies;

use std::fs;
use std::path::Path;

use proptest::prelude::*;

/// A target by its name.
fn body(name: &str) -> fn(&[u8]) {
    let (_, body) = bodies::ALL.into_iter().find(|(known, _)| *known == name).expect("a target");
    body
}

#[test]
fn the_corpus_holds_no_fault() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for (name, body) in bodies::ALL {
        let mut tried = 0;
        for entry in fs::read_dir(corpus.join(name)).expect("a corpus for each target") {
            let path = entry.expect("directory entry").path();
            // What fails shows the file's name before the fault.
            println!("{}", path.display());
            body(&fs::read(&path).expect("an input"));
            tried += 1;
        }
        assert!(tried >= 10, "{name}: {tried} inputs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_random_input_of_any_target_is_a_fault(input in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (_, body) in bodies::ALL {
            body(&input);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// SECURITY.md: what somebody on the clients' side cannot do.
    #[test]
    fn crafted_packets_of_clients_reach_targets_only_and_come_from_the_pools_only(
        input in proptest::collection::vec(any::<u8>(), 0..2_000),
    ) {
        body("replayer")(&input);
    }
}
