//! A lock among programs that survives the death of its holder.
//!
//! The word says which process holds it; when a process ends, the engine opens the locks it left behind. The engine
//! itself never waits for one.
//!
//! ```text
//!   free ── try_lock ──▶ held ── lend ──▶ lent ── take_back ──▶ held ── unlock ──▶ free
//! ```
//!
//! *Held* lasts for a copy; others wait for it. *Lent* lasts for as long as a program works in a piece of the ring that
//! it borrowed; others don't wait, they are refused.

use crate::sync::{AtomicU32, Ordering};

/// Beside the holder's number: the lock is lent.
const LENT: u32 = 1 << 31;

/// Takes the lock for `process`; false when another holds it. A thread must not take a lock twice.
#[must_use]
pub fn try_lock(word: &AtomicU32, process: u32) -> bool {
    word.compare_exchange(0, process + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// Gives it back.
pub fn unlock(word: &AtomicU32) {
    word.store(0, Ordering::Release);
}

/// The holder keeps the lock beyond its call: until [`take_back`] says so, nobody gets it.
pub fn lend(word: &AtomicU32, process: u32) {
    word.store((process + 1) | LENT, Ordering::Relaxed);
}

/// Whether the lock is lent, so that waiting for it is of no use.
#[must_use]
pub fn is_lent(word: &AtomicU32) -> bool {
    word.load(Ordering::Relaxed) & LENT != 0
}

/// Makes a lock that `process` lent a held one again. False: it wasn't lent by it, or another thread was first.
#[must_use]
pub fn take_back(word: &AtomicU32, process: u32) -> bool {
    word.compare_exchange((process + 1) | LENT, process + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// Opens the lock if the dead `process` held it: the engine's.
pub fn break_for(word: &AtomicU32, process: u32) {
    let held = word.compare_exchange(process + 1, 0, Ordering::AcqRel, Ordering::Relaxed);
    if held == Err((process + 1) | LENT) {
        let _ = word.compare_exchange((process + 1) | LENT, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}
