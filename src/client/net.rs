//! Sockets like those of `std::net`, on an engine.
//!
//! ```no_run
//! use std::io::{Read, Write};
//! use sidestep_client::net::{Client, TcpListener};
//!
//! let client = Client::attach("/run/sidestep/engine.sock")?;
//! let listener = TcpListener::bind(&client, "10.0.0.2:7".parse()?)?;
//! let (mut stream, _peer) = listener.accept()?;
//! let mut buf = [0; 4096];
//! let n = stream.read(&mut buf)?;
//! stream.write_all(&buf[..n])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! All calls block unless `set_nonblocking` says otherwise; errors are those that Linux's calls give. Any thread may
//! use any socket. When the engine goes away, every waiting call ends with an error. Not for use across fork.

mod epoll;
mod zero_copy;

use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::io::Errno;
use sidestep_shm::datagram::Header;
use sidestep_shm::slot::{kind, option};
use sidestep_shm::wire::{ENV_GROUP, ENV_SOCKET};

use crate::control::AttachError;
use crate::datagram::DatagramOptions;
use crate::mixed::Mixed;
use crate::readiness::{POLLERR, POLLHUP, POLLIN, POLLOUT};
use crate::session::Session;
use crate::sys::Deadline;
use crate::waiter::{Waiter, wait, wait_for, wait_settled};

pub use epoll::Epoll;
pub use zero_copy::{Received, Reserved};

/// Event queues kept for the next waiting call; more are given back to the group.
const IDLE_WAITERS: usize = 32;

/// An attachment to an engine, shared by all sockets made on it.
#[derive(Clone, Debug)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    session: Arc<Session>,
    idle: Mutex<Vec<Waiter>>,
}

impl Client {
    /// Attaches to the engine that listens at `socket` (a path, or '@' and an abstract name), in a group of its own.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(socket: &str) -> Result<Self, AttachError> {
        Session::attach(socket, 0).map(Self::over)
    }

    /// Attaches to the engine that the environment names ([`ENV_SOCKET`], [`ENV_GROUP`]), as under `sidestep run`.
    ///
    /// # Errors
    /// See [`AttachError`]; without the variable, [`AttachError::Address`].
    pub fn from_environment() -> Result<Self, AttachError> {
        let socket = std::env::var(ENV_SOCKET)
            .map_err(|_| AttachError::Address { socket: format!("${ENV_SOCKET} (not set)"), cause: Errno::NOENT })?;
        let group = std::env::var(ENV_GROUP).ok().and_then(|g| u128::from_str_radix(&g, 16).ok());
        Session::attach(&socket, group.unwrap_or(0)).map(Self::over)
    }

    /// On a session that exists.
    #[must_use]
    pub fn over(session: impl Into<Arc<Session>>) -> Self {
        Self(Arc::new(Shared { session: session.into(), idle: Mutex::new(Vec::new()) }))
    }

    /// The session below.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.0.session
    }

    /// poll(2) on sockets of this client: waits until one of them is ready for what its entry asks, sets `ready` of
    /// every entry, and returns how many have it set; 0 after `timeout` (None: never).
    ///
    /// # Errors
    /// EINTR after a signal; ENOSPC when the group has no event queue left; EINVAL for a socket of another client.
    pub fn poll(&self, entries: &mut [PollEntry<'_>], timeout: Option<Duration>) -> io::Result<usize> {
        let session = &self.0.session;
        if entries.iter().any(|e| !Arc::ptr_eq(&e.socket.client.0, &self.0)) {
            return Err(Errno::INVAL.into());
        }
        let look_at = |e: &PollEntry<'_>| session.readiness(e.socket.slot) & (e.interest | POLLERR | POLLHUP);
        let deadline = timeout.map(Deadline::after);
        if timeout.is_none_or(|t| !t.is_zero()) {
            self.with_waiter(|waiter| {
                let watch = |on| {
                    entries.iter().for_each(|e| match on {
                        true => waiter.watch(session, e.socket.slot),
                        false => waiter.unwatch(session, e.socket.slot),
                    });
                };
                wait_for(session, waiter, &watch, &|| entries.iter().fold(0, |all, e| all | look_at(e)), deadline, true)
            })?;
        }
        entries.iter_mut().for_each(|e| e.ready = look_at(e));
        Ok(entries.iter().filter(|e| e.ready != 0).count())
    }

    /// The same for sockets and descriptors of the kernel at once, as struct pollfd has them; an entry of `kernel` below
    /// 0 is skipped. Returns how many of both are ready.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn poll_with(
        &self,
        entries: &mut [PollEntry<'_>],
        kernel: &mut [libc::pollfd],
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        if entries.iter().any(|e| !Arc::ptr_eq(&e.socket.client.0, &self.0)) {
            return Err(Errno::INVAL.into());
        }
        kernel.iter_mut().for_each(|one| one.revents = 0);
        let session = self.session();
        let deadline = timeout.map(|t| if t.is_zero() { Deadline(0) } else { Deadline::after(t) });
        let has_kernel = kernel.iter().any(|one| one.fd >= 0);
        let look_at = |e: &PollEntry<'_>| session.readiness(e.socket.slot) & (e.interest | POLLERR | POLLHUP);
        self.with_waiter(|waiter| {
            entries.iter().for_each(|e| waiter.watch(session, e.socket.slot));
            let mut look = || {
                waiter.harvest(session, usize::MAX, |_| ());
                entries.iter().any(|e| look_at(e) != 0)
            };
            let outcome = Mixed { session, waiter, kernel, has_kernel, look: &mut look }.wait(deadline);
            entries.iter().for_each(|e| waiter.unwatch(session, e.socket.slot));
            outcome
        })?;
        entries.iter_mut().for_each(|e| e.ready = look_at(e));
        let ready = entries.iter().filter(|e| e.ready != 0).count();
        session.found(ready);
        Ok(ready + kernel.iter().filter(|one| one.revents != 0).count())
    }

    fn with_waiter<T>(&self, f: impl FnOnce(&Waiter) -> Result<T, Errno>) -> Result<T, Errno> {
        let idle = || self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let waiter = kept.map_or_else(|| Waiter::new(&self.0.session), Ok)?;
        let outcome = f(&waiter);
        let mut idle = idle();
        if idle.len() < IDLE_WAITERS {
            idle.push(waiter);
        } else {
            waiter.release(&self.0.session);
        }
        outcome
    }
}

/// One line of [`Client::poll`].
#[derive(Debug)]
pub struct PollEntry<'a> {
    socket: &'a Socket,
    /// Bits of interest: [`crate::POLLIN`], [`crate::POLLOUT`], [`crate::POLLRDHUP`].
    pub interest: u32,
    /// The answer: those of `interest` that hold, and [`crate::POLLERR`], [`crate::POLLHUP`].
    pub ready: u32,
}

impl<'a> PollEntry<'a> {
    /// An entry for a [`TcpListener`], [`TcpStream`] or [`UdpSocket`].
    #[must_use]
    pub fn new(socket: &'a impl AsRef<Socket>, interest: u32) -> Self {
        Self { socket: socket.as_ref(), interest, ready: 0 }
    }
}

/// What the three kinds of socket have in common. Closed when dropped.
#[derive(Debug)]
pub struct Socket {
    client: Client,
    slot: u32,
    nonblocking: AtomicBool,
    /// Nanoseconds, 0 for none.
    read_timeout: AtomicU64,
    write_timeout: AtomicU64,
    /// Calls that found too little room to write.
    starved: epoll::Starved,
    watchers: Mutex<Vec<Weak<epoll::Shared>>>,
}

impl Socket {
    /// A socket of a [`sidestep_shm::slot::kind`].
    pub(crate) fn open(client: &Client, kind: u32) -> io::Result<Self> {
        Ok(Self::of(client, client.session().open(kind)?))
    }

    fn of(client: &Client, slot: u32) -> Self {
        Self {
            client: client.clone(),
            slot,
            nonblocking: AtomicBool::new(false),
            read_timeout: AtomicU64::new(0),
            write_timeout: AtomicU64::new(0),
            starved: Arc::default(),
            watchers: Mutex::default(),
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Its slot in the group's shared memory, for the verbs of [`Session`].
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    fn kind(&self) -> u32 {
        self.session().region().slot(self.slot).map_or(0, |s| s.kind.load(Ordering::Relaxed))
    }

    pub(crate) fn session(&self) -> &Session {
        self.client.session()
    }

    /// Whether calls fail with `WouldBlock` instead of waiting.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    pub(crate) fn is_nonblocking(&self) -> bool {
        self.nonblocking.load(Ordering::Relaxed)
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.read_timeout.store(nanoseconds(timeout), Ordering::Relaxed);
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) {
        self.write_timeout.store(nanoseconds(timeout), Ordering::Relaxed);
    }

    pub(crate) fn read_timeout(&self) -> Option<Duration> {
        Some(self.read_timeout.load(Ordering::Relaxed)).filter(|n| *n != 0).map(Duration::from_nanos)
    }

    pub(crate) fn write_timeout(&self) -> Option<Duration> {
        Some(self.write_timeout.load(Ordering::Relaxed)).filter(|n| *n != 0).map(Duration::from_nanos)
    }

    /// AF_INET or AF_INET6.
    pub(crate) fn domain(&self) -> i32 {
        if crate::address::is_v4(self.kind()) { libc::AF_INET } else { libc::AF_INET6 }
    }

    /// A write found too little room: an edge-triggered writer is to hear of the next.
    pub(crate) fn note_starved(&self) {
        self.starved.fetch_add(1, Ordering::Relaxed);
    }

    /// Who sent a datagram.
    pub(crate) fn sender(&self, about: &Header) -> SocketAddr {
        crate::address::from_wire(self.kind(), about.remote, about.remote_port)
    }

    /// Tries until it works, fails for another reason than EAGAIN, or the timeout has passed (EAGAIN).
    fn until_done<T>(&self, interest: u32, attempt: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
        self.attempt(interest, false, attempt)
    }

    /// The same; with `dont_wait` (MSG_DONTWAIT) one try.
    fn attempt<T>(&self, interest: u32, dont_wait: bool, attempt: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
        self.attempt_until(interest, (dont_wait, None), attempt)
    }

    /// The same with a deadline of its own besides the socket's.
    pub(crate) fn attempt_until<T>(
        &self,
        interest: u32,
        (dont_wait, limit): (bool, Option<Deadline>),
        mut attempt: impl FnMut() -> Result<T, Errno>,
    ) -> io::Result<T> {
        let mut deadline = limit;
        let mut begun = false;
        loop {
            match attempt() {
                Err(Errno::AGAIN) if !dont_wait && !self.nonblocking.load(Ordering::Relaxed) => {}
                Err(Errno::AGAIN) if interest == POLLOUT => {
                    self.note_starved();
                    return Err(Errno::AGAIN.into());
                }
                other => return other.map_err(Into::into),
            }
            let timeout = if interest == POLLIN { &self.read_timeout } else { &self.write_timeout };
            let timeout = timeout.load(Ordering::Relaxed);
            if timeout != 0 && !begun {
                begun = true;
                let own = Deadline::after(Duration::from_nanos(timeout));
                deadline = Some(deadline.map_or(own, |limit| limit.min(own)));
            }
            let ready = self.client.with_waiter(|w| wait(self.session(), w, self.slot, interest, deadline, true))?;
            if ready == 0 {
                return Err(Errno::AGAIN.into());
            }
        }
    }

    pub(crate) fn connect(&self, remote: SocketAddr) -> io::Result<()> {
        let outcome = self.connect_and_wait(remote);
        self.each_watcher(|epoll| epoll.poke(self.slot));
        outcome
    }

    fn connect_and_wait(&self, remote: SocketAddr) -> io::Result<()> {
        match self.session().connect(self.slot, remote) {
            Ok(()) if self.session().is_datagram(self.slot) => {
                self.client.with_waiter(|w| {
                    wait_settled(self.session(), w, self.slot);
                    Ok(())
                })?;
                return Ok(self.session().datagram_outcome(self.slot)?);
            }
            Ok(()) | Err(Errno::ALREADY) if self.nonblocking.load(Ordering::Relaxed) => {
                return Err(Errno::INPROGRESS.into());
            }
            Ok(()) | Err(Errno::ALREADY) => {}
            Err(e) => return Err(e.into()),
        }
        self.until_done(POLLOUT, || match self.session().connect_outcome(self.slot) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Errno::AGAIN),
            Err(e) => Err(e),
        })
    }

    pub(crate) fn accept(&self) -> io::Result<(Self, SocketAddr)> {
        let (slot, remote) = self.until_done(POLLIN, || self.session().accept(self.slot))?;
        Ok((Self::of(&self.client, slot), remote))
    }

    pub(crate) fn receive(&self, bufs: &mut [IoSliceMut<'_>], peek: bool, dont_wait: bool) -> io::Result<usize> {
        self.attempt(POLLIN, dont_wait, || self.session().receive(self.slot, bufs, peek))
    }

    pub(crate) fn send(&self, bufs: &[IoSlice<'_>], more: bool, dont_wait: bool) -> io::Result<usize> {
        let sent = self.attempt(POLLOUT, dont_wait, || self.session().send(self.slot, bufs, more))?;
        if sent < bufs.iter().map(|b| b.len()).sum() {
            self.note_starved();
        }
        Ok(sent)
    }

    pub(crate) fn shutdown(&self, read: bool, write: bool) -> io::Result<()> {
        let outcome = self.session().shutdown(self.slot, read, write);
        self.each_watcher(|epoll| epoll.poke(self.slot));
        Ok(outcome?)
    }

    /// Payload bytes copied, and the sender.
    pub(crate) fn receive_from(&self, buf: &mut [u8], peek: bool, dont_wait: bool) -> io::Result<(usize, SocketAddr)> {
        let bufs = &mut [IoSliceMut::new(buf)];
        let (n, header) = self.attempt(POLLIN, dont_wait, || self.session().receive_datagram(self.slot, bufs, peek))?;
        Ok((n, self.sender(&header)))
    }

    pub(crate) fn send_to(&self, buf: &[u8], to: Option<SocketAddr>, dont_wait: bool) -> io::Result<usize> {
        let extra = DatagramOptions::default();
        self.attempt(POLLOUT, dont_wait, || self.session().send_datagram(self.slot, &[IoSlice::new(buf)], to, &extra))
    }

    fn local(&self) -> io::Result<SocketAddr> {
        self.session().local_address(self.slot).ok_or_else(|| Errno::BADF.into())
    }

    fn remote(&self) -> io::Result<SocketAddr> {
        self.session().remote_address(self.slot).ok_or_else(|| Errno::NOTCONN.into())
    }

    fn taken_error(&self) -> Option<io::Error> {
        let errno = self.session().take_error(self.slot);
        (errno != 0).then(|| io::Error::from_raw_os_error(errno as i32))
    }
}

impl AsRef<Self> for Socket {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.each_watcher(|epoll| epoll.socket_closed(self.slot));
        self.session().close(self.slot);
    }
}

fn stream_kind(address: IpAddr) -> u32 {
    if address.is_ipv4() { kind::TCP4 } else { kind::TCP6 }
}

/// The methods that all three kinds of socket share.
macro_rules! common {
    ($name:ident) => {
        impl $name {
            /// getsockname(2).
            ///
            /// # Errors
            /// EBADF can't happen with a socket that was not closed.
            pub fn local_addr(&self) -> io::Result<SocketAddr> {
                self.0.local()
            }
            /// Takes the pending error (SO_ERROR).
            #[must_use]
            pub fn take_error(&self) -> Option<io::Error> {
                self.0.taken_error()
            }
            /// Whether calls fail with `WouldBlock` instead of waiting.
            pub fn set_nonblocking(&self, nonblocking: bool) {
                self.0.set_nonblocking(nonblocking);
            }
            /// SO_RCVTIMEO: how long a read (or accept) waits; None: for ever. Then it fails with `WouldBlock`.
            pub fn set_read_timeout(&self, timeout: Option<Duration>) {
                self.0.set_read_timeout(timeout);
            }
            /// SO_SNDTIMEO.
            pub fn set_write_timeout(&self, timeout: Option<Duration>) {
                self.0.set_write_timeout(timeout);
            }
        }

        impl AsRef<Socket> for $name {
            fn as_ref(&self) -> &Socket {
                &self.0
            }
        }
    };
}

fn nanoseconds(timeout: Option<Duration>) -> u64 {
    timeout.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX).max(1))
}

/// A TCP socket that accepts connections.
#[derive(Debug)]
pub struct TcpListener(Socket);

common!(TcpListener);

impl TcpListener {
    /// Binds with SO_REUSEADDR, as `std` does, and listens with a backlog of 4096.
    ///
    /// # Errors
    /// EADDRINUSE, EADDRNOTAVAIL, EACCES, ENOBUFS, ENETDOWN.
    pub fn bind(client: &Client, address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::open(client, stream_kind(address.ip()))?;
        client.session().bind(socket.slot, address, option::REUSE_ADDRESS)?;
        client.session().listen(socket.slot, 4096)?;
        Ok(Self(socket))
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// `WouldBlock`, EINTR, ENETDOWN.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, remote) = self.0.accept()?;
        Ok((TcpStream(socket), remote))
    }
}

/// A TCP connection. `&TcpStream` reads and writes too, so that two threads can share one.
#[derive(Debug)]
pub struct TcpStream(Socket);

common!(TcpStream);

impl TcpStream {
    /// Connects and waits for the outcome.
    ///
    /// # Errors
    /// ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, EADDRNOTAVAIL, ENOBUFS, ENETDOWN.
    pub fn connect(client: &Client, remote: SocketAddr) -> io::Result<Self> {
        let socket = Socket::open(client, stream_kind(remote.ip()))?;
        socket.connect(remote)?;
        Ok(Self(socket))
    }

    /// The connection that this process holds in `slot` of `client`'s session ([`Session::accept`]). It is closed when
    /// the stream is dropped.
    #[must_use]
    pub fn from_slot(client: &Client, slot: u32) -> Self {
        Self(Socket::of(client, slot))
    }

    /// getpeername(2).
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.remote()
    }

    /// recv with MSG_PEEK.
    ///
    /// # Errors
    /// As for reading.
    pub fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.receive(&mut [IoSliceMut::new(buf)], true, false)
    }

    /// shutdown(2).
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn shutdown(&self, how: std::net::Shutdown) -> io::Result<()> {
        let (read, write) = match how {
            std::net::Shutdown::Read => (true, false),
            std::net::Shutdown::Write => (false, true),
            std::net::Shutdown::Both => (true, true),
        };
        self.0.shutdown(read, write)
    }

    /// TCP_NODELAY.
    ///
    /// # Errors
    /// EBADF can't happen with a socket that was not closed.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        Ok(self.0.session().set_option(self.0.slot, option::NO_DELAY, on)?)
    }
}

impl Read for &TcpStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.receive(&mut [IoSliceMut::new(buf)], false, false)
    }
    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.receive(bufs, false, false)
    }
}

impl Write for &TcpStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.send(&[IoSlice::new(buf)], false, false)
    }
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bufs, false, false)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for TcpStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(bufs)
    }
}

impl Write for TcpStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self).write(buf)
    }
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(bufs)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A UDP socket.
#[derive(Debug)]
pub struct UdpSocket(Socket);

common!(UdpSocket);

impl UdpSocket {
    /// Binds to `address`.
    ///
    /// # Errors
    /// EADDRINUSE, EADDRNOTAVAIL, EACCES, ENOBUFS, ENETDOWN.
    pub fn bind(client: &Client, address: SocketAddr) -> io::Result<Self> {
        let kind = if address.is_ipv4() { kind::UDP4 } else { kind::UDP6 };
        let socket = Socket::open(client, kind)?;
        client.session().bind(socket.slot, address, 0)?;
        Ok(Self(socket))
    }

    /// Sets the peer for [`Self::send`] and for what is received.
    ///
    /// # Errors
    /// EAFNOSUPPORT, ENETDOWN.
    pub fn connect(&self, remote: SocketAddr) -> io::Result<()> {
        self.0.connect(remote)
    }

    /// getpeername(2).
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.remote()
    }

    /// The next datagram; bytes beyond `buf` are lost.
    ///
    /// # Errors
    /// `WouldBlock`, EINTR, ECONNREFUSED (ICMP), ENETDOWN.
    pub fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.receive_from(buf, false, false)
    }

    /// The next datagram, from whomever.
    ///
    /// # Errors
    /// As [`Self::recv_from`].
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.recv_from(buf).map(|(n, _)| n)
    }

    /// One datagram.
    ///
    /// # Errors
    /// EMSGSIZE, EINVAL, EAFNOSUPPORT, EACCES, `WouldBlock`, EINTR, ENETDOWN.
    pub fn send_to(&self, buf: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.0.send_to(buf, Some(to), false)
    }

    /// One datagram to the peer.
    ///
    /// # Errors
    /// As [`Self::send_to`], and EDESTADDRREQ.
    pub fn send(&self, buf: &[u8]) -> io::Result<usize> {
        self.0.send_to(buf, None, false)
    }
}
