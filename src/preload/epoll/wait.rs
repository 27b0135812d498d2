//! epoll_wait: what the stack has, what the kernel has, and sleeping for both.

use core::ffi::c_int;
use core::sync::atomic::Ordering;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{epoll_event, sigset_t};
use sidestep_client::{Resting, Session, now_ns};

use super::{BELL, CONTROL, Epoll, Inner, KICK, Nested, look, mark};
use crate::engine;
use crate::errno::{self, Errno};
use crate::table::lock;
use crate::{real, socket};

/// Longest sleep in one piece, in milliseconds: then the engine's heartbeat is looked at.
const NAP_MS: u64 = 1000;
/// While the stack keeps a program busy, the kernel's descriptors are looked at every so many calls, and after so many
/// nanoseconds: a system call is dear beside a look at the stack.
const KERNEL_EVERY: u32 = 16;
const KERNEL_EVERY_NS: u64 = 100_000;
/// How often a spinning wait looks at the kernel's descriptors, in nanoseconds.
const LOOK_EVERY_NS: u64 = 3_000;

impl Inner {
    /// Whether to look at the kernel's descriptors, having found `found` events of the stack.
    fn kernel_is_due(&mut self, found: usize) -> bool {
        let now = now_ns();
        self.calls += 1;
        let due = found == 0 || self.calls >= KERNEL_EVERY || now.saturating_sub(self.looked_ns) >= KERNEL_EVERY_NS;
        if due {
            (self.calls, self.looked_ns) = (0, now);
        }
        due
    }
}

impl Epoll {
    /// Whether waits are the kernel's alone (until something of the stack is added).
    pub fn is_plain(&self) -> bool {
        self.ours.load(Ordering::Acquire) == 0
    }

    /// Takes what the engine marked into the queue. Returns the session if there is one to speak of.
    fn harvest(&self, inner: &mut Inner, epfd: c_int) -> Option<&'static Session> {
        let session = engine::session()?;
        if inner.wired.is_some() && inner.wired != Some(engine::epoch()) {
            // No event queue: what is in the interest list is looked at when it is marked by this process only.
            let _ = self.wire(inner, session, epfd);
        }
        let Inner { interests, waiter, buried, news, .. } = inner;
        if let Some(waiter) = waiter.existing() {
            waiter.harvest(session, usize::MAX, |slot| {
                if let Some(id) = socket::id_of_slot(slot) {
                    interests.mark(id);
                    *news += 1;
                }
            });
        }
        if !*buried && !session.is_alive() {
            *buried = true;
            interests.mark_all();
        }
        Some(session)
    }

    /// What the stack has for `out`.
    fn collect(&self, inner: &mut Inner, epfd: c_int, out: &mut [epoll_event]) -> usize {
        let Some(session) = self.harvest(inner, epfd) else { return 0 };
        let mut found = inner.interests.collect(out, |id| look(session, id));
        for nested in &mut inner.nested {
            let asked = nested.events & libc::EPOLLIN as u32 != 0;
            if found == out.len() || !asked {
                continue;
            }
            let Some(news) = nested.epoll.ready_news() else { continue };
            if nested.events & libc::EPOLLET as u32 != 0 && nested.seen == news {
                continue;
            }
            nested.seen = news;
            if nested.events & libc::EPOLLONESHOT as u32 != 0 {
                nested.events = 0;
            }
            out[found] = epoll_event { events: libc::EPOLLIN as u32, u64: nested.data };
            found += 1;
        }
        found
    }

    /// Whether a wait would find something of the stack. For poll() on the epoll descriptor.
    pub fn has_ready(&self) -> bool {
        self.ready_news().is_some()
    }

    /// If a wait would find something of the stack: how much has happened here.
    fn ready_news(&self) -> Option<u64> {
        if self.is_plain() {
            return None;
        }
        let mut inner = lock(&self.inner);
        let epfd = self.fd.load(Ordering::Relaxed);
        let session = self.harvest(&mut inner, epfd)?;
        let ready = inner.interests.is_ready(|id| look(session, id));
        // The kernel has seen to it that instances do not contain each other in a circle, and locks are taken inwards.
        let within = inner.nested.iter().filter(|n| n.events & libc::EPOLLIN as u32 != 0);
        let (mut news, mut any) = (inner.news, ready);
        for deeper in within.filter_map(|n| n.epoll.ready_news()) {
            (news, any) = (news + deeper, true);
        }
        any.then_some(news)
    }

    /// Asks for the doorbells of this instance and those within it, which make the epoll descriptor readable, and adds
    /// to `armed` what [`Self::disarm`] has to take back. False: there is something already.
    pub fn arm(&'static self, armed: &mut Vec<&'static Self>) -> bool {
        let within: Vec<&'static Self> = lock(&self.inner).nested.iter().map(|n| n.epoll).collect();
        if !within.into_iter().all(|deeper| deeper.arm(armed)) || !self.arm_own() {
            return false;
        }
        armed.push(self);
        true
    }

    fn arm_own(&self) -> bool {
        let mut inner = lock(&self.inner);
        match (engine::session(), inner.waiter.existing()) {
            (Some(session), Some(waiter)) => {
                let armed = waiter.prepare_sleep(session);
                if armed {
                    self.sleepers.fetch_add(1, Ordering::SeqCst);
                }
                armed
            }
            _ => {
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                true
            }
        }
    }

    /// Takes that back.
    pub fn disarm(&self) {
        let mut inner = lock(&self.inner);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        if let (Some(session), Some(waiter)) = (engine::session(), inner.waiter.existing()) {
            waiter.awake(session);
        }
    }

    /// epoll_wait(2) and its kin. `timeout_ns` None: for ever.
    ///
    /// # Errors
    /// Linux's.
    pub fn wait(
        &'static self,
        epfd: c_int,
        out: &mut [epoll_event],
        timeout_ns: Option<u64>,
        mask: *const sigset_t,
    ) -> Result<usize, Errno> {
        let deadline = timeout_ns.filter(|&t| t > 0).map(|t| now_ns().saturating_add(t));
        let mut spun = false;
        loop {
            let plain = self.is_plain();
            if !plain {
                if let Some(session) = engine::session() {
                    session.turn();
                }
                let found = self.take(epfd, out, mask)?;
                if found > 0 || timeout_ns == Some(0) {
                    return Ok(found);
                }
                if !spun && mask.is_null() {
                    spun = true;
                    if self.spin(epfd, deadline) {
                        continue;
                    }
                }
            }
            let left_ms = match (timeout_ns, deadline) {
                (Some(0), _) => 0,
                (_, Some(deadline)) => deadline.saturating_sub(now_ns()).div_ceil(1_000_000),
                _ => u64::MAX,
            };
            let nap = if plain { left_ms.min(i32::MAX as u64) } else { left_ms.min(NAP_MS) };
            let nap = if nap == i32::MAX as u64 { -1 } else { nap as c_int };
            let found = self.sleep(epfd, out, (nap, plain), mask)?;
            if found > 0 || left_ms == 0 {
                return Ok(found);
            }
        }
    }

    /// Takes what is there, without sleeping.
    fn take(&self, epfd: c_int, out: &mut [epoll_event], mask: *const sigset_t) -> Result<usize, Errno> {
        let mut inner = lock(&self.inner);
        let mut found = self.collect(&mut inner, epfd, out);
        let kernel = inner.kernel > 0 && inner.kernel_is_due(found);
        // Others that sleep here may have what this call has no room for.
        if found == out.len() && inner.interests.has_queued() {
            self.kick(&inner);
        }
        let nested = inner.nested.clone();
        drop(inner);
        if let Some(session) = engine::session() {
            session.found(found);
        }
        if kernel && found < out.len() {
            match kernel_events(epfd, &mut out[found..], 0, mask) {
                Ok(more) => found = without_repeats(out, found, found + more.events, &nested),
                Err(error) if found == 0 => return Err(error),
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Looks for a while. True: there may be something.
    fn spin(&self, epfd: c_int, deadline: Option<u64>) -> bool {
        let Some(session) = engine::session() else { return false };
        let start = now_ns();
        let end = start.saturating_add(session.spin().as_nanos() as u64).min(deadline.unwrap_or(u64::MAX));
        let (queue, kernel) = {
            let mut inner = lock(&self.inner);
            let kernel = inner.kernel > 0;
            let Some(waiter) = inner.waiter.existing() else { return false };
            (waiter.queue(), kernel)
        };
        let Some(shared) = session.region().event_queue(queue) else { return false };
        let mut looked = start;
        loop {
            if !shared.dirty.is_empty() {
                return true;
            }
            let now = now_ns();
            if now >= end {
                return false;
            }
            // On few cores the engine shares this one: nothing can come before it has run.
            session.pause();
            if kernel && now - looked >= LOOK_EVERY_NS {
                // SAFETY: the caller's epoll descriptor; only polled.
                let epoll = unsafe { BorrowedFd::borrow_raw(epfd) };
                // The kernel's descriptors count too: one look at the epoll as a whole.
                let mut fds = [rustix::event::PollFd::from_borrowed_fd(epoll, rustix::event::PollFlags::IN)];
                let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                if rustix::event::poll(&mut fds, Some(&zero)) == Ok(1) {
                    return false;
                }
                looked = now_ns();
            }
        }
    }

    /// Sleeps in the kernel, `nap` milliseconds at most, and takes what woke it.
    fn sleep(
        &'static self,
        epfd: c_int,
        out: &mut [epoll_event],
        (nap, plain): (c_int, bool),
        mask: *const sigset_t,
    ) -> Result<usize, Errno> {
        let mut armed = Vec::new();
        if !self.arm(&mut armed) {
            armed.into_iter().for_each(Self::disarm);
            return Ok(0);
        }
        // Something was added to the queue by another thread before this one counted as a sleeper.
        let missed = plain != self.is_plain() || lock(&self.inner).interests.has_queued();
        let rest = if missed || plain { None } else { engine::session().map(Session::rest) };
        let outcome = match &rest {
            Some(rest) if rest.has_work() => kernel_events(epfd, out, 0, mask),
            Some(rest) => match rest.wake() {
                Some(wake) => {
                    sleep_for_shards(epfd, wake, (nap, rest), mask).and_then(|()| kernel_events(epfd, out, 0, mask))
                }
                None => kernel_events(epfd, out, nap, mask),
            },
            None => kernel_events(epfd, out, if missed { 0 } else { nap }, mask),
        };
        if let (Some(rest), Some(session)) = (rest, engine::session()) {
            drop(rest);
            session.turn();
        }
        armed.into_iter().for_each(Self::disarm);
        let events = match outcome {
            Ok(events) => events,
            Err(error) => {
                // A signal doesn't hide what the stack has.
                let mut inner = lock(&self.inner);
                let found = self.collect(&mut inner, epfd, out);
                return if found > 0 { Ok(found) } else { Err(error) };
            }
        };
        if events.hung_up
            && let Some(session) = engine::session()
        {
            session.check_control();
        }
        let mut found = events.events;
        if !self.is_plain() && found < out.len() {
            let mut inner = lock(&self.inner);
            let more = self.collect(&mut inner, epfd, &mut out[found..]);
            found = without_repeats(out, found, found + more, &inner.nested);
            if inner.interests.has_queued() {
                self.kick(&inner);
            }
        }
        Ok(found)
    }
}

/// Sleeps until the instance has something, or the shards of the engine in this process have.
fn sleep_for_shards(
    epfd: c_int,
    wake: BorrowedFd<'_>,
    (ms, rest): (c_int, &Resting<'_>),
    mask: *const sigset_t,
) -> Result<(), Errno> {
    let wanted = if ms < 0 { u64::MAX } else { u64::from(ms.cast_unsigned()) * 1_000_000 };
    let ns = rest.limit(wanted);
    let time = libc::timespec { tv_sec: (ns / 1_000_000_000) as _, tv_nsec: (ns % 1_000_000_000) as _ };
    let time = if ns == u64::MAX { core::ptr::null() } else { &raw const time };
    let member = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds = [member(epfd), member(wake.as_raw_fd())];
    // SAFETY: the array's own length; the time lives; the mask is the program's.
    let n = unsafe { real::ppoll(fds.as_mut_ptr(), fds.len() as _, time, mask) };
    if n < 0 { Err(Errno(errno::get())) } else { Ok(()) }
}

/// What the kernel's epoll_wait found.
#[derive(Default)]
struct Found {
    /// Events of the program's, at the front of the buffer.
    events: usize,
    /// The engine's connection ended.
    hung_up: bool,
}

/// The kernel's epoll_wait, our own events taken out.
fn kernel_events(epfd: c_int, out: &mut [epoll_event], ms: c_int, mask: *const sigset_t) -> Result<Found, Errno> {
    // SAFETY: the buffer's own length; the mask is the program's.
    let n = unsafe { real::epoll_pwait(epfd, out.as_mut_ptr(), out.len() as c_int, ms, mask) };
    let n = usize::try_from(n).map_err(|_| Errno(errno::get()))?;
    Ok(take_marked(out, n))
}

/// A nested instance may have something of the stack and something of the kernel's, and is reported once: takes out of
/// `out[first..end]` what `out[..first]` has already. Returns the new end.
fn without_repeats(out: &mut [epoll_event], first: usize, end: usize, nested: &[Nested]) -> usize {
    let mut kept = first;
    for i in first..end {
        let event = out[i];
        let repeated =
            nested.iter().any(|n| n.data == event.u64) && out[..first].iter().any(|e| { e.u64 } == event.u64);
        if !repeated {
            out[kept] = event;
            kept += 1;
        }
    }
    kept
}

/// Takes our own events out of the first `n`, keeping the order.
fn take_marked(out: &mut [epoll_event], n: usize) -> Found {
    let mut found = Found::default();
    for i in 0..n {
        let data = out[i].u64;
        if data == mark(BELL) || data == mark(KICK) || data == mark(CONTROL) {
            found.hung_up |= data == mark(CONTROL);
        } else {
            out[found.events] = out[i];
            found.events += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_events_are_taken_out() {
        let event = |u64| epoll_event { events: 1, u64 };
        let mut out = [event(1), event(mark(BELL)), event(2), event(mark(CONTROL)), event(mark(KICK)), event(3)];
        let found = take_marked(&mut out, 6);
        assert_eq!((found.events, found.hung_up), (3, true));
        assert_eq!(out[..3].iter().map(|e| { e.u64 }).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
