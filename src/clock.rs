//! The only reader of time. Everything else is handed an [`Instant`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sidestep_stack::Instant;

/// Where a loop gets the time from: the machine, or a simulation.
pub trait Clock {
    /// Nanoseconds that only go forward.
    fn now(&self) -> Instant;
}

/// CLOCK_MONOTONIC, the clock that `bpf_ktime_get_ns` reads too.
#[derive(Clone, Copy, Debug, Default)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn now(&self) -> Instant {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Instant::from_nanos(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
    }
}

/// A clock that stands still until it is set. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock(Arc<AtomicU64>);

impl VirtualClock {
    #[must_use]
    pub fn at(start: Instant) -> Self {
        Self(Arc::new(AtomicU64::new(start.as_nanos())))
    }

    /// Sets the time; an earlier one than it is has no effect.
    pub fn set(&self, now: Instant) {
        self.0.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::Relaxed))
    }
}
