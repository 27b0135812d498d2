//! Instructions that each stage of a packet's way takes, counted by valgrind's callgrind: unlike times, the same on a
//! busy machine. A file in the repository says what they were; more than that, beyond a tolerance, fails the check.
//!
//! A stage runs twice, the second time with twice the repetitions: the difference is what they cost, without start and
//! set-up.

use crate::Options;
use crate::build;
use crate::count::{Count, Outcome};
use anyhow::{Context, Result, bail};
use sidestep_e2e::engine::{binary, repository};
use sidestep_e2e::program::find;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// What the counts were, in the repository.
const FILE: &str = "benches/counts.txt";
/// Percent more than in the file that a change may cost without anybody looking.
const TOLERANCE: f64 = 10.0;
/// Repetitions of the first run. Requests go through the whole engine and need fewer.
const TIMES: u64 = 20_000;
const REQUESTS: u64 = 4_000;

/// What a read or write of a kernel descriptor takes more in a program with the preload library: not a stage of the
/// binary, but measured on `dd`.
const KERNEL_DESCRIPTOR: &str = "kernel-descriptor";

/// Stages that are mostly the C library's copying, which it does as the processor likes it best: their counts are of this
/// machine and of no other.
const COPYING: [&str; 3] = ["echo", "echo-in-place", "look"];

/// `cargo xtask counts`: measures, prints, and with `--update` writes the file.
///
/// # Errors
/// valgrind is missing, or a stage does not run.
pub fn main(options: &mut Options<'_>) -> Result<ExitCode> {
    let update = options.flag("--update");
    options.end()?;
    if let Some(reason) = refusal() {
        bail!("{reason}");
    }
    build::release()?;
    let sidestep = binary()?;
    let known = read(&repository().join(FILE)).unwrap_or_default();
    let mut measured = BTreeMap::new();
    for stage in stages(&sidestep)? {
        let count = measure(&sidestep, &stage)?;
        let before = known.counts.get(&stage).copied();
        println!("{}", line(&stage, count, before));
        measured.insert(stage, count);
    }
    if update {
        let path = repository().join(FILE);
        std::fs::write(&path, text(&measured)).with_context(|| path.display().to_string())?;
        println!("written to {FILE}");
    }
    let worse = measured.iter().any(|(stage, count)| known.counts.get(stage).is_some_and(|k| is_worse(*count, *k)));
    Ok(if worse && !update { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// As part of all tests: a result for each stage. `filter`: only those whose name contains it.
///
/// # Errors
/// The file in the repository can't be read.
pub fn check(count: &mut Count, filter: Option<&str>) -> Result<()> {
    let file = repository().join(FILE);
    if !file.exists() {
        count.add("counts", Outcome::Skipped(format!("{FILE} is not there: `cargo xtask counts --update` writes it")));
        return Ok(());
    }
    let known = read(&file)?;
    let reason = refusal().or_else(|| {
        let here = compiler();
        let other = known.compiler != here;
        other.then(|| format!("counted with {}, and this is {here}: see `cargo xtask counts`", known.compiler))
    });
    let sidestep = binary()?;
    for (stage, before) in &known.counts {
        let name = format!("counts::{stage}");
        if filter.is_some_and(|f| !name.contains(f)) {
            continue;
        }
        let outcome = match &reason {
            Some(reason) => Outcome::Skipped(reason.clone()),
            None => {
                let now = measure(&sidestep, stage)?;
                println!("   {}", line(stage, now, Some(*before)));
                if is_worse(now, *before) { Outcome::Failed } else { Outcome::Passed }
            }
        };
        count.add(&name, outcome);
    }
    Ok(())
}

/// Why counts would mean nothing here.
fn refusal() -> Option<String> {
    if find("valgrind").is_none() {
        return Some("the program `valgrind` is missing".into());
    }
    let changed = std::env::vars().map(|(key, _)| key).find(|key| key.starts_with("CARGO_PROFILE_RELEASE_"));
    changed.map(|key| format!("{key} is set: another release profile than the one that was counted"))
}

fn is_worse(now: f64, before: f64) -> bool {
    now > before * (1.0 + TOLERANCE / 100.0)
}

fn line(stage: &str, now: f64, before: Option<f64>) -> String {
    match before {
        None => format!("{stage:<18} {now:>9.0} instructions"),
        Some(before) => {
            let change = (now / before - 1.0) * 100.0;
            let word = if is_worse(now, before) { "  WORSE" } else { "" };
            format!("{stage:<18} {now:>9.0} instructions, {before:.0} in the file ({change:+.1} %){word}")
        }
    }
}

/// Names of the stages, as the binary knows them.
fn stages(sidestep: &Path) -> Result<Vec<String>> {
    let output = Command::new(sidestep).args(["bench", "stage"]).output().context("list the stages")?;
    let names = String::from_utf8_lossy(&output.stdout);
    let names = names.lines().filter_map(|line| line.split_whitespace().next());
    let names = names.filter(|name| !COPYING.contains(name));
    Ok(names.chain([KERNEL_DESCRIPTOR]).map(str::to_owned).collect())
}

/// Instructions for one time.
fn measure(sidestep: &Path, stage: &str) -> Result<f64> {
    let times = if stage.starts_with("request") { REQUESTS } else { TIMES };
    if stage == KERNEL_DESCRIPTOR {
        let library = sidestep.with_file_name("libsidestep_preload.so");
        let [bare, preloaded] = [None, Some(library.as_path())].map(|library| slope(times, |n| copied(library, n)));
        // A byte is a read and a write.
        return Ok(((preloaded? - bare?) / 2.0).max(0.0));
    }
    slope(times, |n| collected(callgrind()?.arg(sidestep).args(["bench", "stage", stage, "--count", &n.to_string()])))
}

fn slope(times: u64, collected: impl Fn(u64) -> Result<u64>) -> Result<f64> {
    let [once, twice] = [collected(times)?, collected(2 * times)?];
    Ok(twice.saturating_sub(once) as f64 / times as f64)
}

/// `dd` reads and writes so many bytes, one at a time.
fn copied(library: Option<&Path>, bytes: u64) -> Result<u64> {
    let mut command = callgrind()?;
    command.args(["dd", "if=/dev/zero", "of=/dev/null", "bs=1", "status=none"]).arg(format!("count={bytes}"));
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    collected(&mut command)
}

fn callgrind() -> Result<Command> {
    let valgrind: PathBuf = find("valgrind").context("valgrind is missing")?;
    let mut command = Command::new(valgrind);
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).stdin(Stdio::null());
    Ok(command)
}

fn collected(command: &mut Command) -> Result<u64> {
    let output = command.output().context("start valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let number = said.lines().find_map(|line| line.split_once("Collected : ")).and_then(|(_, n)| n.trim().parse().ok());
    match number {
        Some(number) if output.status.success() => Ok(number),
        _ => bail!("{command:?}: {}: {}", output.status, sidestep_e2e::program::tail(&said, 12)),
    }
}

#[derive(Default)]
struct Known {
    compiler: String,
    counts: BTreeMap<String, f64>,
}

fn text(counts: &BTreeMap<String, f64>) -> String {
    let mut out = format!(
        "# Instructions for each stage (`sidestep bench stage`), written by `cargo xtask counts --update`.\n\
         # More than {TOLERANCE} % above fails the check.\ncompiler {}\n",
        compiler()
    );
    for (stage, count) in counts {
        let _ = writeln!(out, "{stage} {count:.0}");
    }
    out
}

fn read(path: &Path) -> Result<Known> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut known = Known::default();
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        match line.split_once(' ') {
            Some(("compiler", version)) => known.compiler = version.to_owned(),
            Some((stage, count)) => {
                let count = count.parse().with_context(|| format!("{}: {line}", path.display()))?;
                known.counts.insert(stage.to_owned(), count);
            }
            None => bail!("{}: {line}: must be a stage and a number", path.display()),
        }
    }
    Ok(known)
}

/// Another compiler makes other instructions.
fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(|_| "unknown".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_it_is_written() {
        let counts = BTreeMap::from([("parse".to_owned(), 157.4), ("ring".to_owned(), 90.0)]);
        let path = std::env::temp_dir().join(format!("sidestep-unit-counts-{}", std::process::id()));
        std::fs::write(&path, text(&counts)).unwrap();
        let known = read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(known.counts, BTreeMap::from([("parse".to_owned(), 157.0), ("ring".to_owned(), 90.0)]));
        assert_eq!(known.compiler, compiler());
    }

    #[test]
    fn more_than_the_tolerance_is_worse() {
        assert!(!is_worse(109.0, 100.0) && !is_worse(20.0, 100.0));
        assert!(is_worse(111.0, 100.0) && line("x", 111.0, Some(100.0)).ends_with("WORSE"));
    }
}
