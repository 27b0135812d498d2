//! Randomness that is the same everywhere for the same seed: xoshiro256** (Blackman and Vigna, 2018), filled by
//! SplitMix64.

use std::time::Duration;

/// One stream of numbers. Every link, host and traffic has its own, so that a change in one leaves the others as they
/// were.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The stream called `name` of a run.
    #[must_use]
    pub fn new(seed: u64, name: &str) -> Self {
        // FNV-1a over the name: any two names that differ give unrelated states.
        let mut state =
            name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
                ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    pub fn draw(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Less than `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(n)) >> 64) as u64
    }

    /// From 0 to less than 1.
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with this probability. Draws nothing when it is 0.
    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    /// Up to and without `most`.
    pub fn duration(&mut self, most: Duration) -> Duration {
        match most.as_nanos() as u64 {
            0 => Duration::ZERO,
            n => Duration::from_nanos(self.below(n)),
        }
    }

    /// Exponentially distributed around `mean`.
    pub fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.unit()).ln())
    }

    /// A seed for something that makes its own numbers.
    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        seed.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&self.draw().to_le_bytes()));
        seed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_repeatable_and_unrelated() {
        let draw = |seed, name| {
            let mut r = Rng::new(seed, name);
            [r.draw(), r.draw()]
        };
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }

    #[test]
    fn chances_and_means_are_as_asked_for() {
        let mut r = Rng::new(1, "x");
        let hits = (0..100_000).filter(|_| r.chance(0.02)).count();
        assert!((1_850..2_150).contains(&hits), "{hits}");
        let sum: Duration = (0..10_000).map(|_| r.exponential(Duration::from_millis(10))).sum();
        assert!((95..105).contains(&sum.as_secs()), "{sum:?}");
        assert!((0..1000).all(|_| r.below(7) < 7));
    }
}
