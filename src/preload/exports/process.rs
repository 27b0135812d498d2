//! fork, daemon, exec, posix_spawn.

use core::ffi::{c_char, c_int, c_ulong};

use libc::{pid_t, posix_spawn_file_actions_t, posix_spawnattr_t, rlimit};

use super::{export, guard};
use crate::{engine, process, reach, real};

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
    /// fork(2): what this library does around it, the C library calls ([`process::watch_forks`]).
    fn fork() -> pid_t {
        real::fork()
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

    /// prctl(2): the last moment before a program that locks itself in (sshd's and others' worker processes) may make
    /// no system calls but the few that it needs itself. The rest of the arguments is passed on as it is; functions
    /// with a variable number of arguments take them in the same registers.
    fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
        if option == libc::PR_SET_SECCOMP {
            engine::make_waiter();
            sidestep_client::confine();
        }
        real::prctl(option, a, b, c, d)
    }

    /// setrlimit(2): a program that allows itself no further descriptors must find what it needs to wait there already.
    fn setrlimit(resource: c_int, limit: *const rlimit) -> c_int {
        if resource == libc::RLIMIT_NOFILE as c_int {
            engine::make_waiter();
        }
        real::setrlimit(resource, limit)
    }

    /// Alias of setrlimit in the C library.
    fn setrlimit64(resource: c_int, limit: *const rlimit) -> c_int {
        setrlimit(resource, limit)
    }

    /// prlimit(2).
    fn prlimit(pid: pid_t, resource: c_int, limit: *const rlimit, before: *mut rlimit) -> c_int {
        if resource == libc::RLIMIT_NOFILE as c_int && !limit.is_null() {
            engine::make_waiter();
        }
        real::prlimit(pid, resource, limit, before)
    }

    /// Alias of prlimit in the C library.
    fn prlimit64(pid: pid_t, resource: c_int, limit: *const rlimit, before: *mut rlimit) -> c_int {
        prlimit(pid, resource, limit, before)
    }

    /// execve(2).
    fn execve(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int {
        reach::look(path, false);
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
        reach::look(file, true);
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
        reach::look(path, false);
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
        reach::look(file, true);
        spawn(environment, |environment| real::posix_spawnp(pid, file, actions, attributes, arguments, environment))
    }
}
