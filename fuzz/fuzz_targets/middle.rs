//! See `tests/hostile/middle.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidestep_hostile::middle::run(bytes));
