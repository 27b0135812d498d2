//! A shard: one core's share of the engine. One queue of the NIC, one stack, and the sockets that live on it.
//!
//! In: frames of its queue, dirty slots of programs, messages of the control thread, frames that another shard got
//! and can't place. Out: frames, and the state of its sockets in shared memory. Nothing here is shared with another
//! shard but the two bounded queues of [`mailbox`].
//!
//! [`run`] is the loop, on one page; [`apps`] stands between the shared memory of programs and the stack; [`idle`]
//! decides when to look again and when to sleep. [`drive`] is for those who call the loop's turns themselves.

pub mod apps;
mod buffers;
mod commands;
mod deliver;
mod drive;
mod follow;
mod host;
mod idle;
pub mod mailbox;
mod pool;
mod run;
mod view;

pub(crate) use commands::read_options;
pub use drive::Driven;
pub use idle::{IdlePolicy, Sleeper};
pub use run::{Shard, Turn};
pub use view::{ShardReport, SocketRow};
