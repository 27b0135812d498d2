//! Packets that answer other packets (ICMP, RST, challenge ACKs, SYN-ACKs from a cookie): built at once, sent when
//! the next frame is polled. Bounded, because the peer decides how many there are.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::IpAddr;

/// An IP payload on its way out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    pub tos: u8,
    /// Hop limit; 0 for the default.
    pub ttl: u8,
    /// Complete transport packet, checksum included.
    pub payload: Vec<u8>,
}

/// First in, first out; full means the newest is dropped and counted.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: VecDeque<Reply>,
    limit: usize,
    pub dropped: u64,
}

impl Outbox {
    pub fn new(limit: usize) -> Self {
        Self { queue: VecDeque::new(), limit, dropped: 0 }
    }

    pub fn push(&mut self, reply: Reply) {
        if self.queue.len() < self.limit {
            self.queue.push_back(reply);
        } else {
            self.dropped += 1;
        }
    }

    pub fn pop(&mut self) -> Option<Reply> {
        self.queue.pop_front()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
