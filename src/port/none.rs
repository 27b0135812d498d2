//! No device: an engine whose programs reach each other, and nobody else (`backend = "none"`).

use std::os::fd::BorrowedFd;

use super::{FrameIo, PortCounters};

/// Nothing comes, and what is sent is gone.
#[derive(Debug)]
pub struct NoPort {
    /// Where the stack writes a frame that nobody gets.
    buffer: Vec<u8>,
    counters: PortCounters,
}

impl NoPort {
    /// For frames with up to `mtu` bytes of payload.
    #[must_use]
    pub fn new(mtu: usize) -> Self {
        Self { buffer: vec![0; mtu + 14], counters: PortCounters::default() }
    }
}

impl FrameIo for NoPort {
    fn receive(&mut self, _budget: usize, _handle: impl FnMut(&mut [u8])) -> usize {
        0
    }

    fn transmit(&mut self, budget: usize, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let mut sent = 0;
        while sent < budget
            && let Some(bytes) = fill(&mut self.buffer)
        {
            sent += 1;
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += bytes as u64;
        }
        sent
    }

    fn flush(&mut self) {}

    fn can_transmit(&mut self) -> bool {
        true
    }

    fn frame_capacity(&self) -> usize {
        self.buffer.len()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_counted_and_gone() {
        let mut port = NoPort::new(1_500);
        assert_eq!(port.frame_capacity(), 1_514);
        let mut left = 3;
        let fill = |buffer: &mut [u8]| {
            assert_eq!(buffer.len(), 1_514);
            (left > 0).then(|| {
                left -= 1;
                60
            })
        };
        assert_eq!(port.transmit(10, fill), 3);
        assert_eq!((port.counters().tx_frames, port.counters().tx_bytes), (3, 180));
        assert_eq!(port.receive(10, |_| panic!("a frame out of nothing")), 0);
    }
}
