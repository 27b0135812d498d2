//! One error: where in which file, which key, what is wrong, what would be right.

use std::fmt;

/// Why a configuration can't be used. Displayed in one line that an editor can jump to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as it was named.
    pub file: String,
    /// Line and column, from 1; None where the file itself is the matter.
    pub at: Option<(usize, usize)>,
    /// The key with its table, "interface.queues"; empty where no key is the matter.
    pub key: String,
    pub wrong: String,
    /// What would be right.
    pub right: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some((line, column)) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.wrong)?;
        if !self.right.is_empty() {
            write!(f, "; {}", self.right)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
