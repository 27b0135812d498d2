//! See `tests/hostile/peer.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidestep_hostile::peer::run(bytes));
