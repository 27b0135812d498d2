//! See `tests/hostile/options.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidestep_hostile::options::run(bytes));
