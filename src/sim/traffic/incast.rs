//! Incast: one asks many at the same moment, and all answer at once into one link.

use std::net::SocketAddr;
use std::time::Duration;

use sidestep_client::Errno;
use sidestep_stack::Instant;

use super::request::{Exchange, HEADER};
use super::{BySlot, Shared, socket_for};
use crate::sim::host::{Context, Program};

/// What an incast asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IncastPlan {
    pub start: Duration,
    pub stop: Option<Duration>,
    /// Bytes of each answer.
    pub response: u32,
    /// Pause between the last answer of a round and the next round.
    pub pause: Duration,
}

/// Asks every server, waits for all, asks again.
pub struct Incast {
    plan: IncastPlan,
    to: Vec<SocketAddr>,
    slots: Vec<u32>,
    exchanges: BySlot<Exchange>,
    buffer: Box<[u8]>,
    /// Servers that have not answered yet, or are not connected yet.
    outstanding: usize,
    began: Instant,
    running: bool,
    stats: Shared,
}

const CONNECT: u64 = 0;
const ROUND: u64 = 1;

impl Incast {
    #[must_use]
    pub fn new(plan: IncastPlan, to: Vec<SocketAddr>, stats: Shared) -> Self {
        let outstanding = to.len();
        Self {
            plan,
            to,
            slots: Vec::new(),
            exchanges: BySlot::new(),
            buffer: vec![0; 1 << 16].into(),
            outstanding,
            began: Instant::ZERO,
            running: false,
            stats,
        }
    }

    fn connect(&mut self, c: &mut Context<'_>) {
        for to in self.to.clone() {
            match socket_for(c, to).and_then(|slot| c.session.connect(slot, to).map(|()| slot)) {
                Ok(slot) => {
                    self.slots.push(slot);
                    self.exchanges.insert(slot, Exchange::connecting(c.now, 0));
                }
                Err(errno) => self.lost(c, errno),
            }
        }
    }

    fn round(&mut self, c: &mut Context<'_>) {
        if self.plan.stop.is_some_and(|stop| c.now >= Instant::ZERO + stop) || self.slots.is_empty() {
            return;
        }
        (self.running, self.began, self.outstanding) = (true, c.now, self.slots.len());
        for slot in self.slots.clone() {
            let asked = self.exchanges.get(slot).map(|e| e.ask(c, slot, HEADER, self.plan.response));
            if let Some(Err(errno)) = asked {
                self.drop_server(c, slot, errno);
            }
        }
    }

    fn one_less(&mut self, c: &mut Context<'_>) {
        self.outstanding = self.outstanding.saturating_sub(1);
        if self.outstanding > 0 {
            return;
        }
        if self.running {
            self.stats.borrow_mut().note_answer(c.now.since(self.began));
        }
        self.running = false;
        c.after(self.plan.pause, ROUND);
    }

    fn lost(&mut self, c: &mut Context<'_>, errno: Errno) {
        self.stats.borrow_mut().note_failure(errno);
        self.one_less(c);
    }

    fn drop_server(&mut self, c: &mut Context<'_>, slot: u32, errno: Errno) {
        let waited_for = self.exchanges.remove(slot).is_some_and(|e| !e.is_idle());
        self.slots.retain(|s| *s != slot);
        c.close(slot);
        self.stats.borrow_mut().note_closed();
        if waited_for {
            self.lost(c, errno);
        } else {
            self.stats.borrow_mut().note_failure(errno);
        }
    }

    fn look(&mut self, c: &mut Context<'_>, slot: u32) -> Result<bool, Errno> {
        let Some(e) = self.exchanges.get(slot) else { return Ok(false) };
        if !e.is_idle() && self.running {
            return e.look(c, slot, &mut self.buffer, &self.stats);
        }
        let was = !e.is_idle();
        Ok(was && !e.is_connecting(c, slot, &self.stats)?)
    }
}

impl Program for Incast {
    fn start(&mut self, c: &mut Context<'_>) {
        c.after(self.plan.start, CONNECT);
    }

    fn ready(&mut self, c: &mut Context<'_>, slot: u32) {
        match self.look(c, slot) {
            Ok(true) => self.one_less(c),
            Ok(false) => {}
            Err(errno) => self.drop_server(c, slot, errno),
        }
    }

    fn timer(&mut self, c: &mut Context<'_>, key: u64) {
        if key == CONNECT { self.connect(c) } else { self.round(c) }
    }
}
