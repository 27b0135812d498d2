//! Where the helper sleeps: on a descriptor that others ring, alone or along with the shards'.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// One thread's bed.
pub struct Parking {
    /// None: none could be had; then it naps.
    bell: Option<OwnedFd>,
    /// In [`Self::park`]: until something happens.
    parked: AtomicBool,
    /// In any sleep: whoever clears it has to ring.
    asleep: AtomicU32,
}

/// How long the helper sleeps without a bell, in nanoseconds.
const WITHOUT_BELL_NS: u64 = 1_000_000;

impl Parking {
    pub fn new() -> Self {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok();
        Self { bell, parked: AtomicBool::new(false), asleep: AtomicU32::new(0) }
    }

    /// Sleeps until `until` is false no longer, or somebody unparks.
    pub fn park(&self, until: impl Fn() -> bool) {
        self.parked.store(true, Ordering::SeqCst);
        if !until() {
            self.doze(None, u64::MAX);
        }
        self.parked.store(false, Ordering::SeqCst);
    }

    /// Sleeps for `ns`, unless somebody unparks.
    pub fn nap(&self, ns: u64) {
        self.doze(None, ns);
    }

    /// The same, and until `wake` is readable.
    pub fn sleep(&self, wake: BorrowedFd<'_>, ns: u64) {
        self.doze(Some(wake), ns);
    }

    /// Ends its sleep, whichever it is.
    pub fn unpark(&self) {
        if self.asleep.load(Ordering::SeqCst) != 0 && self.asleep.swap(0, Ordering::SeqCst) != 0 {
            self.ring();
        }
    }

    /// Ends [`Self::park`]. One load if it isn't there.
    pub fn unpark_if_parked(&self) {
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::SeqCst) {
            self.ring();
        }
    }

    fn ring(&self) {
        if let Some(bell) = &self.bell {
            // It fails only when it has rung already.
            let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }

    fn doze(&self, wake: Option<BorrowedFd<'_>>, ns: u64) {
        self.asleep.store(1, Ordering::SeqCst);
        let ns = if self.bell.is_some() { ns } else { ns.min(WITHOUT_BELL_NS) };
        let time = Timespec { tv_sec: (ns / 1_000_000_000).cast_signed(), tv_nsec: (ns % 1_000_000_000) as i64 };
        let time = (ns != u64::MAX).then_some(&time);
        let fds = [self.bell.as_ref().map(AsFd::as_fd), wake];
        let mut fds: Vec<PollFd<'_>> =
            fds.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let _ = poll(&mut fds, time);
        self.asleep.store(0, Ordering::SeqCst);
        if let Some(bell) = &self.bell {
            let _ = rustix::io::read(bell, &mut [0u8; 8]);
        }
    }
}
