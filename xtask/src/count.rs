//! Counts test results out of the lines that libtest writes, and the end-to-end tests in the same form.
//!
//! A line `test NAME ... ok` is one result. The line `test result: …` that ends each binary is what decides the
//! numbers: a name line can be torn by output of the test itself.

use std::time::Duration;

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Skipped(String),
}

/// All results so far.
#[derive(Clone, Debug, Default)]
pub struct Count {
    pub passed: u32,
    pub failed: Vec<String>,
    pub skipped: Vec<(String, String)>,
    /// Names seen since the last `test result:` line.
    open: Vec<(String, Outcome)>,
    /// Before the names of what runs now.
    prefix: String,
    /// Failures before that began.
    failed_before: usize,
}

impl Count {
    /// Adds a result that did not come from a test binary.
    pub fn add(&mut self, name: &str, outcome: Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed => self.failed.push(name.to_owned()),
            Outcome::Skipped(reason) => self.skipped.push((name.to_owned(), reason)),
        }
    }

    /// A run of test binaries begins; its names get `prefix`.
    pub fn begin(&mut self, prefix: &str) {
        prefix.clone_into(&mut self.prefix);
        self.failed_before = self.failed.len();
    }

    /// Takes one line of output.
    pub fn line(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.close(summary);
        } else if let Some((name, outcome)) = result_line(line) {
            let name = if self.prefix.is_empty() { name } else { format!("{}::{name}", self.prefix) };
            self.open.push((name, outcome));
        }
    }

    /// Ends a run of test binaries. One that died has no summary: that is a failure, named after what ran last.
    /// `success` is the exit of the whole run.
    pub fn end(&mut self, what: &str, success: bool) {
        let torn: Vec<_> = self.open.drain(..).collect();
        let died = !torn.is_empty();
        for (name, outcome) in torn {
            self.add(&name, outcome);
        }
        if died || (!success && self.failed.len() == self.failed_before) {
            self.failed.push(format!("{what} (ended without a result: it did not build, or it crashed)"));
        }
    }

    /// Results in all.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.passed + self.failed.len() as u32 + self.skipped.len() as u32
    }

    /// Settles a binary: `ok. 12 passed; 0 failed; 1 ignored; …`.
    fn close(&mut self, summary: &str) {
        let number = |word: &str| -> usize {
            let part = summary.split([';', '.']).find(|part| part.trim_end().ends_with(word));
            part.and_then(|part| part.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
        };
        let open = std::mem::take(&mut self.open);
        let mut failed: Vec<String> = Vec::new();
        let mut skipped = Vec::new();
        for (name, outcome) in open {
            match outcome {
                Outcome::Passed => {}
                Outcome::Failed => failed.push(name),
                Outcome::Skipped(reason) => skipped.push((name, reason)),
            }
        }
        // Names that were torn: the numbers stay right, the name is lost.
        let torn = || format!("{}::(see the output above)", self.prefix);
        failed.resize_with(number("failed"), torn);
        skipped.resize_with(number("ignored"), || (torn(), "ignored".to_owned()));
        self.passed += number("passed") as u32;
        self.failed.append(&mut failed);
        self.skipped.append(&mut skipped);
    }

    /// The last lines of the whole run; the very last holds only the three numbers.
    #[must_use]
    pub fn report(&self, took: Duration) -> String {
        let mut text = format!("\n== result after {} min {:02} s\n", took.as_secs() / 60, took.as_secs() % 60);
        for (name, reason) in &self.skipped {
            text.push_str(&format!("skipped  {name}: {reason}\n"));
        }
        for name in &self.failed {
            text.push_str(&format!("FAILED   {name}\n"));
        }
        let (failed, skipped) = (self.failed.len(), self.skipped.len());
        text.push_str(&format!("{} passed, {failed} failed, {skipped} skipped", self.passed));
        text
    }
}

/// `test NAME ... ok (0.3 s)`, `… FAILED`, `… ignored, why`.
fn result_line(line: &str) -> Option<(String, Outcome)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let word = rest.split([' ', ',']).next().unwrap_or_default();
    let outcome = match word {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        "ignored" => {
            let reason = rest.trim_start_matches("ignored").trim_start_matches(',').trim();
            Outcome::Skipped(if reason.is_empty() { "marked #[ignore]".to_owned() } else { reason.to_owned() })
        }
        _ => return None,
    };
    // libtest says how a test panics behind the name.
    Some((name.split(" - should panic").next().unwrap_or(name).to_owned(), outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(lines: &str) -> Count {
        let mut count = Count::default();
        count.begin("unit");
        lines.lines().for_each(|line| count.line(line));
        count
    }

    #[test]
    fn libtest_lines_are_counted() {
        let mut c = count(
            "running 4 tests\ntest a::one ... ok\ntest b - should panic ... ok\ntest slow ... ignored, takes long\n\
             test two ... FAILED\n\ntest result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 3 filtered out",
        );
        c.end("cargo test", false);
        assert_eq!(c.passed, 2);
        assert_eq!(c.failed, ["unit::two"]);
        assert_eq!(c.skipped, [("unit::slow".to_owned(), "takes long".to_owned())]);
    }

    #[test]
    fn end_to_end_lines_are_counted() {
        let c = count(
            "test e2e::nginx ... ok (1.2 s) 3 Gbit/s\ntest e2e::x ... ignored, needs root: namespaces\n\
             test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured",
        );
        assert_eq!((c.passed, c.failed.len()), (1, 0));
        assert_eq!(c.skipped[0].1, "needs root: namespaces");
    }

    #[test]
    fn a_torn_name_does_not_change_the_numbers() {
        let c = count("test a ... some output\nok\ntest result: FAILED. 0 passed; 1 failed; 0 ignored");
        assert_eq!((c.passed, c.failed.len(), c.skipped.len()), (0, 1, 0));
    }

    #[test]
    fn a_binary_that_dies_is_a_failure() {
        let mut c = count("running 2 tests\ntest a ... ok");
        c.end("cargo test", false);
        assert_eq!((c.passed, c.failed.len()), (1, 1));
        let mut c = Count::default();
        c.end("cargo test", false);
        assert_eq!(c.failed.len(), 1);
        let mut c = Count::default();
        c.end("cargo test", true);
        assert_eq!(c.total(), 0);
    }

    #[test]
    fn the_last_line_is_only_the_numbers() {
        let mut c = Count::default();
        c.add("fmt", Outcome::Passed);
        c.add("e2e::x", Outcome::Skipped("no root".into()));
        let report = c.report(Duration::from_secs(61));
        assert_eq!(report.lines().last(), Some("1 passed, 0 failed, 1 skipped"));
        assert!(report.contains("skipped  e2e::x: no root"), "{report}");
        assert!(report.contains("1 min 01 s"));
    }
}
