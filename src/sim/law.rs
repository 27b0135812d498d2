//! What a TCP of the textbook would get out of a path: the yardstick beside a measured goodput.

use std::time::Duration;

/// A path as one flow sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// Bits a second of the slowest link; None: no limit.
    pub rate: Option<u64>,
    pub rtt: Duration,
    /// Share of data packets lost.
    pub loss: f64,
    /// Payload bytes of a segment, and of its frame.
    pub mss: u32,
    pub frame: u32,
}

impl Path {
    /// Goodput in bit/s that the standards promise one flow: the larger of Reno's and CUBIC's, within the link.
    #[must_use]
    pub fn law(&self) -> f64 {
        // What is lost takes its part of the link too.
        let link = self.payload_rate() * (1.0 - self.loss.clamp(0.0, 1.0));
        if self.loss <= 0.0 {
            return link;
        }
        let rtt = self.rtt.as_secs_f64();
        let window = reno(self.loss).max(cubic(self.loss, rtt));
        (window * f64::from(self.mss) * 8.0 / rtt).min(link)
    }

    /// Bit/s of payload that the slowest link can carry.
    #[must_use]
    pub fn payload_rate(&self) -> f64 {
        self.rate.map_or(f64::INFINITY, |rate| rate as f64 * f64::from(self.mss) / f64::from(self.frame))
    }
}

/// Mean window in segments of AIMD(1, 0.5): RFC 9438 5.1, figure 5; Mathis et al. 1997.
fn reno(p: f64) -> f64 {
    (1.5 / p).sqrt()
}

/// Mean window in segments of CUBIC with C = 0.4 and beta = 0.7: RFC 9438 5.1, figure 6.
fn cubic(p: f64, rtt: f64) -> f64 {
    const C: f64 = 0.4;
    const BETA: f64 = 0.7;
    (C * (3.0 + BETA) / (4.0 * (1.0 - BETA))).powf(0.25) * rtt.powf(0.75) / p.powf(0.75)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // RFC 9438, table 1 and 2 (RTT 0.1 s and 0.01 s): 1,200 packets of Reno at 1e-6; CUBIC 59,200 at 1e-8, 0.01 s.
        assert!((reno(1e-6) - 1225.0).abs() < 30.0);
        assert!((cubic(1e-8, 0.01) / 33_300.0 - 1.0).abs() < 0.1, "{}", cubic(1e-8, 0.01));
        let path =
            Path { rate: Some(1_000_000_000), rtt: Duration::from_micros(200), loss: 0.01, mss: 1448, frame: 1514 };
        assert!((path.law() / 1e9 - 0.709).abs() < 0.01, "Reno gets 70 % of such a link: {}", path.law());
        assert!((Path { loss: 0.0, ..path }.law() / 1e9 - 0.956).abs() < 0.001);
        // Where the link is the limit, what is lost is missing from it.
        let rare = Path { loss: 1e-4, ..path }.law() / path.payload_rate();
        assert!((rare - 0.9999).abs() < 1e-6, "{rare}");
    }
}
