//! A laboratory for measurements: two network namespaces and the veth pair between them. Everything in it goes when it
//! is dropped, and when a signal ends the process: see [`undo_all`].
//!
//! ```text
//!   namespace ss-bench-PID-N-a           namespace ss-bench-PID-N-b
//!   a0  10.78.0.1/24   <──── veth ────>  b0  10.78.0.2/24
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// All names begin so; then come the process id, a number and the side.
const PREFIX: &str = "ss-bench-";
const NAMESPACES: &str = "/run/netns";
/// Ends of the pairs that are made here.
const OUR_DEVICES: [&str; 2] = ["a0", "b0"];

/// Namespaces that exist, for [`undo_all`]; None once that has run: nothing new is made then.
static NAMES: Mutex<Option<Vec<String>>> = Mutex::new(Some(Vec::new()));

/// One end.
#[derive(Debug)]
pub struct Side {
    pub namespace: String,
    pub device: String,
    /// Of the kernel, or of whatever stack takes its place.
    pub address: &'static str,
}

/// How the pair is made.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub queues: u32,
    pub mtu: u32,
    /// Whether the kernel has the addresses: not where another stack does.
    pub kernel: bool,
    pub offloads: Offloads,
}

/// What the kernel leaves to a device that does not exist: on veth, checksums and segments that are never made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// As veth comes: TSO and GSO on, GRO off.
    Default,
    /// TSO, GSO, GRO and checksums on.
    All,
    /// None: every packet is one that a wire could carry, as it is for a stack in user space.
    None,
}

/// Two namespaces and the pair.
#[derive(Debug)]
pub struct Lab {
    pub a: Side,
    pub b: Side,
}

impl Lab {
    /// Makes it; first removes what killed runs left behind.
    ///
    /// # Errors
    /// `ip` or `ethtool` is missing or fails, most often for want of root.
    pub fn new(link: Link) -> anyhow::Result<Self> {
        sweep();
        let lab = Self::empty(OUR_DEVICES)?;
        let queues = link.queues.to_string();
        let mtu = link.mtu.to_string();
        let each = ["mtu", &mtu, "numtxqueues", &queues, "numrxqueues", &queues];
        // Made inside, so that no device ever shows up on the machine's own network.
        let mut line = vec!["-n", &lab.a.namespace, "link", "add", &lab.a.device];
        line.extend(each);
        line.extend(["type", "veth", "peer", "name", &lab.b.device]);
        line.extend(each);
        line.extend(["netns", &lab.b.namespace]);
        ip(&line)?;
        for side in [&lab.a, &lab.b] {
            side.up(link.kernel)?;
            side.set_offloads(link.offloads)?;
        }
        Ok(lab)
    }

    /// The same around two devices of this machine that are joined by a cable. They move into the namespaces and come
    /// back when the laboratory ends; their addresses are lost.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_devices(devices: [&str; 2], kernel: bool) -> anyhow::Result<Self> {
        sweep();
        let lab = Self::empty(devices)?;
        for side in [&lab.a, &lab.b] {
            ip(&["link", "set", &side.device, "netns", &side.namespace])?;
            side.up(kernel)?;
        }
        Ok(lab)
    }

    fn empty(devices: [&str; 2]) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let side = |letter, device: &str, address| -> anyhow::Result<Side> {
            let namespace = make(format!("{PREFIX}{}-{number}-{letter}", std::process::id()))?;
            Ok(Side { namespace, device: device.to_owned(), address })
        };
        Ok(Self { a: side('a', devices[0], "10.78.0.1")?, b: side('b', devices[1], "10.78.0.2")? })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for side in [&self.a, &self.b] {
            remove(&side.namespace);
            if let Some(names) = names().as_mut() {
                names.retain(|n| *n != side.namespace);
            }
        }
    }
}

impl Side {
    fn up(&self, kernel: bool) -> anyhow::Result<()> {
        if kernel {
            let address = format!("{}/24", self.address);
            ip(&["-n", &self.namespace, "address", "add", &address, "dev", &self.device])?;
        }
        ip(&["-n", &self.namespace, "link", "set", "lo", "up"])?;
        ip(&["-n", &self.namespace, "link", "set", &self.device, "up"]).map(drop)
    }

    /// A command that will run in this namespace.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Runs `work` on a thread of its own inside; what it opens stays inside.
    ///
    /// # Errors
    /// The namespace can't be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let path = Path::new(NAMESPACES).join(&self.namespace);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> io::Result<T> {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            let outcome = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome.with_context(|| format!("enter {}", self.namespace))
        })
    }

    /// Switches the kernel's offloads of the device.
    ///
    /// # Errors
    /// `ethtool` is missing or fails.
    pub fn set_offloads(&self, offloads: Offloads) -> anyhow::Result<()> {
        let words: &[&str] = match offloads {
            Offloads::Default => return Ok(()),
            Offloads::All => &["tx", "on", "tso", "on", "gso", "on", "gro", "on"],
            Offloads::None => &["tx", "off", "tso", "off", "gso", "off", "gro", "off"],
        };
        run(self.command("ethtool").args(["-K", &self.device]).args(words)).map(drop)
    }
}

/// Removes every laboratory of this process and ends the programs in them; from here on none can be made. For the
/// thread that handles signals.
pub fn undo_all() {
    let left = names().take();
    left.into_iter().flatten().for_each(|name| remove(&name));
    remove_folders(|pid| pid == std::process::id());
}

/// A folder for the files of one measurement; gone with the value, and with [`undo_all`].
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// # Errors
    /// It can't be made.
    pub fn new() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        if names().is_none() {
            bail!("interrupted");
        }
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The process whose name a trace of ours carries.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok())
}

fn remove_folders(of: impl Fn(u32) -> bool) {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if owner(&entry.file_name().to_string_lossy()).is_some_and(&of) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs a command that must succeed; its output.
///
/// # Errors
/// With the command line and what it said.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let line = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {line}"))?;
    if !output.status.success() {
        bail!("{line}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program is, if it is installed.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Servers live where a user's PATH may not look.
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn names() -> std::sync::MutexGuard<'static, Option<Vec<String>>> {
    // A list of names is whole whatever panicked beside it.
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make(name: String) -> anyhow::Result<String> {
    // Under the lock: a signal comes before it is made, or finds it in the list.
    let mut names = names();
    let Some(list) = names.as_mut() else { bail!("interrupted") };
    ip(&["netns", "add", &name])?;
    list.push(name.clone());
    Ok(name)
}

fn remove(name: &str) {
    // Programs first: a namespace lives as long as anything in it does, and with it the device.
    for line in ip(&["netns", "pids", name]).unwrap_or_default().lines() {
        if let Some(pid) = line.trim().parse().ok().and_then(Pid::from_raw)
            && pid != rustix::process::getpid()
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    // The kernel gives hardware back by itself and destroys what is virtual; a device that was lent to us may be either.
    for line in ip(&["-n", name, "-o", "link", "show"]).unwrap_or_default().lines() {
        let device = line.split(": ").nth(1).and_then(|d| d.split('@').next()).unwrap_or("lo");
        if !["lo", OUR_DEVICES[0], OUR_DEVICES[1]].contains(&device) {
            let _ = ip(&["-n", name, "link", "set", device, "netns", &std::process::id().to_string()]);
        }
    }
    let _ = ip(&["netns", "delete", name]);
}

/// Removes what runs that were killed left behind: their names carry the process id, and the process is gone.
fn sweep() {
    let gone = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
    for entry in std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(gone) {
            remove(&name);
        }
    }
    remove_folders(gone);
}

fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    run(Command::new("ip").args(arguments))
}
