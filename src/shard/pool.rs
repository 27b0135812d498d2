//! Which parts of a group's pool are free: a buddy allocator over granules of 64 KiB, this shard's alone.
//!
//! Blocks are powers of two, aligned to their size. What is given back becomes memory of the machine again, but for a
//! few that are kept warm: the next stream that grows finds its pages there.

use std::collections::BTreeSet;

use sidestep_shm::split::{GRANULE_SHIFT, MAX_BLOCK_SHIFT, reference, resolve};

/// Bytes of free blocks whose pages are kept.
const WARM_BYTES: u64 = 16 << 20;
/// Sizes of blocks.
const ORDERS: usize = (MAX_BLOCK_SHIFT - GRANULE_SHIFT) as usize + 1;

#[derive(Debug)]
pub(super) struct Pool {
    /// Free blocks by order (granules as a power of two), cold.
    free: [BTreeSet<u32>; ORDERS],
    /// Free blocks whose pages are there, the warmest last.
    warm: [Vec<u32>; ORDERS],
    warm_bytes: u64,
    first: u32,
    /// Bytes given out.
    used: u64,
}

impl Pool {
    /// All of these granules are free.
    pub fn new(granules: std::ops::Range<u32>) -> Self {
        let mut pool = Self {
            free: std::array::from_fn(|_| BTreeSet::new()),
            warm: std::array::from_fn(|_| Vec::new()),
            warm_bytes: 0,
            first: granules.start,
            used: 0,
        };
        let (mut at, end) = (0, granules.end - granules.start);
        while at < end {
            let aligned = if at == 0 { u32::MAX.count_ones() - 1 } else { at.trailing_zeros() };
            let order = aligned.min((end - at).ilog2()).min(ORDERS as u32 - 1);
            pool.free[order as usize].insert(at);
            at += 1 << order;
        }
        pool
    }

    /// Bytes given out.
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// A block of at least `bytes`, as a reference. None: there is none.
    pub fn take(&mut self, bytes: u32) -> Option<u32> {
        let shift = bytes.max(1 << GRANULE_SHIFT).checked_next_power_of_two()?.trailing_zeros();
        let order = shift.checked_sub(GRANULE_SHIFT).filter(|&o| (o as usize) < ORDERS)? as usize;
        let at = if let Some(at) = self.warm[order].pop() {
            self.warm_bytes -= 1 << shift;
            at
        } else {
            self.split(order).or_else(|| {
                // What is kept warm may be what is missing.
                self.cool();
                self.split(order)
            })?
        };
        self.used += 1 << shift;
        Some(reference(self.first + at, shift))
    }

    fn split(&mut self, order: usize) -> Option<u32> {
        let from = (order..ORDERS).find(|&o| !self.free[o].is_empty())?;
        let at = self.free[from].pop_first()?;
        for o in order..from {
            self.free[o].insert(at + (1 << o));
        }
        Some(at)
    }

    /// Takes a block back. True: its pages should be given back to the machine.
    pub fn give(&mut self, block: u32) -> bool {
        let Some((granule, shift)) = resolve(block) else { return false };
        let (at, order) = (granule - self.first, (shift - GRANULE_SHIFT) as usize);
        self.used -= 1 << shift;
        if self.warm_bytes + (1 << shift) <= WARM_BYTES {
            self.warm_bytes += 1 << shift;
            self.warm[order].push(at);
            return false;
        }
        self.merge(at, order);
        true
    }

    fn merge(&mut self, mut at: u32, mut order: usize) {
        while order + 1 < ORDERS && self.free[order].remove(&(at ^ 1 << order)) {
            at &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(at);
    }

    /// Warm blocks become ordinary free ones. Their pages stay until they are used or given out again.
    fn cool(&mut self) {
        for order in 0..ORDERS {
            for at in std::mem::take(&mut self.warm[order]) {
                self.merge(at, order);
            }
        }
        self.warm_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn free_granules(pool: &Pool) -> u32 {
        let cold: usize = pool.free.iter().enumerate().map(|(o, f)| f.len() << o).sum();
        let warm: usize = pool.warm.iter().enumerate().map(|(o, f)| f.len() << o).sum();
        (cold + warm) as u32
    }

    #[test]
    fn everything_can_be_taken_and_comes_back_whole() {
        let mut pool = Pool::new(48..48 + 21);
        let mut taken = Vec::new();
        while let Some(block) = pool.take(1) {
            taken.push(block);
        }
        assert_eq!((taken.len(), pool.used()), (21, 21 << 16));
        assert_eq!(pool.take(1), None);
        for block in taken {
            pool.give(block);
        }
        assert_eq!(pool.used(), 0);
        // The pieces have found together again: 16 + 4 + 1.
        let large = pool.take(16 << 16).unwrap();
        assert_eq!(resolve(large), Some((48, 20)));
        assert!(pool.take(8 << 16).is_none() && pool.take(4 << 16).is_some() && pool.take(u32::MAX).is_none());
    }

    proptest! {
        #[test]
        fn blocks_never_overlap(steps in prop::collection::vec((any::<bool>(), 0_u32..24), 1..200)) {
            let total = 700;
            let mut pool = Pool::new(100..100 + total);
            let mut held: Vec<u32> = Vec::new();
            for (take, n) in steps {
                if take || held.is_empty() {
                    held.extend(pool.take(1 << n));
                } else {
                    let block = held.swap_remove(n as usize % held.len());
                    pool.give(block);
                }
                let mut spans: Vec<_> = held.iter().map(|b| resolve(*b).unwrap()).map(|(g, s)| (g, g + (1 << (s - GRANULE_SHIFT)))).collect();
                spans.sort_unstable();
                prop_assert!(spans.windows(2).all(|w| w[0].1 <= w[1].0));
                prop_assert!(spans.iter().all(|s| s.0 >= 100 && s.1 <= 100 + total));
                let used: u32 = spans.iter().map(|s| s.1 - s.0).sum();
                prop_assert_eq!((u64::from(used) << 16, free_granules(&pool)), (pool.used(), total - used));
            }
        }
    }
}
