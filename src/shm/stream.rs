//! A byte ring in shared memory, addressed by stream position.
//!
//! The ring itself holds no positions: they stand in the slot, one writer each. This type only turns a position into
//! a checked place: whatever the position, the bytes touched lie inside the ring.

use core::marker::PhantomData;

/// One ring of a slot. Made by [`crate::Region`] from its private geometry.
#[derive(Clone, Copy)]
pub struct Ring<'a> {
    base: *mut u8,
    /// Capacity - 1; the capacity is a power of two.
    mask: u64,
    _region: PhantomData<&'a [u8]>,
}

impl Ring<'_> {
    /// # Safety
    /// `base` must point to `capacity` bytes that stay mapped, readable and writable for the lifetime of the ring;
    /// `capacity` must be a power of two.
    #[cfg(not(loom))]
    pub(crate) unsafe fn new(base: *mut u8, capacity: u32) -> Self {
        debug_assert!(capacity.is_power_of_two());
        Self { base, mask: u64::from(capacity) - 1, _region: PhantomData }
    }

    /// Bytes that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.mask as usize + 1
    }

    /// Copies `data` to position `at`; of data longer than the ring only the first `capacity` bytes.
    pub fn write(&self, at: u64, data: &[u8]) {
        let data = &data[..data.len().min(self.capacity())];
        let (index, first) = self.split(at, data.len());
        // SAFETY: index + first <= capacity and data.len() - first <= index by `split`, so both copies stay inside the
        // ring. Another process may write the same bytes at the same time; they are plain bytes, read and written by
        // copies only, and no decision is taken on them in place.
        unsafe {
            core::ptr::copy_nonoverlapping(data.as_ptr(), self.base.add(index), first);
            if first < data.len() {
                core::ptr::copy_nonoverlapping(data[first..].as_ptr(), self.base, data.len() - first);
            }
        }
    }

    /// Copies from position `at` into `out`; only the first `capacity` bytes of `out` are filled.
    pub fn read(&self, at: u64, out: &mut [u8]) {
        let len = out.len().min(self.capacity());
        let out = &mut out[..len];
        let (index, first) = self.split(at, len);
        // SAFETY: as in `write`.
        unsafe {
            core::ptr::copy_nonoverlapping(self.base.add(index), out.as_mut_ptr(), first);
            if first < len {
                core::ptr::copy_nonoverlapping(self.base.cast_const(), out[first..].as_mut_ptr(), len - first);
            }
        }
    }

    /// The (at most two) pieces that hold `len` bytes from position `at`, as addresses: for `readv`-like calls.
    #[must_use]
    pub fn pieces(&self, at: u64, len: usize) -> [(*mut u8, usize); 2] {
        let len = len.min(self.capacity());
        let (index, first) = self.split(at, len);
        // SAFETY: index < capacity.
        [(unsafe { self.base.add(index) }, first), (self.base, len - first)]
    }

    /// Index of position `at`, and how many of `len` bytes lie before the ring's end.
    fn split(&self, at: u64, len: usize) -> (usize, usize) {
        let index = (at & self.mask) as usize;
        (index, len.min(self.capacity() - index))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_wrap() {
        let mut memory = [0u8; 64];
        // SAFETY: 64 bytes, alive for the test.
        let ring = unsafe { Ring::new(memory.as_mut_ptr(), 64) };
        for at in [0u64, 1, 60, 63, 64, 1000, u64::MAX - 5] {
            let data: [u8; 40] = core::array::from_fn(|i| (at as u8).wrapping_add(i as u8));
            ring.write(at, &data);
            let mut out = [0; 40];
            ring.read(at, &mut out);
            assert_eq!(out, data);
            let [(_, a), (_, b)] = ring.pieces(at, 40);
            assert_eq!(a + b, 40);
        }
    }

    #[test]
    fn more_than_the_ring_is_cut() {
        let mut memory = [0u8; 64];
        // SAFETY: as above.
        let ring = unsafe { Ring::new(memory.as_mut_ptr(), 64) };
        ring.write(7, &[9; 200]);
        let mut out = [1; 200];
        ring.read(7, &mut out);
        assert!(out[..64].iter().all(|&b| b == 9) && out[64..].iter().all(|&b| b == 1));
    }
}
