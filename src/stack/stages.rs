//! Parts of the stack on their own, for benchmarks of single stages. No promise: they follow the code.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::Instant;
use crate::tcp::stages;
use crate::wheel::{TimerId, Wheel};

/// Reads a TCP segment; its payload's length. None: malformed.
#[must_use]
pub fn parse_segment(segment: &[u8]) -> Option<usize> {
    stages::parse(segment)
}

/// A flow table with flows in it.
#[derive(Debug)]
pub struct Flows(stages::Flows);

impl Flows {
    /// Of `remotes` to `local`.
    #[must_use]
    pub fn new(local: SocketAddr, remotes: impl Iterator<Item = SocketAddr>) -> Self {
        Self(stages::Flows::new(local, remotes))
    }

    /// The number of the flow from `remote`: hashes, and compares keys.
    #[must_use]
    pub fn find(&self, remote: SocketAddr) -> Option<u32> {
        self.0.find(remote)
    }
}

/// A timer wheel with timers in it, as many connections keep one each.
#[derive(Debug)]
pub struct Timers {
    wheel: Wheel,
    timers: Vec<TimerId>,
    now: Instant,
}

impl Timers {
    /// `count` retransmission timers.
    #[must_use]
    pub fn new(count: u32) -> Self {
        let mut wheel = Wheel::new();
        let now = Instant::ZERO + Duration::from_secs(1);
        let timers = (0..count).map(|key| wheel.insert(now + Duration::from_millis(200), key)).collect();
        Self { wheel, timers, now }
    }

    /// Arms timer `n` anew, and looks for one that is due: what an acknowledgement costs.
    pub fn restart(&mut self, n: usize) -> Option<u32> {
        self.now = self.now + Duration::from_micros(1);
        if let Some(timer) = self.timers.get_mut(n) {
            self.wheel.remove(*timer);
            #[allow(clippy::cast_possible_truncation)]
            let key = n as u32;
            *timer = self.wheel.insert(self.now + Duration::from_millis(200), key);
        }
        self.wheel.next().filter(|at| *at <= self.now).and_then(|_| self.wheel.pop(self.now))
    }
}
