//! Tables of TOML with known keys, and what is wrong with them: the engine's configuration and the simulator's scenarios
//! are read with these.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::values::nearest;

/// Where something stands in the text, and what is wrong with it.
pub type Problem = (Option<Range<usize>>, String);

/// Line and column, from 1, of a place in a text.
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
    (line, before.iter().rev().take_while(|&&b| b != b'\n').count() + 1)
}

/// A table with known keys only.
pub struct Section<'a, 'i> {
    name: &'a str,
    table: &'a Spanned<DeTable<'i>>,
    keys: &'static [&'static str],
}

impl<'a, 'i> Section<'a, 'i> {
    /// Refuses unknown keys before anything else: a key that is missing may be one that is misspelt.
    pub fn new(name: &'a str, table: &'a Spanned<DeTable<'i>>, keys: &'static [&'static str]) -> Result<Self, Problem> {
        for key in table.get_ref().keys() {
            if !keys.contains(&key.get_ref().as_ref()) {
                let hint = match nearest(key.get_ref(), keys) {
                    Some(k) => format!("did you mean `{k}`?"),
                    None => format!("known here: {}", keys.join(", ")),
                };
                return Err((Some(key.span()), format!("{name}.{}: no such key; {hint}", key.get_ref())));
            }
        }
        Ok(Self { name, table, keys })
    }

    pub fn value(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        debug_assert!(self.keys.contains(&key), "{key} is in no list of keys");
        self.table.get_ref().get(key)
    }

    /// What is wrong with a key's value, or with its absence.
    pub fn wrong(&self, key: &'static str, what: impl std::fmt::Display) -> Problem {
        self.problem(key, self.value(key).map_or_else(|| self.table.span(), Spanned::span), what)
    }

    pub fn problem(&self, key: &str, span: Range<usize>, what: impl std::fmt::Display) -> Problem {
        (Some(span), format!("{}.{key}: {what}", self.name))
    }

    /// Reads a value of any kind.
    pub fn any<T>(
        &self,
        key: &'static str,
        make: impl Fn(&DeValue<'i>) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        make(value.get_ref()).map(Some).map_err(|e| self.problem(key, value.span(), e))
    }

    /// Reads a string and makes a value of it.
    pub fn text<T>(&self, key: &'static str, make: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.get_ref().as_str() {
            Some(s) => make(s).map(Some).map_err(|e| self.problem(key, value.span(), e)),
            None => Err(self.problem(key, value.span(), "must be text in quotes")),
        }
    }

    /// Reads a whole number within bounds.
    pub fn number(&self, key: &'static str, least: u64, most: u64) -> Result<Option<u64>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        whole(value, least, most).map(Some).map_err(|e| self.problem(key, value.span(), e))
    }

    pub fn boolean(&self, key: &'static str) -> Result<Option<bool>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let found = value.get_ref().as_bool();
        found.map(Some).ok_or_else(|| self.problem(key, value.span(), "must be true or false"))
    }

    /// Reads a list of whatever `make` accepts.
    pub fn list<T>(
        &self,
        key: &'static str,
        make: impl Fn(&Spanned<DeValue<'i>>) -> Result<T, String>,
    ) -> Result<Vec<T>, Problem> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let Some(array) = value.get_ref().as_array() else {
            return Err(self.problem(key, value.span(), "must be a list in brackets"));
        };
        let each = |v: &Spanned<DeValue<'i>>| make(v).map_err(|e| self.problem(key, v.span(), e));
        array.iter().map(each).collect()
    }

    pub fn texts<T>(&self, key: &'static str, make: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Problem> {
        self.list(key, |v| make(v.get_ref().as_str().ok_or("must be text in quotes")?))
    }
}

/// A whole number within bounds.
pub fn whole(value: &Spanned<DeValue<'_>>, least: u64, most: u64) -> Result<u64, String> {
    let number = value.get_ref().as_integer().and_then(|i| u64::from_str_radix(i.as_str(), i.radix()).ok());
    number
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| format!("must be a whole number from {least} to {most}"))
}
