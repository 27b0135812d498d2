//! Descriptors -> what they are to this library, for the whole process.
//!
//! ```text
//!   fd ──▶ word: kind | address ──▶ Socket  (what dup() shares: slot, blocking mode, timeouts)
//!                                   Epoll   (interest list, event queue)
//!                                   internal (this library's own: the program may not close it)
//! ```
//!
//! Reading takes two loads and no lock, so calls on descriptors that are none of ours cost next to nothing. What a word
//! points to is never freed, only used again, so a reader that lost a race with close() finds an object of the right
//! type with another generation.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::epoll::Epoll;
use crate::socket::Socket;

/// Words in one piece of the table (one page of memory and a bit of zeroes).
const CHUNK: usize = 512;
/// Pieces: 2^21 descriptors. The kernel's own default limit (fs.nr_open) is 2^20.
const CHUNKS: usize = 4096;

type Chunk = [AtomicU64; CHUNK];

static TABLE: [AtomicPtr<Chunk>; CHUNKS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS];

const KIND_BITS: u64 = 7;
const SOCKET: u64 = 1;
const EPOLL: u64 = 2;
const INTERNAL: u64 = 3;

/// What a descriptor is.
#[derive(Clone, Copy)]
pub enum Entry {
    Socket(&'static Socket),
    Epoll(&'static Epoll),
    /// This library's own descriptor.
    Internal,
}

fn word(fd: i32) -> Option<&'static AtomicU64> {
    let fd = usize::try_from(fd).ok()?;
    // SAFETY: a chunk that was published is never freed.
    let chunk = unsafe { TABLE.get(fd / CHUNK)?.load(Ordering::Acquire).as_ref()? };
    Some(&chunk[fd % CHUNK])
}

/// The word for `fd`, its piece of the table made if need be. None beyond the table's end.
fn word_made(fd: i32) -> Option<&'static AtomicU64> {
    if let Some(word) = word(fd) {
        return Some(word);
    }
    let place = TABLE.get(usize::try_from(fd).ok()? / CHUNK)?;
    let fresh: *mut Chunk = Box::into_raw(Box::new([const { AtomicU64::new(0) }; CHUNK]));
    if place.compare_exchange(core::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: made above, and nobody else has seen it.
        drop(unsafe { Box::from_raw(fresh) });
    }
    word(fd)
}

fn decode(word: u64) -> Option<Entry> {
    let address = (word & !KIND_BITS) as usize;
    match word & KIND_BITS {
        // SAFETY: only `encode` makes such words, from references that live for ever.
        SOCKET => Some(Entry::Socket(unsafe { &*(address as *const Socket) })),
        // SAFETY: as above.
        EPOLL => Some(Entry::Epoll(unsafe { &*(address as *const Epoll) })),
        INTERNAL => Some(Entry::Internal),
        _ => None,
    }
}

fn encode(entry: Entry) -> u64 {
    const { assert!(align_of::<Socket>() >= 8 && align_of::<Epoll>() >= 8) };
    match entry {
        Entry::Socket(socket) => core::ptr::from_ref(socket) as u64 | SOCKET,
        Entry::Epoll(epoll) => core::ptr::from_ref(epoll) as u64 | EPOLL,
        Entry::Internal => INTERNAL,
    }
}

/// What `fd` is; None for what is the kernel's alone.
#[inline]
#[must_use]
pub fn get(fd: i32) -> Option<Entry> {
    decode(word(fd)?.load(Ordering::Acquire))
}

/// The socket that may be the stack's behind `fd`.
#[inline]
#[must_use]
pub fn socket(fd: i32) -> Option<&'static Socket> {
    match get(fd) {
        Some(Entry::Socket(socket)) if !socket.is_passed() => Some(socket),
        _ => None,
    }
}

/// Makes `fd` stand for `entry`, and returns what it stood for. False in the second place when the table doesn't reach
/// that far.
pub fn put(fd: i32, entry: Entry) -> (Option<Entry>, bool) {
    match word_made(fd) {
        Some(word) => (decode(word.swap(encode(entry), Ordering::AcqRel)), true),
        None => (None, false),
    }
}

/// `fd` stands for nothing from now on; returns what it stood for. An internal descriptor stays.
pub fn take(fd: i32) -> Option<Entry> {
    let word = word(fd)?;
    let mut seen = word.load(Ordering::Acquire);
    while seen != 0 && seen & KIND_BITS != INTERNAL {
        match word.compare_exchange_weak(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return decode(seen),
            Err(now) => seen = now,
        }
    }
    None
}

/// `fd` is this library's own.
pub fn set_internal(fd: i32) {
    put(fd, Entry::Internal);
}

/// It no longer is.
pub fn clear_internal(fd: i32) {
    if let Some(word) = word(fd) {
        let _ = word.compare_exchange(INTERNAL, 0, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// Whether `fd` is this library's own.
#[must_use]
pub fn is_internal(fd: i32) -> bool {
    matches!(get(fd), Some(Entry::Internal))
}

/// Whether `fd` is an epoll instance that this library knows.
#[must_use]
pub fn is_epoll(fd: i32) -> bool {
    matches!(get(fd), Some(Entry::Epoll(_)))
}

/// Calls `each` with every descriptor of `first..=last` that stands for something, in order.
pub fn each(first: u32, last: u32, mut each: impl FnMut(i32, Entry)) {
    let last = (last as usize).min(CHUNK * CHUNKS - 1);
    let mut fd = first as usize;
    while fd <= last {
        // SAFETY: as in `word`.
        match unsafe { TABLE[fd / CHUNK].load(Ordering::Acquire).as_ref() } {
            None => fd = (fd / CHUNK + 1) * CHUNK,
            Some(chunk) => {
                if let Some(entry) = decode(chunk[fd % CHUNK].load(Ordering::Acquire)) {
                    each(fd as i32, entry);
                }
                fd += 1;
            }
        }
    }
}

/// Locks a mutex whose data stays sound whatever its last holder did.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_stand_for_what_was_put_there() {
        let fd = 700_001;
        assert!(get(fd).is_none() && take(fd).is_none() && get(-1).is_none() && get(i32::MAX).is_none());
        set_internal(fd);
        assert!(is_internal(fd));
        assert!(take(fd).is_none(), "an internal descriptor can't be taken");
        let mut seen = Vec::new();
        each(700_000, 700_002, |fd, _| seen.push(fd));
        assert_eq!(seen, [fd]);
        clear_internal(fd);
        assert!(get(fd).is_none());
        assert!(!put(i32::MAX, Entry::Internal).1);
    }
}
