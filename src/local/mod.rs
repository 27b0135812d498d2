//! The engine without threads: its caller turns the shards, and says what time it is.
//!
//! ```text
//!   program's verbs (sidestep_client::Session)          driver (simulator, packet scripts, library)
//!      │ memory: bytes, requests, dirty slots              │ turn()   frames in, frames out, wake_at()
//!      │ bind, listen, event queue: a call                 │
//!      ▼                                                   ▼
//!   [`Books`](crate::control::Books)  ── messages, read at once ──▶  [`Shard`] ── [`FrameIo`]
//! ```
//!
//! In: frames through the port, verbs of sessions. Out: frames through the port, and what sessions see in their
//! memory. The parts are the real ones: the shard with its loop, the books that answer bind() and listen(), the group
//! memory, the client. Only three things differ from `sidestep up`: no thread runs the shard, requests of programs are
//! answered inside the call instead of over a socket, and nothing sleeps. So everything that happens follows from the
//! seed, the clock and the order of the calls.
//!
//! How to drive it:
//!
//! 1. Use a session's verbs as often as wanted, in their non-blocking form (`session.send`, `session.accept`, …). What
//!    blocks (`sidestep_client::wait`) would wait for ever.
//! 2. [`LocalEngine::settle`] (or [`LocalEngine::turn`] while [`LocalEngine::is_due`]): the shards do what there is to
//!    do at this time.
//! 3. Take frames out, put frames in ([`LocalEngine::take_frame`], [`LocalEngine::put_frame`]).
//! 4. When nothing is due, set the clock to whatever comes first: a frame of yours, or [`LocalEngine::wake_at`].
//!
//! ```
//! use sidestep::clock::VirtualClock;
//! use sidestep::local::{LocalConfig, LocalEngine};
//! use sidestep_client::shm::slot::kind;
//!
//! let clock = VirtualClock::default();
//! let host = LocalEngine::in_memory(&LocalConfig::new("10.0.0.1/24".parse()?), clock.clone())?;
//! let session = host.attach(0)?;
//! let listener = session.open(kind::TCP4)?;
//! session.bind(listener, "10.0.0.1:80".parse()?, 0)?;
//! session.listen(listener, 16)?;
//! host.settle();
//! let (when, frame) = host.take_frame(0).expect("it announces its address (ARP, RFC 5227)");
//! assert_eq!((when, &frame[12..14]), (sidestep_stack::Instant::ZERO, &[0x08, 0x06][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Threads.** An engine and its sessions may be used from several threads: every shard has a lock, the books have
//! one, and they are taken in the order books, shard. With one thread nothing ever waits.

mod config;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sidestep_client::shm::wire::{PROTOCOL, Reply, Request};
use sidestep_client::{AttachError, Errno, Handover, InProcess, Session};
use sidestep_stack::{Instant, Stack, TcpInfo};

use crate::clock::{Clock, VirtualClock};
use crate::control::Books;
use crate::control::requests::Answer;
use crate::port::FrameIo;
use crate::port::memory::{MemoryPort, Sent};
use crate::shard::mailbox::{Mailbox, Notice, Notices};
use crate::shard::{Shard, Turn};

pub use config::{HostAddress, LocalConfig};

/// How often, at most, it is looked for groups without processes and sockets.
const TIDY_EVERY: Duration = Duration::from_millis(200);

type Shards<P, C> = Arc<[Mutex<Shard<P, C>>]>;

/// One host: shards, books, and sessions attached to them. See the module.
pub struct LocalEngine<P, C> {
    shards: Shards<P, C>,
    books: Arc<Mutex<Books>>,
    notices: Arc<Notices>,
    clock: C,
    /// Neighbours that the stack wants and somebody else resolves.
    wanted: Mutex<Vec<IpAddr>>,
    /// A process has gone: its group may be empty.
    vacated: Arc<AtomicBool>,
    tidy_at: Mutex<Instant>,
}

/// A host whose frames are in memory and whose time is set.
pub type LocalHost = LocalEngine<MemoryPort<VirtualClock>, VirtualClock>;

impl LocalHost {
    /// One shard for each of `config.shards`, each with a [`MemoryPort`].
    ///
    /// # Errors
    /// As [`LocalEngine::new`].
    pub fn in_memory(config: &LocalConfig, clock: VirtualClock) -> std::io::Result<Self> {
        let port = |_| MemoryPort::new(clock.clone(), config.stack.mtu, config.transmit_ring);
        Self::new(config, (0..config.shards).map(port).collect(), clock.clone())
    }

    /// A frame for a shard; it sees it at its next turn.
    pub fn put_frame(&self, shard: usize, frame: Vec<u8>) {
        if let Some(s) = self.shards.get(shard) {
            lock(s).port_mut().put(frame);
        }
    }

    /// The oldest frame that a shard sent, and when it did.
    pub fn take_frame(&self, shard: usize) -> Option<Sent> {
        lock(self.shards.get(shard)?).port_mut().take()
    }
}

impl<P, C> LocalEngine<P, C>
where
    P: FrameIo + Send + 'static,
    C: Clock + Clone + Send + 'static,
{
    /// An engine with one shard for each of `ports`.
    ///
    /// # Errors
    /// No descriptor left (a host has two and one for each shard, a session three and one for each shard), or numbers in
    /// `config` that can't be.
    pub fn new(config: &LocalConfig, ports: Vec<P>, clock: C) -> std::io::Result<Self> {
        let settings = config.control_settings(ports.len()).map_err(std::io::Error::other)?;
        let mailboxes: Arc<[Mailbox]> =
            (0..ports.len()).map(|_| Mailbox::new()).collect::<std::io::Result<Vec<_>>>()?.into();
        let notices = Arc::new(Notices::new()?);
        let count = ports.len() as u32;
        let shards: Shards<P, C> = ports
            .into_iter()
            .enumerate()
            .map(|(n, port)| {
                let stack = config.stack(n as u32, count);
                let (boxes, notices) = (Arc::clone(&mailboxes), Arc::clone(&notices));
                Mutex::new(Shard::new(n as u32, port, clock.clone(), stack, boxes, notices, Box::new(|_, _| ())))
            })
            .collect();
        let of_messages = Arc::clone(&shards);
        let run_messages = Box::new(move |n: usize| {
            if let Some(shard) = of_messages.get(n) {
                lock(shard).run_messages();
            }
        });
        let books = Books::new(settings, mailboxes, None, Arc::default(), config.random(), Some(run_messages));
        Ok(Self {
            shards,
            books: Arc::new(Mutex::new(books)),
            notices,
            clock,
            wanted: Mutex::default(),
            vacated: Arc::default(),
            tidy_at: Mutex::new(Instant::ZERO),
        })
    }

    /// A program attaches: a process of `group` (0: of a group of its own). Dropping the session is the process's end.
    ///
    /// # Errors
    /// As [`Session::attach`]; EUSERS when the group is full.
    pub fn attach(&self, group: u128) -> Result<Session, AttachError> {
        let refused = |errno| AttachError::Refused { socket: "(this process)".into(), cause: errno };
        let hello = Request::Hello { protocol: PROTOCOL, group, pid: std::process::id() };
        let answer = lock(&self.books).answer(None, hello, Vec::new());
        match answer {
            Answer::Welcome { process, reply, rules, group } => {
                let (books, vacated) = (Arc::clone(&self.books), Arc::clone(&self.vacated));
                let who = (group.index, process);
                let (memory, doorbells) = (group.memfd(), group.doorbells());
                let handover = Handover { welcome: reply, rules: &rules, memory, doorbells };
                Session::in_process(Box::new(Attachment { books, who, vacated }), &handover)
            }
            Answer::Reply(Reply::Failed { errno }) => Err(refused(Errno::from_raw_os_error(errno.cast_signed()))),
            Answer::Reply(_) => Err(refused(Errno::PROTO)),
        }
    }

    /// One turn of every shard, and what follows from it in the books. Sums up what they did.
    pub fn turn(&self) -> Turn {
        let mut sum = Turn::default();
        for shard in self.shards.iter() {
            let turn = lock(shard).turn();
            sum.received += turn.received;
            sum.handed += turn.handed;
            sum.commands += turn.commands;
            sum.sent += turn.sent;
        }
        self.take_notices();
        sum
    }

    /// Turns until there is nothing left to do at this time: nothing is due, or only frames that a full port keeps from
    /// leaving.
    pub fn settle(&self) -> Turn {
        let mut sum = Turn::default();
        while self.is_due() {
            let turn = self.turn();
            sum.received += turn.received;
            sum.handed += turn.handed;
            sum.commands += turn.commands;
            sum.sent += turn.sent;
        }
        sum
    }

    /// Whether a turn at this time would do something.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.shards.iter().any(|s| lock(s).is_due())
    }

    /// The next time at which a turn is due although nothing comes in. None: never.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.shards.iter().filter_map(|s| lock(s).wake_at()).min()
    }

    /// Numbers of a TCP socket that a session calls `slot`. None: the stack has none (not connected yet, over, UDP).
    #[must_use]
    pub fn tcp_info(&self, session: &Session, slot: u32) -> Option<TcpInfo> {
        let group = lock(&self.books).group_index(session.group())?;
        self.shards.iter().find_map(|shard| {
            let shard = lock(shard);
            shard.stack().tcp_info(shard.socket_id(group, slot)?).ok()
        })
    }

    /// Looks at, or changes, the stack of a shard. What it has to send afterwards leaves with the next turn.
    ///
    /// # Panics
    /// No such shard.
    pub fn with_stack<R>(&self, shard: usize, f: impl FnOnce(&mut Stack) -> R) -> R {
        f(lock(&self.shards[shard]).stack_mut())
    }

    /// As [`Self::with_stack`], for the port.
    ///
    /// # Panics
    /// No such shard.
    pub fn with_port<R>(&self, shard: usize, f: impl FnOnce(&mut P) -> R) -> R {
        f(lock(&self.shards[shard]).port_mut())
    }

    /// Follows one data segment in `every` on every shard, as [`Shard::profile_latency`]. Stamps of programs are
    /// CLOCK_MONOTONIC: with a virtual clock they can't be believed, and are not.
    pub fn profile_latency(&self, every: u32) {
        self.shards.iter().for_each(|shard| lock(shard).profile_latency(every));
    }

    /// Neighbours that the stack asked for since the last call (`NeighborMode::External` only); answer with
    /// `Stack::neighbor_update`.
    pub fn take_wanted(&self) -> Vec<IpAddr> {
        std::mem::take(&mut lock(&self.wanted))
    }

    /// Sockets as `sidestep ss` shows them.
    pub fn sockets(&self) -> String {
        lock(&self.books).sockets_json()
    }

    fn take_notices(&self) {
        while let Some(notice) = self.notices.pop() {
            match notice {
                Notice::Unheld { group, slot } => lock(&self.books).unheld(group, slot),
                Notice::NeighborWanted { address } => lock(&self.wanted).push(address),
            }
        }
        if self.vacated.load(Ordering::Relaxed) {
            self.tidy();
        }
    }

    /// Gives back the memory of groups that nobody uses any more.
    fn tidy(&self) {
        let now = self.clock.now();
        let mut tidy_at = lock(&self.tidy_at);
        if now >= *tidy_at {
            *tidy_at = now + TIDY_EVERY;
            let all_gone = lock(&self.books).drop_empty_groups();
            self.vacated.store(!all_gone, Ordering::Relaxed);
        }
    }
}

/// A session's way to the books: what a control connection is otherwise.
struct Attachment {
    books: Arc<Mutex<Books>>,
    who: (u32, u32),
    vacated: Arc<AtomicBool>,
}

impl InProcess for Attachment {
    fn call(&self, request: &Request, with: Option<OwnedFd>) -> Reply {
        match lock(&self.books).answer(Some(self.who), *request, with.into_iter().collect()) {
            Answer::Reply(reply) | Answer::Welcome { reply, .. } => reply,
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let (group, process) = self.who;
        lock(&self.books).process_died(group, process);
        self.vacated.store(true, Ordering::Relaxed);
    }
}

/// What a panic left behind under a lock is no worse than what it leaves without one: the engine's own checks hold.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
