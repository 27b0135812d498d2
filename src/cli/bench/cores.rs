//! `sidestep bench cores` and `sidestep bench stage`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use sidestep::bench::cores::Cores;
use sidestep::bench::report;
use sidestep::bench::stages::{STAGES, find};
use sidestep_client::now_ns;

use super::compare::{json_lines, write};
use super::load::seconds;
use super::{show, stop_on_signals};
use crate::cli::{Failure, print, start_log, table};

#[derive(Debug, Args)]
pub struct CoresArgs {
    /// CPUs for the shards, in turn [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cores: Vec<usize>,
    /// Connections of each shard
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Bytes of a request and of its answer
    #[arg(short, long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1400))]
    size: u32,
    /// Seconds of a round
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    time: Duration,
    /// Rounds; results are their medians
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print JSON: a line with one object for each number of shards
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
pub struct StageArgs {
    /// Its name; without one, all are listed
    name: Option<String>,
    /// How often
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    count: u64,
}

pub fn main(args: &CoresArgs) -> Result<ExitCode, Failure> {
    start_log("warn");
    let all = || core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|c| c.id).collect();
    let cores = Cores {
        cores: if args.cores.is_empty() { all() } else { args.cores.clone() },
        connections: args.connections,
        size: args.size,
        round: args.time,
        rounds: args.rounds,
    };
    let stop = stop_on_signals()?;
    let measurements = cores.run(
        &mut |line| {
            if !args.quiet {
                eprintln!("{line}")
            }
        },
        &stop,
    )?;
    if let Some(path) = &args.html {
        write(path, &report::render(&measurements, &[]))?;
    }
    Ok(print(&if args.json { json_lines(&measurements)? } else { show::table(&measurements) }))
}

pub fn stage(args: &StageArgs) -> Result<ExitCode, Failure> {
    let Some(name) = &args.name else {
        let lines: Vec<Vec<String>> = STAGES.iter().map(|s| vec![s.name.to_owned(), s.what.to_owned()]).collect();
        return Ok(print(&table::render(&lines, &[])));
    };
    let stage =
        find(name).ok_or_else(|| Failure::usage(format!("no stage {name}; `sidestep bench stage` lists them")))?;
    let mut run = stage.ready()?;
    let start = now_ns();
    run(args.count)?;
    let each = (now_ns() - start) as f64 / args.count.max(1) as f64;
    Ok(print(&format!("{name}: {each:.1} ns ({})\n", stage.what)))
}
