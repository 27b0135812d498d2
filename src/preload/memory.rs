//! Whether a program's pointer can be used. The kernel answers EFAULT to one that can't; this library copies the bytes
//! itself, and would die of it.
//!
//! ```text
//!   page seen good before ── yes ──▶ go on                                     (a load and a comparison)
//!                         └─ no ───▶ the kernel tries: one system call a page   ──▶ remembered, or EFAULT
//! ```
//!
//! The system calls touch nothing: a futex operation that adds zero to a word (is it writable?), and a signal mask that
//! is read and refused for another reason (is it readable?).
//!
//! What was good once is taken to be good: a program that unmaps a buffer and still uses it may crash here where the
//! kernel would say EFAULT. To see every unmapping would cost all programs more than that is worth.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{self, Errno};

const PAGE: usize = 4096;
/// Pages remembered, by their low bits. 8 KiB of zeroes until used.
const KNOWN: usize = 1024;
/// First address that no program can have (x86-64 and arm64 with 48 bits: beyond it is not user space).
const END: usize = 1 << 47;
/// Most pages looked at one by one; in longer ranges the first, the last, and every so many between.
const MOST: usize = 32;

static GOOD: [AtomicU64; KNOWN] = [const { AtomicU64::new(0) }; KNOWN];

/// Whether `len` bytes at `at` can be read.
///
/// # Errors
/// EFAULT.
#[inline]
pub fn readable(at: *const u8, len: usize) -> Result<(), Errno> {
    look(at as usize, len, 1)
}

/// Whether `len` bytes at `at` can be written.
///
/// # Errors
/// EFAULT.
#[inline]
pub fn writable(at: *mut u8, len: usize) -> Result<(), Errno> {
    look(at as usize, len, 3)
}

/// `want`: 1 to read, 3 to write (what can be written can be read).
#[inline]
fn look(at: usize, len: usize, want: u64) -> Result<(), Errno> {
    if len == 0 {
        return Ok(());
    }
    let (first, last) = (at / PAGE, at.wrapping_add(len - 1) / PAGE);
    if is_known(first, want) && (first == last || is_known(last, want) && last - first == 1) {
        return Ok(());
    }
    look_closely(at, len, want)
}

fn is_known(page: usize, want: u64) -> bool {
    let entry = GOOD[page % KNOWN].load(Ordering::Relaxed);
    entry >> 2 == page as u64 && entry & want == want
}

#[cold]
fn look_closely(at: usize, len: usize, want: u64) -> Result<(), Errno> {
    if !(PAGE..END).contains(&at) || len > END - at {
        return Err(Errno(libc::EFAULT));
    }
    let (first, last) = (at / PAGE, (at + len - 1) / PAGE);
    let step = (last - first).div_ceil(MOST).max(1);
    let before = errno::get();
    for page in (first..last).step_by(step).chain([last]) {
        if is_known(page, want) {
            continue;
        }
        if !(if want == 3 { can_write(page * PAGE) } else { can_read(page * PAGE) }) {
            return Err(Errno(libc::EFAULT));
        }
        GOOD[page % KNOWN].store((page as u64) << 2 | want, Ordering::Relaxed);
    }
    errno::set(before);
    Ok(())
}

/// rt_sigprocmask(2) with an operation that there isn't: the set is read first (EFAULT), then refused (EINVAL).
fn can_read(page: usize) -> bool {
    // SAFETY: nothing is changed, whatever the address.
    let outcome = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, 99, page, 0usize, 8usize) };
    outcome == 0 || errno::get() != libc::EFAULT
}

/// FUTEX_WAKE_OP that wakes nobody and adds zero to the word.
fn can_write(page: usize) -> bool {
    const WAKE_OP_PRIVATE: i32 = 5 | 128;
    const ADD_ZERO: u32 = 1 << 28;
    let nobody = 0u32;
    // SAFETY: the word at `page` keeps its value; the addition is atomic, so another thread's store is not lost.
    let outcome = unsafe {
        libc::syscall(libc::SYS_futex, core::ptr::from_ref(&nobody), WAKE_OP_PRIVATE, 0, 0usize, page, ADD_ZERO)
    };
    outcome >= 0 || errno::get() != libc::EFAULT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(protection: i32) -> *mut u8 {
        // SAFETY: a fresh mapping.
        unsafe { libc::mmap(core::ptr::null_mut(), 3 * PAGE, protection, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0) }
            .cast()
    }

    #[test]
    fn good_memory_is_found_good_and_unchanged() {
        let mut bytes = vec![7u8; 200_000];
        assert_eq!(
            (readable(bytes.as_ptr(), bytes.len()), writable(bytes.as_mut_ptr(), bytes.len())),
            (Ok(()), Ok(()))
        );
        assert!(bytes.iter().all(|&b| b == 7));
        assert!(is_known(bytes.as_ptr() as usize / PAGE, 3));
    }

    #[test]
    fn bad_memory_is_a_fault() {
        let fault = Err(Errno(libc::EFAULT));
        for at in [0usize, 1, 8, usize::MAX, usize::MAX - 100, 1 << 47, (1 << 47) - 10] {
            assert_eq!((readable(at as *const u8, 100), writable(at as *mut u8, 100)), (fault, fault), "{at:x}");
        }
        assert_eq!(readable(core::ptr::null(), 0), Ok(()));
        let read_only = map(libc::PROT_READ);
        assert_eq!((readable(read_only, PAGE), writable(read_only, 1)), (Ok(()), fault));
        let nothing = map(libc::PROT_NONE);
        assert_eq!((readable(nothing, 1), writable(nothing, 1)), (fault, fault));
        let two = map(libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the mapping just made; its last page goes.
        unsafe { libc::munmap(two.add(2 * PAGE).cast(), PAGE) };
        assert_eq!((writable(two, 2 * PAGE), writable(two, 2 * PAGE + 1)), (Ok(()), fault));
        assert_eq!(readable(two, 2 * PAGE + 1), fault);
    }
}
