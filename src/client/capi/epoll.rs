//! epoll(7), and what poll(2) has of the kernel.

use core::ffi::c_int;
use core::time::Duration;
use std::os::fd::BorrowedFd;

use libc::epoll_event;
use rustix::io::Errno;

use super::border::{bad, guard, socket};
use super::{ss_engine, ss_sock};
use crate::net::Epoll;

/// `struct ss_epoll`.
pub struct ss_epoll(Epoll);

/// Milliseconds as poll(2) has them: below 0 there is no limit.
pub(super) fn timeout(ms: c_int) -> Option<Duration> {
    u64::try_from(ms).ok().map(Duration::from_millis)
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_epoll_create(engine: *mut ss_engine) -> *mut ss_epoll {
    let mut made = core::ptr::null_mut();
    guard(|| {
        // SAFETY: the caller's word.
        let Some(engine) = (unsafe { engine.as_ref() }) else { return bad(Errno::INVAL) };
        made = Box::into_raw(Box::new(ss_epoll(Epoll::new(&engine.client)?)));
        Ok(0)
    });
    made
}

/// # Safety
/// `epoll` is null or was not closed; `event` is null or points to an event.
unsafe fn open<'a>(
    epoll: *mut ss_epoll,
    event: *const epoll_event,
) -> std::io::Result<(&'a Epoll, Option<(u32, u64)>)> {
    // SAFETY: the caller's word.
    let (epoll, event) = unsafe { (epoll.as_ref(), (!event.is_null()).then(|| event.read_unaligned())) };
    epoll.map_or_else(|| bad(Errno::BADF), |e| Ok((&e.0, event.map(|e| (e.events, e.u64)))))
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `epoll` and `sock` are null or open; `event` is null or points to an event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_epoll_ctl(
    epoll: *mut ss_epoll,
    operation: c_int,
    sock: *mut ss_sock,
    event: *const epoll_event,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let ((epoll, event), s) = unsafe { (open(epoll, event)?, socket(sock)?) };
        epoll.control(operation, s, event).map(|()| 0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `epoll` is null or open; `event` is null or points to an event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_epoll_ctl_fd(
    epoll: *mut ss_epoll,
    operation: c_int,
    fd: c_int,
    event: *const epoll_event,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let (epoll, event) = unsafe { open(epoll, event) }?;
        if fd < 0 {
            return bad(Errno::BADF);
        }
        // SAFETY: only handed to epoll_ctl(2), which says so if it is not open.
        epoll.control_fd(operation, unsafe { BorrowedFd::borrow_raw(fd) }, event).map(|()| 0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `epoll` is null or open; `events` points to room for `most` events.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_epoll_wait(
    epoll: *mut ss_epoll,
    events: *mut epoll_event,
    most: c_int,
    timeout_ms: c_int,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's word.
        let (epoll, _) = unsafe { open(epoll, core::ptr::null()) }?;
        let Some(most) = usize::try_from(most).ok().filter(|n| *n > 0) else { return bad(Errno::INVAL) };
        if events.is_null() {
            return bad(Errno::FAULT);
        }
        // SAFETY: the caller's word; it is only written to. The kernel's struct is packed, so alignment is none.
        let out = unsafe { core::slice::from_raw_parts_mut(events, most) };
        epoll.wait(out, timeout(timeout_ms)).map(|n| n as isize)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `epoll` is null or open; nobody uses it meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_epoll_close(epoll: *mut ss_epoll) {
    guard(|| {
        if !epoll.is_null() {
            // SAFETY: the caller's word.
            drop(unsafe { Box::from_raw(epoll) });
        }
        Ok(0)
    });
}
