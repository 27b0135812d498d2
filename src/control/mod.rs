//! The control thread: what happens once. Attach, fork, bind, listen, questions, and cleaning up after the dead.
//!
//! In: requests on the control socket, notices of shards, changes of the kernel's neighbour table. Out: replies,
//! messages to shards, ports marked for the XDP program. It owns the port table and the groups; shards never wait for
//! it, and it waits for them only as long as [`SHARD_PATIENCE`].
//!
//! [`books`] and [`requests`] decide, and know neither sockets nor threads; [`server`] is the thread with the socket.
//! [`crate::local`] calls the same books without either.

pub mod address;
pub mod books;
#[allow(unsafe_code)]
pub mod group;
mod inspect;
pub mod link;
mod lost;
pub mod neighbors;
pub mod ports;
pub mod requests;
mod server;
mod transit;

pub use books::{Books, ControlSettings, EngineGauges};
pub use inspect::inspect;
pub use server::Control;

use std::time::Duration;

/// How long the control thread waits for a shard's answer: a shard answers within one turn, unless its core is taken.
pub(crate) const SHARD_PATIENCE: Duration = Duration::from_secs(2);
