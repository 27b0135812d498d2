//! Round-trip time and retransmission timeout (RFC 6298), in nanoseconds.

use crate::Instant;
use core::time::Duration;

/// The shortest round trip is that of the last five minutes (Linux's tcp_min_rtt_wlen), looked at in halves: paths
/// change, and a time that is too short for the present one makes losses of what is only late.
const MINIMUM_LIFETIME: Duration = Duration::from_secs(150);

/// RFC 6298 2.1 without a sample yet.
const INITIAL_RTO: u64 = 1_000_000_000;

/// Estimates of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rtt {
    smoothed: u64,
    variation: u64,
    recent_since: Instant,
    /// Smallest sample of this half and the last, in microseconds; `u32::MAX` before the first.
    minimum: u32,
    /// Smallest sample since then.
    recent: u32,
}

impl Rtt {
    pub const fn new() -> Self {
        Self { smoothed: 0, variation: 0, recent_since: Instant::ZERO, minimum: u32::MAX, recent: u32::MAX }
    }

    /// Takes a sample of a segment that was sent once (Karn's rule is the caller's). `shortest`: of the segments that
    /// arrived with it, the one sent last; an ACK that was held back measures the path by it, and the timeout by the
    /// other.
    pub fn sample(&mut self, now: Instant, rtt: Duration, shortest: Duration) {
        let rtt = nanos(rtt).max(1);
        let shortest = u32::try_from(shortest.as_micros()).unwrap_or(u32::MAX - 1).max(1);
        if self.minimum == u32::MAX {
            self.smoothed = rtt;
            self.variation = rtt / 2;
        } else {
            // RFC 6298 2.3: alpha 1/8, beta 1/4.
            self.variation = self.variation - self.variation / 4 + self.smoothed.abs_diff(rtt) / 4;
            self.smoothed = self.smoothed - self.smoothed / 8 + rtt / 8;
        }
        if now.since(self.recent_since) > MINIMUM_LIFETIME {
            self.minimum = self.recent;
            self.recent = u32::MAX;
            self.recent_since = now;
        }
        self.recent = self.recent.min(shortest);
        self.minimum = self.minimum.min(shortest);
    }

    pub const fn has_sample(&self) -> bool {
        self.minimum != u32::MAX
    }

    pub const fn smoothed(&self) -> Duration {
        Duration::from_nanos(self.smoothed)
    }

    pub const fn variation(&self) -> Duration {
        Duration::from_nanos(self.variation)
    }

    /// None before the first sample.
    pub fn minimum(&self) -> Option<Duration> {
        self.has_sample().then_some(Duration::from_micros(self.minimum.into()))
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

    fn sample(rtt: &mut Rtt, seconds: u64, took: Duration) {
        rtt.sample(Instant::from_millis(seconds * 1000), took, took);
    }

    #[test]
    fn the_minimum_is_of_the_last_minutes() {
        let mut rtt = Rtt::new();
        sample(&mut rtt, 1000, Duration::from_millis(10));
        for seconds in 1001..1100 {
            sample(&mut rtt, seconds, Duration::from_millis(50));
            assert_eq!(rtt.minimum(), Some(Duration::from_millis(10)));
        }
        for seconds in 1100..1500 {
            sample(&mut rtt, seconds, Duration::from_millis(50));
        }
        assert_eq!(rtt.minimum(), Some(Duration::from_millis(50)));
    }

    #[test]
    fn of_the_rfc() {
        let mut rtt = Rtt::new();
        assert_eq!(rtt.timeout(0, MIN, MAX), Duration::from_secs(1));
        assert_eq!(rtt.timeout(3, MIN, MAX), Duration::from_secs(8));
        sample(&mut rtt, 0, Duration::from_millis(100));
        assert_eq!(rtt.timeout(0, MIN, MAX), Duration::from_millis(300));
        sample(&mut rtt, 0, Duration::from_millis(500));
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
            sample(&mut rtt, 0, Duration::from_micros(20));
        }
        assert!(rtt.smoothed().abs_diff(Duration::from_micros(20)) < Duration::from_nanos(20));
        assert!(rtt.timeout(0, Duration::from_millis(1), MAX) < Duration::from_micros(1100));
    }
}
