//! The configuration: TOML text into values that can't be wrong.
//!
//! One key is one field here; `config/*.toml` show them all. An old `nuse.conf` is read too ([`nuse`]). Whatever is
//! wrong is reported with file, line, key, and what would be right.

pub(crate) mod file;
mod nuse;
pub(crate) mod section;
mod show;
pub(crate) mod values;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use sidestep_stack::{Congestion, InterfaceAddress, Limits, Mac, Route, StaticNeighbor, TcpConfig};

pub use crate::xdp::{AttachMode, ZeroCopy};

/// The control socket of an engine that was told of no other.
pub const DEFAULT_CONTROL: &str = "/run/sidestep/engine.sock";

/// Everything an engine is started with.
#[derive(Clone, Debug)]
pub struct Config {
    pub engine: EngineSection,
    /// One, as yet: `parse` refuses more.
    pub interfaces: Vec<Interface>,
    pub programs: Programs,
    pub tcp: Tcp,
}

/// `[engine]`
#[derive(Clone, Debug)]
pub struct EngineSection {
    /// Control socket; a leading '@' means the abstract namespace.
    pub control: Option<String>,
    /// For reproducible runs only: ISNs and ports become guessable.
    pub seed: Option<u64>,
    /// An engine that shows no life for this long loses the traffic to the kernel.
    pub heartbeat_timeout: Duration,
    /// One data segment in so many is followed through all stages for `sidestep latency`; 0: none.
    pub latency_every: u32,
}

/// `[[interface]]`
#[derive(Clone, Debug)]
pub struct Interface {
    pub name: String,
    pub backend: Backend,
    /// Hardware queues; a shard for each.
    pub queues: Vec<u32>,
    /// One a queue, or none: not pinned.
    pub cores: Vec<usize>,
    pub addresses: Vec<InterfaceAddress>,
    pub routes: Vec<Route>,
    pub neighbors: Vec<StaticNeighbor>,
    /// None: the device's.
    pub mtu: Option<usize>,
    /// None: the device's, or made up.
    pub mac: Option<Mac>,
    pub sharing: Sharing,
    /// First and last, inclusive.
    pub kernel_ports: Vec<(u16, u16)>,
    pub ephemeral_ports: (u16, u16),
    pub poll: Poll,
    /// How long an adaptive shard looks before it sleeps.
    pub spin: Duration,
    pub attach: AttachMode,
    pub zero_copy: ZeroCopy,
    pub busy_poll: bool,
    /// See [`crate::xdp::XdpOptions::large_sends`].
    pub large_sends: bool,
    pub rings: Rings,
}

/// Where frames come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    AfXdp,
    Tap,
    AfPacket,
    Pipe,
    /// Nowhere: programs of the engine reach each other, and nobody else.
    None,
}

/// Whose the addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The engine's alone: it answers ARP, NDP and ping.
    Own,
    /// The machine's: only listening ports and the ephemeral range are the engine's.
    Shared,
}

/// How a shard waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    Busy,
    Adaptive,
    Interrupt,
}

/// Ring sizes, in entries; `frame_bytes` in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    pub fill: u32,
    pub rx: u32,
    pub tx: u32,
    pub completion: u32,
    pub frames: u32,
    pub frame_bytes: u32,
}

/// `[programs]`
#[derive(Clone, Debug)]
pub struct Programs {
    /// Sockets that the programs of one group open themselves, at most.
    pub sockets: u32,
    /// Accepted connections of one group on one shard, at most.
    pub connections: u32,
    /// Bytes of a socket's receive and transmit ring.
    pub rx_buffer: u32,
    pub tx_buffer: u32,
    /// Bytes that the streams of one group on one shard may have beyond those.
    pub buffer_pool: u64,
    /// How long a waiting call looks before it sleeps.
    pub spin: Duration,
    pub loopback: Loopback,
    pub syscalls: Syscalls,
    /// Names of programs that stay on the kernel's sockets when a program on Sidestep starts them.
    pub exclude: Vec<String>,
    /// Destinations that the kernel's sockets serve: address and prefix length.
    pub kernel_destinations: Vec<(IpAddr, u8)>,
}

/// Who serves 127.0.0.0/8 and ::1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loopback {
    Kernel,
    Stack,
}

/// Which system calls of a program are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syscalls {
    /// Those that it makes through the C library's functions.
    Preload,
    /// Also those that it makes itself: Syscall User Dispatch.
    Dispatch,
}

impl Syscalls {
    pub const NAMES: [(&'static str, Self); 2] = [("preload", Self::Preload), ("dispatch", Self::Dispatch)];

    /// As the configuration has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preload => "preload",
            Self::Dispatch => "dispatch",
        }
    }
}

/// `[tcp]`
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    pub stack: TcpConfig,
    /// `stack.congestion` was written there. If not, an engine takes the machine's: see [`Tcp::on_this_machine`].
    pub chosen: bool,
    /// None: by the number of connections.
    pub half_open: Option<usize>,
    pub time_wait_records: Option<usize>,
}

/// What is wrong with a configuration. Displays as `FILE:LINE:COLUMN: KEY: what; what would be right`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {what}", position.map_or_else(String::new, |(line, column)| format!(":{line}:{column}")))]
pub struct ConfigError {
    pub file: String,
    /// Line and column, from 1.
    pub position: Option<(usize, usize)>,
    pub what: String,
}

impl Tcp {
    /// The stack's numbers, with the congestion control that the kernel has as its default (tcp(7),
    /// `tcp_congestion_control`, of this network namespace) unless the configuration names one. A program that moves from
    /// the kernel's stack to this one keeps what the machine's operator chose for the network. CUBIC where the stack has
    /// none of that name.
    #[must_use]
    pub fn on_this_machine(&self) -> TcpConfig {
        let mut stack = self.stack;
        if !self.chosen
            && let Ok(name) = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
            && let Some(congestion) = Congestion::by_name(name.trim())
        {
            stack.congestion = congestion;
        }
        stack
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| ConfigError {
            file: file.clone(),
            position: None,
            what: format!("can't read the configuration: {e}; see config/ for examples"),
        })?;
        Self::parse(&text, &file)
    }

    /// Checks text; `file` is its name in messages.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        if nuse::looks_like(text) { nuse::parse(text, file) } else { file::parse(text, file) }
    }

    /// An engine without an interface: its programs have 127.0.0.0/8 and ::1 to themselves.
    ///
    /// # Errors
    /// None that a test has not seen: the text is fixed.
    pub fn loopback() -> Result<Self, ConfigError> {
        Self::parse("[[interface]]\nbackend = \"none\"\n", "(loopback only)")
    }

    /// The stack's limits that follow from the program section.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let connections = self.programs.sockets as usize + self.programs.connections as usize;
        let defaults = Limits::default();
        Limits {
            connections: connections.max(1024) * 2,
            half_open: self.tcp.half_open.unwrap_or(defaults.half_open),
            time_wait: self.tcp.time_wait_records.unwrap_or(defaults.time_wait),
            ..defaults
        }
    }
}

#[cfg(test)]
mod tests;
