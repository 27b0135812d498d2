//! The C API of `include/sidestep.h`, which documents it. Nothing here unwinds into C.
#![allow(non_camel_case_types)]

mod batch;
mod border;
mod epoll;
mod message;
mod options;
#[cfg(test)]
mod tests;
mod zero_copy;

use core::cell::Cell;
use core::ffi::{CStr, c_char, c_int, c_void};
use std::io::{IoSlice, IoSliceMut};
use std::sync::Mutex;

use rustix::io::Errno;
use sidestep_shm::slot::{kind, option};

use crate::borrow::Borrowed;
use crate::net::{Client, PollEntry, Socket};
pub use batch::{ss_io, ss_recv_many, ss_recvmmsg, ss_send_many, ss_sendmmsg};
use border::{LAST, TEXT, bad, bytes, bytes_mut, guard, note, read_address, socket, write_address};
pub use epoll::{ss_epoll, ss_epoll_close, ss_epoll_create, ss_epoll_ctl, ss_epoll_ctl_fd, ss_epoll_wait};
pub use message::{ss_recvmsg, ss_sendmsg};
pub use options::{ss_fcntl, ss_getsockopt, ss_setsockopt};
pub use zero_copy::{ss_recv_done, ss_recv_zc, ss_send_commit, ss_send_reserve};

/// `struct ss_engine`.
pub struct ss_engine {
    /// What was started along with it; ends first.
    owner: Option<Owner>,
    client: Client,
}

/// An engine in this process that goes with a handle. Whoever made the handle knows what it is.
pub type Owner = Box<dyn core::any::Any + Send + Sync>;

impl ss_engine {
    /// A handle of sockets of `client`, for C; `owner` is dropped by `ss_detach`.
    #[must_use]
    pub fn handle(client: Client, owner: Option<Owner>) -> *mut Self {
        Box::into_raw(Box::new(Self { owner, client }))
    }

    /// What was given to [`Self::handle`].
    #[must_use]
    pub fn owner(&self) -> Option<&(dyn core::any::Any + Send + Sync)> {
        self.owner.as_deref()
    }
}

/// Runs what a C function does; an error is noted for `ss_errno` and `ss_strerror` and becomes -1, and a panic too. For
/// further functions of the same API.
pub fn run(f: impl FnOnce() -> Result<isize, (c_int, String)>) -> isize {
    let mut noted = None;
    let outcome = guard(|| {
        f().map_err(|(errno, text)| {
            noted = Some((errno, text));
            std::io::Error::from_raw_os_error(errno)
        })
    });
    if let Some((errno, text)) = noted {
        note(errno, text);
    }
    outcome
}

/// `struct ss_sock`.
pub struct ss_sock {
    socket: Socket,
    /// What `ss_recv_zc` and `ss_send_reserve` lent.
    received: Mutex<Option<Borrowed>>,
    reserved: Mutex<Option<Borrowed>>,
}

impl ss_sock {
    fn boxed(socket: Socket) -> *mut Self {
        Box::into_raw(Box::new(Self { socket, received: Mutex::new(None), reserved: Mutex::new(None) }))
    }
}

impl AsRef<Socket> for ss_sock {
    fn as_ref(&self) -> &Socket {
        &self.socket
    }
}

/// `struct ss_pollfd`.
#[repr(C)]
pub struct ss_pollfd {
    sock: *mut ss_sock,
    /// A descriptor of the kernel's if `sock` is null.
    fd: c_int,
    events: c_int,
    revents: c_int,
}

const MSG_PEEK: c_int = 0x2;
const MSG_TRUNC: c_int = 0x20;
const MSG_DONTWAIT: c_int = 0x40;
const MSG_NOSIGNAL: c_int = 0x4000;
const MSG_MORE: c_int = 0x8000;

/// See `include/sidestep.h`.
///
/// # Safety
/// `path` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_attach(path: *const c_char) -> *mut ss_engine {
    let mut engine = core::ptr::null_mut();
    guard(|| {
        let client = if path.is_null() {
            Client::from_environment()
        } else {
            // SAFETY: the caller's word.
            Client::attach(unsafe { CStr::from_ptr(path) }.to_str().or(bad(Errno::INVAL))?)
        };
        match client {
            Ok(client) => {
                engine = ss_engine::handle(client, None);
                Ok(0)
            }
            Err(e) => {
                let errno = e.errno();
                note(errno.raw_os_error(), e.to_string());
                Ok(-1)
            }
        }
    });
    engine
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or was given by `ss_attach` and not detached yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_detach(engine: *mut ss_engine) {
    guard(|| {
        if !engine.is_null() {
            // SAFETY: the caller's word.
            drop(unsafe { Box::from_raw(engine) });
        }
        Ok(0)
    });
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_socket(engine: *mut ss_engine, domain: c_int, kind_of: c_int) -> *mut ss_sock {
    let mut sock = core::ptr::null_mut();
    guard(|| {
        // SAFETY: the caller's word.
        let Some(engine) = (unsafe { engine.as_ref() }) else { return bad(Errno::INVAL) };
        let kind = match (domain, kind_of & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)) {
            (2, 1) => kind::TCP4,
            (10, 1) => kind::TCP6,
            (2, 2) => kind::UDP4,
            (10, 2) => kind::UDP6,
            (2 | 10, _) => return bad(Errno::PROTONOSUPPORT),
            _ => return bad(Errno::AFNOSUPPORT),
        };
        let opened = Socket::open(&engine.client, kind)?;
        opened.set_nonblocking(kind_of & libc::SOCK_NONBLOCK != 0);
        sock = ss_sock::boxed(opened);
        Ok(0)
    });
    sock
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; nobody uses it meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_close(sock: *mut ss_sock) {
    guard(|| {
        if !sock.is_null() {
            // SAFETY: the caller's word.
            let sock = unsafe { Box::from_raw(sock) };
            zero_copy::end(&sock);
        }
        Ok(0)
    });
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `address` points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_bind(sock: *mut ss_sock, address: *const c_void, len: u32) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, to) = unsafe { (socket(sock)?, read_address(address, len)?) };
        let options = if s.session().is_datagram(s.slot()) { 0 } else { option::REUSE_ADDRESS };
        s.session().bind(s.slot(), to, options)?;
        Ok(0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_listen(sock: *mut ss_sock, backlog: c_int) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { socket(sock) }?;
        // Linux takes a negative backlog for the largest.
        s.session().listen(s.slot(), u32::try_from(backlog).unwrap_or(u32::MAX))?;
        Ok(0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `address` and `len` as for accept(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_accept(sock: *mut ss_sock, address: *mut c_void, len: *mut u32) -> *mut ss_sock {
    // SAFETY: the caller's word.
    unsafe { ss_accept4(sock, address, len, 0) }
}

/// See `include/sidestep.h`.
///
/// # Safety
/// As [`ss_accept`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_accept4(
    sock: *mut ss_sock,
    address: *mut c_void,
    len: *mut u32,
    flags: c_int,
) -> *mut ss_sock {
    let mut accepted = core::ptr::null_mut();
    guard(|| {
        if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
            return bad(Errno::INVAL);
        }
        // SAFETY: the caller's word.
        let (s, remote) = unsafe { socket(sock) }?.accept()?;
        // SAFETY: the caller's word.
        unsafe { write_address(remote, address, len) }?;
        s.set_nonblocking(flags & libc::SOCK_NONBLOCK != 0);
        accepted = ss_sock::boxed(s);
        Ok(0)
    });
    accepted
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `address` points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_connect(sock: *mut ss_sock, address: *const c_void, len: u32) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, to) = unsafe { (socket(sock)?, read_address(address, len)?) };
        s.connect(to).map(|()| 0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `buf` points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_send(sock: *mut ss_sock, buf: *const c_void, len: usize, flags: c_int) -> isize {
    // SAFETY: the caller's word.
    unsafe { ss_sendto(sock, buf, len, flags, core::ptr::null(), 0) }
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `buf` points to `len` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_recv(sock: *mut ss_sock, buf: *mut c_void, len: usize, flags: c_int) -> isize {
    // SAFETY: the caller's word.
    unsafe { ss_recvfrom(sock, buf, len, flags, core::ptr::null_mut(), core::ptr::null_mut()) }
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `buf` points to `len` bytes, `address` is null or points to `address_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_sendto(
    sock: *mut ss_sock,
    buf: *const c_void,
    len: usize,
    flags: c_int,
    address: *const c_void,
    address_len: u32,
) -> isize {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, data) = unsafe { (socket(sock)?, bytes(buf, len)?) };
        if flags & !(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE) != 0 {
            return bad(Errno::OPNOTSUPP);
        }
        let n = if s.session().is_datagram(s.slot()) {
            // SAFETY: the caller's word.
            let to = if address.is_null() { None } else { Some(unsafe { read_address(address, address_len) }?) };
            s.send_to(data, to, flags & MSG_DONTWAIT != 0)?
        } else {
            s.send(&[IoSlice::new(data)], flags & MSG_MORE != 0, flags & MSG_DONTWAIT != 0)?
        };
        Ok(n as isize)
    })
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `buf` points to `len` writable bytes; `address` and `address_len` as for recvfrom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_recvfrom(
    sock: *mut ss_sock,
    buf: *mut c_void,
    len: usize,
    flags: c_int,
    address: *mut c_void,
    address_len: *mut u32,
) -> isize {
    guard(|| {
        // SAFETY: the caller's word.
        let (s, into) = unsafe { (socket(sock)?, bytes_mut(buf, len)?) };
        if flags & !(MSG_DONTWAIT | MSG_PEEK) != 0 {
            return bad(Errno::OPNOTSUPP);
        }
        let (peek, dont_wait) = (flags & MSG_PEEK != 0, flags & MSG_DONTWAIT != 0);
        if s.session().is_datagram(s.slot()) {
            let (n, from) = s.receive_from(into, peek, dont_wait)?;
            // SAFETY: the caller's word.
            unsafe { write_address(from, address, address_len) }?;
            return Ok(n as isize);
        }
        Ok(s.receive(&mut [IoSliceMut::new(into)], peek, dont_wait)? as isize)
    })
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_shutdown(sock: *mut ss_sock, how: c_int) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { socket(sock) }?;
        if !(0..=2).contains(&how) {
            return bad(Errno::INVAL);
        }
        s.shutdown(how != 1, how != 0).map(|()| 0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `entries` points to `count` entries, whose sockets are null or open and of one engine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_poll(entries: *mut ss_pollfd, count: usize, timeout_ms: c_int) -> c_int {
    guard(|| {
        if entries.is_null() && count > 0 {
            return bad(Errno::FAULT);
        }
        // SAFETY: the caller's word.
        let entries = if count == 0 { &mut [] } else { unsafe { core::slice::from_raw_parts_mut(entries, count) } };
        let mut asked = Vec::with_capacity(count);
        let mut kernel = Vec::new();
        for e in entries.iter() {
            // SAFETY: the caller's word.
            match unsafe { e.sock.as_ref() } {
                Some(sock) => asked.push(PollEntry::new(sock, e.events as u32)),
                None => kernel.push(libc::pollfd { fd: e.fd, events: e.events as i16, revents: 0 }),
            }
        }
        // SAFETY: as above.
        let first = entries.iter().find_map(|e| unsafe { e.sock.as_ref() });
        let Some(first) = first else { return bad(Errno::INVAL) };
        let client = first.socket.client().clone();
        let ready = if kernel.iter().any(|k| k.fd >= 0) {
            client.poll_with(&mut asked, &mut kernel, epoll::timeout(timeout_ms))?
        } else {
            client.poll(&mut asked, epoll::timeout(timeout_ms))?
        };
        let mut sockets = asked.iter().map(|a| a.ready as c_int);
        let mut descriptors = kernel.iter().map(|k| c_int::from(k.revents));
        for e in entries.iter_mut() {
            let answer = if e.sock.is_null() { descriptors.next() } else { sockets.next() };
            e.revents = answer.unwrap_or(0);
        }
        Ok(ready as isize)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `address` and `len` as for getsockname(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_getsockname(sock: *mut ss_sock, address: *mut c_void, len: *mut u32) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { socket(sock) }?;
        let local = s.session().local_address(s.slot()).map_or_else(|| bad(Errno::BADF), Ok)?;
        // SAFETY: the caller's word.
        unsafe { write_address(local, address, len) }.map(|()| 0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open; `address` and `len` as for getpeername(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_getpeername(sock: *mut ss_sock, address: *mut c_void, len: *mut u32) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { socket(sock) }?;
        let remote = s.session().remote_address(s.slot()).map_or_else(|| bad(Errno::NOTCONN), Ok)?;
        // SAFETY: the caller's word.
        unsafe { write_address(remote, address, len) }.map(|()| 0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_set_nonblocking(sock: *mut ss_sock, on: c_int) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        unsafe { socket(sock) }?.set_nonblocking(on != 0);
        Ok(0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_set_nodelay(sock: *mut ss_sock, on: c_int) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { socket(sock) }?;
        s.session().set_option(s.slot(), option::NO_DELAY, on != 0)?;
        Ok(0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `sock` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_take_error(sock: *mut ss_sock) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let s = unsafe { socket(sock) }?;
        Ok(s.session().take_error(s.slot()) as isize)
    }) as c_int
}

/// See `include/sidestep.h`.
#[unsafe(no_mangle)]
pub extern "C" fn ss_errno() -> c_int {
    LAST.with(Cell::get)
}

/// See `include/sidestep.h`.
#[unsafe(no_mangle)]
pub extern "C" fn ss_strerror() -> *const c_char {
    TEXT.with(|t| t.borrow().as_ptr())
}
