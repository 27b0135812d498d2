//! syscall(2): system calls by number.

use core::ffi::c_long;

use crate::{calls, errno, raw};

/// What a program's `syscall()` comes to: number and arguments, as the C library's function takes them.
///
/// # Safety
/// As the manual page of the call says.
unsafe extern "C-unwind" fn emulated(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let arguments = [a, b, c, d, e, f];
    // SAFETY: the caller's word. Nothing here may lock: Rust's locks come here to sleep.
    let outcome = unsafe { calls::emulate(number, &arguments).unwrap_or_else(|| raw::call(number, &arguments)) };
    match outcome {
        -4095..0 => failed(-outcome as i32),
        fine => fine as c_long,
    }
}

/// Sets errno; -1.
extern "C" fn failed(errno: i32) -> c_long {
    errno::set(errno);
    -1
}

/// syscall(2). Calls that go on with another stack, or twice with this one, must not pass through a function that has
/// a frame: clone (56), vfork (58) and clone3 (435) are made here, as the C library makes them.
///
/// # Safety
/// As the manual page says.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn syscall() {
    // In: the number in rdi, arguments in rsi, rdx, rcx, r8, r9 and on the stack.
    core::arch::naked_asm!(
        "cmp rdi, 56",
        "je 2f",
        "cmp rdi, 58",
        "je 2f",
        "cmp rdi, 435",
        "je 2f",
        "jmp {emulated}",
        "2:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, qword ptr [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 3f",
        "ret",
        "3:",
        "mov edi, eax",
        "neg edi",
        "jmp {failed}",
        emulated = sym emulated,
        failed = sym failed,
    );
}
