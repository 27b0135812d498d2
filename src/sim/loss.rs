//! Which frames a wire loses.

use super::rng::Rng;

/// A model of loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Each frame for itself, with this probability.
    Independent(f64),
    /// Gilbert and Elliott: a good and a bad state, each with its own probability of loss, and before each frame a
    /// chance to change.
    Burst { enter: f64, leave: f64, good: f64, bad: f64 },
}

impl Loss {
    pub const NONE: Self = Self::Independent(0.0);

    /// The share of frames that is lost in the long run.
    #[must_use]
    pub fn mean(&self) -> f64 {
        match *self {
            Self::Independent(p) => p,
            Self::Burst { enter, leave, good, bad } if enter + leave > 0.0 => {
                let in_bad = enter / (enter + leave);
                in_bad * bad + (1.0 - in_bad) * good
            }
            Self::Burst { good, .. } => good,
        }
    }

    /// Whether the next frame is lost. `in_bad` is the state, which belongs to the wire.
    pub fn loses(&self, in_bad: &mut bool, rng: &mut Rng) -> bool {
        match *self {
            Self::Independent(p) => rng.chance(p),
            Self::Burst { enter, leave, good, bad } => {
                if rng.chance(if *in_bad { leave } else { enter }) {
                    *in_bad = !*in_bad;
                }
                rng.chance(if *in_bad { bad } else { good })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_come_in_the_right_number_and_length() {
        let loss = Loss::Burst { enter: 0.01, leave: 0.25, good: 0.0, bad: 1.0 };
        let (mut rng, mut bad) = (Rng::new(3, "w"), false);
        let lost: Vec<bool> = (0..200_000).map(|_| loss.loses(&mut bad, &mut rng)).collect();
        let share = lost.iter().filter(|l| **l).count() as f64 / lost.len() as f64;
        assert!((share - loss.mean()).abs() < 0.004, "{share} {}", loss.mean());
        let bursts = lost.windows(2).filter(|w| !w[0] && w[1]).count();
        let length = share * lost.len() as f64 / bursts as f64;
        assert!((3.6..4.4).contains(&length), "mean length is 1 / leave: {length}");
    }
}
