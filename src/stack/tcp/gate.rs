//! Which SYNs beyond the backlog get a cookie when there are more of them than anyone should answer.
//!
//! A cookie costs no memory, but the answer has to be built and sent, and a flood would make that all that a core does.
//! So only so many are answered a second; which ones is not left to chance, because an honest client would hardly ever be
//! among them. A client that gets no answer sends its SYN again (RFC 6298: after a second), a spoofed one comes once. What
//! was turned away is remembered for two to four seconds in a Bloom filter, and a SYN that comes again has an allowance of
//! its own. Whoever repeats his spoofed SYNs halves his rate and only competes for that.

use super::listen::Bucket;
use crate::Instant;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

/// Cookies a second, and as many again for SYNs that are repeated: together a tenth of a core.
const PER_SECOND: u32 = 20_000;
/// Bits of each of the two filters, 4 MiB: with a million SYNs a second one in thirty is taken for a repetition.
const FILTER_BITS: u32 = 25;
/// How long a filter is filled before it becomes the older one: longer than the first repetition takes.
const TURN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Gate {
    first: Bucket,
    again: Bucket,
    /// The filter that is being filled, and the one before. Empty until there is a flood.
    seen: [Vec<u64>; 2],
    turned_at: Instant,
    refused: bool,
}

impl Gate {
    pub fn new() -> Self {
        Self {
            first: Bucket::new(PER_SECOND),
            again: Bucket::new(PER_SECOND),
            seen: [Vec::new(), Vec::new()],
            turned_at: Instant::ZERO,
            refused: false,
        }
    }

    /// Whether a SYN was refused since this was asked last.
    pub const fn take_refused(&mut self) -> bool {
        core::mem::replace(&mut self.refused, false)
    }

    /// Whether a SYN is answered. `id`: a keyed hash of its addresses, ports and number.
    pub fn admit(&mut self, now: Instant, id: u64) -> bool {
        if self.first.take(now) {
            return true;
        }
        self.refused = true;
        if self.seen[0].is_empty() {
            self.seen = [vec![0; 1 << (FILTER_BITS - 6)], vec![0; 1 << (FILTER_BITS - 6)]];
            self.turned_at = now;
        }
        let age = now.since(self.turned_at);
        if age >= TURN {
            self.seen.swap(0, 1);
            self.seen[0].fill(0);
            if age >= 2 * TURN {
                self.seen[1].fill(0);
            }
            self.turned_at = now;
        }
        let places = [id, id.rotate_left(32)].map(|bits| {
            let bit = bits as u32 >> (32 - FILTER_BITS);
            (bit as usize / 64, 1_u64 << (bit % 64))
        });
        let is_in = |filter: &[u64]| places.iter().all(|(word, bit)| filter[*word] & bit != 0);
        if self.seen.iter().any(|filter| is_in(filter)) {
            return self.again.take(now);
        }
        for (word, bit) in places {
            self.seen[0][word] |= bit;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::siphash::{Rng, SipKey};

    #[test]
    fn honest_clients_get_through_with_their_second_try() {
        let mut gate = Gate::new();
        let mut random = Rng::new(SipKey::new([4; 16]));
        let (mut answered, mut honest, mut tries) = (0, 0, 0);
        // 500,000 SYNs a second for five seconds; every 5,000th is a client that tries again after a second.
        let mut waiting: alloc::collections::VecDeque<(u64, u64)> = alloc::collections::VecDeque::new();
        for i in 0..2_500_000_u64 {
            let now = Instant::from_nanos(1_000_000_000 + i * 2_000);
            answered += u64::from(gate.admit(now, random.next_u64()));
            if i % 5_000 == 0 && i < 1_500_000 {
                tries += 1;
                let id = random.next_u64();
                if gate.admit(now, id) {
                    honest += 1;
                } else {
                    waiting.push_back((i + 500_000, id));
                }
            }
            if waiting.front().is_some_and(|(at, _)| *at <= i) {
                let (_, id) = waiting.pop_front().unwrap();
                honest += u64::from(gate.admit(now, id));
            }
        }
        assert!(answered < 5 * 2 * 20_000 + 40_000, "{answered} answers");
        assert!(honest * 100 >= tries * 97, "{honest} of {tries} clients");
        // Quiet again: whoever comes is answered at once, and what was seen is forgotten.
        let later = Instant::from_millis(60_000);
        assert!((0..1000).all(|_| gate.admit(later, random.next_u64())));
    }
}
