//! The C library's own functions, looked up behind this library with `dlsym(RTLD_NEXT)`.
//!
//! Each is looked up at its first call and the address kept in a word of its own, so that it works before any
//! constructor ran (allocators open files while they start) and in a forked child. A lookup never allocates. A function
//! that the C library doesn't have fails with ENOSYS.
//!
//! The functions are called with the unwinding ABI because some are cancellation points: glibc cancels a thread by
//! unwinding it, and callers here that only pass a call through must let that pass.

use core::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::{
    addrinfo, epoll_event, fd_set, hostent, iovec, mmsghdr, msghdr, nfds_t, off_t, pollfd, rlimit, sigset_t, sockaddr,
    socklen_t, timespec,
};
use libc::{pid_t, posix_spawn_file_actions_t, posix_spawnattr_t, size_t, ssize_t, timeval};

/// Address of `name` in the libraries after this one, kept in `kept`. Null when there is none.
fn look_up(name: &CStr, kept: &AtomicPtr<c_void>) -> *mut c_void {
    // SAFETY: a constant, NUL-terminated name.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    kept.store(found, Ordering::Relaxed);
    found
}

/// What a call returns whose function is missing.
trait Missing {
    const MISSING: Self;
}

impl Missing for c_int {
    const MISSING: Self = -1;
}

impl Missing for ssize_t {
    const MISSING: Self = -1;
}

impl<T> Missing for *mut T {
    const MISSING: Self = core::ptr::null_mut();
}

macro_rules! real {
    ($($name:ident($($arg:ident: $type:ty),* $(; $($rest:ident: $rest_type:ty),+)?) -> $ret:ty;)+) => {$(
        #[doc = concat!("The C library's `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As the manual page says.
        #[inline]
        #[allow(non_snake_case, clippy::too_many_arguments, reason = "the C library's")]
        pub unsafe fn $name($($arg: $type,)* $($($rest: $rest_type),+)?) -> $ret {
            static KEPT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
            let mut found = KEPT.load(Ordering::Relaxed);
            if found.is_null() {
                const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => c"",
                };
                found = look_up(NAME, &KEPT);
                if found.is_null() {
                    crate::errno::set(libc::ENOSYS);
                    return Missing::MISSING;
                }
            }
            // SAFETY: the C library's function of that name has this type; what is asked of arguments is the caller's.
            unsafe {
                let call: unsafe extern "C-unwind" fn($($type,)* $($($rest_type),+)?) -> $ret = core::mem::transmute(found);
                call($($arg,)* $($($rest),+)?)
            }
        }
    )+};
}

real! {
    socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    listen(fd: c_int, backlog: c_int) -> c_int;
    accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    accept4(fd: c_int, address: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    close(fd: c_int) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int;
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int;
    read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t;
    write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t;
    readv(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t;
    writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t;
    send(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int) -> ssize_t;
    recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t;
    sendto(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int, to: *const sockaddr, to_len: socklen_t)
        -> ssize_t;
    recvfrom(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int, from: *mut sockaddr, from_len: *mut socklen_t)
        -> ssize_t;
    sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    sendmmsg(fd: c_int, messages: *mut mmsghdr, count: u32, flags: c_int) -> c_int;
    recvmmsg(fd: c_int, messages: *mut mmsghdr, count: u32, flags: c_int, timeout: *mut timespec) -> c_int;
    sendfile(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t;
    splice(from: c_int, from_at: *mut i64, to: c_int, to_at: *mut i64, len: size_t, flags: u32) -> ssize_t;
    pread(fd: c_int, buffer: *mut c_void, len: size_t, at: off_t) -> ssize_t;
    ioctl(fd: c_int, request: c_ulong; argument: *mut c_void) -> c_int;
    fcntl(fd: c_int, command: c_int; argument: usize) -> c_int;
    dup(fd: c_int) -> c_int;
    dup2(from: c_int, to: c_int) -> c_int;
    dup3(from: c_int, to: c_int, flags: c_int) -> c_int;
    poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int;
    ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int;
    pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec,
        mask: *const sigset_t) -> c_int;
    epoll_create(size: c_int) -> c_int;
    epoll_create1(flags: c_int) -> c_int;
    epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int;
    epoll_pwait(epoll: c_int, events: *mut epoll_event, count: c_int, timeout_ms: c_int, mask: *const sigset_t)
        -> c_int;
    epoll_pwait2(epoll: c_int, events: *mut epoll_event, count: c_int, timeout: *const timespec,
        mask: *const sigset_t) -> c_int;
    prctl(option: c_int; a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
    setrlimit(resource: c_int, limit: *const rlimit) -> c_int;
    prlimit(pid: pid_t, resource: c_int, limit: *const rlimit, before: *mut rlimit) -> c_int;
    fork() -> pid_t;
    _Fork() -> pid_t;
    fclose(stream: *mut libc::FILE) -> c_int;
    fdopen(fd: c_int, mode: *const c_char) -> *mut libc::FILE;
    fileno(stream: *mut libc::FILE) -> c_int;
    popen(command: *const c_char, mode: *const c_char) -> *mut libc::FILE;
    system(command: *const c_char) -> c_int;
    getaddrinfo(node: *const c_char, service: *const c_char, hints: *const addrinfo, out: *mut *mut addrinfo)
        -> c_int;
    getnameinfo(address: *const sockaddr, len: socklen_t, host: *mut c_char, host_len: socklen_t,
        service: *mut c_char, service_len: socklen_t, flags: c_int) -> c_int;
    gethostbyname(name: *const c_char) -> *mut hostent;
    gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent;
    gethostbyaddr(address: *const c_void, len: socklen_t, family: c_int) -> *mut hostent;
    gethostbyname_r(name: *const c_char, out: *mut hostent, buffer: *mut c_char, room: size_t,
        found: *mut *mut hostent, error: *mut c_int) -> c_int;
    gethostbyname2_r(name: *const c_char, family: c_int, out: *mut hostent, buffer: *mut c_char, room: size_t,
        found: *mut *mut hostent, error: *mut c_int) -> c_int;
    gethostbyaddr_r(address: *const c_void, len: socklen_t, family: c_int, out: *mut hostent, buffer: *mut c_char,
        room: size_t, found: *mut *mut hostent, error: *mut c_int) -> c_int;
    res_query(name: *const c_char, class: c_int, kind: c_int, answer: *mut u8, room: c_int) -> c_int;
    res_search(name: *const c_char, class: c_int, kind: c_int, answer: *mut u8, room: c_int) -> c_int;
    res_querydomain(name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut u8,
        room: c_int) -> c_int;
    res_send(question: *const u8, len: c_int, answer: *mut u8, room: c_int) -> c_int;
    res_nquery(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut u8, room: c_int)
        -> c_int;
    res_nsearch(state: *mut c_void, name: *const c_char, class: c_int, kind: c_int, answer: *mut u8, room: c_int)
        -> c_int;
    res_nquerydomain(state: *mut c_void, name: *const c_char, domain: *const c_char, class: c_int, kind: c_int,
        answer: *mut u8, room: c_int) -> c_int;
    res_nsend(state: *mut c_void, question: *const u8, len: c_int, answer: *mut u8, room: c_int) -> c_int;
    pthread_create(thread: *mut libc::pthread_t, attributes: *const libc::pthread_attr_t,
        run: extern "C-unwind" fn(*mut c_void) -> *mut c_void, argument: *mut c_void) -> c_int;
    sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int;
    sigprocmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int;
    pthread_sigmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int;
    daemon(stay: c_int, keep: c_int) -> c_int;
    execve(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int;
    execvpe(file: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int;
    fexecve(fd: c_int, arguments: *const *const c_char, environment: *const *const c_char) -> c_int;
    posix_spawn(pid: *mut pid_t, path: *const c_char, actions: *const posix_spawn_file_actions_t,
        attributes: *const posix_spawnattr_t, arguments: *const *mut c_char, environment: *const *mut c_char) -> c_int;
    posix_spawnp(pid: *mut pid_t, file: *const c_char, actions: *const posix_spawn_file_actions_t,
        attributes: *const posix_spawnattr_t, arguments: *const *mut c_char, environment: *const *mut c_char) -> c_int;
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_function_of_the_c_library_is_found_and_called() {
        // SAFETY: plain calls on a descriptor that is not open.
        unsafe {
            assert_eq!(super::close(-1), -1);
            assert_eq!(crate::errno::get(), libc::EBADF);
            assert_eq!(super::fcntl(1 << 20, libc::F_GETFL, 0), -1);
        }
    }
}
