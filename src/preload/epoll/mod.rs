//! epoll over any mix of the stack's sockets and the kernel's descriptors.
//!
//! ```text
//!   program's epoll descriptor = a real one of the kernel
//!      ├─ kernel descriptors: watched by the kernel
//!      ├─ bell: the doorbell of this instance's event queue          ─┐
//!      ├─ kick: an eventfd, to wake threads that sleep here           ├─ events with these are taken out again
//!      └─ control: hangs up when the engine is gone                  ─┘
//!   stack sockets: `Interests`, fed by the event queue
//! ```
//!
//! A wait first takes what the stack has, looks at the kernel now and then, spins a little, and then sleeps in the
//! kernel's epoll_wait with the doorbell asked for. While no socket of the stack is watched it is the kernel's call and
//! nothing else.
//!
//! Bell and kick are edge-triggered: one wake-up each, and a copy of the instance in a forked child that adds its own
//! does not keep the parent awake.
//!
//! Locks: an instance's own, for as long as it takes to look through its queue; never while sleeping.

mod wait;

use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard};

use libc::epoll_event;
use sidestep_client::interest::{self, Interests, Look};
use sidestep_client::{Fd, Session};

use crate::engine::{self, OwnWaiter};
use crate::errno::{self, Errno};
use crate::real;
use crate::socket::{self, Socket};
use crate::table::{self, Entry, lock};

/// Addresses of this library stand for our own descriptors in the kernel's events: no program's data can be one.
static MARKS: [u8; 3] = [0; 3];
const BELL: usize = 0;
const KICK: usize = 1;
const CONTROL: usize = 2;

fn mark(which: usize) -> u64 {
    core::ptr::from_ref(&MARKS[which]) as u64
}

/// One instance: what dup() of its descriptor shares. Never freed, only used again.
#[repr(align(64))]
pub struct Epoll {
    /// A descriptor of this process that stands for it.
    fd: AtomicI32,
    refs: AtomicU32,
    /// Interests that the stack serves, and nested instances: with none, waits are the kernel's alone.
    ours: AtomicUsize,
    /// Threads in the kernel's epoll_wait.
    sleepers: AtomicU32,
    inner: Mutex<Inner>,
}

struct Inner {
    interests: Interests,
    waiter: OwnWaiter,
    kick: Option<Fd>,
    /// Which process's own descriptors are in the kernel's epoll ([`engine::epoch`]), if any are.
    wired: Option<u32>,
    /// Kernel descriptors added less those removed. Closing one goes unnoticed, which only costs a look.
    kernel: u32,
    /// Calls since the kernel's descriptors were looked at, and when that was.
    calls: u32,
    looked_ns: u64,
    nested: Vec<Nested>,
    /// Grows whenever something happened to one of the stack's sockets here: what edges of an outer instance follow.
    news: u64,
    /// All were told that the engine is gone.
    buried: bool,
}

/// Another instance that is watched by this one.
#[derive(Clone, Copy)]
struct Nested {
    epoll: &'static Epoll,
    fd: c_int,
    events: u32,
    data: u64,
    /// `Inner::news` of it when it was reported last.
    seen: u64,
}

struct Pool {
    all: Vec<&'static Epoll>,
    free: Vec<&'static Epoll>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { all: Vec::new(), free: Vec::new() });

/// Calls `each` with every instance of this process.
pub fn each(each: impl FnMut(&'static Epoll)) {
    let all = lock(&POOL).all.clone();
    all.into_iter().filter(|e| e.refs.load(Ordering::Relaxed) > 0).for_each(each);
}

/// Holds every instance still: around fork. The child must not find one locked by a thread that it doesn't have.
pub fn hold_all() -> impl Sized {
    let pool = lock(&POOL);
    let instances = pool.all.iter().map(|e| lock(&e.inner)).collect();
    Held { _instances: instances, _pool: pool }
}

struct Held {
    _instances: Vec<MutexGuard<'static, Inner>>,
    _pool: MutexGuard<'static, Pool>,
}

/// A look at a socket of the stack.
fn look(session: &Session, id: u32) -> Option<Look> {
    let socket = socket::by_id(id)?;
    let slot = socket.claimed()?;
    session.look(slot, socket.starved.load(Ordering::Relaxed))
}

/// A new instance for the descriptor `fd`.
pub fn created(fd: c_int) {
    if engine::settings().is_none() {
        return;
    }
    let mut pool = lock(&POOL);
    let epoll = pool.free.pop().unwrap_or_else(|| {
        let fresh: &'static Epoll = Box::leak(Box::new(Epoll {
            fd: AtomicI32::new(-1),
            refs: AtomicU32::new(0),
            ours: AtomicUsize::new(0),
            sleepers: AtomicU32::new(0),
            inner: Mutex::new(Inner {
                interests: Interests::new(),
                waiter: OwnWaiter::none(),
                kick: None,
                wired: None,
                kernel: 0,
                calls: 0,
                looked_ns: 0,
                nested: Vec::new(),
                news: 0,
                buried: false,
            }),
        }));
        pool.all.push(fresh);
        fresh
    });
    drop(pool);
    epoll.fd.store(fd, Ordering::Relaxed);
    epoll.refs.store(1, Ordering::Release);
    if !socket::install(fd, Entry::Epoll(epoll)) {
        epoll.unshare();
    }
}

impl Inner {
    fn clear(&mut self) {
        if let Some(session) = engine::session()
            && let Some(waiter) = self.waiter.existing()
        {
            self.interests.each_socket(|id| {
                if let Some(slot) = socket::by_id(id).and_then(Socket::claimed) {
                    waiter.unwatch(session, slot);
                }
            });
        }
        self.waiter.release();
        drop_kick(&mut self.kick);
        self.interests = Interests::new();
        self.nested.clear();
        (self.wired, self.kernel, self.buried) = (None, 0, false);
    }
}

impl Epoll {
    /// One more descriptor.
    pub fn share(&self) {
        self.refs.fetch_add(1, Ordering::AcqRel);
    }

    /// `closed` no longer stands for it: if it was the one in use here, another that does takes its place.
    pub fn lost(&'static self, closed: c_int) {
        if self.fd.load(Ordering::Relaxed) == closed && self.refs.load(Ordering::Relaxed) > 1 {
            table::each(0, u32::MAX, |fd, entry| {
                if matches!(entry, Entry::Epoll(other) if core::ptr::eq(self, other)) {
                    self.fd.store(fd, Ordering::Relaxed);
                }
            });
        }
    }

    /// One descriptor less; after the last everything is given back.
    pub fn unshare(&'static self) {
        if self.refs.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        lock(&self.inner).clear();
        self.ours.store(0, Ordering::Release);
        self.fd.store(-1, Ordering::Relaxed);
        // Not with the instance locked: a fork takes the pool first.
        lock(&POOL).free.push(self);
    }

    // ---- epoll_ctl ------------------------------------------------------------------------------------------------

    /// epoll_ctl(2) for a socket of the stack, or one that may become one.
    ///
    /// # Errors
    /// Linux's.
    pub fn control(
        &'static self,
        epfd: c_int,
        operation: c_int,
        fd: c_int,
        socket: &'static Socket,
        event: Option<epoll_event>,
    ) -> Result<(), Errno> {
        let mut inner = lock(&self.inner);
        let watched = inner.interests.watched(socket.id, fd);
        let asked = event.map(|e| (e.events, e.u64));
        interest::check(operation, asked, inner.interests.events(socket.id, fd))?;
        match (operation, watched, event) {
            (libc::EPOLL_CTL_ADD, None, Some(event)) => self.add(inner, epfd, fd, socket, event),
            (libc::EPOLL_CTL_MOD, Some(kernel), Some(mut event)) => {
                if kernel {
                    real_control(epfd, libc::EPOLL_CTL_MOD, fd, &mut event)?;
                }
                inner.interests.change(socket.id, fd, event.events, event.u64);
                self.kick(&inner);
                Ok(())
            }
            (libc::EPOLL_CTL_DEL, Some(kernel), _) => {
                if kernel {
                    real_control(epfd, libc::EPOLL_CTL_DEL, fd, &mut epoll_event { events: 0, u64: 0 })?;
                    inner.kernel = inner.kernel.saturating_sub(1);
                } else {
                    self.ours.fetch_sub(1, Ordering::AcqRel);
                }
                inner.interests.remove(socket.id, fd);
                self.unwatch(&mut inner, socket);
                Ok(())
            }
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    fn add(
        &'static self,
        mut inner: MutexGuard<'_, Inner>,
        epfd: c_int,
        fd: c_int,
        socket: &'static Socket,
        mut event: epoll_event,
    ) -> Result<(), Errno> {
        socket.watched_by(self);
        match (socket.claimed(), engine::session()) {
            (Some(slot), Some(session)) => {
                self.wire(&mut inner, session, epfd)?;
                let Some(waiter) = inner.waiter.existing() else { return Err(Errno(libc::ENOSPC)) };
                waiter.watch(session, slot);
                inner.interests.add(socket.id, fd, event.events, event.u64, false);
                self.ours.fetch_add(1, Ordering::AcqRel);
                self.kick(&inner);
            }
            _ => {
                real_control(epfd, libc::EPOLL_CTL_ADD, fd, &mut event)?;
                inner.kernel += 1;
                inner.interests.add(socket.id, fd, event.events, event.u64, true);
            }
        }
        Ok(())
    }

    /// epoll_ctl(2) for a descriptor of the kernel's, after the kernel did it.
    pub fn kernel_changed(&'static self, operation: c_int, fd: c_int, event: Option<epoll_event>) {
        let mut inner = lock(&self.inner);
        match operation {
            libc::EPOLL_CTL_ADD => inner.kernel += 1,
            libc::EPOLL_CTL_DEL => inner.kernel = inner.kernel.saturating_sub(1),
            _ => {}
        }
        let before = inner.nested.len();
        if operation != libc::EPOLL_CTL_ADD {
            inner.nested.retain(|n| n.fd != fd);
        }
        if operation != libc::EPOLL_CTL_DEL
            && let (Some(Entry::Epoll(epoll)), Some(event)) = (table::get(fd), event)
            && !core::ptr::eq(epoll, self)
        {
            inner.nested.push(Nested { epoll, fd, events: event.events, data: event.u64, seen: u64::MAX });
        }
        let after = inner.nested.len();
        self.ours.fetch_add(after, Ordering::AcqRel);
        self.ours.fetch_sub(before, Ordering::AcqRel);
    }

    /// Puts our own descriptors into the kernel's epoll, in this process for the first time.
    fn wire(&self, inner: &mut Inner, session: &Session, epfd: c_int) -> Result<(), Errno> {
        if inner.wired == Some(engine::epoch()) {
            return Ok(());
        }
        // In a forked child: the parent's doorbell and kick stay in the epoll that both share, and are the parent's.
        drop_kick(&mut inner.kick);
        let edge = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let bell = inner.waiter.made(session).ok_or(Errno(libc::ENOSPC))?.fd().as_raw_fd();
        real_control(epfd, libc::EPOLL_CTL_ADD, bell, &mut epoll_event { events: edge, u64: mark(BELL) })?;
        let kick = new_kick()?;
        real_control(epfd, libc::EPOLL_CTL_ADD, kick.as_raw_fd(), &mut epoll_event { events: edge, u64: mark(KICK) })?;
        inner.kick = Some(kick);
        // Replies on the control connection are none of ours; its end is.
        let hangup = &mut epoll_event { events: (libc::EPOLLRDHUP | libc::EPOLLET) as u32, u64: mark(CONTROL) };
        let control = session.control().as_raw_fd();
        match real_control(epfd, libc::EPOLL_CTL_ADD, control, hangup) {
            Ok(()) | Err(Errno(libc::EEXIST)) => {}
            Err(error) => return Err(error),
        }
        // Sockets that the parent's event queue heard of: this process's has to.
        let Inner { interests, waiter, .. } = inner;
        if let Some(waiter) = waiter.existing() {
            interests.each_socket(|id| {
                if let Some(slot) = socket::by_id(id).and_then(Socket::claimed) {
                    waiter.watch(session, slot);
                }
            });
            interests.mark_all();
        }
        inner.wired = Some(engine::epoch());
        Ok(())
    }

    /// No interest in `socket` is left: the engine needs not tell of it.
    fn unwatch(&self, inner: &mut Inner, socket: &Socket) {
        if inner.interests.watches(socket.id) {
            return;
        }
        if let (Some(session), Some(slot), Some(waiter)) =
            (engine::session(), socket.claimed(), inner.waiter.existing())
        {
            waiter.unwatch(session, slot);
        }
    }

    /// The socket was closed.
    pub fn forget(&self, socket: &Socket) {
        let mut inner = lock(&self.inner);
        let stack = socket.claimed().is_some();
        let gone = inner.interests.forget(socket.id);
        if gone == 0 {
            return;
        }
        if stack {
            self.ours.fetch_sub(gone, Ordering::AcqRel);
        } else {
            inner.kernel = inner.kernel.saturating_sub(gone as u32);
        }
        self.unwatch(&mut inner, socket);
    }

    /// The socket is the kernel's: its interests are the kernel's epoll's.
    pub fn passed(&self, socket: &Socket) {
        let mut inner = lock(&self.inner);
        let epfd = self.fd.load(Ordering::Relaxed);
        let mut moved = 0;
        inner.interests.each_of(socket.id, |fd, events, data, kernel| {
            if !kernel {
                let _ = real_control(epfd, libc::EPOLL_CTL_ADD, fd, &mut epoll_event { events, u64: data });
                moved += 1;
            }
        });
        inner.kernel += moved as u32;
        self.ours.fetch_sub(moved, Ordering::AcqRel);
        inner.interests.forget(socket.id);
    }

    /// The socket, undecided until now, has a slot (or another one).
    pub fn decided(&self, socket: &Socket) {
        let mut inner = lock(&self.inner);
        let (Some(session), Some(slot)) = (engine::session(), socket.claimed()) else { return };
        if !inner.interests.watches(socket.id) {
            return;
        }
        let epfd = self.fd.load(Ordering::Relaxed);
        if self.wire(&mut inner, session, epfd).is_err() {
            // Without an event queue it can't be watched: it stays unready here, and calls on it still work.
            return;
        }
        if let Some(waiter) = inner.waiter.existing() {
            waiter.watch(session, slot);
        }
        let mut moved = 0;
        inner.interests.take_over(socket.id, |fd| {
            // Gone already if that descriptor was closed meanwhile.
            let _ = real_control(epfd, libc::EPOLL_CTL_DEL, fd, &mut epoll_event { events: 0, u64: 0 });
            moved += 1;
        });
        inner.kernel = inner.kernel.saturating_sub(moved as u32);
        self.ours.fetch_add(moved, Ordering::AcqRel);
        self.kick(&inner);
    }

    /// This process changed the socket's readiness.
    pub fn poke(&self, socket: &Socket) {
        let mut inner = lock(&self.inner);
        inner.interests.mark(socket.id);
        inner.news += 1;
        self.kick(&inner);
    }

    /// Wakes a thread that sleeps here, to look again.
    fn kick(&self, inner: &Inner) {
        if self.sleepers.load(Ordering::SeqCst) > 0
            && let Some(kick) = &inner.kick
        {
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
    }
}

fn new_kick() -> Result<Fd, Errno> {
    use rustix::event::{EventfdFlags, eventfd};
    let low = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let low = Fd::from(low);
    // As far up as the other descriptors of this library.
    let above = engine::session().map_or(64, |s| s.control().as_raw_fd());
    let kick = match rustix::io::fcntl_dupfd_cloexec(&low, above) {
        Ok(high) => Fd::from(high),
        Err(_) => low,
    };
    table::set_internal(kick.as_raw_fd());
    Ok(kick)
}

fn drop_kick(kick: &mut Option<Fd>) {
    if let Some(kick) = kick.take() {
        table::clear_internal(kick.as_raw_fd());
    }
}

fn real_control(epfd: RawFd, operation: c_int, fd: RawFd, event: &mut epoll_event) -> Result<(), Errno> {
    // SAFETY: a valid event.
    if unsafe { real::epoll_ctl(epfd, operation, fd, event) } == 0 { Ok(()) } else { Err(Errno(errno::get())) }
}
