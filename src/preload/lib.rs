//! The preload library: an unmodified program's socket calls, on a Sidestep engine.
//!
//! ```text
//!   program ── read, connect, epoll_wait, fork, … ──▶ exports
//!                                                        │  table: whose is this descriptor?
//!                              the kernel's ◀────────────┼───────────▶ the stack's
//!                              real (the C library)      │             socket, options, transfer, poll, epoll, process
//!                                                        │                │
//!                                                        │                ▼
//!                                                        │             sidestep-client (engine: the session)
//! ```
//!
//! A socket that the stack could serve starts as a kernel socket, the *placeholder*, whose number is the program's
//! descriptor. The first bind, connect or datagram decides by address whose it is. If it is the stack's, the
//! placeholder stays: it holds the number, the flags that fcntl() knows, options as the kernel validates them, and it
//! goes through exec; everything else happens in the engine's slot.
//!
//! What this library may not do inside a strange program: bring threads, a logger, or an allocator of its own; unwind
//! into it; take a descriptor number that the program could expect for itself; cost anything where no socket is.
//!
//! What the C library does inside itself, and what goes past it, is caught where it must be: `dispatch`.
//!
//! Limits, with reasons, are in `docs/POSIX.md`.

mod address;
mod calls;
mod dispatch;
mod engine;
mod epoll;
mod errno;
pub mod exports;
mod files;
mod library;
mod memory;
mod options;
mod poll;
mod process;
mod raw;
mod reach;
mod real;
mod rights;
mod socket;
mod stdio;
mod table;
mod transfer;

/// Runs when the library is loaded, before the program: reads what `sidestep run` left in the environment, and takes
/// over what a program before exec passed on. Does nothing in a program that runs without an engine.
extern "C" fn start() {
    if let Some(settings) = engine::settings() {
        process::watch_forks();
        process::adopt();
        if settings.dispatch || dispatch::is_go() {
            dispatch::switch_on();
        }
    }
}

#[used]
// SAFETY: functions in this section are called once each by the dynamic loader, as start() may be.
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

/// Runs at exit() and at the end of main: the last moment at which an engine in this process can say goodbye.
extern "C" fn end() {
    library::finish(engine::session());
}

#[used]
// SAFETY: functions in this section are called once each by the dynamic loader, as end() may be.
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = end;
