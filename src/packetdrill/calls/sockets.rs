//! Sockets from socket() to close(), and what fcntl() and ioctl() say of them.

use std::net::{Ipv6Addr, SocketAddr};

use sidestep_client::Errno;
use sidestep_client::shm::slot::{kind, option};

use super::super::script::Expression;
use super::super::settings::Family;
use super::super::world::World;
use super::arguments::{address, as_socket_has_it, number};
use super::{Attempt, Call, Calls, Object, Sock, Step, fails, gives, socket};

const SIOCOUTQNSD: i64 = 0x894b;
const NONBLOCK: i64 = libc::SOCK_NONBLOCK as i64;

impl Calls {
    pub(super) fn socket(&mut self, world: &mut World, call: &Call) -> Attempt {
        let domain = match call.argument(0)? {
            Expression::Ellipsis if world.settings.family == Family::V4 => i64::from(libc::AF_INET),
            Expression::Ellipsis => i64::from(libc::AF_INET6),
            other => number(world, other)?,
        };
        let kind = call.number(world, 1)?;
        let v6 = domain == i64::from(libc::AF_INET6);
        if !v6 && domain != i64::from(libc::AF_INET) {
            return fails(libc::EAFNOSUPPORT);
        }
        let (datagram, slot_kind) = match (kind & 0xf, v6) {
            (1, false) => (false, kind::TCP4),
            (1, true) => (false, kind::TCP6),
            (2, false) => (true, kind::UDP4),
            (2, true) => (true, kind::UDP6),
            _ => return fails(libc::ESOCKTNOSUPPORT),
        };
        let slot = match world.session.open(slot_kind) {
            Ok(slot) => slot,
            Err(error) => return fails(error.raw_os_error()),
        };
        let sock = Sock::new(slot, v6, datagram, kind & NONBLOCK != 0);
        gives(self.insert(call.wanted(), Object::Socket(sock))?)
    }

    pub(super) fn bind(&mut self, world: &mut World, call: &Call) -> Attempt {
        let sock = socket!(self, call.number(world, 0)?);
        let default = SocketAddr::new(world.settings.local, world.settings.bind_port);
        let wanted = address(world, call.argument(1)?)?;
        let to = wanted.unwrap_or(default);
        let to = SocketAddr::new(as_socket_has_it(world.settings.family, sock.v6, to.ip()), to.port());
        match world.session.bind(sock.slot, to, 0) {
            Ok(at) => {
                if sock.datagram {
                    world.current = None;
                    world.settings.bind_port = at.port();
                }
                gives(0)
            }
            Err(error) => fails(error.raw_os_error()),
        }
    }

    pub(super) fn listen(&mut self, world: &mut World, call: &Call) -> Attempt {
        let sock = socket!(self, call.number(world, 0)?);
        let backlog = call.number(world, 1)?;
        match world.session.listen(sock.slot, u32::try_from(backlog).unwrap_or(u32::MAX)) {
            Ok(at) => {
                world.listening = true;
                world.settings.bind_port = at.port();
                gives(0)
            }
            Err(error) => fails(error.raw_os_error()),
        }
    }

    pub(super) fn accept(&mut self, world: &mut World, call: &Call) -> Attempt {
        let fd = call.number(world, 0)?;
        let flags = if call.syscall.name == "accept4" { call.number(world, 3)? } else { 0 };
        let listener = socket!(self, fd);
        match world.session.accept(listener.slot) {
            Ok((slot, remote)) => {
                let mut sock = Sock::new(slot, listener.v6, false, flags & NONBLOCK != 0);
                sock.options = listener.options.clone();
                let local = world.session.local_address(slot).map_or(world.settings.bind_port, |a| a.port());
                world.own(slot, local, remote.port());
                gives(self.insert(call.wanted(), Object::Socket(sock))?)
            }
            Err(Errno::AGAIN) if !listener.nonblocking => Ok(Step::Wait),
            Err(error) => fails(error.raw_os_error()),
        }
    }

    pub(super) fn connect(&mut self, world: &mut World, call: &mut Call) -> Attempt {
        let sock = socket!(self, call.number(world, 0)?);
        if call.begun {
            return match world.session.connect_outcome(sock.slot) {
                Ok(false) => Ok(Step::Wait),
                Ok(true) => {
                    sock.connecting = false;
                    gives(0)
                }
                Err(error) => {
                    sock.connecting = false;
                    fails(error.raw_os_error())
                }
            };
        }
        let default = SocketAddr::new(world.settings.remote, world.settings.connect_port);
        let to = match call.argument(1)? {
            e if unspecified_family(world, e) && !sock.datagram => {
                // As tcp_disconnect(): the connection ends, the descriptor goes on.
                let kind = if sock.v6 { kind::TCP6 } else { kind::TCP4 };
                let fresh = match world.session.open(kind) {
                    Ok(fresh) => fresh,
                    Err(error) => return fails(error.raw_os_error()),
                };
                let old = std::mem::replace(&mut sock.slot, fresh);
                (sock.deferred, sock.connecting, sock.reads, sock.writes) = (None, false, 0, 0);
                world.disconnect(old, fresh);
                return gives(0);
            }
            e if unspecified_family(world, e) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
            e => address(world, e)?.unwrap_or(default),
        };
        let to = SocketAddr::new(as_socket_has_it(world.settings.family, sock.v6, to.ip()), to.port());
        let fast = world.session.option(sock.slot, option::FAST_OPEN);
        if fast
            && !sock.connecting
            && (world.fast_open_room().is_some() || world.session.option(sock.slot, option::NO_COOKIE))
        {
            // As Linux: the SYN waits for the first write.
            if sock.deferred.is_some() {
                return fails(libc::EALREADY);
            }
            sock.deferred = Some(to);
            return gives(0);
        }
        match world.session.connect(sock.slot, to) {
            Ok(()) => {}
            Err(Errno::ISCONN) if sock.connecting => {
                sock.connecting = false;
                return gives(0);
            }
            Err(Errno::ALREADY) if !sock.nonblocking => {}
            Err(error) => return fails(error.raw_os_error()),
        }
        world.settle();
        let local = world.session.local_address(sock.slot).map_or(0, |a| a.port());
        world.own(sock.slot, local, to.port());
        if sock.datagram {
            return gives(0);
        }
        sock.connecting = true;
        if sock.nonblocking {
            // What needs no answer is known at once.
            return match world.session.connect_outcome(sock.slot) {
                Ok(_) => fails(libc::EINPROGRESS),
                Err(error) => fails(error.raw_os_error()),
            };
        }
        call.begun = true;
        Ok(Step::Wait)
    }

    pub(super) fn close(&mut self, world: &mut World, call: &Call) -> Attempt {
        let fd = call.number(world, 0)?;
        match self.objects.remove(&fd) {
            Some(Object::Socket(sock)) => {
                self.forget_in_epolls(sock.slot);
                world.session.close(sock.slot);
                if let Some(key) = sock.former_key {
                    world.settings.tcp.fast_open_key = key;
                    world.apply();
                }
                gives(0)
            }
            Some(_) => gives(0),
            None => fails(libc::EBADF),
        }
    }

    pub(super) fn shutdown(&mut self, world: &mut World, call: &Call) -> Attempt {
        let sock = socket!(self, call.number(world, 0)?);
        let how = call.number(world, 1)?;
        if !(0..=2).contains(&how) {
            return fails(libc::EINVAL);
        }
        match world.session.shutdown(sock.slot, how != 1, how != 0) {
            Ok(()) => gives(0),
            Err(error) => fails(error.raw_os_error()),
        }
    }

    pub(super) fn fcntl(&mut self, world: &mut World, call: &Call) -> Attempt {
        let (fd, command) = (call.number(world, 0)?, call.number(world, 1)? as i32);
        let nonblock = i64::from(libc::O_NONBLOCK);
        match (command, self.objects.get_mut(&fd)) {
            (_, None) => fails(libc::EBADF),
            (libc::F_GETFD | libc::F_SETFD, _) => gives(0),
            (libc::F_GETFL, Some(Object::Socket(s))) => {
                gives(i64::from(libc::O_RDWR) | if s.nonblocking { nonblock } else { 0 })
            }
            (libc::F_SETFL, Some(Object::Socket(s))) => {
                s.nonblocking = call.number(world, 2)? & nonblock != 0;
                gives(0)
            }
            (libc::F_GETFL | libc::F_SETFL, _) => gives(0),
            _ => fails(libc::EINVAL),
        }
    }

    pub(super) fn ioctl(&mut self, world: &mut World, call: &Call) -> Attempt {
        let sock = socket!(self, call.number(world, 0)?);
        let request = call.number(world, 1)?;
        let (tell, session) = (call.argument(2)?, &world.session);
        let answer = match request {
            r if r == libc::FIONREAD as i64 => session.queued_in(sock.slot),
            r if r == libc::TIOCOUTQ as i64 => session.queued_out(sock.slot),
            SIOCOUTQNSD => session.not_sent(sock.slot).map_or(0, |n| n as usize),
            _ => return fails(libc::ENOTTY),
        };
        expect(world, "ioctl() tells", tell, answer as i64)?;
        gives(0)
    }
}

impl Sock {
    pub(super) fn new(slot: u32, v6: bool, datagram: bool, nonblocking: bool) -> Self {
        Self {
            slot,
            v6,
            datagram,
            nonblocking,
            deferred: None,
            connecting: false,
            options: std::collections::BTreeMap::new(),
            reads: 0,
            writes: 0,
            starved: 0,
            former_key: None,
        }
    }
}

/// Compares what a call wrote with what the script has there.
///
/// # Errors
/// It is something else.
pub(super) fn expect(world: &World, what: &str, wanted: &Expression, got: i64) -> Result<(), String> {
    let wanted = match wanted {
        Expression::Ellipsis => return Ok(()),
        Expression::List(all) if all.first() == Some(&Expression::Ellipsis) => return Ok(()),
        other => number(world, other)?,
    };
    if wanted == got { Ok(()) } else { Err(format!("{what} {got}, expected {wanted}")) }
}

fn unspecified_family(world: &World, e: &Expression) -> bool {
    if matches!(e, Expression::Name(name) if name == "AF_UNSPEC") {
        return true;
    }
    super::arguments::field(e, "sa_family").is_some_and(|f| number(world, f) == Ok(0))
}
