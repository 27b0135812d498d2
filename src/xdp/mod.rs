//! The AF_XDP port. In: frames that the XDP program gave to our queue. Out: frames to the device.
//!
//! ```text
//!            device queue q
//!                 │ bpf/steer.bpf.c            [Steering]: loaded once an engine, attached last, detached first
//!     ours ┌──────┴──────┐ the rest
//!          ▼             ▼
//!     xsks[q]         kernel
//!          │
//!   rx ring│  ▲fill ring      ▲tx ring  │completion ring
//!          ▼  │               │         ▼
//!         [XdpPort]: one UMEM, one socket, one queue, one thread
//! ```
//!
//! Order at start: [`nic::Nic::query`], [`Steering::load`], [`XdpPort::open`] for each queue (this fills and binds),
//! [`Steering::set_socket`], addresses and ports, first [`Heartbeat::beat`], then [`Steering::attach`]. At stop:
//! [`Steering::detach`] first, so that the kernel gets the traffic back before anything closes.

mod frames;
pub mod nic;
mod port;
mod steering;
mod sys;

pub use port::{XdpOptions, XdpPort, ZeroCopy};
pub use steering::{AttachMode, Heartbeat, MAX_QUEUES, SteerCounters, Steering};
pub(crate) use sys::{packet_socket, set_int_option};
