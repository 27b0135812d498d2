//! When the requests of an open loop are due.

use std::time::Duration;

/// A timer wakes up to 50 µs late (timer slack, prctl(2)): shorter gaps are waited out awake.
const TIMER_SLACK_NS: u64 = 100_000;

/// Moments at equal distances.
pub struct Schedule {
    start: u64,
    gap: f64,
    taken: u64,
}

impl Schedule {
    /// `rate` a second from `start` on, shifted by the share `shift` (0 to 1) of a gap.
    pub fn new(start: u64, rate: f64, shift: f64) -> Self {
        let gap = 1e9 / rate.max(1e-3);
        Self { start: start + (gap * shift) as u64, gap, taken: 0 }
    }

    fn next(&self) -> u64 {
        // From the start each time: a sum of gaps would drift.
        self.start + (self.gap * self.taken as f64) as u64
    }

    /// The next moment, if it has come.
    pub fn take(&mut self, now: u64) -> Option<u64> {
        let due = self.next();
        (due <= now).then(|| {
            self.taken += 1;
            due
        })
    }

    /// How long a wait may sleep.
    pub fn sleep(&self, now: u64) -> Duration {
        let left = self.next().saturating_sub(now);
        if left < TIMER_SLACK_NS { Duration::ZERO } else { Duration::from_nanos(left - TIMER_SLACK_NS / 2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_do_not_drift_and_are_never_skipped() {
        let mut schedule = Schedule::new(1_000, 3e6, 0.0);
        let moments: Vec<u64> = std::iter::from_fn(|| schedule.take(1_000_001_000)).collect();
        assert_eq!(moments.len(), 3_000_001);
        assert_eq!((moments[0], moments[3], moments[3_000_000]), (1_000, 2_000, 1_000_001_000));
        assert_eq!(schedule.take(1_000_001_000), None);
    }

    #[test]
    fn short_gaps_are_not_slept_through() {
        let schedule = Schedule::new(0, 1e6, 0.5);
        assert_eq!(schedule.sleep(0), Duration::ZERO);
        let schedule = Schedule::new(0, 1.0, 1.0);
        assert_eq!(schedule.sleep(0), Duration::from_nanos(1_000_000_000 - 50_000));
    }
}
