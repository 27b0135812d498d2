//! `sidestep bench`: servers and load generators that run on every stack with the same code, bare AF_XDP as the ceiling,
//! and the comparison of all of them.
//!
//! ```text
//!   serve ── net::Net ── load                     one trait, kernel or engine below
//!   raw                                           frames over AF_XDP, no stack
//!   replay ── cores                               frames into a stack, no device
//!   lab ── compare ── measure ── report           namespaces; rounds in turn; medians; tables, JSON, HTML
//! ```

pub mod compare;
pub mod cores;
pub mod cpu;
pub mod hist;
pub mod lab;
pub mod load;
pub mod measure;
pub mod net;
pub mod program;
pub mod raw;
pub mod replay;
pub mod report;
pub mod serve;
pub mod stages;
