//! A lock among programs that survives the death of its holder.
//!
//! The word says which process holds it; when a process ends, the engine opens the locks it left behind. The engine
//! itself never waits for one.

use crate::sync::{AtomicU32, Ordering};

/// Takes the lock for `process`; false when another holds it. A thread must not take a lock twice.
#[must_use]
pub fn try_lock(word: &AtomicU32, process: u32) -> bool {
    word.compare_exchange(0, process + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// Gives it back.
pub fn unlock(word: &AtomicU32) {
    word.store(0, Ordering::Release);
}

/// Opens the lock if the dead `process` held it: the engine's.
pub fn break_for(word: &AtomicU32, process: u32) {
    let _ = word.compare_exchange(process + 1, 0, Ordering::AcqRel, Ordering::Relaxed);
}
