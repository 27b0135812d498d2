//! Round-trip time and retransmission timeout (RFC 6298), in nanoseconds.

use core::time::Duration;

/// RFC 6298 2.1 without a sample yet.
const INITIAL_RTO: u64 = 1_000_000_000;

/// Estimates of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rtt {
    smoothed: u64,
    variation: u64,
    /// Smallest sample so far; `u64::MAX` before the first.
    minimum: u64,
}

impl Rtt {
    pub const fn new() -> Self {
        Self { smoothed: 0, variation: 0, minimum: u64::MAX }
    }

    /// Takes a sample of a segment that was sent once (Karn's rule is the caller's).
    pub fn sample(&mut self, rtt: Duration) {
        let rtt = nanos(rtt).max(1);
        if self.minimum == u64::MAX {
            self.smoothed = rtt;
            self.variation = rtt / 2;
        } else {
            // RFC 6298 2.3: alpha 1/8, beta 1/4.
            self.variation = self.variation - self.variation / 4 + self.smoothed.abs_diff(rtt) / 4;
            self.smoothed = self.smoothed - self.smoothed / 8 + rtt / 8;
        }
        self.minimum = self.minimum.min(rtt);
    }

    pub const fn has_sample(&self) -> bool {
        self.minimum != u64::MAX
    }

    pub const fn smoothed(&self) -> Duration {
        Duration::from_nanos(self.smoothed)
    }

    pub const fn variation(&self) -> Duration {
        Duration::from_nanos(self.variation)
    }

    /// None before the first sample.
    pub fn minimum(&self) -> Option<Duration> {
        self.has_sample().then_some(Duration::from_nanos(self.minimum))
    }

    /// The timeout after `backoff` timeouts in a row. As Linux, the minimum bounds the variation's part and not the
    /// sum: with a peer that holds its ACKs back for 200 ms, a timeout of exactly 200 ms would always be too early.
    pub fn timeout(&self, backoff: u8, min: Duration, max: Duration) -> Duration {
        let base = if self.has_sample() {
            self.smoothed.saturating_add(self.variation.saturating_mul(4).max(nanos(min)))
        } else {
            INITIAL_RTO
        };
        Duration::from_nanos(base.saturating_mul(1 << backoff.min(20)).min(nanos(max)))
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(200);
    const MAX: Duration = Duration::from_secs(120);

    #[test]
    fn of_the_rfc() {
        let mut rtt = Rtt::new();
        assert_eq!(rtt.timeout(0, MIN, MAX), Duration::from_secs(1));
        assert_eq!(rtt.timeout(3, MIN, MAX), Duration::from_secs(8));
        rtt.sample(Duration::from_millis(100));
        assert_eq!(rtt.timeout(0, MIN, MAX), Duration::from_millis(300));
        rtt.sample(Duration::from_millis(500));
        // variation 50 - 12.5 + 100, smoothed 100 - 12.5 + 62.5
        assert_eq!(rtt.variation(), Duration::from_micros(137_500));
        assert_eq!(rtt.smoothed(), Duration::from_millis(150));
        assert_eq!(rtt.timeout(0, MIN, MAX), Duration::from_millis(700));
        assert_eq!(rtt.timeout(200, MIN, MAX), MAX);
        assert_eq!(rtt.minimum(), Some(Duration::from_millis(100)));
    }

    #[test]
    fn microseconds_count() {
        let mut rtt = Rtt::new();
        for _ in 0..100 {
            rtt.sample(Duration::from_micros(20));
        }
        assert!(rtt.smoothed().abs_diff(Duration::from_micros(20)) < Duration::from_nanos(20));
        assert!(rtt.timeout(0, Duration::from_millis(1), MAX) < Duration::from_micros(1100));
    }
}
