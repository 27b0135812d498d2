//! The few system calls under everything else: descriptors out of the program's way, clocks, and patience.
//!
//! Descriptors here are [`Fd`], not std's `OwnedFd`: that one closes through libc's `close`, which the preload
//! library replaces.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Resource;
use rustix::time::Timespec;
use sidestep_shm::lock;

/// A descriptor, closed by a direct system call when dropped.
#[derive(Debug)]
pub struct Fd(ManuallyDrop<OwnedFd>);

impl Fd {
    /// Takes over `fd`.
    ///
    /// # Safety
    /// `fd` must be open and nobody else's to close.
    #[must_use]
    pub unsafe fn from_raw(fd: RawFd) -> Self {
        // SAFETY: the caller's word.
        Self(ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Gives the number up without closing it.
    #[must_use]
    pub fn into_raw(self) -> RawFd {
        let number = self.0.as_raw_fd();
        core::mem::forget(self);
        number
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Self {
        Self(ManuallyDrop::new(fd))
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        let fd = unsafe { ManuallyDrop::take(&mut self.0) };
        close_raw(fd.into_raw_fd());
    }
}

/// Closes a number by a direct system call.
pub(crate) fn close_raw(fd: RawFd) {
    // SAFETY: every caller owns the descriptor that it passes.
    unsafe { rustix::io::close(fd) }
}

/// Moves `fd` to a high, close-on-exec number, so that the program keeps getting the lowest numbers for its own
/// files, as POSIX promises and programs expect. Falls back to lower numbers when the limit leaves no room.
pub(crate) fn move_high(fd: Fd) -> Result<Fd, Errno> {
    let mut minimum = high_numbers_from();
    loop {
        match rustix::io::fcntl_dupfd_cloexec(&fd, minimum) {
            Ok(high) => return Ok(Fd::from(high)),
            Err(Errno::MFILE | Errno::INVAL) if minimum > 64 => minimum /= 2,
            Err(e) => return Err(e),
        }
    }
}

/// The upper quarter of the numbers that the soft limit allows, but not beyond 16,000: the kernel's table of
/// descriptors is as long as the highest number, and fork copies it.
pub(crate) fn high_numbers_from() -> RawFd {
    const MOST: u64 = 16_000;
    let soft = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    RawFd::try_from((soft - soft / 4).min(MOST)).unwrap_or(0)
}

/// A moment, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub u64);

impl Deadline {
    /// `duration` from now.
    #[must_use]
    pub fn after(duration: core::time::Duration) -> Self {
        Self(now_ns().saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    read_clock(libc::CLOCK_MONOTONIC)
}

/// CLOCK_MONOTONIC at the resolution of the kernel's tick (1 to 10 ms), which costs a few nanoseconds to read.
pub(crate) fn coarse_ns() -> u64 {
    read_clock(libc::CLOCK_MONOTONIC_COARSE)
}

/// By the C library, which knows where the vDSO is: rustix looks for it through the auxiliary vector, and crashes under
/// valgrind, which shows one of another program.
fn read_clock(clock: libc::clockid_t) -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the time; both clocks exist, so that it can't fail.
    unsafe { libc::clock_gettime(clock, &raw mut t) };
    (t.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(t.tv_nsec as u64)
}

/// An errno that the other side sent or wrote; EIO for a number that is none.
pub(crate) fn errno(number: u32) -> Errno {
    match number {
        1..=4094 => Errno::from_raw_os_error(number as i32),
        _ => Errno::IO,
    }
}

/// A duration for a system call.
pub(crate) fn timespec(ns: u64) -> Timespec {
    Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as _ }
}

/// Set once the program has put itself under a system call filter (seccomp).
static CONFINED: AtomicBool = AtomicBool::new(false);

/// The program is about to filter its own system calls. Filters of programs that talk over sockets allow what such a
/// program needs itself: read, write, close, poll. From here on waiting keeps to these, because any other call could
/// end the process. What needs more (a new event queue, fork, exec, bind) fails as the filter decides.
pub fn confine() {
    CONFINED.store(true, Ordering::Relaxed);
}

/// Whether [`confine`] was called.
#[must_use]
pub fn is_confined() -> bool {
    CONFINED.load(Ordering::Relaxed)
}

/// Lets whoever shares this core run, unless a filter may forbid to say so.
pub fn yield_now() {
    if is_confined() {
        core::hint::spin_loop();
    } else {
        rustix::thread::sched_yield();
    }
}

/// Waits that get longer: spins, then yields, then naps of 50 µs, so that a lock's holder on the same core, or one of
/// lower priority, gets to run.
pub(crate) struct Patience {
    rounds: u32,
    since: u64,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { rounds: 0, since: 0 }
    }

    /// One more wait; false when `limit_ns` have passed since the first yield.
    pub(crate) fn wait(&mut self, limit_ns: u64) -> bool {
        self.rounds = self.rounds.saturating_add(1);
        match self.rounds {
            0..32 => core::hint::spin_loop(),
            32..64 => yield_now(),
            _ => {
                let now = now_ns();
                if self.since == 0 {
                    self.since = now;
                }
                if now.saturating_sub(self.since) > limit_ns {
                    return false;
                }
                // poll() and not nanosleep(): see `confine`.
                let _ = rustix::event::poll(&mut [], Some(&timespec(50_000)));
            }
        }
        true
    }
}

/// Longest wait for a slot's lock, in nanoseconds. Locks cover a copy of at most a ring's length, so this is only
/// reached when the holder does not run.
const LOCK_WAIT_NS: u64 = 100_000_000;

/// A slot's lock while held.
pub(crate) struct Held<'a>(&'a AtomicU32);

impl<'a> Held<'a> {
    /// Takes `word` for `process`, or EAGAIN when its holder doesn't let go. EBUSY: it is lent, see [`crate::borrow`].
    pub(crate) fn take(word: &'a AtomicU32, process: u32) -> Result<Self, Errno> {
        let mut patience = Patience::new();
        while !lock::try_lock(word, process) {
            if lock::is_lent(word) {
                return Err(Errno::BUSY);
            }
            if !patience.wait(LOCK_WAIT_NS) {
                return Err(Errno::AGAIN);
            }
        }
        Ok(Self(word))
    }
}

impl<'a> Held<'a> {
    /// Keeps it, lent, until [`Self::take_back`].
    pub(crate) fn lend(self, process: u32) {
        lock::lend(self.0, process);
        core::mem::forget(self);
    }

    /// What `process` lent. EINVAL: it lent nothing, or another thread has taken it back.
    pub(crate) fn take_back(word: &'a AtomicU32, process: u32) -> Result<Self, Errno> {
        if lock::take_back(word, process) { Ok(Self(word)) } else { Err(Errno::INVAL) }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        lock::unlock(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_move_up_and_close_on_exec() {
        let low = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let high = move_high(low.into()).unwrap();
        assert!(high.as_raw_fd() >= high_numbers_from());
        assert!(rustix::io::fcntl_getfd(&high).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        let number = high.as_raw_fd();
        drop(high);
        // SAFETY: only asks about a number; nothing is done with it.
        let gone = unsafe { BorrowedFd::borrow_raw(number) };
        assert_eq!(rustix::io::fcntl_getfd(gone).err(), Some(Errno::BADF));
    }

    #[test]
    fn a_lock_that_is_never_opened_ends_in_eagain() {
        let word = AtomicU32::new(0);
        let held = Held::take(&word, 3).unwrap();
        assert_eq!(Held::take(&word, 3).err(), Some(Errno::AGAIN));
        drop(held);
        assert!(Held::take(&word, 4).is_ok());
    }
}
