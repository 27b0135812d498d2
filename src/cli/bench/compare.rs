//! `sidestep bench compare` and `sidestep bench report`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use sidestep::bench::compare::{Plan, Stack, Test};
use sidestep::bench::lab;
use sidestep::bench::measure::Measurement;
use sidestep::bench::report;

use super::load::{seconds, seconds_or_none};
use super::show;
use crate::cli::signals::Signals;
use crate::cli::{FAILED, Failure, print, start_log};

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Tests, as rr,rr:32,nginx:50: rr[:N], stream, crr[:N], udp[:N], nginx[:N], redis[:N], iperf3 [default: all]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = Test::parse)]
    tests: Vec<Test>,
    /// Stacks, as kernel,sidestep,raw: kernel, kernel-spin, kernel-tuned, kernel-plain, sidestep, raw [default: all]
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = Stack::parse)]
    stacks: Vec<Stack>,
    /// Rounds of each; they take turns
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of a round
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    time: Duration,
    /// Seconds before it
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds_or_none)]
    warmup: Duration,
    /// Cores of the two sides
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_value = "0,1", num_args = 1..=2)]
    cores: Vec<usize>,
    /// MTU of the veth pairs
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u32).range(1280..=9000))]
    mtu: u32,
    /// Two devices of this machine that a cable joins, instead of veth pairs: they are taken away while it runs, and
    /// lose their addresses
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    interfaces: Vec<String>,
    /// Print JSON: a line with one object for each measurement
    #[arg(long)]
    json: bool,
    /// Write a report that a browser shows
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Say nothing while it runs
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Files of --json
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The report
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub fn main(args: &CompareArgs) -> Result<ExitCode, Failure> {
    start_log("warn");
    let devices = match &args.interfaces[..] {
        [] => None,
        [a, b] if a != b => Some([a.clone(), b.clone()]),
        _ => return Err(Failure::usage("--interfaces takes two devices, as eth1,eth2")),
    };
    let [a, b] = args.cores[..] else { return Err(Failure::usage("--cores takes two, as 0,1")) };
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::usage("bench compare makes network namespaces and uses AF_XDP: it needs root"));
    }
    let signals = Signals::block(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).context("block signals")?;
    let plan = Plan {
        tests: if args.tests.is_empty() { Test::usual() } else { args.tests.clone() },
        stacks: if args.stacks.is_empty() { Stack::ALL.to_vec() } else { args.stacks.clone() },
        rounds: args.rounds,
        time: args.time,
        warmup: args.warmup,
        cores: [a, b],
        mtu: args.mtu,
        devices,
        binary: std::env::current_exe().context("find this program")?,
        prepare: &|command: &mut Command| signals.spare(command),
    };
    let quiet = args.quiet;
    let outcome = std::thread::scope(|scope| {
        let watch = scope.spawn(|| clean_up_on_signal(&signals));
        let outcome = plan.run(
            &mut |line| {
                if !quiet {
                    eprintln!("{line}")
                }
            },
            &|| false,
        );
        watch.thread().unpark();
        OVER.store(true, std::sync::atomic::Ordering::Release);
        outcome
    })?;
    if let Some(path) = &args.html {
        write(path, &report::render(&outcome.measurements, &outcome.skipped))?;
    }
    for line in &outcome.skipped {
        eprintln!("not run: {line}");
    }
    let code = if outcome.measurements.is_empty() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS };
    if args.json {
        print(&json_lines(&outcome.measurements)?);
        return Ok(code);
    }
    print(&show::table(&outcome.measurements));
    Ok(code)
}

/// Set when there is nothing left to clean up.
static OVER: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Waits for a signal; then removes the laboratories with all that runs in them, and ends this process.
fn clean_up_on_signal(signals: &Signals) {
    while !OVER.load(std::sync::atomic::Ordering::Acquire) {
        if signals.next().is_some() {
            eprintln!("interrupted: cleaning up");
            lab::undo_all();
            std::process::exit(130);
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

pub fn report(args: &ReportArgs) -> Result<ExitCode, Failure> {
    let mut all: Vec<Measurement> = Vec::new();
    for file in &args.files {
        let text = fs::read_to_string(file).map_err(|e| Failure::usage(format!("{}: {e}", file.display())))?;
        for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let read = serde_json::from_str(line);
            all.push(read.map_err(|e| Failure::usage(format!("{}:{}: {e}", file.display(), n + 1)))?);
        }
    }
    write(&args.output, &report::render(&all, &[]))?;
    Ok(ExitCode::SUCCESS)
}

/// One object a line.
pub fn json_lines(all: &[Measurement]) -> Result<String, Failure> {
    let lines: Result<Vec<String>, _> = all.iter().map(serde_json::to_string).collect();
    Ok(lines.context("write JSON")?.join("\n") + "\n")
}

pub fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).with_context(|| format!("write {}", path.display())).map_err(Into::into)
}
