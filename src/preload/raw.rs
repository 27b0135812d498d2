//! System calls made by this library's own instructions.
//!
//! The C library's `syscall()` can't be used here: its name is one of those that this library exports.

use core::ffi::c_long;

/// Makes the system call `number`. Gives what the kernel gives: -errno for an error.
///
/// # Safety
/// As the manual page of that call says.
#[inline]
#[cfg(target_arch = "x86_64")]
pub unsafe fn call(number: c_long, a: &[usize; 6]) -> isize {
    let outcome: isize;
    // SAFETY: the kernel's calling convention; what the call does is the caller's responsibility.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => outcome,
            in("rdi") a[0],
            in("rsi") a[1],
            in("rdx") a[2],
            in("r10") a[3],
            in("r8") a[4],
            in("r9") a[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    outcome
}

/// See above.
///
/// # Safety
/// As above.
#[inline]
#[cfg(target_arch = "aarch64")]
pub unsafe fn call(number: c_long, a: &[usize; 6]) -> isize {
    let outcome: isize;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a[0] as isize => outcome,
            in("x1") a[1],
            in("x2") a[2],
            in("x3") a[3],
            in("x4") a[4],
            in("x5") a[5],
            options(nostack),
        );
    }
    outcome
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        // SAFETY: no pointers.
        unsafe {
            let own = super::call(libc::SYS_getpid, &[0; 6]);
            assert_eq!(own as u32, std::process::id());
            assert_eq!(super::call(libc::SYS_close, &[usize::MAX, 0, 0, 0, 0, 0]), -(libc::EBADF as isize));
        }
    }
}
