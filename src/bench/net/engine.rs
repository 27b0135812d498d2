//! Sockets of a running engine, or of one in this process, through the client crate.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sidestep_client::shm::slot::{kind, option};
use sidestep_client::{
    DatagramOptions, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, Session, Waiter, from_wire, now_ns,
};

use super::{Handle, NAP, Net, Ready, Waiting, maybe};

/// Sockets by slot number. All threads of a process share the session; each has its event queue.
pub struct EngineNet {
    session: Arc<Session>,
    waiter: Option<Waiter>,
    waiting: Waiting,
    /// Sockets that are looked at with the next wait although nobody marked them: they may have become ready before
    /// they were watched.
    fresh: Vec<u32>,
}

impl EngineNet {
    /// # Errors
    /// The group has no event queue left, or the engine is gone.
    pub fn new(session: Arc<Session>, waiting: Waiting) -> io::Result<Self> {
        let waiter = Waiter::new(&session)?;
        Ok(Self { session, waiter: Some(waiter), waiting, fresh: Vec::new() })
    }

    fn watch(&mut self, slot: u32) -> Handle {
        if let Some(waiter) = &self.waiter {
            waiter.watch(&self.session, slot);
        }
        self.fresh.push(slot);
        slot
    }

    fn open(&mut self, kind: u32) -> io::Result<u32> {
        Ok(self.session.open(kind)?)
    }

    /// Gives up a socket that could not be set up.
    fn or_close<T>(&self, slot: u32, outcome: Result<T, Errno>) -> io::Result<T> {
        outcome.map_err(|errno| {
            self.session.close(slot);
            errno.into()
        })
    }

    /// What is marked, and what is fresh.
    fn collect(&mut self, ready: &mut Vec<Ready>) {
        let Self { session, waiter, fresh, .. } = self;
        let mut look = |slot| {
            let bits = session.readiness(slot);
            let bad = POLLERR | POLLHUP;
            let found = Ready {
                handle: slot,
                readable: bits & (POLLIN | POLLRDHUP | bad) != 0,
                writable: bits & (POLLOUT | bad) != 0,
                ended: bits & (POLLRDHUP | bad) != 0,
            };
            if found.readable || found.writable {
                ready.push(found);
            }
        };
        fresh.drain(..).for_each(&mut look);
        if let Some(waiter) = waiter {
            waiter.harvest(session, usize::MAX, look);
        }
    }

    /// Looks for as long as the engine recommends. True: something is marked.
    fn look_a_while(&self, until: u64) -> bool {
        let Some(waiter) = &self.waiter else { return false };
        let end = now_ns().saturating_add(self.session.spin().as_nanos() as u64).min(until);
        while now_ns() < end {
            if waiter.is_dirty(&self.session) {
                return true;
            }
            // The engine may share this core, or be this thread's to run.
            self.session.pause();
        }
        false
    }

    fn sleep(&self, until: u64) {
        let Some(waiter) = &self.waiter else { return };
        if !waiter.prepare_sleep(&self.session) {
            return;
        }
        let rest = self.session.rest();
        let left = if rest.has_work() { 0 } else { rest.limit(until.saturating_sub(now_ns())) };
        let limit = Timespec { tv_sec: (left / 1_000_000_000).cast_signed(), tv_nsec: (left % 1_000_000_000) as i64 };
        let mut fds = [
            PollFd::from_borrowed_fd(waiter.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.session.control(), PollFlags::empty()),
            PollFd::from_borrowed_fd(rest.wake().unwrap_or(waiter.fd()), PollFlags::IN),
        ];
        let asked = if rest.wake().is_some() { 3 } else { 2 };
        let polled = left == 0 || poll(&mut fds[..asked], Some(&limit)).is_ok();
        if polled && fds[1].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            self.session.mark_dead();
        }
        drop(rest);
        self.session.turn();
        waiter.awake(&self.session);
    }
}

impl Net for EngineNet {
    fn listen(&mut self, at: SocketAddr) -> io::Result<Handle> {
        let slot = self.open(if at.is_ipv4() { kind::TCP4 } else { kind::TCP6 })?;
        let session = &self.session;
        let bound = session.bind(slot, at, option::REUSE_ADDRESS | option::REUSE_PORT);
        let done = bound.and_then(|_| session.listen(slot, 4096));
        self.or_close(slot, done)?;
        Ok(self.watch(slot))
    }

    fn accept(&mut self, listener: Handle) -> io::Result<Option<Handle>> {
        let Some((slot, _)) = maybe(self.session.accept(listener))? else { return Ok(None) };
        self.session.set_option(slot, option::NO_DELAY, true)?;
        Ok(Some(self.watch(slot)))
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<Handle> {
        let slot = self.open(if to.is_ipv4() { kind::TCP4 } else { kind::TCP6 })?;
        let session = &self.session;
        let done = session.set_option(slot, option::NO_DELAY, true).and_then(|()| session.connect(slot, to));
        self.or_close(slot, done)?;
        Ok(self.watch(slot))
    }

    fn connected(&mut self, handle: Handle) -> io::Result<bool> {
        Ok(self.session.connect_outcome(handle)?)
    }

    fn read(&mut self, handle: Handle, buf: &mut [u8]) -> io::Result<Option<usize>> {
        maybe(self.session.receive(handle, &mut [IoSliceMut::new(buf)], false))
    }

    fn write(&mut self, handle: Handle, buf: &[u8]) -> io::Result<Option<usize>> {
        maybe(self.session.send(handle, &[IoSlice::new(buf)], false))
    }

    fn datagram(&mut self, local: Option<SocketAddr>, peer: Option<SocketAddr>) -> io::Result<Handle> {
        let ipv4 = local.or(peer).is_none_or(|a| a.is_ipv4());
        let slot = self.open(if ipv4 { kind::UDP4 } else { kind::UDP6 })?;
        if let Some(local) = local {
            let done = self.session.bind(slot, local, option::REUSE_PORT);
            self.or_close(slot, done)?;
        }
        if let Some(peer) = peer {
            let done = self.session.connect(slot, peer);
            self.or_close(slot, done)?;
        }
        Ok(self.watch(slot))
    }

    fn receive_from(&mut self, handle: Handle, buf: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        let received = self.session.receive_datagram(handle, &mut [IoSliceMut::new(buf)], false);
        Ok(maybe(received)?.map(|(n, header)| {
            let family = self
                .session
                .region()
                .slot(handle)
                .map_or(kind::UDP4, |s| s.kind.load(std::sync::atomic::Ordering::Relaxed));
            (n, from_wire(family, header.remote, header.remote_port))
        }))
    }

    fn send_to(&mut self, handle: Handle, buf: &[u8], to: Option<SocketAddr>) -> io::Result<Option<usize>> {
        maybe(self.session.send_datagram(handle, &[IoSlice::new(buf)], to, &DatagramOptions::default()))
    }

    fn close(&mut self, handle: Handle) {
        if let Some(waiter) = &self.waiter {
            waiter.unwatch(&self.session, handle);
        }
        self.fresh.retain(|&slot| slot != handle);
        self.session.close(handle);
    }

    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        self.session.turn();
        self.collect(ready);
        if !ready.is_empty() {
            self.session.found(ready.len());
            return Ok(());
        }
        if !self.session.is_alive() {
            return Err(Errno::NETDOWN.into());
        }
        let timeout = timeout.unwrap_or(NAP).min(NAP);
        if timeout.is_zero() {
            return Ok(());
        }
        if self.waiting.spin {
            // The engine may share this core: nothing can come before it has run.
            self.session.pause();
            return Ok(());
        }
        let until = now_ns().saturating_add(timeout.as_nanos() as u64);
        if !self.look_a_while(until) && now_ns() < until {
            self.sleep(until);
        }
        self.collect(ready);
        self.session.found(ready.len());
        Ok(())
    }
}

impl Drop for EngineNet {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            waiter.release(&self.session);
        }
    }
}
