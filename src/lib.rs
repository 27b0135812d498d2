//! Sidestep: a network stack in user space for Linux servers. The modules, in the order in which a packet meets them:
//!
//! | | |
//! |---|---|
//! | `bpf/steer.bpf.c` | in the kernel: is it ours? To this queue's AF_XDP socket; everything else stays with the kernel |
//! | [`xdp`] | kernel rings to owned frames: the only code that knows AF_XDP |
//! | [`port`] | the trait between a loop and its frames; TAP, packet sockets and pipes behind it |
//! | [`shard`] | one core's loop: rx, ingress, commands of programs, events, egress, tx, timers, idle |
//! | [`sidestep_stack`] | TCP/IP without a clock, a thread or a system call: frames in, frames and events out |
//! | [`sidestep_shm`] | what programs and engine share: slots, byte rings, dirty sets |
//! | [`sidestep_client`] | sockets over that memory; its C API is `include/sidestep.h` |
//! | `sidestep_preload` | libc's socket calls for unmodified programs |
//!
//! Beside the path: [`control`] (attach, bind, listen, cleaning up after the dead), [`config`], [`engine`] (starts and
//! stops it all), [`local`] (the same engine without threads, driven by its caller), [`sim`] (a network of those),
//! [`packetdrill`] (packet scripts on one), [`latency`] (where the time of a request goes), [`bench`] (load generators,
//! and the stacks side by side), [`clock`].
#![deny(unsafe_code)]

pub mod bench;
pub mod clock;
pub mod config;
pub mod control;
pub mod engine;
pub mod latency;
pub mod library;
pub mod local;
pub mod packetdrill;
#[allow(unsafe_code)]
pub mod port;
pub mod shard;
pub mod sim;
#[allow(unsafe_code)]
pub mod xdp;
