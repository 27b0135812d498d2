//! Sockets of one stack for one thread, in the form that both stacks can give without favour: non-blocking calls, and
//! one wait for all of them that tells of *changes* (as EPOLLET does). Load generators and servers are written against
//! [`Net`] once.
//!
//! After a wait named a socket, read (or accept, or receive) until it gives None, or less than was asked for: only
//! what comes later is told again.

mod engine;
mod kernel;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub use engine::EngineNet;
pub use kernel::KernelNet;

/// A socket's number among those of one [`Net`]. Given out again after [`Net::close`].
pub type Handle = u32;

/// What a wait found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    pub handle: Handle,
    /// Something to read or accept, the end of the stream, or an error.
    pub readable: bool,
    /// Room to write, or a connection that is finished or has failed.
    pub writable: bool,
    /// The stream has an end or is broken: read until it says so, a short read is not the end.
    pub ended: bool,
}

/// How a thread waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Never sleeps: looks again at once.
    pub spin: bool,
    /// Kernel only: SO_BUSY_POLL, and the same of the epoll instance, in microseconds; 0 for off.
    pub busy_poll_us: u32,
}

/// Non-blocking sockets and a wait for all of them. None where Linux's call would say EAGAIN.
pub trait Net {
    /// A listener that shares its port with the listeners of other threads (SO_REUSEPORT).
    ///
    /// # Errors
    /// bind(2)'s and listen(2)'s.
    fn listen(&mut self, at: SocketAddr) -> io::Result<Handle>;

    /// # Errors
    /// accept(2)'s.
    fn accept(&mut self, listener: Handle) -> io::Result<Option<Handle>>;

    /// Begins a connection without Nagle's delay. The wait says writable when it is decided: ask [`Self::connected`].
    ///
    /// # Errors
    /// connect(2)'s, but EINPROGRESS.
    fn connect(&mut self, to: SocketAddr) -> io::Result<Handle>;

    /// Whether a connection stands.
    ///
    /// # Errors
    /// Why it failed.
    fn connected(&mut self, handle: Handle) -> io::Result<bool>;

    /// 0 is the end of the stream.
    ///
    /// # Errors
    /// recv(2)'s.
    fn read(&mut self, handle: Handle, buf: &mut [u8]) -> io::Result<Option<usize>>;

    /// # Errors
    /// send(2)'s.
    fn write(&mut self, handle: Handle, buf: &[u8]) -> io::Result<Option<usize>>;

    /// A UDP socket at `local` (shared among threads), or connected to `peer`.
    ///
    /// # Errors
    /// bind(2)'s and connect(2)'s.
    fn datagram(&mut self, local: Option<SocketAddr>, peer: Option<SocketAddr>) -> io::Result<Handle>;

    /// One datagram and its sender.
    ///
    /// # Errors
    /// recvfrom(2)'s.
    fn receive_from(&mut self, handle: Handle, buf: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>>;

    /// One datagram, to the connected peer without `to`. None: no room now.
    ///
    /// # Errors
    /// sendto(2)'s.
    fn send_to(&mut self, handle: Handle, buf: &[u8], to: Option<SocketAddr>) -> io::Result<Option<usize>>;

    /// An orderly close.
    fn close(&mut self, handle: Handle);

    /// Puts what changed into `ready` (emptied first). Returns with nothing after `timeout` (None: a second at most),
    /// after a signal, or at once when it spins.
    ///
    /// # Errors
    /// epoll_wait(2)'s; ENETDOWN when the engine is gone.
    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()>;
}

/// What would block is no error here.
fn maybe<T>(outcome: Result<T, rustix::io::Errno>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Longest single wait.
const NAP: Duration = Duration::from_secs(1);
