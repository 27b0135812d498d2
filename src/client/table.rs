//! What `libsidestep.so` gives to whoever loads it at run time (the preload library under `sidestep run --library`): a
//! table of functions, so that the engine is in no program that doesn't ask for it.

use core::ffi::{c_char, c_int};

/// Version of [`LibraryTable`]. Both sides must agree exactly.
pub const TABLE_VERSION: u32 = 1;
/// The symbol: a function of type [`GetTable`].
pub const TABLE_SYMBOL: &core::ffi::CStr = c"sidestep_library_table";

/// An engine that a library started.
#[repr(C)]
pub struct LibraryEngine {
    _private: [u8; 0],
}

/// Of the library: its table, or null for another version than `version`. The table is valid for ever.
pub type GetTable = unsafe extern "C" fn(version: u32) -> *const LibraryTable;

/// See [`crate::Driver`] for what the functions from `turn` on do. Any thread may call them.
#[repr(C)]
pub struct LibraryTable {
    pub version: u32,
    /// Starts an engine by the configuration in the file `config` ("" for a loopback without a device), whose control
    /// socket is `control`. Null on failure; `error` (of `room` bytes) then has the reason, ended by a NUL.
    pub start: unsafe extern "C" fn(
        config: *const c_char,
        control: *const c_char,
        error: *mut c_char,
        room: usize,
    ) -> *mut LibraryEngine,
    /// Lets what was written leave (5 s at most), gives the device back, frees the engine.
    pub finish: unsafe extern "C" fn(engine: *mut LibraryEngine),
    pub turn: unsafe extern "C" fn(engine: *const LibraryEngine) -> bool,
    pub sent: unsafe extern "C" fn(engine: *const LibraryEngine, shard: u32) -> bool,
    pub dry: unsafe extern "C" fn(engine: *const LibraryEngine) -> bool,
    pub found: unsafe extern "C" fn(engine: *const LibraryEngine, events: usize),
    /// 0: work; 1: follow; 2: lead, and `wake` and `timeout_ns` are set.
    pub prepare_sleep:
        unsafe extern "C" fn(engine: *const LibraryEngine, wake: *mut c_int, timeout_ns: *mut u64) -> c_int,
    /// `rest`: what that gave.
    pub awake: unsafe extern "C" fn(engine: *const LibraryEngine, rest: c_int),
}

/// What `prepare_sleep` gives.
pub const WORK: c_int = 0;
/// See [`WORK`].
pub const FOLLOW: c_int = 1;
/// See [`WORK`].
pub const LEAD: c_int = 2;
