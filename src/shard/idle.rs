//! When to look again at once, and when to sleep until something happens.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use sidestep_stack::Instant;

use super::run::Shard;
use crate::clock::Clock;
use crate::port::FrameIo;

/// Idle turns in a row before the core is offered to others at each turn. Offering it after every turn without work
/// costs a shard its place in the scheduler's queue: with wrk beside it, throughput fell to a fifth.
const TURNS_BEFORE_YIELD: u32 = 2;

/// A core that is not given back within this time is wanted by others, and an idle shard that keeps asking for it is in
/// their way: the scheduler takes the core for a busy one and puts less on it.
const CROWDED: Duration = Duration::from_micros(5);

/// How a shard waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Never sleeps. The core is offered to other threads at every idle turn (sched_yield), and taken back.
    Busy,
    /// Looks for this long after the last work, then sleeps. Zero: sleeps at once.
    Adaptive(Duration),
}

/// Sleeps on everything that may bring work to one shard.
pub struct Sleeper {
    epoll: OwnedFd,
}

impl Sleeper {
    /// # Errors
    /// No descriptor left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// A device: wakes as long as it has frames.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn add_device(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
    }

    /// An eventfd: wakes once for each write. Edge-triggered, so that it need not be read: a program shares the
    /// descriptor and could make a read block.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn add_doorbell(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(1), edge)?)
    }

    pub fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Takes back what edge-triggered doorbells left to see, without sleeping.
    pub(super) fn drain(&self) {
        self.sleep(Duration::ZERO);
    }

    fn sleep(&self, timeout: Duration) {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 16];
        let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: i64::from(timeout.subsec_nanos()) };
        // An interrupted or failed wait is as good as a wake-up: the loop looks anyway.
        let _ = epoll::wait(&self.epoll, events.as_mut_slice(), Some(&timeout));
    }
}

impl<P: FrameIo, C: Clock> Shard<P, C> {
    /// Turns until it is told to stop.
    ///
    /// # Errors
    /// What can't be slept on.
    pub fn run(mut self, policy: IdlePolicy) -> std::io::Result<()> {
        self.make_sleeper()?;

        let mut idle_turns = 0u32;
        let mut idle_since = Instant::ZERO;
        while !self.stopping {
            let turn = self.turn();
            if !turn.is_idle() {
                idle_turns = 0;
                continue;
            }
            idle_turns = idle_turns.saturating_add(1);
            let now = self.clock.now();
            if idle_turns == 1 {
                idle_since = now;
            }
            match policy {
                IdlePolicy::Adaptive(spin) if now.since(idle_since) >= spin => {
                    if self.sleep(now) {
                        idle_turns = 0;
                    }
                }
                _ if idle_turns >= TURNS_BEFORE_YIELD => {
                    rustix::thread::sched_yield();
                    if self.clock.now().since(now) >= CROWDED {
                        // Looked at once more, and not beyond that.
                        idle_since = Instant::ZERO;
                    }
                }
                _ => std::hint::spin_loop(),
            }
        }
        Ok(())
    }

    /// Makes what the shard sleeps on. Before any group is added.
    ///
    /// # Errors
    /// No descriptor left.
    pub(super) fn make_sleeper(&mut self) -> std::io::Result<()> {
        let sleeper = Sleeper::new()?;
        if let Some(fd) = self.port.poll_fd() {
            sleeper.add_device(fd)?;
        }
        sleeper.add_doorbell(self.mailboxes[self.number as usize].wake_fd())?;
        self.apps.sleep_on(sleeper);
        Ok(())
    }

    /// Closes the doors. False when there is something to do; [`Self::open_doors`] in any case.
    pub(super) fn close_doors(&mut self) -> bool {
        let mine = &self.mailboxes[self.number as usize];
        mine.prepare_sleep() && self.apps.prepare_sleep() && !self.stack.has_output() && !self.port.prepare_sleep()
    }

    /// Takes that back.
    pub(super) fn open_doors(&self) {
        self.mailboxes[self.number as usize].awake();
        self.apps.awake();
    }

    /// Closes the doors, looks once more, sleeps. False when there was something to do.
    fn sleep(&mut self, now: Instant) -> bool {
        let quiet = self.close_doors();
        if quiet {
            let timeout = self.next_deadline().since(now);
            if let Some(sleeper) = self.apps.sleeper() {
                sleeper.sleep(timeout);
            }
            self.counters.sleeps += 1;
        }
        self.open_doors();
        quiet
    }
}

/// For tests and tools that sleep beside a shard.
impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
