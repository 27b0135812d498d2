//! Files with content that nobody can guess, and their SHA-256.

use crate::program::{self, HELPER};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

/// 100 MB, the size of the transfers whose checksums must match.
pub const HUNDRED_MB: u64 = 100_000_000;

/// A small generator (xorshift64*): not for secrets; the same seed gives the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From any seed, also 0.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit` (0 when `limit` is 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.word().checked_rem(limit).unwrap_or(0)
    }
}

/// Writes `bytes` random bytes to `path`.
///
/// # Errors
/// When the file can't be written.
pub fn write_random(path: &Path, bytes: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).with_context(|| path.display().to_string())?);
    let mut left = bytes;
    while left > 0 {
        let word = random.word().to_le_bytes();
        let n = left.min(8) as usize;
        out.write_all(&word[..n])?;
        left -= n as u64;
    }
    out.flush()?;
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal, by `sha256sum`.
///
/// # Errors
/// When there is no such file.
pub fn sha256(path: &Path) -> Result<String> {
    let said = program::must(&std::env::temp_dir(), Command::new("sha256sum").arg(path), HELPER)?;
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_files_repeat_and_have_a_sum() {
        let path = std::env::temp_dir().join(format!("sidestep-unit-random-{}", std::process::id()));
        write_random(&path, 1003, 7).unwrap();
        let first = sha256(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1003);
        write_random(&path, 1003, 7).unwrap();
        assert_eq!(sha256(&path).unwrap(), first);
        write_random(&path, 1003, 8).unwrap();
        assert_ne!(sha256(&path).unwrap(), first);
        assert_eq!(first.len(), 64);
        std::fs::remove_file(&path).unwrap();
    }
}
