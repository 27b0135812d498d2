//! `sidestep run`: a program on Sidestep. On a running engine this process becomes the program (exec), so that its exit
//! status, its signals and its terminal need no help. With a private engine this process is the engine, and stands
//! between the program and whoever started it.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, Signal, WaitOptions, wait};
use sidestep::config::Config;
use sidestep::control::inspect;
use sidestep::engine::Engine;
use sidestep::library::CONTROL_PREFIX;
use sidestep_shm::wire::inspect::STATS;
use sidestep_shm::wire::{DISPATCH, ENV_EXCLUDE, ENV_GROUP, ENV_LIBRARY, ENV_LIBRARY_CONFIG, ENV_SOCKET, ENV_SYSCALLS};

use super::signals::{self, Signals};
use super::{
    DEFAULT_CONFIG, DEFAULT_CONTROL, FAILED, Failure, absolute_control, control_or_default, elf, load,
    make_run_directory, preload, start_log,
};

/// How long the program's last bytes may take to leave, in turns of [`TURN`].
const FLUSH_TURNS: u32 = 5_000_000_000_u64.div_euclid(TURN.tv_nsec as u64) as u32;
/// How often this process looks whether somebody still needs the engine.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// What is passed on to the program. SIGCHLD tells of its end.
const SIGNALS: [i32; 10] = [
    libc::SIGCHLD,
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
];

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Start a private engine by this configuration, for as long as the program runs
    #[arg(short, long, value_name = "FILE", conflicts_with = "attach")]
    pub config: Option<PathBuf>,
    /// Use the running engine with this control socket
    #[arg(long, value_name = "SOCKET")]
    pub attach: Option<String>,
    /// Start a private engine without an interface: the program has a loopback of its own, 127.0.0.0/8 and ::1
    #[arg(long, conflicts_with_all = ["config", "attach"])]
    pub loopback: bool,
    /// The engine is in the program itself, run by the threads that wait (library mode); by the configuration of -c, or
    /// with --loopback
    #[arg(long, conflicts_with = "attach")]
    pub library: bool,
    /// Which system calls of the program are looked at: "preload", those that it makes through the C library;
    /// "dispatch", those that it makes itself as well [default: the configuration's]
    #[arg(long, value_name = "HOW", value_parser = ["preload", "dispatch"])]
    pub syscalls: Option<String>,
    /// A program that stays on the kernel's sockets when this one starts it; may be given several times, and adds to
    /// the configuration's
    #[arg(long, value_name = "NAME")]
    pub exclude: Vec<String>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

/// Where the engine is.
enum Place {
    Running(String),
    Private(PathBuf),
    /// Private, and without an interface.
    Loopback,
}

pub fn main(args: &RunArgs) -> Result<ExitCode, Failure> {
    start_log("warn");
    let place = place(args)?;
    let name = args.program.first().and_then(|p| p.to_str());
    let name = name.ok_or_else(|| Failure::usage("the program's name is not UTF-8"))?;
    let path = elf::find(name)?;
    let library = preload::find()?;
    if args.library {
        return in_program(args, &path, &library, name);
    }
    let command = |control: &str, configured: &Configured| {
        let how = args.syscalls.as_deref().unwrap_or(&configured.syscalls);
        let mut made = command(&path, &args.program, &library, control, how == DISPATCH)?;
        let names: Vec<&str> = configured.exclude.iter().chain(&args.exclude).map(String::as_str).collect();
        if names.is_empty() {
            made.env_remove(ENV_EXCLUDE);
        } else {
            made.env(ENV_EXCLUDE, names.join(":"));
        }
        Ok::<_, Failure>(made)
    };
    match &place {
        Place::Running(control) => {
            let error = command(control, &configured(control))?.exec();
            Err(not_started(name, &error))
        }
        Place::Private(_) | Place::Loopback => {
            let mut config = match &place {
                Place::Private(file) => load(file)?,
                _ => Config::loopback().context("the built-in configuration")?,
            };
            if config.engine.control.is_none() {
                // Nobody else may use it, and nothing of it stays behind.
                config.engine.control = Some(format!("@sidestep-{}-{:016x}", std::process::id(), random()? as u64));
            }
            make_run_directory(config.engine.control.as_deref().unwrap_or(DEFAULT_CONTROL))?;
            let signals = Signals::block(&SIGNALS).context("block signals")?;
            let engine = Engine::start(&config)?;
            tracing::info!(control = engine.control(), "private engine");
            let configured = Configured {
                syscalls: config.programs.syscalls.name().to_owned(),
                exclude: config.programs.exclude.clone(),
            };
            supervise(engine, &signals, |control| command(control, &configured), name)
        }
    }
}

/// Becomes the program, which has the engine in it. What it starts finds that engine at the control socket.
fn in_program(args: &RunArgs, path: &Path, library: &Path, name: &str) -> Result<ExitCode, Failure> {
    let engine = preload::find_library()?;
    let (config, file) = match (&args.config, args.loopback) {
        (_, true) => (Config::loopback().context("the built-in configuration")?, OsString::new()),
        (Some(file), _) => (load(file)?, absolute(file)?),
        (None, _) if Path::new(DEFAULT_CONFIG).exists() => (load(Path::new(DEFAULT_CONFIG))?, DEFAULT_CONFIG.into()),
        (None, _) => {
            return Err(Failure::usage(format!(
                "--library takes the program's engine from a configuration: name one with -c FILE, or write {DEFAULT_CONFIG}"
            )));
        }
    };
    // After exec the program has this process's number.
    let own = format!("{CONTROL_PREFIX}{}-0", std::process::id());
    let control = match &config.engine.control {
        Some(named) => absolute_control(named)?,
        None => own,
    };
    make_run_directory(&control)?;
    let how = args.syscalls.as_deref().unwrap_or(config.programs.syscalls.name());
    let mut command = command(path, &args.program, library, &control, how == DISPATCH)?;
    let names: Vec<&str> = config.programs.exclude.iter().chain(&args.exclude).map(String::as_str).collect();
    if names.is_empty() {
        command.env_remove(ENV_EXCLUDE);
    } else {
        command.env(ENV_EXCLUDE, names.join(":"));
    }
    command.env(ENV_LIBRARY, engine).env(ENV_LIBRARY_CONFIG, file);
    Err(not_started(name, &command.exec()))
}

fn absolute(file: &Path) -> Result<OsString, Failure> {
    let path = std::path::absolute(file).map_err(|e| Failure::usage(format!("{}: {e}", file.display())))?;
    Ok(path.into_os_string())
}

fn place(args: &RunArgs) -> Result<Place, Failure> {
    if args.loopback {
        return Ok(Place::Loopback);
    }
    if let Some(file) = &args.config {
        return Ok(Place::Private(file.clone()));
    }
    let control = match &args.attach {
        Some(named) => absolute_control(named)?,
        None => absolute_control(&control_or_default(None))?,
    };
    match reach(&control) {
        Ok(()) => Ok(Place::Running(control)),
        Err(_) if args.attach.is_none() && Path::new(DEFAULT_CONFIG).exists() => {
            Ok(Place::Private(DEFAULT_CONFIG.into()))
        }
        Err(error) => {
            let error = anyhow::Error::from(error).context(format!(
                "no engine answers at {control}; start one (`sidestep up -c FILE`), name one (--attach SOCKET), \
                 or give the program its own (-c FILE)"
            ));
            Err(error.into())
        }
    }
}

/// Whether somebody listens at a control socket.
fn reach(control: &str) -> std::io::Result<()> {
    let address = match control.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(control)?,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(rustix::net::connect(&socket, &address)?)
}

/// What an engine's configuration says about how programs are started.
#[derive(Default)]
struct Configured {
    /// `programs.syscalls`
    syscalls: String,
    /// `programs.exclude`
    exclude: Vec<String>,
}

/// The same of a running engine; nothing if it doesn't say.
fn configured(control: &str) -> Configured {
    let told = inspect(control, STATS).ok().and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let Some(told) = told else { return Configured::default() };
    let names = told["engine"]["exclude"].as_array().into_iter().flatten();
    Configured {
        syscalls: told["engine"]["syscalls"].as_str().unwrap_or_default().to_owned(),
        exclude: names.filter_map(|n| n.as_str().map(str::to_owned)).collect(),
    }
}

fn command(
    path: &Path,
    program: &[OsString],
    library: &Path,
    control: &str,
    dispatch: bool,
) -> Result<Command, Failure> {
    let before = std::env::var("LD_PRELOAD").ok();
    let mut command = Command::new(path);
    command
        .arg0(&program[0])
        .args(&program[1..])
        .env("LD_PRELOAD", preload::variable(library, before.as_deref()))
        .env(ENV_SOCKET, control)
        .env(ENV_GROUP, format!("{:032x}", random()?))
        // One that `run` inherited is another program's.
        .env_remove(ENV_LIBRARY);
    if dispatch {
        command.env(ENV_SYSCALLS, DISPATCH);
    } else {
        // One that `run` inherited is another program's.
        command.env_remove(ENV_SYSCALLS);
    }
    Ok(command)
}

/// A number that nobody guesses: whoever knows a group may join it.
fn random() -> Result<u128, Failure> {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    // Up to 256 bytes come whole, getrandom(2).
    match got.context("no random numbers from the kernel")? {
        16 => Ok(u128::from_ne_bytes(bytes)),
        n => Err(anyhow::anyhow!("the kernel gave {n} random bytes for 16").into()),
    }
}

fn not_started(name: &str, error: &std::io::Error) -> Failure {
    let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
    let hint =
        if code == 127 { "; if it is a script, its first line names an interpreter that is missing" } else { "" };
    Failure { code, message: format!("{name} can't be started: {error}{hint}") }
}

/// How a child ended, as a shell says it.
type Code = u8;

/// Starts the program on `engine` and stays until nobody needs the engine.
fn supervise(
    engine: Engine,
    signals: &Signals,
    command: impl Fn(&str) -> Result<Command, Failure>,
    name: &str,
) -> Result<ExitCode, Failure> {
    // Descendants whose parents end become our children: that is how we know of daemons that have no socket yet.
    let own = rustix::process::getpid();
    if let Err(error) = rustix::process::set_child_subreaper(Some(own)) {
        tracing::warn!(%error, "daemons are noticed only once they have a socket");
    }
    let mut command = command(engine.control())?;
    signals.spare(&mut command);
    let child = command.spawn().map_err(|e| not_started(name, &e))?;
    let code = wait_for(child.id(), &engine, signals, name);
    let code = stay(&engine, signals, name).unwrap_or(code);
    flush(&engine, signals);
    let failed = engine.has_failed();
    engine.stop();
    if failed {
        return Err(Failure {
            code: FAILED,
            message: format!("the engine failed under {name}; the log above says where"),
        });
    }
    Ok(ExitCode::from(code))
}

/// Until the program has ended; its signals go to it. An engine that fails does not end the program: its calls get
/// errors, and it decides for itself.
fn wait_for(child: u32, engine: &Engine, signals: &Signals, name: &str) -> Code {
    let mut said = false;
    loop {
        sleep(signals);
        if engine.has_failed() && !said {
            tracing::error!("the engine failed: every socket of {name} gives errors from now on; {name} goes on");
            said = true;
        }
        while let Some(signal) = signals.next() {
            // What a terminal sends, it sends to the program too: it would come twice.
            if signal.number != libc::SIGCHLD && signal.deliberate && signal.sender != std::process::id() {
                let _ = signals::send(child, signal.number);
            }
        }
        while let Some((pid, change)) = next_change() {
            if pid != child {
                continue;
            }
            match change {
                Change::Ended(code) => return code,
                // The shell that started us waits for us to stop, not for the program.
                Change::StoppedByTerminal => {
                    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
                }
                Change::Other => {}
            }
        }
    }
}

/// The program has ended. Stays while processes that it left behind run, as those of a server that became a daemon.
/// A signal goes to them; a second one ends the engine under them. Gives the code of a signal that came. There is
/// nothing to stay for when the engine failed.
fn stay(engine: &Engine, signals: &Signals, name: &str) -> Option<Code> {
    let mut asked = None;
    let mut said = false;
    loop {
        while next_change().is_some() {}
        let left = children();
        if engine.has_failed() || (left.is_empty() && engine.programs() == 0) {
            return asked;
        }
        if !said {
            let pid = std::process::id();
            tracing::info!("{name} left processes behind; the engine stays for them (kill {pid} ends both)");
            said = true;
        }
        sleep(signals);
        while let Some(signal) = signals.next() {
            if matches!(signal.number, libc::SIGCHLD | libc::SIGTSTP | libc::SIGCONT | libc::SIGWINCH) {
                continue;
            }
            for pid in &left {
                let _ = signals::send(*pid, signal.number);
            }
            if matches!(signal.number, libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT) {
                if asked.is_some() {
                    return asked;
                }
                asked = Some(ended_by(signal.number));
            }
        }
    }
}

/// Lets the stack send what the program wrote before it ended, and say goodbye to its peers.
fn flush(engine: &Engine, signals: &Signals) {
    for _ in 0..FLUSH_TURNS {
        if engine.has_failed() || engine.open_connections() == 0 {
            return;
        }
        sleep(signals);
        while let Some(signal) = signals.next() {
            if matches!(signal.number, libc::SIGTERM | libc::SIGINT | libc::SIGQUIT) {
                return;
            }
        }
    }
    tracing::warn!("connections were still open after 5 s; they end without a goodbye");
}

/// Until a signal comes, or a turn is over.
fn sleep(signals: &Signals) {
    let _ = poll(&mut [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)], Some(&TURN));
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Ended(Code),
    StoppedByTerminal,
    Other,
}

/// What happened to a child, without waiting.
fn next_change() -> Option<(u32, Change)> {
    let (pid, status) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED).ok()??;
    let change = if let Some(code) = status.exit_status() {
        Change::Ended(code as u8)
    } else if let Some(signal) = status.terminating_signal() {
        Change::Ended(ended_by(signal))
    } else if matches!(status.stopping_signal(), Some(libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)) {
        Change::StoppedByTerminal
    } else {
        Change::Other
    };
    Some((Pid::as_raw(Some(pid)).cast_unsigned(), change))
}

/// A shell's code for an end by signal.
fn ended_by(signal: i32) -> Code {
    (128 + signal) as u8
}

/// Our children of now, by proc_pid_children(5): one list a thread.
fn children() -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = threads.flatten().filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_by_signal_has_a_shells_code() {
        assert_eq!(ended_by(libc::SIGTERM), 143);
        assert_eq!(ended_by(libc::SIGKILL), 137);
    }

    #[test]
    fn groups_differ() {
        assert_ne!(random().unwrap(), random().unwrap());
    }

    #[test]
    fn nobody_answers_at_a_name_that_nobody_has() {
        assert!(reach("@sidestep-no-such-engine").is_err());
        assert!(reach("/nonexistent/engine.sock").is_err());
    }
}
