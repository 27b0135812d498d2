//! `libsidestep`: the whole engine in the program's own process, for C programs and for `sidestep run --library`.
//! Everything that it does is in [`engine::library`] and [`sidestep_client::capi`]; here is only what has to have a C
//! name and needs both: the part "library mode" of `include/sidestep.h`, which documents it.
#![allow(non_camel_case_types)]

mod table;

use core::ffi::{CStr, c_char, c_int, c_void};
use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use engine::config::Config;
use engine::library::BeforePoll;
use engine::port::hooked::{Frame, FrameHook, HookMaker, Verdict, Way};
use sidestep_client::capi::{self, ss_engine};

pub use engine::library::Library;

/// What a handle of a started engine owns.
struct Started {
    library: Library,
    control: CString,
}

/// `struct ss_frame`.
#[repr(C)]
pub struct ss_frame {
    data: *mut u8,
    len: usize,
    capacity: usize,
    outgoing: c_int,
    shard: u32,
}

const SS_PASS: c_int = 0;
const SS_CHANGED: c_int = 2;

/// `ss_hook`.
pub type ss_hook = unsafe extern "C" fn(*mut ss_frame, *mut c_void) -> c_int;

/// `struct ss_options`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ss_options {
    size: usize,
    config_file: *const c_char,
    config_text: *const c_char,
    hook: Option<ss_hook>,
    user: *mut c_void,
    wires: *const c_int,
    wire_count: usize,
}

/// `struct ss_stats`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ss_stats {
    frames_in: u64,
    bytes_in: u64,
    frames_out: u64,
    bytes_out: u64,
    tcp_in: u64,
    tcp_out: u64,
    tcp_retransmits: u64,
    udp_in: u64,
    udp_out: u64,
    tcp_opened: u64,
    tcp_closed: u64,
    dropped: u64,
    hook_seen: [u64; 2],
    hook_dropped: [u64; 2],
    hook_changed: [u64; 2],
}

type Failure = (c_int, String);

fn invalid(what: &str) -> Failure {
    (libc::EINVAL, what.to_owned())
}

fn failed(error: &anyhow::Error) -> Failure {
    let errno = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
    (errno.unwrap_or(libc::EINVAL), format!("{error:#}"))
}

/// A hook of C's, with what it wants to be given.
#[derive(Clone, Copy)]
struct CHook {
    call: ss_hook,
    user: *mut c_void,
}

// SAFETY: the header says that any thread may call it, one at a time for each shard, and that `user` lives.
unsafe impl Send for CHook {}
// SAFETY: as above; it is only copied through a shared reference.
unsafe impl Sync for CHook {}

impl FrameHook for CHook {
    fn frame(&mut self, frame: &mut Frame<'_>) -> Verdict {
        let before = frame.bytes().len();
        let capacity = frame.capacity();
        let outgoing = c_int::from(frame.way() == Way::Out);
        let shard = frame.shard();
        let data = frame.buffer_mut().as_mut_ptr();
        let mut told = ss_frame { data, len: before, capacity, outgoing, shard };
        // SAFETY: the program's own function, by the header's rules.
        let verdict = unsafe { (self.call)(&raw mut told, self.user) };
        // A length beyond the room can't be: such a frame is dropped.
        let passes = verdict == SS_PASS || verdict == SS_CHANGED;
        if passes && frame.finish(told.len, verdict == SS_CHANGED) { Verdict::Pass } else { Verdict::Drop }
    }
}

/// # Safety
/// `text` is null or a string.
unsafe fn string<'a>(text: *const c_char) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's word.
    unsafe { CStr::from_ptr(text) }.to_str().map(Some).map_err(|_| invalid("text that is not UTF-8"))
}

/// # Safety
/// As the header says of `struct ss_options`.
unsafe fn start(options: &ss_options) -> Result<*mut ss_engine, Failure> {
    if options.size < size_of::<ss_options>() {
        return Err(invalid("ss_options.size is not set"));
    }
    // SAFETY: the caller's word.
    let config = match unsafe { (string(options.config_file)?, string(options.config_text)?) } {
        (Some(path), None) => Config::from_file(Path::new(path)),
        (None, Some(text)) => Config::parse(text, "the configuration"),
        _ => return Err(invalid("either a configuration's file or its text must be given")),
    };
    let config = config.map_err(|e| failed(&e.into()))?;
    let mut wires = Vec::new();
    for i in 0..if options.wires.is_null() { 0 } else { options.wire_count } {
        // SAFETY: the caller's word: that many descriptors, which are open.
        let wire = unsafe { BorrowedFd::borrow_raw(options.wires.add(i).read()) };
        let wire: OwnedFd = wire.try_clone_to_owned().map_err(|e| failed(&anyhow::Error::from(e)))?;
        wires.push(wire);
    }
    let library = match options.hook {
        None => Library::start_on(&config, wires),
        Some(call) => {
            let hook = CHook { call, user: options.user };
            let maker: HookMaker = Arc::new(move |_| Box::new(hook));
            Library::start_hooked(&config, wires, maker)
        }
    };
    let library = library.map_err(|e| failed(&e))?;
    let control = CString::new(library.control()).map_err(|_| invalid("the control socket's name"))?;
    let client = library.client();
    Ok(ss_engine::handle(client, Some(Box::new(Started { library, control }))))
}

fn started(options: Result<ss_options, Failure>) -> *mut ss_engine {
    let mut engine = core::ptr::null_mut();
    capi::run(|| {
        // SAFETY: the callers' words.
        engine = unsafe { start(&options?) }?;
        Ok(0)
    });
    engine
}

const NOTHING: ss_options = ss_options {
    size: size_of::<ss_options>(),
    config_file: core::ptr::null(),
    config_text: core::ptr::null(),
    hook: None,
    user: core::ptr::null_mut(),
    wires: core::ptr::null(),
    wire_count: 0,
};

/// See `include/sidestep.h`.
///
/// # Safety
/// `path` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_start(path: *const c_char) -> *mut ss_engine {
    started(Ok(ss_options { config_file: path, ..NOTHING }))
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `text` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_start_string(text: *const c_char) -> *mut ss_engine {
    started(Ok(ss_options { config_text: text, ..NOTHING }))
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `options` is null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_start_with(options: *const ss_options) -> *mut ss_engine {
    // SAFETY: the caller's word.
    started(unsafe { options.as_ref() }.copied().ok_or_else(|| invalid("no options")))
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or was given by a start and not stopped yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_stop(engine: *mut ss_engine) {
    // SAFETY: the caller's word.
    unsafe { capi::ss_detach(engine) }
}

/// # Safety
/// `engine` is null or attached.
unsafe fn owned<'a>(engine: *mut ss_engine) -> Result<&'a Started, Failure> {
    // SAFETY: the caller's word.
    let engine = unsafe { engine.as_ref() }.ok_or_else(|| (libc::EBADF, "no engine".to_owned()))?;
    let owner = engine.owner().and_then(|owner| owner.downcast_ref::<Started>());
    owner.ok_or_else(|| (libc::EOPNOTSUPP, "the engine is not in this process: it was attached to".to_owned()))
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_run_once(engine: *mut ss_engine) -> c_int {
    // SAFETY: the caller's word.
    capi::run(|| Ok(isize::from(unsafe { owned(engine) }?.library.turn()))) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or attached; `fd` and `timeout_ns` are null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_sleep_begin(engine: *mut ss_engine, fd: *mut c_int, timeout_ns: *mut i64) -> c_int {
    capi::run(|| {
        use std::os::fd::AsRawFd;
        // SAFETY: the caller's word.
        let (library, fd, timeout) = unsafe { (&owned(engine)?.library, fd.as_mut(), timeout_ns.as_mut()) };
        let (Some(fd), Some(timeout)) = (fd, timeout) else {
            return Err((libc::EFAULT, "nowhere to put the descriptor or the time".to_owned()));
        };
        let Some(before) = library.before_poll() else { return Ok(0) };
        *fd = if before.leads { library.poll_fd().as_raw_fd() } else { -1 };
        *timeout = i64::try_from(before.timeout_ns).unwrap_or(i64::MAX);
        Ok(1)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_sleep_end(engine: *mut ss_engine, fd: c_int) -> c_int {
    capi::run(|| {
        // SAFETY: the caller's word.
        let library = unsafe { &owned(engine)?.library };
        library.after_poll(BeforePoll { timeout_ns: 0, leads: fd >= 0 });
        Ok(0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or attached; `out` is null or points to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_stats(engine: *mut ss_engine, out: *mut ss_stats, size: usize) -> c_int {
    capi::run(|| {
        // SAFETY: the caller's word.
        let library = unsafe { &owned(engine)?.library };
        if out.is_null() {
            return Err((libc::EFAULT, "nowhere to put the counters".to_owned()));
        }
        let counters = library.counters();
        let sum = |pick: &dyn Fn(&engine::library::Counted) -> u64| counters.iter().map(pick).sum::<u64>();
        let hooks = [Way::In, Way::Out].map(|way| library.hook_counters().of(way));
        let stats = ss_stats {
            frames_in: sum(&|c| c.port.rx_frames),
            bytes_in: sum(&|c| c.port.rx_bytes),
            frames_out: sum(&|c| c.port.tx_frames),
            bytes_out: sum(&|c| c.port.tx_bytes),
            tcp_in: sum(&|c| c.stack.tcp_in),
            tcp_out: sum(&|c| c.stack.tcp_out),
            tcp_retransmits: sum(&|c| c.stack.tcp_retransmits),
            udp_in: sum(&|c| c.stack.udp_in),
            udp_out: sum(&|c| c.stack.udp_out),
            tcp_opened: sum(&|c| c.stack.tcp_opened_active + c.stack.tcp_opened_passive),
            tcp_closed: sum(&|c| c.stack.tcp_closed),
            dropped: sum(&|c| c.dropped()),
            hook_seen: hooks.map(|h| h.seen),
            hook_dropped: hooks.map(|h| h.dropped),
            hook_changed: hooks.map(|h| h.changed),
        };
        // SAFETY: both are at least that long; the caller's word for `out`. Plain numbers.
        unsafe {
            let len = size.min(size_of::<ss_stats>());
            core::ptr::copy_nonoverlapping((&raw const stats).cast::<u8>(), out.cast(), len);
        }
        Ok(0)
    }) as c_int
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or attached; `which` is null or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_report(engine: *mut ss_engine, which: *const c_char) -> *mut c_char {
    let mut report = core::ptr::null_mut();
    capi::run(|| {
        // SAFETY: the caller's word.
        let (library, which) = unsafe { (&owned(engine)?.library, string(which)?) };
        let text = match which {
            Some("stats") => library.stats(),
            Some("sockets") => library.sockets(),
            Some("latency") => library.latency(),
            _ => return Err(invalid("a report is \"stats\", \"sockets\" or \"latency\"")),
        };
        let text = text.map_err(|e| failed(&e))?;
        report = CString::new(text).map_err(|_| invalid("a report with a null byte"))?.into_raw();
        Ok(0)
    });
    report
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `text` is null or was given by [`ss_report`] and not freed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: the caller's word.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// See `include/sidestep.h`.
///
/// # Safety
/// `engine` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ss_control(engine: *mut ss_engine) -> *const c_char {
    let mut name = core::ptr::null();
    capi::run(|| {
        // SAFETY: the caller's word.
        name = unsafe { owned(engine) }?.control.as_ptr();
        Ok(0)
    });
    name
}
