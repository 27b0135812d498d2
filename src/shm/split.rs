//! A stream's bytes while its ring is replaced by a larger one.
//!
//! A slot's own ring is small. When more is needed the engine takes a block out of the group's pool, and from a position
//! on the stream lies there:
//!
//! ```text
//!   positions    0 ............ at ............ tail
//!   lie in       [   before    ][     after      ]
//! ```
//!
//! Whoever writes the stream decides where `at` is (the engine for what it receives, the program for what it sends) and
//! leaves it in the slot as a *map*: `at << 1 | which`, with the block's reference in the slot's pair of references at
//! `which`. The map is written before the stream's tail moves beyond `at`, and the next switch waits until the reader
//! has passed `at`, so a reader that looks at the tail first and then at the map always has the right blocks: of the
//! pair, the one that it may still need is never overwritten.
//!
//! **Reference** of a block: 0 is the slot's own ring; else the logarithm of its length in the upper five bits and its
//! place in the pool, in units of [`GRANULE_BYTES`], in the others.

use crate::stream::Ring;

/// Unit of the pool, and its smallest block, in bytes.
pub const GRANULE_BYTES: u64 = 1 << GRANULE_SHIFT;
/// See [`GRANULE_BYTES`].
pub const GRANULE_SHIFT: u32 = 16;
/// Largest block: [`crate::layout::MAX_RING_BYTES`].
pub const MAX_BLOCK_SHIFT: u32 = 30;
const PLACE_BITS: u32 = 27;

/// The reference of the block of `1 << shift` bytes at `granule`.
#[must_use]
pub const fn reference(granule: u32, shift: u32) -> u32 {
    shift << PLACE_BITS | granule & ((1 << PLACE_BITS) - 1)
}

/// Granule and length (as a shift) of a reference that isn't 0. None: it can't be.
#[must_use]
pub const fn resolve(reference: u32) -> Option<(u32, u32)> {
    let (granule, shift) = (reference & ((1 << PLACE_BITS) - 1), reference >> PLACE_BITS);
    if shift < GRANULE_SHIFT || shift > MAX_BLOCK_SHIFT { None } else { Some((granule, shift)) }
}

/// The word that says from where on which of a pair of blocks is used.
#[must_use]
pub const fn map(at: u64, which: usize) -> u64 {
    at << 1 | which as u64 & 1
}

/// Position and which, of a word made by [`map`].
#[must_use]
pub const fn unmap(word: u64) -> (u64, usize) {
    (word >> 1, (word & 1) as usize)
}

/// One direction of a slot, with the block that it leaves and the one that it goes on in.
#[derive(Clone, Copy)]
pub struct Split<'a> {
    before: Ring<'a>,
    after: Ring<'a>,
    at: u64,
}

impl<'a> Split<'a> {
    /// Positions below `at` lie in `before`, the others in `after`.
    #[must_use]
    pub const fn new(before: Ring<'a>, after: Ring<'a>, at: u64) -> Self {
        Self { before, after, at }
    }

    /// Bytes that the stream's present block holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.after.capacity()
    }

    /// Most bytes that can be in both blocks together: what is more can only be damage.
    #[must_use]
    pub fn span(&self) -> usize {
        if self.at == 0 { self.after.capacity() } else { self.before.capacity() + self.after.capacity() }
    }

    /// Bytes that still fit behind `tail` when everything below `head` has been read.
    #[must_use]
    pub fn room(&self, head: u64, tail: u64) -> usize {
        let used = usize::try_from(tail.saturating_sub(head.max(self.at))).unwrap_or(usize::MAX);
        self.after.capacity().saturating_sub(used)
    }

    /// Whether `head` has passed the place of the last switch, so that another may follow.
    #[must_use]
    pub const fn is_settled(&self, head: u64) -> bool {
        head >= self.at
    }

    /// Copies `data` to position `at`; what is longer than a block is cut.
    pub fn write(&self, at: u64, data: &[u8]) {
        let first = self.below(at, data.len());
        if first > 0 {
            self.before.write(at, &data[..first]);
        }
        if first < data.len() {
            self.after.write(at.wrapping_add(first as u64), &data[first..]);
        }
    }

    /// Copies from position `at` into `out`; what is longer than a block is left as it is.
    pub fn read(&self, at: u64, out: &mut [u8]) {
        let first = self.below(at, out.len());
        if first > 0 {
            self.before.read(at, &mut out[..first]);
        }
        if first < out.len() {
            self.after.read(at.wrapping_add(first as u64), &mut out[first..]);
        }
    }

    /// Where the first of `len` bytes from position `at` lie, as addresses: at most two pieces, of one block. What lies
    /// in the other block is left out; ask again from where these end.
    #[must_use]
    pub fn pieces(&self, at: u64, len: usize) -> [(*mut u8, usize); 2] {
        match self.below(at, len) {
            0 => self.after.pieces(at, len),
            first => self.before.pieces(at, first),
        }
    }

    /// How many of `len` bytes from `position` on lie in the old block.
    fn below(&self, position: u64, len: usize) -> usize {
        usize::try_from(self.at.saturating_sub(position)).unwrap_or(usize::MAX).min(len)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn references_and_maps_come_back() {
        assert_eq!(resolve(reference(12_345, 20)), Some((12_345, 20)));
        assert_eq!(resolve(reference((1 << PLACE_BITS) - 1, 30)), Some(((1 << PLACE_BITS) - 1, 30)));
        assert!(resolve(0).is_none() && resolve(u32::MAX).is_none());
        assert_eq!(unmap(map(1 << 40, 1)), (1 << 40, 1));
        assert_eq!(unmap(0), (0, 0));
    }

    #[test]
    fn a_stream_goes_on_in_the_larger_block() {
        let (mut small, mut large) = ([0u8; 64], [0u8; 256]);
        // SAFETY: 64 and 256 bytes, alive for the test.
        let (before, after) = unsafe { (Ring::new(small.as_mut_ptr(), 64), Ring::new(large.as_mut_ptr(), 256)) };
        let at = 1000;
        let split = Split::new(before, after, at);
        let whole: [u8; 300] = core::array::from_fn(|i| (i * 7) as u8);
        // From 960 on: 40 bytes before the switch, 200 behind it, in writes that cross it.
        for (from, to) in [(0, 30), (30, 130), (130, 240)] {
            split.write(960 + from as u64, &whole[from..to]);
        }
        let mut out = [0; 240];
        split.read(960, &mut out[..100]);
        split.read(1060, &mut out[100..]);
        assert_eq!(out, whole[..240]);
        // Borrowed piece by piece it is the same: the old block's two, then the new one's.
        let (mut borrowed, mut from) = (Vec::new(), 960);
        while from < 1200 {
            let pieces = split.pieces(from, (1200 - from) as usize);
            // SAFETY: inside the arrays, which nobody writes now.
            let bytes = pieces.map(|(p, n)| unsafe { core::slice::from_raw_parts(p.cast_const(), n) }).concat();
            assert!(from >= 1000 || from + bytes.len() as u64 <= 1000);
            from += bytes.len() as u64;
            borrowed.extend(bytes);
        }
        assert_eq!(borrowed, whole[..240]);
        assert_eq!(
            (split.room(960, 1200), split.room(1100, 1200), split.capacity(), split.span()),
            (56, 156, 256, 320)
        );
        assert!(!split.is_settled(999) && split.is_settled(1000));
    }
}
