//! Streams of the C library on sockets of the stack.
//!
//! stdio reads and writes descriptors where it can't be seen. A stream on a socket of ours is therefore one of the kind
//! that calls functions back, fopencookie(3); everything that is done with streams works on it. The standard streams
//! are variables that point to streams, and point to such ones while their descriptors are our sockets.

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

use libc::{FILE, off64_t, size_t, ssize_t};

use crate::exports::{data, file};
use crate::table::{self, lock};

/// cookie_io_functions_t of the C library.
#[repr(C)]
struct Functions {
    read: Option<unsafe extern "C-unwind" fn(*mut c_void, *mut c_char, size_t) -> ssize_t>,
    write: Option<unsafe extern "C-unwind" fn(*mut c_void, *const c_char, size_t) -> ssize_t>,
    seek: Option<unsafe extern "C-unwind" fn(*mut c_void, *mut off64_t, c_int) -> c_int>,
    close: Option<unsafe extern "C-unwind" fn(*mut c_void) -> c_int>,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Functions) -> *mut FILE;
    fn __fpurge(stream: *mut FILE);
    static mut stdin: *mut FILE;
    static mut stdout: *mut FILE;
    static mut stderr: *mut FILE;
}

/// A stream of ours, by address, and its descriptor.
static STREAMS: Mutex<Vec<(usize, c_int)>> = Mutex::new(Vec::new());
/// There has been one.
static ANY: AtomicBool = AtomicBool::new(false);
/// What the standard streams were before, by address; 0: they are as they were.
static STANDARD: Mutex<[usize; 3]> = Mutex::new([0; 3]);

/// The cookie is the descriptor.
fn descriptor(cookie: *mut c_void) -> c_int {
    cookie.addr() as c_int
}

unsafe extern "C-unwind" fn read(cookie: *mut c_void, buffer: *mut c_char, len: size_t) -> ssize_t {
    // SAFETY: the C library's buffer.
    unsafe { data::read(descriptor(cookie), buffer.cast(), len) }
}

unsafe extern "C-unwind" fn write(cookie: *mut c_void, buffer: *const c_char, len: size_t) -> ssize_t {
    // SAFETY: as above.
    let wrote = unsafe { data::write(descriptor(cookie), buffer.cast(), len) };
    // fopencookie(3): an error is 0, not -1.
    wrote.max(0)
}

unsafe extern "C-unwind" fn seek(_: *mut c_void, _: *mut off64_t, _: c_int) -> c_int {
    crate::errno::set(libc::ESPIPE);
    -1
}

unsafe extern "C-unwind" fn close(cookie: *mut c_void) -> c_int {
    // SAFETY: no pointers.
    unsafe { file::close(descriptor(cookie)) }
}

/// Whether `fd` is a socket of the stack.
fn is_ours(fd: c_int) -> bool {
    table::socket(fd).is_some_and(|socket| socket.claimed().is_some())
}

/// fdopen(3) for a socket of the stack; None for anything else. Null, with errno, when the mode is none.
///
/// # Safety
/// `mode` is a string.
pub unsafe fn open(fd: c_int, mode: *const c_char) -> Option<*mut FILE> {
    if !is_ours(fd) {
        return None;
    }
    // SAFETY: the caller's word.
    Some(unsafe { stream(fd, mode) })
}

/// # Safety
/// As [`open`].
unsafe fn stream(fd: c_int, mode: *const c_char) -> *mut FILE {
    let functions = Functions { read: Some(read), write: Some(write), seek: Some(seek), close: Some(close) };
    // SAFETY: the caller's word; the cookie is a number.
    let made = unsafe { fopencookie(core::ptr::without_provenance_mut(fd as usize), mode, functions) };
    if !made.is_null() {
        ANY.store(true, Ordering::Release);
        lock(&STREAMS).push((made.addr(), fd));
    }
    made
}

/// The descriptor of a stream of ours.
pub fn number(of: *mut FILE) -> Option<c_int> {
    if !ANY.load(Ordering::Acquire) {
        return None;
    }
    lock(&STREAMS).iter().find(|(address, _)| *address == of.addr()).map(|&(_, fd)| fd)
}

/// `of` is about to be closed. Whether it was ours: then it closes its descriptor itself, after its last bytes.
pub fn forget(of: *mut FILE) -> bool {
    if !ANY.load(Ordering::Acquire) {
        return false;
    }
    let mut streams = lock(&STREAMS);
    let before = streams.len();
    streams.retain(|(address, _)| *address != of.addr());
    streams.len() < before
}

/// Keeps the list as it is: around fork.
pub fn hold() -> impl Sized {
    (lock(&STREAMS), lock(&STANDARD))
}

/// Descriptor `fd` stands for something else than before: if it is 0, 1 or 2, its stream follows.
pub fn changed(fd: c_int) {
    let Some(n) = usize::try_from(fd).ok().filter(|&n| n < 3) else { return };
    let mut standard = lock(&STANDARD);
    if is_ours(fd) == (standard[n] != 0) {
        return;
    }
    // SAFETY: the C library's variables, which programs may set: stdin(3).
    unsafe {
        let place = [&raw mut stdin, &raw mut stdout, &raw mut stderr][n];
        if standard[n] != 0 {
            // What was not flushed has nowhere to go any more.
            __fpurge(*place);
            *place = core::ptr::with_exposed_provenance_mut(core::mem::take(&mut standard[n]));
            return;
        }
        let made = stream(fd, if n == 0 { c"r".as_ptr() } else { c"w".as_ptr() });
        if !made.is_null() {
            if n == 2 {
                libc::setvbuf(made, core::ptr::null_mut(), libc::_IONBF, 0);
            }
            standard[n] = (*place).expose_provenance();
            *place = made;
        }
    }
}
