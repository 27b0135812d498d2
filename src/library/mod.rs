//! The whole engine in the program's own process: the thread that would sleep in a call runs the stack itself, so that
//! between the frame and the program there is no other thread, no doorbell and no context switch.
//!
//! ```text
//!   program's threads                          helper (one thread)             control (one thread)
//!      │ send ────────┐                           │ when none of them turns        │ bind, listen, tools,
//!      │ wait ──┐     │                           │                               │ children of fork
//!      ▼        ▼     ▼                           ▼                               ▼
//!   [`Session`] [`Seats`]: a lock a shard, held for one turn  ◀──────────────── messages
//!                     │
//!                     ▼
//!                  Shard (the same as an engine's) ── AF_XDP
//! ```
//!
//! In: a configuration. Out: a [`Session`], with all the verbs that there are on a running engine; what waits
//! ([`sidestep_client::wait()`], [`sidestep_client::net`], the C API) runs the shards while it waits. Everything else
//! is an engine's: device, steering, heartbeat, control socket. So `sidestep ss` and `sidestep stats` show a library,
//! and processes that this one forks attach to it over the control socket.
//!
//! ```no_run
//! use sidestep::library::Library;
//!
//! let library = Library::from_toml("[[interface]]\nname = \"eth1\"\naddresses = [\"10.0.0.2/24\"]\n")?;
//! println!("sidestep ss --control {}", library.control());
//! let listener = sidestep_client::net::TcpListener::bind(&library.client(), "10.0.0.2:80".parse()?)?;
//! # Ok::<(), anyhow::Error>(())
//! ```

mod helper;
mod parking;
mod seats;
#[cfg(test)]
mod tests;
mod threads;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use sidestep_client::net::Client;
use sidestep_client::shm::wire::inspect as question;
use sidestep_client::{Driver, Rest, Session};
use sidestep_stack::Counters;

use crate::config::{Config, Poll};
use crate::control::inspect as ask;
use crate::engine::{Additions, Engine};
use crate::port::PortCounters;
use crate::port::hooked::{HookCounters, HookMaker};
use crate::shard::Driven;

pub use seats::Seats;

/// Begin of the control sockets' names where the configuration has none; the process id and a number follow.
pub const CONTROL_PREFIX: &str = "@sidestep-lib-";

/// How long a library that ends waits for its last bytes to leave.
const FLUSH: Duration = Duration::from_secs(5);

/// While another thread sleeps for the shards, one with its own loop only has to look again so often, in nanoseconds.
const FOLLOW_NS: u64 = 1_000_000;

/// What [`Library::before_poll`] says.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct BeforePoll {
    /// How long poll() may take at most, in nanoseconds.
    pub timeout_ns: u64,
    /// Whether [`Library::poll_fd`] belongs into the set: if not, another thread turns the shards.
    pub leads: bool,
}

/// Counters of a shard.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub port: PortCounters,
    pub stack: Counters,
}

impl Counted {
    /// Frames, segments and datagrams that were dropped, for whatever reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let s = &self.stack;
        let stack = [
            s.drop_not_ours,
            s.drop_malformed,
            s.drop_checksum,
            s.drop_no_socket,
            s.drop_queue_full,
            s.drop_backlog,
            s.drop_no_neighbor,
            s.drop_no_route,
            s.drop_rate_limited,
            s.drop_fragment,
        ];
        stack.iter().sum::<u64>() + self.port.rx_bad + self.port.rx_ring_full
    }
}

/// The engine of a library, without a session.
pub struct Core {
    seats: Arc<Seats>,
    helper: Option<JoinHandle<()>>,
    engine: Option<Engine>,
    control: String,
    pid: u32,
}

impl Core {
    /// Starts an engine by `config`, without a session.
    ///
    /// # Errors
    /// As [`Library::start`].
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        Self::begin(config, Additions::default())
    }

    fn begin(config: &Config, additions: Additions) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut config = config.clone();
        if config.engine.control.is_none() {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            config.engine.control = Some(format!("{CONTROL_PREFIX}{}-{number}", std::process::id()));
        }
        let spin = config.interfaces.first().map_or(Duration::ZERO, |i| match i.poll {
            Poll::Busy => Duration::MAX,
            Poll::Adaptive => i.spin,
            Poll::Interrupt => Duration::ZERO,
        });
        // The program's signals are for the program's threads.
        threads::without_signals(|| {
            let engine = Engine::start_driven(&config, additions)?;
            let seats = Arc::clone(engine.seats().context("an engine without shards")?);
            let control = engine.control().to_owned();
            let helped = Arc::clone(&seats);
            let mut core = Self { seats, helper: None, engine: Some(engine), control, pid: std::process::id() };
            let helper = std::thread::Builder::new().name("sidestep-helper".into());
            core.helper = Some(helper.spawn(move || helper::run(&helped, spin))?);
            Ok(core)
        })
    }

    /// Who runs the shards.
    #[must_use]
    pub fn driver(&self) -> &Arc<Seats> {
        &self.seats
    }

    fn attach(&self, group: u128) -> anyhow::Result<Session> {
        let session = Session::attach(&self.control, group)?;
        session.drive_with(Arc::clone(&self.seats) as Arc<dyn Driver>);
        Ok(session)
    }
}

/// An engine in this process. Dropping it says goodbye to peers (5 s at most) and gives the device back; sessions that
/// are left then give ENETDOWN.
pub struct Library {
    session: Arc<Session>,
    hooks: Arc<HookCounters>,
    core: Core,
}

impl Library {
    /// Starts an engine by `config`. Several in one process work, each with an interface of its own.
    ///
    /// # Errors
    /// What failed, on what, and what to do; nothing is left behind.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        Self::start_in(config, 0)
    }

    /// The same, and its session is of `group` (0: of a group of its own).
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(config: &Config, group: u128) -> anyhow::Result<Self> {
        Self::begin(config, group, Additions::default())
    }

    /// The same on wires that exist instead of a device: a connected Unix socket (seqpacket or datagram) for each
    /// queue, one frame a message. The interface's backend must be "pipe".
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(config: &Config, wires: Vec<OwnedFd>) -> anyhow::Result<Self> {
        Self::begin(config, 0, Additions { wires, hook: None })
    }

    /// The same with a hook on every frame, and on wires if the interface's backend is "pipe". `hook` makes one for
    /// each shard, whose number it gets; see [`crate::port::hooked`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_hooked(config: &Config, wires: Vec<OwnedFd>, hook: HookMaker) -> anyhow::Result<Self> {
        let counters = Arc::new(HookCounters::default());
        let hook = Some((hook, Arc::clone(&counters)));
        let mut library = Self::begin(config, 0, Additions { wires, hook })?;
        library.hooks = counters;
        Ok(library)
    }

    fn begin(config: &Config, group: u128, additions: Additions) -> anyhow::Result<Self> {
        let core = Core::begin(config, additions)?;
        Ok(Self { session: Arc::new(core.attach(group)?), hooks: Arc::default(), core })
    }

    /// The same by a configuration as text.
    ///
    /// # Errors
    /// As [`Self::start`], and what is wrong with the text, with its line.
    pub fn from_toml(text: &str) -> anyhow::Result<Self> {
        Self::start(&Config::parse(text, "the configuration")?)
    }

    /// The same by a configuration in a file.
    ///
    /// # Errors
    /// As [`Self::from_toml`].
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        Self::start(&Config::from_file(path)?)
    }

    /// This process's sockets.
    #[must_use]
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The same as sockets with methods of their own.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::over(Arc::clone(self.session()))
    }

    /// One more session, of `group` (0: of a group of its own).
    ///
    /// # Errors
    /// The group is full.
    pub fn attach(&self, group: u128) -> anyhow::Result<Session> {
        self.core.attach(group)
    }

    /// Name of the control socket, for `sidestep ss --control`.
    #[must_use]
    pub fn control(&self) -> &str {
        &self.core.control
    }

    /// Number of shards: one for each queue.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.core.seats.len()
    }

    /// One turn of every shard that no other thread turns now: frames in, what programs want, frames out. True:
    /// something was done. For programs with a loop of their own.
    pub fn turn(&self) -> bool {
        self.core.seats.turn_all(true) == seats::Outcome::Worked
    }

    /// Before a program's own poll(): has the shards make [`Self::poll_fd`] readable. None: there is work, turn first.
    /// Otherwise [`Self::after_poll`] must follow, with what this gave.
    #[must_use]
    pub fn before_poll(&self) -> Option<BeforePoll> {
        match self.core.seats.prepare_sleep() {
            Rest::Work => None,
            Rest::Lead { timeout_ns, .. } => Some(BeforePoll { timeout_ns, leads: true }),
            Rest::Follow => Some(BeforePoll { timeout_ns: FOLLOW_NS, leads: false }),
        }
    }

    /// Takes back what [`Self::before_poll`] did.
    pub fn after_poll(&self, before: BeforePoll) {
        let rest = if before.leads { Rest::Lead { wake: self.poll_fd(), timeout_ns: 0 } } else { Rest::Follow };
        self.core.seats.awake(&rest);
    }

    /// Readable when a shard has something to do. Only to be polled.
    #[must_use]
    pub fn poll_fd(&self) -> BorrowedFd<'_> {
        self.core.seats.wake()
    }

    /// Calls `with` with shard `n` between two of its turns. None: no such shard.
    pub fn with_shard<R>(&self, n: usize, with: impl FnOnce(&mut dyn Driven) -> R) -> Option<R> {
        self.core.seats.with(n, with)
    }

    /// What `sidestep stats --json` prints.
    ///
    /// # Errors
    /// The library is over.
    pub fn stats(&self) -> anyhow::Result<String> {
        ask(&self.core.control, question::STATS)
    }

    /// What `sidestep ss --json` prints.
    ///
    /// # Errors
    /// As [`Self::stats`].
    pub fn sockets(&self) -> anyhow::Result<String> {
        ask(&self.core.control, question::SOCKETS)
    }

    /// What `sidestep latency --json` prints.
    ///
    /// # Errors
    /// As [`Self::stats`].
    pub fn latency(&self) -> anyhow::Result<String> {
        ask(&self.core.control, question::LATENCY)
    }

    /// What each shard counted, now. Faster than [`Self::stats`], and as numbers.
    #[must_use]
    pub fn counters(&self) -> Vec<Counted> {
        let one = |n| self.with_shard(n, |s| Counted { port: s.port_counters(), stack: s.stack().counters() });
        (0..self.shards()).filter_map(one).collect()
    }

    /// What the hook did; all 0 without one.
    #[must_use]
    pub fn hook_counters(&self) -> &HookCounters {
        &self.hooks
    }

    /// Whether a part of the engine broke: every socket gives errors then.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.core.seats.is_over() || self.core.engine.as_ref().is_none_or(Engine::has_failed)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if self.core.pid == std::process::id() {
            // Whoever else has it loses it all the same; the sockets that are left end as at the end of a process.
            self.session.leave();
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            // A child of fork: the engine is the parent's, and its threads aren't here.
            std::mem::forget((self.engine.take(), self.helper.take()));
            return;
        }
        if let Some(engine) = &self.engine {
            let until = sidestep_client::now_ns() + u64::try_from(FLUSH.as_nanos()).unwrap_or(u64::MAX);
            // The control thread has to notice first that the session is gone.
            while !self.seats.is_over()
                && (engine.programs() > 0 || engine.open_connections() > 0)
                && sidestep_client::now_ns() < until
            {
                if self.seats.turn_all(true) != seats::Outcome::Worked {
                    std::thread::park_timeout(Duration::from_micros(200));
                }
            }
        }
        drop(self.engine.take());
        self.seats.close();
        if let Some(helper) = self.helper.take() {
            let _ = helper.join();
        }
    }
}
