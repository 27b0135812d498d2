//! The calling thread's `errno`.

use core::ffi::c_int;

/// Sets it.
pub fn set(errno: c_int) {
    // SAFETY: the C library's own word for this thread.
    unsafe { *libc::__errno_location() = errno }
}

/// Reads it.
pub fn get() -> c_int {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() }
}

/// An errno, as the error of functions that end in a C call's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub c_int);

/// What the C call returns: the value, or -1 with errno set.
pub trait Answer<T> {
    /// See the trait.
    fn answer(self) -> T;
}

impl<T: From<i8>> Answer<T> for Result<T, Errno> {
    fn answer(self) -> T {
        self.unwrap_or_else(|Errno(errno)| {
            set(errno);
            T::from(-1i8)
        })
    }
}

/// Runs what belongs to the stack on behalf of a C call. Code here is written not to panic; should it, the call fails
/// with EIO instead of unwinding into a program that was built without Rust. Calls that only pass through to the C
/// library never come here: a thread that is cancelled inside one must be able to unwind.
pub fn guard<T: From<i8>>(work: impl FnOnce() -> Result<T, Errno>) -> T {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(Err(Errno(libc::EIO))).answer()
}

impl From<sidestep_client::Errno> for Errno {
    fn from(e: sidestep_client::Errno) -> Self {
        Self(e.raw_os_error())
    }
}

/// EAGAIN, which is EWOULDBLOCK.
pub const AGAIN: Errno = Errno(libc::EAGAIN);
