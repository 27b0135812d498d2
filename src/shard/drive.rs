//! A shard that somebody else drives: what a caller needs that has no thread for it.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use sidestep_stack::{Instant, SocketId, Stack};

use super::apps::Kind;
use super::idle::Sleeper;
use super::run::{Shard, Turn};
use crate::clock::Clock;
use crate::port::{FrameIo, PortCounters};

impl<P: FrameIo, C: Clock> Shard<P, C> {
    /// Reads the messages that wait, and nothing else. What they lead to (frames, news for programs) comes with the
    /// next turn.
    pub fn run_messages(&mut self) {
        let now = self.clock.now();
        self.stack.note_time(now);
        self.messages(now);
        self.pending = true;
    }

    /// Whether a turn at this time would do something.
    pub fn is_due(&mut self) -> bool {
        self.pending
            || self.port.prepare_sleep()
            || !self.apps.is_quiet()
            || !self.mailboxes[self.number as usize].is_empty()
            || (self.stack.has_output() && self.port.can_transmit())
            || self.wake_at().is_some_and(|at| at <= self.clock.now())
    }

    /// When the next turn is due although nothing comes in: [`Self::next_deadline`] without the signs of life, which
    /// nobody looks for in the same process.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.stack.next_deadline()
    }

    pub fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    #[must_use]
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    pub fn stack_mut(&mut self) -> &mut Stack {
        &mut self.stack
    }

    /// The stack's name for a TCP socket, while it has one.
    #[must_use]
    pub fn socket_id(&self, group: u32, slot: u32) -> Option<SocketId> {
        match &self.apps.get(self.apps.index_of(group, slot)?)?.kind {
            Kind::Stream(s) => s.id,
            Kind::Listener(l) => Some(l.id),
            Kind::Datagram(_) | Kind::Over { .. } => None,
        }
    }
}

/// A shard on whatever port, turned by whoever waits for it: `crate::library`.
pub trait Driven: Send {
    /// As [`Shard::turn`].
    fn turn(&mut self) -> Turn;

    /// Whether a turn may find something to do, without the time: timers are left out.
    fn has_work(&mut self) -> bool;

    /// Whether a timer is due, or a sign of life.
    fn is_late(&self) -> bool;

    /// As [`Shard::run_messages`].
    fn run_messages(&mut self);

    /// Makes what [`Self::sleep_fd`] shows. Once, before the first turn.
    ///
    /// # Errors
    /// No descriptor left.
    fn start(&mut self) -> std::io::Result<()>;

    /// Polls readable when there is something to do, between [`Self::prepare_sleep`] and [`Self::awake`].
    fn sleep_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Has everything that may bring work ring. How long the sleep may last; None: there is work now. Either way
    /// [`Self::awake`] follows.
    fn prepare_sleep(&mut self) -> Option<Duration>;

    /// Takes that back; `slept`: after a sleep.
    fn awake(&mut self, slept: bool);

    fn stack(&self) -> &Stack;

    fn stack_mut(&mut self) -> &mut Stack;

    /// What its port counted.
    fn port_counters(&self) -> PortCounters;
}

impl<P: FrameIo + Send, C: Clock + Send> Driven for Shard<P, C> {
    fn turn(&mut self) -> Turn {
        Shard::turn(self)
    }

    fn has_work(&mut self) -> bool {
        self.pending
            || self.port.is_due()
            || !self.apps.is_quiet()
            || !self.mailboxes[self.number as usize].is_empty()
            || self.stack.has_output()
    }

    fn is_late(&self) -> bool {
        self.next_deadline() <= self.clock.now()
    }

    fn run_messages(&mut self) {
        Shard::run_messages(self);
    }

    fn start(&mut self) -> std::io::Result<()> {
        self.make_sleeper()
    }

    fn sleep_fd(&self) -> Option<BorrowedFd<'_>> {
        self.apps.sleeper().map(AsFd::as_fd)
    }

    fn prepare_sleep(&mut self) -> Option<Duration> {
        if self.pending || !self.close_doors() {
            return None;
        }
        self.counters.sleeps += 1;
        Some(self.next_deadline().since(self.clock.now()))
    }

    fn awake(&mut self, slept: bool) {
        self.open_doors();
        if slept && let Some(sleeper) = self.apps.sleeper() {
            Sleeper::drain(sleeper);
        }
    }

    fn port_counters(&self) -> PortCounters {
        self.port.counters()
    }

    fn stack(&self) -> &Stack {
        Shard::stack(self)
    }

    fn stack_mut(&mut self) -> &mut Stack {
        Shard::stack_mut(self)
    }
}
