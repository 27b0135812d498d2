//! poll, select, epoll.

use core::ffi::{c_int, c_long};

use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, timespec, timeval};
use sidestep_client::now_ns;

use super::{export, guard};
use crate::errno::Errno;
use crate::poll::{self, Bits};
use crate::table::{self, Entry};
use crate::{engine, epoll, memory, real};

/// A timeout in nanoseconds; None: for ever.
///
/// # Safety
/// `time` is null or valid.
pub(super) unsafe fn timeout(time: *const timespec) -> Result<Option<u64>, Errno> {
    if time.is_null() {
        return Ok(None);
    }
    memory::readable(time.cast(), size_of::<timespec>())?;
    // SAFETY: looked at; callers' structures may lie at any address.
    let time = unsafe { time.read_unaligned() };
    if time.tv_sec < 0 || !(0..1_000_000_000).contains(&time.tv_nsec) {
        return Err(Errno(libc::EINVAL));
    }
    Ok(Some((time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)))
}

/// Members from which on sizes in bytes could overflow; no limit of descriptors reaches that far.
const MOST_MEMBERS: usize = 1 << 30;

/// More than RLIMIT_NOFILE: poll(2) says EINVAL. Asked only for sets so large that it can be.
fn is_beyond_limit(count: usize) -> bool {
    if count <= 64 {
        return false;
    }
    // SAFETY: room for the limit.
    unsafe {
        let mut limit: libc::rlimit = core::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && count as u64 > limit.rlim_cur
    }
}

fn milliseconds(ms: c_int) -> Option<u64> {
    u64::try_from(ms).ok().map(|ms| ms * 1_000_000)
}

/// The set, if the stack is concerned.
///
/// # Safety
/// `fds` points to `count` members.
unsafe fn concerned<'a>(fds: *mut pollfd, count: nfds_t) -> Option<&'a mut [pollfd]> {
    engine::session()?;
    // What can't be is the kernel's to refuse: too many members, a pointer that is none.
    if count == 0 || count as usize > MOST_MEMBERS || is_beyond_limit(count as usize) {
        return None;
    }
    memory::writable(fds.cast(), count as usize * size_of::<pollfd>()).ok()?;
    // SAFETY: looked at.
    let fds = unsafe { core::slice::from_raw_parts_mut(fds, count as usize) };
    poll::concerns(fds).then_some(fds)
}

/// The members of select's sets, if the stack is concerned.
///
/// # Safety
/// As select.
unsafe fn selected(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
) -> Option<([Bits; 3], Vec<pollfd>)> {
    engine::session()?;
    let bytes = usize::try_from(count).ok()?.div_ceil(64) * 8;
    for set in [read, write, except].into_iter().filter(|s| !s.is_null()) {
        memory::writable(set.cast(), bytes).ok()?;
    }
    // SAFETY: looked at.
    let sets = unsafe { [Bits::new(read), Bits::new(write), Bits::new(except)] };
    Some((sets, poll::selected(count, sets)?))
}

fn run_select(
    count: c_int,
    (sets, mut fds): ([Bits; 3], Vec<pollfd>),
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> Result<c_int, Errno> {
    let session = engine::session().ok_or(Errno(libc::EBADF))?;
    poll::poll(session, &mut fds, timeout_ns, mask)?;
    poll::answer(count, sets, &fds)
}

/// Whether there is room for `count` events. What isn't is the kernel's to refuse.
fn is_room(events: *mut epoll_event, count: c_int) -> bool {
    let count = usize::try_from(count).unwrap_or(0);
    count > 0 && count < MOST_MEMBERS && memory::writable(events.cast(), count * size_of::<epoll_event>()).is_ok()
}

export! {
    /// poll(2).
    fn poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
        let Some(set) = concerned(fds, count) else { return real::poll(fds, count, timeout_ms) };
        guard(|| {
            let session = engine::session().ok_or(Errno(libc::EBADF))?;
            poll::poll(session, set, milliseconds(timeout_ms), core::ptr::null()).map(|n| n as c_int)
        })
    }

    /// Alias of poll in the C library.
    fn __poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
        self::poll(fds, count, timeout_ms)
    }

    /// poll(2) of programs built with _FORTIFY_SOURCE.
    fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int, bytes: usize) -> c_int {
        if bytes / size_of::<pollfd>() < count as usize {
            std::process::abort();
        }
        self::poll(fds, count, timeout_ms)
    }

    /// ppoll(2).
    fn ppoll(fds: *mut pollfd, count: nfds_t, time: *const timespec, mask: *const sigset_t) -> c_int {
        let Some(set) = concerned(fds, count) else { return real::ppoll(fds, count, time, mask) };
        guard(|| {
            let session = engine::session().ok_or(Errno(libc::EBADF))?;
            poll::poll(session, set, timeout(time)?, mask).map(|n| n as c_int)
        })
    }

    /// ppoll(2) of programs built with _FORTIFY_SOURCE.
    fn __ppoll_chk(
        fds: *mut pollfd,
        count: nfds_t,
        time: *const timespec,
        mask: *const sigset_t,
        bytes: usize,
    ) -> c_int {
        if bytes / size_of::<pollfd>() < count as usize {
            std::process::abort();
        }
        ppoll(fds, count, time, mask)
    }

    /// select(2). As Linux does, it leaves in `time` what was left of it.
    fn select(
        count: c_int,
        read: *mut fd_set,
        write: *mut fd_set,
        except: *mut fd_set,
        time: *mut timeval,
    ) -> c_int {
        let Some(set) = selected(count, read, write, except) else {
            return real::select(count, read, write, except, time);
        };
        guard(|| {
            if time.is_null() {
                return run_select(count, set, None, core::ptr::null());
            }
            memory::writable(time.cast(), size_of::<timeval>())?;
            let time = &mut *time;
            if time.tv_sec < 0 || time.tv_usec < 0 {
                return Err(Errno(libc::EINVAL));
            }
            let ns = (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_usec as u64 * 1000);
            let start = now_ns();
            let outcome = run_select(count, set, Some(ns), core::ptr::null());
            let left_us = ns.saturating_sub(now_ns() - start) / 1000;
            (time.tv_sec, time.tv_usec) = ((left_us / 1_000_000) as _, (left_us % 1_000_000) as _);
            outcome
        })
    }

    /// Alias of select in the C library.
    fn __select(
        count: c_int,
        read: *mut fd_set,
        write: *mut fd_set,
        except: *mut fd_set,
        time: *mut timeval,
    ) -> c_int {
        select(count, read, write, except, time)
    }

    /// pselect(2).
    fn pselect(
        count: c_int,
        read: *mut fd_set,
        write: *mut fd_set,
        except: *mut fd_set,
        time: *const timespec,
        mask: *const sigset_t,
    ) -> c_int {
        let Some(set) = selected(count, read, write, except) else {
            return real::pselect(count, read, write, except, time, mask);
        };
        guard(|| run_select(count, set, timeout(time)?, mask))
    }

    /// epoll_create(2).
    fn epoll_create(size: c_int) -> c_int {
        let fd = real::epoll_create(size);
        if fd >= 0 {
            guard(|| { epoll::created(fd); Ok(0) });
        }
        fd
    }

    /// epoll_create1(2).
    fn epoll_create1(flags: c_int) -> c_int {
        let fd = real::epoll_create1(flags);
        if fd >= 0 {
            guard(|| { epoll::created(fd); Ok(0) });
        }
        fd
    }

    /// epoll_ctl(2).
    fn epoll_ctl(epfd: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
        let Some(Entry::Epoll(epoll)) = table::get(epfd) else { return real::epoll_ctl(epfd, operation, fd, event) };
        if table::is_internal(fd) {
            crate::errno::set(libc::EBADF);
            return -1;
        }
        let given = memory::readable(event.cast(), size_of::<epoll_event>()).is_ok().then(|| event.read_unaligned());
        if let Some(socket) = table::socket(fd) {
            return guard(|| epoll.control(epfd, operation, fd, socket, given).map(|()| 0));
        }
        let outcome = real::epoll_ctl(epfd, operation, fd, event);
        if outcome == 0 {
            guard(|| { epoll.kernel_changed(operation, fd, given); Ok(0) });
        }
        outcome
    }

    /// epoll_wait(2).
    fn epoll_wait(epfd: c_int, events: *mut epoll_event, count: c_int, timeout_ms: c_int) -> c_int {
        epoll_pwait(epfd, events, count, timeout_ms, core::ptr::null())
    }

    /// epoll_pwait(2).
    fn epoll_pwait(
        epfd: c_int,
        events: *mut epoll_event,
        count: c_int,
        timeout_ms: c_int,
        mask: *const sigset_t,
    ) -> c_int {
        match table::get(epfd) {
            Some(Entry::Epoll(epoll)) if is_room(events, count) => guard(|| {
                let out = core::slice::from_raw_parts_mut(events, count as usize);
                epoll.wait(epfd, out, milliseconds(timeout_ms), mask).map(|n| n as c_int)
            }),
            Some(Entry::Epoll(epoll)) if count > 0 && epoll.has_ready() => {
                crate::errno::set(libc::EFAULT);
                -1
            }
            _ => real::epoll_pwait(epfd, events, count, timeout_ms, mask),
        }
    }

    /// epoll_pwait2(2).
    fn epoll_pwait2(
        epfd: c_int,
        events: *mut epoll_event,
        count: c_int,
        time: *const timespec,
        mask: *const sigset_t,
    ) -> c_int {
        match table::get(epfd) {
            Some(Entry::Epoll(epoll)) if is_room(events, count) => guard(|| {
                let out = core::slice::from_raw_parts_mut(events, count as usize);
                epoll.wait(epfd, out, timeout(time)?, mask).map(|n| n as c_int)
            }),
            _ => real::epoll_pwait2(epfd, events, count, time, mask),
        }
    }
}

const _: () = assert!(size_of::<c_long>() == 8, "fd_set is read in words of 64 bits");
