//! Busy polling of the kernel's own sockets, for comparisons with a tuned kernel.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// linux/eventpoll.h: `struct epoll_params`.
#[repr(C)]
struct EpollParams {
    busy_poll_usecs: u32,
    busy_poll_budget: u16,
    prefer_busy_poll: u8,
    /// Must be zero.
    pad: u8,
}

/// linux/eventpoll.h: `_IOW(0x8A, 0x01, struct epoll_params)`.
const EPIOCSPARAMS: libc::Ioctl = 0x4008_8a01;

/// Lets epoll_wait on `epoll` poll the device for `us` microseconds before it sleeps (Linux 6.9 and newer), at most
/// `budget` packets at a time.
///
/// # Errors
/// ENOTTY: an older kernel. EPERM: a budget above 64 without CAP_NET_ADMIN.
pub fn epoll_busy_poll(epoll: BorrowedFd<'_>, us: u32, budget: u16) -> io::Result<()> {
    let params = EpollParams { busy_poll_usecs: us, busy_poll_budget: budget, prefer_busy_poll: 1, pad: 0 };
    // SAFETY: the request reads one `struct epoll_params`, which lives through the call.
    let rc = unsafe { libc::ioctl(epoll.as_raw_fd(), EPIOCSPARAMS, &raw const params) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
