//! The C symbols that programs find before the C library's.
//!
//! Each asks the descriptor table whether the stack is concerned; if not, it is the C library's call and nothing else.
//! What is done for the stack runs under [`guard`], so that nothing unwinds into the program.
//!
//! Not to be seen from here: what the C library calls inside itself, and system calls made without it; for some of them
//! there is [`crate::dispatch`], for streams [`crate::stdio`].

pub mod data;
pub mod file;
pub mod lists;
pub mod message;
pub mod names;
pub mod process;
pub mod raw;
pub mod socket;
pub mod stdio;
pub mod thread;
pub mod wait;

use core::ffi::c_int;

use sidestep_client::Session;

use crate::socket::Socket;
use crate::{engine, table};

pub(crate) use crate::errno::guard;

/// Defines exported functions. In unit tests they are plain functions: a test program must not replace its own libc.
macro_rules! export {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty $body:block)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// As the manual page says.
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[allow(non_snake_case, clippy::too_many_arguments, reason = "the C library's")]
        pub unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $ret {
            // SAFETY: the caller keeps the C function's contract, and what is called here asks for no more.
            #[allow(unused_unsafe)]
            unsafe { $body }
        }
    )+};
}
pub(crate) use export;

/// The session and a socket that may be the stack's.
fn candidate(fd: c_int) -> Option<(&'static Session, &'static Socket)> {
    let socket = table::socket(fd)?;
    Some((engine::session()?, socket))
}

/// The session, the socket and the slot of a socket that is the stack's.
#[inline]
fn ours(fd: c_int) -> Option<(&'static Session, &'static Socket, u32)> {
    let (session, socket) = candidate(fd)?;
    Some((session, socket, socket.claimed()?))
}
