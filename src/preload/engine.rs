//! This process's attachment to the engine: made at the first socket, taken over after exec, renewed after fork.

use core::cell::RefCell;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, OnceLock};

use sidestep_client::shm::wire::{
    DISPATCH, ENV_EXCLUDE, ENV_GROUP, ENV_LIBRARY, ENV_LIBRARY_CONFIG, ENV_SOCKET, ENV_SYSCALLS,
};
use sidestep_client::{Deadline, Session, Waiter, now_ns};

use crate::errno::Errno;
use crate::library;
use crate::socket::Socket;
use crate::table::{self, lock};

/// What `sidestep run` left in the environment. Kept, because programs overwrite their environment.
pub struct Settings {
    /// Where the engine listens.
    pub socket: String,
    /// The group of programs to join, as given.
    pub group: String,
    /// The variable that loads this library.
    pub preload: Option<String>,
    /// Whether all system calls are to be watched.
    pub dispatch: bool,
    /// Programs that stay on the kernel's sockets, as given.
    pub exclude: Option<String>,
    /// Library mode: the library, and the configuration's file or nothing.
    pub library: Option<(String, String)>,
}

static SETTINGS: OnceLock<Option<Settings>> = OnceLock::new();
static SESSION: AtomicPtr<Session> = AtomicPtr::new(core::ptr::null_mut());
static ATTACHING: Mutex<bool> = Mutex::new(false);
/// How many forks lie between the first process and this one: event queues made before the last of them are a parent's.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Reads the environment, once. None: this program runs without an engine.
pub fn settings() -> Option<&'static Settings> {
    SETTINGS
        .get_or_init(|| {
            let socket = variable(ENV_SOCKET)?;
            let dispatch = variable(ENV_SYSCALLS).is_some_and(|how| how == DISPATCH);
            let (group, preload) = (variable(ENV_GROUP).unwrap_or_default(), variable("LD_PRELOAD"));
            let exclude = variable(ENV_EXCLUDE);
            let library = variable(ENV_LIBRARY).map(|l| (l, variable(ENV_LIBRARY_CONFIG).unwrap_or_default()));
            let mine = [std::env::args_os().next().map(Into::into), std::env::current_exe().ok()];
            if exclude.as_ref().is_some_and(|list| mine.iter().flatten().any(|me| is_named(list, me))) {
                return None;
            }
            Some(Settings { socket, group, preload, dispatch, exclude, library })
        })
        .as_ref()
}

/// Whether a program stands in a list of names with colons between.
fn is_named(list: &str, program: &std::path::Path) -> bool {
    let name = program.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| list.split(':').any(|listed| listed == name))
}

/// A variable of the environment, if it is set, not empty, and text.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The session, if there is one.
#[inline]
pub fn session() -> Option<&'static Session> {
    // SAFETY: a session that was published lives as long as the process.
    unsafe { SESSION.load(Ordering::Acquire).as_ref() }
}

/// The session, made now if it has to be. None: this program runs without an engine.
///
/// # Errors
/// ENETDOWN: the engine can't be reached. Said once on stderr; never a silent fall back to the kernel.
pub fn attach() -> Result<Option<&'static Session>, Errno> {
    if let Some(session) = session() {
        return Ok(Some(session));
    }
    let Some(settings) = settings() else { return Ok(None) };
    let mut failed = lock(&ATTACHING);
    if let Some(session) = session() {
        return Ok(Some(session));
    }
    let group = u128::from_str_radix(&settings.group, 16).unwrap_or(0);
    let attached = Session::attach(&settings.socket, group).map_err(|error| error.to_string());
    let attached = match (&settings.library, attached) {
        (Some(_), Ok(session)) => {
            library::say_guest();
            Ok(session)
        }
        // Nobody has an engine there yet.
        (Some((library, config)), Err(_)) if !*failed => library::start(library, config, settings, group),
        (_, attached) => attached,
    };
    match attached {
        Ok(session) => Ok(Some(publish(session))),
        Err(error) => {
            if !*failed {
                say(&format!("sidestep: {error}\n"));
                *failed = true;
            }
            Err(Errno(libc::ENETDOWN))
        }
    }
}

/// The session, made now as a member of the group to which the socket of `placeholder` belongs. None: it is nobody's,
/// or can't be had.
pub fn attach_to_owner_of(placeholder: std::os::fd::BorrowedFd<'_>) -> Option<&'static Session> {
    let settings = settings()?;
    let mut failed = lock(&ATTACHING);
    if let Some(session) = session() {
        return Some(session);
    }
    match Session::attach_to_owner_of(placeholder, &settings.socket) {
        Ok(session) => session.map(publish),
        Err(error) => {
            if !*failed {
                say(&format!("sidestep: a socket that arrived over a Unix socket can't be used: {error}\n"));
                *failed = true;
            }
            None
        }
    }
}

/// Makes `session` this process's.
pub fn publish(session: Session) -> &'static Session {
    let session: &'static Session = Box::leak(Box::new(session));
    session.descriptors().for_each(table::set_internal);
    SESSION.store(core::ptr::from_ref(session).cast_mut(), Ordering::Release);
    session
}

/// Holds off attaching by other threads: around fork.
pub fn hold_attaching() -> impl Sized {
    lock(&ATTACHING)
}

/// See [`EPOCH`].
pub fn epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// A child of fork begins.
pub fn next_epoch() {
    EPOCH.fetch_add(1, Ordering::Relaxed);
}

/// Writes a line to stderr, past everything.
pub fn say(text: &str) {
    // SAFETY: only written to; if the program closed it, or uses the number for something else, so be it, as with every
    // message of the C library.
    let stderr = unsafe { std::os::fd::BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    let _ = rustix::io::write(stderr, text.as_bytes());
}

/// An event queue of this process, or of a parent that this process forgets.
pub struct OwnWaiter {
    waiter: Option<Waiter>,
    epoch: u32,
}

impl OwnWaiter {
    pub const fn none() -> Self {
        Self { waiter: None, epoch: 0 }
    }

    /// The waiter, if it was made and is this process's.
    pub fn existing(&mut self) -> Option<&Waiter> {
        self.forget_foreign();
        self.waiter.as_ref()
    }

    /// The waiter, made if need be. None: the engine has none left, or is gone.
    pub fn made(&mut self, session: &Session) -> Option<&Waiter> {
        self.forget_foreign();
        if self.waiter.is_none() {
            let waiter = Waiter::new(session).ok()?;
            table::set_internal(waiter.fd().as_raw_fd());
            self.waiter = Some(waiter);
            self.epoch = epoch();
        }
        self.waiter.as_ref()
    }

    /// Whether a waiter is there that belongs to a parent.
    pub fn is_foreign(&self) -> bool {
        self.waiter.is_some() && self.epoch != epoch()
    }

    fn forget_foreign(&mut self) {
        if self.is_foreign()
            && let Some(waiter) = self.waiter.take()
        {
            table::clear_internal(waiter.fd().as_raw_fd());
            waiter.abandon();
        }
    }

    /// Gives the waiter back. Every slot must have been unwatched.
    pub fn release(&mut self) {
        self.forget_foreign();
        if let (Some(waiter), Some(session)) = (self.waiter.take(), session()) {
            table::clear_internal(waiter.fd().as_raw_fd());
            waiter.release(session);
        }
    }
}

/// Gives a thread's event queue back when the thread ends.
struct OfThread(RefCell<OwnWaiter>);

impl Drop for OfThread {
    fn drop(&mut self) {
        self.0.get_mut().release();
    }
}

thread_local! {
    static WAITER: OfThread = const { OfThread(RefCell::new(OwnWaiter::none())) };
}

/// Calls `with` with this thread's event queue; without one when none can be had, when the thread is ending, or when a
/// signal handler waits inside a wait.
pub fn with_waiter<R>(session: &Session, with: impl FnOnce(Option<&Waiter>) -> R) -> R {
    let mut with = Some(with);
    let done = WAITER.try_with(|of_thread| {
        let mut own = of_thread.0.try_borrow_mut().ok()?;
        let waiter = own.made(session);
        with.take().map(|with| with(waiter))
    });
    match (done, with) {
        (Ok(Some(result)), _) => result,
        (_, Some(with)) => with(None),
        // `with` was called and its result lost: only by a panic, which does not come here.
        (_, None) => unreachable!(),
    }
}

/// Makes what this thread will need to wait, if this process has sockets of ours: while it still may.
pub fn make_waiter() {
    if let Some(session) = session() {
        with_waiter(session, |_| ());
    }
}

/// How long a wait without an event queue naps between looks, in nanoseconds.
pub const NAP_NS: u64 = 1_000_000;

/// Sleeps until `socket` is ready for one of the poll bits `interest`, has failed or hung up. False: `timeout_ns` (0:
/// none) has passed.
///
/// # Errors
/// EINTR, when a signal came and its handler wants calls to end. EBADF, when another thread closed the descriptor.
pub fn wait(session: &Session, socket: &Socket, interest: u32, timeout_ns: u64) -> Result<bool, Errno> {
    let (slot, generation) = (socket.slot(), socket.generation());
    let deadline = (timeout_ns > 0).then(|| Deadline(now_ns().saturating_add(timeout_ns)));
    let bits = with_waiter(session, |waiter| {
        loop {
            let outcome = match waiter {
                Some(waiter) => sidestep_client::wait(session, waiter, slot, interest, deadline, true),
                None => nap(session, slot, interest, deadline),
            };
            match outcome {
                // Linux ends a call with a timeout by EINTR even under SA_RESTART: signal(7).
                Err(sidestep_client::Errno::INTR) if timeout_ns == 0 && signals_restart() => {}
                other => return other,
            }
            if socket.generation() != generation {
                return Err(sidestep_client::Errno::BADF);
            }
        }
    })?;
    if socket.generation() != generation { Err(Errno(libc::EBADF)) } else { Ok(bits != 0) }
}

/// Waits until the engine has acted upon connect() of the datagram socket in `slot`.
pub fn wait_settled(session: &Session, slot: u32) {
    with_waiter(session, |waiter| match waiter {
        Some(waiter) => sidestep_client::wait_settled(session, waiter, slot),
        None => {
            while !session.has_settled(slot) {
                session.pause();
            }
        }
    });
}

/// Waits until `done`, `until` at the latest, or a signal. `done` changes when the engine marks `slot`.
pub fn wait_for(session: &Session, slot: u32, done: &dyn Fn() -> bool, until: Deadline) {
    with_waiter(session, |waiter| match waiter {
        Some(waiter) => sidestep_client::wait_done(session, waiter, slot, done, until),
        None => {
            while !done() && now_ns() < until.0 {
                session.turn();
                let nap = rustix::event::Timespec { tv_sec: 0, tv_nsec: NAP_NS as _ };
                let _ = rustix::event::poll(&mut [], Some(&nap));
            }
        }
    });
}

/// A wait without an event queue.
fn nap(session: &Session, slot: u32, interest: u32, deadline: Option<Deadline>) -> Result<u32, sidestep_client::Errno> {
    use sidestep_client::{POLLERR, POLLHUP};
    loop {
        session.turn();
        let bits = session.readiness(slot) & (interest | POLLERR | POLLHUP);
        if bits != 0 || deadline.is_some_and(|d| d.0 <= now_ns()) {
            return Ok(bits);
        }
        let ms = rustix::event::Timespec { tv_sec: 0, tv_nsec: NAP_NS as _ };
        rustix::event::poll(&mut [], Some(&ms))?;
    }
}

/// Whether every handler that is installed asks for interrupted calls to go on (SA_RESTART). The sleep underneath is
/// ppoll(), which a signal always ends and which doesn't tell which signal it was. So the one that came is known only
/// when all handlers agree; when they don't, EINTR is the answer that loses no signal.
fn signals_restart() -> bool {
    (1..=libc::SIGRTMAX()).all(|signal| {
        // SAFETY: asks only; `now` is written before it is read.
        unsafe {
            let mut now: libc::sigaction = core::mem::zeroed();
            libc::sigaction(signal, core::ptr::null(), &raw mut now) != 0
                || now.sa_sigaction == libc::SIG_DFL
                || now.sa_sigaction == libc::SIG_IGN
                || now.sa_flags & libc::SA_RESTART != 0
        }
    })
}

#[cfg(test)]
mod tests {
    use super::is_named;

    #[test]
    fn programs_are_excluded_by_the_last_part_of_their_path() {
        let named = |list: &str, program: &str| is_named(list, program.as_ref());
        assert!(named("git:make", "/usr/bin/git") && named("git:make", "make"));
        assert!(!named("git:make", "/usr/bin/git-lfs") && !named("", "git") && !named("bin", "/usr/bin/x"));
    }
}
