//! The kernel's sockets: edge-triggered epoll(7).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, connect, listen, recv, recvfrom,
    send, sendto, socket_with, sockopt,
};

use super::{Handle, NAP, Net, Ready, Waiting, maybe};

/// Events taken with one epoll_wait.
const EVENTS: usize = 256;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Packets that one busy poll may take; the kernel wants no more than 64 from whoever has no privilege.
const BUSY_POLL_BUDGET: u16 = 64;

/// Sockets by descriptor number.
pub struct KernelNet {
    epoll: OwnedFd,
    sockets: Vec<Option<OwnedFd>>,
    waiting: Waiting,
    events: Box<[epoll::Event]>,
}

impl KernelNet {
    /// # Errors
    /// No descriptor left; or busy polling is asked for and the kernel (before 6.9) can't poll busily in epoll_wait.
    pub fn new(waiting: Waiting) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if waiting.busy_poll_us > 0 {
            crate::port::busy::epoll_busy_poll(epoll.as_fd(), waiting.busy_poll_us, BUSY_POLL_BUDGET)?;
        }
        let empty = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        Ok(Self { epoll, sockets: Vec::new(), waiting, events: vec![empty; EVENTS].into() })
    }

    fn add(&mut self, socket: OwnedFd) -> io::Result<Handle> {
        if self.waiting.busy_poll_us > 0 {
            let us = self.waiting.busy_poll_us.cast_signed();
            crate::xdp::set_int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_BUSY_POLL, us)?;
        }
        let handle = socket.as_raw_fd().cast_unsigned();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(handle.into()), flags)?;
        let at = handle as usize;
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        self.sockets[at] = Some(socket);
        Ok(handle)
    }

    fn fd(&self, handle: Handle) -> Result<BorrowedFd<'_>, Errno> {
        self.sockets.get(handle as usize).and_then(Option::as_ref).map(AsFd::as_fd).ok_or(Errno::BADF)
    }
}

impl Net for KernelNet {
    fn listen(&mut self, at: SocketAddr) -> io::Result<Handle> {
        let socket = open(at, SocketType::STREAM)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        bind(&socket, &at)?;
        listen(&socket, BACKLOG)?;
        self.add(socket)
    }

    fn accept(&mut self, listener: Handle) -> io::Result<Option<Handle>> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accepted = match accept_with(self.fd(listener)?, flags) {
            // The peer has given up meanwhile: accept(2) says to go on.
            Err(Errno::CONNABORTED) => return self.accept(listener),
            other => maybe(other)?,
        };
        let Some(socket) = accepted else { return Ok(None) };
        sockopt::set_tcp_nodelay(&socket, true)?;
        self.add(socket).map(Some)
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<Handle> {
        let socket = open(to, SocketType::STREAM)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => self.add(socket),
            Err(errno) => Err(errno.into()),
        }
    }

    fn connected(&mut self, handle: Handle) -> io::Result<bool> {
        let fd = self.fd(handle)?;
        sockopt::socket_error(fd)??;
        match rustix::net::getpeername(fd) {
            Ok(_) => Ok(true),
            Err(Errno::NOTCONN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn read(&mut self, handle: Handle, buf: &mut [u8]) -> io::Result<Option<usize>> {
        maybe(recv(self.fd(handle)?, buf, RecvFlags::empty()).map(|(n, _)| n))
    }

    fn write(&mut self, handle: Handle, buf: &[u8]) -> io::Result<Option<usize>> {
        maybe(send(self.fd(handle)?, buf, SendFlags::NOSIGNAL))
    }

    fn datagram(&mut self, local: Option<SocketAddr>, peer: Option<SocketAddr>) -> io::Result<Handle> {
        let family = local.or(peer).unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
        let socket = open(family, SocketType::DGRAM)?;
        if let Some(local) = local {
            sockopt::set_socket_reuseport(&socket, true)?;
            bind(&socket, &local)?;
        }
        if let Some(peer) = peer {
            connect(&socket, &peer)?;
        }
        self.add(socket)
    }

    fn receive_from(&mut self, handle: Handle, buf: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        let Some((n, _, from)) = maybe(recvfrom(self.fd(handle)?, buf, RecvFlags::empty()))? else { return Ok(None) };
        let from = from.and_then(|a| SocketAddr::try_from(a).ok()).ok_or(Errno::AFNOSUPPORT)?;
        Ok(Some((n, from)))
    }

    fn send_to(&mut self, handle: Handle, buf: &[u8], to: Option<SocketAddr>) -> io::Result<Option<usize>> {
        let fd = self.fd(handle)?;
        maybe(match to {
            Some(to) => sendto(fd, buf, SendFlags::NOSIGNAL, &to),
            None => send(fd, buf, SendFlags::NOSIGNAL),
        })
    }

    fn close(&mut self, handle: Handle) {
        // Closing takes it out of the epoll instance.
        if let Some(place) = self.sockets.get_mut(handle as usize) {
            *place = None;
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let timeout = if self.waiting.spin { Duration::ZERO } else { timeout.unwrap_or(NAP).min(NAP) };
        let limit = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: i64::from(timeout.subsec_nanos()) };
        let found = match epoll::wait(&self.epoll, &mut self.events[..], Some(&limit)) {
            Ok(n) => n,
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let bad = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        ready.extend(self.events[..found].iter().map(|event| {
            let flags = event.flags;
            Ready {
                handle: event.data.u64() as Handle,
                readable: flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | bad),
                writable: flags.intersects(epoll::EventFlags::OUT | bad),
                ended: flags.intersects(epoll::EventFlags::RDHUP | bad),
            }
        }));
        Ok(())
    }
}

fn open(at: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    if at.ip() == Ipv6Addr::UNSPECIFIED {
        // One server for both families, whatever net.ipv6.bindv6only says.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    Ok(socket)
}
