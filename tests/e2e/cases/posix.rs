//! The parity suite: each program of `tests/posix` on the kernel's sockets and on Sidestep's, in the same network, and
//! the two transcripts compared.

use super::{OURS, PEER, Pair, case};
use crate::engine::{Setup, repository};
use crate::harness::{Case, Options, Verdict};
use crate::parity::{Comparison, Transcript, documented};
use crate::program::TRANSFER;
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// A program runs at most as long as the sum of its functions, most of which take milliseconds; one that hangs is ended
/// after 30 s by itself.
const LIMIT: Duration = Duration::from_secs(600);

/// Checks and agreements of the programs that ran, for [`agreement`].
static TALLY: Mutex<Tally> = Mutex::new(Tally { programs: 0, checks: 0, known: 0, wrong: 0 });

struct Tally {
    programs: usize,
    checks: u32,
    known: u32,
    wrong: u32,
}

/// One case for each program, named after it, and the sum at the end.
macro_rules! programs {
    ($($name:ident),+ $(,)?) => {
        pub const CASES: &[Case] = &[
            $(case(concat!("posix::", stringify!($name)), &["cc"], LIMIT, |_| run(stringify!($name)))),+,
            case("posix::agreement", &["cc"], LIMIT, agreement),
        ];
        const PROGRAMS: &[&str] = &[$(stringify!($name)),+];
    };
}

programs! {
    tcp, udp, connecting, families, options, flags, messages, pointers, copying, descriptors, poll, epoll, sharing, signals,
    threads, process,
}

fn sources() -> PathBuf {
    repository().join("tests/posix")
}

fn build(pair: &Pair, name: &str) -> Result<PathBuf> {
    let binary = pair.lab.file(name);
    let mut line = Command::new("cc");
    line.args(["-O1", "-Wall", "-pthread", "-o"]).arg(&binary).arg(sources().join(format!("{name}.c")));
    pair.lab.must(&mut line, TRANSFER)?;
    Ok(binary)
}

/// Runs the program by `command` and gives its transcript.
fn transcript(pair: &Pair, mut command: Command) -> Result<Transcript> {
    command.args(OURS).args(PEER);
    let ended = pair.lab.run(&mut command, LIMIT / 2)?.ok(&format!("{command:?}"))?;
    ensure!(ended.stderr.is_empty(), "{command:?} complains: {}", ended.stderr);
    Transcript::parse(&ended.stdout)
}

fn run(name: &str) -> Result<Verdict> {
    let page = std::fs::read_to_string(repository().join("docs/POSIX.md")).context("docs/POSIX.md")?;
    let documented = documented(&page)?;
    // The same network twice: the addresses are the kernel's in one and Sidestep's in the other.
    let here = OURS.map(|address| format!("{address}/{}", if address.contains(':') { 64 } else { 24 }));
    let theirs = Pair::with("posixk", 1, &[&here[0], &here[1]])?;
    let kernel = transcript(&theirs, theirs.a().command(build(&theirs, name)?))?;
    drop(theirs);
    let pair = Pair::new("posix")?;
    let engine = pair.engine(&Setup::default())?;
    let ours = transcript(&pair, engine.command(build(&pair, name)?))?;
    let result = Comparison::of(name, &kernel, &ours, &documented);
    ensure!(result.checks > 0, "nothing was checked");
    let mut tally = TALLY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let wrong = u32::try_from(result.wrong.len())?;
    tally.programs += 1;
    tally.checks += result.checks;
    tally.known += result.known;
    tally.wrong += wrong;
    drop(tally);
    if wrong > 0 {
        let mut text = String::new();
        for (check, what) in &result.wrong {
            let _ = write!(text, "\n     posix::{check}\n       {what}");
        }
        bail!("{wrong} of {} checks are not as documented:{text}", result.checks);
    }
    Ok(Verdict::Figure(format!("{} checks, {} documented differences", result.checks, result.known)))
}

/// The sum over all programs; and that none was forgotten in the list above.
fn agreement(_: &Options) -> Result<Verdict> {
    let listed = |path: &Path| path.file_stem().is_some_and(|stem| PROGRAMS.iter().any(|name| stem == *name));
    for entry in std::fs::read_dir(sources())? {
        let path = entry?.path();
        ensure!(path.extension().is_none_or(|e| e != "c") || listed(&path), "{} is not run", path.display());
    }
    let tally = TALLY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if tally.programs < PROGRAMS.len() {
        return Ok(Verdict::Skipped(format!("{} of {} programs were run", tally.programs, PROGRAMS.len())));
    }
    let agree = tally.checks.saturating_sub(tally.known + tally.wrong);
    let share = f64::from(agree) / f64::from(tally.checks.max(1)) * 100.0;
    let figure = format!(
        "{agree} of {} checks agree with the kernel ({share:.2} %), {} differences are documented",
        tally.checks, tally.known
    );
    ensure!(tally.checks >= 400 && share >= 99.0, "{figure}");
    Ok(Verdict::Figure(figure))
}
