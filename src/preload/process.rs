//! fork, exec, spawn: the stack's sockets go where the kernel's would.
//!
//! ```text
//!   fork: locks taken ─▶ ticket (the engine makes a place for the child, which holds all slots) ─▶ fork
//!                        parent: drops it        child: is the ticket's process; event queues are made anew
//!   exec: slots whose descriptor stays open ─▶ a place for the new image, on a descriptor that stays open
//!                        SIDESTEP_INHERIT=<connection>:<table>    table: memfd of (descriptor, slot, SO_COOKIE)
//!         new image:     adopts the connection; a descriptor is the slot's if the placeholder's cookie says so
//! ```

use core::any::Any;
use core::cell::RefCell;
use core::ffi::{CStr, c_char, c_int};
use std::ffi::CString;
use std::os::fd::{FromRawFd, RawFd};

use libc::pid_t;
use sidestep_client::shm::wire::{
    DISPATCH, ENV_EXCLUDE, ENV_GROUP, ENV_INHERIT, ENV_LIBRARY, ENV_LIBRARY_CONFIG, ENV_SOCKET, ENV_SYSCALLS,
};
use sidestep_client::{Fd, ForkTicket, Session};

use crate::engine::{self, Settings};
use crate::errno::Errno;
use crate::socket::{self, Socket};
use crate::table::{self, Entry};
use crate::{dispatch, epoll, files, library, options, real, stdio};

/// Entry of the table that goes through exec: descriptor, slot, cookie of the placeholder.
type Passed = (i32, u32, u64);
const PASSED_BYTES: usize = 16;

// ---- fork ---------------------------------------------------------------------------------------------------------

/// What the forking thread holds on to from before until after.
struct Forking {
    /// What the handler of system calls and streams need; let go of first.
    first: Box<dyn Any>,
    others: Box<dyn Any>,
    ticket: Option<(&'static Session, Result<ForkTicket, sidestep_client::Errno>)>,
}

thread_local! {
    static FORKING: RefCell<Option<Forking>> = const { RefCell::new(None) };
}

/// Has the C library call this library around each fork() of its own. Handlers run in the order of registration, and
/// backwards before the fork: with ours the first, a program's own handlers (pthread_atfork(3); uvloop's builds its
/// epoll instance anew) never run while our locks are held.
pub fn watch_forks() {
    extern "C" fn prepare() {
        before_fork();
    }
    extern "C" fn parent() {
        after_fork(false);
    }
    extern "C" fn child() {
        after_fork(true);
    }
    // SAFETY: the functions stay: this library is never unloaded. It fails only for want of memory; then the child has
    // no sockets of ours.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

/// fork(2) by `call`, which runs no handlers.
pub fn fork(call: impl FnOnce() -> pid_t) -> pid_t {
    before_fork();
    let pid = call();
    after_fork(pid == 0);
    pid
}

/// Takes every lock and makes a place for the child.
fn before_fork() {
    if engine::settings().is_none() {
        return;
    }
    // In this order everywhere. The child must not find a lock taken by a thread that it doesn't have.
    let attaching = engine::hold_attaching();
    let gate = socket::shut_gate();
    let epolls = epoll::hold_all();
    let slots = socket::slots_in_use();
    let pool = socket::hold_pool();
    let first = Box::new((dispatch::hold(), stdio::hold()));
    // Given back in the opposite order.
    let others = Box::new((pool, epolls, gate, attaching));
    let ticket = engine::session().map(|s| (s, s.prepare_fork(&mut slots.iter().copied())));
    let _ = FORKING.try_with(|f| f.replace(Some(Forking { first, others, ticket })));
}

/// Makes the child the process that its ticket says, and gives the locks back.
fn after_fork(in_child: bool) {
    let Ok(Some(Forking { first, others, ticket })) = FORKING.try_with(RefCell::take) else { return };
    drop(first);
    if in_child {
        dispatch::forked_child();
        engine::next_epoch();
        library::forked_child();
    }
    match ticket {
        Some((session, ticket)) if in_child => {
            session.descriptors().for_each(table::clear_internal);
            match ticket {
                Ok(ticket) => {
                    // On failure the session is dead, and calls say so.
                    let _ = session.forked_child(ticket);
                }
                Err(error) => {
                    engine::say(&format!("sidestep: a forked process has no sockets of the engine: {error}\n"));
                    session.forked_without_ticket();
                }
            }
            session.descriptors().for_each(table::set_internal);
        }
        // Also when fork failed: then the engine sees the child's place end.
        Some((session, Ok(ticket))) => session.forked_parent(ticket),
        _ => {}
    }
    drop(others);
}

/// daemon(3). The C library's own opens /dev/null where it can't be seen.
pub fn daemon(stay: bool, keep: bool) -> Result<c_int, Errno> {
    let last = || Err(Errno(crate::errno::get()));
    // SAFETY: plain calls with constant strings.
    unsafe {
        match real::fork() {
            -1 => return last(),
            0 => {}
            _ => libc::_exit(0),
        }
        if libc::setsid() < 0 {
            return last();
        }
        if !stay {
            libc::chdir(c"/".as_ptr());
        }
        if !keep {
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            if null < 0 {
                return last();
            }
            for standard in 0..=2 {
                if real::dup2(null, standard) >= 0 {
                    files::duplicated(null, standard);
                }
            }
            if null > 2 {
                real::close(null);
            }
        }
    }
    Ok(0)
}

// ---- exec ---------------------------------------------------------------------------------------------------------

/// What a new image needs, and the descriptors that carry it.
pub struct Prepared {
    /// Connection and table, open across exec.
    carried: Option<(RawFd, RawFd)>,
    /// Keeps the strings of `pointers` alive.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Prepared {
    /// The environment for the new image, ended by a null.
    #[must_use]
    pub fn environment(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    /// exec failed, or the new image was spawned as another process: what was carried is not needed here.
    pub fn finish(self) {
        if let (Some((control, table)), Some(session)) = (self.carried, engine::session()) {
            session.cancel_exec(control);
            // SAFETY: made in `carry`.
            unsafe { real::close(table) };
        }
    }
}

/// Before exec or spawn with `environment`; None when this program runs without an engine. `all`: sockets that are
/// close-on-exec go along too, because file actions may duplicate them to where they stay open.
///
/// # Safety
/// `environment` is null or an array of strings that ends with a null.
pub unsafe fn prepare(environment: *const *const c_char, all: bool) -> Option<Prepared> {
    let settings = engine::settings()?;
    let session = engine::session();
    let carried = session.and_then(|session| carry(session, all));
    // SAFETY: the caller's word.
    let given = unsafe { strings(environment) };
    Some(environment_for(settings, session, given, carried))
}

/// # Safety
/// As for [`prepare`].
unsafe fn strings(array: *const *const c_char) -> Vec<*const c_char> {
    if array.is_null() {
        return Vec::new();
    }
    // SAFETY: by the caller's word there is a null at the end.
    unsafe { (0..).map(|i| *array.add(i)).take_while(|p| !p.is_null()).collect() }
}

fn environment_for(
    settings: &Settings,
    session: Option<&Session>,
    given: Vec<*const c_char>,
    carried: Option<(RawFd, RawFd)>,
) -> Prepared {
    let names = |entry: *const c_char, name: &str| {
        // SAFETY: entries of an environment are strings.
        let text = unsafe { CStr::from_ptr(entry) }.to_bytes();
        text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
    };
    let has = |name: &str| given.iter().any(|&e| names(e, name));
    let mut add: Vec<String> = Vec::new();
    // A program that starts others with an environment of its own making still starts them on the engine.
    if let Some(preload) = settings.preload.as_ref().filter(|_| !has("LD_PRELOAD")) {
        add.push(format!("LD_PRELOAD={preload}"));
    }
    if let Some(exclude) = settings.exclude.as_ref().filter(|_| !has(ENV_EXCLUDE)) {
        add.push(format!("{ENV_EXCLUDE}={exclude}"));
    }
    if let Some((library, config)) = settings.library.as_ref().filter(|_| !has(ENV_LIBRARY)) {
        add.push(format!("{ENV_LIBRARY}={library}"));
        add.push(format!("{ENV_LIBRARY_CONFIG}={config}"));
    }
    if settings.dispatch && !has(ENV_SYSCALLS) {
        add.push(format!("{ENV_SYSCALLS}={DISPATCH}"));
    }
    if !has(ENV_SOCKET) {
        add.push(format!("{ENV_SOCKET}={}", settings.socket));
    }
    match session {
        Some(session) => add.push(format!("{ENV_GROUP}={:032x}", session.group())),
        None if !has(ENV_GROUP) => add.push(format!("{ENV_GROUP}={}", settings.group)),
        None => {}
    }
    if let Some((control, table)) = carried {
        add.push(format!("{ENV_INHERIT}={control}:{table}"));
    }
    let replaced =
        |entry: &*const c_char| names(*entry, ENV_INHERIT) || (session.is_some() && names(*entry, ENV_GROUP));
    let strings: Vec<CString> = add.into_iter().filter_map(|s| CString::new(s).ok()).collect();
    let pointers = given
        .into_iter()
        .filter(|entry| !replaced(entry))
        .chain(strings.iter().map(|s| s.as_ptr()))
        .chain([core::ptr::null()])
        .collect();
    Prepared { carried, _strings: strings, pointers }
}

/// Makes a place for the new image and writes the table of what it inherits. None when that is nothing, or can't be.
fn carry(session: &Session, all: bool) -> Option<(RawFd, RawFd)> {
    let mut passed: Vec<Passed> = Vec::new();
    table::each(0, u32::MAX, |fd, entry| {
        // SAFETY: asks only.
        let stays = |fd| unsafe { real::fcntl(fd, libc::F_GETFD, 0) } & libc::FD_CLOEXEC == 0;
        if let Entry::Socket(socket) = entry
            && let Some(slot) = socket.claimed()
            && (all || stays(fd))
        {
            passed.push((fd, slot, cookie(fd)));
        }
    });
    if passed.is_empty() {
        return None;
    }
    let control = session
        .prepare_exec(&mut passed.iter().map(|p| p.1))
        .inspect_err(|error| engine::say(&format!("sidestep: sockets are not passed on to a new program: {error}\n")))
        .ok()?;
    match write_table(&passed, control) {
        Ok(table) => Some((control, table)),
        Err(_) => {
            session.cancel_exec(control);
            None
        }
    }
}

fn write_table(passed: &[Passed], above: RawFd) -> Result<RawFd, sidestep_client::Errno> {
    let low = Fd::from(rustix::fs::memfd_create(c"sidestep-exec", rustix::fs::MemfdFlags::CLOEXEC)?);
    let bytes: Vec<u8> = passed
        .iter()
        .flat_map(|&(fd, slot, cookie)| {
            let mut entry = [0; PASSED_BYTES];
            entry[..4].copy_from_slice(&fd.to_le_bytes());
            entry[4..8].copy_from_slice(&slot.to_le_bytes());
            entry[8..].copy_from_slice(&cookie.to_le_bytes());
            entry
        })
        .collect();
    let mut left = &bytes[..];
    while !left.is_empty() {
        left = &left[rustix::io::write(&low, left)?..];
    }
    // High up, and not close-on-exec.
    let high = Fd::from(rustix::io::fcntl_dupfd_cloexec(&low, above)?);
    rustix::io::fcntl_setfd(&high, rustix::io::FdFlags::empty())?;
    Ok(high.into_raw())
}

fn read_table(bytes: &[u8]) -> Vec<Passed> {
    let entry = |b: &[u8]| {
        let (fd, slot, cookie) = (b[..4].try_into().ok()?, b[4..8].try_into().ok()?, b[8..].try_into().ok()?);
        Some((i32::from_le_bytes(fd), u32::from_le_bytes(slot), u64::from_le_bytes(cookie)))
    };
    bytes.chunks_exact(PASSED_BYTES).filter_map(entry).collect()
}

/// SO_COOKIE: which kernel socket a descriptor stands for; 0 when it is none.
fn cookie(fd: RawFd) -> u64 {
    let mut value = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    let place = (&raw mut value).cast();
    // SAFETY: room for the cookie, and its length.
    let outcome = unsafe { real::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, place, &raw mut len) };
    if outcome == 0 { value } else { 0 }
}

/// At the start of an image: takes over what the one before passed on.
pub fn adopt() {
    let Some(inherit) = engine::variable(ENV_INHERIT) else { return };
    // SAFETY: one thread runs yet.
    unsafe { libc::unsetenv(c"SIDESTEP_INHERIT".as_ptr()) };
    let Some(settings) = engine::settings() else { return };
    let mut numbers = inherit.split(':').map(str::parse::<RawFd>);
    let (Some(Ok(control)), Some(Ok(table))) = (numbers.next(), numbers.next()) else { return };
    // SAFETY: by the agreement of `carry`, descriptors that were opened for this library in this process.
    let (control, table) = unsafe { (Fd::from_raw(control), std::os::fd::OwnedFd::from_raw_fd(table)) };
    let table = Fd::from(table);
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = rustix::io::pread(&table, &mut piece, bytes.len() as u64) {
        bytes.extend_from_slice(&piece[..n]);
    }
    match Session::adopt(control, &settings.socket) {
        Ok(session) => take_over(engine::publish(session), &read_table(&bytes)),
        Err(error) => engine::say(&format!("sidestep: sockets of the program before are lost: {error}\n")),
    }
}

fn take_over(session: &'static Session, passed: &[Passed]) {
    for &(fd, slot, known) in passed {
        // The same number, or a standard descriptor that it was duplicated to.
        for at in [fd, 0, 1, 2] {
            if known != 0 && cookie(at) == known && table::get(at).is_none() {
                inherit(session, at, slot);
            }
        }
    }
    for &(_, slot, _) in passed {
        if socket::id_of_slot(slot).is_none() {
            session.close(slot);
        }
    }
}

/// Calls `call`, which starts a program with the variable `environ` for its environment.
pub fn with_environment<R>(call: impl FnOnce() -> R) -> R {
    // SAFETY: the C library's variable, and what it points to.
    let Some(prepared) = (unsafe { prepare(environ(), true) }) else { return call() };
    // SAFETY: as above. Who looks at it meanwhile finds what it looks for, and a few variables more.
    let before = unsafe { core::ptr::replace(place_of_environ(), prepared.environment()) };
    let outcome = call();
    // SAFETY: as above.
    unsafe { place_of_environ().write(before) };
    let error = crate::errno::get();
    prepared.finish();
    crate::errno::set(error);
    outcome
}

/// system(3), with a command.
///
/// # Safety
/// `command` is a string.
pub unsafe fn system(command: *const c_char) -> c_int {
    // SAFETY: structures are written before they are read; the caller's word.
    unsafe {
        let mut ignore: libc::sigaction = core::mem::zeroed();
        ignore.sa_sigaction = libc::SIG_IGN;
        let (mut interrupt, mut quit): (libc::sigaction, libc::sigaction) = core::mem::zeroed();
        libc::sigaction(libc::SIGINT, &raw const ignore, &raw mut interrupt);
        libc::sigaction(libc::SIGQUIT, &raw const ignore, &raw mut quit);
        let (mut child, mut mask, mut defaults): (libc::sigset_t, libc::sigset_t, libc::sigset_t) = core::mem::zeroed();
        libc::sigaddset(&raw mut child, libc::SIGCHLD);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const child, &raw mut mask);
        for (signal, before) in [(libc::SIGINT, &interrupt), (libc::SIGQUIT, &quit)] {
            if before.sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(&raw mut defaults, signal);
            }
        }
        let mut attributes: libc::posix_spawnattr_t = core::mem::zeroed();
        libc::posix_spawnattr_init(&raw mut attributes);
        libc::posix_spawnattr_setsigmask(&raw mut attributes, &raw const mask);
        libc::posix_spawnattr_setsigdefault(&raw mut attributes, &raw const defaults);
        let flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
        libc::posix_spawnattr_setflags(&raw mut attributes, flags as _);
        let arguments: [*mut c_char; 4] =
            [c"sh".as_ptr().cast_mut(), c"-c".as_ptr().cast_mut(), command.cast_mut(), core::ptr::null_mut()];
        let (mut pid, environment) = (0, environ());
        let mut status = 127 << 8;
        let error = match prepare(environment, false) {
            Some(prepared) => {
                let environment = prepared.environment().cast();
                let (path, actions) = (c"/bin/sh".as_ptr(), core::ptr::null());
                let error = real::posix_spawn(
                    &raw mut pid,
                    path,
                    actions,
                    &raw const attributes,
                    arguments.as_ptr(),
                    environment,
                );
                prepared.finish();
                error
            }
            None => libc::ENOMEM,
        };
        libc::posix_spawnattr_destroy(&raw mut attributes);
        if error == 0 {
            while libc::waitpid(pid, &raw mut status, 0) < 0 {
                if crate::errno::get() != libc::EINTR {
                    status = -1;
                    break;
                }
            }
        }
        libc::sigaction(libc::SIGINT, &raw const interrupt, core::ptr::null_mut());
        libc::sigaction(libc::SIGQUIT, &raw const quit, core::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, core::ptr::null_mut());
        status
    }
}

/// `fd`, which came from another image or process, stands for `slot`, which this process holds.
pub fn inherit(session: &'static Session, fd: RawFd, slot: u32) {
    if let Some(socket) = socket::id_of_slot(slot).and_then(socket::by_id) {
        socket.share();
        socket::install(fd, Entry::Socket(socket));
        stdio::changed(fd);
        return;
    }
    let Some(shared) = session.region().slot(slot) else { return };
    let kind = shared.kind.load(core::sync::atomic::Ordering::Relaxed);
    // SAFETY: asks only.
    let nonblock = unsafe { real::fcntl(fd, libc::F_GETFL, 0) } & libc::O_NONBLOCK != 0;
    let socket: &Socket = socket::inherited(fd, slot, kind, nonblock);
    for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        options::was_set(socket, fd, libc::SOL_SOCKET, name);
    }
    stdio::changed(fd);
}

/// The variable `environ`.
#[must_use]
pub fn environ() -> *const *const c_char {
    // SAFETY: the C library's variable.
    unsafe { place_of_environ().read() }
}

fn place_of_environ() -> *mut *const *const c_char {
    unsafe extern "C" {
        static mut environ: *const *const c_char;
    }
    &raw mut environ
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_comes_back() {
        let passed = vec![(3, 7, 1 << 40), (0, 9, 5)];
        let fd = write_table(&passed, 100).unwrap();
        assert!(fd >= 100);
        let mut bytes = [0; 64];
        // SAFETY: 64 bytes; the descriptor was made above and is closed once.
        let n = unsafe {
            let n = real::pread(fd, bytes.as_mut_ptr().cast(), 64, 0);
            real::close(fd);
            n
        };
        assert_eq!(read_table(&bytes[..n as usize]), passed);
    }

    #[test]
    fn an_environment_keeps_the_engine_and_loses_old_descriptors() {
        let settings = Settings {
            socket: "/s".into(),
            group: "7".into(),
            preload: Some("/p.so".into()),
            dispatch: true,
            exclude: None,
            library: None,
        };
        let given: Vec<CString> =
            ["A=1", "SIDESTEP_INHERIT=1:2", "SIDESTEP_GROUP=9"].map(|s| CString::new(s).unwrap()).into();
        let made = environment_for(&settings, None, given.iter().map(|s| s.as_ptr()).collect(), Some((20, 21)));
        // SAFETY: ended by a null, strings alive.
        let texts: Vec<&str> = unsafe { strings(made.environment()) }
            .into_iter()
            // SAFETY: as above.
            .map(|p| unsafe { CStr::from_ptr(p) }.to_str().unwrap())
            .collect();
        assert_eq!(
            texts,
            [
                "A=1",
                "SIDESTEP_GROUP=9",
                "LD_PRELOAD=/p.so",
                "SIDESTEP_SYSCALLS=dispatch",
                "SIDESTEP_SOCKET=/s",
                "SIDESTEP_INHERIT=20:21"
            ]
        );
    }

    #[test]
    fn two_descriptors_of_one_socket_have_one_cookie() {
        // SAFETY: plain calls on descriptors made here.
        unsafe {
            let a = real::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            let b = real::dup(a);
            let c = real::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            assert!(cookie(a) != 0 && cookie(a) == cookie(b) && cookie(a) != cookie(c));
            for fd in [a, b, c] {
                real::close(fd);
            }
        }
        use std::os::fd::AsRawFd;
        let file = rustix::fs::memfd_create(c"x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(cookie(file.as_raw_fd()), 0);
    }
}
