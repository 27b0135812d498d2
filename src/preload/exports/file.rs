//! close, dup, fcntl, ioctl and their kin.

use core::ffi::{c_int, c_ulong, c_void};

use super::{export, guard};
use crate::errno;
use crate::{files, real, stdio, table};

export! {
    /// close(2).
    fn close(fd: c_int) -> c_int {
        if table::is_internal(fd) {
            // Programs close every number there is; to them this one was never open.
            errno::set(libc::EBADF);
            return -1;
        }
        if table::get(fd).is_some() {
            guard(|| { files::leave(fd); Ok(0) });
        }
        real::close(fd)
    }

    /// Alias of close in the C library.
    fn __close(fd: c_int) -> c_int {
        close(fd)
    }

    /// fclose(3): the C library closes the descriptor where it can't be seen.
    fn fclose(stream: *mut libc::FILE) -> c_int {
        if stdio::forget(stream) {
            return real::fclose(stream);
        }
        let fd = if stream.is_null() { -1 } else { real::fileno(stream) };
        if fd >= 0 && !table::is_internal(fd) && table::get(fd).is_some() {
            guard(|| { files::leave(fd); Ok(0) });
        }
        real::fclose(stream)
    }

    /// close_range(2).
    fn close_range(first: u32, last: u32, flags: c_int) -> c_int {
        guard(|| files::close_range(first, last, flags))
    }

    /// closefrom(3).
    fn closefrom(first: c_int) -> () {
        let _: c_int = guard(|| files::close_range(first.max(0) as u32, u32::MAX, 0));
    }

    /// dup(2).
    fn dup(fd: c_int) -> c_int {
        let new = real::dup(fd);
        if new >= 0 {
            guard(|| { files::duplicated(fd, new); Ok(0) });
        }
        new
    }

    /// dup2(2).
    fn dup2(from: c_int, to: c_int) -> c_int {
        if table::is_internal(to) {
            errno::set(libc::EBUSY);
            return -1;
        }
        let new = real::dup2(from, to);
        if new >= 0 {
            guard(|| { files::duplicated(from, to); Ok(0) });
        }
        new
    }

    /// Alias of dup2 in the C library.
    fn __dup2(from: c_int, to: c_int) -> c_int {
        dup2(from, to)
    }

    /// dup3(2).
    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
        if table::is_internal(to) {
            errno::set(libc::EBUSY);
            return -1;
        }
        let new = real::dup3(from, to, flags);
        if new >= 0 {
            guard(|| { files::duplicated(from, to); Ok(0) });
        }
        new
    }

    /// fcntl(2). Declared without its ellipsis: on this machine's calling convention a caller with one passes the
    /// argument in the same register, and one that passes none leaves a value that the command does not read.
    fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
        if table::get(fd).is_none() {
            return real::fcntl(fd, command, argument);
        }
        guard(|| Ok(files::fcntl(fd, command, argument)))
    }

    /// fcntl(2) with 64-bit offsets: the same on 64-bit machines.
    fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
        fcntl(fd, command, argument)
    }

    /// Alias of fcntl in the C library.
    fn __fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
        fcntl(fd, command, argument)
    }

    /// ioctl(2). As fcntl.
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
        if table::get(fd).is_none() {
            return real::ioctl(fd, request, argument);
        }
        guard(|| Ok(files::ioctl(fd, request, argument)))
    }
}
