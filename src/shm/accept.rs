//! Finished handshakes on their way to accept(): one ring a listener and shard, in the listener's receive ring.
//!
//! The shard writes an entry (a slot number), then `tail`. A program claims the entry at `head` by writing its process
//! number into it with a compare-and-swap, becomes the slot's holder, and moves `head` on; whoever finds a claimed
//! entry at `head` moves it on too. A program that died between the claim and the hold stands in the entry: the engine
//! finds it there when it cleans up after the process.

use core::marker::PhantomData;

use crate::layout::Geometry;
use crate::slot::Slot;
use crate::sync::{AtomicU64, Ordering};

/// Bytes before the entries: `tail` and `head` on a cache line each.
const HEAD_BYTES: u32 = 128;
/// An entry: slot number in the low half, process number + 1 of the claimant in the high half (0: nobody yet).
const CLAIM_SHIFT: u32 = 32;

/// View of one ring; both sides make their own.
#[derive(Clone, Copy)]
pub struct AcceptRing<'a> {
    tail: &'a AtomicU64,
    head: &'a AtomicU64,
    entries: &'a [AtomicU64],
    _region: PhantomData<&'a [u8]>,
}

impl<'a> AcceptRing<'a> {
    /// Bytes that each shard has in a listener's receive ring.
    pub(crate) fn share_bytes(geometry: &Geometry) -> u32 {
        (geometry.rx_bytes / geometry.shards) & !63
    }

    /// Connections that wait at most for one listener on one shard.
    #[must_use]
    pub fn capacity_for(geometry: &Geometry) -> u32 {
        capacity(Self::share_bytes(geometry))
    }

    /// # Safety
    /// `base` must be aligned to 64 bytes and point to `share` bytes, mapped for `'a`; `share` must be larger than the
    /// head.
    #[cfg(not(loom))]
    pub(crate) unsafe fn new(base: *mut u8, share: u32) -> Self {
        // SAFETY: all inside `share` bytes; atomics accept any bytes.
        unsafe {
            Self {
                tail: &*base.cast::<AtomicU64>(),
                head: &*base.add(64).cast::<AtomicU64>(),
                entries: core::slice::from_raw_parts(base.add(HEAD_BYTES as usize).cast(), capacity(share) as usize),
                _region: PhantomData,
            }
        }
    }

    /// A ring over given words, for models and tests. `entries` must be a power of two long.
    #[must_use]
    pub fn over(tail: &'a AtomicU64, head: &'a AtomicU64, entries: &'a [AtomicU64]) -> Self {
        Self { tail, head, entries, _region: PhantomData }
    }

    /// Empties the ring: the engine's, before a slot starts to listen.
    pub fn reset(&self) {
        self.head.store(0, Ordering::SeqCst);
        self.tail.store(0, Ordering::SeqCst);
    }

    /// Leaves `slot` at position `tail`, which the shard keeps privately, and publishes `tail + 1`. The shard has seen
    /// to it that the ring has room.
    pub fn push(&self, tail: u64, slot: u32) {
        if let Some(entry) = self.at(tail) {
            entry.store(u64::from(slot), Ordering::SeqCst);
            self.tail.store(tail + 1, Ordering::SeqCst);
        }
    }

    /// How far programs have come, as they say: the shard checks it against its own positions.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::SeqCst)
    }

    /// The slot left at a position, and the process that claimed it: for the shard, when a listener closes or a
    /// process ends.
    #[must_use]
    pub fn entry(&self, position: u64) -> Option<(u32, Option<u32>)> {
        let word = self.at(position)?.load(Ordering::SeqCst);
        Some((word as u32, ((word >> CLAIM_SHIFT) as u32).checked_sub(1)))
    }

    /// Whether no connection waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::SeqCst) >= self.tail.load(Ordering::SeqCst)
    }

    /// Takes the oldest connection for `process`, which is its holder when this returns. `slot` looks slots up.
    pub fn take<'s>(&self, process: u32, slot: impl Fn(u32) -> Option<&'s Slot>) -> Option<u32> {
        self.take_with(process, |number| slot(number).map(|slot| slot.hold(process)).is_some())
    }

    /// The same, with any way to become a holder; `hold` is false when there is no such slot.
    pub fn take_with(&self, process: u32, hold: impl Fn(u32) -> bool) -> Option<u32> {
        loop {
            let head = self.head.load(Ordering::SeqCst);
            if head >= self.tail.load(Ordering::SeqCst) {
                return None;
            }
            let entry = self.at(head)?;
            let word = entry.load(Ordering::SeqCst);
            let mine = u64::from(process + 1) << CLAIM_SHIFT | (word & 0xffff_ffff);
            let claimed = word >> CLAIM_SHIFT == 0
                && entry.compare_exchange(word, mine, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            // An entry that names no slot can only be damage; it is passed over.
            let held = claimed && hold(word as u32);
            // Fails when another has moved it on already, which is as good.
            let _ = self.head.compare_exchange(head, head + 1, Ordering::SeqCst, Ordering::SeqCst);
            if held {
                return Some(word as u32);
            }
        }
    }

    fn at(&self, position: u64) -> Option<&'a AtomicU64> {
        self.entries.get(position as usize & self.entries.len().wrapping_sub(1))
    }
}

fn capacity(share: u32) -> u32 {
    let words = share.saturating_sub(HEAD_BYTES) / 8;
    if words == 0 { 0 } else { 1 << words.ilog2() }
}
