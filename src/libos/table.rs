//! The table for whoever loads this library at run time: [`sidestep_client::table`]. Nothing here unwinds into the
//! caller: a panic in a shard is caught where it is turned, and one while starting is a failed start.

use core::ffi::{CStr, c_char, c_int};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use engine::config::Config;
use engine::library::Core;
use sidestep_client::table::{FOLLOW, LEAD, LibraryEngine, LibraryTable, TABLE_VERSION, WORK};
use sidestep_client::{Driver, Rest};

static TABLE: LibraryTable =
    LibraryTable { version: TABLE_VERSION, start, finish, turn, sent, dry, found, prepare_sleep, awake };

/// [`sidestep_client::table::GetTable`].
#[unsafe(no_mangle)]
pub extern "C" fn sidestep_library_table(version: u32) -> *const LibraryTable {
    if version == TABLE_VERSION { &raw const TABLE } else { core::ptr::null() }
}

unsafe extern "C" fn start(
    config: *const c_char,
    control: *const c_char,
    error: *mut c_char,
    room: usize,
) -> *mut LibraryEngine {
    // SAFETY: the caller's word: two strings.
    let (config, control) = unsafe { (CStr::from_ptr(config), CStr::from_ptr(control)) };
    let begin = || -> anyhow::Result<Core> {
        let mut parsed = match config.to_str()? {
            "" => Config::loopback()?,
            file => Config::from_file(Path::new(file))?,
        };
        parsed.engine.control = Some(control.to_str()?.to_owned());
        Core::start(&parsed)
    };
    let why = match catch_unwind(AssertUnwindSafe(begin)) {
        Ok(Ok(core)) => return Box::into_raw(Box::new(core)).cast(),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "a bug in Sidestep: please report it".to_owned(),
    };
    if room > 0 {
        let bytes = &why.as_bytes()[..why.len().min(room - 1)];
        // SAFETY: the caller's word: room for so many bytes.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), error.cast(), bytes.len());
            *error.add(bytes.len()) = 0;
        }
    }
    core::ptr::null_mut()
}

unsafe extern "C" fn finish(engine: *mut LibraryEngine) {
    // SAFETY: the caller's word: what `start` gave, for the last time.
    let core = unsafe { Box::from_raw(engine.cast::<Core>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(core)));
}

/// # Safety
/// `engine` came from [`start`] and was not finished.
unsafe fn core<'a>(engine: *const LibraryEngine) -> &'a Core {
    // SAFETY: the caller's word.
    unsafe { &*engine.cast::<Core>() }
}

unsafe extern "C" fn turn(engine: *const LibraryEngine) -> bool {
    // SAFETY: the caller's word.
    unsafe { core(engine) }.driver().turn()
}

unsafe extern "C" fn sent(engine: *const LibraryEngine, shard: u32) -> bool {
    // SAFETY: the caller's word.
    unsafe { core(engine) }.driver().sent(shard)
}

unsafe extern "C" fn dry(engine: *const LibraryEngine) -> bool {
    // SAFETY: the caller's word.
    unsafe { core(engine) }.driver().dry()
}

unsafe extern "C" fn found(engine: *const LibraryEngine, events: usize) {
    // SAFETY: the caller's word.
    unsafe { core(engine) }.driver().found(events);
}

unsafe extern "C" fn prepare_sleep(engine: *const LibraryEngine, wake: *mut c_int, timeout_ns: *mut u64) -> c_int {
    // SAFETY: the caller's word.
    match unsafe { core(engine) }.driver().prepare_sleep() {
        Rest::Work => WORK,
        Rest::Follow => FOLLOW,
        Rest::Lead { wake: fd, timeout_ns: ns } => {
            // SAFETY: the caller's word: two places to write to.
            unsafe {
                *wake = fd.as_raw_fd();
                *timeout_ns = ns;
            }
            LEAD
        }
    }
}

unsafe extern "C" fn awake(engine: *const LibraryEngine, rest: c_int) {
    // SAFETY: the caller's word.
    let driver = unsafe { core(engine) }.driver();
    match rest {
        LEAD => driver.awake(&Rest::Lead { wake: driver.wake(), timeout_ns: 0 }),
        FOLLOW => driver.awake(&Rest::Follow),
        _ => {}
    }
}
