//! `sidestep bench raw`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use sidestep::bench::measure::Measurement;
use sidestep::bench::raw::{MIN_FRAME, Raw, RawTest, parse_mac, run};

use super::load::{seconds, seconds_or_none};
use super::show::{self, ProgressLine};
use super::stop_on_signals;
use crate::cli::{FAILED, Failure, print, start_log};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Receive and forget
    RxDrop,
    /// Send as much as goes
    TxOnly,
    /// Send everything back, until stopped
    Reflect,
    /// Send to a reflector, and measure how long answers take
    Ping,
}

#[derive(Debug, Args)]
pub struct RawArgs {
    what: What,
    /// Network device
    #[arg(short, long, value_name = "NAME")]
    interface: String,
    /// Its queue
    #[arg(long, value_name = "N", default_value_t = 0)]
    queue: u32,
    /// Bytes of a frame, without its check sequence
    #[arg(short, long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(i64::from(MIN_FRAME)..=9014))]
    size: u32,
    /// Pings under way at most
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: u32,
    /// Ethernet address of the peer
    #[arg(long, value_name = "MAC", default_value = "ff:ff:ff:ff:ff:ff", value_parser = parse_mac)]
    peer: [u8; 6],
    /// Sleep while there is nothing, instead of looking again at once
    #[arg(long)]
    block: bool,
    /// Let the kernel poll the device inside system calls
    #[arg(long)]
    busy_poll: bool,
    /// Core to run on
    #[arg(long, value_name = "CPU")]
    core: Option<usize>,
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
    /// Say nothing while it runs
    #[arg(short, long)]
    quiet: bool,
}

pub fn main(args: &RawArgs) -> Result<ExitCode, Failure> {
    start_log("warn");
    let test = match args.what {
        What::RxDrop => RawTest::RxDrop,
        What::TxOnly => RawTest::TxOnly,
        What::Reflect => RawTest::Reflect,
        What::Ping => RawTest::Ping,
    };
    let raw = Raw {
        test,
        interface: args.interface.clone(),
        queue: args.queue,
        size: args.size,
        depth: args.depth,
        peer: args.peer,
        block: args.block,
        busy_poll: args.busy_poll,
        core: args.core,
        warmup: args.warmup,
        round: args.time,
        rounds: if test == RawTest::Reflect { 0 } else { args.rounds },
    };
    let stop = stop_on_signals()?;
    let mut line = ProgressLine::new(!args.quiet, test.name(), "raw", args.rounds);
    let rounds = run(&raw, &mut |p| line.show(&p), &stop);
    line.end();
    let rounds = rounds.context(test.name())?;
    if rounds.is_empty() {
        return Err(Failure { code: FAILED, message: "interrupted before a round was whole".into() });
    }
    let m = Measurement {
        test: test.name().into(),
        stack: "raw".into(),
        connections: 1,
        size: args.size,
        reply_size: args.size,
        depth: args.depth,
        note: if args.block { "sleeping".into() } else { String::new() },
        ..Measurement::of(&rounds)
    };
    if args.json {
        return Ok(print(&format!("{}\n", serde_json::to_string(&m).context("write JSON")?)));
    }
    Ok(print(&show::table(&[m])))
}
