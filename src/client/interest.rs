//! What an epoll instance watches of the stack's sockets, and which of it is ready: pure bookkeeping, no system call.
//!
//! ```text
//!   epoll_ctl ──▶ Interest (socket, descriptor, events, data)
//!                    │ queued: when added or changed, when the engine marked the socket, when this process changed it
//!                    ▼
//!   epoll_wait ──▶ ready queue ── look at the socket ── nothing ──▶ out of the queue, until queued again
//!                                        │ events
//!                                        ├─ level: reported, back to the end of the queue
//!                                        ├─ edge: reported if something is new, out of the queue
//!                                        └─ one-shot: reported, disarmed until changed
//! ```
//!
//! The work of a call is proportional to what is in the queue, never to what is watched.

use core::sync::atomic::Ordering;
use std::collections::VecDeque;

use libc::epoll_event;
use rustix::io::Errno;

use crate::readiness::POLLRDHUP;
use crate::session::Session;

const ET: u32 = libc::EPOLLET as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
/// Reported whether asked for or not.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
/// Bits that are not events.
const FLAGS: u32 = ET | ONESHOT | (libc::EPOLLEXCLUSIVE | libc::EPOLLWAKEUP) as u32;
const IN: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM) as u32;
const OUT: u32 = (libc::EPOLLOUT | libc::EPOLLWRNORM) as u32;

/// `Look::position` of a source whose news can't be told from its position: every mark counts as news.
pub const UNKNOWN: u64 = u64::MAX;

/// What a socket looks like now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Poll bits, which are epoll's bits too.
    pub bits: u32,
    /// End of what arrived: another value means news for EPOLLIN.
    pub position: u64,
    /// How often a write found too little room: another value means that EPOLLOUT is awaited.
    pub starved: u32,
    /// How often something was put on the error queue: another value means news for EPOLLERR.
    pub errors: u32,
}

impl Session {
    /// A look at the socket in `slot`, in which `starved` writes found too little room. None: there is no such slot.
    #[must_use]
    pub fn look(&self, slot: u32, starved: u32) -> Option<Look> {
        let shared = self.region().slot(slot)?;
        let bits = self.readiness(slot);
        // The end of the stream is news as a byte would be, and nothing comes after it.
        let ended = u64::from(bits & POLLRDHUP != 0);
        let position = if self.is_listening(slot) { UNKNOWN } else { shared.rx_tail.load(Ordering::Acquire) + ended };
        Some(Look { bits, position, starved, errors: self.copies_done(slot) })
    }
}

/// What may stand beside EPOLLEXCLUSIVE: epoll_ctl(2).
const EXCLUSIVE_WITH: u32 = (libc::EPOLLIN
    | libc::EPOLLOUT
    | libc::EPOLLERR
    | libc::EPOLLHUP
    | libc::EPOLLWAKEUP
    | libc::EPOLLET
    | libc::EPOLLEXCLUSIVE) as u32;

/// Checks what epoll_ctl(2) is asked to do with `event` (events and data), and what a socket is watched for already.
///
/// # Errors
/// EFAULT: no event. EEXIST, ENOENT. EINVAL: no such operation, or EPOLLEXCLUSIVE where it can't be.
pub fn check(operation: i32, event: Option<(u32, u64)>, watched_for: Option<u32>) -> Result<(), Errno> {
    let exclusive = |events: u32| events & libc::EPOLLEXCLUSIVE as u32 != 0;
    match (operation, event, watched_for) {
        // Only with what a wake-up needs; one-shot and the peer's half are not among it.
        (libc::EPOLL_CTL_ADD, Some((events, _)), _) if exclusive(events) && events & !EXCLUSIVE_WITH != 0 => {
            Err(Errno::INVAL)
        }
        (libc::EPOLL_CTL_MOD, Some((events, _)), before) if exclusive(events) || before.is_some_and(exclusive) => {
            Err(Errno::INVAL)
        }
        (libc::EPOLL_CTL_ADD | libc::EPOLL_CTL_MOD, None, _) => Err(Errno::FAULT),
        (libc::EPOLL_CTL_ADD, _, Some(_)) => Err(Errno::EXIST),
        (libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL, _, None) => Err(Errno::NOENT),
        (libc::EPOLL_CTL_ADD | libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL, _, _) => Ok(()),
        _ => Err(Errno::INVAL),
    }
}

/// One watched descriptor.
struct Interest {
    /// `Socket::id`.
    socket: u32,
    fd: i32,
    events: u32,
    data: u64,
    /// The socket is still undecided and the kernel's epoll watches its placeholder.
    kernel: bool,
    queued: bool,
    live: bool,
    /// Edge: bits that were reported and have been there since.
    seen: u32,
    position: u64,
    starved: u32,
    errors: u32,
    /// Another interest in the same socket through another descriptor, + 1.
    next: u32,
}

/// All of one epoll instance.
#[derive(Default)]
pub struct Interests {
    all: Vec<Interest>,
    free: Vec<u32>,
    /// First interest + 1 by `Socket::id`.
    by_socket: Vec<u32>,
    ready: VecDeque<u32>,
}

impl Interests {
    /// None yet.
    pub const fn new() -> Self {
        Self { all: Vec::new(), free: Vec::new(), by_socket: Vec::new(), ready: VecDeque::new() }
    }

    /// Whether something waits in the ready queue. It may turn out not to be ready.
    pub fn has_queued(&self) -> bool {
        !self.ready.is_empty()
    }

    fn of_socket(&self, socket: u32) -> impl Iterator<Item = u32> + '_ {
        let first = self.by_socket.get(socket as usize).copied().unwrap_or(0);
        core::iter::successors(first.checked_sub(1), |&i| self.all[i as usize].next.checked_sub(1))
    }

    fn find(&self, socket: u32, fd: i32) -> Option<u32> {
        self.of_socket(socket).find(|&i| self.all[i as usize].fd == fd)
    }

    /// Whether `fd` of `socket` is watched, and if so, whether by the kernel still.
    pub fn watched(&self, socket: u32, fd: i32) -> Option<bool> {
        self.find(socket, fd).map(|i| self.all[i as usize].kernel)
    }

    /// What `fd` of `socket` is watched for, flags included.
    pub fn events(&self, socket: u32, fd: i32) -> Option<u32> {
        self.find(socket, fd).map(|i| self.all[i as usize].events)
    }

    /// Whether `socket` is watched through any descriptor.
    pub fn watches(&self, socket: u32) -> bool {
        self.of_socket(socket).next().is_some()
    }

    /// EPOLL_CTL_ADD; the caller has seen that it is not there. `kernel`: the kernel watches it for now.
    pub fn add(&mut self, socket: u32, fd: i32, events: u32, data: u64, kernel: bool) {
        let at = socket as usize;
        if self.by_socket.len() <= at {
            self.by_socket.resize(at + 1, 0);
        }
        let interest = Interest {
            socket,
            fd,
            events: events | ALWAYS,
            data,
            kernel,
            queued: false,
            live: true,
            seen: 0,
            position: UNKNOWN,
            starved: 0,
            errors: 0,
            next: self.by_socket[at],
        };
        let i = match self.free.pop() {
            Some(i) => {
                // Its old place in the ready queue, if there is one, serves the new owner.
                let queued = self.all[i as usize].queued;
                self.all[i as usize] = Interest { queued, ..interest };
                i
            }
            None => {
                self.all.push(interest);
                self.all.len() as u32 - 1
            }
        };
        self.by_socket[at] = i + 1;
        if !kernel {
            self.queue(i);
        }
    }

    /// EPOLL_CTL_MOD. False: not there.
    pub fn change(&mut self, socket: u32, fd: i32, events: u32, data: u64) -> bool {
        let Some(i) = self.find(socket, fd) else { return false };
        let interest = &mut self.all[i as usize];
        (interest.events, interest.data, interest.seen, interest.position) = (events | ALWAYS, data, 0, UNKNOWN);
        if !interest.kernel {
            self.queue(i);
        }
        true
    }

    /// EPOLL_CTL_DEL. False: not there.
    pub fn remove(&mut self, socket: u32, fd: i32) -> bool {
        let Some(i) = self.find(socket, fd) else { return false };
        let next = self.all[i as usize].next;
        let first = &mut self.by_socket[socket as usize];
        if *first == i + 1 {
            *first = next;
        } else {
            let before = self.of_socket(socket).find(|&b| self.all[b as usize].next == i + 1);
            if let Some(before) = before {
                self.all[before as usize].next = next;
            }
        }
        self.all[i as usize].live = false;
        self.free.push(i);
        true
    }

    /// epoll_ctl(2) on a socket of the stack's; `event` is events and data.
    ///
    /// # Errors
    /// As [`check`].
    pub fn control(&mut self, socket: u32, fd: i32, operation: i32, event: Option<(u32, u64)>) -> Result<(), Errno> {
        check(operation, event, self.events(socket, fd))?;
        match (operation, event) {
            (libc::EPOLL_CTL_ADD, Some((events, data))) => self.add(socket, fd, events, data, false),
            (libc::EPOLL_CTL_MOD, Some((events, data))) => {
                self.change(socket, fd, events, data);
            }
            _ => {
                self.remove(socket, fd);
            }
        }
        Ok(())
    }

    /// The socket is gone: so are its interests. Returns how many there were.
    pub fn forget(&mut self, socket: u32) -> usize {
        let mut gone = 0;
        loop {
            let first = self.of_socket(socket).next();
            let Some(i) = first else { break };
            let fd = self.all[i as usize].fd;
            self.remove(socket, fd);
            gone += 1;
        }
        gone
    }

    /// The socket turned out to be the stack's: calls `each` with the descriptors that the kernel watches, which it
    /// shall do no longer.
    pub fn take_over(&mut self, socket: u32, mut each: impl FnMut(i32)) {
        let mine: Vec<u32> = self.of_socket(socket).collect();
        for i in mine {
            let interest = &mut self.all[i as usize];
            if interest.kernel {
                interest.kernel = false;
                each(interest.fd);
            }
            self.queue(i);
        }
    }

    /// Something may have happened to `socket`.
    pub fn mark(&mut self, socket: u32) {
        let mut at = self.by_socket.get(socket as usize).copied().unwrap_or(0);
        while let Some(i) = at.checked_sub(1) {
            at = self.all[i as usize].next;
            if !self.all[i as usize].kernel {
                self.queue(i);
            }
        }
    }

    /// Something happened to all of them.
    pub fn mark_all(&mut self) {
        for i in 0..self.all.len() as u32 {
            if self.all[i as usize].live && !self.all[i as usize].kernel {
                self.queue(i);
            }
        }
    }

    /// Calls `each` with descriptor, events, data, and whether the kernel watches it, of every interest in `socket`.
    pub fn each_of(&self, socket: u32, mut each: impl FnMut(i32, u32, u64, bool)) {
        for i in self.of_socket(socket) {
            let interest = &self.all[i as usize];
            each(interest.fd, interest.events, interest.data, interest.kernel);
        }
    }

    /// Calls `each` with every socket that the stack serves, for a new event queue that has to watch them.
    pub fn each_socket(&self, mut each: impl FnMut(u32)) {
        self.all.iter().filter(|i| i.live && !i.kernel).for_each(|i| each(i.socket));
    }

    fn queue(&mut self, i: u32) {
        let interest = &mut self.all[i as usize];
        if !interest.queued {
            interest.queued = true;
            self.ready.push_back(i);
        }
    }

    /// Fills `out` with what is ready and returns how many. `look` shows a socket, None when it is gone.
    pub fn collect(&mut self, out: &mut [epoll_event], mut look: impl FnMut(u32) -> Option<Look>) -> usize {
        let mut found = 0;
        // Each once: what goes back to the end waits for the next call.
        for _ in 0..self.ready.len() {
            if found == out.len() {
                break;
            }
            let Some(i) = self.ready.pop_front() else { break };
            let interest = &mut self.all[i as usize];
            interest.queued = false;
            if !interest.live || interest.kernel || interest.events & !FLAGS == 0 {
                continue;
            }
            let Some(now) = look(interest.socket) else { continue };
            let bits = now.bits & interest.events & !FLAGS;
            let report = if interest.events & ET != 0 { interest.edge(bits, &now) } else { bits };
            if report == 0 {
                continue;
            }
            out[found] = epoll_event { events: report, u64: interest.data };
            found += 1;
            if interest.events & ONESHOT != 0 {
                // As the kernel does: only the flags stay until EPOLL_CTL_MOD.
                interest.events &= FLAGS;
            } else if interest.events & ET == 0 {
                self.queue(i);
            }
        }
        found
    }

    /// Whether [`Self::collect`] would find something. What isn't ready leaves the queue.
    pub fn is_ready(&mut self, mut look: impl FnMut(u32) -> Option<Look>) -> bool {
        while let Some(&i) = self.ready.front() {
            let interest = &self.all[i as usize];
            let armed = interest.live && !interest.kernel && interest.events & !FLAGS != 0;
            let now = if armed { look(interest.socket) } else { None };
            if now.is_some_and(|now| now.bits & interest.events & !FLAGS != 0) {
                return true;
            }
            self.all[i as usize].queued = false;
            self.ready.pop_front();
        }
        false
    }
}

impl Interest {
    /// What an edge-triggered interest reports: all bits, if one of them is news.
    ///
    /// The engine marks a socket whenever an acknowledgement frees room. The kernel wakes a writer only after a write
    /// found too little room, so a bit that was reported is news again only then.
    fn edge(&mut self, bits: u32, now: &Look) -> u32 {
        let arrived = now.position == UNKNOWN || now.position != self.position;
        let awaited = now.starved != self.starved;
        let mut news = bits & !self.seen;
        if arrived {
            news |= bits & IN;
        }
        if awaited {
            news |= bits & OUT;
        }
        if now.errors != self.errors {
            news |= bits & libc::EPOLLERR as u32;
        }
        self.errors = now.errors;
        self.seen = bits;
        self.position = now.position;
        // The wait goes on while there is no room.
        if bits & OUT != 0 {
            self.starved = now.starved;
        }
        if news != 0 { bits } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: u32 = libc::EPOLLIN as u32;
    const W: u32 = libc::EPOLLOUT as u32;

    fn take(interests: &mut Interests, most: usize, look: impl FnMut(u32) -> Option<Look>) -> Vec<(u64, u32)> {
        let mut out = vec![epoll_event { events: 0, u64: 0 }; most];
        let n = interests.collect(&mut out, look);
        out[..n].iter().map(|e| ({ e.u64 }, { e.events })).collect()
    }

    fn look(bits: u32, position: u64) -> impl Fn(u32) -> Option<Look> {
        move |_| Some(Look { bits, position, starved: 0, errors: 0 })
    }

    #[test]
    fn level_is_reported_until_it_is_over() {
        let mut i = Interests::new();
        i.add(3, 10, R, 77, false);
        assert_eq!(take(&mut i, 8, look(0, 0)), []);
        assert_eq!(take(&mut i, 8, look(R, 1)), [], "not marked, so not looked at");
        i.mark(3);
        i.mark(3);
        assert_eq!(take(&mut i, 8, look(R | W, 1)), [(77, R)]);
        assert_eq!(take(&mut i, 8, look(R, 1)), [(77, R)]);
        assert_eq!(take(&mut i, 8, look(0, 1)), []);
        assert!(!i.has_queued());
    }

    #[test]
    fn edge_is_reported_once_for_each_news() {
        let mut i = Interests::new();
        i.add(0, 4, R | W | ET, 1, false);
        assert_eq!(take(&mut i, 8, look(W, 0)), [(1, W)]);
        assert_eq!(take(&mut i, 8, look(W, 0)), []);
        i.mark(0);
        assert_eq!(take(&mut i, 8, look(W, 0)), [], "an acknowledgement alone is no news");
        i.mark(0);
        assert_eq!(take(&mut i, 8, look(R | W, 5)), [(1, R | W)]);
        i.mark(0);
        assert_eq!(take(&mut i, 8, look(R | W, 9)), [(1, R | W)], "more arrived before the first was read");
        let starved = |bits| move |_| Some(Look { bits, position: 9, starved: 1, errors: 0 });
        i.mark(0);
        assert_eq!(take(&mut i, 8, starved(0)), []);
        i.mark(0);
        assert_eq!(take(&mut i, 8, starved(W)), [(1, W)], "room after a write that found none");
        i.change(0, 4, R | W | ET, 2);
        assert_eq!(take(&mut i, 8, starved(W)), [(2, W)], "a change reports what is there");
    }

    #[test]
    fn a_listener_has_news_with_every_mark() {
        let mut i = Interests::new();
        i.add(0, 4, R | ET, 1, false);
        assert_eq!(take(&mut i, 8, look(R, UNKNOWN)).len(), 1);
        i.mark(0);
        assert_eq!(take(&mut i, 8, look(R, UNKNOWN)).len(), 1);
        assert_eq!(take(&mut i, 8, look(R, UNKNOWN)).len(), 0);
    }

    #[test]
    fn control_refuses_what_epoll_ctl_refuses() {
        let mut i = Interests::new();
        let (add, change, delete) = (libc::EPOLL_CTL_ADD, libc::EPOLL_CTL_MOD, libc::EPOLL_CTL_DEL);
        let exclusive = libc::EPOLLEXCLUSIVE as u32;
        assert_eq!(i.control(1, 0, change, Some((R, 1))), Err(Errno::NOENT));
        assert_eq!(i.control(1, 0, delete, None), Err(Errno::NOENT));
        assert_eq!(i.control(1, 0, add, None), Err(Errno::FAULT));
        assert_eq!(i.control(1, 0, 9, Some((R, 1))), Err(Errno::INVAL));
        assert_eq!(i.control(1, 0, add, Some((R | exclusive | ONESHOT, 1))), Err(Errno::INVAL));
        assert_eq!(i.control(1, 0, add, Some((R | exclusive, 1))), Ok(()));
        assert_eq!(i.control(1, 0, change, Some((R, 1))), Err(Errno::INVAL));
        assert_eq!(i.control(1, 0, add, Some((R, 1))), Err(Errno::EXIST));
        assert_eq!(i.control(1, 0, delete, None), Ok(()));
        assert_eq!((i.control(1, 0, add, Some((R, 1))), i.control(1, 0, change, Some((W, 2)))), (Ok(()), Ok(())));
        assert_eq!(take(&mut i, 8, look(R | W, 1)), [(2, W)]);
    }

    #[test]
    fn one_shot_stays_silent_until_changed() {
        let mut i = Interests::new();
        i.add(0, 4, R | ONESHOT, 1, false);
        assert_eq!(take(&mut i, 8, look(R, 1)).len(), 1);
        i.mark(0);
        assert_eq!(take(&mut i, 8, look(R | ALWAYS, 2)).len(), 0);
        assert!(i.change(0, 4, R | ONESHOT, 1));
        assert_eq!(take(&mut i, 8, look(R, 2)).len(), 1);
    }

    #[test]
    fn the_queue_turns_so_that_all_get_their_turn() {
        let mut i = Interests::new();
        (0..4).for_each(|s| i.add(s, s as i32, R, u64::from(s), false));
        let two = |i: &mut Interests| take(i, 2, look(R, 0)).into_iter().map(|e| e.0).collect::<Vec<_>>();
        assert_eq!([two(&mut i), two(&mut i), two(&mut i)], [[0, 1], [2, 3], [0, 1]]);
    }

    #[test]
    fn errors_are_reported_unasked_and_two_descriptors_are_two_interests() {
        let mut i = Interests::new();
        i.add(9, 20, R, 1, false);
        i.add(9, 21, W, 2, false);
        assert_eq!(take(&mut i, 8, look(ALWAYS, 0)), [(1, ALWAYS), (2, ALWAYS)]);
        assert!(i.remove(9, 20) && !i.remove(9, 20));
        assert_eq!(take(&mut i, 8, look(R | W, 0)), [(2, W)]);
        assert_eq!(i.forget(9), 1);
        assert!(!i.watches(9));
        assert_eq!(take(&mut i, 8, look(R | W, 0)), []);
    }

    #[test]
    fn an_undecided_socket_moves_over_when_it_is_decided() {
        let mut i = Interests::new();
        i.add(2, 5, R, 1, true);
        i.mark(2);
        assert_eq!(take(&mut i, 8, look(R, 0)), []);
        assert_eq!(i.watched(2, 5), Some(true));
        let mut fds = vec![];
        i.take_over(2, |fd| fds.push(fd));
        assert_eq!((fds, i.watched(2, 5)), (vec![5], Some(false)));
        assert!(i.is_ready(look(R, 0)));
        assert_eq!(take(&mut i, 8, look(R, 0)).len(), 1);
        assert!(!i.is_ready(look(0, 0)) && !i.has_queued());
    }

    #[test]
    fn a_place_that_is_used_again_in_the_queue_serves_its_new_owner_once() {
        let mut i = Interests::new();
        i.add(1, 7, R, 1, false);
        assert!(i.remove(1, 7));
        i.add(2, 8, R, 2, false);
        assert_eq!(take(&mut i, 8, look(R, 0)), [(2, R)]);
    }
}
