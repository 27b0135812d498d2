//! `sidestep bench rr`, `stream`, `crr`, `udp`, `idle`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use sidestep::bench::hist;
use sidestep::bench::load::{Load, Outcome, Test, run};
use sidestep::bench::measure::{Measurement, merged};
use sidestep::bench::serve::REQUEST_HEADER;

use super::show::{self, ProgressLine};
use super::{Stack, StackArgs, address, stop_on_signals};
use crate::cli::{FAILED, Failure, print, start_log};

/// Times and outputs that all tests have.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    stack: StackArgs,
    /// Where `bench serve` listens: HOST or HOST:PORT, the first of its ports
    server: String,
    /// Threads; each has its share of the connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Seconds of a round
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    time: Duration,
    /// Rounds; results are their medians
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds before the first round
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds_or_none)]
    warmup: Duration,
    /// Print JSON: one object
    #[arg(long)]
    json: bool,
    /// Write the percentile distribution over all rounds (HdrHistogram's text form, microseconds)
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write a histogram for every interval of about a second (HdrHistogram's log, nanoseconds)
    #[arg(long, value_name = "FILE")]
    hlog: Option<PathBuf>,
    /// Say nothing while it runs
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Connections, or sockets
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Bytes of a request
    #[arg(short, long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    size: u32,
    /// Bytes of an answer [default: as the request]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    reply: Option<u32>,
    /// Requests under way on a connection at most
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    depth: u32,
    /// Open loop: requests a second in all, due at fixed moments; latencies count from then
    #[arg(short, long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
}

#[derive(Debug, Args)]
pub struct StreamArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Connections
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Bytes of a write or read
    #[arg(short, long, value_name = "BYTES", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    size: u32,
    /// From the server to here
    #[arg(short = 'R', long)]
    reverse: bool,
}

#[derive(Debug, Args)]
pub struct IdleArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Connections
    #[arg(short, long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
}

pub fn rr(args: &LoadArgs) -> Result<ExitCode, Failure> {
    let load = args.load(Test::Rr)?;
    if load.size != load.reply && (load.size as usize) < REQUEST_HEADER {
        return Err(Failure::usage(format!(
            "an answer of another size needs requests of {REQUEST_HEADER} bytes or more"
        )));
    }
    args.run.main(&load)
}

pub fn crr(args: &LoadArgs) -> Result<ExitCode, Failure> {
    let load = args.load(Test::Crr)?;
    if (load.size as usize) < REQUEST_HEADER || load.depth != 1 {
        return Err(Failure::usage(format!("crr has one request of {REQUEST_HEADER} bytes or more on a connection")));
    }
    args.run.main(&load)
}

pub fn udp(args: &LoadArgs) -> Result<ExitCode, Failure> {
    let load = args.load(Test::Udp)?;
    if load.reply != load.size || !(8..=65_507).contains(&load.size) {
        return Err(Failure::usage("datagrams have 8 to 65507 bytes, and their answers are as long"));
    }
    args.run.main(&load)
}

pub fn stream(args: &StreamArgs) -> Result<ExitCode, Failure> {
    let mut load = args.run.load(Test::Stream { reverse: args.reverse }, args.connections)?;
    load.size = args.size;
    args.run.main(&load)
}

pub fn idle(args: &IdleArgs) -> Result<ExitCode, Failure> {
    let load = args.run.load(Test::Idle, args.connections)?;
    args.run.main(&load)
}

impl LoadArgs {
    fn load(&self, test: Test) -> Result<Load, Failure> {
        let load = self.run.load(test, self.connections)?;
        let reply = self.reply.unwrap_or(self.size);
        Ok(Load { size: self.size, reply, depth: self.depth, rate: self.rate, ..load })
    }
}

impl RunArgs {
    fn load(&self, test: Test, connections: u32) -> Result<Load, Failure> {
        self.stack.check()?;
        Ok(Load {
            test,
            server: address(&self.server)?,
            connections,
            size: 1,
            reply: 1,
            depth: 1,
            threads: self.threads.min(connections),
            rate: None,
            warmup: self.warmup,
            round: self.time,
            rounds: self.rounds,
            cores: self.stack.cores.clone(),
        })
    }

    fn main(&self, load: &Load) -> Result<ExitCode, Failure> {
        start_log("warn");
        let stop = stop_on_signals()?;
        let mut line = ProgressLine::new(!self.quiet, load.test.name(), self.stack.stack.name(), load.rounds);
        let mut progress = |p| line.show(&p);
        let outcome = match self.stack.stack {
            Stack::Kernel => run(load, self.stack.kernel(), &mut progress, &stop),
            Stack::Sidestep => run(load, self.stack.engine()?, &mut progress, &stop),
            Stack::Library => {
                let library = self.stack.library()?;
                run(load, self.stack.on_library(&library), &mut progress, &stop)
            }
        };
        line.end();
        let outcome = outcome.with_context(|| format!("bench {} on {}", load.test.name(), self.stack.stack.name()))?;
        if outcome.rounds.is_empty() {
            return Err(Failure { code: FAILED, message: "interrupted before a round was whole".into() });
        }
        self.write_files(&outcome)?;
        let m = self.measurement(load, &outcome);
        if self.json {
            let text = serde_json::to_string(&m).context("write JSON")?;
            return Ok(print(&format!("{text}\n")));
        }
        Ok(print(&show::table(&[m])))
    }

    fn measurement(&self, load: &Load, outcome: &Outcome) -> Measurement {
        let mut notes = Vec::new();
        if self.stack.spin {
            notes.push("spinning".to_owned());
        }
        if self.stack.busy_poll > 0 {
            notes.push(format!("busy poll {} us", self.stack.busy_poll));
        }
        Measurement {
            test: load.test.name().into(),
            stack: self.stack.stack.name().into(),
            connections: load.connections,
            size: load.size,
            reply_size: load.reply,
            depth: load.depth,
            intended_rate: load.rate,
            note: notes.join(", "),
            ..Measurement::of(&outcome.rounds)
        }
    }

    fn write_files(&self, outcome: &Outcome) -> Result<(), Failure> {
        if let Some(path) = &self.hgrm {
            let text = hist::hgrm(&merged(&outcome.rounds));
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        }
        if let Some(path) = &self.hlog {
            hist::write_hlog(path, outcome.began, outcome.interval, &outcome.intervals)
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

pub fn seconds(text: &str) -> Result<Duration, String> {
    match seconds_or_none(text)? {
        Duration::ZERO => Err("must be more than 0".into()),
        some => Ok(some),
    }
}

pub fn seconds_or_none(text: &str) -> Result<Duration, String> {
    let number: f64 = text.trim_end_matches('s').parse().map_err(|_| "must be a number of seconds, as 5 or 0.5")?;
    if !(0.0..=86_400.0).contains(&number) {
        return Err("must be 0 to 86400 seconds".into());
    }
    Ok(Duration::from_secs_f64(number))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e9 => Ok(rate),
        _ => Err("must be a number of requests a second".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        assert_eq!(seconds_or_none("0s"), Ok(Duration::ZERO));
        assert!(seconds("0").is_err() && seconds("-1").is_err() && seconds("1h").is_err());
        assert_eq!(rate("1e5"), Ok(100_000.0));
        assert!(rate("0").is_err() && rate("NaN").is_err());
    }
}
