//! System calls by number -> what this library exports under their names: for `syscall()`, and for calls that
//! [`crate::dispatch`] catches.

use core::ffi::{c_int, c_long};

use libc::{AF_INET, AF_INET6, sigset_t};

use crate::engine;
use crate::errno;
use crate::exports::{data, file, message, process, socket, wait};
use crate::table;

/// A signal set as the kernel has it, as the C library's functions want it.
///
/// # Safety
/// `at` is 0 or points to `bytes` bytes.
unsafe fn signals(at: usize, bytes: usize) -> Option<sigset_t> {
    if at == 0 {
        return None;
    }
    // SAFETY: a set of nothing; then no more is copied than either side has.
    unsafe {
        let mut set: sigset_t = core::mem::zeroed();
        core::ptr::copy_nonoverlapping(at as *const u8, (&raw mut set).cast(), bytes.min(size_of::<u64>()));
        Some(set)
    }
}

fn pointer(set: Option<&sigset_t>) -> *const sigset_t {
    set.map_or(core::ptr::null(), core::ptr::from_ref)
}

/// The call `number` if the stack may be concerned, with the kernel's answer: -errno for an error. None: it is the
/// kernel's, and has not been made.
///
/// # Safety
/// As the manual page of that call says.
pub unsafe fn emulate(number: c_long, a: &[usize; 6]) -> Option<isize> {
    let (fd, second) = (a[0] as c_int, a[1] as c_int);
    let known = table::get(fd).is_some();
    // SAFETY: the arguments are those of the call, and the functions called are its counterparts.
    let outcome = unsafe {
        match number {
            libc::SYS_socket if fd == AF_INET || fd == AF_INET6 => socket::socket(fd, second, a[2] as c_int) as isize,
            // What goes through its rings is seen by nobody here: an epoll_ctl() for one of our sockets would watch the
            // placeholder (libuv since 1.45 does that). Libraries do without where a kernel has none.
            libc::SYS_io_uring_setup if engine::settings().is_some() => return Some(-(libc::ENOSYS as isize)),
            libc::SYS_bind if known => socket::bind(fd, a[1] as _, a[2] as _) as isize,
            libc::SYS_listen if known => socket::listen(fd, second) as isize,
            libc::SYS_connect if known => socket::connect(fd, a[1] as _, a[2] as _) as isize,
            libc::SYS_accept if known => socket::accept(fd, a[1] as _, a[2] as _) as isize,
            libc::SYS_accept4 if known => socket::accept4(fd, a[1] as _, a[2] as _, a[3] as c_int) as isize,
            libc::SYS_shutdown if known => socket::shutdown(fd, second) as isize,
            libc::SYS_getsockname if known => socket::getsockname(fd, a[1] as _, a[2] as _) as isize,
            libc::SYS_getpeername if known => socket::getpeername(fd, a[1] as _, a[2] as _) as isize,
            libc::SYS_setsockopt if known => {
                socket::setsockopt(fd, second, a[2] as c_int, a[3] as _, a[4] as _) as isize
            }
            libc::SYS_getsockopt if known => {
                socket::getsockopt(fd, second, a[2] as c_int, a[3] as _, a[4] as _) as isize
            }
            libc::SYS_read if known => data::read(fd, a[1] as _, a[2]),
            libc::SYS_write if known => data::write(fd, a[1] as _, a[2]),
            libc::SYS_readv if known => data::readv(fd, a[1] as _, a[2] as c_int),
            libc::SYS_writev if known => data::writev(fd, a[1] as _, a[2] as c_int),
            libc::SYS_recvfrom if known => data::recvfrom(fd, a[1] as _, a[2], a[3] as c_int, a[4] as _, a[5] as _),
            libc::SYS_sendto if known => data::sendto(fd, a[1] as _, a[2], a[3] as c_int, a[4] as _, a[5] as _),
            libc::SYS_sendfile if known || table::get(second).is_some() => data::sendfile(fd, second, a[2] as _, a[3]),
            libc::SYS_splice if known || table::get(a[2] as c_int).is_some() => {
                data::splice(fd, a[1] as _, a[2] as c_int, a[3] as _, a[4], a[5] as u32)
            }
            // What goes or comes over a Unix socket may be one of ours.
            libc::SYS_sendmsg => message::sendmsg(fd, a[1] as _, a[2] as c_int),
            libc::SYS_recvmsg => message::recvmsg(fd, a[1] as _, a[2] as c_int),
            libc::SYS_sendmmsg if known => message::sendmmsg(fd, a[1] as _, a[2] as _, a[3] as c_int) as isize,
            libc::SYS_recvmmsg if known => {
                message::recvmmsg(fd, a[1] as _, a[2] as _, a[3] as c_int, a[4] as _) as isize
            }
            libc::SYS_close if known => file::close(fd) as isize,
            libc::SYS_close_range => file::close_range(a[0] as u32, a[1] as u32, a[2] as c_int) as isize,
            libc::SYS_dup if known => file::dup(fd) as isize,
            libc::SYS_dup3 if known || table::get(second).is_some() => file::dup3(fd, second, a[2] as c_int) as isize,
            libc::SYS_fcntl if known => file::fcntl(fd, second, a[2]) as isize,
            libc::SYS_ioctl if known => file::ioctl(fd, a[1] as _, a[2] as _) as isize,
            libc::SYS_ppoll => {
                let mask = signals(a[3], a[4]);
                wait::ppoll(a[0] as _, a[1] as _, a[2] as _, pointer(mask.as_ref())) as isize
            }
            libc::SYS_pselect6 => {
                // select(2): the last argument points to a pointer and a size.
                let [at, bytes] = if a[5] == 0 { [0, 0] } else { (a[5] as *const [usize; 2]).read_unaligned() };
                let mask = signals(at, bytes);
                wait::pselect(fd, a[1] as _, a[2] as _, a[3] as _, a[4] as _, pointer(mask.as_ref())) as isize
            }
            libc::SYS_epoll_create1 => wait::epoll_create1(fd) as isize,
            libc::SYS_epoll_ctl if known => wait::epoll_ctl(fd, second, a[2] as c_int, a[3] as _) as isize,
            libc::SYS_epoll_pwait if known => {
                let mask = signals(a[4], a[5]);
                wait::epoll_pwait(fd, a[1] as _, a[2] as c_int, a[3] as c_int, pointer(mask.as_ref())) as isize
            }
            libc::SYS_epoll_pwait2 if known => {
                let mask = signals(a[4], a[5]);
                wait::epoll_pwait2(fd, a[1] as _, a[2] as c_int, a[3] as _, pointer(mask.as_ref())) as isize
            }
            libc::SYS_execve => process::execve(a[0] as _, a[1] as _, a[2] as _) as isize,
            #[cfg(target_arch = "x86_64")]
            _ => old(number, a, known)?,
            #[cfg(not(target_arch = "x86_64"))]
            _ => return None,
        }
    };
    Some(if outcome == -1 { -(errno::get() as isize) } else { outcome })
}

/// Calls that newer machines do not have.
///
/// # Safety
/// As [`emulate`].
#[cfg(target_arch = "x86_64")]
unsafe fn old(number: c_long, a: &[usize; 6], known: bool) -> Option<isize> {
    let (fd, second) = (a[0] as c_int, a[1] as c_int);
    // SAFETY: as in `emulate`.
    Some(unsafe {
        match number {
            libc::SYS_poll => wait::poll(a[0] as _, a[1] as _, a[2] as c_int) as isize,
            libc::SYS_select => wait::select(fd, a[1] as _, a[2] as _, a[3] as _, a[4] as _) as isize,
            libc::SYS_dup2 if known || table::get(second).is_some() => file::dup2(fd, second) as isize,
            libc::SYS_epoll_create => wait::epoll_create(fd) as isize,
            libc::SYS_epoll_wait if known => wait::epoll_wait(fd, a[1] as _, a[2] as c_int, a[3] as c_int) as isize,
            libc::SYS_fork => process::fork() as isize,
            _ => return None,
        }
    })
}
