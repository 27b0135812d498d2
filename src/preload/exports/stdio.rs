//! fdopen and its kin. fclose is with `close`.

use core::ffi::{c_char, c_int};

use libc::FILE;

use super::export;
use crate::{real, stdio};

export! {
    /// fdopen(3).
    fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
        match stdio::open(fd, mode) {
            Some(stream) => stream,
            None => real::fdopen(fd, mode),
        }
    }

    /// fileno(3).
    fn fileno(stream: *mut FILE) -> c_int {
        match stdio::number(stream) {
            Some(fd) => fd,
            None => real::fileno(stream),
        }
    }

    /// fileno(3) without a lock: the same.
    fn fileno_unlocked(stream: *mut FILE) -> c_int {
        self::fileno(stream)
    }

    /// popen(3): the command's sockets are this program's.
    fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
        crate::process::with_environment(|| real::popen(command, mode))
    }
}
