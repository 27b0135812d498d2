//! A place in a script's text: blanks and comments are skipped, errors know their line and column.

use std::collections::BTreeMap;
use std::fmt;

/// What is wrong with a script, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ParseError {
    pub line: usize,
    pub column: usize,
    pub what: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// Nothing that a person writes is nested deeper, and each level takes some of the thread's stack.
const DEEPEST: usize = 64;

pub(super) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
    /// How deep lists and structures are nested here.
    depth: usize,
    /// `-D NAME=value` of the command line: names that stand for other names or numbers.
    defines: &'a BTreeMap<String, String>,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str, defines: &'a BTreeMap<String, String>) -> Self {
        Self { text: text.as_bytes(), at: 0, depth: 0, defines }
    }

    pub fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(self.error_at(self.at, what.into()))
    }

    /// Fails for want of something.
    pub fn unexpected<T>(&mut self, wanted: &str) -> Result<T> {
        let found = self.found();
        self.fail(format!("expected {wanted}, found {found}"))
    }

    fn error_at(&self, at: usize, what: String) -> ParseError {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
        ParseError { line, column, what }
    }

    /// Of the next character that isn't blank.
    pub fn line(&mut self) -> usize {
        self.skip();
        self.text[..self.at].iter().filter(|b| **b == b'\n').count() + 1
    }

    /// Skips blanks, `//`, `/* */` and, at the start of a line, `#`.
    pub fn skip(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            let line_start = self.at == 0 || self.text[self.at - 1] == b'\n';
            if rest.first().is_some_and(u8::is_ascii_whitespace) {
                self.at += 1;
            } else if rest.starts_with(b"//") || line_start && rest.starts_with(b"#") {
                self.at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            } else if rest.starts_with(b"/*") {
                self.at += rest.windows(2).position(|w| w == b"*/").map_or(rest.len(), |n| n + 2);
            } else {
                return;
            }
        }
    }

    pub fn is_end(&mut self) -> bool {
        self.skip();
        self.at == self.text.len()
    }

    /// The next character that isn't blank; NUL at the end.
    pub fn peek(&mut self) -> u8 {
        self.skip();
        self.text.get(self.at).copied().unwrap_or(0)
    }

    /// Whether `what` comes next.
    pub fn sees(&mut self, what: &str) -> bool {
        self.skip();
        self.text[self.at..].starts_with(what.as_bytes())
    }

    /// Takes `what` if it comes next.
    pub fn take(&mut self, what: &str) -> bool {
        let there = self.sees(what);
        self.at += if there { what.len() } else { 0 };
        there
    }

    pub fn expect(&mut self, what: &str) -> Result<()> {
        if self.take(what) { Ok(()) } else { self.unexpected(&format!("{what:?}")) }
    }

    /// What stands here, for messages.
    fn found(&mut self) -> String {
        self.skip();
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()).min(20);
        match end {
            0 => "the end".into(),
            _ => format!("{:?}", String::from_utf8_lossy(&rest[..end])),
        }
    }

    /// Takes the word `what` if it comes next and ends there.
    pub fn take_word(&mut self, what: &str) -> bool {
        let before = self.at;
        if self.take(what) && !self.text.get(self.at).is_some_and(|b| is_word(*b)) {
            return true;
        }
        self.at = before;
        false
    }

    /// Letters, digits and underscores; empty if none come.
    pub fn word(&mut self) -> String {
        self.skip();
        self.while_true(is_word)
    }

    /// A name, with what the command line defines put in its place.
    pub fn name(&mut self) -> Result<String> {
        let word = self.word();
        if word.is_empty() || word.as_bytes()[0].is_ascii_digit() {
            return self.unexpected("a name");
        }
        Ok(self.defines.get(&word).cloned().unwrap_or(word))
    }

    /// What the command line says that a name stands for.
    pub fn defined(&self, name: &str) -> Option<&'a str> {
        self.defines.get(name).map(String::as_str)
    }

    pub fn while_true(&mut self, what: impl Fn(u8) -> bool) -> String {
        let rest = &self.text[self.at..];
        let len = rest.iter().position(|b| !what(*b)).unwrap_or(rest.len());
        self.at += len;
        String::from_utf8_lossy(&rest[..len]).into_owned()
    }

    /// Everything up to `end`, which is taken too.
    pub fn until(&mut self, end: &str) -> Result<String> {
        let rest = &self.text[self.at..];
        let Some(len) = rest.windows(end.len()).position(|w| w == end.as_bytes()) else {
            return self.fail(format!("{end:?} is missing"));
        };
        self.at += len + end.len();
        Ok(String::from_utf8_lossy(&rest[..len]).into_owned())
    }

    /// The rest of the line as it stands.
    pub fn rest_of_line(&mut self) -> String {
        let rest = self.while_true(|b| b != b'\n');
        rest.split("//").next().unwrap_or_default().trim().to_owned()
    }

    /// Digits, or hexadecimal ones after 0x.
    pub fn number(&mut self) -> Result<u64> {
        self.skip();
        let start = self.at;
        let hex = self.take("0x") || self.take("0X");
        let digits = self.while_true(|b| if hex { b.is_ascii_hexdigit() } else { b.is_ascii_digit() });
        let number = u64::from_str_radix(&digits, if hex { 16 } else { 10 });
        let found = self.found();
        number.map_err(|_| self.error_at(start, format!("expected a number, found {found}")))
    }

    /// A number that fits.
    pub fn small<T: TryFrom<u64>>(&mut self) -> Result<T> {
        self.skip();
        let start = self.at;
        let number = self.number()?;
        T::try_from(number).map_err(|_| self.error_at(start, format!("{number} is too large here")))
    }

    /// Seconds with a fraction, as microseconds.
    pub fn seconds(&mut self) -> Result<i64> {
        self.skip();
        let start = self.at;
        let whole = self.while_true(|b| b.is_ascii_digit());
        // `0...1` is a whole number and a range.
        let fraction = if !self.text[self.at..].starts_with(b"...") && self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.while_true(|b| b.is_ascii_digit())
        } else {
            String::new()
        };
        let bad = || self.error_at(start, "expected a time in seconds".into());
        if whole.is_empty() && fraction.is_empty() {
            return Err(bad());
        }
        let micros: String = fraction.chars().chain("000000".chars()).take(6).collect();
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        whole.checked_mul(1_000_000).and_then(|n| n.checked_add(micros.parse().ok()?)).ok_or_else(bad)
    }

    /// Parses a part one level down, as far as there are levels.
    pub fn deeper<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == DEEPEST {
            return self.fail("this is nested too deep");
        }
        self.depth += 1;
        let parsed = part(self);
        self.depth -= 1;
        parsed
    }

    /// A place to come back to.
    pub fn mark(&self) -> usize {
        self.at
    }

    pub fn back(&mut self, mark: usize) {
        self.at = mark;
    }
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}
