//! System calls that come from inside the C library, or past it: Syscall User Dispatch, prctl(2), since Linux 5.11.
//!
//! The kernel sends SIGSYS for a system call that was made by an instruction outside one range of addresses while a byte
//! of the thread, the *selector*, says so. The handler here makes the call what the exported function of the same name
//! would make it, or lets it happen as if nothing had been.
//!
//! ```text
//!                     where                        range that is let through        when
//!   names             the looking-up thread        this library                     during a lookup
//!   a whole program   every thread                 from this library to the C       always; asked for with
//!                                                  library                          `syscalls = "dispatch"`, or Go
//! ```
//!
//! Measured on a VM whose plain system call takes 250 ns: 55 to 75 ns more for one inside the range, 3 µs for one that
//! is caught. So nothing is switched on in a thread that doesn't need it: names cost a lookup four cheap calls, and
//! everything else nothing.
//!
//! A call that is not ours is repeated by a stub inside the range, with the caller's registers and outside the handler,
//! so that signals, restarts and threads see nothing unusual.

#[cfg(target_arch = "x86_64")]
mod catch;
#[cfg(target_arch = "x86_64")]
mod places;

#[cfg(target_arch = "x86_64")]
pub use catch::{
    forked_child, hold, is_permanent, mask_without_ours, programs_action, start_thread, switch_on, within,
};
#[cfg(target_arch = "x86_64")]
pub use places::is_go;

/// Elsewhere the kernel has no such thing (aarch64 before 6.18).
#[cfg(not(target_arch = "x86_64"))]
mod without {
    use libc::{c_int, sigset_t};

    /// Runs `call`; what it does inside the C library stays the kernel's.
    pub fn within<R>(call: impl FnOnce() -> R) -> R {
        call()
    }

    /// Whether this program's every system call is looked at.
    pub const fn is_permanent() -> bool {
        false
    }

    /// Nothing to do.
    pub const fn forked_child() {}

    /// Nothing to hold.
    pub const fn hold() {}

    /// Asked only where something is caught.
    pub const fn is_go() -> bool {
        false
    }

    /// Nothing is kept from the program.
    pub const fn programs_action(_new: Option<&libc::sigaction>, _old: Option<&mut libc::sigaction>) {}

    /// Nothing to do.
    pub const fn start_thread() {}

    /// Says that it can't.
    pub fn switch_on() {
        crate::engine::say(
            "sidestep: this kind of machine has no Syscall User Dispatch: raw system calls are the kernel's\n",
        );
    }

    /// As it came.
    pub const fn mask_without_ours(_how: c_int, set: sigset_t) -> sigset_t {
        set
    }
}
#[cfg(not(target_arch = "x86_64"))]
pub use without::{
    forked_child, hold, is_go, is_permanent, mask_without_ours, programs_action, start_thread, switch_on, within,
};
