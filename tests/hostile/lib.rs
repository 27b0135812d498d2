//! Adversaries. Each module takes bytes that nobody chose with good intentions, makes a scene of them, and checks what
//! must hold whatever the bytes are. `fuzz/fuzz_targets` calls them with bytes of a fuzzer; `tests/` of this crate with
//! the corpus that fuzzing left and with random ones, so that neither needs a fuzzer nor a nightly compiler.
//!
//! | module | who is hostile | what must hold |
//! |---|---|---|
//! | [`peer`] | the other end of live connections, or anyone who knows their numbers | streams are delivered once and in order or end; no number goes back; nothing is left behind |
//! | [`middle`] | whoever forwards packets between two stacks, and a third who guesses | both streams arrive whole, or the connection breaks |
//! | [`options`] | a SYN's options | what is agreed is what an independent reading of the options says |
//! | [`fragments`] | whoever sends pieces of datagrams | a datagram is delivered whole and true or not at all |
//! | [`memory`] | a program that shares memory with a shard | the shard goes on, and the books balance when the program is gone |
//! | [`settings`] | a configuration file | an error that says where, or a configuration that survives being written out |
//! | [`scenarios`] | a file for the simulator | an error that says where, or scenarios within bounds |
//! | [`scripts`] | a packet script | an error with its line, or a run that ends, whatever it asks for |
//!
//! [`script`] turns bytes into decisions, [`wire`] builds and reads frames without the stack's help, [`world`] is the
//! memory of the programs with the checks in it.

pub mod fragments;
pub mod memory;
pub mod middle;
pub mod options;
pub mod peer;
pub mod scenarios;
pub mod script;
pub mod scripts;
pub mod settings;
pub mod wire;
pub mod world;

/// Its name in `fuzz/fuzz_targets` and `fuzz/corpus`, and what plays an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("frames", peer::run),
    ("middle", middle::run),
    ("options", options::run),
    ("fragments", fragments::run),
    ("memory", memory::run),
    ("settings", settings::run),
    ("scenarios", scenarios::run),
    ("scripts", scripts::run),
];
