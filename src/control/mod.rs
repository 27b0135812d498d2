//! The control thread: what happens once. Attach, fork, bind, listen, questions, and cleaning up after the dead.
//!
//! In: requests on the control socket, notices of shards, changes of the kernel's neighbour table. Out: replies,
//! messages to shards, ports marked for the XDP program. It owns the port table and the groups; shards never wait for
//! it, and it waits for them only as long as [`SHARD_PATIENCE`].

pub mod address;
#[allow(unsafe_code)]
pub mod group;
mod inspect;
pub mod neighbors;
pub mod ports;
mod requests;
mod server;

pub use inspect::inspect;
pub use server::{Control, ControlSettings, EngineGauges};

use std::time::Duration;

/// How long the control thread waits for a shard's answer: a shard answers within one turn, unless its core is taken.
pub(crate) const SHARD_PATIENCE: Duration = Duration::from_secs(2);
