//! socket, bind, listen, accept, connect, shutdown, names, options.

use core::ffi::{c_int, c_void};

use libc::{sockaddr, socklen_t};

use super::{candidate, export, guard, ours};
use crate::address::{self, Given};
use crate::errno::Errno;
use crate::socket::{self, Done};
use crate::{engine, library, options, real};

export! {
    /// socket(2).
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
        let fd = real::socket(domain, kind, protocol);
        if fd < 0 || engine::settings().is_none() || library::is_inside() {
            return fd;
        }
        guard(|| socket::opened(fd, domain, kind, protocol))
    }

    /// bind(2).
    fn bind(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int {
        let Some((session, socket)) = candidate(fd) else { return real::bind(fd, to, len) };
        let outcome = guard(|| match address::read(socket.domain(), to, len)? {
            Given::Inet(to) => Ok(match socket::bind(session, socket, fd, to)? {
                Done::Here => 0,
                Done::Kernel => KERNEL,
            }),
            // Linux takes "any address" without a family for IPv4's.
            Given::Unspecified => match address::read_destination(libc::AF_INET, to, len)? {
                Some(to) if socket.domain() == libc::AF_INET && to.ip().is_unspecified() => {
                    Ok(match socket::bind(session, socket, fd, to)? {
                        Done::Here => 0,
                        Done::Kernel => KERNEL,
                    })
                }
                _ => Err(Errno(libc::EAFNOSUPPORT)),
            },
        });
        if outcome == KERNEL { real::bind(fd, to, len) } else { outcome }
    }

    /// listen(2).
    fn listen(fd: c_int, backlog: c_int) -> c_int {
        let Some((session, socket)) = candidate(fd) else { return real::listen(fd, backlog) };
        guard(|| socket::listen(session, socket, backlog).map(|()| 0))
    }

    /// connect(2).
    fn connect(fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int {
        let Some((session, socket)) = candidate(fd) else { return real::connect(fd, to, len) };
        let outcome = guard(|| {
            let to = match address::read(socket.domain(), to, len)? {
                Given::Inet(to) => Some(to),
                Given::Unspecified => None,
            };
            Ok(match socket::connect(session, socket, fd, to)? {
                Done::Here => 0,
                Done::Kernel => KERNEL,
            })
        });
        if outcome == KERNEL { real::connect(fd, to, len) } else { outcome }
    }

    /// accept(2).
    fn accept(fd: c_int, peer: *mut sockaddr, len: *mut socklen_t) -> c_int {
        if ours(fd).is_none() {
            return real::accept(fd, peer, len);
        }
        accept4(fd, peer, len, 0)
    }

    /// accept4(2).
    fn accept4(fd: c_int, peer: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
        let Some((session, socket, slot)) = ours(fd) else { return real::accept4(fd, peer, len, flags) };
        guard(|| {
            if !peer.is_null() && len.is_null() {
                return Err(Errno(libc::EFAULT));
            }
            let (new, from) = socket::accept(session, socket, slot, flags)?;
            address::write(socket.domain(), &from, peer, len)?;
            Ok(new)
        })
    }

    /// shutdown(2).
    fn shutdown(fd: c_int, how: c_int) -> c_int {
        let Some((session, socket, slot)) = ours(fd) else { return real::shutdown(fd, how) };
        guard(|| socket::shutdown(session, socket, slot, how).map(|()| 0))
    }

    /// getsockname(2).
    fn getsockname(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int {
        let Some((session, socket, slot)) = ours(fd) else { return real::getsockname(fd, to, len) };
        guard(|| {
            let name = session.local_address(slot).ok_or(Errno(libc::EBADF))?;
            if to.is_null() {
                return Err(Errno(libc::EFAULT));
            }
            address::write(socket.domain(), &name, to, len).map(|()| 0)
        })
    }

    /// getpeername(2).
    fn getpeername(fd: c_int, to: *mut sockaddr, len: *mut socklen_t) -> c_int {
        let Some((session, socket, slot)) = ours(fd) else { return real::getpeername(fd, to, len) };
        guard(|| {
            let name = session.remote_address(slot).ok_or(Errno(libc::ENOTCONN))?;
            if to.is_null() {
                return Err(Errno(libc::EFAULT));
            }
            address::write(socket.domain(), &name, to, len).map(|()| 0)
        })
    }

    /// setsockopt(2).
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
        let Some((session, socket)) = candidate(fd) else { return real::setsockopt(fd, level, name, value, len) };
        guard(|| {
            options::set(session, socket, fd, (level, name), value, len)
        })
    }

    /// getsockopt(2).
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int {
        let Some((session, socket)) = candidate(fd) else { return real::getsockopt(fd, level, name, value, len) };
        let answer = || match socket.claimed() {
            Some(slot) => options::get(session, socket, slot, (level, name), value, len),
            None => options::get_undecided(socket, (level, name), value, len),
        };
        guard(|| match answer()? {
            Some(()) => Ok(0),
            None => options::kernel(real::getsockopt(fd, level, name, value, len)),
        })
    }
}

/// What no C call returns: the call is the kernel's.
const KERNEL: c_int = c_int::MIN;
