//! DCTCP, RFC 8257: the window shrinks by as much as the network is congested. For networks of one owner, whose
//! switches mark early; without ECN, or when segments are lost, it is Reno.

use super::{Acked, Cause, Congested, CongestionControl, Reno};

/// Scale of [`Dctcp::alpha`]: 1.0.
const ONE: u64 = 1 << 20;
/// RFC 8257 4.2: g = 1/16.
const GAIN_SHIFT: u32 = 4;

/// Reno's growth, with a decrease by the part of the bytes that was marked.
#[derive(Clone, Copy, Debug)]
pub struct Dctcp {
    reno: Reno,
    /// Estimate of the part of bytes that meet congestion, in parts of [`ONE`]. It begins with all (4.2): a first
    /// reduction that is too large does less harm than one that is too small.
    alpha: u64,
    /// Bytes of this window of data: all, and marked ones.
    delivered: u64,
    marked: u64,
    /// Where the window of data ends.
    end: u64,
}

impl Dctcp {
    #[must_use]
    pub fn new(mss: u32) -> Self {
        Self { reno: Reno::new(mss), alpha: ONE, delivered: 0, marked: 0, end: 0 }
    }

    /// The estimate, in thousandths.
    #[must_use]
    pub const fn alpha_permille(&self) -> u64 {
        self.alpha * 1000 / ONE
    }
}

impl CongestionControl for Dctcp {
    fn window(&self) -> u64 {
        self.reno.window()
    }

    fn threshold(&self) -> u64 {
        self.reno.threshold()
    }

    fn set(&mut self, window: u64, threshold: u64) {
        self.reno.set(window, threshold);
    }

    fn on_ack(&mut self, acked: &Acked) {
        self.reno.on_ack(acked);
    }

    fn on_congestion(&mut self, congested: &Congested) {
        if congested.cause == Cause::Marks {
            // RFC 8257 3.3, step 9.
            let window = self.reno.window();
            self.reno.reduce_to(window - window * self.alpha / (2 * ONE), congested);
        } else {
            // 3.4: losses are losses.
            self.reno.on_congestion(congested);
        }
    }

    fn undo(&mut self) {
        self.reno.undo();
    }

    /// RFC 8257 3.3, steps 1 to 8.
    fn on_delivery(&mut self, bytes: u64, marked: bool, una: u64, nxt: u64) {
        self.delivered += bytes;
        if marked {
            self.marked += bytes;
        }
        if una <= self.end {
            return;
        }
        let part = (self.marked.saturating_mul(ONE)).checked_div(self.delivered).unwrap_or(0).min(ONE);
        // Not to zero but by this much at least, so that it comes down at all.
        let decay = (self.alpha >> GAIN_SHIFT).max(u64::from(self.alpha > 0));
        self.alpha = (self.alpha - decay + (part >> GAIN_SHIFT)).min(ONE);
        self.end = nxt;
        self.delivered = 0;
        self.marked = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Instant;

    const fn congested(cause: Cause) -> Congested {
        Congested { now: Instant::ZERO, cause, outstanding: 100_000, in_flight: 100_000, mss: 1000 }
    }

    #[test]
    fn shrinks_by_what_was_marked() {
        let mut dctcp = Dctcp::new(1000);
        dctcp.set(100_000, 50_000);
        let mut una = 0;
        // A tenth is marked, for long.
        for _ in 0..200 {
            for i in 0..100 {
                una += 1000;
                dctcp.on_delivery(1000, i % 10 == 0, una, una + 100_000);
            }
        }
        assert!((90..=110).contains(&dctcp.alpha_permille()), "{}", dctcp.alpha_permille());
        dctcp.on_congestion(&congested(Cause::Marks));
        assert!((94_000..=96_000).contains(&dctcp.window()), "{}", dctcp.window());
        dctcp.on_congestion(&congested(Cause::Loss));
        assert!(dctcp.window() < 50_000, "a loss is a loss");
    }

    #[test]
    fn begins_as_if_everything_were_marked_and_forgets() {
        let mut dctcp = Dctcp::new(1000);
        dctcp.set(100_000, 50_000);
        dctcp.on_congestion(&congested(Cause::Marks));
        assert_eq!(dctcp.window(), 50_000);
        for i in 1..400 {
            dctcp.on_delivery(1000, false, i * 1000, i * 1000);
        }
        assert_eq!(dctcp.alpha_permille(), 0);
    }
}
