//! The configuration: a TOML file (or an old `nuse.conf`) in, a [`Config`] that can't be wrong out.
//!
//! ```text
//!  file ─▶ is it nuse.conf? ─ yes ─▶ config/nuse.rs ─┐
//!              │ no                                  ▼
//!              └─▶ config/toml.rs ─▶ config/check.rs (what no single key can say) ─▶ Config
//!                       │                            │
//!                       └────────── ConfigError ◀────┘   file:line:column: key: what is wrong; what would be right
//! ```
//!
//! One key of the file is one field here; `docs/CONFIG.md` lists them, and `sidestep check FILE` prints the effective
//! values. Whoever holds a `Config` needs no check of its own, except for what only the machine knows (does the
//! interface exist, has it so many queues).

mod error;

use std::net::IpAddr;
use std::time::Duration;

use sidestep_shm::wire::RouteRule;
use sidestep_stack::{InterfaceAddress, Limits, Mac, Route, StaticNeighbor, TcpConfig};

pub use error::ConfigError;

/// Control socket of an engine that was told no other. `sidestep run` picks a private abstract one instead.
pub const DEFAULT_CONTROL: &str = "/run/sidestep/engine.sock";

/// Everything an engine is started with.
#[derive(Clone, Debug)]
pub struct Config {
    pub engine: Engine,
    /// Exactly one for now; a file with more is refused.
    pub interfaces: Vec<Interface>,
    pub programs: Programs,
    pub tcp: Tcp,
}

/// `[engine]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Control socket: a path, or '@' and a name in the abstract namespace. None: [`DEFAULT_CONTROL`] for `up`, a
    /// private one for `run`.
    pub control: Option<String>,
    /// Seed of everything random (initial sequence numbers, ports). None: the kernel's random numbers. For
    /// experiments only: who knows the seed can guess sequence numbers.
    pub seed: Option<u64>,
    /// An engine that has not turned its loop for this long hands its traffic back to the kernel.
    pub heartbeat_timeout: Duration,
}

/// `[[interface]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name of the network device; for `pipe` a Unix socket path.
    pub name: String,
    pub backend: Backend,
    /// Queue numbers, ascending, no two the same, at least one. One shard each.
    pub queues: Vec<u32>,
    /// CPU for the shard of the queue at the same index; empty: not pinned.
    pub cores: Vec<usize>,
    /// Addresses of the stack, at least one.
    pub addresses: Vec<InterfaceAddress>,
    pub routes: Vec<Route>,
    pub neighbors: Vec<StaticNeighbor>,
    /// Largest IP packet in bytes, 1,280 to 9,000. None: the device's.
    pub mtu: Option<usize>,
    /// Ethernet address. None: the device's (`pipe`: made from the name).
    pub mac: Option<Mac>,
    pub sharing: Sharing,
    /// First and last of each range that always stays with the kernel, in [`Sharing::Shared`].
    pub kernel_ports: Vec<(u16, u16)>,
    /// First and last source port of outgoing connections, split evenly among the shards.
    pub ephemeral_ports: (u16, u16),
    pub poll: Poll,
    /// [`Poll::Adaptive`]: how long a shard with nothing to do keeps looking before it sleeps.
    pub spin: Duration,
    pub attach: Attach,
    pub zero_copy: ZeroCopy,
    /// Let the kernel poll the device inside our system calls (SO_PREFER_BUSY_POLL).
    pub busy_poll: bool,
    pub rings: Rings,
}

/// Where frames come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    AfXdp,
    Tap,
    AfPacket,
    Pipe,
}

/// Whose addresses the interface's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The stack's alone: it answers ARP, NDP and ping for them.
    Own,
    /// The kernel has them too: only the ports of listeners and the ephemeral range come to the stack.
    Shared,
}

/// What a shard does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Look again at once: lowest latency, one whole core.
    Busy,
    /// Look for [`Interface::spin`], then sleep until a frame, a program or a timer.
    Adaptive,
    /// Sleep at once.
    Interrupt,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// In the driver; where it can't, generic, with a warning.
    Auto,
    Native,
    Generic,
}

/// Whether the NIC reads and writes our frames itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Where the driver can.
    Auto,
    /// Fail where it can't.
    Require,
    Never,
}

/// Sizes of the AF_XDP rings of one queue, in entries, and of its frame memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    pub fill: u32,
    pub rx: u32,
    pub tx: u32,
    pub completion: u32,
    /// Frames of the queue's memory (UMEM): at least `fill + tx`, so that neither direction starves the other.
    pub frames: u32,
    /// 2,048 or 4,096.
    pub frame_bytes: u32,
}

impl Default for Rings {
    fn default() -> Self {
        Self { fill: 4096, rx: 2048, tx: 2048, completion: 2048, frames: 16_384, frame_bytes: 2048 }
    }
}

/// `[programs]`: what each group of programs (a program and what it forks) gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// Sockets that one group opens itself.
    pub sockets: u32,
    /// Accepted connections of one group on each shard.
    pub connections: u32,
    /// Receive and transmit buffer of each socket, in bytes, a power of two.
    pub rx_buffer: u32,
    pub tx_buffer: u32,
    /// How long a waiting call looks before it sleeps.
    pub spin: Duration,
    pub loopback: Loopback,
    /// Destinations that programs reach through the kernel although the stack has a route.
    pub kernel_destinations: Vec<Cidr>,
    /// Groups at once.
    pub groups: u32,
    /// Processes of one group at once.
    pub processes: u32,
}

/// Who serves 127.0.0.0/8 and ::1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loopback {
    Kernel,
    Stack,
}

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub network: IpAddr,
    /// 0 to 32 or 0 to 128.
    pub prefix_bits: u8,
}

impl Cidr {
    /// The rule that tells programs who serves this range.
    #[must_use]
    pub fn rule(&self, kernel: bool) -> RouteRule {
        let (prefix, prefix_bits) = match self.network {
            IpAddr::V4(a) => (a.to_ipv6_mapped().octets(), 96 + self.prefix_bits),
            IpAddr::V6(a) => (a.octets(), self.prefix_bits),
        };
        RouteRule { prefix, prefix_bits, kernel }
    }
}

/// `[tcp]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tcp {
    pub config: TcpConfig,
    /// Per shard.
    pub limits: Limits,
}
