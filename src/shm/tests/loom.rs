//! What programs and engine do at the same time in shared memory, in every order that the memory model allows:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p sidestep-shm --release --test loom
//! ```
//!
//! Without `--cfg loom` the same tests run many times on real threads.

use sidestep_shm::accept::AcceptRing;
use sidestep_shm::dirty::{DirtyView, Door};
use sidestep_shm::lock;
use sidestep_shm::sync::{AtomicU32, AtomicU64, Ordering};

#[cfg(loom)]
use loom::{
    sync::{Arc, Notify as Bell},
    thread,
};
#[cfg(not(loom))]
use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
};

/// Runs `f` in all orders, or often. `preemptions` bounds the orders: at most that many switches away from a thread
/// that could have gone on. Lost updates and lost wake-ups show with two.
#[cfg(loom)]
fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

#[cfg(not(loom))]
fn model(_preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    (0..2000).for_each(|_| f());
}

/// A doorbell: remembers one ring, like a datagram in a socket. A ring that never comes is a deadlock, which loom
/// reports.
#[cfg(not(loom))]
struct Bell(Mutex<bool>, Condvar);

#[cfg(not(loom))]
impl Bell {
    fn new() -> Self {
        Self(Mutex::new(false), Condvar::new())
    }
    fn notify(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }
    fn wait(&self) {
        let mut rung = self.0.lock().unwrap();
        while !*rung {
            let (guard, timeout) = self.1.wait_timeout(rung, std::time::Duration::from_secs(30)).unwrap();
            rung = guard;
            assert!(*rung || !timeout.timed_out(), "a wake-up was lost");
        }
        *rung = false;
    }
}

/// A dirty set of 128 slots, its door and its bell.
struct Queue {
    top: AtomicU64,
    mid: [AtomicU64; 1],
    leaf: [AtomicU64; 2],
    door: Door,
    bell: Bell,
}

impl Queue {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            top: AtomicU64::new(0),
            mid: [AtomicU64::new(0)],
            leaf: [AtomicU64::new(0), AtomicU64::new(0)],
            door: Door::default(),
            bell: Bell::new(),
        })
    }

    fn set(&self) -> DirtyView<'_> {
        DirtyView { top: &self.top, mid: &self.mid, leaf: &self.leaf }
    }

    /// A writer's whole part.
    fn tell(&self, slot: u32) {
        self.set().mark(slot);
        if self.door.must_ring() {
            self.bell.notify();
        }
    }

    fn take(&self, budget: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        self.set().harvest(budget, |slot| taken.push(slot));
        taken
    }
}

/// Writers mark while the reader harvests with a budget: every mark is seen, by this harvest or a later one.
fn no_mark_is_lost(slots: [u32; 2], budget: usize) {
    model(3, move || {
        let queue = Queue::new();
        let writers = slots.map(|slot| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.set().mark(slot))
        });
        let mut seen = queue.take(budget);
        writers.into_iter().for_each(|w| w.join().unwrap());
        loop {
            let more = queue.take(budget);
            if more.is_empty() {
                break;
            }
            seen.extend(more);
        }
        assert!(queue.set().is_empty());
        seen.sort_unstable();
        assert_eq!(seen, slots, "each once: nothing is taken twice, nothing is lost");
    });
}

#[test]
fn marks_in_one_word_are_not_lost() {
    no_mark_is_lost([3, 5], usize::MAX);
}

#[test]
fn marks_in_two_words_are_not_lost() {
    no_mark_is_lost([3, 70], usize::MAX);
}

#[test]
fn marks_are_not_lost_to_a_budget() {
    no_mark_is_lost([3, 70], 1);
}

/// The value that a writer stored before its mark is there when the mark is taken.
#[test]
fn what_was_written_before_a_mark_is_seen_after_it() {
    model(3, || {
        let queue = Queue::new();
        let state = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let writers = [0, 1].map(|i| {
            let (queue, state) = (Arc::clone(&queue), Arc::clone(&state));
            thread::spawn(move || {
                state[i].store(1, Ordering::Relaxed);
                queue.set().mark(i as u32);
            })
        });
        for slot in queue.take(usize::MAX) {
            assert_eq!(state[slot as usize].load(Ordering::Relaxed), 1);
        }
        writers.into_iter().for_each(|w| w.join().unwrap());
    });
}

/// A reader that sleeps only behind a closed door and an empty set is woken for every mark. Under loom a lost wake-up
/// is a deadlock, which it reports.
#[test]
fn no_wake_up_is_lost() {
    model(3, || {
        let queue = Queue::new();
        let writers = [3, 70].map(|slot| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.tell(slot))
        });
        let mut seen = 0;
        loop {
            seen += queue.take(usize::MAX).len();
            if seen == 2 {
                break;
            }
            queue.door.close();
            if queue.set().is_empty() {
                queue.bell.wait();
            }
            queue.door.open();
        }
        writers.into_iter().for_each(|w| w.join().unwrap());
    });
}

/// Of many writers that find a closed door, one rings.
#[test]
fn one_writer_rings() {
    model(3, || {
        let door = Arc::new(Door::default());
        door.close();
        let rings = [0, 1].map(|_| {
            let door = Arc::clone(&door);
            thread::spawn(move || u32::from(door.must_ring()))
        });
        let rings: u32 = rings.into_iter().map(|r| r.join().unwrap()).sum();
        assert_eq!(rings, 1);
    });
}

/// Each of some free numbers is claimed by one thread, also while another is given back.
#[test]
fn a_free_slot_is_claimed_once() {
    model(2, || {
        let queue = Queue::new();
        queue.set().mark(3);
        let claims = [0, 1].map(|_| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.set().claim())
        });
        queue.set().mark(70);
        let mut got: Vec<u32> = claims.into_iter().filter_map(|c| c.join().unwrap()).collect();
        got.extend(queue.set().claim());
        got.extend(queue.set().claim());
        got.sort_unstable();
        assert_eq!(got, [3, 70]);
    });
}

/// An accept ring of two entries, with who holds what.
struct Listener {
    tail: AtomicU64,
    head: AtomicU64,
    entries: [AtomicU64; 2],
    /// By slot: bit p is process p.
    holders: [AtomicU32; 3],
}

impl Listener {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            entries: [AtomicU64::new(0), AtomicU64::new(0)],
            holders: [AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)],
        })
    }

    fn ring(&self) -> AcceptRing<'_> {
        AcceptRing::over(&self.tail, &self.head, &self.entries)
    }

    fn take(&self, process: u32) -> Option<u32> {
        self.ring().take_with(process, |slot| {
            self.holders.get(slot as usize).map(|h| h.fetch_or(1 << process, Ordering::SeqCst)).is_some()
        })
    }

    /// Every slot that was taken has one holder, and it is who took it.
    fn check(&self, taken: &[(u32, u32)]) {
        for slot in 0..3 {
            let by = taken.iter().filter(|t| t.1 == slot).fold(0, |all, t| all + (1 << t.0));
            assert_eq!(self.holders[slot as usize].load(Ordering::SeqCst), by, "slot {slot} of {taken:?}");
        }
    }
}

/// Two processes accept while the shard leaves connections, more than the ring holds in all.
#[test]
fn a_connection_is_accepted_once() {
    model(2, || {
        let listener = Listener::new();
        listener.ring().push(0, 0);
        let takers = [1, 2].map(|process| {
            let listener = Arc::clone(&listener);
            thread::spawn(move || listener.take(process).map(|slot| (process, slot)))
        });
        listener.ring().push(1, 1);
        // As the shard does: only while there is room.
        let third = listener.ring().head() > 0;
        if third {
            listener.ring().push(2, 2);
        }
        let mut taken: Vec<_> = takers.into_iter().filter_map(|t| t.join().unwrap()).collect();
        while let Some(slot) = listener.take(3) {
            taken.push((3, slot));
        }
        listener.check(&taken);
        let mut slots: Vec<u32> = taken.iter().map(|t| t.1).collect();
        slots.sort_unstable();
        assert_eq!(slots, if third { vec![0, 1, 2] } else { vec![0, 1] });
        assert!(listener.ring().is_empty());
    });
}

/// A process that died after its claim stops nobody, and the entry says who it was.
#[test]
fn a_dead_claimant_is_passed_over_and_found() {
    model(2, || {
        let listener = Listener::new();
        listener.ring().push(0, 0);
        listener.ring().push(1, 1);
        // Process 9 claims the first and dies before it becomes the holder.
        listener.entries[0].store(10 << 32, Ordering::SeqCst);
        let other = Arc::clone(&listener);
        let other = thread::spawn(move || other.take(1).map(|slot| (1, slot)));
        let mine = listener.take(2).map(|slot| (2, slot));
        let taken: Vec<_> = [other.join().unwrap(), mine].into_iter().flatten().collect();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].1, 1);
        listener.check(&taken);
        assert_eq!(listener.ring().entry(0), Some((0, Some(9))));
    });
}

/// Bytes that the lock guards need no order of their own; the engine opens the lock of the dead and no other.
#[test]
fn a_lock_guards_and_outlives_its_holder() {
    model(3, || {
        let word = Arc::new(AtomicU32::new(0));
        let count = Arc::new(AtomicU32::new(0));
        // Process 7 died with the lock.
        assert!(lock::try_lock(&word, 7));
        let hands = [1, 2].map(|process| {
            let (word, count) = (Arc::clone(&word), Arc::clone(&count));
            thread::spawn(move || {
                let got = lock::try_lock(&word, process);
                if got {
                    let before = count.load(Ordering::Relaxed);
                    count.store(before + 1, Ordering::Relaxed);
                    lock::unlock(&word);
                }
                u32::from(got)
            })
        });
        lock::break_for(&word, 7);
        lock::break_for(&word, 7);
        let entered: u32 = hands.into_iter().map(|h| h.join().unwrap()).sum();
        assert_eq!(count.load(Ordering::Relaxed), entered);
        assert!(lock::try_lock(&word, 3), "free in the end");
    });
}

/// While the lock is lent nobody gets it; one of two threads that give it back does; and what the borrower wrote is
/// there for whoever takes the lock next.
#[test]
fn a_lent_lock_is_refused_and_given_back_once() {
    model(3, || {
        let word = Arc::new(AtomicU32::new(0));
        let position = Arc::new(AtomicU32::new(0));
        assert!(lock::try_lock(&word, 1));
        lock::lend(&word, 1);
        lock::break_for(&word, 2);
        let back = [10, 20].map(|to| {
            let (word, position) = (Arc::clone(&word), Arc::clone(&position));
            thread::spawn(move || {
                let mine = lock::take_back(&word, 1);
                if mine {
                    assert_eq!(position.load(Ordering::Relaxed), 0, "only one gives it back");
                    position.store(to, Ordering::Relaxed);
                    lock::unlock(&word);
                }
                mine
            })
        });
        if lock::try_lock(&word, 2) {
            assert_ne!(position.load(Ordering::Relaxed), 0, "taken while lent");
            lock::unlock(&word);
        }
        let given = back.into_iter().map(|h| u32::from(h.join().unwrap())).sum::<u32>();
        assert_eq!(given, 1);
        // A process that dies with a lent lock leaves it open, too.
        assert!(lock::try_lock(&word, 4));
        lock::lend(&word, 4);
        assert!(lock::is_lent(&word));
        lock::break_for(&word, 4);
        assert!(!lock::is_lent(&word) && lock::try_lock(&word, 5));
    });
}
