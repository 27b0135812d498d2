//! epoll over sockets of a client and descriptors of the kernel.
//!
//! ```text
//!   add, change, remove ─▶ sockets: Interests, fed by this instance's event queue
//!                       └▶ descriptors: an epoll instance of the kernel
//!   wait ─▶ what the stack has, then what the kernel has; with neither, sleeps for both
//! ```

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use libc::epoll_event;
use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::{Client, Socket};
use crate::interest::Interests;
use crate::mixed::Mixed;
use crate::sys::{Deadline, Fd};
use crate::waiter::Waiter;

/// What an edge-triggered writer waits for: how often a write found too little room.
pub(super) type Starved = Arc<AtomicU32>;

/// An epoll instance: epoll(7), level- and edge-triggered, one-shot, with any data of 64 bits. Any thread may use it, also
/// while others wait.
///
/// A socket that is closed leaves every instance by itself, as with the kernel's. Events have the kernel's bits.
#[derive(Debug)]
pub struct Epoll(Arc<Shared>);

pub(super) struct Shared {
    client: Client,
    /// None once it is given back.
    waiter: Option<Waiter>,
    /// The kernel's part.
    kernel: OwnedFd,
    /// Wakes threads that sleep here, to look again. Watched by `kernel`.
    kick: Fd,
    sleepers: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    interests: Interests,
    starved: HashMap<u32, Starved>,
    /// Descriptors of the kernel's that were added less those removed. One that is closed goes unnoticed, which costs a
    /// look.
    descriptors: u32,
    buried: bool,
}

impl core::fmt::Debug for Shared {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Epoll").field("waiter", &self.waiter).finish_non_exhaustive()
    }
}

impl Epoll {
    /// epoll_create(2), for sockets of `client`.
    ///
    /// # Errors
    /// EMFILE; ENOSPC: the group has no event queue left; ENETDOWN.
    pub fn new(client: &Client) -> io::Result<Self> {
        let kernel = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?;
        let kick = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = rustix::event::epoll::EventFlags::IN;
        rustix::event::epoll::add(&kernel, &kick, rustix::event::epoll::EventData::new_u64(KICK), flags)?;
        let waiter = Waiter::new(client.session())?;
        Ok(Self(Arc::new(Shared {
            client: client.clone(),
            waiter: Some(waiter),
            kernel,
            kick: Fd::from(kick),
            sleepers: AtomicU32::new(0),
            inner: Mutex::default(),
        })))
    }

    /// epoll_ctl(2) on a socket; `operation` is EPOLL_CTL_ADD, _MOD or _DEL, `event` what to watch for (with EPOLLET,
    /// EPOLLONESHOT, …) and the data to give back.
    ///
    /// # Errors
    /// EEXIST, ENOENT, EFAULT (no event), EINVAL (no such operation; EPOLLEXCLUSIVE where it can't be; a socket of
    /// another client).
    pub fn control(&self, operation: i32, socket: &impl AsRef<Socket>, event: Option<(u32, u64)>) -> io::Result<()> {
        let (shared, socket) = (&*self.0, socket.as_ref());
        if !Arc::ptr_eq(&socket.client.0, &shared.client.0) {
            return Err(Errno::INVAL.into());
        }
        let (session, slot) = (shared.client.session(), socket.slot);
        let mut inner = shared.lock();
        inner.interests.control(slot, 0, operation, event)?;
        if inner.interests.watches(slot) {
            if let Some(waiter) = &shared.waiter {
                waiter.watch(session, slot);
            }
            inner.starved.insert(slot, Arc::clone(&socket.starved));
            socket.watched_by(&self.0);
            // What was there before it was watched is found because it is queued.
            shared.kick();
        } else {
            inner.forget(slot);
            shared.unwatch(slot);
        }
        Ok(())
    }

    /// epoll_ctl(2) on a descriptor of the kernel's.
    ///
    /// # Errors
    /// The kernel's.
    pub fn control_fd(&self, operation: i32, fd: BorrowedFd<'_>, event: Option<(u32, u64)>) -> io::Result<()> {
        use rustix::event::epoll::{self, EventData, EventFlags};
        let shared = &*self.0;
        let (events, data) = event.unwrap_or_default();
        let (flags, data) = (EventFlags::from_bits_retain(events), EventData::new_u64(data));
        let mut inner = shared.lock();
        match (operation, event) {
            (libc::EPOLL_CTL_ADD | libc::EPOLL_CTL_MOD, None) => return Err(Errno::FAULT.into()),
            (libc::EPOLL_CTL_ADD, _) => {
                epoll::add(&shared.kernel, fd, data, flags)?;
                inner.descriptors += 1;
            }
            (libc::EPOLL_CTL_MOD, _) => epoll::modify(&shared.kernel, fd, data, flags)?,
            (libc::EPOLL_CTL_DEL, _) => {
                epoll::delete(&shared.kernel, fd)?;
                inner.descriptors = inner.descriptors.saturating_sub(1);
            }
            _ => return Err(Errno::INVAL.into()),
        }
        Ok(())
    }

    /// epoll_wait(2): fills the front of `out` and returns how many; 0 after `timeout` (None: never).
    ///
    /// # Errors
    /// EINVAL: no room in `out`. EINTR.
    pub fn wait(&self, out: &mut [epoll_event], timeout: Option<Duration>) -> io::Result<usize> {
        if out.is_empty() {
            return Err(Errno::INVAL.into());
        }
        let shared = &*self.0;
        let session = shared.client.session();
        let Some(waiter) = &shared.waiter else { return Err(Errno::BADF.into()) };
        let deadline = timeout.map(|t| if t.is_zero() { Deadline(0) } else { Deadline::after(t) });
        loop {
            let has_kernel = shared.lock().descriptors > 0;
            let mut kernel = [libc::pollfd { fd: shared.kernel.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            let mut found = 0;
            shared.sleepers.fetch_add(1, Ordering::SeqCst);
            let mut look = || {
                if found == 0 {
                    found = shared.collect(waiter, out);
                }
                found > 0
            };
            let mut wait = Mixed { session, waiter, kernel: &mut kernel, has_kernel, look: &mut look };
            let outcome = wait.wait(deadline);
            shared.sleepers.fetch_sub(1, Ordering::SeqCst);
            outcome?;
            if kernel[0].revents != 0 && found < out.len() {
                found += shared.kernel_events(&mut out[found..])?;
            }
            let over = deadline.is_some_and(|d| d.0 <= crate::now_ns());
            if found > 0 || over {
                session.found(found);
                return Ok(found);
            }
        }
    }
}

/// Marks the kick's own events: no address of a program's, and hardly its number.
const KICK: u64 = u64::from_ne_bytes(*b"\xffkicked\xff");

impl Inner {
    fn forget(&mut self, slot: u32) {
        self.starved.remove(&slot);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unwatch(&self, slot: u32) {
        if let Some(waiter) = &self.waiter {
            waiter.unwatch(self.client.session(), slot);
        }
    }

    /// Wakes threads that sleep here.
    fn kick(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
        }
    }

    /// The socket in `slot` is being closed.
    pub(super) fn socket_closed(&self, slot: u32) {
        let mut inner = self.lock();
        inner.interests.forget(slot);
        inner.forget(slot);
        self.unwatch(slot);
    }

    /// A call of this process changed what the socket is ready for.
    pub(super) fn poke(&self, slot: u32) {
        self.lock().interests.mark(slot);
        self.kick();
    }

    /// What the stack has for `out`.
    fn collect(&self, waiter: &Waiter, out: &mut [epoll_event]) -> usize {
        let session = self.client.session();
        let mut inner = self.lock();
        let Inner { interests, starved, buried, .. } = &mut *inner;
        waiter.harvest(session, usize::MAX, |slot| interests.mark(slot));
        if !*buried && !session.is_alive() {
            *buried = true;
            interests.mark_all();
        }
        let found = interests.collect(out, |slot| session.look(slot, starved.get(&slot)?.load(Ordering::Relaxed)));
        // Others that sleep here may have what this call has no room for.
        if found == out.len() && interests.has_queued() && self.sleepers.load(Ordering::SeqCst) > 1 {
            self.kick();
        }
        found
    }

    /// What the kernel has, without our own.
    fn kernel_events(&self, out: &mut [epoll_event]) -> io::Result<usize> {
        use rustix::event::epoll;
        let mut buffer = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        // Room for the kick, which is taken out.
        let most = buffer.len().min(out.len() + 1);
        let n =
            epoll::wait(&self.kernel, &mut buffer[..most], Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let mut found = 0;
        for event in &buffer[..n] {
            let (events, data) = ({ event.flags }.bits(), { event.data }.u64());
            if data == KICK {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.kick, &mut count);
            } else if let Some(place) = out.get_mut(found) {
                *place = epoll_event { events, u64: data };
                found += 1;
            }
        }
        Ok(found)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let session = self.client.session();
        if let Some(waiter) = self.waiter.take() {
            self.lock().interests.each_socket(|slot| waiter.unwatch(session, slot));
            waiter.release(session);
        }
    }
}

impl AsFd for Epoll {
    /// The kernel's part alone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.kernel.as_fd()
    }
}

impl Socket {
    fn watched_by(&self, epoll: &Arc<Shared>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|w| w.strong_count() > 0);
        if !watchers.iter().any(|w| core::ptr::eq(w.as_ptr(), Arc::as_ptr(epoll))) {
            watchers.push(Arc::downgrade(epoll));
        }
    }

    /// Calls `each` with the instances that watch this socket.
    pub(super) fn each_watcher(&self, each: impl FnMut(Arc<Shared>)) {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        watchers.iter().filter_map(Weak::upgrade).for_each(each);
    }
}
