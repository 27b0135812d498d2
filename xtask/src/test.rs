//! `cargo xtask test`: everything that can be checked here, counted.

use crate::Options;
use crate::build::{self, cargo};
use crate::count::{Count, Outcome};
use crate::counts;
use crate::install;
use crate::rights::{Rights, run_through, start_through};
use anyhow::{Context, Result};
use sidestep_e2e::cleanup;
use sidestep_e2e::engine::target_dir;
use sidestep_e2e::harness;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Runs all tests; the exit code is 0 only when none failed.
///
/// # Errors
/// When the tests can't even be started.
pub fn main(options: &mut Options<'_>) -> Result<ExitCode> {
    let (quick, long) = (options.flag("--quick"), options.flag("--long"));
    let filter = options.value("--filter")?;
    options.end()?;
    let begin = Instant::now();
    let rights = Rights::here();
    let mut count = Count::default();

    step("what is installed");
    install::for_tests(rights)?;
    // With a filter somebody looks for one test; the checks of the whole tree would only stand in the way.
    if filter.is_none() {
        check(&mut count, "check::format", "fmt", &["fmt", "--all", "--check"])?;
        let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
        check(&mut count, "check::clippy", "clippy", &clippy)?;
    }
    if filter.as_ref().is_none_or(|f| !f.starts_with("e2e::")) {
        step("unit and documentation tests: cargo test --workspace");
        let mut line = vec!["test", "--workspace", "--no-fail-fast"];
        line.extend(filter.as_deref());
        counted(&mut count, "cargo test", &mut cargo(&line))?;
        step("memory-order models: loom explores every order of the shared-memory doorbells");
        models(&mut count, filter.as_deref())?;
    }
    step("release build, for the end-to-end tests");
    match build::release() {
        Ok(()) => count.add("check::release_build", Outcome::Passed),
        Err(error) => {
            println!("   {error:#}");
            count.add("check::release_build", Outcome::Failed);
        }
    }
    if filter.as_ref().is_none_or(|f| f.starts_with("counts::")) {
        step("instruction counts: cargo xtask counts");
        if let Err(error) = counts::check(&mut count, filter.as_deref()) {
            println!("   {error:#}");
            count.add("counts", Outcome::Failed);
        }
    }
    step("end-to-end tests: real programs in network namespaces");
    let mut arguments = vec!["e2e"];
    arguments.extend(quick.then_some("--quick"));
    arguments.extend(long.then_some("--long"));
    let name = filter.as_deref().map(|f| f.trim_start_matches("e2e::"));
    if let Some(name) = name {
        arguments.extend(["--filter", name]);
    }
    let mut command = match rights {
        Rights::User => Command::new(std::env::current_exe()?),
        _ => rights.myself(&[])?,
    };
    counted(&mut count, "e2e", command.args(&arguments))?;
    if count.total() == 0 {
        count.add(&format!("no test is named {}", filter.unwrap_or_default()), Outcome::Failed);
    }
    println!("{}", count.report(begin.elapsed()));
    Ok(if count.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The end-to-end tests, in this process.
///
/// # Errors
/// For an option that it does not know.
pub fn end_to_end(options: &mut Options<'_>) -> Result<ExitCode> {
    let (quick, long) = (options.flag("--quick"), options.flag("--long"));
    let filter = options.value("--filter")?;
    options.end()?;
    let tally = harness::run_all(&sidestep_e2e::cases(), &harness::Options { quick, long, filter });
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn step(what: &str) {
    println!("\n== {what}");
}

/// A cargo subcommand that passes or fails as a whole; skipped where the toolchain lacks it.
fn check(count: &mut Count, name: &str, tool: &str, line: &[&str]) -> Result<()> {
    step(&format!("{name}: cargo {}", line.join(" ")));
    let there = cargo(&[tool, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let outcome = if !there.is_ok_and(|status| status.success()) {
        Outcome::Skipped(format!("cargo {tool} is not installed (rustup component add {tool})"))
    } else if run_through(&mut cargo(line))?.success() {
        Outcome::Passed
    } else {
        Outcome::Failed
    };
    println!("   {outcome:?}");
    count.add(name, outcome);
    Ok(())
}

/// The loom models: the shared-memory crate built with its own switch, in a target folder of its own so that the two
/// builds do not throw each other away.
fn models(count: &mut Count, filter: Option<&str>) -> Result<()> {
    let before = count.total();
    let mut command = cargo(&["test", "--release", "--package", "sidestep-shm", "--tests"]);
    command.args(filter);
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", target_dir().join("loom"));
    // Loom models of three threads grow without end otherwise.
    command.env("LOOM_MAX_PREEMPTIONS", "3");
    counted(count, "loom", &mut command)?;
    if count.total() == before && filter.is_none() {
        count.add("loom (no model was found to run)", Outcome::Failed);
    }
    Ok(())
}

/// Runs a command that prints test lines, shows them, and counts them.
fn counted(count: &mut Count, what: &str, command: &mut Command) -> Result<()> {
    count.begin(if what == "e2e" { "" } else { what });
    let mut child = start_through(command.stdout(Stdio::piped()))?;
    let out = child.0.stdout.take().context("its output")?;
    for line in BufReader::new(out).lines() {
        let line = line?;
        println!("{line}");
        count.line(&line);
    }
    let status = child.wait()?;
    if cleanup::ending() {
        cleanup::wait_for_the_end();
    }
    count.end(what, status.success());
    Ok(())
}
