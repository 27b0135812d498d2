//! Waiting for sockets of the stack and descriptors of the kernel at once.

use std::os::fd::BorrowedFd;

use libc::pollfd;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::session::Session;
use crate::sys::{Deadline, now_ns, timespec};
use crate::waiter::{NAP_NS, Waiter};

/// How often a spinning wait looks at the kernel's descriptors, in nanoseconds: a system call is dear beside a look at
/// the stack.
const LOOK_EVERY_NS: u64 = 3_000;

/// What a wait is for.
pub(crate) struct Mixed<'a> {
    pub session: &'a Session,
    /// Watches what [`Self::look`] looks at.
    pub waiter: &'a Waiter,
    /// The kernel's part, with its answers after the wait. Entries below 0 are skipped.
    pub kernel: &'a mut [pollfd],
    /// Whether the kernel's part can have anything before this sleeps.
    pub has_kernel: bool,
    /// Harvests the waiter, and says whether the stack's part has something.
    pub look: &'a mut dyn FnMut() -> bool,
}

impl Mixed<'_> {
    /// Waits until either part has something, or `deadline` has passed.
    ///
    /// # Errors
    /// EINTR: a signal handler ran while this slept. What poll(2) gives.
    pub fn wait(&mut self, deadline: Option<Deadline>) -> Result<(), Errno> {
        self.session.turn();
        let found = (self.look)();
        if self.now()? || found || deadline.is_some_and(|d| d.0 == 0) || self.spin(deadline)? {
            return Ok(());
        }
        loop {
            self.session.turn();
            if (self.look)() {
                return self.now().map(drop);
            }
            let left = deadline.map_or(NAP_NS, |d| d.0.saturating_sub(now_ns()).min(NAP_NS));
            if left == 0 {
                return self.now().map(drop);
            }
            if !self.waiter.prepare_sleep(self.session) {
                continue;
            }
            let outcome = self.sleep(left);
            self.waiter.awake(self.session);
            match outcome {
                Ok(ready) if ready => {
                    (self.look)();
                    return Ok(());
                }
                Ok(_) => {}
                // A signal doesn't hide what there is.
                Err(error) => return if (self.look)() { Ok(()) } else { Err(error) },
            }
        }
    }

    /// Looks for a while. True: there is something.
    fn spin(&mut self, deadline: Option<Deadline>) -> Result<bool, Errno> {
        let start = now_ns();
        let end = start.saturating_add(self.session.spin().as_nanos() as u64).min(deadline.map_or(u64::MAX, |d| d.0));
        let mut looked = start;
        loop {
            let now = now_ns();
            if now >= end {
                return Ok(false);
            }
            self.session.pause();
            if (self.look)() {
                return self.now().map(|_| true);
            }
            if now - looked >= LOOK_EVERY_NS {
                if self.now()? {
                    return Ok(true);
                }
                looked = now;
            }
        }
    }

    /// Looks at the kernel's part.
    fn now(&mut self) -> Result<bool, Errno> {
        if !self.has_kernel {
            return Ok(false);
        }
        let mut all = Vec::with_capacity(self.kernel.len());
        self.borrow(&mut all);
        rustix::event::poll(&mut all, Some(&timespec(0)))?;
        Ok(answer(self.kernel, &all))
    }

    /// Sleeps; whether the kernel's part has something.
    fn sleep(&mut self, ns: u64) -> Result<bool, Errno> {
        let rest = self.session.rest();
        let ns = if rest.has_work() { 0 } else { rest.limit(ns) };
        let mut all = Vec::with_capacity(self.kernel.len() + 3);
        self.borrow(&mut all);
        let own = all.len();
        all.push(PollFd::from_borrowed_fd(self.waiter.fd(), PollFlags::IN));
        all.push(PollFd::from_borrowed_fd(self.session.control(), PollFlags::empty()));
        if let Some(wake) = rest.wake() {
            all.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
        }
        rustix::event::poll(&mut all, Some(&timespec(ns)))?;
        if all[own + 1].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            self.session.mark_dead();
        }
        Ok(answer(self.kernel, &all))
    }

    fn borrow<'f>(&self, all: &mut Vec<PollFd<'f>>) {
        for one in self.kernel.iter().filter(|p| p.fd >= 0) {
            // SAFETY: only polled, in the call that follows; a number that is not open gives POLLNVAL.
            let fd: BorrowedFd<'f> = unsafe { BorrowedFd::borrow_raw(one.fd) };
            all.push(PollFd::from_borrowed_fd(fd, PollFlags::from_bits_retain(one.events.cast_unsigned())));
        }
    }
}

/// Writes the answers to where they were asked.
fn answer(kernel: &mut [pollfd], all: &[PollFd<'_>]) -> bool {
    let mut any = false;
    for (one, asked) in kernel.iter_mut().filter(|p| p.fd >= 0).zip(all) {
        one.revents = asked.revents().bits().cast_signed();
        any |= one.revents != 0;
    }
    any
}
