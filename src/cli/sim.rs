//! `sidestep sim`: runs a scenario in virtual time and says what came of it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use sidestep::clock::{Clock, MonotonicClock};
use sidestep::sim::matrix::{run_all, table};
use sidestep::sim::plot::svg;
use sidestep::sim::scenario::Variant;
use sidestep::sim::{Report, Run, RunOptions, Scenario};

use super::{FAILED, Failure, print};

#[derive(Debug, Args)]
pub struct SimArgs {
    /// Scenario: TOML (see config/sim/ and docs/SIMULATOR.md)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Seed, instead of the file's: the same seed gives the same bytes at the same times
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Simulated time, instead of the file's, in seconds
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Write a line for every frame ('-': to stdout)
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    trace: Option<PathBuf>,
    /// Write a pcapng file of every host into this folder
    #[arg(long, value_name = "DIR")]
    pcap: Option<PathBuf>,
    /// Draw window, round-trip time and goodput of bulk flows over time
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Runs of a matrix at one time [default: one a core]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

pub fn main(args: &SimArgs) -> Result<ExitCode, Failure> {
    super::start_log("warn");
    let mut all = Scenario::from_file(&args.file).map_err(Failure::usage)?;
    for (_, scenario) in &mut all {
        scenario.seed = args.seed.unwrap_or(scenario.seed);
        if let Some(seconds) = args.duration {
            let duration = std::time::Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero());
            scenario.duration = duration.ok_or_else(|| Failure::usage("--duration: must be more than 0 seconds"))?;
        }
    }
    let reports = match all.as_slice() {
        [(_, scenario)] => one(args, scenario)?,
        _ => many(args, &all)?,
    };
    let damaged = reports.iter().any(Report::is_damaged);
    if args.json {
        let _ = print(&format!("{}\n", json(&all, &reports)?));
    } else if let [report] = reports.as_slice() {
        let _ = print(&report.text());
    } else {
        let _ = print(&table(&all, &reports));
    }
    if damaged {
        eprintln!("sidestep: a stream was damaged: what arrived was not what had been sent");
        return Ok(ExitCode::from(FAILED));
    }
    if !reports.iter().all(Report::reaches_bars) {
        eprintln!("sidestep: a goodput is below the bar that the scenario sets");
        return Ok(ExitCode::from(FAILED));
    }
    Ok(ExitCode::SUCCESS)
}

fn one(args: &SimArgs, scenario: &Scenario) -> Result<Vec<Report>, Failure> {
    let mut options = RunOptions { series: args.plot.is_some(), ..RunOptions::default() };
    if let Some(path) = &args.trace {
        options.trace = Some(trace(path)?);
    }
    if let Some(folder) = &args.pcap {
        std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
        options.pcap = Some(folder.clone());
    }
    let mut progress = Progress::new();
    let report = Run::new(scenario, options)?.finish(&mut |done, events| progress.show(done, events))?;
    progress.end(&report);
    if let Some(path) = &args.plot {
        let title = args.file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        std::fs::write(path, svg(&report, &title)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(vec![report])
}

fn many(args: &SimArgs, all: &[(Variant, Scenario)]) -> Result<Vec<Report>, Failure> {
    if args.trace.is_some() || args.pcap.is_some() || args.plot.is_some() {
        return Err(Failure::usage("--trace, --pcap and --plot are for one run; this file has a [matrix]"));
    }
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let shows = std::io::stderr().is_terminal();
    let done = |n: usize, report: &Report| {
        if shows {
            let what: Vec<String> = all[n].0.iter().map(|c| format!("{} {}", c.name, c.value)).collect();
            eprintln!("{}: {} events", what.join(", "), report.events);
        }
    };
    Ok(run_all(all, jobs.max(1), &done)?)
}

fn json(all: &[(Variant, Scenario)], reports: &[Report]) -> Result<String, Failure> {
    let text = if let [report] = reports {
        serde_json::to_string_pretty(report)
    } else {
        let rows: Vec<serde_json::Value> = all
            .iter()
            .zip(reports)
            .map(|((variant, _), report)| {
                let values: serde_json::Map<String, serde_json::Value> =
                    variant.iter().map(|c| (c.name.clone(), c.value.clone().into())).collect();
                serde_json::json!({ "matrix": values, "report": report })
            })
            .collect();
        serde_json::to_string_pretty(&rows)
    };
    Ok(text.context("write JSON")?)
}

fn trace(path: &Path) -> Result<Box<dyn Write>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::BufWriter::new(std::io::stdout())));
    }
    let file = std::fs::File::create(path).with_context(|| format!("write {}", path.display()))?;
    Ok(Box::new(std::io::BufWriter::new(file)))
}

/// A line on the terminal that says how far a run is.
struct Progress {
    started: u64,
    shown: u64,
    shows: bool,
}

/// Nanoseconds between two lines.
const EVERY: u64 = 500_000_000;

impl Progress {
    fn new() -> Self {
        let started = MonotonicClock.now().as_nanos();
        Self { started, shown: started, shows: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, done: f64, events: u64) {
        let now = MonotonicClock.now().as_nanos();
        if self.shows && now - self.shown > EVERY {
            self.shown = now;
            let seconds = (now - self.started) as f64 / 1e9;
            let left = if done > 0.0 { seconds / done - seconds } else { 0.0 };
            let rate = events as f64 / seconds / 1e6;
            eprint!("\r{:5.1} %  {rate:.2} million events a second, {left:.0} s left \x1b[K", done * 100.0);
        }
    }

    fn end(&self, report: &Report) {
        let seconds = (MonotonicClock.now().as_nanos() - self.started) as f64 / 1e9;
        let clear = if self.shows { "\r\x1b[K" } else { "" };
        let memory = peak_memory().map_or_else(String::new, |mib| format!(", {mib} MiB of memory at most"));
        let (simulated, events) = (report.seconds, report.events);
        eprintln!("{clear}{simulated} simulated seconds took {seconds:.1} s, {events} events{memory}");
    }
}

/// The most memory that this process has had, in MiB. Shared memory that is mapped twice (engine and program are one
/// process here) counts twice.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib / 1024)
}
