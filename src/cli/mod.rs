//! What the user types, and what comes back: one line on stderr and an exit code when something is wrong.

mod bench;
mod check;
mod elf;
mod latency;
mod notify;
mod packetdrill;
mod preload;
mod run;
#[allow(unsafe_code)]
mod signals;
mod sim;
mod sockets;
mod stats;
mod table;
mod up;

use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use sidestep::config::Config;
use sidestep_shm::wire::ENV_SOCKET;

pub use sidestep::config::DEFAULT_CONTROL;
/// Where `run` looks for a configuration when it is told none.
pub const DEFAULT_CONFIG: &str = "/etc/sidestep/sidestep.toml";
/// Wrong use or a wrong configuration; clap's code for wrong arguments.
pub const USAGE: u8 = 2;
/// Something failed while running.
pub const FAILED: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  sidestep check config/veth-lab.toml                 is this configuration right, and what does it come to?
  sidestep up -c /etc/sidestep/sidestep.toml          an engine in the foreground; SIGTERM or Ctrl-C stops it
  sidestep run -- nginx -g 'daemon off;'              a program on the engine that is running
  sidestep run -c config/veth-lab.toml -- redis-server --port 6379
                                                      a program with an engine of its own
  sidestep ss                                         the sockets on the engine
  sidestep stats --json                               its counters, for a program to read
  sidestep packetdrill tests/packets/close/*.pkt      packet scripts against the stack, in virtual time
  sidestep latency                                    where the time of its programs' requests goes
  sidestep sim config/sim/lossy.toml                  the same stack in a simulated network, in virtual time

Exit codes: 0 done; 1 failed while running; 2 wrong use or wrong configuration. `run` gives the program's own exit
code: 126 it can't be executed, or can't run on Sidestep; 127 not found; 128+N ended by signal N.
SIDESTEP_LOG=debug says more on stderr (levels and filters as in RUST_LOG).";

const RUN_EXAMPLES: &str = "\
Examples:
  sidestep run -- curl http://10.0.0.1/               on the engine at /run/sidestep/engine.sock
  sidestep run --attach /run/sidestep/lab.sock -- nginx
  sidestep run -c config/nic-own-address.toml -- redis-server --port 6379
  sidestep run --loopback -- python3 -m unittest      no device: a loopback of its own, any user may do it
  sidestep run --library -c lab.toml -- redis-server  the engine in the program itself, run by the threads that wait
  sidestep run -- sh -c 'iperf3 -s & wait'            what a program starts is on Sidestep too

Without -c and --attach: the engine at $SIDESTEP_SOCKET or /run/sidestep/engine.sock if one answers there, else a
private one by /etc/sidestep/sidestep.toml. A private engine ends when the program and all that it started have
ended. SIDESTEP_PRELOAD names the library to load if it is not found beside this command.

With --library the first process that opens a socket has the engine in it; what it starts are guests of that engine, and
lose their connections when it ends. SIDESTEP_LIBRARY_FILE names libsidestep.so if it is not found beside this command.";

const SIM_EXAMPLES: &str = "\
Examples:
  sidestep sim config/sim/lossy.toml                  one flow over a link that loses 1 %
  sidestep sim config/sim/dumbbell.toml --plot out.svg
                                                      window, round-trip time and goodput of each flow, as a picture
  sidestep sim config/sim/incast.toml --seed 7 --json
  sidestep sim config/sim/lossy.toml --duration 0.1 --trace --pcap captures/
                                                      every frame as a line, and in pcapng files
  sidestep sim config/sim/bars.toml                   a matrix of scenarios beside the CUBIC/Reno law

Exit code 1: a stream was not what had been sent, a goodput is below the bar that the scenario sets, or a file could
not be written.";

/// A network stack in user space: unmodified programs over AF_XDP, beside the kernel
#[derive(Debug, Parser)]
#[command(name = "sidestep", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an engine in the foreground until SIGTERM or SIGINT
    Up(up::UpArgs),
    /// Run a program on Sidestep: on a running engine, or on one of its own
    #[command(after_help = RUN_EXAMPLES)]
    Run(run::RunArgs),
    /// List the sockets on an engine
    Ss(Question),
    /// Print an engine's counters
    Stats(Question),
    /// Run packet scripts in packetdrill's language against the stack, in virtual time
    Packetdrill(packetdrill::PacketdrillArgs),
    /// Check a configuration and print the effective one
    Check(check::CheckArgs),
    /// Run a scenario in virtual time: hosts, links, traffic
    #[command(after_help = SIM_EXAMPLES)]
    Sim(sim::SimArgs),
    /// Show where the time of requests goes, stage by stage
    Latency(latency::LatencyArgs),
    /// Measure: servers and load generators for every stack
    #[command(subcommand, after_help = bench::EXAMPLES)]
    Bench(bench::Bench),
}

/// Which engine to ask, and how to answer.
#[derive(Debug, Args)]
struct Question {
    /// Control socket of the engine [default: $SIDESTEP_SOCKET, else /run/sidestep/engine.sock]
    #[arg(long, value_name = "SOCKET")]
    control: Option<String>,
    /// The engine in this process (library mode), if its configuration names no control socket
    #[arg(long, value_name = "PID", conflicts_with = "control")]
    pid: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Question {
    /// Control socket of the engine that is meant.
    fn control(self) -> Result<String, Failure> {
        match self.pid {
            None => Ok(control_or_default(self.control)),
            Some(pid) => library_of(pid).ok_or_else(|| {
                Failure::usage(format!(
                    "process {pid} has no engine with a control socket of its own; one that its configuration names is \
                     for --control"
                ))
            }),
        }
    }
}

/// The control socket of the engine in process `pid`, if it has one: by unix(7)'s list of its namespace.
fn library_of(pid: u32) -> Option<String> {
    let prefix = format!("{}{pid}-", sidestep::library::CONTROL_PREFIX);
    let list = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).ok()?;
    list.lines().filter_map(|line| line.split_whitespace().last()).find(|n| n.starts_with(&prefix)).map(str::to_owned)
}

/// An error with the exit code that it ends in.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl Failure {
    /// For what is wrong with the request, not with the machine.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { code: USAGE, message: message.to_string() }
    }
}

impl From<anyhow::Error> for Failure {
    /// The whole chain of causes in one line.
    fn from(error: anyhow::Error) -> Self {
        Self { code: FAILED, message: format!("{error:#}") }
    }
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Up(args) => up::main(&args),
        Command::Run(args) => run::main(&args),
        Command::Ss(q) => question(q, sockets::main),
        Command::Stats(q) => question(q, stats::main),
        Command::Packetdrill(args) => packetdrill::main(&args),
        Command::Check(args) => check::main(&args),
        Command::Sim(args) => sim::main(&args),
        Command::Latency(args) => latency::main(&args),
        Command::Bench(args) => bench::main(&args),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("sidestep: {}", failure.message.replace('\n', "; "));
        ExitCode::from(failure.code)
    })
}

/// Asks the engine that is meant.
fn question(q: Question, ask: fn(&str, bool) -> Result<ExitCode, Failure>) -> Result<ExitCode, Failure> {
    let json = q.json;
    ask(&q.control()?, json)
}

/// Reads a configuration; a wrong one is wrong use.
fn load(path: &Path) -> Result<Config, Failure> {
    Config::from_file(path).map_err(Failure::usage)
}

/// The engine that a tool means: the one it names, the one this process runs on, or the one of the machine.
fn control_or_default(named: Option<String>) -> String {
    named.or_else(environment_control).unwrap_or_else(|| DEFAULT_CONTROL.into())
}

fn environment_control() -> Option<String> {
    std::env::var(ENV_SOCKET).ok().filter(|s| !s.is_empty())
}

/// A control socket as the engine takes it: absolute, so that it means the same after a chdir.
fn absolute_control(name: &str) -> Result<String, Failure> {
    if name.starts_with('@') || name.starts_with('/') {
        return Ok(name.into());
    }
    let path = std::path::absolute(PathBuf::from(name)).map_err(|e| Failure::usage(format!("{name}: {e}")))?;
    path.into_os_string().into_string().map_err(|_| Failure::usage(format!("{name}: its full path is not UTF-8")))
}

/// The default socket's folder, which nobody else makes; a folder that the user named must be there.
fn make_run_directory(control: &str) -> anyhow::Result<()> {
    use anyhow::Context;
    use std::os::unix::fs::DirBuilderExt;
    let Some(folder) = DEFAULT_CONTROL.rsplit_once('/').map(|(folder, _)| folder) else { return Ok(()) };
    if control != DEFAULT_CONTROL || Path::new(folder).exists() {
        return Ok(());
    }
    std::fs::DirBuilder::new().mode(0o755).create(folder).with_context(|| {
        format!("make {folder} for the control socket (are you root? else name one with --control SOCKET)")
    })
}

/// Writes an answer. A reader that has gone away (`sidestep ss | head`) is not an error.
fn print(text: &str) -> ExitCode {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("sidestep: can't write the answer: {e}");
            ExitCode::from(FAILED)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// The log goes to stderr: stdout belongs to answers and to the program that runs.
fn start_log(default_level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SIDESTEP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default_level));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // Fails only when a log was started before, which is as good.
    let _ = log.with_target(false).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"sidestep").chain(words)).map(|c| c.command)
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_program_keeps_its_own_options() {
        for words in [&["run", "--", "nc", "-l", "--json"][..], &["run", "nc", "-l", "--json"]] {
            let Ok(Command::Run(args)) = parse(words) else { panic!("{words:?}") };
            assert_eq!(args.program, ["nc", "-l", "--json"]);
        }
        let Ok(Command::Run(args)) = parse(&["run", "-c", "a.toml", "--", "x"]) else { panic!() };
        assert_eq!((args.config, args.program), (Some("a.toml".into()), vec!["x".into()]));
    }

    #[test]
    fn wrong_use_is_refused() {
        for words in [
            &["run"][..],
            &["up"],
            &["check"],
            &["frobnicate"],
            &["ss", "--what"],
            &["run", "-c", "f", "--attach", "s", "--", "x"],
        ] {
            let error = parse(words).map(|_| ()).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(USAGE), "{words:?}");
        }
    }

    #[test]
    fn a_relative_control_socket_becomes_absolute() {
        assert_eq!(absolute_control("@x").unwrap(), "@x");
        assert_eq!(absolute_control("/run/x").unwrap(), "/run/x");
        assert!(absolute_control("x.sock").unwrap().starts_with('/'));
    }
}
