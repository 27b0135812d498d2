//! Two network namespaces with a veth pair between them, for tests that need root. Gone again on drop.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The name of the device inside each namespace.
pub const DEVICE: &str = "ss0";

/// How the pair is made.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Queues of the near and the far device, each way.
    pub queues: [u32; 2],
    pub mtu: u32,
    /// Whether the far side leaves checksums unfinished and segments uncut, as veth does by default.
    pub far_offloads: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self { queues: [1, 1], mtu: 1_500, far_offloads: false }
    }
}

/// Two namespaces joined by a veth pair: `near` 10.99.0.1/24, fd99::1/64, and `far` 10.99.0.2/24, fd99::2/64.
pub struct Lab {
    pub near: Namespace,
    pub far: Namespace,
}

impl Lab {
    /// Builds the pair and waits for nothing: both ends are up, with duplicate address detection off.
    pub fn new(link: Link) -> Self {
        let lab = Self { near: Namespace::new("near"), far: Namespace::new("far") };
        let ends = [&lab.near, &lab.far];
        let [a, b] = link.queues.map(|n| n.to_string());
        // Made inside the near namespace, so that no device ever shows up outside.
        lab.near.run(&format!(
            "ip link add {DEVICE} mtu {mtu} numrxqueues {a} numtxqueues {a} type veth \
             peer name {DEVICE} mtu {mtu} numrxqueues {b} numtxqueues {b} netns {far}",
            mtu = link.mtu,
            far = lab.far.name
        ));
        for (i, end) in ends.iter().enumerate() {
            // No router solicitations and listener reports: tests count frames.
            end.run(&format!(
                "sysctl -q net.ipv6.conf.{DEVICE}.accept_dad=0 net.ipv6.conf.{DEVICE}.router_solicitations=0"
            ));
            end.run("ip link set lo up");
            end.run(&format!("ip addr add 10.99.0.{}/24 dev {DEVICE}", i + 1));
            end.run(&format!("ip addr add fd99::{}/64 dev {DEVICE} nodad", i + 1));
            end.run(&format!("ip link set {DEVICE} up"));
        }
        if !link.far_offloads {
            lab.far.run(&format!("ethtool -K {DEVICE} tx off"));
        }
        lab
    }
}

/// A network namespace, deleted on drop.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    /// Names are unique among all processes: they carry our number and a count.
    pub fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ss-xdp-{}-{count}-{role}", std::process::id());
        check(&format!("ip netns add {name}"), Command::new("ip").args(["netns", "add", &name]).output());
        Self { name }
    }

    /// Runs a command line (split at blanks) inside; its output. Panics if it fails.
    pub fn run(&self, line: &str) -> String {
        let output = self.command(line).output();
        check(line, output)
    }

    /// The command, to be started inside.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(line.split_whitespace());
        command
    }

    /// Runs a closure inside, on a thread of its own. What it opens stays inside when it returns.
    pub fn enter<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter_this_thread();
                run()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside for the rest of its life.
    pub fn enter_this_thread(&self) {
        let file = File::open(Path::new("/run/netns").join(&self.name)).expect("the namespace exists");
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
            .expect("root may change the namespace");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// False, and says why, where tests of this kind can't run.
pub fn can_run(test: &str) -> bool {
    let why = if !rustix::process::geteuid().is_root() {
        "needs root, to make network namespaces and load BPF programs"
    } else if Command::new("ip").arg("-V").output().is_err() {
        "needs `ip` (apt install iproute2)"
    } else if Command::new("ethtool").arg("--version").output().is_err() {
        "needs `ethtool` (apt install ethtool)"
    } else {
        return true;
    };
    // Not captured by the test harness, so that a skipped test never looks like one that ran.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
    false
}

fn check(line: &str, output: std::io::Result<Output>) -> String {
    let output = output.unwrap_or_else(|e| panic!("`{line}`: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "`{line}`: {}\n{out}{err}", output.status);
    out.into_owned()
}
