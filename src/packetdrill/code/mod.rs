//! What stands between `%{` and `}%`: the small part of Python that packet scripts use, evaluated where it stands.
//!
//! Statements: `assert`, `print`, `NAME = …`, `pass`, on lines of their own or behind `;`. Expressions: numbers,
//! strings, tuples, names, arithmetic, bits, chained comparisons, `and or not`, `in`, `a if b else c`, `'%d' % x`, and
//! `abs min max int float round len str`. Names are those that the runner gives (`tcpi_*`, constants) and those that
//! were assigned; they live until the script ends.

mod lexer;
mod operate;
mod parser;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;

pub use value::Value;

/// The names that code may use and what it assigned.
#[derive(Clone, Debug, Default)]
pub struct Names {
    assigned: BTreeMap<String, Value>,
    /// From the runner, anew for each block.
    given: BTreeMap<String, Value>,
}

impl Names {
    pub fn give(&mut self, name: &str, value: i64) {
        self.given.insert(name.to_owned(), Value::Int(value));
    }

    fn get(&self, name: &str) -> Option<Value> {
        self.assigned.get(name).or_else(|| self.given.get(name)).cloned()
    }
}

/// Runs a block. What it prints goes to `print`, a line at a time.
///
/// # Errors
/// The assertion that doesn't hold, with its message, or what is no code that this evaluator knows.
pub fn run(text: &str, names: &mut Names, print: &mut dyn FnMut(&str)) -> Result<(), String> {
    let tokens = lexer::tokens(text)?;
    let mut parser = parser::Parser::new(&tokens, names);
    while let Some(statement) = parser.statement()? {
        match statement {
            parser::Statement::Nothing => {}
            parser::Statement::Print(line) => print(&line),
        }
    }
    Ok(())
}
