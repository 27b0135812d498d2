//! Frames in memory: no device and no system call. Whoever drives the shard puts frames in and takes frames out.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use sidestep_stack::Instant;

use super::{FrameIo, PortCounters};
use crate::clock::Clock;

/// Emptied buffers kept for the next frames; beyond, they go back to the allocator.
const SPARE_BUFFERS: usize = 256;

/// A frame that left, and when.
pub type Sent = (Instant, Vec<u8>);

/// See the module.
#[derive(Debug)]
pub struct MemoryPort<C> {
    clock: C,
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Sent>,
    /// Frames that may wait in `sent`.
    ring: usize,
    /// Where a frame is built, before it is known how long it is.
    scratch: Box<[u8]>,
    spare: Vec<Vec<u8>>,
    counters: PortCounters,
}

impl<C: Clock> MemoryPort<C> {
    /// For frames of up to `mtu` bytes of payload. `ring`: frames that may wait to be taken out before the port takes
    /// no more, as a NIC's transmit ring does.
    #[must_use]
    pub fn new(clock: C, mtu: usize, ring: usize) -> Self {
        Self {
            clock,
            received: VecDeque::new(),
            sent: VecDeque::new(),
            ring,
            // Ethernet's header and two VLAN tags.
            scratch: vec![0; mtu + 22].into(),
            spare: Vec::new(),
            counters: PortCounters::default(),
        }
    }

    /// A frame that the shard will find at its next turn.
    pub fn put(&mut self, frame: Vec<u8>) {
        self.received.push_back(frame);
    }

    /// The oldest frame that was sent.
    pub fn take(&mut self) -> Option<Sent> {
        self.sent.pop_front()
    }

    /// Frames that wait to be taken out.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.sent.len()
    }
}

impl<C: Clock> FrameIo for MemoryPort<C> {
    fn receive(&mut self, budget: usize, mut handle: impl FnMut(&mut [u8])) -> usize {
        let mut count = 0;
        while count < budget
            && let Some(mut frame) = self.received.pop_front()
        {
            count += 1;
            self.counters.rx_frames += 1;
            self.counters.rx_bytes += frame.len() as u64;
            handle(&mut frame);
            if self.spare.len() < SPARE_BUFFERS {
                self.spare.push(frame);
            }
        }
        count
    }

    fn transmit(&mut self, budget: usize, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let mut count = 0;
        while count < budget {
            if self.sent.len() >= self.ring {
                self.counters.tx_no_buffer += 1;
                break;
            }
            let Some(len) = fill(&mut self.scratch) else { break };
            let mut frame = self.spare.pop().unwrap_or_default();
            frame.clear();
            frame.extend_from_slice(&self.scratch[..len]);
            self.sent.push_back((self.clock.now(), frame));
            count += 1;
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += len as u64;
        }
        count
    }

    fn flush(&mut self) {}

    fn can_transmit(&mut self) -> bool {
        self.sent.len() < self.ring
    }

    fn frame_capacity(&self) -> usize {
        self.scratch.len()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn prepare_sleep(&mut self) -> bool {
        !self.received.is_empty()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::VirtualClock;

    #[test]
    fn a_full_ring_takes_no_more_and_frames_carry_their_time() {
        let clock = VirtualClock::default();
        let mut port = MemoryPort::new(clock.clone(), 1500, 2);
        clock.set(Instant::from_micros(7));
        assert_eq!(
            port.transmit(10, |buffer| {
                buffer[0] = 9;
                Some(60)
            }),
            2
        );
        assert!(!port.can_transmit());
        let (at, frame) = port.take().unwrap();
        assert_eq!((at, frame.len(), frame[0]), (Instant::from_micros(7), 60, 9));
        assert!(port.can_transmit());
        port.put(frame);
        assert!(port.prepare_sleep());
        assert_eq!(port.receive(10, |f| assert_eq!(f.len(), 60)), 1);
        assert!(!port.prepare_sleep());
    }
}
