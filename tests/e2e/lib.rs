//! The laboratory of Sidestep and the end-to-end tests that run in it: real programs, network namespaces, veth pairs.
//!
//! Below: [`cleanup`] (nothing outlives us), [`program`] (programs with bounded waits), [`lab`] (namespaces), [`files`],
//! [`nginx`], [`load`] (HTTP requests with latencies), [`engine`] (`sidestep up` and what it says of itself),
//! [`parity`] (transcripts compared), [`harness`] (runs and counts). The tests themselves are in `cases`; `cargo xtask
//! test` runs them.

// The rule that time is an argument is the engine's. Tests of real programs wait for real time.
#![allow(clippy::disallowed_methods)]

mod cases;
pub mod cleanup;
pub mod engine;
pub mod files;
pub mod harness;
pub mod hostile;
pub mod lab;
pub mod load;
pub mod nginx;
pub mod parity;
pub mod program;

pub use cases::{cases, soak};
