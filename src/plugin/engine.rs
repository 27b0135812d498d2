//! The host under test, its virtual clock, and the calls that wait.
//!
//! ```text
//!   main thread: gettimeofday, usleep, netdev_send, netdev_receive ──▶ move the clock, turn the engine
//!                                                                          │ after every turn
//!   second thread: a call that waits ──▶ waiting list ◀── tried again ─────┘
//! ```
//!
//! Only the thread that made the plug-in moves time, as it does in packetdrill. A call that waits on another thread
//! leaves what it tries here and sleeps; whoever turns the engine tries it, so that nothing depends on how the machine
//! schedules threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use sidestep::clock::{Clock, VirtualClock};
use sidestep::local::{LocalEngine, LocalHost};
use sidestep::packetdrill::{LINK, Settings};
use sidestep_client::Session;
use sidestep_stack::Instant;

use crate::sockets::Object;

/// Where the clock stands at first: an hour, so that nothing is before it.
const START: Instant = Instant::from_nanos(3_600_000_000_000);
/// What a look at the clock takes, so that waiting by looking ends.
const LOOK: Duration = Duration::from_micros(1);
/// The longest that one call of netdev_receive moves the clock when nothing is going to happen.
const NAP: Duration = Duration::from_millis(1);
const ETHERNET: usize = 14;

/// The result of a C call: a value, or an errno.
pub type Outcome = Result<isize, i32>;

/// Everything behind one `userdata`.
pub struct Plugin {
    state: Mutex<State>,
    /// A waiting call has its result.
    woken: Condvar,
    main: ThreadId,
}

/// What is under the lock.
pub struct State {
    pub host: LocalHost,
    pub session: Session,
    pub settings: Settings,
    clock: VirtualClock,
    /// Bare IP packets that left, and when.
    sent: VecDeque<(Instant, Vec<u8>)>,
    pub objects: BTreeMap<i32, Object>,
    pub pipes: Vec<VecDeque<u8>>,
    waiting: Vec<Waiting>,
    next_ticket: u64,
    results: BTreeMap<u64, Outcome>,
}

/// A call that waits: None as long as it has to.
pub type Attempt = Box<dyn FnMut(&mut State) -> Option<Outcome>>;

struct Waiting {
    ticket: u64,
    attempt: Attempt,
    /// When it gives up, to be tried then at the latest.
    deadline: Option<Instant>,
}

// SAFETY: the pointers that an attempt holds are those of a call whose thread sleeps until its result is there, and
// attempts run only under the lock.
unsafe impl Send for State {}

impl Plugin {
    /// A host by `flags`: words like `defaults`, `tcp_sack=0`, `ip_version=ipv6`, `mtu=1520`.
    ///
    /// # Errors
    /// A word that makes no sense, or no host.
    pub fn new(flags: &str) -> Result<Arc<Self>, String> {
        let mut settings = Settings::default();
        for word in flags.split([' ', ',']).filter(|w| !w.is_empty()) {
            let (name, value) = word.trim_start_matches('-').split_once('=').unwrap_or((word, ""));
            // A triple has no blanks here: tcp_rmem=4096:131072:6291456.
            let known = match name {
                "defaults" => settings.defaults().map(|()| true),
                _ => settings.sysctl(name, &value.replace(':', " ")),
            };
            if !known? {
                settings.option(name, value)?;
            }
        }
        let clock = VirtualClock::at(START);
        let host = LocalEngine::in_memory(&settings.host(), clock.clone()).map_err(|e| e.to_string())?;
        let session = host.attach(0).map_err(|e| e.to_string())?;
        let state = State {
            host,
            session,
            settings,
            clock,
            sent: VecDeque::new(),
            objects: BTreeMap::new(),
            pipes: Vec::new(),
            waiting: Vec::new(),
            next_ticket: 0,
            results: BTreeMap::new(),
        };
        Ok(Arc::new(Self { state: Mutex::new(state), woken: Condvar::new(), main: std::thread::current().id() }))
    }

    /// The state, whatever a panic left of it.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the engine, and what follows from it.
    pub fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = f(&mut state);
        if state.settle() {
            self.woken.notify_all();
        }
        result
    }

    /// Runs a call until it has a result. `timeout`: when an attempt gives up by itself.
    pub fn call(&self, timeout: Option<Duration>, mut attempt: Attempt) -> Outcome {
        let mut state = self.lock();
        state.settle();
        let now = state.clock.now();
        if let Some(outcome) = attempt(&mut state) {
            state.settle();
            return outcome;
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push(Waiting { ticket, attempt, deadline: timeout.map(|t| now + t) });
        loop {
            state.settle();
            if let Some(outcome) = state.results.remove(&ticket) {
                return outcome;
            }
            if std::thread::current().id() == self.main {
                state.step(None);
            } else {
                state = self.woken.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// usleep(3) on the virtual clock.
    pub fn sleep(&self, time: Duration) {
        let mut state = self.lock();
        let until = state.clock.now() + time;
        while state.clock.now() < until {
            state.step(Some(until));
            self.woken.notify_all();
        }
    }

    /// The clock in microseconds; looking at it takes time.
    pub fn look_at_clock(&self) -> u64 {
        let mut state = self.lock();
        let until = state.clock.now() + LOOK;
        state.step(Some(until));
        self.woken.notify_all();
        micros(state.clock.now())
    }

    /// A packet for the stack.
    pub fn inject(&self, packet: &[u8]) {
        self.with(|state| {
            let kind: &[u8] = if packet.first().is_some_and(|b| b >> 4 == 6) { &[0x86, 0xdd] } else { &[0x08, 0x00] };
            state.host.put_frame(0, [&LINK.stack, &LINK.script, kind, packet].concat());
        });
    }

    /// The next packet of the stack and when it left, in microseconds; lets time pass until there is one. None: not
    /// within a while.
    pub fn next_packet(&self) -> Option<(u64, Vec<u8>)> {
        let mut state = self.lock();
        state.settle();
        if state.sent.is_empty() {
            let nap = state.clock.now() + NAP;
            state.step(Some(nap));
        }
        self.woken.notify_all();
        state.sent.pop_front().map(|(at, packet)| (micros(at), packet))
    }
}

impl State {
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Turns the engine until nothing is left to do, and tries what waits. True when a call got its result.
    fn settle(&mut self) -> bool {
        let before = self.results.len();
        loop {
            self.host.settle();
            while let Some((at, mut frame)) = self.host.take_frame(0) {
                // ARP and neighbour discovery have no place on a wire of bare IP packets.
                if frame.len() > ETHERNET && matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd]) {
                    frame.drain(..ETHERNET);
                    self.sent.push_back((at, frame));
                }
            }
            let mut waiting = std::mem::take(&mut self.waiting);
            let left = waiting.len();
            waiting.retain_mut(|call| match (call.attempt)(self) {
                Some(outcome) => {
                    self.results.insert(call.ticket, outcome);
                    false
                }
                None => true,
            });
            let done = waiting.len() < left;
            waiting.append(&mut self.waiting);
            self.waiting = waiting;
            if !done {
                return self.results.len() > before;
            }
        }
    }

    /// Moves the clock to what happens next, or to `limit` if that comes first.
    fn step(&mut self, limit: Option<Instant>) {
        let deadline = self.waiting.iter().filter_map(|w| w.deadline).filter(|at| *at > self.clock.now()).min();
        let next = [self.host.wake_at(), deadline, limit].into_iter().flatten().min();
        self.clock.set(next.unwrap_or(self.clock.now() + NAP));
        self.settle();
    }
}

fn micros(at: Instant) -> u64 {
    at.as_nanos() / 1000
}
