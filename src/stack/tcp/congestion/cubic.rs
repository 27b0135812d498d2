//! CUBIC, RFC 9438.

use super::hystart::{HyStart, Step};
use super::{Acked, Cause, Congested, CongestionControl, initial_window, slow_start};
use crate::Instant;
use alloc::boxed::Box;
use core::time::Duration;

/// RFC 9438 4.1: multiplicative decrease, and the scale of the cubic function in segments per second cubed.
const BETA: f64 = 0.7;
const C: f64 = 0.4;

/// Window growth as a cubic function of the time since the last loss.
#[derive(Clone, Debug)]
pub struct Cubic {
    window: u64,
    threshold: u64,
    /// None before the first loss: most connections never get there.
    curve: Option<Box<Curve>>,
    /// Of the first slow start (RFC 9406 4.2 advises against others).
    hystart: HyStart,
    /// All of this before the last reduction, in case that it was a mistake.
    before: Option<Box<(u64, u64, Curve)>>,
}

/// Where the window is on its curve; sizes in segments.
#[derive(Clone, Copy, Debug, Default)]
struct Curve {
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
        let window = initial_window(mss);
        Self { window, threshold: u64::MAX, curve: None, hystart: HyStart::new(), before: None }
    }

    fn curve(&mut self) -> &mut Curve {
        self.curve.get_or_insert_default()
    }

    fn reduce(&mut self, mss: u32) {
        let before = (self.window, self.threshold, *self.curve());
        match &mut self.before {
            Some(place) => **place = before,
            None => self.before = Some(Box::new(before)),
        }
        let mss = f64::from(mss);
        let window = segments(self.window, mss);
        let curve = self.curve();
        // 4.7 fast convergence: a flow that lost before it came back to its plateau leaves room for others.
        curve.w_max = if window < curve.w_max { window * (1.0 + BETA) / 2.0 } else { window };
        curve.cwnd_prior = window;
        curve.epoch = None;
        // 4.6 allows the window in place of what is in flight if, as here, it doesn't grow without being in use. One
        // loss in a pause of the program then doesn't cost everything that was learned (as Linux).
        self.threshold = bytes((window * BETA).max(2.0), mss);
    }

    fn begin_epoch(&mut self, now: Instant, mss: f64) -> Instant {
        let window = segments(self.window, mss);
        let curve = self.curve();
        if curve.w_max < window {
            curve.w_max = window;
            curve.k = 0.0;
        } else {
            curve.k = cube_root((curve.w_max - window) / C);
        }
        curve.w_est = window;
        curve.fraction = 0.0;
        curve.epoch = Some(now);
        now
    }

    /// Slow start; returns what of the acknowledged bytes is left for congestion avoidance.
    fn slow_start(&mut self, acked: &Acked) -> u64 {
        let mut growth = acked.bytes;
        if self.threshold == u64::MAX {
            match self.hystart.on_ack(acked.sample, acked.una, acked.nxt) {
                Step::Grow => {}
                Step::Carefully => growth = HyStart::careful(acked.bytes),
                Step::End => {
                    self.threshold = self.window;
                    return acked.bytes;
                }
            }
        }
        let rest;
        (self.window, rest) = slow_start(self.window, self.threshold, growth);
        rest
    }

    fn avoid_congestion(&mut self, acked: &Acked, acked_bytes: u64) {
        let mss = f64::from(acked.mss);
        let epoch = match self.curve().epoch {
            Some(epoch) => epoch,
            None => self.begin_epoch(acked.now, mss),
        };
        let (window, news) = (segments(self.window, mss), segments(acked_bytes, mss));
        let elapsed = seconds(acked.now.since(epoch));
        let mut present = *self.curve();
        let Curve { k, w_max, cwnd_prior, .. } = present;
        let curve = |t: f64| C * cube(t - k) + w_max;
        // 4.2: where the curve will be a round trip from now, at most half as much again.
        let target = curve(elapsed + seconds(acked.rtt)).clamp(window, 1.5 * window);
        // 4.3: never slower than Reno would be.
        let alpha = if present.w_est >= cwnd_prior { 1.0 } else { 3.0 * (1.0 - BETA) / (1.0 + BETA) };
        present.w_est += alpha * news / window;
        let grown = if curve(elapsed) < present.w_est {
            present.w_est.max(window)
        } else {
            window + (target - window) / window * news
        };
        let exact = grown * mss + present.fraction;
        self.window = bytes(exact, 1.0).max(self.window);
        present.fraction = (exact - segments(self.window, 1.0)).clamp(0.0, 1.0);
        *self.curve() = present;
    }

    fn end_epoch(&mut self) {
        if let Some(curve) = &mut self.curve {
            curve.epoch = None;
        }
    }
}

impl CongestionControl for Cubic {
    fn window(&self) -> u64 {
        self.window
    }

    fn threshold(&self) -> u64 {
        self.threshold
    }

    fn set(&mut self, window: u64, threshold: u64) {
        self.window = window;
        self.threshold = threshold;
        self.end_epoch();
    }

    fn on_ack(&mut self, acked: &Acked) {
        if !acked.limited {
            if let Some(curve) = &mut self.curve {
                curve.unused_since.get_or_insert(acked.now);
            }
            return;
        }
        if let Some(curve) = &mut self.curve
            && let (Some(since), Some(epoch)) = (curve.unused_since.take(), &mut curve.epoch)
        {
            // 5.8: the curve must not run on while the window isn't in use.
            *epoch = *epoch + acked.now.since(since);
        }
        let rest = if self.window < self.threshold { self.slow_start(acked) } else { acked.bytes };
        if self.window >= self.threshold && rest > 0 {
            self.avoid_congestion(acked, rest);
        }
    }

    fn on_congestion(&mut self, congested: &Congested) {
        if congested.cause != (Cause::Timeout { reduce: false }) {
            self.reduce(congested.mss);
        }
        match congested.cause {
            // 4.8: as Reno, but with this beta.
            Cause::Timeout { .. } => {
                self.window = congested.in_flight + u64::from(congested.mss);
                self.end_epoch();
            }
            Cause::Loss | Cause::Marks => self.window = self.threshold,
        }
    }

    /// 4.9.
    fn undo(&mut self) {
        if let Some((window, threshold, curve)) = self.before.as_deref().copied() {
            self.window = self.window.max(window);
            self.threshold = self.threshold.max(threshold);
            *self.curve() = curve;
        }
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
        let rtt = Duration::from_millis(100);
        for _ in 0..cubic.window() / 1000 {
            let acked = Acked { now, bytes: 1000, rtt, sample: Some(rtt), una: 0, nxt: 0, limited: true, mss: 1000 };
            cubic.on_ack(&acked);
        }
    }

    fn congest(cubic: &mut Cubic, now: Instant, cause: Cause) {
        let outstanding = cubic.window();
        cubic.on_congestion(&Congested { now, cause, outstanding, in_flight: 0, mss: 1000 });
    }

    #[test]
    fn comes_back_to_the_plateau_and_passes_it() {
        let mut cubic = Cubic::new(1000);
        let mut now = Instant::ZERO;
        while cubic.window() < 1_000_000 {
            one_round_trip(&mut cubic, now);
        }
        let before = cubic.window();
        congest(&mut cubic, now, Cause::Loss);
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
            congest(&mut cubic, Instant::ZERO, Cause::Loss);
        }
        assert_eq!(cubic.window(), 2000);
        congest(&mut cubic, Instant::ZERO, Cause::Timeout { reduce: true });
        assert_eq!(cubic.window(), 1000);
    }

    #[test]
    fn a_mistake_is_forgotten() {
        let mut cubic = Cubic::new(1000);
        for _ in 0..4 {
            one_round_trip(&mut cubic, Instant::ZERO);
        }
        let before = (cubic.window(), cubic.threshold());
        congest(&mut cubic, Instant::ZERO, Cause::Timeout { reduce: true });
        congest(&mut cubic, Instant::ZERO, Cause::Timeout { reduce: false });
        one_round_trip(&mut cubic, Instant::ZERO);
        cubic.undo();
        assert_eq!((cubic.window(), cubic.threshold()), before);
    }

    #[test]
    fn slow_start_ends_when_the_round_trip_grows() {
        let mut cubic = Cubic::new(1000);
        let (mut una, mut nxt) = (0, 10_000);
        let mut round = 0;
        while cubic.threshold() == u64::MAX {
            let rtt = Duration::from_millis(if round < 4 { 50 } else { 60 });
            let end = nxt;
            while una < end {
                una += 1000;
                nxt = una + cubic.window();
                let now = Instant::ZERO;
                cubic.on_ack(&Acked { now, bytes: 1000, rtt, sample: Some(rtt), una, nxt, limited: true, mss: 1000 });
            }
            round += 1;
            assert!(round < 20);
        }
        // Doubled four times, then by a quarter in each of five rounds.
        assert!((300_000..900_000).contains(&cubic.window()), "{} after {round}", cubic.window());
    }
}
