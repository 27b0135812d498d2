//! SipHash-2-4: a keyed hash of short inputs. Flow tables, initial sequence numbers, SYN cookies and port choice use
//! it, so that a peer who doesn't know the key can neither guess them nor make a table degenerate.
//!
//! Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.

/// A 128-bit key.
#[derive(Clone, Copy)]
pub(crate) struct SipKey(u64, u64);

impl SipKey {
    /// Takes the key in the byte order of the paper.
    pub const fn new(bytes: [u8; 16]) -> Self {
        let n = u128::from_le_bytes(bytes);
        #[allow(clippy::cast_possible_truncation)]
        Self(n as u64, (n >> 64) as u64)
    }

    /// A key for one purpose, derived from a secret shared by all purposes.
    pub fn derive(seed: &[u8; 32], purpose: u8) -> Self {
        let (mut low, mut high) = ([0; 16], [0; 16]);
        low.copy_from_slice(&seed[..16]);
        high.copy_from_slice(&seed[16..]);
        let (low, high) = (Self::new(low), Self::new(high));
        let word = |key: Self, n: u8| key.hash(&[purpose, n]);
        Self(word(low, 0) ^ word(high, 1), word(low, 2) ^ word(high, 3))
    }

    /// Hash of a message of any length.
    pub fn hash(self, message: &[u8]) -> u64 {
        let mut state = State::new(self);
        let (words, rest) = message.as_chunks::<8>();
        for word in words {
            state.absorb(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        #[allow(clippy::cast_possible_truncation)]
        {
            last[7] = message.len() as u8;
        }
        state.absorb(u64::from_le_bytes(last));
        state.finish()
    }

    /// SipHash-1-3 of a fixed number of words: for tables, whose hashes nobody outside ever sees.
    pub fn hash_words_fast<const N: usize>(self, words: [u64; N]) -> u64 {
        let mut state = State::new(self);
        for word in words.into_iter().chain([(N as u64 * 8) << 56]) {
            state.3 ^= word;
            state.round();
            state.0 ^= word;
        }
        state.2 ^= 0xff;
        state.round();
        state.round();
        state.round();
        state.0 ^ state.1 ^ state.2 ^ state.3
    }

    /// Hash of a fixed number of words: the same function as [`Self::hash`] of their bytes, without the copying.
    pub fn hash_words<const N: usize>(self, words: [u64; N]) -> u64 {
        let mut state = State::new(self);
        for word in words {
            state.absorb(word);
        }
        state.absorb((N as u64 * 8) << 56);
        state.finish()
    }
}

impl core::fmt::Debug for SipKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Secrets don't belong into logs.
        f.write_str("SipKey")
    }
}

struct State(u64, u64, u64, u64);

impl State {
    const fn new(key: SipKey) -> Self {
        Self(
            key.0 ^ 0x736f_6d65_7073_6575,
            key.1 ^ 0x646f_7261_6e64_6f6d,
            key.0 ^ 0x6c79_6765_6e65_7261,
            key.1 ^ 0x7465_6462_7974_6573,
        )
    }

    const fn round(&mut self) {
        self.0 = self.0.wrapping_add(self.1);
        self.1 = self.1.rotate_left(13) ^ self.0;
        self.0 = self.0.rotate_left(32);
        self.2 = self.2.wrapping_add(self.3);
        self.3 = self.3.rotate_left(16) ^ self.2;
        self.0 = self.0.wrapping_add(self.3);
        self.3 = self.3.rotate_left(21) ^ self.0;
        self.2 = self.2.wrapping_add(self.1);
        self.1 = self.1.rotate_left(17) ^ self.2;
        self.2 = self.2.rotate_left(32);
    }

    const fn absorb(&mut self, word: u64) {
        self.3 ^= word;
        self.round();
        self.round();
        self.0 ^= word;
    }

    const fn finish(mut self) -> u64 {
        self.2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.0 ^ self.1 ^ self.2 ^ self.3
    }
}

/// A stream of unpredictable numbers from a key: hash of a counter. For port choice and the like.
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    key: SipKey,
    count: u64,
}

impl Rng {
    pub const fn new(key: SipKey) -> Self {
        Self { key, count: 0 }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.count = self.count.wrapping_add(1);
        self.key.hash_words([self.count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper_key() -> SipKey {
        SipKey::new(core::array::from_fn(|i| i as u8))
    }

    #[test]
    fn vectors_of_the_paper() {
        // vectors_sip64 of the reference implementation: key 00..0f, message 00..n-1.
        let expected: [(usize, [u8; 8]); 5] = [
            (0, [0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72]),
            (1, [0xfd, 0x67, 0xdc, 0x93, 0xc5, 0x39, 0xf8, 0x74]),
            (2, [0x5a, 0x4f, 0xa9, 0xd9, 0x09, 0x80, 0x6c, 0x0d]),
            (8, [0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93]),
            (15, [0xe5, 0x45, 0xbe, 0x49, 0x61, 0xca, 0x29, 0xa1]),
        ];
        let message: [u8; 16] = core::array::from_fn(|i| i as u8);
        for (len, hash) in expected {
            assert_eq!(paper_key().hash(&message[..len]).to_le_bytes(), hash, "length {len}");
        }
    }

    #[test]
    fn words_are_their_bytes() {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&7_u64.to_le_bytes());
        bytes[8..].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(paper_key().hash_words([7, u64::MAX]), paper_key().hash(&bytes));
    }

    #[test]
    fn derived_keys_differ_by_purpose_and_seed() {
        let hash = |seed: u8, purpose| SipKey::derive(&[seed; 32], purpose).hash(b"x");
        assert_ne!(hash(1, 1), hash(1, 2));
        assert_ne!(hash(1, 1), hash(2, 1));
        assert_eq!(hash(1, 1), hash(1, 1));
    }
}
