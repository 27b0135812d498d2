//! The adversaries without a fuzzer: every input of `fuzz/corpus` (what fuzzing found worth keeping, and every input
//! that once broke something), and random ones.

use proptest::prelude::*;
use sidestep_hostile::TARGETS;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Plays the corpus of one target; every failure names its file.
fn replay(target: &str) {
    let run = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of that name").1;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry of the corpus").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no input in {}", folder.display());
    for file in files {
        let bytes = fs::read(&file).expect("an input");
        if catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_err() {
            panic!("{} broke it; again: cargo run -p sidestep-hostile -- {target} {}", file.display(), file.display());
        }
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        mod corpus {
            $(#[test]
            fn $name() {
                super::replay(stringify!($name));
            })*
        }

        mod random {
            use super::*;
            $(proptest! {
                #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
                #[test]
                fn $name(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
                    let run = TARGETS.iter().find(|(name, _)| *name == stringify!($name)).expect("a target").1;
                    run(&bytes);
                }
            })*
        }

        /// No target without its tests.
        #[test]
        fn all_targets_are_here() {
            let names = [$(stringify!($name)),*];
            assert_eq!(names.to_vec(), TARGETS.map(|(name, _)| name).to_vec());
        }
    };
}

targets!(frames middle options fragments memory settings scenarios scripts);
