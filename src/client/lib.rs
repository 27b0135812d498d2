//! Sockets of a Sidestep engine, for programs that link this library and for the preload library.
//!
//! ```text
//!   program                                          engine
//!   net (Rust), capi (C), preload
//!      │
//!      ▼
//!   Session ── control connection: attach, bind, listen, fork ──▶ control thread
//!      │
//!      ├─ stream, datagram: bytes in and out of the slot's rings ──▶ shard (door + doorbell)
//!      ├─ readiness: what poll() would say of a slot
//!      └─ Waiter, wait: sleep until the engine marks a slot      ◀── event queue (door + doorbell)
//! ```
//!
//! A [`Session`] is one process's attachment. Its verbs name sockets by *slot*, never block, and fail with the errno
//! that Linux gives ([`Errno`]). [`wait()`] is the one call that sleeps. [`net`] puts `std::net`-like types on top,
//! and `include/sidestep.h` a C API.
//!
//! **What this crate may not do.** The preload library runs below the program's own calls to libc, in its threads
//! and its signal handlers. So nothing here calls libc's socket or descriptor functions (system calls are made
//! directly, by rustix), starts threads, logs, or panics on what a program or an engine hands in; and the data path
//! neither allocates nor keeps a lock across a system call, which makes `send`, `receive`, `accept`, `readiness` and
//! `wait` safe in signal handlers.
//!
//! **Locks.** `rx_lock`, `tx_lock` and `call_lock` of a slot are taken for a copy and nothing else. One that stays
//! taken for a tenth of a second (its holder was stopped, or is the code that this signal handler interrupted) makes
//! the call fail with EAGAIN instead of hanging. Only what is borrowed ([`borrow`]) keeps a lock between two calls, and
//! others that want it meanwhile get EBUSY at once.

mod address;
pub mod batch;
pub mod borrow;
pub mod capi;
mod control;
pub mod copies;
mod datagram;
mod driver;
#[cfg(test)]
mod fake;
mod info;
pub mod interest;
mod mixed;
pub mod net;
mod options;
mod readiness;
mod session;
mod socket;
mod stamps;
mod stream;
mod sys;
pub mod table;
#[cfg(test)]
mod tests;
mod waiter;

pub use address::{from_wire, to_wire};
pub use control::AttachError;
pub use datagram::DatagramOptions;
pub use driver::{Driver, Rest, Resting};
pub use options::Setting;
pub use readiness::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, POLLRDNORM, POLLWRNORM};
pub use rustix::io::Errno;
pub use session::{ForkTicket, Handover, InProcess, Session};
pub use sidestep_shm as shm;
pub use socket::Number;
pub use sys::{Deadline, Fd, confine, is_confined, now_ns, yield_now};
pub use waiter::{Waiter, wait, wait_done, wait_settled};
