//! What a program does about threads and signals, where [`dispatch`] watches all of it. Elsewhere these are the C
//! library's.

use core::ffi::{c_int, c_void};

use libc::{pthread_attr_t, pthread_t, sigset_t};

use super::export;
use crate::{dispatch, real};

/// What a thread begins with.
struct Start {
    run: extern "C-unwind" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
}

extern "C-unwind" fn start(given: *mut c_void) -> *mut c_void {
    // SAFETY: made by pthread_create below, for this thread alone.
    let Start { run, argument } = *unsafe { Box::from_raw(given.cast::<Start>()) };
    dispatch::start_thread();
    run(argument)
}

/// Without the signal that must always come through.
///
/// # Safety
/// `set` is null or a set.
unsafe fn passable(how: c_int, set: *const sigset_t) -> Option<sigset_t> {
    // SAFETY: the caller's word.
    Some(dispatch::mask_without_ours(how, *unsafe { set.as_ref()? }))
}

export! {
    /// pthread_create(3).
    fn pthread_create(
        thread: *mut pthread_t,
        attributes: *const pthread_attr_t,
        run: extern "C-unwind" fn(*mut c_void) -> *mut c_void,
        argument: *mut c_void,
    ) -> c_int {
        if !dispatch::is_permanent() {
            return real::pthread_create(thread, attributes, run, argument);
        }
        let given = Box::into_raw(Box::new(Start { run, argument }));
        let outcome = real::pthread_create(thread, attributes, start, given.cast());
        if outcome != 0 {
            drop(Box::from_raw(given));
        }
        outcome
    }

    /// sigprocmask(2).
    fn sigprocmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int {
        if !dispatch::is_permanent() {
            return real::sigprocmask(how, set, old);
        }
        let own = passable(how, set);
        real::sigprocmask(how, own.as_ref().map_or(set, core::ptr::from_ref), old)
    }

    /// pthread_sigmask(3).
    fn pthread_sigmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int {
        if !dispatch::is_permanent() {
            return real::pthread_sigmask(how, set, old);
        }
        let own = passable(how, set);
        real::pthread_sigmask(how, own.as_ref().map_or(set, core::ptr::from_ref), old)
    }

    /// sigaction(2).
    fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
        if !dispatch::is_permanent() {
            return real::sigaction(signal, new, old);
        }
        let mut own = new.as_ref().copied();
        if signal == libc::SIGSYS {
            dispatch::programs_action(own.as_ref(), old.as_mut());
            return 0;
        }
        if let Some(own) = &mut own {
            // Handlers make system calls too.
            libc::sigdelset(&raw mut own.sa_mask, libc::SIGSYS);
        }
        real::sigaction(signal, own.as_ref().map_or(new, core::ptr::from_ref), old)
    }
}
