//! exec with arguments in a list, system.
//!
//! A function with an ellipsis can't be written in Rust: a few instructions collect what is in registers and tell where
//! the rest is.

use core::ffi::{c_char, c_int};

use super::export;
use super::process::{execve, execvpe};
use crate::{engine, process, real};

/// A list of arguments: in registers, then on the stack, up to a null; and what comes behind it.
///
/// # Safety
/// `registers` are five words, and the list ends with a null.
#[cfg(target_arch = "x86_64")]
unsafe fn collect(registers: *const usize, stack: *const usize) -> (Vec<*const c_char>, *const *const c_char) {
    // SAFETY: the caller's word.
    let word = |n: usize| unsafe { if n < 5 { *registers.add(n) } else { *stack.add(n - 5) } };
    let mut arguments = Vec::new();
    let mut n = 0;
    while word(n) != 0 {
        arguments.push(core::ptr::with_exposed_provenance(word(n)));
        n += 1;
    }
    arguments.push(core::ptr::null());
    (arguments, core::ptr::with_exposed_provenance(word(n + 1)))
}

/// # Safety
/// As the manual page says.
#[cfg(target_arch = "x86_64")]
unsafe extern "C-unwind" fn by_path(path: *const c_char, registers: *const usize, stack: *const usize) -> c_int {
    // SAFETY: the caller's word.
    unsafe { execve(path, collect(registers, stack).0.as_ptr(), process::environ()) }
}

/// # Safety
/// As the manual page says.
#[cfg(target_arch = "x86_64")]
unsafe extern "C-unwind" fn by_name(file: *const c_char, registers: *const usize, stack: *const usize) -> c_int {
    // SAFETY: the caller's word.
    unsafe { execvpe(file, collect(registers, stack).0.as_ptr(), process::environ()) }
}

/// # Safety
/// As the manual page says.
#[cfg(target_arch = "x86_64")]
unsafe extern "C-unwind" fn by_environment(path: *const c_char, registers: *const usize, stack: *const usize) -> c_int {
    // SAFETY: the caller's word.
    unsafe {
        let (arguments, environment) = collect(registers, stack);
        execve(path, arguments.as_ptr(), environment)
    }
}

macro_rules! list {
    ($($(#[$doc:meta])* $name:ident -> $to:ident;)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// As the manual page says.
        #[cfg(target_arch = "x86_64")]
        #[unsafe(naked)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C-unwind" fn $name() {
            core::arch::naked_asm!(
                "sub rsp, 40",
                "mov qword ptr [rsp], rsi",
                "mov qword ptr [rsp + 8], rdx",
                "mov qword ptr [rsp + 16], rcx",
                "mov qword ptr [rsp + 24], r8",
                "mov qword ptr [rsp + 32], r9",
                "mov rsi, rsp",
                "lea rdx, [rsp + 48]",
                "call {to}",
                "add rsp, 40",
                "ret",
                to = sym $to,
            );
        }
    )+};
}

list! {
    /// execl(3).
    execl -> by_path;
    /// execlp(3).
    execlp -> by_name;
    /// execle(3).
    execle -> by_environment;
}

export! {
    /// system(3).
    fn system(command: *const c_char) -> c_int {
        if command.is_null() || engine::settings().is_none() {
            return real::system(command);
        }
        process::system(command)
    }
}
