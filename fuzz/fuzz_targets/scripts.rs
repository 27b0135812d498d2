//! See `tests/hostile/scripts.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidestep_hostile::scripts::run(bytes));
