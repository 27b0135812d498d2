//! stub
pub mod ecn;
pub mod host;
pub mod link;
pub mod loss;
pub mod network;
pub mod pcap;
pub mod queue;
pub mod rng;
pub mod scenario;
pub mod switch;
pub mod trace;
pub mod traffic;
