//! Sleeping until something happens to a socket.
//!
//! ```text
//!   waiter                                   engine
//!   slot.watch(queue)                        writes the slot's state
//!   look at readiness                        dirty.mark(slot) in each watcher's queue
//!   door.close()                             door.must_ring()?  ── one datagram ──▶ wakes poll()
//!   dirty.is_empty()? ── no: look again
//!   poll(fd)
//! ```
//!
//! Both sides' steps are sequentially consistent, so either the waiter sees the mark or the engine sees the closed
//! door (`shm/tests/loom.rs`).

use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sidestep_shm::layout::{EventQueue, MAX_EVENT_QUEUES};
use sidestep_shm::wire::Request;

use crate::driver::Resting;
use crate::readiness::{POLLERR, POLLHUP};
use crate::session::Session;
use crate::stamps;
use crate::sys::{Deadline, Fd, is_confined, move_high, now_ns, timespec};

/// Longest sleep in one piece, in nanoseconds: then the engine's heartbeat is looked at.
pub(crate) const NAP_NS: u64 = 1_000_000_000;

/// One event queue of this process: which sockets something happened to, and a descriptor that becomes readable.
///
/// Any number of threads may sleep on it; harvests exclude each other. Belongs to the process that made it: in a child
/// of fork, [`Self::abandon`] it.
pub struct Waiter {
    queue: u32,
    bell: Fd,
    /// Threads between [`Self::prepare_sleep`] and [`Self::awake`].
    sleepers: AtomicU32,
    harvesting: AtomicU32,
}

impl Waiter {
    /// Claims an event queue and tells the engine how to ring it.
    ///
    /// # Errors
    /// ENOSPC: all queues of the group are taken. EMFILE. ENETDOWN: the engine is gone. EPERM: after
    /// [`confine`](crate::confine).
    pub fn new(session: &Session) -> Result<Self, Errno> {
        if is_confined() {
            return Err(Errno::PERM);
        }
        let (queue, shared) = claim(session)?;
        Self::register(session, queue).inspect_err(|_| shared.owner.store(0, Ordering::Release))
    }

    fn register(session: &Session, queue: u32) -> Result<Self, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        let theirs = Fd::from(theirs);
        let bell = move_high(Fd::from(ours))?;
        session.call(&Request::EventQueue { queue }, Some(theirs.as_fd()))?;
        Ok(Self { queue, bell, sleepers: AtomicU32::new(0), harvesting: AtomicU32::new(0) })
    }

    /// Number of the event queue in the group.
    #[must_use]
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Becomes readable when the engine rings; only while a thread is between [`Self::prepare_sleep`] and
    /// [`Self::awake`] does it ring. Only to be polled, never read.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// From now on the engine marks `slot` here. Look at its readiness after this, not before.
    pub fn watch(&self, session: &Session, slot: u32) {
        if let Some(shared) = session.region().slot(slot) {
            shared.watch(self.queue);
        }
    }

    /// No more of it. What is marked already stays marked.
    pub fn unwatch(&self, session: &Session, slot: u32) {
        if let Some(shared) = session.region().slot(slot) {
            shared.unwatch(self.queue);
        }
    }

    /// Takes about `budget` marked slots and calls `each` with every one; returns how many. While another thread
    /// harvests, takes none. Look at a slot's readiness after it was taken.
    pub fn harvest(&self, session: &Session, budget: usize, mut each: impl FnMut(u32)) -> usize {
        if self.harvesting.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return 0;
        }
        let noticed = |slot| {
            if let Some(shared) = session.region().slot(slot) {
                stamps::woke(shared);
            }
            each(slot);
        };
        let taken = self.shared(session).map_or(0, |shared| shared.dirty.harvest(budget, noticed));
        self.harvesting.store(0, Ordering::Release);
        taken
    }

    /// Whether a slot is marked. One load.
    #[must_use]
    pub fn is_dirty(&self, session: &Session) -> bool {
        self.shared(session).is_some_and(|shared| !shared.dirty.is_empty())
    }

    /// Before poll() on [`Self::fd`]: asks the engine to ring. False when there is something already: then don't
    /// sleep, and don't call [`Self::awake`]. On true, [`Self::awake`] must follow.
    #[must_use]
    pub fn prepare_sleep(&self, session: &Session) -> bool {
        let Some(shared) = self.shared(session) else { return false };
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        shared.door.close();
        if shared.dirty.is_empty() {
            return true;
        }
        self.leave(shared);
        false
    }

    /// After that poll(): takes the ring back. Harvest next.
    pub fn awake(&self, session: &Session) {
        let mut one = [0u8; 8];
        // The bell doesn't block. read() and not recv(): see `sys::confine`. A bell whose other end is gone reads 0.
        while matches!(rustix::io::read(&self.bell, &mut one), Ok(1..) | Err(Errno::INTR)) {}
        if let Some(shared) = self.shared(session) {
            self.leave(shared);
        }
    }

    fn leave(&self, shared: &EventQueue) {
        if self.sleepers.fetch_sub(1, Ordering::SeqCst) == 1 {
            shared.door.open();
            if self.sleepers.load(Ordering::SeqCst) == 0 {
                return;
            }
            // Another thread went to sleep between the two: its closed door was just opened. A mark that found it
            // open is this thread's to harvest.
        }
        // Others still sleep, and the ring that woke this thread opened the door.
        shared.door.close();
    }

    /// Gives the queue back. Unwatch every slot first: marks for watchers left behind go to the queue's next owner,
    /// which costs it a look.
    pub fn release(self, session: &Session) {
        if let Some(shared) = self.shared(session) {
            shared.door.open();
            drop(self.bell);
            shared.owner.store(0, Ordering::Release);
        }
    }

    /// Drops this process's copy of a queue that belongs to another process: in a child after fork.
    pub fn abandon(self) {
        drop(self.bell);
    }

    fn shared<'s>(&self, session: &'s Session) -> Option<&'s EventQueue> {
        session.region().event_queue(self.queue)
    }
}

impl core::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Waiter").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// Finds a free event queue, starting where this process is likely to be alone.
fn claim(session: &Session) -> Result<(u32, &EventQueue), Errno> {
    let process = session.process();
    for i in 0..MAX_EVENT_QUEUES {
        let queue = (process.wrapping_mul(16).wrapping_add(i)) % MAX_EVENT_QUEUES;
        let Some(shared) = session.region().event_queue(queue) else { continue };
        if shared.owner.compare_exchange(0, process + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            shared.door.open();
            shared.dirty.clear();
            return Ok((queue, shared));
        }
    }
    Err(Errno::NOSPC)
}

/// Waits until `slot` is ready for one of the poll bits in `interest`, or has an error or hung up, and returns those
/// bits; 0 when `deadline` has passed. Spins for [`Session::spin`], then sleeps on `waiter`, which must not have other
/// work to do: what is marked in it is taken and forgotten. Safe in signal handlers.
///
/// When the engine goes away, the bits say so (ERR, HUP) within [`sidestep_shm::layout::ENGINE_SILENT_NS`] and two
/// seconds; at once when its process ends.
///
/// # Errors
/// EINTR: a signal handler ran while this slept, and the call is `interruptible`.
pub fn wait(
    session: &Session,
    waiter: &Waiter,
    slot: u32,
    interest: u32,
    deadline: Option<Deadline>,
    interruptible: bool,
) -> Result<u32, Errno> {
    let interest = interest | POLLERR | POLLHUP;
    let watch = |on| if on { waiter.watch(session, slot) } else { waiter.unwatch(session, slot) };
    let outcome = wait_for(session, waiter, &watch, &|| session.readiness(slot) & interest, deadline, interruptible);
    if let (Ok(1..), Some(shared)) = (outcome, session.region().slot(slot)) {
        stamps::woke(shared);
    }
    outcome
}

/// Waits until the engine has acted upon the last connect() of the socket in `slot`, which it does at once. No
/// signal ends this.
pub fn wait_settled(session: &Session, waiter: &Waiter, slot: u32) {
    let watch = |on| if on { waiter.watch(session, slot) } else { waiter.unwatch(session, slot) };
    // Without an error there is none to be had: no deadline, not interruptible.
    let _ = wait_for(session, waiter, &watch, &|| u32::from(session.has_settled(slot)), None, false);
}

/// Waits until `done`, until the deadline, or until a signal comes. `done` must change only with marks of `slot`.
pub fn wait_done(session: &Session, waiter: &Waiter, slot: u32, done: &dyn Fn() -> bool, until: Deadline) {
    let watch = |on| if on { waiter.watch(session, slot) } else { waiter.unwatch(session, slot) };
    let _ = wait_for(session, waiter, &watch, &|| u32::from(done()), Some(until), true);
}

/// Waits until `look` finds something. `watch` turns watching on and off.
pub(crate) fn wait_for(
    session: &Session,
    waiter: &Waiter,
    watch: &dyn Fn(bool),
    look: &dyn Fn() -> u32,
    deadline: Option<Deadline>,
    interruptible: bool,
) -> Result<u32, Errno> {
    session.found(1);
    let now = look();
    if now != 0 || deadline.is_some_and(|d| d.0 == 0) {
        return Ok(now);
    }
    let found = spin(session, deadline, look);
    if found != 0 {
        return Ok(found);
    }
    watch(true);
    let outcome = sleep(session, waiter, deadline, interruptible, look);
    watch(false);
    outcome
}

fn spin(session: &Session, deadline: Option<Deadline>, look: &dyn Fn() -> u32) -> u32 {
    let start = now_ns();
    let end = start.saturating_add(session.spin().as_nanos() as u64).min(deadline.map_or(u64::MAX, |d| d.0));
    loop {
        if now_ns() >= end {
            return 0;
        }
        // On few cores the engine shares this one: nothing can come before it has run. On many, it costs a few hundred
        // nanoseconds of waiting time.
        session.pause();
        let found = look();
        if found != 0 {
            return found;
        }
    }
}

fn sleep(
    session: &Session,
    waiter: &Waiter,
    deadline: Option<Deadline>,
    interruptible: bool,
    look: &dyn Fn() -> u32,
) -> Result<u32, Errno> {
    loop {
        session.turn();
        waiter.harvest(session, usize::MAX, |_| ());
        let found = look();
        if found != 0 {
            return Ok(found);
        }
        let left = deadline.map_or(NAP_NS, |d| d.0.saturating_sub(now_ns()).min(NAP_NS));
        if left == 0 {
            return Ok(0);
        }
        if !waiter.prepare_sleep(session) {
            continue;
        }
        let rest = session.rest();
        let outcome = if rest.has_work() { Ok(()) } else { doze(session, waiter, &rest, left) };
        drop(rest);
        waiter.awake(session);
        if outcome == Err(Errno::INTR) && interruptible {
            let found = look();
            return if found != 0 { Ok(found) } else { Err(Errno::INTR) };
        }
    }
}

/// Sleeps until the bell rings, the engine hangs up, a signal comes, or `ns` have passed.
fn doze(session: &Session, waiter: &Waiter, rest: &Resting<'_>, ns: u64) -> Result<(), Errno> {
    let mut fds = [
        PollFd::from_borrowed_fd(waiter.fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(session.control(), PollFlags::empty()),
        PollFd::from_borrowed_fd(rest.wake().unwrap_or(waiter.fd()), PollFlags::IN),
    ];
    // poll() refuses more descriptors than RLIMIT_NOFILE, and confined programs like to set it to the one that they
    // have; the heartbeat then has to tell that the engine is gone.
    let asked = match (is_confined(), rest.wake().is_some()) {
        (true, _) => &mut fds[..1],
        (false, false) => &mut fds[..2],
        (false, true) => &mut fds[..],
    };
    match rustix::event::poll(asked, Some(&timespec(rest.limit(ns)))) {
        Ok(_) => {
            if fds[1].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                session.mark_dead();
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}
