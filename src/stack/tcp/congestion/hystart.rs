//! HyStart++, RFC 9406: slow start that ends before the queue overflows, because the round trip grows.

use core::time::Duration;

/// RFC 9406 4.3, its recommended constants; times in microseconds.
const MIN_RTT_THRESH: u32 = 4_000;
const MAX_RTT_THRESH: u32 = 16_000;
const MIN_RTT_DIVISOR: u32 = 8;
const N_RTT_SAMPLE: u8 = 8;
const CSS_GROWTH_DIVISOR: u64 = 4;
const CSS_ROUNDS: u8 = 5;

/// What slow start does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Grow by all that arrived.
    Grow,
    /// Conservative slow start: by a part of it.
    Carefully,
    /// Slow start is over.
    End,
}

/// Watches the rounds of one slow start.
#[derive(Clone, Copy, Debug)]
pub struct HyStart {
    /// Where this round ends.
    window_end: u64,
    /// Shortest round trip of the last round and of this one; `u32::MAX` without any.
    last_round: u32,
    this_round: u32,
    /// What the round trip was when it began to grow; 0 outside of conservative slow start.
    baseline: u32,
    samples: u8,
    careful_rounds: u8,
}

impl HyStart {
    pub const fn new() -> Self {
        Self { window_end: 0, last_round: u32::MAX, this_round: u32::MAX, baseline: 0, samples: 0, careful_rounds: 0 }
    }

    /// Takes an acknowledgment of slow start. Without the limit L of 4.3: bursts are what pacing is for.
    pub fn on_ack(&mut self, sample: Option<Duration>, una: u64, nxt: u64) -> Step {
        if una > self.window_end {
            self.window_end = nxt;
            self.last_round = self.this_round;
            self.this_round = u32::MAX;
            self.samples = 0;
            if self.baseline != 0 {
                self.careful_rounds += 1;
                if self.careful_rounds >= CSS_ROUNDS {
                    return Step::End;
                }
            }
        }
        if let Some(sample) = sample {
            let micros = u32::try_from(sample.as_micros()).unwrap_or(u32::MAX - 1).max(1);
            self.this_round = self.this_round.min(micros);
            self.samples = self.samples.saturating_add(1);
        }
        if self.samples >= N_RTT_SAMPLE {
            if self.baseline != 0 {
                if self.this_round < self.baseline {
                    // It was not the queue: back to slow start.
                    self.baseline = 0;
                }
            } else if self.this_round != u32::MAX && self.last_round != u32::MAX {
                let thresh = (self.last_round / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH);
                if self.this_round >= self.last_round.saturating_add(thresh) {
                    self.baseline = self.this_round;
                    self.careful_rounds = 0;
                }
            }
        }
        if self.baseline == 0 { Step::Grow } else { Step::Carefully }
    }

    /// What of `bytes` conservative slow start counts.
    pub const fn careful(bytes: u64) -> u64 {
        bytes / CSS_GROWTH_DIVISOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round of ten acknowledgments of this round trip.
    fn round(hystart: &mut HyStart, number: u64, millis: u64) -> Step {
        let mut step = Step::Grow;
        for i in 1..=10 {
            let una = number * 10_000 + i * 1000;
            step = hystart.on_ack(Some(Duration::from_millis(millis)), una, (number + 1) * 10_000);
            if step == Step::End {
                return step;
            }
        }
        step
    }

    #[test]
    fn ends_some_rounds_after_the_round_trip_grew() {
        let mut hystart = HyStart::new();
        for number in 0..5 {
            assert_eq!(round(&mut hystart, number, 40), Step::Grow);
        }
        assert_eq!(round(&mut hystart, 5, 44), Step::Grow, "less than an eighth");
        assert_eq!(round(&mut hystart, 6, 50), Step::Carefully);
        for number in 7..11 {
            assert_eq!(round(&mut hystart, number, 60), Step::Carefully, "{number}");
        }
        assert_eq!(round(&mut hystart, 11, 60), Step::End);
    }

    #[test]
    fn goes_back_if_it_was_something_else() {
        let mut hystart = HyStart::new();
        round(&mut hystart, 0, 40);
        assert_eq!(round(&mut hystart, 1, 60), Step::Carefully);
        assert_eq!(round(&mut hystart, 2, 41), Step::Grow);
    }

    #[test]
    fn too_few_samples_say_nothing() {
        let mut hystart = HyStart::new();
        round(&mut hystart, 0, 40);
        for i in 1..=7 {
            let una = 10_000 + i * 1000;
            let step = hystart.on_ack(Some(Duration::from_millis(90)), una, una + 10_000);
            assert_eq!(step, Step::Grow);
        }
    }
}
