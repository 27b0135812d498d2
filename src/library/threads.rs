//! Threads in a process that is not ours: they take none of its signals.

use std::mem::MaybeUninit;

/// Runs `work`; threads that it starts have all signals blocked, so that the program's handlers run in threads of the
/// program (signal(7)).
#[allow(unsafe_code)]
pub fn without_signals<R>(work: impl FnOnce() -> R) -> R {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the set before it is used; `before` is read only when it was written.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) == 0
    };
    let result = work();
    if blocked {
        // SAFETY: written by the call above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    }
    result
}
