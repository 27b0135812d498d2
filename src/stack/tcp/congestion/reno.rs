//! Reno, RFC 5681.

use super::{Acked, CongestionControl, initial_window, is_window_limited, slow_start};
use crate::Instant;

/// Additive increase by one segment a round trip, halving on loss.
#[derive(Clone, Copy, Debug)]
pub struct Reno {
    window: u64,
    threshold: u64,
    /// Bytes acknowledged since the window grew last.
    credit: u64,
}

impl Reno {
    #[must_use]
    pub fn new(mss: u32) -> Self {
        Self { window: initial_window(mss), threshold: u64::MAX, credit: 0 }
    }
}

impl CongestionControl for Reno {
    fn window(&self) -> u64 {
        self.window
    }

    fn threshold(&self) -> u64 {
        self.threshold
    }

    fn on_ack(&mut self, acked: &Acked) {
        if !is_window_limited(self.window, self.threshold, acked) {
            return;
        }
        if self.window < self.threshold {
            self.window = slow_start(self.window, self.threshold, acked);
            return;
        }
        self.credit += acked.bytes;
        if self.credit >= self.window {
            self.credit -= self.window;
            self.window += u64::from(acked.mss);
        }
    }

    fn on_loss(&mut self, _now: Instant, in_flight: u64, mss: u32) {
        // RFC 5681 equation 4.
        self.threshold = (in_flight / 2).max(2 * u64::from(mss));
        self.window = self.threshold;
        self.credit = 0;
    }

    fn on_timeout(&mut self, _now: Instant, in_flight: u64, mss: u32, first: bool) {
        if first {
            self.threshold = (in_flight / 2).max(2 * u64::from(mss));
        }
        self.window = u64::from(mss);
        self.credit = 0;
    }

    fn on_idle(&mut self, mss: u32) {
        self.window = self.window.min(initial_window(mss));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    const fn acked(bytes: u64, in_flight: u64) -> Acked {
        Acked { now: Instant::ZERO, bytes, rtt: Duration::from_millis(10), in_flight, mss: 1000 }
    }

    #[test]
    fn doubles_then_adds() {
        let mut reno = Reno::new(1000);
        assert_eq!(reno.window(), 10_000);
        for _ in 0..10 {
            reno.on_ack(&acked(1000, 10_000));
        }
        assert_eq!(reno.window(), 20_000);
        reno.on_loss(Instant::ZERO, 20_000, 1000);
        assert_eq!((reno.window(), reno.threshold()), (10_000, 10_000));
        for _ in 0..10 {
            reno.on_ack(&acked(1000, 10_000));
        }
        assert_eq!(reno.window(), 11_000);
        reno.on_timeout(Instant::ZERO, 11_000, 1000, true);
        assert_eq!((reno.window(), reno.threshold()), (1000, 5500));
        reno.on_timeout(Instant::ZERO, 1000, 1000, false);
        assert_eq!(reno.threshold(), 5500);
    }

    #[test]
    fn unused_windows_stay() {
        let mut reno = Reno::new(1000);
        reno.on_ack(&acked(1000, 1000));
        assert_eq!(reno.window(), 10_000);
    }
}
