//! CUBIC, RFC 9438.

use super::{Acked, CongestionControl, initial_window, is_window_limited, slow_start};
use crate::Instant;
use core::time::Duration;

/// RFC 9438 4.1: multiplicative decrease, and the scale of the cubic function in segments per second cubed.
const BETA: f64 = 0.7;
const C: f64 = 0.4;

/// Window growth as a cubic function of the time since the last loss.
#[derive(Clone, Copy, Debug)]
pub struct Cubic {
    window: u64,
    threshold: u64,
    /// Everything below in segments.
    /// Window before the last reduction, where the plateau of the curve is.
    w_max: f64,
    /// What Reno would have now (4.3).
    w_est: f64,
    /// Seconds from the start of the epoch to the plateau.
    k: f64,
    /// Start of this epoch of congestion avoidance; None until the first ACK in it.
    epoch: Option<Instant>,
    /// Since when the window hasn't been in use.
    unused_since: Option<Instant>,
    /// Window at which Reno's estimate may grow as fast as Reno.
    cwnd_prior: f64,
    /// Part of a byte that the window has grown by.
    fraction: f64,
}

impl Cubic {
    #[must_use]
    pub fn new(mss: u32) -> Self {
        Self {
            window: initial_window(mss),
            threshold: u64::MAX,
            w_max: 0.0,
            w_est: 0.0,
            k: 0.0,
            epoch: None,
            unused_since: None,
            cwnd_prior: 0.0,
            fraction: 0.0,
        }
    }

    fn reduce(&mut self, mss: u32) {
        let mss = f64::from(mss);
        let window = segments(self.window, mss);
        // 4.7 fast convergence: a flow that lost before it came back to its plateau leaves room for others.
        self.w_max = if window < self.w_max { window * (1.0 + BETA) / 2.0 } else { window };
        self.cwnd_prior = window;
        self.epoch = None;
        // 4.6 allows the window in place of what is in flight if, as here, it doesn't grow without being in use. One
        // loss in a pause of the program then doesn't cost everything that was learned (as Linux).
        self.threshold = bytes((window * BETA).max(2.0), mss);
    }

    fn begin_epoch(&mut self, now: Instant, mss: f64) -> Instant {
        let window = segments(self.window, mss);
        if self.w_max < window {
            self.w_max = window;
            self.k = 0.0;
        } else {
            self.k = cube_root((self.w_max - window) / C);
        }
        self.w_est = window;
        self.fraction = 0.0;
        self.epoch = Some(now);
        now
    }
}

impl CongestionControl for Cubic {
    fn window(&self) -> u64 {
        self.window
    }

    fn threshold(&self) -> u64 {
        self.threshold
    }

    fn on_ack(&mut self, acked: &Acked) {
        if !is_window_limited(self.window, self.threshold, acked) {
            self.unused_since.get_or_insert(acked.now);
            return;
        }
        if let (Some(since), Some(epoch)) = (self.unused_since.take(), &mut self.epoch) {
            // 5.8: the curve must not run on while the window isn't in use.
            *epoch = *epoch + acked.now.since(since);
        }
        if self.window < self.threshold {
            self.window = slow_start(self.window, self.threshold, acked);
            return;
        }
        let mss = f64::from(acked.mss);
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => self.begin_epoch(acked.now, mss),
        };
        let window = segments(self.window, mss);
        let elapsed = seconds(acked.now.since(epoch));
        let curve = |t: f64| C * cube(t - self.k) + self.w_max;
        // 4.2: where the curve will be a round trip from now, at most half as much again.
        let target = curve(elapsed + seconds(acked.rtt)).clamp(window, 1.5 * window);
        // 4.3: never slower than Reno would be.
        let alpha = if self.w_est >= self.cwnd_prior { 1.0 } else { 3.0 * (1.0 - BETA) / (1.0 + BETA) };
        self.w_est += alpha * segments(acked.bytes, mss) / window;
        let grown = if curve(elapsed) < self.w_est {
            self.w_est.max(window)
        } else {
            window + (target - window) / window * segments(acked.bytes, mss)
        };
        let exact = grown * mss + self.fraction;
        self.window = bytes(exact, 1.0).max(self.window);
        self.fraction = (exact - segments(self.window, 1.0)).clamp(0.0, 1.0);
    }

    fn on_loss(&mut self, _now: Instant, _in_flight: u64, mss: u32) {
        self.reduce(mss);
        self.window = self.threshold;
    }

    fn on_timeout(&mut self, _now: Instant, _in_flight: u64, mss: u32, first: bool) {
        // 4.8: as Reno, but with this beta.
        if first {
            self.reduce(mss);
        }
        self.window = u64::from(mss);
        self.epoch = None;
    }

    fn on_idle(&mut self, mss: u32) {
        self.window = self.window.min(initial_window(mss));
        self.epoch = None;
    }
}

#[allow(clippy::cast_precision_loss)]
fn segments(bytes: u64, mss: f64) -> f64 {
    bytes as f64 / mss
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn bytes(segments: f64, mss: f64) -> u64 {
    // A float cast saturates; the bound keeps sums with it away from overflow.
    ((segments * mss) as u64).min(1 << 40)
}

fn seconds(d: Duration) -> f64 {
    d.as_secs_f64()
}

fn cube(x: f64) -> f64 {
    x * x * x
}

/// By Newton's method: `core` has no `cbrt`. Same result on every machine.
fn cube_root(x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    // A third of the exponent is close enough to begin with.
    let mut y = f64::from_bits(x.to_bits() / 3 + 0x2a9f_7893_0000_0000);
    for _ in 0..4 {
        y = (2.0 * y + x / (y * y)) / 3.0;
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots() {
        for x in [1e-3_f64, 0.5, 1.0, 8.0, 27.0, 1e6, 1e9] {
            assert!((cube_root(x) - x.cbrt()).abs() < 1e-9 * x.cbrt(), "{x}");
        }
        assert!(cube_root(0.0) == 0.0 && cube_root(-1.0) == 0.0);
    }

    fn one_round_trip(cubic: &mut Cubic, now: Instant) {
        let window = cubic.window();
        for _ in 0..window / 1000 {
            let in_flight = cubic.window();
            cubic.on_ack(&Acked { now, bytes: 1000, rtt: Duration::from_millis(100), in_flight, mss: 1000 });
        }
    }

    #[test]
    fn comes_back_to_the_plateau_and_passes_it() {
        let mut cubic = Cubic::new(1000);
        let mut now = Instant::ZERO;
        while cubic.window() < 1_000_000 {
            one_round_trip(&mut cubic, now);
        }
        let before = cubic.window();
        cubic.on_loss(now, before, 1000);
        assert_eq!(cubic.window(), before * 7 / 10);
        // K = cbrt(W * 0.3 / 0.4) seconds.
        let k = (before as f64 / 1000.0 * 0.75).cbrt();
        let mut at_plateau = 0;
        while now < Instant::from_millis((k * 2000.0) as u64) {
            one_round_trip(&mut cubic, now);
            now = now + Duration::from_millis(100);
            if now <= Instant::from_millis((k * 1000.0) as u64) {
                at_plateau = cubic.window();
            }
        }
        assert!(at_plateau > before * 97 / 100 && at_plateau < before * 103 / 100, "{at_plateau} of {before}");
        assert!(cubic.window() > before * 12 / 10, "{} after {before}", cubic.window());
    }

    #[test]
    fn losses_shrink_it_to_two_segments_at_least() {
        let mut cubic = Cubic::new(1000);
        for _ in 0..20 {
            let window = cubic.window();
            cubic.on_loss(Instant::ZERO, window, 1000);
        }
        assert_eq!(cubic.window(), 2000);
        cubic.on_timeout(Instant::ZERO, 2000, 1000, true);
        assert_eq!(cubic.window(), 1000);
    }
}
