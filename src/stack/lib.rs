//! The TCP/IP stack: frames in, frames out, events out. No syscalls, no clock, no threads, no unsafe (sans-IO).
//!
//! ```text
//!   handle_frame ─▶ ethernet ─▶ neighbor (ARP, NDP)
//!                      │
//!                      ▼
//!                     ip ─▶ icmp ─▶ errors to tcp and udp
//!                      │
//!                      ├─▶ udp ─▶ Host::datagram_in
//!                      └─▶ tcp ─▶ flow table ─▶ connection ─▶ Host::rx_write, poll_event
//!
//!   poll_frame  ◀─ ethernet ◀─ neighbor ◀─ ip ◀─ outbox (answers: ARP, ICMP, RST, SYN cookies)
//!                                           ◀─ tcp, connections that have something to send ◀─ Host::tx_read
//!                                           ◀─ udp, sockets that have something to send     ◀─ Host::datagram_out
//! ```
//!
//! **Call order.** Whoever drives the stack (a shard, the simulator, a test) calls, in any order and as often as it
//! likes: [`Stack::handle_frame`] for a frame that came; the socket verbs for what programs want;
//! [`Stack::handle_timers`] when [`Stack::next_deadline`] has come; [`Stack::poll_frame`] until it gives nothing more;
//! [`Stack::poll_event`] until it gives nothing more. Time is always an argument. Randomness comes from the seed.
//!
//! **Bytes of streams** are not in the stack: they lie in memory that a [`Host`] reaches by stream position.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod api;
mod checksum;
mod egress;
mod ethernet;
mod fragment;
mod icmp;
mod info;
mod ip;
mod ndp;
mod neighbor;
mod outbox;
mod route;
mod rss;
mod siphash;
mod stack;
#[doc(hidden)]
pub mod stages;
mod stray;
mod tcp;
#[cfg(test)]
mod tests;
mod time;
mod udp;
mod wheel;

pub use api::*;
pub use egress::Large;
pub use info::{CongestionState, TCP_INFO_BYTES, TcpInfo};
pub use stack::{Stack, Unknown, Verdict};
pub use stray::Stray;
pub use tcp::congestion;
pub use time::Instant;
