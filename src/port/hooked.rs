//! A port whose frames a hook sees first: to count, to drop, to change.
//!
//! ```text
//!   device ─ received ─▶ hook ─▶ stack        pass, drop, or change and pass; also shorter or longer,
//!   device ◀─ hook ◀──── sent ── stack        up to the port's frame capacity
//! ```
//!
//! A type of its own, so that ports without a hook pay nothing for there being any. The port within is erased: with
//! all kinds of device there is one shard more to compile, not one more of each.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{FrameIo, PortCounters};

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the device to the stack.
    In,
    /// From the stack to the device.
    Out,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, as it is now.
    Pass,
    /// It is gone.
    Drop,
}

/// An Ethernet frame on its way, from its destination address on and without the checksum at its end.
///
/// Whoever changes it sees to the checksums within: those of IP, TCP and UDP.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Room for the longest frame.
    buffer: &'a mut [u8],
    len: usize,
    way: Way,
    shard: u32,
    changed: bool,
}

impl Frame<'_> {
    /// Which way it goes.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// The shard that sends or receives it.
    #[must_use]
    pub fn shard(&self) -> u32 {
        self.shard
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Its bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.changed = true;
        &mut self.buffer[..self.len]
    }

    /// How long it may become.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// All the room, the frame at its front: for hooks in other languages. Follow it with [`Self::finish`].
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        self.buffer
    }

    /// The first `len` bytes of [`Self::buffer_mut`] are the frame now; `changed`: not as it came. False: there is not so
    /// much room, and nothing happened.
    #[must_use]
    pub fn finish(&mut self, len: usize, changed: bool) -> bool {
        if len > self.buffer.len() {
            return false;
        }
        self.changed |= changed || len != self.len;
        self.len = len;
        true
    }

    /// Makes it shorter, or longer: then by zeroes. False: beyond [`Self::capacity`]; it stays as it is.
    #[must_use]
    pub fn set_len(&mut self, len: usize) -> bool {
        if len > self.buffer.len() {
            return false;
        }
        if len > self.len {
            self.buffer[self.len..len].fill(0);
        }
        self.changed |= len != self.len;
        self.len = len;
        true
    }
}

/// Sees every frame of a shard, in the thread that turns the shard, so that whatever it does holds up everything else.
pub trait FrameHook: Send {
    /// Looks at a frame, changes it if it likes, and says what becomes of it.
    fn frame(&mut self, frame: &mut Frame<'_>) -> Verdict;
}

impl<F: FnMut(&mut Frame<'_>) -> Verdict + Send> FrameHook for F {
    fn frame(&mut self, frame: &mut Frame<'_>) -> Verdict {
        self(frame)
    }
}

/// Makes the hook of a shard.
pub type HookMaker = Arc<dyn Fn(u32) -> Box<dyn FrameHook> + Send + Sync>;

/// What hooks did, of all shards. Frames; all only grow.
#[derive(Debug, Default)]
pub struct HookCounters {
    ways: [[AtomicU64; 3]; 2],
}

/// What hooks did in one direction, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookCount {
    pub seen: u64,
    pub dropped: u64,
    /// Passed on, but not as they came.
    pub changed: u64,
}

impl HookCounters {
    /// The counts of one direction.
    #[must_use]
    pub fn of(&self, way: Way) -> HookCount {
        let [seen, dropped, changed] = [0, 1, 2].map(|i| self.ways[way as usize][i].load(Ordering::Relaxed));
        HookCount { seen, dropped, changed }
    }

    fn add(&self, way: Way, which: usize) {
        self.ways[way as usize][which].fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module.
pub struct Hooked {
    port: Box<dyn Erased + Send>,
    hook: Box<dyn FrameHook>,
    shard: u32,
    counters: Arc<HookCounters>,
    /// A received frame lies here while the hook has it: where it came in there is no room to grow.
    scratch: Box<[u8]>,
}

impl Hooked {
    /// `hook` sees the frames of `port`, which `shard` has.
    pub fn new(
        port: impl FrameIo + Send + 'static,
        hook: Box<dyn FrameHook>,
        shard: u32,
        counters: Arc<HookCounters>,
    ) -> Self {
        // A received frame may be longer than one that can be sent, by VLAN tags.
        let scratch = vec![0; port.frame_capacity() + 8].into();
        Self { port: Box::new(port), hook, shard, counters, scratch }
    }
}

/// Asks the hook; the frame's length if it passes.
fn ask(
    (hook, counters, shard): (&mut dyn FrameHook, &HookCounters, u32),
    way: Way,
    buffer: &mut [u8],
    len: usize,
) -> Option<usize> {
    let mut frame = Frame { len: len.min(buffer.len()), buffer, way, shard, changed: false };
    counters.add(way, 0);
    match hook.frame(&mut frame) {
        Verdict::Drop => {
            counters.add(way, 1);
            None
        }
        Verdict::Pass => {
            if frame.changed {
                counters.add(way, 2);
            }
            Some(frame.len)
        }
    }
}

impl FrameIo for Hooked {
    fn receive(&mut self, budget: usize, mut handle: impl FnMut(&mut [u8])) -> usize {
        let Self { port, hook, shard, counters, scratch } = self;
        port.receive_erased(budget, &mut |frame| {
            let Some(room) = scratch.get_mut(..frame.len()) else {
                // Longer than any frame that the port says it has: as it came.
                return handle(frame);
            };
            room.copy_from_slice(frame);
            if let Some(len) = ask((&mut **hook, counters, *shard), Way::In, scratch, frame.len()) {
                handle(&mut scratch[..len]);
            }
        })
    }

    fn transmit(&mut self, budget: usize, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let Self { port, hook, shard, counters, .. } = self;
        let mut left = budget;
        port.transmit_erased(budget, &mut |buffer| {
            // A frame that is dropped leaves its buffer to the next.
            while left > 0 {
                left -= 1;
                let len = fill(buffer)?;
                let passed = ask((&mut **hook, counters, *shard), Way::Out, buffer, len);
                if passed.is_some() {
                    return passed;
                }
            }
            None
        })
    }

    fn flush(&mut self) {
        self.port.flush_erased();
    }

    fn can_transmit(&mut self) -> bool {
        self.port.can_transmit_erased()
    }

    fn frame_capacity(&self) -> usize {
        self.port.frame_capacity_erased()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.poll_fd_erased()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.port.prepare_sleep_erased()
    }

    fn counters(&self) -> PortCounters {
        self.port.counters_erased()
    }
}

/// [`FrameIo`] without type parameters.
trait Erased {
    fn receive_erased(&mut self, budget: usize, handle: &mut dyn FnMut(&mut [u8])) -> usize;
    fn transmit_erased(&mut self, budget: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<usize>) -> usize;
    fn flush_erased(&mut self);
    fn can_transmit_erased(&mut self) -> bool;
    fn frame_capacity_erased(&self) -> usize;
    fn poll_fd_erased(&self) -> Option<BorrowedFd<'_>>;
    fn prepare_sleep_erased(&mut self) -> bool;
    fn counters_erased(&self) -> PortCounters;
}

impl<P: FrameIo> Erased for P {
    fn receive_erased(&mut self, budget: usize, handle: &mut dyn FnMut(&mut [u8])) -> usize {
        self.receive(budget, handle)
    }
    fn transmit_erased(&mut self, budget: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<usize>) -> usize {
        self.transmit(budget, fill)
    }
    fn flush_erased(&mut self) {
        self.flush();
    }
    fn can_transmit_erased(&mut self) -> bool {
        self.can_transmit()
    }
    fn frame_capacity_erased(&self) -> usize {
        self.frame_capacity()
    }
    fn poll_fd_erased(&self) -> Option<BorrowedFd<'_>> {
        self.poll_fd()
    }
    fn prepare_sleep_erased(&mut self) -> bool {
        self.prepare_sleep()
    }
    fn counters_erased(&self) -> PortCounters {
        self.counters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::VirtualClock;
    use crate::port::memory::MemoryPort;

    /// Frames that begin with 0 pass, with 1 are dropped, with 2 get a byte, with 3 grow, with 4 shrink.
    fn hooked() -> (Hooked, Arc<HookCounters>) {
        let mut port = MemoryPort::new(VirtualClock::default(), 100, 8);
        for first in [0, 1, 2, 3, 4, 1] {
            port.put(vec![first; 60]);
        }
        // Longer than the port's own: as it came.
        port.put(vec![1; 200]);
        let counters = Arc::new(HookCounters::default());
        let hook = |frame: &mut Frame<'_>| {
            match frame.bytes()[0] {
                1 => return Verdict::Drop,
                2 => frame.bytes_mut()[1] = 0xbb,
                3 => {
                    assert!(!frame.set_len(frame.capacity() + 1) && frame.set_len(90));
                    frame.bytes_mut()[89] = 7;
                }
                4 => assert!(frame.set_len(20)),
                _ => {}
            }
            Verdict::Pass
        };
        (Hooked::new(port, Box::new(hook), 3, Arc::clone(&counters)), counters)
    }

    #[test]
    fn frames_pass_are_dropped_and_change_both_ways() {
        let (mut port, counters) = hooked();
        let mut came = Vec::new();
        assert_eq!(port.receive(20, |frame| came.push(frame.to_vec())), 7);
        assert_eq!(came.iter().map(Vec::len).collect::<Vec<_>>(), [60, 60, 90, 20, 200]);
        assert_eq!((came[1][1], came[2][60], came[2][89]), (0xbb, 0, 7));
        assert_eq!(counters.of(Way::In), HookCount { seen: 6, dropped: 2, changed: 3 });

        let mut next = [1u8, 0, 1, 1, 3, 4, 1].into_iter();
        let queued = port.transmit(5, |buffer| {
            buffer[..60].fill(next.next()?);
            Some(60)
        });
        assert_eq!((queued, next.next()), (2, Some(4)), "a budget is of frames made, dropped or not");
        assert_eq!(counters.of(Way::Out), HookCount { seen: 5, dropped: 3, changed: 1 });
        assert_eq!((port.counters().tx_frames, port.counters().tx_bytes), (2, 150));
    }
}
