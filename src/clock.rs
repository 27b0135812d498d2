//! The only reader of time. Everything else is handed an [`Instant`].

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
