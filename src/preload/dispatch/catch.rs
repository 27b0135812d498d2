//! Switching on and off, and the handler.

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use libc::{siginfo_t, sigset_t};

use super::places::{self, REPEAT_BYTES, Text};
use crate::table::lock;
use crate::{calls, engine, errno, raw};

/// prctl(2)
const PR_SET_SYSCALL_USER_DISPATCH: usize = 59;
const ON: usize = 1;
const OFF: usize = 0;
/// Values of the selector.
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;
/// sigaction(2): `si_code` of a signal that is ours.
const SYS_USER_DISPATCH: c_int = 2;
const SA_RESTORER: usize = 0x0400_0000;
/// The signal as a bit of the kernel's masks.
const SIGSYS_BIT: u64 = 1 << (libc::SIGSYS - 1);

/// `struct sigaction` as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

/// The handler, while anyone needs it.
struct Handler {
    users: u32,
    /// What the program had, or has asked for since.
    programs: Action,
}

static HANDLER: Mutex<Handler> =
    Mutex::new(Handler { users: 0, programs: Action { handler: 0, flags: 0, restorer: 0, mask: 0 } });
/// The whole program is watched.
static PERMANENT: AtomicBool = AtomicBool::new(false);
static UNSUPPORTED: AtomicBool = AtomicBool::new(false);

/// This library's instructions, and these with the C library's.
fn ranges() -> Option<(Text, Text)> {
    static RANGES: OnceLock<Option<(Text, Text)>> = OnceLock::new();
    *RANGES.get_or_init(|| {
        let own = places::text_around(places::restorer as *const () as usize)?;
        // SAFETY: a constant name.
        let read = unsafe { libc::dlsym(libc::RTLD_NEXT, c"read".as_ptr()) };
        let theirs = places::text_around(read as usize)?;
        Some((own, own.with(theirs)))
    })
}

/// Whether this thread is in a lookup.
fn depth() -> &'static Cell<u8> {
    // SAFETY: the second byte of this thread's word, used nowhere else.
    unsafe { &*places::selector().add(1).cast::<Cell<u8>>() }
}

fn set_selector(value: u8) {
    // SAFETY: this thread's byte. Volatile: the kernel reads it.
    unsafe { places::selector().write_volatile(value) }
}

/// Tells the kernel. False: it can't.
fn tell(on: Option<Text>) -> bool {
    let arguments = match on {
        Some(text) => [PR_SET_SYSCALL_USER_DISPATCH, ON, text.start, text.len, places::selector() as usize, 0],
        None => [PR_SET_SYSCALL_USER_DISPATCH, OFF, 0, 0, 0, 0],
    };
    // SAFETY: the selector lives as long as the thread.
    unsafe { raw::call(libc::SYS_prctl, &arguments) == 0 }
}

fn kernel_action(new: Option<&Action>) -> Action {
    let mut old = Action::default();
    let new = new.map_or(0, |a| core::ptr::from_ref(a) as usize);
    // SAFETY: structures of the kernel's form.
    unsafe {
        raw::call(libc::SYS_rt_sigaction, &[libc::SIGSYS as usize, new, &raw mut old as usize, 8, 0, 0]);
    }
    old
}

/// Changes this thread's signal mask; the mask before.
fn kernel_mask(how: c_int, set: u64) -> u64 {
    let mut old = 0u64;
    let arguments = [how as usize, &raw const set as usize, &raw mut old as usize, 8, 0, 0];
    // SAFETY: words of 8 bytes.
    unsafe { raw::call(libc::SYS_rt_sigprocmask, &arguments) };
    old
}

fn take_handler() {
    let mut handler = lock(&HANDLER);
    if handler.users == 0 {
        // Go's own stacks are too small for anything of C's, alternate stacks of others may be.
        let stack = if is_permanent() && places::is_go() { libc::SA_ONSTACK } else { 0 };
        let own = Action {
            handler: on_signal as *const () as usize,
            flags: (libc::SA_SIGINFO | libc::SA_NODEFER | stack) as usize | SA_RESTORER,
            restorer: places::restorer as *const () as usize,
            mask: 0,
        };
        handler.programs = kernel_action(Some(&own));
    }
    handler.users += 1;
}

fn leave_handler() {
    let mut handler = lock(&HANDLER);
    handler.users = handler.users.saturating_sub(1);
    if handler.users == 0 {
        let programs = handler.programs;
        kernel_action(Some(&programs));
    }
}

// ---- a lookup -----------------------------------------------------------------------------------------------------

/// While it lives, this thread's system calls from inside the C library are caught.
struct Scope {
    /// The thread's mask had SIGSYS in it: one that can't be handled would end the program.
    was_blocked: bool,
}

impl Scope {
    fn enter() -> Option<Self> {
        if engine::settings().is_none() || depth().get() > 0 || UNSUPPORTED.load(Ordering::Relaxed) {
            return None;
        }
        let (own, _) = ranges()?;
        take_handler();
        if !tell(Some(own)) {
            leave_handler();
            if !UNSUPPORTED.swap(true, Ordering::Relaxed) {
                engine::say(
                    "sidestep: this kernel has no Syscall User Dispatch (Linux 5.11): names are looked up over the \
                     kernel's network\n",
                );
            }
            return None;
        }
        let before = kernel_mask(libc::SIG_UNBLOCK, SIGSYS_BIT);
        depth().set(1);
        set_selector(BLOCK);
        Some(Self { was_blocked: before & SIGSYS_BIT != 0 })
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        set_selector(ALLOW);
        depth().set(0);
        if is_permanent() {
            start_thread();
        } else {
            tell(None);
        }
        if self.was_blocked {
            kernel_mask(libc::SIG_BLOCK, SIGSYS_BIT);
        }
        leave_handler();
    }
}

/// Runs `call`, whose system calls inside the C library are treated as the program's own.
pub fn within<R>(call: impl FnOnce() -> R) -> R {
    let _scope = Scope::enter();
    call()
}

// ---- a whole program ----------------------------------------------------------------------------------------------

/// Catches all system calls of this program that are made past the C library, from now on: of this thread, and of those
/// that call [`start_thread`].
pub fn switch_on() {
    if PERMANENT.swap(true, Ordering::AcqRel) {
        return;
    }
    take_handler();
    start_thread();
}

/// Whether the whole program is watched.
#[inline]
pub fn is_permanent() -> bool {
    PERMANENT.load(Ordering::Relaxed)
}

/// To be called by a new thread while [`is_permanent`].
pub fn start_thread() {
    let Some((_, both)) = ranges() else { return };
    kernel_mask(libc::SIG_UNBLOCK, SIGSYS_BIT);
    if tell(Some(both)) {
        set_selector(BLOCK);
    } else if !UNSUPPORTED.swap(true, Ordering::Relaxed) {
        engine::say(
            "sidestep: this kernel has no Syscall User Dispatch (Linux 5.11): system calls made without the C library \
             are the kernel's\n",
        );
    }
}

/// Keeps the handler as it is: around fork.
pub fn hold() -> impl Sized {
    lock(&HANDLER)
}

/// A child of fork begins: the kernel has switched everything off.
pub fn forked_child() {
    set_selector(ALLOW);
    depth().set(0);
    if is_permanent() {
        start_thread();
    } else {
        // Threads that looked up names are not in the child.
        let mut handler = lock(&HANDLER);
        if handler.users > 0 {
            handler.users = 0;
            let programs = handler.programs;
            kernel_action(Some(&programs));
        }
    }
}

/// `set` for sigprocmask() with `how`, without the signal that must always come through.
pub fn mask_without_ours(how: c_int, mut set: sigset_t) -> sigset_t {
    if is_permanent() && how != libc::SIG_UNBLOCK {
        // SAFETY: a set and a signal.
        unsafe { libc::sigdelset(&raw mut set, libc::SIGSYS) };
    }
    set
}

/// What the program asks for with rt_sigaction. None: the kernel's call is to be made, with `new` as it is now.
///
/// # Safety
/// `old` is 0 or points to a structure of the kernel's.
pub unsafe fn action_asked(signal: c_int, new: Option<&mut [usize; 4]>, old: usize) -> Option<isize> {
    if signal != libc::SIGSYS {
        if let Some(new) = new {
            // Handlers make system calls too.
            new[3] &= !(SIGSYS_BIT as usize);
        }
        return None;
    }
    let mut handler = lock(&HANDLER);
    let before = handler.programs;
    if let Some(&mut [address, flags, restorer, mask]) = new {
        handler.programs = Action { handler: address, flags, restorer, mask: mask as u64 };
    }
    if old != 0 {
        // SAFETY: the caller's word.
        unsafe { (old as *mut Action).write_unaligned(before) };
    }
    Some(0)
}

// ---- the handler --------------------------------------------------------------------------------------------------

unsafe extern "C-unwind" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: what the kernel gives a handler.
    let (code, context) = unsafe { ((*info).si_code, &mut *context.cast::<libc::ucontext_t>()) };
    if code != SYS_USER_DISPATCH {
        let programs = lock(&HANDLER).programs;
        // SAFETY: as above.
        unsafe { pass_on(&programs, signal, info, core::ptr::from_mut(context).cast()) };
        return;
    }
    set_selector(ALLOW);
    let error = errno::get();
    caught(context);
    errno::set(error);
    set_selector(BLOCK);
}

fn caught(context: &mut libc::ucontext_t) {
    let registers = &mut context.uc_mcontext.gregs;
    let at = |register: c_int| registers[register as usize] as usize;
    let number = registers[libc::REG_RAX as usize];
    let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8, libc::REG_R9].map(at);
    let (back, stack) = (at(libc::REG_RIP), at(libc::REG_RSP));
    let mut go_to = |place: extern "C" fn()| registers[libc::REG_RIP as usize] = place as *const () as i64;
    match number {
        // Its frame is where the stack points.
        libc::SYS_rt_sigreturn => return go_to(places::restorer),
        libc::SYS_clone | libc::SYS_vfork | libc::SYS_clone3 => {
            // SAFETY: this thread's word.
            unsafe { *places::back() = back };
            return go_to(places::repeat_shared);
        }
        _ => {}
    }
    // SAFETY: the program's own call, with its own arguments.
    let answer = unsafe {
        match number {
            libc::SYS_rt_sigprocmask => Some(change_mask(context, &arguments)),
            libc::SYS_rt_sigaction => change_action(&arguments),
            number => calls::emulate(number, &arguments),
        }
    };
    let registers = &mut context.uc_mcontext.gregs;
    if let Some(answer) = answer {
        registers[libc::REG_RAX as usize] = answer as i64;
        return;
    }
    let stack = stack - REPEAT_BYTES;
    // SAFETY: below the stack of the function that made the call, and below what it may use there.
    unsafe { (stack as *mut usize).write(back) };
    registers[libc::REG_RSP as usize] = stack as i64;
    registers[libc::REG_RIP as usize] = places::repeat as *const () as i64;
}

/// rt_sigprocmask: the mask is the one that the end of the handler sets.
///
/// # Safety
/// As the system call.
unsafe fn change_mask(context: &mut libc::ucontext_t, a: &[usize; 6]) -> isize {
    let mut arguments = *a;
    let mut set;
    if a[1] != 0 && a[3] == 8 {
        // SAFETY: the caller's word.
        set = unsafe { (a[1] as *const u64).read_unaligned() };
        if a[0] as c_int != libc::SIG_UNBLOCK {
            set &= !SIGSYS_BIT;
        }
        arguments[1] = &raw const set as usize;
    }
    // SAFETY: the caller's word.
    let outcome = unsafe { raw::call(libc::SYS_rt_sigprocmask, &arguments) };
    let now = kernel_mask(libc::SIG_BLOCK, 0);
    // SAFETY: the kernel's mask is the first word of the C library's.
    unsafe { (&raw mut context.uc_sigmask).cast::<u64>().write(now) };
    outcome
}

/// sigaction() for SIGSYS while the handler there is ours: what the program asks for, and what it asked for before.
pub fn programs_action(new: Option<&libc::sigaction>, old: Option<&mut libc::sigaction>) {
    let mut handler = lock(&HANDLER);
    let before = handler.programs;
    if let Some(new) = new {
        handler.programs = Action { handler: new.sa_sigaction, flags: new.sa_flags as usize, restorer: 0, mask: 0 };
    }
    if let Some(old) = old {
        // SAFETY: all-zero is a valid sigaction.
        *old = unsafe { core::mem::zeroed() };
        old.sa_sigaction = before.handler;
        old.sa_flags = before.flags as c_int;
    }
}

/// # Safety
/// As the system call.
unsafe fn change_action(a: &[usize; 6]) -> Option<isize> {
    // SAFETY: the caller's word.
    let mut new = (a[1] != 0).then(|| unsafe { (a[1] as *const [usize; 4]).read_unaligned() });
    // SAFETY: as above.
    if let Some(done) = unsafe { action_asked(a[0] as c_int, new.as_mut(), a[2]) } {
        return Some(done);
    }
    let place = new.as_ref().map_or(0, |new| new.as_ptr() as usize);
    // SAFETY: as above.
    Some(unsafe { raw::call(libc::SYS_rt_sigaction, &[a[0], place, a[2], a[3], 0, 0]) })
}

/// A SIGSYS that is not ours: from a seccomp filter, or sent.
///
/// # Safety
/// What a handler got.
unsafe fn pass_on(programs: &Action, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    match programs.handler {
        libc::SIG_IGN => {}
        libc::SIG_DFL => {
            let default = Action::default();
            kernel_action(Some(&default));
            // SAFETY: no pointers. It comes once this handler has returned, or at once.
            unsafe {
                let pid = raw::call(libc::SYS_getpid, &[0; 6]) as usize;
                let tid = raw::call(libc::SYS_gettid, &[0; 6]) as usize;
                raw::call(libc::SYS_tgkill, &[pid, tid, signal as usize, 0, 0, 0]);
            }
        }
        // SAFETY: the program's handler, called as the kernel would.
        address => unsafe {
            let handler: extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void) = core::mem::transmute(address);
            handler(signal, info, context);
        },
    }
}
