//! Calls on descriptors as such: close and its kin, dup and its kin, fcntl, ioctl.

use core::ffi::{c_int, c_ulong, c_void};

use crate::errno::{self, Errno};
use crate::socket::{closed, install};
use crate::table::{self, Entry};
use crate::{engine, memory, raw, real, socket, stdio};

/// Before `fd` is closed: takes its entry out, so that whoever gets the number next starts afresh.
pub fn leave(fd: c_int) {
    if let Some(entry) = table::take(fd) {
        if let Entry::Epoll(epoll) = entry {
            epoll.lost(fd);
        }
        if let Entry::Socket(socket) = entry {
            socket::linger(socket);
        }
        closed(entry);
        stdio::changed(fd);
    }
}

/// After `to` was made a duplicate of `from` by the kernel. `to` may have stood for something else before.
pub fn duplicated(from: c_int, to: c_int) {
    if from == to {
        return;
    }
    duplicated_entry(from, to);
    stdio::changed(to);
}

fn duplicated_entry(from: c_int, to: c_int) {
    match table::get(from) {
        Some(entry @ Entry::Socket(socket)) => {
            socket.share();
            if !install(to, entry) {
                closed(entry);
            }
        }
        Some(entry @ Entry::Epoll(epoll)) => {
            epoll.share();
            if !install(to, entry) {
                closed(entry);
            }
        }
        Some(Entry::Internal) | None => leave(to),
    }
}

/// close_range(2): the stack's sockets in the range are let go, this library's own descriptors stay open.
///
/// # Errors
/// Linux's.
pub fn close_range(first: u32, last: u32, flags: c_int) -> Result<c_int, Errno> {
    if first > last {
        return Err(Errno(libc::EINVAL));
    }
    // CLOSE_RANGE_CLOEXEC only marks; this library's own are marked already.
    let marks_only = flags & libc::CLOSE_RANGE_CLOEXEC as c_int != 0;
    let mut spared = Vec::new();
    let mut gone = Vec::new();
    table::each(first, last, |fd, entry| match entry {
        Entry::Internal => spared.push(fd as u32),
        Entry::Socket(_) | Entry::Epoll(_) => gone.push(fd),
    });
    if !marks_only {
        gone.into_iter().for_each(leave);
    }
    let mut from = first;
    for stop in spared {
        if stop > from {
            raw_close_range(from, stop - 1, flags)?;
        }
        from = stop + 1;
    }
    if from <= last { raw_close_range(from, last, flags) } else { Ok(0) }
}

fn raw_close_range(first: u32, last: u32, flags: c_int) -> Result<c_int, Errno> {
    // SAFETY: no pointers. What is closed is what the program asked for.
    let outcome =
        unsafe { raw::call(libc::SYS_close_range, &[first as usize, last as usize, flags as usize, 0, 0, 0]) };
    if outcome < 0 { Err(Errno(-outcome as c_int)) } else { Ok(0) }
}

/// fcntl(2), around the kernel's call.
///
/// # Safety
/// As fcntl.
pub unsafe fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's word.
    let outcome = unsafe { real::fcntl(fd, command, argument) };
    if outcome < 0 {
        return outcome;
    }
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicated(fd, outcome),
        libc::F_SETFL => {
            if let Some(socket) = table::socket(fd) {
                socket.set_nonblocking(argument as c_int & libc::O_NONBLOCK != 0);
            }
        }
        _ => {}
    }
    outcome
}

/// Bytes that wait to be sent (linux/sockios.h).
const SIOCOUTQNSD: c_ulong = 0x894b;

/// ioctl(2): what the stack answers, the rest from the kernel's socket.
///
/// # Safety
/// As ioctl.
pub unsafe fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let socket = table::socket(fd);
    // The kernel looks at the low half only, and C callers may have extended the sign.
    match (request & 0xffff_ffff, socket, argument.is_null()) {
        (libc::FIONBIO, Some(socket), false) => {
            // SAFETY: the caller's word: FIONBIO takes an int.
            let outcome = unsafe { real::ioctl(fd, request, argument) };
            if outcome >= 0 {
                // SAFETY: the kernel has just read it.
                let on = unsafe { argument.cast::<c_int>().read_unaligned() } != 0;
                socket.set_nonblocking(on);
            }
            outcome
        }
        (asked @ (libc::FIONREAD | libc::TIOCOUTQ | SIOCOUTQNSD), Some(socket), false) => {
            let (Some(session), Some(slot)) = (engine::session(), socket.claimed()) else {
                // SAFETY: the caller's word.
                return unsafe { real::ioctl(fd, request, argument) };
            };
            if session.is_listening(slot) {
                errno::set(libc::EINVAL);
                return -1;
            }
            let bytes = match asked {
                libc::FIONREAD => session.queued_in(slot),
                libc::TIOCOUTQ => session.queued_out(slot),
                _ => session.not_sent(slot).unwrap_or(0) as usize,
            };
            if let Err(Errno(error)) = memory::writable(argument.cast(), size_of::<c_int>()) {
                errno::set(error);
                return -1;
            }
            // SAFETY: looked at; all write an int.
            unsafe { argument.cast::<c_int>().write_unaligned(bytes as c_int) };
            0
        }
        // SAFETY: the caller's word.
        _ => unsafe { real::ioctl(fd, request, argument) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_closed_around_our_own_descriptors() {
        let open = |at: c_int| {
            // SAFETY: no pointers; the numbers are far from anything else that runs here.
            unsafe { real::fcntl(2, libc::F_DUPFD, at as usize) }
        };
        // SAFETY: asks only.
        let is_open = |fd: c_int| unsafe { real::fcntl(fd, libc::F_GETFD, 0) } >= 0;
        let fds: Vec<c_int> = (900..905).map(open).collect();
        assert_eq!(fds, [900, 901, 902, 903, 904]);
        table::set_internal(902);
        assert_eq!(close_range(900, 904, 0), Ok(0));
        assert_eq!(fds.iter().map(|&fd| is_open(fd)).collect::<Vec<_>>(), [false, false, true, false, false]);
        table::clear_internal(902);
        assert_eq!(close_range(902, 902, 0), Ok(0));
        assert!(!is_open(902));
        assert_eq!(close_range(5, 4, 0), Err(Errno(libc::EINVAL)));
    }
}
