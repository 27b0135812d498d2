//! `sidestep bench`: the command line of `sidestep::bench`.

mod compare;
mod cores;
mod load;
mod raw;
mod serve;
mod show;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::{Args, Subcommand};
use sidestep::bench::net::{EngineNet, KernelNet, Waiting};
use sidestep::library::Library;
use sidestep_client::Session;

use super::signals::Signals;
use super::{Failure, control_or_default, load as load_config};

/// First port of `bench serve` unless told otherwise.
const PORT: u16 = 7700;

pub const EXAMPLES: &str = "\
Examples:
  sidestep bench serve --stack kernel                       the servers, on ports 7700 to 7704
  sidestep bench rr 10.0.0.2 --connections 32               closed loop: the most that goes
  sidestep bench rr 10.0.0.2 --rate 50000 --hgrm rr.hgrm    open loop at 50,000/s; percentiles to a file
  sidestep bench stream 10.0.0.2 --stack sidestep           bulk data through the engine of this machine";

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Servers to put load on: echo, discard, source, request/answer, and the same closing
    Serve(serve::ServeArgs),
    /// Requests and answers on connections that stay
    Rr(load::LoadArgs),
    /// Bytes one way
    Stream(load::StreamArgs),
    /// Connect, request, answer, close
    Crr(load::LoadArgs),
    /// Requests and answers in datagrams
    Udp(load::LoadArgs),
    /// Connections that do nothing: what they cost
    Idle(load::IdleArgs),
    /// Frames over AF_XDP with no stack: what no stack can exceed here
    Raw(raw::RawArgs),
    /// 1, 2, … shards on as many cores, on frame replay: rates and how they grow
    Cores(cores::CoresArgs),
    /// One stage of a packet's way, over and over: for profilers
    Stage(cores::StageArgs),
    /// All stacks side by side in network namespaces of its own; needs root
    Compare(compare::CompareArgs),
    /// Make a report of what `--json` printed
    Report(compare::ReportArgs),
}

/// Whose sockets.
#[derive(Clone, Debug, Args)]
pub struct StackArgs {
    /// Whose sockets: kernel, sidestep (a running engine), library (an engine in this process, run by its threads)
    #[arg(long, value_name = "STACK", default_value = "kernel", value_parser = stack)]
    stack: Stack,
    /// With --stack sidestep: control socket of the engine [default: $SIDESTEP_SOCKET, else /run/sidestep/engine.sock]
    #[arg(long, value_name = "SOCKET")]
    control: Option<String>,
    /// With --stack library: the configuration of the engine in this process
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Never sleep while waiting: a whole core a thread
    #[arg(long)]
    spin: bool,
    /// With --stack kernel: SO_BUSY_POLL on every socket and in epoll, in microseconds
    #[arg(long, value_name = "US", default_value_t = 0)]
    busy_poll: u32,
    /// Cores for the threads, in turn, as 0,1
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cores: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    Kernel,
    Sidestep,
    Library,
}

impl Stack {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Sidestep => "sidestep",
            Self::Library => "library",
        }
    }
}

fn stack(word: &str) -> Result<Stack, String> {
    match word {
        "kernel" => Ok(Stack::Kernel),
        "sidestep" => Ok(Stack::Sidestep),
        "library" => Ok(Stack::Library),
        _ => Err("must be kernel, sidestep or library".into()),
    }
}

pub fn main(bench: &Bench) -> Result<ExitCode, Failure> {
    match bench {
        Bench::Serve(args) => serve::main(args),
        Bench::Rr(args) => load::rr(args),
        Bench::Stream(args) => load::stream(args),
        Bench::Crr(args) => load::crr(args),
        Bench::Udp(args) => load::udp(args),
        Bench::Idle(args) => load::idle(args),
        Bench::Raw(args) => raw::main(args),
        Bench::Cores(args) => cores::main(args),
        Bench::Stage(args) => cores::stage(args),
        Bench::Compare(args) => compare::main(args),
        Bench::Report(args) => compare::report(args),
    }
}

impl StackArgs {
    fn waiting(&self) -> Waiting {
        Waiting { spin: self.spin, busy_poll_us: self.busy_poll }
    }

    /// The engine to attach to, for all threads.
    fn session(&self) -> Result<Arc<Session>, Failure> {
        let control = control_or_default(self.control.clone());
        Ok(Arc::new(Session::attach(&control, 0).map_err(anyhow::Error::from)?))
    }

    fn check(&self) -> Result<(), Failure> {
        if self.stack != Stack::Kernel && self.busy_poll > 0 {
            return Err(Failure::usage(
                "--busy-poll is for --stack kernel; an engine has `busy_poll` in its configuration",
            ));
        }
        if self.stack != Stack::Sidestep && self.control.is_some() {
            return Err(Failure::usage("--control names an engine: it goes with --stack sidestep"));
        }
        if (self.stack == Stack::Library) != self.config.is_some() {
            return Err(Failure::usage("--config FILE and --stack library go together"));
        }
        Ok(())
    }

    fn kernel(&self) -> impl Fn() -> std::io::Result<KernelNet> + Sync + use<> {
        let waiting = self.waiting();
        move || KernelNet::new(waiting)
    }

    /// The engine in this process. It lives as long as the value.
    fn library(&self) -> Result<Library, Failure> {
        let file = self.config.as_deref().ok_or_else(|| Failure::usage("--stack library takes --config FILE"))?;
        Ok(Library::start(&load_config(file)?)?)
    }

    fn on_library(&self, library: &Library) -> impl Fn() -> std::io::Result<EngineNet> + Sync + use<> {
        let (session, waiting) = (Arc::clone(library.session()), self.waiting());
        move || EngineNet::new(Arc::clone(&session), waiting)
    }

    fn engine(&self) -> Result<impl Fn() -> std::io::Result<EngineNet> + Sync + use<>, Failure> {
        let (session, waiting) = (self.session()?, self.waiting());
        Ok(move || EngineNet::new(Arc::clone(&session), waiting))
    }
}

/// An address with the default port if it has none.
fn address(text: &str) -> Result<SocketAddr, Failure> {
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        return Ok((ip, PORT).into());
    }
    let mut found =
        text.to_socket_addrs().map_err(|e| Failure::usage(format!("{text}: {e}; write HOST or HOST:PORT")))?;
    found.next().ok_or_else(|| Failure::usage(format!("{text}: no address")))
}

/// Raised by SIGINT, SIGTERM or SIGHUP; a second one ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>, Failure> {
    let signals = Signals::block(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).context("block signals")?;
    let stop = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&stop);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while !raised.load(Ordering::Acquire) {
                let mut fds = [rustix::event::PollFd::new(&signals, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut fds, None);
                if signals.next().is_some() {
                    raised.store(true, Ordering::Release);
                }
            }
            while signals.next().is_none() {
                let mut fds = [rustix::event::PollFd::new(&signals, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut fds, None);
            }
            std::process::exit(130);
        })
        .context("start a thread for signals")?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_named() {
        assert_eq!(stack("library"), Ok(Stack::Library));
        assert!(stack("lwip").is_err());
    }

    #[test]
    fn a_server_may_have_a_port() {
        assert_eq!(address("10.0.0.2").unwrap(), "10.0.0.2:7700".parse().unwrap());
        assert_eq!(address("10.0.0.2:80").unwrap(), "10.0.0.2:80".parse().unwrap());
        assert_eq!(address("fd00::2").unwrap(), "[fd00::2]:7700".parse().unwrap());
        assert!(address("10.0.0.2:").is_err());
    }
}
