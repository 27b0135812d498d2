//! A host with the real stack, the real shard loop and the real client: a [`LocalHost`] as a node, and programs on it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use sidestep_client::{Errno, Session, Waiter};
use sidestep_stack::{Counters, Instant, TcpInfo};

use super::network::{Node, Outgoing};
use super::rng::Rng;
use crate::clock::VirtualClock;
use crate::local::{LocalConfig, LocalHost};

/// A program of a host: a state machine over the client's verbs. It is asked nothing but "look at this socket" and
/// "it is time".
pub trait Program {
    /// Called once, at the host's first run.
    fn start(&mut self, c: &mut Context<'_>);
    /// Something happened to a socket of this program.
    fn ready(&mut self, c: &mut Context<'_>, slot: u32);
    /// A timer of [`Context::after`] ran out.
    fn timer(&mut self, c: &mut Context<'_>, key: u64);
}

/// A timer: when, in the order of setting, whose, and the program's own name for it.
type Timer = Reverse<(Instant, u64, usize, u64)>;

/// What a program can do.
pub struct Context<'a> {
    pub now: Instant,
    pub session: &'a Session,
    pub rng: &'a mut Rng,
    waiter: &'a Waiter,
    owners: &'a mut Vec<u16>,
    timers: &'a mut BinaryHeap<Timer>,
    order: &'a mut u64,
    program: usize,
}

impl Context<'_> {
    /// A new socket of this program; it hears of it from now on.
    ///
    /// # Errors
    /// ENOBUFS: no slot is free.
    pub fn open(&mut self, kind: u32) -> Result<u32, Errno> {
        self.session.open(kind).inspect(|&slot| self.own(slot))
    }

    /// accept(2).
    ///
    /// # Errors
    /// EAGAIN: none waits.
    pub fn accept(&mut self, listener: u32) -> Result<u32, Errno> {
        self.session.accept(listener).map(|(slot, _)| slot).inspect(|&slot| self.own(slot))
    }

    fn own(&mut self, slot: u32) {
        let index = slot as usize;
        if self.owners.len() <= index {
            self.owners.resize(index + 1, u16::MAX);
        }
        self.owners[index] = self.program as u16;
        self.waiter.watch(self.session, slot);
    }

    /// close(2). Its number may be another socket's soon: forget it.
    pub fn close(&mut self, slot: u32) {
        self.waiter.unwatch(self.session, slot);
        if let Some(owner) = self.owners.get_mut(slot as usize) {
            *owner = u16::MAX;
        }
        self.session.close(slot);
    }

    /// Calls [`Program::timer`] with `key` after this time.
    pub fn after(&mut self, delay: Duration, key: u64) {
        *self.order += 1;
        self.timers.push(Reverse((self.now + delay, *self.order, self.program, key)));
    }
}

/// See the module.
pub struct Host {
    waiter: Waiter,
    session: Session,
    engine: LocalHost,
    programs: Vec<Box<dyn Program>>,
    started: usize,
    /// Program by slot; MAX: nobody's.
    owners: Vec<u16>,
    timers: BinaryHeap<Timer>,
    order: u64,
    rng: Rng,
    marked: Vec<u32>,
}

impl Host {
    /// # Errors
    /// No descriptor or address space left, or numbers in `config` that can't be.
    pub fn new(config: &LocalConfig, clock: VirtualClock, rng: Rng) -> anyhow::Result<Self> {
        let engine = LocalHost::in_memory(config, clock)?;
        let session = engine.attach(0)?;
        let waiter = Waiter::new(&session)?;
        Ok(Self {
            engine,
            waiter,
            session,
            programs: Vec::new(),
            started: 0,
            owners: Vec::new(),
            timers: BinaryHeap::new(),
            order: 0,
            rng,
            marked: Vec::new(),
        })
    }

    /// A program that starts at the host's next run.
    pub fn add(&mut self, program: Box<dyn Program>) {
        self.programs.push(program);
    }

    /// Numbers of a socket's connection, while there is one.
    #[must_use]
    pub fn tcp_info(&self, slot: u32) -> Option<TcpInfo> {
        self.engine.tcp_info(&self.session, slot)
    }

    /// What the stack counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.engine.with_stack(0, |s| s.counters())
    }

    #[must_use]
    pub fn engine(&self) -> &LocalHost {
        &self.engine
    }

    fn call(&mut self, now: Instant, program: usize, f: impl FnOnce(&mut dyn Program, &mut Context<'_>)) {
        let mut context = Context {
            now,
            session: &self.session,
            rng: &mut self.rng,
            waiter: &self.waiter,
            owners: &mut self.owners,
            timers: &mut self.timers,
            order: &mut self.order,
            program,
        };
        if let Some(p) = self.programs.get_mut(program) {
            f(&mut **p, &mut context);
        }
    }

    /// Programs that have something to do at this time do it; false when none had.
    fn run_programs(&mut self, now: Instant) -> bool {
        let mut any = false;
        while self.started < self.programs.len() {
            self.started += 1;
            self.call(now, self.started - 1, |p, c| p.start(c));
            any = true;
        }
        while self.timers.peek().is_some_and(|Reverse((at, ..))| *at <= now)
            && let Some(Reverse((_, _, program, key))) = self.timers.pop()
        {
            self.call(now, program, |p, c| p.timer(c, key));
            any = true;
        }
        if self.waiter.is_dirty(&self.session) {
            let mut marked = std::mem::take(&mut self.marked);
            self.waiter.harvest(&self.session, usize::MAX, |slot| marked.push(slot));
            for slot in marked.drain(..) {
                if let Some(&owner) = self.owners.get(slot as usize).filter(|o| **o != u16::MAX) {
                    self.call(now, owner.into(), |p, c| p.ready(c, slot));
                    any = true;
                }
            }
            self.marked = marked;
        }
        any
    }
}

impl Node for Host {
    fn deliver(&mut self, _port: usize, frame: Vec<u8>) {
        self.engine.put_frame(0, frame);
    }

    fn run(&mut self, now: Instant, out: &mut Outgoing) {
        loop {
            self.engine.settle();
            if !self.run_programs(now) {
                break;
            }
        }
        self.engine.with_port(0, |port| {
            while let Some((_, frame)) = port.take() {
                out.push((0, frame));
            }
        });
    }

    fn wake_at(&mut self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        [self.engine.wake_at(), timer].into_iter().flatten().min()
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
