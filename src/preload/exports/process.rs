//! fork, daemon, exec, posix_spawn.

use core::ffi::{c_char, c_int};

use libc::{pid_t, posix_spawn_file_actions_t, posix_spawnattr_t};

use super::{export, guard};
use crate::{engine, process, real};

/// exec by `call`, which gets the environment to use.
///
/// # Safety
/// `environment` is an environment.
unsafe fn exec(environment: *const *const c_char, call: impl FnOnce(*const *const c_char) -> c_int) -> c_int {
    // SAFETY: the caller's word.
    let Some(prepared) = (unsafe { process::prepare(environment, false) }) else { return call(environment) };
    let outcome = call(prepared.environment());
    let error = crate::errno::get();
    prepared.finish();
    crate::errno::set(error);
    outcome
}

/// posix_spawn by `call`.
///
/// # Safety
/// As [`exec`].
unsafe fn spawn(environment: *const *mut c_char, call: impl FnOnce(*const *mut c_char) -> c_int) -> c_int {
    // SAFETY: the caller's word.
    let Some(prepared) = (unsafe { process::prepare(environment.cast(), true) }) else { return call(environment) };
    let outcome = call(prepared.environment().cast());
    prepared.finish();
    outcome
}

export! {
    /// fork(2).
    fn fork() -> pid_t {
        if engine::settings().is_none() {
            return real::fork();
        }
        process::fork(|| real::fork())
    }

    /// Alias of fork in the C library.
    fn __fork() -> pid_t {
        fork()
    }

    /// fork(2) without the handlers of pthread_atfork.
    fn _Fork() -> pid_t {
        process::fork(|| real::_Fork())
    }

    /// vfork(2), as a fork: a function can't return twice on one stack, and what comes before exec here needs memory
    /// of its own.
    fn vfork() -> pid_t {
        fork()
    }

    /// Alias of vfork in the C library.
    fn __vfork() -> pid_t {
        fork()
    }

    /// daemon(3).
    fn daemon(stay: c_int, keep: c_int) -> c_int {
        if engine::settings().is_none() {
            return real::daemon(stay, keep);
        }
        guard(|| process::daemon(stay != 0, keep != 0))
    }

    /// execve(2).
    fn execve(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int {
        exec(environment, |environment| real::execve(path, arguments, environment))
    }

    /// execv(3).
    fn execv(path: *const c_char, arguments: *const *const c_char) -> c_int {
        execve(path, arguments, process::environ())
    }

    /// execvp(3).
    fn execvp(file: *const c_char, arguments: *const *const c_char) -> c_int {
        execvpe(file, arguments, process::environ())
    }

    /// execvpe(3).
    fn execvpe(file: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int {
        exec(environment, |environment| real::execvpe(file, arguments, environment))
    }

    /// fexecve(3).
    fn fexecve(fd: c_int, arguments: *const *const c_char, environment: *const *const c_char) -> c_int {
        exec(environment, |environment| real::fexecve(fd, arguments, environment))
    }

    /// posix_spawn(3).
    fn posix_spawn(
        pid: *mut pid_t,
        path: *const c_char,
        actions: *const posix_spawn_file_actions_t,
        attributes: *const posix_spawnattr_t,
        arguments: *const *mut c_char,
        environment: *const *mut c_char,
    ) -> c_int {
        spawn(environment, |environment| real::posix_spawn(pid, path, actions, attributes, arguments, environment))
    }

    /// posix_spawnp(3).
    fn posix_spawnp(
        pid: *mut pid_t,
        file: *const c_char,
        actions: *const posix_spawn_file_actions_t,
        attributes: *const posix_spawnattr_t,
        arguments: *const *mut c_char,
        environment: *const *mut c_char,
    ) -> c_int {
        spawn(environment, |environment| real::posix_spawnp(pid, file, actions, attributes, arguments, environment))
    }
}
