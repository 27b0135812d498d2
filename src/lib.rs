//! placeholder
pub mod port;
pub mod xdp;
