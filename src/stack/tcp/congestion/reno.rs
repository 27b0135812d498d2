//! Reno, RFC 5681.

use super::{Acked, Cause, Congested, CongestionControl, initial_window, slow_start};

/// Additive increase by one segment a round trip, halving on loss.
#[derive(Clone, Copy, Debug)]
pub struct Reno {
    window: u64,
    threshold: u64,
    /// Bytes acknowledged since the window grew last.
    credit: u64,
    /// Window and threshold before the last reduction.
    before: (u64, u64),
}

impl Reno {
    #[must_use]
    pub fn new(mss: u32) -> Self {
        Self { window: initial_window(mss), threshold: u64::MAX, credit: 0, before: (0, 0) }
    }

    /// Reduces the threshold to `threshold` of what was there before, and the window as `congested` says.
    pub(super) fn reduce_to(&mut self, threshold: u64, congested: &Congested) {
        let mss = u64::from(congested.mss);
        if congested.cause != (Cause::Timeout { reduce: false }) {
            self.before = (self.window, self.threshold);
            self.threshold = threshold.max(2 * mss);
        }
        self.window = match congested.cause {
            Cause::Timeout { .. } => congested.in_flight + mss,
            Cause::Loss | Cause::Marks => self.threshold,
        };
        self.credit = 0;
    }
}

impl CongestionControl for Reno {
    fn window(&self) -> u64 {
        self.window
    }

    fn threshold(&self) -> u64 {
        self.threshold
    }

    fn set(&mut self, window: u64, threshold: u64) {
        self.window = window;
        self.threshold = threshold;
        self.credit = 0;
    }

    fn on_ack(&mut self, acked: &Acked) {
        if !acked.limited {
            return;
        }
        let mut bytes = acked.bytes;
        if self.window < self.threshold {
            (self.window, bytes) = slow_start(self.window, self.threshold, bytes);
        }
        self.credit += bytes;
        if self.credit >= self.window {
            self.credit -= self.window;
            self.window += u64::from(acked.mss);
        }
    }

    fn on_congestion(&mut self, congested: &Congested) {
        // Equation 4, and its warning: the window may be larger than what was in use, but what limited transmit added
        // doesn't count.
        self.reduce_to(self.window.min(congested.outstanding) / 2, congested);
    }

    fn undo(&mut self) {
        self.window = self.window.max(self.before.0);
        self.threshold = self.threshold.max(self.before.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Instant;
    use core::time::Duration;

    pub const fn acked(bytes: u64, limited: bool) -> Acked {
        let rtt = Duration::from_millis(10);
        Acked { now: Instant::ZERO, bytes, rtt, sample: Some(rtt), una: 0, nxt: 0, limited, mss: 1000 }
    }

    const fn congested(cause: Cause, outstanding: u64, in_flight: u64) -> Congested {
        Congested { now: Instant::ZERO, cause, outstanding, in_flight, mss: 1000 }
    }

    #[test]
    fn doubles_then_adds() {
        let mut reno = Reno::new(1000);
        assert_eq!(reno.window(), 10_000);
        for _ in 0..10 {
            reno.on_ack(&acked(1000, true));
        }
        assert_eq!(reno.window(), 20_000);
        reno.on_congestion(&congested(Cause::Loss, 22_000, 17_000));
        assert_eq!((reno.window(), reno.threshold()), (10_000, 10_000));
        for _ in 0..10 {
            reno.on_ack(&acked(1000, true));
        }
        assert_eq!(reno.window(), 11_000);
        reno.on_congestion(&congested(Cause::Timeout { reduce: true }, 11_000, 2000));
        assert_eq!((reno.window(), reno.threshold()), (3000, 5500));
        reno.on_congestion(&congested(Cause::Timeout { reduce: false }, 1000, 0));
        assert_eq!((reno.window(), reno.threshold()), (1000, 5500));
        reno.undo();
        assert_eq!((reno.window(), reno.threshold()), (11_000, 10_000));
    }

    #[test]
    fn slow_start_ends_at_the_threshold_and_the_rest_counts() {
        let mut reno = Reno::new(1000);
        reno.set(10_000, 12_000);
        reno.on_ack(&acked(14_000, true));
        assert_eq!(reno.window(), 13_000);
    }

    #[test]
    fn unused_windows_stay() {
        let mut reno = Reno::new(1000);
        reno.on_ack(&acked(1000, false));
        assert_eq!(reno.window(), 10_000);
    }
}
