//! Stamps for the engine's latency profile: when this program noticed bytes, read them, and wrote.
//!
//! The engine follows a small sample of requests. For those it leaves a number in the slot, in a line that these calls
//! read anyway; everybody else pays for two loads. Whoever stamps holds the lock of that direction, but for
//! [`woke`], where two threads that notice at once may both stamp: either is as good.

use core::sync::atomic::Ordering;

use sidestep_shm::Slot;

use crate::sys::now_ns;

/// There is something to read, and a program has noticed.
#[inline]
pub(crate) fn woke(shared: &Slot) {
    let probe = shared.rx_probe.load(Ordering::Relaxed);
    if probe != 0 && shared.woke_probe.load(Ordering::Relaxed) != probe {
        stamp_woke(shared, probe);
    }
}

#[cold]
fn stamp_woke(shared: &Slot, probe: u64) {
    shared.woke_ns.store(now_ns(), Ordering::Relaxed);
    shared.woke_probe.store(probe, Ordering::Release);
}

/// Bytes up to `to` were read.
#[inline]
pub(crate) fn read(shared: &Slot, to: u64) {
    let probe = shared.rx_probe.load(Ordering::Relaxed);
    if probe != 0 && to >= probe && shared.read_probe.load(Ordering::Relaxed) != probe {
        stamp_read(shared, probe);
    }
}

#[cold]
fn stamp_read(shared: &Slot, probe: u64) {
    shared.read_ns.store(now_ns(), Ordering::Relaxed);
    shared.read_probe.store(probe, Ordering::Release);
}

/// Bytes up to `to` lie in the ring, and the engine is about to hear of them.
#[inline]
pub(crate) fn wrote(shared: &Slot, to: u64) {
    let probe = shared.tx_probe.load(Ordering::Relaxed);
    if probe != 0 && shared.tx_probe_done.load(Ordering::Relaxed) != probe {
        stamp_wrote(shared, probe, to);
    }
}

#[cold]
fn stamp_wrote(shared: &Slot, probe: u32, to: u64) {
    shared.tx_probe_ns.store(now_ns(), Ordering::Relaxed);
    shared.tx_probe_end.store(to, Ordering::Relaxed);
    shared.tx_probe_done.store(probe, Ordering::Release);
}
