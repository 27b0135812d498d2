//! One stack in its laboratory: engines, servers and load for one measurement.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{Plan, Test};
use crate::bench::lab::{Folder, Lab, Side};
use crate::bench::measure::Measurement;

/// How long an engine or a server may take to say that it is ready.
const START: Duration = Duration::from_secs(30);

/// Bytes of the small tests.
const SMALL: u32 = 64;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// epoll, blocking; the device as it comes.
    Kernel,
    /// The same, and both ends never sleep.
    KernelSpin,
    /// Busy polling in epoll and on every socket, and GRO on, without which veth has nothing to poll.
    KernelTuned,
    /// Without TSO, GSO, GRO and checksum offload: packets as a wire carries them.
    KernelPlain,
    /// An engine a side, sharing the core with the program.
    Sidestep,
    /// An engine in the program of each side, run by the thread that waits.
    Library,
    /// AF_XDP and no stack.
    Raw,
}

impl Stack {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Kernel,
        Self::KernelSpin,
        Self::KernelTuned,
        Self::KernelPlain,
        Self::Sidestep,
        Self::Library,
        Self::Raw,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::KernelSpin => "kernel spin",
            Self::KernelTuned => "kernel tuned",
            Self::KernelPlain => "kernel plain",
            Self::Sidestep => "sidestep",
            Self::Library => "library",
            Self::Raw => "raw",
        }
    }

    /// # Errors
    /// No such stack.
    pub fn parse(text: &str) -> Result<Self, String> {
        let word = text.replace('-', " ");
        let names = || Self::ALL.map(|s| s.name().replace(' ', "-")).join(", ");
        Self::ALL.into_iter().find(|s| s.name() == word).ok_or_else(|| format!("{text}: must be one of {}", names()))
    }

    pub(super) fn is_kernel(self) -> bool {
        !matches!(self, Self::Sidestep | Self::Library | Self::Raw)
    }

    /// Why a test makes no sense on this stack.
    pub(super) fn refuses(self, test: Test, borrowed: bool) -> Option<&'static str> {
        let of_programs = matches!(test, Test::Nginx { .. } | Test::Redis { .. } | Test::Iperf3);
        match self {
            Self::Raw if of_programs || matches!(test, Test::Crr { .. }) => Some("there is no stack to connect with"),
            Self::KernelSpin | Self::KernelTuned if of_programs => Some("the program waits in its own way"),
            Self::KernelSpin if test == Test::Stream => Some("a stream does not wait"),
            Self::KernelPlain if borrowed => Some("offloads of a device of yours are left alone"),
            _ => None,
        }
    }
}

/// Where the sockets of a measurement's programs are.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Kernel,
    /// Control sockets of the two engines.
    Engine(&'a [PathBuf; 2]),
    /// Configurations of the two libraries.
    Library(&'a [PathBuf; 2]),
}

pub(super) struct Contender<'a> {
    pub plan: &'a Plan<'a>,
    pub stack: Stack,
    pub lab: &'a Lab,
}

/// A program that ends with this value.
pub(super) struct Running {
    child: Child,
    name: String,
}

impl Contender<'_> {
    /// One round.
    pub fn measure(&self, test: Test) -> anyhow::Result<Measurement> {
        let folder = Folder::new()?;
        if self.stack == Stack::Raw {
            return self.raw(test);
        }
        let engines = if self.stack == Stack::Sidestep {
            let b = self.engine(&self.lab.b, 1, &folder)?;
            Some((self.engine(&self.lab.a, 0, &folder)?, b))
        } else {
            None
        };
        let controls = [folder.0.join("a0.sock"), folder.0.join("b0.sock")];
        let controls = engines.is_some().then_some(&controls);
        let configs = [folder.0.join("0.toml"), folder.0.join("1.toml")];
        let place = match (self.stack, controls) {
            (Stack::Library, _) => {
                self.write_config(&self.lab.a, 0, &folder)?;
                self.write_config(&self.lab.b, 1, &folder)?;
                Place::Library(&configs)
            }
            (_, Some(controls)) => Place::Engine(controls),
            (_, None) => Place::Kernel,
        };
        let measured = match test {
            Test::Nginx { connections } => self.nginx(connections, &folder, place),
            Test::Redis { connections } => self.redis(connections, &folder, place),
            Test::Iperf3 => self.iperf3(place),
            _ => self.ours(test, place),
        };
        Ok(Measurement { stack: self.stack.name().into(), ..measured? })
    }

    /// Our servers under our load generators.
    fn ours(&self, test: Test, place: Place<'_>) -> anyhow::Result<Measurement> {
        let mut serve = self.bench(&self.lab.a, 0, place, "serve");
        serve.args(["--listen", &format!("{}:7700", self.lab.a.address)]);
        let _server = self.start(serve, 0, "serving", "bench serve")?;
        let (name, connections, size) = match test {
            Test::Rr { connections } => ("rr", connections, SMALL),
            Test::Crr { connections } => ("crr", connections, SMALL),
            Test::Udp { connections } => ("udp", connections, SMALL),
            _ => ("stream", 1, 65_536),
        };
        let mut load = self.bench(&self.lab.b, 1, place, name);
        load.args([self.lab.a.address, "--rounds", "1", "--quiet", "--json"]);
        load.args(["--connections", &connections.to_string(), "--size", &size.to_string()]);
        load.args(self.times());
        let text = self.finish(load, 1, "the load")?;
        serde_json::from_str(&text).context("read the load's JSON")
    }

    /// `sidestep bench WHAT` on this stack.
    fn bench(&self, side: &Side, n: usize, place: Place<'_>, what: &str) -> Command {
        let mut command = self.sidestep(side);
        command.args(["bench", what, "--cores", &self.plan.cores[n].to_string()]);
        match place {
            Place::Engine(controls) => command.args(["--stack", "sidestep", "--control"]).arg(&controls[n]),
            Place::Library(configs) => command.args(["--stack", "library", "--config"]).arg(&configs[n]),
            Place::Kernel => command.args(["--stack", "kernel"]),
        };
        match self.stack {
            Stack::KernelSpin => command.arg("--spin"),
            Stack::KernelTuned => command.args(["--busy-poll", "50"]),
            _ => &mut command,
        };
        command
    }

    fn raw(&self, test: Test) -> anyhow::Result<Measurement> {
        let cores = self.plan.cores.map(|c| c.to_string());
        let raw = |side: &Side, what: &str, n: usize, size: u32| {
            let mut command = self.sidestep(side);
            command.args(["bench", "raw", what, "--interface", &side.device, "--core", &cores[n]]);
            command.args(["--size", &size.to_string(), "--quiet", "--json"]);
            command
        };
        let (name, connections, frame, depth) = match test {
            // As many requests under way as the connections have.
            Test::Rr { connections } => ("rr", connections, SMALL, connections),
            Test::Udp { connections } => ("udp", connections, SMALL, connections),
            _ => ("stream", 1, self.plan.mtu + 14, 1),
        };
        let measured = if name == "stream" {
            // One way: what arrives counts, not what was sent.
            let mut sender = raw(&self.lab.a, "tx-only", 0, frame);
            sender.args(["--rounds", "1", "--time", "3600"]);
            let _sender = self.start(sender, 0, "", "raw tx-only")?;
            let mut receiver = raw(&self.lab.b, "rx-drop", 1, frame);
            receiver.args(self.times()).args(["--rounds", "1"]);
            self.finish(receiver, 1, "raw rx-drop")?
        } else {
            let _reflector = self.start(raw(&self.lab.a, "reflect", 0, frame), 0, "", "raw reflect")?;
            let mut ping = raw(&self.lab.b, "ping", 1, frame);
            ping.args(self.times()).args(["--rounds", "1", "--depth", &depth.to_string()]);
            self.finish(ping, 1, "raw ping")?
        };
        let m: Measurement = serde_json::from_str(&measured).context("read the JSON of bench raw")?;
        if m.rate_per_s == 0.0 {
            bail!("no frame came");
        }
        let size = if name == "stream" { 65_536 } else { SMALL };
        let reply_size = if name == "stream" { 1 } else { SMALL };
        let note = if name == "stream" { format!("frames of {frame} bytes") } else { m.note.clone() };
        let stack = self.stack.name().into();
        // Named as the test that it is the ceiling of.
        Ok(Measurement { test: name.into(), stack, connections, size, reply_size, depth: 1, note, ..m })
    }

    fn times(&self) -> [String; 4] {
        let seconds = |d: Duration| format!("{:.3}", d.as_secs_f64());
        ["--time".into(), seconds(self.plan.time), "--warmup".into(), seconds(self.plan.warmup)]
    }

    fn sidestep(&self, side: &Side) -> Command {
        side.command(&self.plan.binary.to_string_lossy())
    }

    /// The configuration of side `n`, in `folder`.
    fn write_config(&self, side: &Side, n: usize, folder: &Folder) -> anyhow::Result<PathBuf> {
        let file = folder.0.join(format!("{n}.toml"));
        let control = folder.0.join(if n == 0 { "a0.sock" } else { "b0.sock" });
        let (core, frame_bytes) = (self.plan.cores[n], if self.plan.mtu > 1500 { 4096 } else { 2048 });
        let text = format!(
            "[engine]\ncontrol = {control:?}\n\n[[interface]]\nname = {:?}\ncores = [{core}]\naddresses = [\"{}/24\"]\n\
             rings = {{ fill = 1024, rx = 1024, tx = 512, completion = 512, frames = 4096, frame_bytes = {frame_bytes} }}\n",
            side.device, side.address
        );
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(file)
    }

    fn engine(&self, side: &Side, n: usize, folder: &Folder) -> anyhow::Result<Running> {
        let file = self.write_config(side, n, folder)?;
        let mut command = self.sidestep(side);
        command.arg("up").arg("-c").arg(&file);
        self.start(command, n, "sidestep: ready", "the engine")
    }

    /// A command for a program on this stack.
    pub(super) fn program(&self, side: &Side, n: usize, place: Place<'_>, program: &str) -> Command {
        if matches!(place, Place::Kernel) {
            return side.command(program);
        }
        let mut command = self.sidestep(side);
        match place {
            Place::Kernel => {}
            Place::Engine(controls) => {
                command.args(["run", "--attach"]).arg(&controls[n]);
            }
            Place::Library(configs) => {
                command.args(["run", "--library", "-c"]).arg(&configs[n]);
            }
        }
        command.args(["--", program]);
        command
    }

    /// Starts a program on core `n` and waits until a line of its output begins with `ready` ("" for at once).
    pub(super) fn start(&self, mut command: Command, n: usize, ready: &str, name: &str) -> anyhow::Result<Running> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        (self.plan.prepare)(&mut command);
        let core = self.plan.cores[n];
        let child = on_core(core, move || command.spawn()).with_context(|| format!("start {name}"))?;
        let mut running = Running { child, name: name.to_owned() };
        let out = running.child.stdout.take();
        let err = running.child.stderr.take();
        let (sender, lines) = channel();
        let wanted = ready.to_owned();
        // Both pipes are read to the end: a full one would stop the program.
        std::thread::spawn(move || {
            for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok) {
                if line.contains(&wanted) {
                    let _ = sender.send(());
                }
            }
        });
        let (complain, complaint) = channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            for line in err.into_iter().flat_map(|err| BufReader::new(err).lines()).map_while(Result::ok) {
                // The first lines say what went wrong; a chatty program must not fill our memory.
                if text.len() < 4096 {
                    text.push_str(&line);
                    text.push(' ');
                }
            }
            let _ = complain.send(text);
        });
        if !ready.is_empty() && lines.recv_timeout(START).is_err() {
            drop(running);
            let why = complaint.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
            bail!("{name} is not ready: {}", why.trim());
        }
        Ok(running)
    }

    /// Runs a program on core `n` to its end; what it printed.
    pub(super) fn finish(&self, mut command: Command, n: usize, name: &str) -> anyhow::Result<String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        (self.plan.prepare)(&mut command);
        let core = self.plan.cores[n];
        let mut child = on_core(core, move || command.spawn()).with_context(|| format!("start {name}"))?;
        let (mut out, mut err) = (String::new(), String::new());
        let mut pipe = child.stderr.take();
        let errors = std::thread::spawn(move || {
            if let Some(pipe) = &mut pipe {
                let _ = pipe.read_to_string(&mut err);
            }
            err
        });
        if let Some(pipe) = &mut child.stdout {
            pipe.read_to_string(&mut out).with_context(|| format!("read from {name}"))?;
        }
        let status = child.wait()?;
        let err = errors.join().unwrap_or_default();
        if !status.success() {
            bail!("{name}: {status}: {} {}", err.trim(), out.trim());
        }
        Ok(out)
    }
}

/// Runs `work` on a thread that lives on `core`; what it starts lives there too.
fn on_core<T: Send>(core: usize, work: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            core_affinity::set_for_current(core_affinity::CoreId { id: core });
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // Asked first, so that connections end as they should; a program that does not listen is ended.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        tracing::debug!("{} does not end on SIGTERM", self.name);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
