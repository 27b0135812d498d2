//! poll and select over any mix of the stack's sockets and the kernel's descriptors.
//!
//! A set without a socket of the stack goes to the kernel unchanged. Otherwise: look at the stack's part, look at the
//! kernel's part; with nothing there, spin; then watch the stack's part with the thread's event queue and sleep in the
//! kernel's ppoll over its own part, the queue's doorbell, and the engine's connection.

use core::ffi::{c_int, c_short};
use std::os::fd::AsRawFd;

use libc::{fd_set, pollfd, sigset_t, timespec};
use sidestep_client::{Resting, Session, Waiter, now_ns};

use crate::engine;
use crate::epoll::Epoll;
use crate::errno::{self, Errno};
use crate::real;
use crate::socket::Socket;
use crate::table::{self, Entry};

/// Longest sleep in one piece, in nanoseconds: then the engine's heartbeat is looked at.
const NAP_NS: u64 = 1_000_000_000;
/// How often a spinning wait looks at the kernel's descriptors, in nanoseconds.
const LOOK_EVERY_NS: u64 = 3_000;

/// A member of the set that is not the kernel's alone.
#[derive(Clone, Copy)]
enum Ours {
    Socket(&'static Socket),
    Epoll(&'static Epoll),
}

fn ours(fd: c_int) -> Option<Ours> {
    match table::get(fd)? {
        Entry::Socket(socket) if socket.claimed().is_some() => Some(Ours::Socket(socket)),
        Entry::Epoll(epoll) if !epoll.is_plain() => Some(Ours::Epoll(epoll)),
        _ => None,
    }
}

/// Whether a set of descriptors has a member that is not the kernel's alone.
#[must_use]
pub fn concerns(fds: &[pollfd]) -> bool {
    fds.iter().any(|p| ours(p.fd).is_some())
}

/// ppoll(2). `timeout_ns` None: for ever.
///
/// # Errors
/// Linux's.
pub fn poll(
    session: &'static Session,
    fds: &mut [pollfd],
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> Result<usize, Errno> {
    let deadline = timeout_ns.map(|t| now_ns().saturating_add(t));
    let mine: Vec<(usize, Ours)> = fds.iter().enumerate().filter_map(|(i, p)| Some((i, ours(p.fd)?))).collect();
    // The kernel's part: the stack's sockets are left out by a negative number, epoll instances stay.
    let mut kernel: Vec<pollfd> = fds.to_vec();
    for &(i, ours) in &mine {
        if matches!(ours, Ours::Socket(_)) {
            kernel[i].fd = -1;
        }
    }
    session.turn();
    let mut set = Set { session, fds, mine, has_kernel: kernel.iter().any(|p| p.fd >= 0), kernel };
    if set.look() > 0 || timeout_ns == Some(0) {
        return set.merge(&set.zero(), mask);
    }
    if mask.is_null() && set.spin(deadline)? {
        return Ok(set.count());
    }
    engine::with_waiter(session, |waiter| set.sleep(waiter, deadline, mask))
}

struct Set<'a> {
    session: &'static Session,
    fds: &'a mut [pollfd],
    mine: Vec<(usize, Ours)>,
    kernel: Vec<pollfd>,
    has_kernel: bool,
}

impl Set<'_> {
    /// Fills in what the stack has; how many members are ready.
    fn look(&mut self) -> usize {
        let mut found = 0;
        for &(i, ours) in &self.mine {
            let member = &mut self.fds[i];
            let bits = match ours {
                Ours::Socket(socket) => match socket.claimed() {
                    Some(slot) => self.session.readiness(slot),
                    // Closed by another thread.
                    None => libc::POLLNVAL as u32,
                },
                Ours::Epoll(epoll) => {
                    if epoll.has_ready() {
                        (libc::POLLIN | libc::POLLRDNORM) as u32
                    } else {
                        0
                    }
                }
            };
            let wanted = member.events | libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
            member.revents = bits as c_short & wanted;
            found += usize::from(member.revents != 0);
        }
        found
    }

    fn count(&self) -> usize {
        self.fds.iter().filter(|p| p.revents != 0).count()
    }

    fn zero(&self) -> timespec {
        timespec { tv_sec: 0, tv_nsec: 0 }
    }

    /// Adds what the kernel has, after a sleep of `time` at most, to what [`Self::look`] found.
    fn merge(&mut self, time: &timespec, mask: *const sigset_t) -> Result<usize, Errno> {
        if self.has_kernel || time.tv_sec != 0 || time.tv_nsec != 0 {
            // Without the places of the stack's sockets: ppoll() refuses sets that are longer than RLIMIT_NOFILE.
            let mut set: Vec<pollfd> = self.kernel.iter().copied().filter(|p| p.fd >= 0).collect();
            // SAFETY: the vector's own length; the mask is the program's.
            let n = unsafe { real::ppoll(set.as_mut_ptr(), set.len() as _, time, mask) };
            for (member, asked) in self.kernel.iter_mut().filter(|p| p.fd >= 0).zip(&set) {
                member.revents = asked.revents;
            }
            if n < 0 {
                let error = Errno(errno::get());
                return if self.count_ours() > 0 { Ok(self.count()) } else { Err(error) };
            }
        }
        self.take_kernel();
        Ok(self.count())
    }

    fn count_ours(&self) -> usize {
        self.mine.iter().filter(|&&(i, _)| self.fds[i].revents != 0).count()
    }

    fn take_kernel(&mut self) {
        for (member, kernel) in self.fds.iter_mut().zip(&self.kernel) {
            if kernel.fd >= 0 {
                // An epoll instance may have something of the stack besides what the kernel says.
                let of_stack = if table::is_epoll(kernel.fd) { member.revents } else { 0 };
                member.revents = kernel.revents | of_stack;
            } else if member.fd < 0 {
                member.revents = 0;
            }
        }
    }

    /// Looks for a while. True: something was found.
    fn spin(&mut self, deadline: Option<u64>) -> Result<bool, Errno> {
        let start = now_ns();
        let end = start.saturating_add(self.session.spin().as_nanos() as u64).min(deadline.unwrap_or(u64::MAX));
        let mut looked = start;
        loop {
            let now = now_ns();
            if now >= end {
                return Ok(false);
            }
            if self.look() > 0 {
                return self.merge(&self.zero(), core::ptr::null()).map(|n| n > 0);
            }
            // On few cores the engine shares this one: nothing can come before it has run.
            self.session.pause();
            if now - looked >= LOOK_EVERY_NS {
                if self.has_kernel && self.merge(&self.zero(), core::ptr::null())? > 0 {
                    return Ok(true);
                }
                looked = now_ns();
            }
        }
    }

    fn watch(&self, waiter: &Waiter, on: bool) {
        for &(_, ours) in &self.mine {
            if let Ours::Socket(socket) = ours
                && let Some(slot) = socket.claimed()
            {
                if on {
                    waiter.watch(self.session, slot);
                } else {
                    waiter.unwatch(self.session, slot);
                }
            }
        }
    }

    fn epolls(&self) -> Vec<&'static Epoll> {
        self.mine.iter().filter_map(|&(_, o)| if let Ours::Epoll(e) = o { Some(e) } else { None }).collect()
    }

    /// Sleeps until something is ready; how many are, 0 at the deadline.
    fn sleep(&mut self, waiter: Option<&Waiter>, deadline: Option<u64>, mask: *const sigset_t) -> Result<usize, Errno> {
        let (first, members) = (self.kernel.len(), self.fds.len());
        // A confined program may be down to one descriptor a call; then the engine's heartbeat has to do.
        let control = if sidestep_client::is_confined() { -1 } else { self.session.control().as_raw_fd() };
        self.kernel.push(pollfd { fd: control, events: libc::POLLRDHUP, revents: 0 });
        if let Some(waiter) = waiter {
            self.kernel.push(pollfd { fd: waiter.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 });
            self.watch(waiter, true);
        }
        debug_assert_eq!(first, members);
        let outcome = loop {
            self.session.turn();
            if let Some(waiter) = waiter {
                waiter.harvest(self.session, usize::MAX, |_| ());
            }
            if self.look() > 0 {
                break self.merge(&self.zero(), mask);
            }
            let left = deadline.map_or(NAP_NS, |d| d.saturating_sub(now_ns()).min(NAP_NS));
            // Without an event queue: short naps.
            let left = if waiter.is_none() { left.min(engine::NAP_NS) } else { left };
            let mut armed = Vec::new();
            let ready = !self.epolls().into_iter().all(|e| e.arm(&mut armed))
                || waiter.is_some_and(|w| !w.prepare_sleep(self.session));
            let session = self.session;
            let rest = (!ready).then(|| session.rest());
            let busy = rest.as_ref().is_none_or(Resting::has_work);
            let left = rest.as_ref().map_or(left, |rest| rest.limit(left));
            let time = if busy {
                self.zero()
            } else {
                timespec { tv_sec: (left / 1_000_000_000) as _, tv_nsec: (left % 1_000_000_000) as _ }
            };
            // Last, and only for this sleep.
            let wake = rest.as_ref().and_then(Resting::wake);
            if let Some(wake) = wake {
                self.kernel.push(pollfd { fd: wake.as_raw_fd(), events: libc::POLLIN, revents: 0 });
            }
            let found = if busy { Ok(0) } else { self.merge(&time, mask) };
            if wake.is_some() {
                self.kernel.pop();
            }
            drop(rest);
            if let (Some(waiter), false) = (waiter, ready) {
                waiter.awake(self.session);
            }
            armed.into_iter().for_each(Epoll::disarm);
            let found = match found {
                Ok(found) => found,
                Err(error) if self.look() == 0 => break Err(error),
                Err(_) => break Ok(self.count()),
            };
            if self.kernel[first].revents & (libc::POLLHUP | libc::POLLERR | libc::POLLRDHUP) != 0 {
                self.session.check_control();
            }
            if found > 0 || deadline.is_some_and(|d| d <= now_ns()) {
                self.look();
                self.take_kernel();
                break Ok(self.count());
            }
        };
        if let Some(waiter) = waiter {
            self.watch(waiter, false);
        }
        outcome
    }
}

// ---- select -------------------------------------------------------------------------------------------------------

/// Bits of a word of fd_set.
const BITS: usize = u64::BITS as usize;

/// One of select's three sets, as the words that it is. May be shorter or longer than `fd_set`.
#[derive(Clone, Copy)]
pub struct Bits(*mut u64);

impl Bits {
    /// # Safety
    /// `set` is null or points to as many bits as select is asked about, rounded up to a word.
    #[must_use]
    pub unsafe fn new(set: *mut fd_set) -> Self {
        Self(set.cast())
    }

    fn has(self, fd: usize) -> bool {
        // SAFETY: by `new`'s contract.
        !self.0.is_null() && unsafe { self.0.add(fd / BITS).read_unaligned() } & 1 << (fd % BITS) != 0
    }

    fn clear(self, count: usize) {
        if !self.0.is_null() {
            // SAFETY: by `new`'s contract.
            (0..count.div_ceil(BITS)).for_each(|w| unsafe { self.0.add(w).write_unaligned(0) });
        }
    }

    fn set(self, fd: usize) {
        // SAFETY: by `new`'s contract; only asked about sets that had the bit.
        unsafe {
            let word = self.0.add(fd / BITS);
            word.write_unaligned(word.read_unaligned() | 1 << (fd % BITS));
        }
    }
}

/// What select() means by readable, writable, exceptional: select(2).
const READ: c_short = libc::POLLIN | libc::POLLRDNORM | libc::POLLRDBAND | libc::POLLHUP | libc::POLLERR;
const WRITE: c_short = libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND | libc::POLLERR;
const EXCEPT: c_short = libc::POLLPRI;

/// The members of select's sets as a poll set; None when none of them concerns the stack.
#[must_use]
pub fn selected(count: c_int, sets: [Bits; 3]) -> Option<Vec<pollfd>> {
    let count = usize::try_from(count).ok()?;
    let fds = (0..count).filter(|&fd| sets.iter().any(|s| s.has(fd)));
    if !fds.clone().any(|fd| ours(fd as c_int).is_some()) {
        return None;
    }
    let events = [libc::POLLIN | libc::POLLRDNORM, libc::POLLOUT | libc::POLLWRNORM, libc::POLLPRI];
    let member = |fd: usize| {
        let events = sets.iter().zip(events).filter(|(s, _)| s.has(fd)).fold(0, |all, (_, e)| all | e);
        pollfd { fd: fd as c_int, events, revents: 0 }
    };
    Some(fds.map(member).collect())
}

/// select(2) after its poll: writes the sets, and returns how many bits are set.
///
/// # Errors
/// EBADF: a member is not open.
pub fn answer(count: c_int, sets: [Bits; 3], fds: &[pollfd]) -> Result<c_int, Errno> {
    if fds.iter().any(|p| p.revents & libc::POLLNVAL != 0) {
        return Err(Errno(libc::EBADF));
    }
    let mut total = 0;
    for (set, means) in sets.into_iter().zip([READ, WRITE, EXCEPT]) {
        let ready: Vec<usize> =
            fds.iter().filter(|p| p.revents & means != 0 && set.has(p.fd as usize)).map(|p| p.fd as usize).collect();
        set.clear(count as usize);
        ready.iter().for_each(|&fd| set.set(fd));
        total += ready.len();
    }
    Ok(total as c_int)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn select_sets_are_read_and_written() {
        let mut read = [0b1001u64, 1];
        let mut write = [0b1000u64, 0];
        // SAFETY: 128 bits each.
        let sets = unsafe {
            [
                Bits::new(read.as_mut_ptr().cast()),
                Bits::new(write.as_mut_ptr().cast()),
                Bits::new(core::ptr::null_mut()),
            ]
        };
        assert!(selected(65, sets).is_none(), "none of them is ours");
        let p = |fd, revents| pollfd { fd, events: 0, revents };
        let fds = [p(0, 0), p(3, libc::POLLOUT | libc::POLLIN), p(64, libc::POLLHUP)];
        assert_eq!(answer(65, sets, &fds), Ok(3));
        assert_eq!((read, write), ([0b1000, 1], [0b1000, 0]));
        assert_eq!(answer(65, sets, &[p(5, libc::POLLNVAL)]), Err(Errno(libc::EBADF)));
    }
}
