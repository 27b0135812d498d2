//! SCM_RIGHTS: sockets of the stack in messages over Unix sockets.
//!
//! The kernel carries placeholders. The engine is told before one is sent, and asked about one that arrived; between the
//! two it keeps the slot open, as the kernel keeps a file.

use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering};
use std::os::fd::{BorrowedFd, RawFd};

use libc::msghdr;

use crate::errno::Errno;
use crate::socket::{self, Socket};
use crate::table::{self, Entry};
use crate::{engine, files, options, process, real};

/// The descriptors in a message.
///
/// # Safety
/// `m` describes memory that can be read.
unsafe fn descriptors(m: &msghdr) -> Vec<RawFd> {
    let mut found = Vec::new();
    // SAFETY: the caller's word; the macros stay inside msg_controllen.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(m);
        while let Some(head) = c.as_ref() {
            if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
                let bytes = head.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(c).cast::<RawFd>();
                found.extend((0..bytes / size_of::<RawFd>()).map(|n| data.add(n).read_unaligned()));
            }
            c = libc::CMSG_NXTHDR(m, c);
        }
    }
    found
}

/// Calls `with` with the descriptor as one that stays open meanwhile.
fn borrowed<R>(fd: RawFd, with: impl FnOnce(BorrowedFd<'_>) -> R) -> R {
    // SAFETY: the program's, which is in the middle of a call with it.
    with(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Makes the call `send`, which sends `m` to another process. `send` returns less than 0 when it failed.
///
/// # Safety
/// As [`descriptors`].
pub unsafe fn sending<T: PartialOrd + Default>(m: &msghdr, send: impl FnOnce() -> T) -> Result<T, Errno> {
    let Some(session) = engine::session().filter(|_| m.msg_controllen > 0 && !m.msg_control.is_null()) else {
        return Ok(send());
    };
    // SAFETY: the caller's word.
    let fds = unsafe { descriptors(m) };
    let mut announced = Vec::new();
    let mut refused = None;
    for fd in fds {
        if let Some(slot) = table::socket(fd).and_then(Socket::claimed) {
            match borrowed(fd, |placeholder| session.send_away(slot, placeholder)) {
                Ok(()) => announced.push(fd),
                Err(error) => refused = Some(error),
            }
        }
    }
    let outcome = if refused.is_none() { send() } else { T::default() };
    if refused.is_some() || outcome < T::default() {
        let error = crate::errno::get();
        for fd in announced {
            // Taken in here, where it is open already: it is as if it had not been sent.
            let _ = borrowed(fd, |placeholder| session.take_in(placeholder));
        }
        crate::errno::set(error);
    }
    match refused {
        Some(error) => Err(error.into()),
        None => Ok(outcome),
    }
}

/// After `m` was received: its sockets of the stack are this process's.
///
/// # Safety
/// As [`descriptors`].
pub unsafe fn received(m: &msghdr) {
    if engine::settings().is_none() || m.msg_controllen == 0 || m.msg_control.is_null() {
        return;
    }
    // SAFETY: the caller's word.
    for fd in unsafe { descriptors(m) } {
        if table::get(fd).is_some() {
            // A number that was closed where it could not be seen.
            files::leave(fd);
        }
        if let Some((v6, datagram)) = candidate(fd) {
            arrived(fd, v6, datagram);
        }
    }
}

/// An integer option of a socket.
fn option(fd: RawFd, name: c_int) -> Option<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: room for an int.
    let outcome = unsafe { real::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) };
    (outcome == 0).then_some(value)
}

/// Family and kind of a socket that could be the stack's.
fn candidate(fd: RawFd) -> Option<(bool, bool)> {
    let domain = option(fd, libc::SO_DOMAIN).filter(|d| [libc::AF_INET, libc::AF_INET6].contains(d))?;
    let datagram = match (option(fd, libc::SO_TYPE)?, option(fd, libc::SO_PROTOCOL)?) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => false,
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => true,
        _ => return None,
    };
    Some((domain == libc::AF_INET6, datagram))
}

fn arrived(fd: RawFd, v6: bool, datagram: bool) {
    let session = match engine::session() {
        Some(session) => session,
        None => match borrowed(fd, engine::attach_to_owner_of) {
            Some(session) => session,
            None => return,
        },
    };
    match borrowed(fd, |placeholder| session.take_in(placeholder)) {
        Ok(slot) => process::inherit(session, fd, slot),
        Err(sidestep_client::Errno::NOENT) => fresh(fd, v6, datagram),
        Err(error) => {
            static SAID: AtomicBool = AtomicBool::new(false);
            if !SAID.swap(true, Ordering::Relaxed) {
                let why = if error == sidestep_client::Errno::XDEV {
                    "it belongs to a program that another `sidestep run` started, and this one has sockets of its own"
                } else {
                    "the engine does not give it out"
                };
                engine::say(&format!("sidestep: a socket that arrived over a Unix socket can't be used: {why}\n"));
            }
        }
    }
}

/// One that is nobody's: the first address decides whose it becomes, unless the kernel has it already.
fn fresh(fd: RawFd, v6: bool, datagram: bool) {
    // SAFETY: all-zero is an address.
    let mut name: libc::sockaddr_in6 = unsafe { core::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    // SAFETY: room for either family, whose ports lie at one place.
    let bound = unsafe { real::getsockname(fd, (&raw mut name).cast(), &raw mut len) } != 0 || name.sin6_port != 0;
    if bound {
        return;
    }
    // SAFETY: asks only.
    let nonblock = unsafe { real::fcntl(fd, libc::F_GETFL, 0) } & libc::O_NONBLOCK != 0;
    let socket = Socket::new(v6, datagram, nonblock);
    for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        options::was_set(socket, fd, libc::SOL_SOCKET, name);
    }
    if !socket::install(fd, Entry::Socket(socket)) {
        socket.unshare();
    }
}
