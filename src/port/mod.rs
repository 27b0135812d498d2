//! Where frames come from and go to: one small trait, and an implementation for each kind of interface.
//!
//! In: a loop asks for received frames and for room to send. Out: a device, a file descriptor, or a simulated link.

pub mod af_packet;
mod batch;
pub(crate) mod busy;
mod checksum;
pub mod hooked;
pub mod memory;
pub mod none;
pub mod pipe;
pub mod tap;

use std::io;
use std::os::fd::BorrowedFd;

use sidestep_stack::Large;

/// A source and sink of Ethernet frames, owned by one shard.
pub trait FrameIo {
    /// Hands at most `budget` received frames to `handle`, oldest first, and returns how many. Never blocks. The slice
    /// is valid only during the call.
    fn receive(&mut self, budget: usize, handle: impl FnMut(&mut [u8])) -> usize;

    /// Offers at most `budget` transmit buffers of [`Self::frame_capacity`] bytes to `fill`, which writes a frame to
    /// the front and returns its length, or None when there is nothing to send. Stops early when buffers run out.
    /// Returns the frames queued; they leave with the next [`Self::flush`] at the latest.
    fn transmit(&mut self, budget: usize, fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize;

    /// False when [`Self::receive`] and [`Self::flush`] would do nothing: a look that costs less than they do.
    fn is_due(&mut self) -> bool {
        true
    }

    /// Bytes of the largest packet that the device would now cut into frames itself; 0: none.
    fn large_capacity(&self) -> usize {
        0
    }

    /// Sends one packet of at most [`Self::large_capacity`] bytes, which `fill` writes. Returns the frames that it
    /// becomes, 0 without any. It leaves before what a later [`Self::flush`] sends.
    fn transmit_large(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<Large>) -> usize {
        let _ = fill;
        0
    }

    /// Makes the device send what was queued, with as few system calls as the device allows.
    fn flush(&mut self);

    /// Whether `transmit` could take at least one frame now.
    fn can_transmit(&mut self) -> bool;

    /// Bytes of a transmit buffer: the largest frame.
    fn frame_capacity(&self) -> usize;

    /// A descriptor that polls readable when frames have come (None: must be polled by calling `receive`).
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Called before the shard sleeps on `poll_fd`: whatever the device needs to raise it (need-wakeup, fill ring).
    /// True when frames are there already and the shard should not sleep.
    fn prepare_sleep(&mut self) -> bool {
        false
    }

    /// What the device counted.
    fn counters(&self) -> PortCounters;
}

/// Counters of a port. All only grow, but `frames_owned`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PortCounters {
    pub rx_frames: u64,
    pub rx_bytes: u64,
    pub tx_frames: u64,
    pub tx_bytes: u64,
    /// Received frames that could not be handed on: truncated, oversized, bad descriptors.
    pub rx_bad: u64,
    /// Frames that the kernel dropped for want of room in our rings, as far as it says.
    pub rx_ring_full: u64,
    /// Times that no transmit buffer was free.
    pub tx_no_buffer: u64,
    /// System calls made to send, to receive and to wake.
    pub syscalls: u64,
    /// Send calls that failed for good; see `last_error` in the log.
    pub tx_errors: u64,
    /// Buffers in the pool by whereabouts must add up to this: free + fill + rx + tx + completion.
    pub frames_total: u64,
    /// Buffers that are free or with the kernel; equal to `frames_total` whenever the loop is between turns.
    pub frames_accounted: u64,
}

/// Why a port could not be opened: what failed, on what, what to do.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}{}{hint}", if hint.is_empty() { "" } else { "; " })]
pub struct PortError {
    /// "attach the XDP program to eth1", …
    pub what: String,
    pub cause: io::Error,
    /// What to do about it; may be empty.
    pub hint: String,
}
