//! The laboratory: network namespaces, veth pairs between them, a temporary folder. Everything goes when it is dropped.
//!
//! ```text
//!   namespace sidestep-NAME-PID-a            namespace sidestep-NAME-PID-b
//!   ss0  10.77.0.2  fd77::2   <── veth ──>   k0  10.77.0.1  fd77::1
//!   (Sidestep's addresses)                   (the kernel's addresses)
//! ```
//!
//! Both ends of a pair are born inside their namespaces, so nothing of it is ever seen on the machine's own network.

use crate::cleanup::{self, Undo};
use crate::program::{self, Ended, HELPER, Program, find};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// All names begin so; then come what it is for, the process id, and a letter.
const PREFIX: &str = "sidestep-";
const NAMESPACES: &str = "/run/netns";

/// One laboratory.
pub struct Lab {
    name: String,
    dir: PathBuf,
    // Dropped in this order: namespaces (which ends the programs in them), then the folder with their files.
    spaces: Vec<Space>,
    _dir_undo: Undo,
}

/// One network namespace.
pub struct Space {
    name: String,
    _undo: Undo,
}

/// A veth pair to make. Addresses with prefix length, as `ip addr add` takes them.
pub struct Veth<'a> {
    pub here: (&'a Space, &'a str, &'a [&'a str]),
    pub there: (&'a Space, &'a str, &'a [&'a str]),
    pub queues: u32,
}

impl Lab {
    /// A laboratory with no namespace yet. Removes first what a killed run left behind.
    ///
    /// # Errors
    /// When the temporary folder can't be made.
    pub fn new(name: &str) -> Result<Self> {
        sweep();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{name}{number}-{}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        let (dir, undo) = cleanup::make(|| {
            fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
            let gone = dir.clone();
            anyhow::Ok((dir, move || drop(fs::remove_dir_all(gone))))
        })?;
        Ok(Self { name, dir, spaces: Vec::new(), _dir_undo: undo })
    }

    /// The folder for files of this laboratory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file in that folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes a namespace; `letter` tells it from the others of this laboratory. Returns its index for [`Lab::space`].
    ///
    /// # Errors
    /// When `ip netns add` fails, most often for want of rights.
    pub fn add_space(&mut self, letter: char) -> Result<usize> {
        let name = format!("{}-{letter}", self.name);
        let (name, undo) = cleanup::make(|| {
            must_ip(&["netns", "add", &name])?;
            let gone = name.clone();
            anyhow::Ok((name, move || remove_space(&gone)))
        })?;
        let space = Space { name, _undo: undo };
        space.ip(&["link", "set", "lo", "up"])?;
        self.spaces.push(space);
        Ok(self.spaces.len() - 1)
    }

    /// The namespace with this index.
    #[must_use]
    pub fn space(&self, index: usize) -> &Space {
        &self.spaces[index]
    }

    /// Makes a veth pair, both ends up. The kernel of `there` computes checksums itself, as a NIC's peer would have
    /// them: a frame that AF_XDP takes off a veth otherwise carries a checksum that nobody finished.
    ///
    /// # Errors
    /// When `ip` or `ethtool` fails.
    pub fn veth(&self, veth: &Veth<'_>) -> Result<()> {
        let queues = veth.queues.to_string();
        let ((here, dev, addresses), (there, peer, peer_addresses)) = (veth.here, veth.there);
        let both = ["numtxqueues", queues.as_str(), "numrxqueues", queues.as_str()];
        let mut line = vec!["link", "add", dev];
        line.extend(both);
        line.extend(["type", "veth", "peer", "name", peer]);
        line.extend(both);
        line.extend(["netns", &there.name]);
        here.ip(&line)?;
        for (space, dev, addresses) in [(here, dev, addresses), (there, peer, peer_addresses)] {
            for address in addresses {
                space.address(dev, address)?;
            }
            space.ip(&["link", "set", dev, "up"])?;
        }
        Ok(())
    }

    /// Starts a program whose output goes into the laboratory's folder.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Program> {
        Program::start(&self.dir, name, command)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it can't be started or does not end within `limit`.
    pub fn run(&self, command: &mut Command, limit: Duration) -> Result<Ended> {
        program::run(&self.dir, command, limit)
    }

    /// Runs a command that must succeed and gives its standard output.
    ///
    /// # Errors
    /// With the command line and what it said.
    pub fn must(&self, command: &mut Command, limit: Duration) -> Result<String> {
        program::must(&self.dir, command, limit)
    }
}

impl Space {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in this namespace.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(find("ip").unwrap_or_else(|| "ip".into()));
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// `ip -n NAMESPACE ARGS`.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        must_ip(&all)
    }

    /// Gives `device` an address of the kernel's, usable at once (no duplicate-address wait).
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn address(&self, device: &str, address: &str) -> Result<()> {
        let mut line = vec!["addr", "add", address, "dev", device];
        if address.contains(':') {
            line.push("nodad");
        }
        self.ip(&line).map(drop)
    }

    /// Switches off what leaves checksums of outgoing packets unfinished on `device`.
    ///
    /// # Errors
    /// With what `ethtool` said.
    pub fn finish_checksums(&self, device: &str) -> Result<()> {
        let dir = std::env::temp_dir();
        program::must(&dir, self.command("ethtool").args(["-K", device, "tx", "off"]), HELPER).map(drop)
    }

    /// Runs `work` on a thread that lives in this namespace; threads that it starts live there too.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = Path::new(NAMESPACES).join(&self.name);
        let file = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("entering namespace {}", self.name))?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|_| bail!("work in namespace {} panicked", self.name))
        })
    }

    /// Processes that live in this namespace.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        processes_in(&self.name)
    }
}

/// Removes what runs that were killed left behind: their names carry the process id, and the process is gone.
pub fn sweep() {
    let dead = |name: &str| {
        let owner = name.strip_prefix(PREFIX)?.split('-').find_map(|part| part.parse::<u32>().ok())?;
        (!Path::new(&format!("/proc/{owner}")).exists()).then_some(())
    };
    for (place, folder) in [(PathBuf::from(NAMESPACES), false), (std::env::temp_dir(), true)] {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if dead(&name).is_none() {
                continue;
            }
            if folder {
                let _ = fs::remove_dir_all(entry.path());
            } else {
                remove_space(&name);
            }
        }
    }
}

/// What this process would leave behind if it ended now: names of namespaces and folders that carry `pid`.
#[must_use]
pub fn traces_of(pid: u32) -> Vec<String> {
    let places = [PathBuf::from(NAMESPACES), std::env::temp_dir()];
    let entries = places.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(PREFIX) && name.split('-').any(|part| part == pid.to_string()))
        .collect()
}

/// Programs in the namespaces whose names carry `pid`.
#[must_use]
pub fn processes_of(pid: u32) -> Vec<u32> {
    traces_of(pid).iter().flat_map(|name| processes_in(name)).collect()
}

fn remove_space(name: &str) {
    // Programs first: a namespace lives as long as anything in it does, and with it the engine's hold on the device.
    for pid in processes_in(name) {
        if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    let _ = must_ip(&["netns", "del", name]);
}

fn processes_in(name: &str) -> Vec<u32> {
    let listed = must_ip(&["netns", "pids", name]).unwrap_or_default();
    listed.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid != std::process::id()).collect()
}

/// `ip ARGS`, not through [`program::run`]: it also runs while the signal handler cleans up.
fn must_ip(args: &[&str]) -> Result<String> {
    let ip = find("ip").context("the program `ip` (package iproute2) is missing")?;
    let output = Command::new(ip).args(args).output().context("starting ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
