//! Library mode: the engine in this process, loaded when the first socket needs it. `sidestep run --library` names the
//! library and the configuration in the environment.
//!
//! ```text
//!   first socket ─▶ does an engine answer at the control socket? ─ yes ─▶ be its guest, as with any engine (said once)
//!                        │ no
//!                        ▼
//!   dlopen(libsidestep.so) ─▶ table ─▶ start: the engine is this process's; its session drives it
//! ```
//!
//! The library's calls into the C library come by this library's exports, as all calls do. What it opens is in no table
//! here, so that they pass; only sockets of IPv4 and IPv6 that it opens while it starts have to be told apart ([`is_inside`]).

use core::cell::Cell;
use core::ffi::{CStr, c_char, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use sidestep_client::table::{FOLLOW, GetTable, LEAD, LibraryEngine, LibraryTable, TABLE_SYMBOL, TABLE_VERSION, WORK};
use sidestep_client::{Driver, Rest, Session};

use crate::engine::{Settings, say};
use crate::table::lock;
use crate::{real, table};

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is starting or ending the engine: what it opens is the engine's.
pub fn is_inside() -> bool {
    INSIDE.try_with(Cell::get).unwrap_or(false)
}

/// The engine of this process.
static ENGINE: AtomicPtr<LibraryEngine> = AtomicPtr::new(core::ptr::null_mut());
static TABLE: AtomicPtr<LibraryTable> = AtomicPtr::new(core::ptr::null_mut());
/// Descriptors that the engine has had since it started, device and XDP program among them.
static DESCRIPTORS: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Numbers below this are left to the program's own files while the engine opens its.
const LOW_NUMBERS: RawFd = 256;

struct InProcess {
    table: &'static LibraryTable,
}

impl InProcess {
    fn engine(&self) -> *const LibraryEngine {
        ENGINE.load(Ordering::Acquire)
    }
}

// SAFETY of all calls here: the table is valid for ever, and the engine until `finish`, which happens when no thread of
// the program runs any more, or the process is about to end.
impl Driver for InProcess {
    fn turn(&self) -> bool {
        // SAFETY: see above.
        unsafe { (self.table.turn)(self.engine()) }
    }

    fn sent(&self, shard: u32) -> bool {
        // SAFETY: see above.
        unsafe { (self.table.sent)(self.engine(), shard) }
    }

    fn dry(&self) -> bool {
        // SAFETY: see above.
        unsafe { (self.table.dry)(self.engine()) }
    }

    fn found(&self, events: usize) {
        // SAFETY: see above.
        unsafe { (self.table.found)(self.engine(), events) }
    }

    fn prepare_sleep(&self) -> Rest<'_> {
        let (mut wake, mut timeout_ns) = (-1, u64::MAX);
        // SAFETY: see above; two places to write to.
        match unsafe { (self.table.prepare_sleep)(self.engine(), &raw mut wake, &raw mut timeout_ns) } {
            WORK => Rest::Work,
            // SAFETY: the engine's own, open as long as it is.
            LEAD => Rest::Lead { wake: unsafe { BorrowedFd::borrow_raw(wake) }, timeout_ns },
            _ => Rest::Follow,
        }
    }

    fn awake(&self, rest: &Rest<'_>) {
        let rest = match rest {
            Rest::Work => WORK,
            Rest::Follow => FOLLOW,
            Rest::Lead { .. } => LEAD,
        };
        // SAFETY: see above.
        unsafe { (self.table.awake)(self.engine(), rest) }
    }
}

/// Starts the engine in this process, with its control socket where `settings` say, and attaches to it.
///
/// # Errors
/// What failed, and what to do.
pub fn start(library: &str, config: &str, settings: &Settings, group: u128) -> Result<Session, String> {
    INSIDE.with(|inside| inside.set(true));
    let started = start_inside(library, config, settings, group);
    INSIDE.with(|inside| inside.set(false));
    started
}

fn start_inside(library: &str, config: &str, settings: &Settings, group: u128) -> Result<Session, String> {
    let text = |text: &str| CString::new(text).map_err(|_| format!("{text:?} has a NUL in it"));
    let table = load(&text(library)?)?;
    let (config, control) = (text(config)?, text(&settings.socket)?);
    let before = open_descriptors();
    let low = Fillers::new(&before);
    let mut why = [0 as c_char; 1024];
    // SAFETY: strings, and room for one.
    let engine = unsafe { (table.start)(config.as_ptr(), control.as_ptr(), why.as_mut_ptr(), why.len()) };
    if engine.is_null() {
        // SAFETY: the library ends it with a NUL.
        return Err(unsafe { CStr::from_ptr(why.as_ptr()) }.to_string_lossy().into_owned());
    }
    TABLE.store(core::ptr::from_ref(table).cast_mut(), Ordering::Release);
    ENGINE.store(engine, Ordering::Release);
    let session = Session::attach(&settings.socket, group).map_err(|error| error.to_string())?;
    session.drive_with(Arc::new(InProcess { table }));
    drop(low);
    let own: Vec<RawFd> = open_descriptors().difference(&before).copied().collect();
    for &fd in &own {
        // A program must neither close them nor take them along into another program.
        table::set_internal(fd);
        // SAFETY: a flag of a descriptor that the engine has just opened.
        unsafe { real::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC as usize) };
    }
    // What the session keeps open it closes itself.
    let kept: Vec<RawFd> = session.descriptors().collect();
    *lock(&DESCRIPTORS) = own.into_iter().filter(|fd| !kept.contains(fd)).collect();
    Ok(session)
}

fn load(path: &CStr) -> Result<&'static LibraryTable, String> {
    // SAFETY: a library of ours; its initialisers do nothing that needs a lock of the program's.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: dlerror gives a string after a failure.
        let why = unsafe { CStr::from_ptr(libc::dlerror()) };
        return Err(why.to_string_lossy().into_owned());
    }
    // SAFETY: a handle, and a string.
    let symbol: *mut c_void = unsafe { libc::dlsym(handle, TABLE_SYMBOL.as_ptr()) };
    if symbol.is_null() {
        return Err(format!("{} is no library of Sidestep", path.to_string_lossy()));
    }
    // SAFETY: by its name it is this function.
    let get = unsafe { core::mem::transmute::<*mut c_void, GetTable>(symbol) };
    // SAFETY: the table is null or valid for ever.
    let table = unsafe { get(TABLE_VERSION).as_ref() };
    table.ok_or_else(|| format!("{} is of another version", path.to_string_lossy()))
}

/// In a child of fork: the engine is the parent's. What keeps its device is closed, or the device would not go back
/// when the parent ends.
pub fn forked_child() {
    if ENGINE.swap(core::ptr::null_mut(), Ordering::AcqRel).is_null() {
        return;
    }
    for fd in core::mem::take(&mut *lock(&DESCRIPTORS)) {
        table::clear_internal(fd);
        // SAFETY: the engine's, which doesn't run here.
        unsafe { real::close(fd) };
    }
}

/// At the end of the program: what it wrote leaves, and the device goes back.
pub fn finish(session: Option<&Session>) {
    let engine = ENGINE.load(Ordering::Acquire);
    // SAFETY: a table lives for ever.
    let table = unsafe { TABLE.load(Ordering::Acquire).as_ref() };
    if let (Some(table), false) = (table, engine.is_null()) {
        INSIDE.with(|inside| inside.set(true));
        if let Some(session) = session {
            session.leave();
        }
        // The engine's pointer stays: threads that still run find shards that are over.
        // SAFETY: what `start` gave; once, because a process ends once.
        unsafe { (table.finish)(engine) };
    }
}

/// Numbers of the descriptors that are open.
fn open_descriptors() -> BTreeSet<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: BTreeSet<RawFd> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    // The one that lists them is among them, and gone now.
    // SAFETY: asks only.
    numbers.into_iter().filter(|&fd| unsafe { real::fcntl(fd, libc::F_GETFD, 0) } >= 0).collect()
}

/// Takes all low numbers as long as it lives, so that what is opened meanwhile gets high ones, and the program gets the
/// lowest for its own files, as it may expect.
struct Fillers(Vec<OwnedFd>);

impl Fillers {
    fn new(taken: &BTreeSet<RawFd>) -> Self {
        let free = (0..LOW_NUMBERS).filter(|fd| !taken.contains(fd)).count();
        let Ok(null) = std::fs::File::open("/dev/null") else { return Self(Vec::new()) };
        let mut all: Vec<OwnedFd> = Vec::with_capacity(free);
        let copy = || rustix::io::fcntl_dupfd_cloexec(&null, 0).ok();
        while all.last().is_none_or(|fd| fd.as_raw_fd() < LOW_NUMBERS) && all.len() < free {
            let Some(fd) = copy() else { break };
            all.push(fd);
        }
        all.push(null.into());
        Self(all)
    }
}

impl Drop for Fillers {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Says once that this process is another's guest.
pub fn say_guest() {
    say(&format!(
        "sidestep: process {} has its sockets on the engine of the process that was first (library mode: one engine a \
         device)\n",
        std::process::id()
    ));
}
