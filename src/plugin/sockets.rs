//! The calls: the client's verbs under C's names. What waits is an attempt that is tried again; see [`crate::engine`].

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::time::Duration;

use libc::epoll_event;
use sidestep_client::interest::Interests;
use sidestep_client::shm::slot::kind;
use sidestep_client::{DatagramOptions, Errno};

use crate::engine::{Outcome, Plugin, State};

/// Bytes that a pipe holds.
const PIPE: usize = 65_536;

/// A descriptor.
pub enum Object {
    Socket(Sock),
    Epoll(Interests),
    Pipe { bytes: usize, writes: bool },
}

/// A socket of the stack.
#[derive(Clone, Copy)]
pub struct Sock {
    slot: u32,
    datagram: bool,
    pub nonblocking: bool,
    connecting: bool,
    /// Writes that found too little room.
    starved: u32,
}

impl State {
    fn insert(&mut self, object: Object) -> isize {
        let fd = (3..).find(|n| !self.objects.contains_key(n)).unwrap_or(3);
        self.objects.insert(fd, object);
        fd as isize
    }

    pub fn socket(&mut self, fd: i32) -> Result<&mut Sock, i32> {
        match self.objects.get_mut(&fd) {
            Some(Object::Socket(sock)) => Ok(sock),
            Some(_) => Err(libc::ENOTSOCK),
            None => Err(libc::EBADF),
        }
    }

    fn starve(&mut self, fd: i32) {
        if let Ok(sock) = self.socket(fd) {
            sock.starved += 1;
        }
    }

    fn readiness(&self, fd: i32) -> Option<u32> {
        match self.objects.get(&fd)? {
            Object::Socket(s) => Some(self.session.readiness(s.slot)),
            Object::Pipe { bytes, writes } => {
                let len = self.pipes[*bytes].len();
                let bits = if *writes { libc::POLLOUT } else { libc::POLLIN };
                Some(if *writes && len < PIPE || !*writes && len > 0 { bits as u32 } else { 0 })
            }
            Object::Epoll(_) => Some(0),
        }
    }
}

fn raw(error: Errno) -> i32 {
    error.raw_os_error()
}

impl Plugin {
    pub fn socket(&self, domain: i32, how: i32, protocol: i32) -> Outcome {
        self.with(|state| {
            let kind = match (domain, how & 0xf, protocol) {
                (libc::AF_INET, libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) => kind::TCP4,
                (libc::AF_INET6, libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) => kind::TCP6,
                (libc::AF_INET, libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) => kind::UDP4,
                (libc::AF_INET6, libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) => kind::UDP6,
                (libc::AF_INET | libc::AF_INET6, _, _) => return Err(libc::EPROTONOSUPPORT),
                _ => return Err(libc::EAFNOSUPPORT),
            };
            let slot = state.session.open(kind).map_err(raw)?;
            let datagram = how & 0xf == libc::SOCK_DGRAM;
            let nonblocking = how & libc::SOCK_NONBLOCK != 0;
            Ok(state.insert(Object::Socket(Sock { slot, datagram, nonblocking, connecting: false, starved: 0 })))
        })
    }

    pub fn bind(&self, fd: i32, to: SocketAddr) -> Outcome {
        self.with(|state| {
            let slot = state.socket(fd)?.slot;
            state.session.bind(slot, to, 0).map(|_| 0).map_err(raw)
        })
    }

    pub fn listen(&self, fd: i32, backlog: i32) -> Outcome {
        self.with(|state| {
            let slot = state.socket(fd)?.slot;
            state.session.listen(slot, backlog.max(0).cast_unsigned()).map(|_| 0).map_err(raw)
        })
    }

    /// `told` hears the peer's address.
    pub fn accept(&self, fd: i32, mut told: impl FnMut(SocketAddr) + 'static) -> Outcome {
        self.call(
            None,
            Box::new(move |state| {
                let listener = match state.socket(fd) {
                    Ok(sock) => *sock,
                    Err(errno) => return Some(Err(errno)),
                };
                match state.session.accept(listener.slot) {
                    Ok((slot, remote)) => {
                        told(remote);
                        let sock = Sock { slot, datagram: false, nonblocking: false, connecting: false, starved: 0 };
                        Some(Ok(state.insert(Object::Socket(sock))))
                    }
                    Err(Errno::AGAIN) if !listener.nonblocking => None,
                    Err(error) => Some(Err(raw(error))),
                }
            }),
        )
    }

    /// `to` None: AF_UNSPEC.
    pub fn connect(&self, fd: i32, to: Option<SocketAddr>) -> Outcome {
        let to = to.unwrap_or_else(|| SocketAddr::from(([0u16; 8], 0)));
        let begun = self.with(|state| -> Result<Option<isize>, i32> {
            let sock = *state.socket(fd)?;
            match state.session.connect(sock.slot, to) {
                Ok(()) => {}
                Err(Errno::ISCONN) if sock.connecting => {
                    state.socket(fd)?.connecting = false;
                    return Ok(Some(0));
                }
                Err(Errno::ALREADY) if !sock.nonblocking => {}
                Err(error) => return Err(raw(error)),
            }
            if sock.datagram {
                return Ok(Some(0));
            }
            state.socket(fd)?.connecting = true;
            if sock.nonblocking { Err(libc::EINPROGRESS) } else { Ok(None) }
        })?;
        if let Some(done) = begun {
            return Ok(done);
        }
        self.call(
            None,
            Box::new(move |state| {
                let slot = match state.socket(fd) {
                    Ok(sock) => sock.slot,
                    Err(errno) => return Some(Err(errno)),
                };
                let outcome = match state.session.connect_outcome(slot) {
                    Ok(false) => return None,
                    Ok(true) => Ok(0),
                    Err(error) => Err(raw(error)),
                };
                if let Ok(sock) = state.socket(fd) {
                    sock.connecting = false;
                }
                Some(outcome)
            }),
        )
    }

    /// Reads into `buffers`, which stay where they are until this returns. `told` hears a datagram's sender and whether
    /// it was cut.
    pub fn receive(
        &self,
        fd: i32,
        mut buffers: Vec<IoSliceMut<'static>>,
        flags: i32,
        mut told: impl FnMut(Option<SocketAddr>, bool) + 'static,
    ) -> Outcome {
        if flags & libc::MSG_ERRQUEUE != 0 {
            return Err(libc::EAGAIN);
        }
        if flags & libc::MSG_OOB != 0 {
            return Err(libc::EINVAL);
        }
        let mut done = 0;
        self.call(
            None,
            Box::new(move |state| {
                if let Some(Object::Pipe { bytes, writes: false }) = state.objects.get(&fd) {
                    let pipe = &mut state.pipes[*bytes];
                    let n = take_from(pipe, &mut buffers);
                    return (n > 0).then_some(Ok(n as isize));
                }
                let sock = match state.socket(fd) {
                    Ok(sock) => *sock,
                    Err(errno) => return Some(Err(errno)),
                };
                let peek = flags & libc::MSG_PEEK != 0;
                let waits = !sock.nonblocking && flags & libc::MSG_DONTWAIT == 0;
                if sock.datagram {
                    return match state.session.receive_datagram(sock.slot, &mut buffers, peek) {
                        Ok((n, header)) => {
                            let ip = std::net::Ipv6Addr::from(header.remote);
                            let ip = ip.to_ipv4_mapped().map_or(ip.into(), std::net::IpAddr::from);
                            told(Some(SocketAddr::new(ip, header.remote_port)), header.len as usize > n);
                            let whole = flags & libc::MSG_TRUNC != 0;
                            Some(Ok(if whole { header.len as isize } else { n as isize }))
                        }
                        Err(Errno::AGAIN) if waits => None,
                        Err(error) => Some(Err(raw(error))),
                    };
                }
                let total: usize = buffers.iter().map(|b| b.len()).sum();
                let all = flags & libc::MSG_WAITALL != 0 && !peek;
                loop {
                    let mut rest = after(&mut buffers, done);
                    match state.session.receive(sock.slot, &mut rest, peek) {
                        Ok(0) => return Some(Ok(done as isize)),
                        Ok(n) if peek => return Some(Ok(n as isize)),
                        Ok(n) => done += n,
                        Err(Errno::AGAIN) if waits && (done == 0 || all) => return None,
                        Err(_) if done > 0 => return Some(Ok(done as isize)),
                        Err(error) => return Some(Err(raw(error))),
                    }
                    if !all || done == total {
                        return Some(Ok(done as isize));
                    }
                }
            }),
        )
    }

    /// Writes `buffers`, which stay where they are until this returns.
    pub fn send(&self, fd: i32, buffers: Vec<IoSlice<'static>>, flags: i32, to: Option<SocketAddr>) -> Outcome {
        if flags & libc::MSG_FASTOPEN != 0 {
            return Err(libc::EOPNOTSUPP);
        }
        let total: usize = buffers.iter().map(|b| b.len()).sum();
        let mut done = 0;
        self.call(
            None,
            Box::new(move |state| {
                if let Some(Object::Pipe { bytes, writes: true }) = state.objects.get(&fd) {
                    let pipe = &mut state.pipes[*bytes];
                    let n = total.min(PIPE - pipe.len());
                    pipe.extend(buffers.iter().flat_map(|b| b.iter()).take(n));
                    return (n > 0 || total == 0).then_some(Ok(n as isize));
                }
                let sock = match state.socket(fd) {
                    Ok(sock) => *sock,
                    Err(errno) => return Some(Err(errno)),
                };
                let waits = !sock.nonblocking && flags & libc::MSG_DONTWAIT == 0;
                if sock.datagram {
                    return match state.session.send_datagram(sock.slot, &buffers, to, &DatagramOptions::default()) {
                        Ok(n) => Some(Ok(n as isize)),
                        Err(Errno::AGAIN) if waits => None,
                        Err(error) => Some(Err(raw(error))),
                    };
                }
                let rest: Vec<IoSlice<'_>> = skip(&buffers, done);
                match state.session.send(sock.slot, &rest, flags & libc::MSG_MORE != 0) {
                    Ok(n) => {
                        done += n;
                        if done < total {
                            state.starve(fd);
                        }
                        (done == total || !waits).then_some(Ok(done as isize))
                    }
                    Err(Errno::AGAIN) if waits => {
                        state.starve(fd);
                        None
                    }
                    Err(_) if done > 0 => Some(Ok(done as isize)),
                    Err(error) => {
                        state.starve(fd);
                        Some(Err(raw(error)))
                    }
                }
            }),
        )
    }

    pub fn close(&self, fd: i32) -> Outcome {
        self.with(|state| match state.objects.remove(&fd) {
            Some(Object::Socket(sock)) => {
                for object in state.objects.values_mut() {
                    if let Object::Epoll(interests) = object {
                        interests.forget(sock.slot);
                    }
                }
                state.session.close(sock.slot);
                Ok(0)
            }
            Some(_) => Ok(0),
            None => Err(libc::EBADF),
        })
    }

    pub fn shutdown(&self, fd: i32, how: i32) -> Outcome {
        self.with(|state| {
            let slot = state.socket(fd)?.slot;
            match how {
                libc::SHUT_RD | libc::SHUT_WR | libc::SHUT_RDWR => {}
                _ => return Err(libc::EINVAL),
            }
            let (read, write) = (how != libc::SHUT_WR, how != libc::SHUT_RD);
            state.session.shutdown(slot, read, write).map(|()| 0).map_err(raw)
        })
    }

    pub fn fcntl(&self, fd: i32, command: i32, argument: libc::c_long) -> Outcome {
        self.with(|state| {
            if let Some(Object::Epoll(_) | Object::Pipe { .. }) = state.objects.get(&fd) {
                return Ok(0);
            }
            let sock = state.socket(fd)?;
            match command {
                libc::F_GETFL => Ok((libc::O_RDWR | if sock.nonblocking { libc::O_NONBLOCK } else { 0 }) as isize),
                libc::F_SETFL => {
                    sock.nonblocking = argument & libc::c_long::from(libc::O_NONBLOCK) != 0;
                    Ok(0)
                }
                libc::F_GETFD | libc::F_SETFD => Ok(0),
                _ => Err(libc::EINVAL),
            }
        })
    }

    /// FIONREAD and its kin: the answer.
    pub fn ioctl(&self, fd: i32, request: u64) -> Outcome {
        self.with(|state| {
            let slot = state.socket(fd)?.slot;
            match request {
                libc::FIONREAD => Ok(state.session.queued_in(slot) as isize),
                libc::TIOCOUTQ => Ok(state.session.queued_out(slot) as isize),
                _ => Err(libc::ENOTTY),
            }
        })
    }

    pub fn setsockopt(&self, fd: i32, level: i32, name: i32, value: &[u8]) -> Outcome {
        self.with(|state| {
            let slot = state.socket(fd)?.slot;
            state.session.setsockopt(slot, level, name, value).map(|()| 0).map_err(raw)
        })
    }

    pub fn getsockopt(&self, fd: i32, level: i32, name: i32, out: &mut [u8]) -> Outcome {
        self.with(|state| {
            let slot = state.socket(fd)?.slot;
            let len = state.session.getsockopt(slot, level, name, out).map_err(raw)?;
            if (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR) && out.iter().any(|b| *b != 0) {
                state.socket(fd)?.connecting = false;
            }
            Ok(len as isize)
        })
    }

    /// `entries`: descriptor and events; `told` hears index and revents of each when it is over.
    pub fn poll(&self, entries: Vec<(i32, i16)>, timeout: i32, mut told: impl FnMut(usize, i16) + 'static) -> Outcome {
        let limit = u64::try_from(timeout).ok().map(Duration::from_millis);
        let mut until = None;
        self.call(
            limit,
            Box::new(move |state| {
                let until = *until.get_or_insert(limit.map(|t| state.now() + t));
                let always = libc::POLLERR | libc::POLLHUP;
                let look = |&(fd, events): &(i32, i16)| match state.readiness(fd) {
                    Some(bits) => bits as i16 & (events | always),
                    None if fd < 0 => 0,
                    None => libc::POLLNVAL,
                };
                let all: Vec<i16> = entries.iter().map(look).collect();
                let ready = all.iter().filter(|r| **r != 0).count();
                if ready == 0 && until.is_none_or(|at| state.now() < at) {
                    return None;
                }
                all.iter().enumerate().for_each(|(i, revents)| told(i, *revents));
                Some(Ok(ready as isize))
            }),
        )
    }

    pub fn epoll_create(&self, size: i32) -> Outcome {
        if size <= 0 {
            return Err(libc::EINVAL);
        }
        self.with(|state| Ok(state.insert(Object::Epoll(Interests::new()))))
    }

    /// `event`: events and data.
    pub fn epoll_ctl(&self, epfd: i32, what: i32, fd: i32, event: Option<(u32, u64)>) -> Outcome {
        self.with(|state| {
            let slot = match state.socket(fd) {
                Ok(sock) => sock.slot,
                Err(libc::ENOTSOCK) => return Err(libc::EPERM),
                Err(errno) => return Err(errno),
            };
            let Some(Object::Epoll(interests)) = state.objects.get_mut(&epfd) else { return Err(libc::EBADF) };
            interests.control(slot, fd, what, event).map(|()| 0).map_err(raw)
        })
    }

    /// `told` hears index and event of each.
    pub fn epoll_wait(
        &self,
        epfd: i32,
        most: i32,
        timeout: i32,
        mut told: impl FnMut(usize, epoll_event) + 'static,
    ) -> Outcome {
        let Ok(most) = usize::try_from(most) else { return Err(libc::EINVAL) };
        let limit = u64::try_from(timeout).ok().map(Duration::from_millis);
        let mut until = None;
        self.call(
            limit,
            Box::new(move |state| {
                let until = *until.get_or_insert(limit.map(|t| state.now() + t));
                let now = state.now();
                let starved: Vec<(u32, u32)> = state
                    .objects
                    .values()
                    .filter_map(|o| match o {
                        Object::Socket(s) => Some((s.slot, s.starved)),
                        _ => None,
                    })
                    .collect();
                let State { objects, session, .. } = state;
                let Some(Object::Epoll(interests)) = objects.get_mut(&epfd) else { return Some(Err(libc::EBADF)) };
                if most == 0 {
                    return Some(Err(libc::EINVAL));
                }
                interests.mark_all();
                let mut out = vec![epoll_event { events: 0, u64: 0 }; most.min(1024)];
                let found = interests.collect(&mut out, |slot| {
                    let starved = starved.iter().find(|s| s.0 == slot)?.1;
                    session.look(slot, starved)
                });
                if found == 0 && until.is_none_or(|at| now < at) {
                    return None;
                }
                out[..found].iter().enumerate().for_each(|(i, event)| told(i, *event));
                Some(Ok(found as isize))
            }),
        )
    }

    /// Both ends: to read from, to write to.
    pub fn pipe(&self) -> [i32; 2] {
        self.with(|state| {
            state.pipes.push(VecDeque::new());
            let bytes = state.pipes.len() - 1;
            [false, true].map(|writes| state.insert(Object::Pipe { bytes, writes }) as i32)
        })
    }

    /// From a socket into a pipe, or the other way.
    pub fn splice(&self, from: i32, to: i32, most: usize) -> Outcome {
        self.call(
            None,
            Box::new(move |state| match (state.objects.get(&from), state.objects.get(&to)) {
                (Some(Object::Socket(s)), Some(Object::Pipe { bytes, writes: true })) => {
                    let (sock, pipe) = (*s, *bytes);
                    let mut buffer = vec![0; most.min(PIPE - state.pipes[pipe].len())];
                    match state.session.receive(sock.slot, &mut [IoSliceMut::new(&mut buffer)], false) {
                        Ok(n) => {
                            state.pipes[pipe].extend(&buffer[..n]);
                            Some(Ok(n as isize))
                        }
                        Err(Errno::AGAIN) if !sock.nonblocking => None,
                        Err(error) => Some(Err(raw(error))),
                    }
                }
                (Some(Object::Pipe { bytes, writes: false }), Some(Object::Socket(s))) => {
                    let (sock, pipe) = (*s, *bytes);
                    let chunk: Vec<u8> = state.pipes[pipe].iter().take(most).copied().collect();
                    if chunk.is_empty() {
                        return None;
                    }
                    match state.session.send(sock.slot, &[IoSlice::new(&chunk)], false) {
                        Ok(n) => {
                            state.pipes[pipe].drain(..n);
                            Some(Ok(n as isize))
                        }
                        Err(Errno::AGAIN) if !sock.nonblocking => None,
                        Err(error) => Some(Err(raw(error))),
                    }
                }
                (None, _) | (_, None) => Some(Err(libc::EBADF)),
                _ => Some(Err(libc::EINVAL)),
            }),
        )
    }
}

/// Moves bytes out of a pipe.
fn take_from(pipe: &mut VecDeque<u8>, buffers: &mut [IoSliceMut<'_>]) -> usize {
    let mut done = 0;
    for buffer in buffers {
        let n = buffer.len().min(pipe.len());
        buffer.iter_mut().zip(pipe.drain(..n)).for_each(|(to, from)| *to = from);
        done += n;
    }
    done
}

/// What is left of `buffers` behind the first `done` bytes.
fn after<'a>(buffers: &'a mut [IoSliceMut<'static>], mut done: usize) -> Vec<IoSliceMut<'a>> {
    let mut rest = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let skip = done.min(buffer.len());
        done -= skip;
        rest.push(IoSliceMut::new(&mut buffer[skip..]));
    }
    rest
}

fn skip<'a>(buffers: &'a [IoSlice<'static>], mut done: usize) -> Vec<IoSlice<'a>> {
    let mut rest = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let skip = done.min(buffer.len());
        done -= skip;
        rest.push(IoSlice::new(&buffer[skip..]));
    }
    rest
}
