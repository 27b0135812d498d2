//! See `tests/hostile/memory.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidestep_hostile::memory::run(bytes));
