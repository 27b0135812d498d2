//! A shard that somebody else drives: what a caller needs that has no thread for it.

use sidestep_stack::{Instant, SocketId, Stack};

use super::apps::Kind;
use super::run::Shard;
use crate::clock::Clock;
use crate::port::FrameIo;

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
