//! The shared-memory ABI between the engine and the programs that use it.
//!
//! One *group* of programs (a program and what it forks) shares one sealed memfd with the engine. Nothing else
//! crosses the boundary on the data path: no message, no copy of a message, no lock that both sides take.
//!
//! ```text
//!            program(s)                        memfd                          engine (one thread a shard)
//!  socket call ─ bytes ────────────▶ transmit ring of the slot ──────────────▶ segments, retransmissions
//!              ─ slot number ──────▶ DirtySet of the shard ("look here") ────▶ harvest, then read the slot
//!              ◀───────────── bytes ─ receive ring of the slot ◀───────────── payload, at its stream offset
//!  epoll_wait  ◀─ slot number ─────── DirtySet of the event queue ◀────────── "look here"
//! ```
//!
//! **Who owns what.** Every field of [`Slot`] has one writer, the engine or the programs, named at the field. The
//! engine trusts nothing that a program can write: it reads a field once into private memory, checks it against
//! numbers that it keeps privately (capacities, masks and offsets never come from here), then uses the copy.
//!
//! **Why sets of dirty bits and not rings of messages.** Many threads of many processes write and some of them die
//! while they do. A bit set by `fetch_or` needs no reservation, can't be left half done, can't overflow, and says
//! "look here" once however often it is said; what there is to see stands in the slot.
//!
//! **Doorbells.** A side that is about to sleep raises its `sleeping` flag, looks once more, and sleeps; the other
//! side sets the dirty bit, looks at the flag, and rings only if it is up. Both orders are sequentially consistent, so
//! that one of the two always sees the other. `tests/loom.rs` proves it.
//!
//! Modules, from the outside in: [`wire`] (messages of the control socket), [`layout`] (what lies where), [`Region`]
//! (checked access to a mapping), [`slot`] (one socket), [`dirty`] (dirty sets and doors), [`stream`] (byte rings),
//! [`accept`] (finished handshakes), [`datagram`] (UDP records), [`lock`] (locks among programs, which survive a
//! holder's death).
#![cfg_attr(not(loom), no_std)]

pub mod accept;
pub mod datagram;
pub mod dirty;
pub mod layout;
pub mod lock;
#[cfg(not(loom))]
mod region;
pub mod slot;
pub mod split;
pub mod stream;
pub mod sync;
pub mod wire;

pub use layout::{Geometry, GeometryError};
#[cfg(not(loom))]
pub use region::Region;
pub use slot::Slot;
pub use split::Split;
