//! Who turns the shards: program threads inside the calls that wait, and the helper ([`super::helper`]) when none does.
//!
//! ```text
//!   a thread that waits ──▶ turn(): tries each shard's lock; what it can lock it turns
//!                           nothing came for the spin time ──▶ takes the *seat*: the one thread that sleeps for all
//!                           shards, doors closed; others that wait meanwhile follow: they sleep on their own doorbell
//!   it leaves with its event ──▶ the next one that waits takes over; if others follow, or none comes within a
//!                                millisecond, the helper does
//! ```
//!
//! A shard's lock is held for one turn and never while sleeping, so that sends of other threads, and messages of the
//! control thread, need not wait for a sleeper. Whoever finds the lock taken leaves a count (`pending`), and who holds
//! it looks there after letting go: either of the two has seen what was marked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::event::epoll;
use sidestep_client::{Driver, Rest};

use super::parking::Parking;
use crate::control::EngineGauges;
use crate::shard::Driven;

/// Sends that wait at most for others to leave with them. Half of a NAPI poll: the peer gets something to do while the
/// rest is written.
const BATCH: u32 = 32;
/// Reads that find nothing, without a turn between, until one is made: a program that never waits but asks again and
/// again gets its frames all the same.
const DRY: u32 = 16;
/// Looks without work until the core is offered to others, and how often from then on. A peer may share it.
const IDLE_BEFORE_YIELD: u32 = 64;
const YIELD_EVERY: u32 = 64;
/// So many looks share one reading of the clock, for timers: it costs as much as the look.
const CLOCK_EVERY: u32 = 8;

/// Nobody sleeps for the shards.
const FREE: u32 = 0;
/// A program's thread does, or the helper.
const PROGRAM: u32 = 1;
const HELPER: u32 = 2;

/// One shard.
#[repr(align(64))]
struct Seat {
    /// Marks that no turn has seen yet.
    pending: AtomicU32,
    /// Reads in vain since the last turn.
    dry: AtomicU32,
    /// Turns of program threads: by these the helper knows that somebody drives.
    turns: AtomicU64,
    shard: Mutex<Place>,
}

struct Place {
    /// None: the library was stopped.
    shard: Option<Box<dyn Driven>>,
    idle: u32,
}

/// What a try to turn came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Busy,
    Idle,
    Worked,
}

/// All shards of one library.
pub struct Seats {
    seats: Box<[Seat]>,
    /// Of several shards, their descriptors to sleep on in one.
    all: Option<OwnedFd>,
    /// Those descriptors, of each shard: valid as long as the shards are.
    sleeping: Box<[OwnedFd]>,
    seat: AtomicU32,
    /// Threads that sleep or are about to, with the seat or without.
    waiting: AtomicU32,
    /// Events that the last wait gave.
    batch: AtomicU32,
    /// The helper turns, and waiting threads follow.
    pub(super) serving: AtomicBool,
    /// Several threads waited at the same time: the helper had better serve them.
    pub(super) contended: AtomicBool,
    pub(super) helper: Parking,
    pub(super) gauges: Arc<EngineGauges>,
    /// A shard panicked, or the library was stopped.
    over: AtomicBool,
}

impl Seats {
    /// # Errors
    /// No descriptor left.
    pub(crate) fn new(mut shards: Vec<Box<dyn Driven>>, gauges: Arc<EngineGauges>) -> std::io::Result<Self> {
        let mut sleeping = Vec::new();
        for shard in &mut shards {
            shard.start()?;
            let fd = shard.sleep_fd().ok_or(rustix::io::Errno::BADF)?;
            sleeping.push(fd.try_clone_to_owned()?);
        }
        let all = if shards.len() == 1 {
            None
        } else {
            let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            for fd in &sleeping {
                epoll::add(&all, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
            }
            Some(all)
        };
        let seat = |shard| Seat {
            pending: AtomicU32::new(0),
            dry: AtomicU32::new(0),
            turns: AtomicU64::new(0),
            shard: Mutex::new(Place { shard: Some(shard), idle: 0 }),
        };
        Ok(Self {
            seats: shards.into_iter().map(seat).collect(),
            all,
            sleeping: sleeping.into(),
            seat: AtomicU32::new(FREE),
            waiting: AtomicU32::new(0),
            batch: AtomicU32::new(0),
            serving: AtomicBool::new(false),
            contended: AtomicBool::new(false),
            helper: Parking::new(),
            gauges,
            over: AtomicBool::new(false),
        })
    }

    /// Number of shards.
    pub(crate) fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether nothing turns any more.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Calls `with` between two turns of shard `n`. None: no such shard, or it is over.
    pub(crate) fn with<R>(&self, n: usize, with: impl FnOnce(&mut dyn Driven) -> R) -> Option<R> {
        let mut place = lock(&self.seats.get(n)?.shard);
        place.shard.as_mut().map(|shard| with(&mut **shard))
    }

    /// Has shard `n` read its messages, now or by whoever turns it now.
    pub(crate) fn run_messages(&self, n: usize) {
        let Some(seat) = self.seats.get(n) else { return };
        seat.pending.fetch_add(1, Ordering::SeqCst);
        if let Some(mut place) = try_lock(&seat.shard)
            && let Some(shard) = &mut place.shard
        {
            shard.run_messages();
        }
    }

    /// Takes the shards away.
    pub(crate) fn close(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.helper.unpark();
        for seat in &self.seats {
            lock(&seat.shard).shard = None;
        }
    }

    /// Turns shard `n` unless another thread does. `counts`: as a program's thread.
    fn turn_one(&self, seat: &Seat, counts: bool) -> Outcome {
        let mut worked = false;
        loop {
            let Some(mut place) = try_lock(&seat.shard) else {
                return if worked { Outcome::Worked } else { Outcome::Busy };
            };
            let Place { shard, idle } = &mut *place;
            let Some(shard) = shard else { return Outcome::Busy };
            if counts {
                seat.turns.store(seat.turns.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            }
            if seat.pending.load(Ordering::Relaxed) == 0
                && !shard.has_work()
                && !(idle.is_multiple_of(CLOCK_EVERY) && shard.is_late())
            {
                *idle = idle.wrapping_add(1);
                let looks = *idle;
                drop(place);
                if looks >= IDLE_BEFORE_YIELD && looks.is_multiple_of(YIELD_EVERY) {
                    sidestep_client::yield_now();
                }
                return if worked { Outcome::Worked } else { Outcome::Idle };
            }
            if seat.pending.load(Ordering::Relaxed) != 0 {
                // Before what was marked is looked at.
                seat.pending.swap(0, Ordering::SeqCst);
            }
            // A panic is a bug of ours; the engine stops as a whole, so that no call waits for a dead shard.
            let turned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shard.turn()));
            let Ok(turn) = turned else {
                tracing::error!("a shard failed; every socket gives errors from now on");
                self.over.store(true, Ordering::Relaxed);
                place.shard = None;
                return Outcome::Busy;
            };
            worked |= !turn.is_idle();
            place.idle = if turn.is_idle() { place.idle.wrapping_add(1) } else { 0 };
            drop(place);
            if seat.dry.load(Ordering::Relaxed) != 0 {
                seat.dry.store(0, Ordering::Relaxed);
            }
            if seat.pending.load(Ordering::SeqCst) != 0 {
                continue;
            }
            return if worked { Outcome::Worked } else { Outcome::Idle };
        }
    }

    pub(super) fn turn_all(&self, counts: bool) -> Outcome {
        let mut sum = Outcome::Busy;
        for seat in &self.seats {
            match (self.turn_one(seat, counts), sum) {
                (Outcome::Worked, _) => sum = Outcome::Worked,
                (Outcome::Idle, Outcome::Busy) => sum = Outcome::Idle,
                _ => {}
            }
        }
        sum
    }

    /// Turns that program threads made.
    pub(super) fn program_turns(&self) -> u64 {
        self.seats.iter().map(|s| s.turns.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }

    /// Threads that sleep.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Whether a program's thread sleeps for the shards.
    pub(super) fn is_slept_for(&self) -> bool {
        self.seat.load(Ordering::SeqCst) == PROGRAM
    }

    /// Readable when a shard has something to do, while somebody has the seat.
    #[must_use]
    pub fn wake(&self) -> BorrowedFd<'_> {
        match &self.all {
            Some(all) => all.as_fd(),
            None => self.sleeping[0].as_fd(),
        }
    }

    fn take(&self, who: u32) -> bool {
        self.seat.compare_exchange(FREE, who, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Closes all doors. None: there is work; all are open again then.
    fn close_doors(&self) -> Option<u64> {
        let mut timeout_ns = u64::MAX;
        for (n, seat) in self.seats.iter().enumerate() {
            let mut place = lock(&seat.shard);
            let quiet = place.shard.as_mut().map(|s| s.prepare_sleep());
            drop(place);
            match quiet {
                Some(Some(time)) if seat.pending.load(Ordering::SeqCst) == 0 => {
                    timeout_ns = timeout_ns.min(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
                }
                _ => {
                    self.open_doors(n + 1, false);
                    return None;
                }
            }
        }
        Some(timeout_ns)
    }

    fn open_doors(&self, first: usize, slept: bool) {
        for seat in &self.seats[..first] {
            if let Some(shard) = &mut lock(&seat.shard).shard {
                shard.awake(slept);
            }
        }
    }

    /// The helper sleeps for the shards, `most_ns` at most. False: there is work, or a program's thread does.
    pub(super) fn sleep_as_helper(&self, most_ns: u64) -> bool {
        if !self.take(HELPER) {
            return false;
        }
        let timeout_ns = self.close_doors();
        if let Some(timeout_ns) = timeout_ns {
            self.helper.sleep(self.wake(), timeout_ns.min(most_ns));
            self.open_doors(self.seats.len(), true);
        }
        self.seat.store(FREE, Ordering::SeqCst);
        timeout_ns.is_some()
    }

    /// A program's thread wants to turn while the helper does. True: it may.
    #[cold]
    fn relieve_helper(&self) -> bool {
        if self.contended.load(Ordering::Relaxed) {
            return false;
        }
        self.serving.store(false, Ordering::SeqCst);
        // If it sleeps, the doors are closed, and every mark would ring.
        self.helper.unpark();
        true
    }
}

impl Driver for Seats {
    fn turn(&self) -> bool {
        if self.serving.load(Ordering::Relaxed) && !self.relieve_helper() {
            return false;
        }
        self.turn_all(true) != Outcome::Busy
    }

    fn sent(&self, shard: u32) -> bool {
        let Some(seat) = self.seats.get(shard as usize) else { return false };
        if self.serving.load(Ordering::Relaxed) && self.contended.load(Ordering::Relaxed) {
            return false;
        }
        let pending = seat.pending.fetch_add(1, Ordering::SeqCst) + 1;
        if self.batch.load(Ordering::Relaxed) > 1 && pending < BATCH {
            return false;
        }
        // Busy is as good: who turns it now looks again.
        self.turn_one(seat, true);
        true
    }

    fn dry(&self) -> bool {
        let Some(seat) = self.seats.first() else { return false };
        let dry = seat.dry.load(Ordering::Relaxed) + 1;
        seat.dry.store(dry, Ordering::Relaxed);
        dry >= DRY && self.turn_all(true) == Outcome::Worked
    }

    fn found(&self, events: usize) {
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        if self.batch.load(Ordering::Relaxed) != events {
            self.batch.store(events, Ordering::Relaxed);
        }
    }

    fn prepare_sleep(&self) -> Rest<'_> {
        if self.waiting.fetch_add(1, Ordering::SeqCst) > 0 {
            self.contended.store(true, Ordering::Relaxed);
        }
        if self.is_over() || self.serving.load(Ordering::SeqCst) || !self.take(PROGRAM) {
            return Rest::Follow;
        }
        match self.close_doors() {
            Some(timeout_ns) => Rest::Lead { wake: self.wake(), timeout_ns },
            None => {
                self.leave();
                Rest::Work
            }
        }
    }

    fn awake(&self, rest: &Rest<'_>) {
        match rest {
            Rest::Work => {}
            Rest::Follow => {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            Rest::Lead { .. } => {
                self.open_doors(self.seats.len(), true);
                self.leave();
            }
        }
    }
}

impl Seats {
    /// The seat is free again.
    fn leave(&self) {
        self.seat.store(FREE, Ordering::SeqCst);
        if self.waiting.fetch_sub(1, Ordering::SeqCst) > 1 {
            // Others sleep, and nobody for them.
            self.contended.store(true, Ordering::Relaxed);
        }
        self.helper.unpark_if_parked();
    }
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// What a panic left behind is taken away by whoever caught it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
