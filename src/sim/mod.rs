//! The simulator: the real stack, the real shard loop and the real client in virtual time.
//!
//! ```text
//!   [`traffic`]   small programs on the client's verbs
//!       │
//!   [`host`]      a [`LocalHost`](crate::local::LocalHost): shard, books, shared memory, session
//!       │ frames
//!   [`network`]   what happens next: nodes, links, one queue of events
//!       │
//!   [`link`]      queue ([`queue`]: drop-tail, CoDel, ECN), rate, delay, jitter, loss, reordering, duplication, damage
//!       │
//!   [`switch`]    joins hosts, so that they share a link
//! ```
//!
//! In: a [`Scenario`] (TOML, `config/sim/`). Out: a [`Report`], a hash over every frame with its time, and, if asked
//! for, a line a frame ([`trace`]), captures ([`pcap`]) and a picture ([`plot`]).
//!
//! There is no thread and no clock but the virtual one, and all randomness comes from the scenario's seed, each link and
//! host with a stream of its own. So the same seed gives the same bytes at the same times; `trace_hash` is there to
//! show it.

pub mod ecn;
pub mod host;
pub mod law;
pub mod link;
pub mod loss;
pub mod matrix;
pub mod network;
pub mod pcap;
pub mod plot;
pub mod queue;
pub mod report;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod switch;
pub mod trace;
pub mod traffic;

#[cfg(test)]
mod tests;

pub use report::Report;
pub use run::{Run, RunOptions};
pub use scenario::Scenario;
