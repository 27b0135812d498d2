//! Dirty sets and doors: "look here", from many writers to one reader, at any moment, without a lock.
//!
//! A set is a tree of bits, 64 x 64 x 64. A writer sets the leaf, then the two words above it; the reader takes the
//! words from the top down. In the sequentially consistent order of these operations a writer that finds an upper
//! bit still set knows that the reader has not yet come by, so the reader will take the leaf too; and a writer that
//! died between two steps leaves a leaf that the next mark of any slot below the same word brings up.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A set of up to 262,144 slot numbers. All-zero memory is the empty set.
#[repr(C, align(64))]
pub struct DirtySet {
    top: AtomicU64,
    _line: [AtomicU64; 7],
    mid: [AtomicU64; 64],
    leaf: [AtomicU64; 4096],
}

/// The algorithm over borrowed words, so that loom can run it on a small tree.
#[derive(Clone, Copy)]
pub struct DirtyView<'a> {
    pub top: &'a AtomicU64,
    pub mid: &'a [AtomicU64],
    pub leaf: &'a [AtomicU64],
}

impl DirtySet {
    fn view(&self) -> DirtyView<'_> {
        DirtyView { top: &self.top, mid: &self.mid, leaf: &self.leaf }
    }

    /// Adds `slot`; numbers beyond the set are ignored.
    pub fn mark(&self, slot: u32) {
        self.view().mark(slot);
    }

    /// Whether nothing is marked. One load.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.view().is_empty()
    }

    /// Takes about `budget` numbers (whole words, so up to 63 more) and calls `each` for every one; the rest stays
    /// marked. Returns how many it took. Only one thread may harvest a set at a time.
    pub fn harvest(&self, budget: usize, each: impl FnMut(u32)) -> usize {
        self.view().harvest(budget, each)
    }

    /// Claims any one number out of the set, for sets that serve as lists of what is free. Any thread may.
    pub fn claim(&self) -> Option<u32> {
        self.view().claim()
    }

    /// Whether `slot` is in the set.
    #[must_use]
    pub fn contains(&self, slot: u32) -> bool {
        self.leaf.get(slot as usize / 64).is_some_and(|w| w.load(Ordering::SeqCst) & bit(slot) != 0)
    }

    /// Takes `slot` out; true when it was in.
    pub fn remove(&self, slot: u32) -> bool {
        self.leaf.get(slot as usize / 64).is_some_and(|w| w.fetch_and(!bit(slot), Ordering::SeqCst) & bit(slot) != 0)
    }

    /// Empties the set, whatever is in it.
    pub fn clear(&self) {
        self.top.store(0, Ordering::SeqCst);
        for w in self.mid.iter().chain(&self.leaf) {
            if w.load(Ordering::SeqCst) != 0 {
                w.store(0, Ordering::SeqCst);
            }
        }
    }
}

impl DirtyView<'_> {
    /// See [`DirtySet::mark`].
    pub fn mark(&self, slot: u32) {
        let (leaf, mid) = (slot as usize / 64, slot as usize / 4096);
        let (Some(leaf_word), Some(mid_word)) = (self.leaf.get(leaf), self.mid.get(mid)) else { return };
        leaf_word.fetch_or(bit(slot), Ordering::SeqCst);
        raise(mid_word, bit(slot / 64));
        raise(self.top, bit(slot / 4096));
    }

    /// See [`DirtySet::is_empty`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.top.load(Ordering::SeqCst) == 0
    }

    /// See [`DirtySet::harvest`].
    pub fn harvest(&self, budget: usize, mut each: impl FnMut(u32)) -> usize {
        if self.top.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut taken = 0;
        let mut top = self.top.swap(0, Ordering::SeqCst);
        while let Some(m) = lowest(top).filter(|&m| m < self.mid.len()) {
            top &= top - 1;
            let mut mid = self.mid[m].swap(0, Ordering::SeqCst);
            while let Some(l) = lowest(mid).map(|l| m * 64 + l).filter(|&l| l < self.leaf.len()) {
                mid &= mid - 1;
                let mut leaf = self.leaf[l].swap(0, Ordering::SeqCst);
                while let Some(b) = lowest(leaf) {
                    leaf &= leaf - 1;
                    taken += 1;
                    each((l * 64 + b) as u32);
                }
                if taken >= budget {
                    // Put back the paths to what was not taken: leaves first stay as they are, then mid, then top.
                    if mid != 0 {
                        self.mid[m].fetch_or(mid, Ordering::SeqCst);
                        top |= 1 << m;
                    }
                    self.top.fetch_or(top, Ordering::SeqCst);
                    return taken;
                }
            }
        }
        taken
    }

    /// See [`DirtySet::claim`].
    pub fn claim(&self) -> Option<u32> {
        // Upper words are hints here (a claim leaves them set), so look below each, and fall back to the leaves.
        for (l, word) in self.leaf.iter().enumerate() {
            let mut seen = word.load(Ordering::SeqCst);
            while let Some(b) = lowest(seen) {
                if word.fetch_and(!(1 << b), Ordering::SeqCst) & (1 << b) != 0 {
                    return Some((l * 64 + b) as u32);
                }
                seen = word.load(Ordering::SeqCst);
            }
        }
        None
    }
}

/// Sets `bits` in `word` unless they are set: the load is cheaper than a locked write where a line is shared.
fn raise(word: &AtomicU64, bits: u64) {
    if word.load(Ordering::SeqCst) & bits != bits {
        word.fetch_or(bits, Ordering::SeqCst);
    }
}

fn bit(n: u32) -> u64 {
    1 << (n % 64)
}

fn lowest(word: u64) -> Option<usize> {
    (word != 0).then(|| word.trailing_zeros() as usize)
}

/// The flag of a side that may sleep.
#[derive(Default)]
#[repr(C, align(64))]
pub struct Door {
    sleeping: AtomicU32,
    _line: [AtomicU32; 15],
}

impl Door {
    /// The owner is about to sleep. After this it must look at its dirty set once more before it does.
    pub fn close(&self) {
        // A swap, as in `open`: the same instruction as a store on x86, and it leaves no doubt about its place among
        // the swaps of those who ring.
        self.sleeping.swap(1, Ordering::SeqCst);
    }

    /// The owner is awake.
    pub fn open(&self) {
        self.sleeping.swap(0, Ordering::SeqCst);
    }

    /// After a mark: true when the owner sleeps and this caller is the one that has to ring.
    #[must_use]
    pub fn must_ring(&self) -> bool {
        self.sleeping.load(Ordering::SeqCst) != 0 && self.sleeping.swap(0, Ordering::SeqCst) != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use super::*;
    use std::{boxed::Box, vec::Vec};

    fn empty() -> Box<DirtySet> {
        let layout = std::alloc::Layout::new::<DirtySet>();
        // SAFETY: the layout has a size; all-zero atomics are valid; the box frees with the same layout.
        unsafe { Box::from_raw(std::alloc::alloc_zeroed(layout).cast()) }
    }

    #[test]
    fn what_is_marked_is_harvested_once() {
        let set = empty();
        let marks = [0, 1, 63, 64, 4095, 4096, 100_000, 262_143];
        for m in marks.into_iter().chain([63, 262_144, u32::MAX]) {
            set.mark(m);
        }
        let mut seen = Vec::new();
        assert_eq!(set.harvest(usize::MAX, |s| seen.push(s)), marks.len());
        assert_eq!(seen, marks);
        assert!(set.is_empty());
        assert_eq!(set.harvest(usize::MAX, |_| unreachable!()), 0);
    }

    #[test]
    fn a_budget_leaves_the_rest_marked() {
        let set = empty();
        (0..20_000).for_each(|s| set.mark(s));
        let mut seen = Vec::new();
        while set.harvest(100, |s| seen.push(s)) > 0 {}
        assert_eq!(seen, (0..20_000).collect::<Vec<_>>());
    }

    #[test]
    fn claims_are_exclusive() {
        let set = empty();
        (0..1000).for_each(|s| set.mark(s));
        let mut all: Vec<u32> = std::thread::scope(|scope| {
            let hands: Vec<_> =
                (0..4).map(|_| scope.spawn(|| std::iter::from_fn(|| set.claim()).collect::<Vec<_>>())).collect();
            hands.into_iter().flat_map(|h| h.join().unwrap()).collect()
        });
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
        set.mark(5);
        assert!(set.contains(5) && set.remove(5) && !set.remove(5));
    }
}
