//! See `tests/hostile/fragments.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidestep_hostile::fragments::run(bytes));
