//! `sidestep up`: an engine in the foreground.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use sidestep::clock::{Clock, MonotonicClock};
use sidestep::config::Config;
use sidestep::control::inspect;
use sidestep::engine::Engine;
use sidestep_shm::wire::inspect::STATS;

use super::notify::Notify;
use super::signals::Signals;
use super::{DEFAULT_CONTROL, FAILED, Failure, absolute_control, load, make_run_directory, print, start_log};

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Configuration: TOML (see config/), or an old nuse.conf
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Control socket: a path, or '@' and a name [default: the configuration's, else /run/sidestep/engine.sock]
    #[arg(long, value_name = "SOCKET")]
    control: Option<String>,
}

pub fn main(args: &UpArgs) -> Result<ExitCode, Failure> {
    start_log("info");
    let mut config = load(&args.config)?;
    if let Some(named) = &args.control {
        config.engine.control = Some(absolute_control(named)?);
    }
    make_run_directory(config.engine.control.as_deref().unwrap_or(DEFAULT_CONTROL))?;
    // Before the first thread starts, so that every thread leaves the signals to `wait`.
    let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).context("block signals")?;
    let notify = Notify::from_environment();
    let engine = Engine::start(&config)?;
    let _ = print(&format!("sidestep: ready: {}, control socket {}\n", summary(&config), engine.control()));
    notify.say(&format!("READY=1\nSTATUS=Serving {}", summary(&config)));

    wait(&engine, &signals, &notify, &config);
    notify.say("STOPPING=1");
    // From here on a second signal ends the process at once, as an impatient user wants. Nothing would stay behind:
    // the XDP program hangs on a link that dies with the process.
    drop(signals);
    let failed = engine.has_failed();
    engine.stop();
    if failed {
        return Err(Failure { code: FAILED, message: "a part of the engine failed; the log above says which".into() });
    }
    Ok(ExitCode::SUCCESS)
}

/// Until a signal, a tool's wish, or a failure. Feeds systemd's watchdog as long as the engine really answers.
fn wait(engine: &Engine, signals: &Signals, notify: &Notify, config: &Config) {
    let clock = MonotonicClock;
    let last_sign = Cell::new(clock.now());
    let stop = || {
        if let Some(signal) = signals.next() {
            tracing::info!(signal = signal.number, from = signal.sender, "stopping");
            return true;
        }
        if let Some(every) = notify.watchdog()
            && clock.now().since(last_sign.get()) >= every
            && answers(engine.control(), config)
        {
            notify.say("WATCHDOG=1");
            last_sign.set(clock.now());
        }
        false
    };
    engine.wait(&stop);
}

/// Whether the control thread and every shard answer.
fn answers(control: &str, config: &Config) -> bool {
    let shards: usize = config.interfaces.iter().map(|i| i.queues.len()).sum();
    let told = inspect(control, STATS).ok().and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    told.and_then(|v| v["shards"].as_array().map(Vec::len)) == Some(shards)
}

/// The interface and what the stack is on it, for people.
fn summary(config: &Config) -> String {
    let each = config.interfaces.iter().map(|i| {
        let addresses: Vec<_> = i.addresses.iter().map(|a| format!("{}/{}", a.address, a.prefix_bits)).collect();
        let queues = if i.queues.len() == 1 { "1 queue".into() } else { format!("{} queues", i.queues.len()) };
        format!("interface {}, {queues}, addresses {}", i.name, addresses.join(" "))
    });
    each.collect::<Vec<_>>().join("; ")
}
