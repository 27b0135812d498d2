//! See `tests/hostile/scenarios.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidestep_hostile::scenarios::run(bytes));
