//! Runs the cases one after another and says of each: passed, failed, or skipped and why.
//!
//! The output is that of `cargo test`, line by line, with the seconds and a figure behind it:
//! `test e2e::NAME ... ok (1.2 s) figure`, `... FAILED (0.3 s)`, `... ignored, REASON`.

use crate::cleanup;
use anyhow::{Result, anyhow};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// One test.
#[derive(Clone, Copy)]
pub struct Case {
    /// GROUP::NAME.
    pub name: &'static str,
    /// What it must have: programs looked for on PATH. One that is missing skips the test.
    pub needs: &'static [&'static str],
    /// How long it may take before it is taken to hang. Nothing else rests on it.
    pub limit: Duration,
    pub run: fn(&Options) -> Result<Verdict>,
}

/// What a test that did not fail says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    /// Passed, and this was measured on the way.
    Figure(String),
    /// Not run, because.
    Skipped(String),
}

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Shorter versions of the long tests.
    pub quick: bool,
    /// Longer ones than anybody waits for after a change: whole test suites of other projects.
    pub long: bool,
    /// Only cases whose name contains this.
    pub filter: Option<String>,
}

/// The tally.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

/// Whether figures that should be equal, ascending, differ so much that others use the machine: then a comparison with
/// them says nothing.
#[must_use]
pub fn uneven(figures: &[f64]) -> bool {
    let (Some(least), Some(most)) = (figures.first(), figures.last()) else { return true };
    *most > 1.4 * least
}

/// Runs all `cases` that the filter lets through.
#[must_use]
pub fn run_all(cases: &[Case], options: &Options) -> Tally {
    let wanted = |c: &&Case| options.filter.as_ref().is_none_or(|f| c.name.contains(f.as_str()));
    let chosen: Vec<&Case> = cases.iter().filter(wanted).collect();
    println!("running {} tests", chosen.len());
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    let refusal = refusal();
    for case in chosen {
        print!("test e2e::{} ... ", case.name);
        let _ = std::io::stdout().flush();
        let begin = Instant::now();
        let outcome = match (&refusal, missing(case)) {
            (Some(reason), _) => Ok(Verdict::Skipped(reason.clone())),
            (None, Some(program)) => Ok(Verdict::Skipped(format!("the program `{program}` is missing"))),
            (None, None) => bounded(case, options),
        };
        let seconds = begin.elapsed().as_secs_f64();
        match outcome {
            Ok(Verdict::Passed) => println!("ok ({seconds:.1} s)"),
            Ok(Verdict::Figure(ref figure)) => println!("ok ({seconds:.1} s) {figure}"),
            Ok(Verdict::Skipped(ref reason)) => println!("ignored, {reason}"),
            Err(ref error) => {
                println!("FAILED ({seconds:.1} s)");
                println!("     {error:#}");
                failures.push(case.name);
            }
        }
        match outcome {
            Ok(Verdict::Skipped(_)) => tally.skipped += 1,
            Ok(_) => tally.passed += 1,
            Err(_) => tally.failed += 1,
        }
    }
    let word = if tally.failed == 0 { "ok" } else { "FAILED" };
    let Tally { passed, failed, skipped } = tally;
    println!("test result: {word}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured");
    tally
}

/// Why nothing can run here.
fn refusal() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root: network namespaces, AF_XDP".into());
    }
    None
}

fn missing(case: &Case) -> Option<&'static str> {
    case.needs.iter().copied().find(|program| crate::program::find(program).is_none())
}

/// Runs one case on a thread of its own. At the limit everything that it started is ended, which makes its waits fail;
/// a case that still does not return ends the whole run, for it may hold anything.
fn bounded(case: &Case, options: &Options) -> Result<Verdict> {
    let (send, receive) = mpsc::channel();
    let (run, options) = (case.run, options.clone());
    std::thread::spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&options)));
        let _ = send.send(outcome.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", words(&*panic)))));
    });
    match receive.recv_timeout(case.limit) {
        Ok(_) if cleanup::ending() => cleanup::wait_for_the_end(),
        Ok(outcome) => outcome,
        Err(_) => {
            cleanup::run_left();
            let after = receive.recv_timeout(Duration::from_secs(60));
            let consequence = match after {
                Ok(Err(error)) => format!("; then: {error:#}"),
                Ok(Ok(_)) => String::new(),
                Err(_) => {
                    println!("FAILED\n     hangs after {} s, even with its programs ended", case.limit.as_secs());
                    std::process::exit(1);
                }
            };
            Err(anyhow!("did not end within {} s and was ended{consequence}", case.limit.as_secs()))
        }
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}
